"""iptables-save and iptables-restore, for the backend iptables and the policy of FORWARD.

A restore is atomic. Whether the unsuffixed names are iptables-nft or iptables-legacy is the
administrator's choice (update-alternatives). Sources: iptables-save(8), iptables-restore(8).
"""

from __future__ import annotations

import os
from collections.abc import Iterable

from weft import processes
from weft.errors import KernelLacks, KernelRefused
from weft.kernel.linux.firewalls import legacy_in_use
from weft.kernel.netlink.attributes import string
from weft.kernel.netlink.constants import (
    NF_DROP,
    NFT_MSG_GETCHAIN,
    NFT_MSG_GETTABLE,
    NFTA_CHAIN_NAME,
    NFTA_CHAIN_POLICY,
    NFTA_CHAIN_TABLE,
    NFTA_TABLE_NAME,
)
from weft.kernel.nft.socket import NftSocket

_DIRECTORIES = ("/usr/sbin", "/sbin", "/usr/local/sbin", "/usr/bin", "/bin")
_PREFIXES = {4: "iptables", 6: "ip6tables"}
_FAMILIES = {4: "ip", 6: "ip6"}
_TIMEOUT = 30  # seconds for the xtables lock of iptables-legacy


def save(version: int, table: str, nft_socket: NftSocket | None, backend: str = "") -> tuple[str, ...]:
    """The table's chains and rules, () if it is not in use.

    Raises KernelRefused if the program prints none or half of a table that exists: iptables-nft does
    so, with success, for a table that nft has changed ("is incompatible, use 'nft' tool"). *Equivalent
    to:* ``iptables-save -t TABLE``.
    """
    output = _run(version, "-save", ["-t", table], backend=backend)
    lines = output.splitlines()
    whole = (f"*{table}" in lines and "COMMIT" in lines) or backend == "legacy"
    if not whole and (f"*{table}" in lines or exists(version, table, nft_socket)):
        said = next((line.removeprefix("# ") for line in lines if line.startswith("# ")), "nothing")
        raise KernelRefused(f"{_PREFIXES[version]}-save does not print the table {table}, which exists: {said}")
    return _lines(output)


def restore(version: int, table: str, lines: Iterable[str], backend: str = "") -> None:
    """Apply lines atomically. *Equivalent to:* ``iptables-restore --noflush``."""
    text = "\n".join((f"*{table}", *lines, "COMMIT", ""))
    _run(version, "-restore", ["--noflush", f"--wait={_TIMEOUT}"], text, backend)


def drops_forwarded(version: int, nft_socket: NftSocket) -> bool:
    """Whether the policy of FORWARD is DROP, in iptables-nft or in iptables-legacy if in use.

    The former is read with netlink, since every ADD with a firewall asks; only the latter executes
    a program.
    """
    try:
        if _nftables_policy(version, nft_socket) == NF_DROP.to_bytes(4, "big"):
            return True
        return legacy_in_use(version) and _policy(save(version, "filter", None, "legacy")) == "DROP"
    except KernelRefused:
        return False


def exists(version: int, table: str, nft_socket: NftSocket | None) -> bool:
    """Whether iptables-nft has the table; iptables-legacy prints its own always."""
    if nft_socket is None:
        return False
    (found,) = nft_socket.get(NFT_MSG_GETTABLE, [(_FAMILIES[version], (string(NFTA_TABLE_NAME, table),))])
    return found is not None


def _nftables_policy(version: int, nft_socket: NftSocket) -> bytes:
    """NFTA_CHAIN_POLICY of iptables-nft's FORWARD chain, empty if it does not exist."""
    chain = (string(NFTA_CHAIN_TABLE, "filter"), string(NFTA_CHAIN_NAME, "FORWARD"))
    (found,) = nft_socket.get(NFT_MSG_GETCHAIN, [(_FAMILIES[version], chain)])
    return (found or {}).get(NFTA_CHAIN_POLICY, b"")


def _policy(lines: tuple[str, ...]) -> str:
    return next((line.split()[1] for line in lines if line.startswith(":FORWARD ")), "")


def _lines(output: str) -> tuple[str, ...]:
    return tuple(line for line in output.splitlines() if line.startswith((":", "-")))


def _run(version: int, program: str, flags: list[str], text: str = "", backend: str = "") -> str:
    from shutil import which

    name = f"{_PREFIXES[version]}{program}"
    folders = os.pathsep.join((os.environ.get("PATH", ""), *_DIRECTORIES))
    # A distribution with one backend only may not have its suffixed names.
    path = which(f"{_PREFIXES[version]}-{backend}{program}", path=folders) if backend else None
    path = path or which(name, path=folders)
    if path is None:
        raise KernelLacks(f"{name} is not installed", hint="install iptables, or use the backend nftables")
    try:
        done = processes.run(
            [path, *flags],
            text.encode(),
            environment={"LC_ALL": "C", "PATH": os.pathsep.join(_DIRECTORIES)},
            timeout=_TIMEOUT * 2,
        )
    except OSError as error:
        raise KernelRefused(f"cannot run {path}: {error}") from error
    if done.status:
        lines = done.errors.decode("utf-8", "replace").splitlines()
        said = [line for line in lines if line and not line.startswith("# Warning")]
        sentence = said[0] if said else f"exit status {done.status}"
        raise KernelRefused(f"{name}: {sentence.removeprefix(f'{name}: ')}")
    return done.output.decode("utf-8", "replace")
