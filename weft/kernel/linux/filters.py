"""The base chains of other programs that see what this host forwards and receives, for ``weft doctor``."""

from __future__ import annotations

import contextlib
import json

from weft.errors import KernelLacks, KernelRefused
from weft.kernel.linux import firewalls, iptables
from weft.kernel.nft.library import refuse, runner
from weft.kernel.nft.socket import NftSocket
from weft.kernel.verdicts import BaseChain, of_iptables, of_nftables

_PROGRAMS = {4: "iptables", 6: "ip6tables"}
_FAMILIES = {4: "ip", 6: "ip6"}


def base_chains(nft_socket: NftSocket | None) -> tuple[BaseChain, ...]:
    """The base chains of the hooks forward and input in this namespace, but for weft's own.

    What cannot be read is left out: iptables' own table where iptables is not installed.
    """
    found: list[BaseChain] = []
    leave: set[str] = set()
    for version, program in _PROGRAMS.items():
        if iptables.exists(version, "filter", nft_socket):
            with contextlib.suppress(KernelRefused):
                lines = iptables.save(version, "filter", nft_socket, "nft")
                found += of_iptables(lines, program, version)
                leave.add(f"{_FAMILIES[version]} filter")
        if firewalls.legacy_in_use(version):
            with contextlib.suppress(KernelRefused):
                found += of_iptables(iptables.save(version, "filter", None, "legacy"), f"{program}-legacy", version)
    if nft_socket is not None:
        found += of_nftables(_listing(), leave)
    return tuple(found)


def _listing() -> list[dict[str, object]]:
    """The chains and rules of all tables but weft's, as libnftables-json(5)."""
    library = runner()
    try:
        chains = _run("list chains\n", library.run("list chains\n", as_json=True))
        tables = [one["chain"] for one in chains if isinstance(one.get("chain"), dict)]
        hooked = {
            f"{one['family']} {one['table']}"
            for one in tables
            if isinstance(one, dict) and one.get("hook") in ("forward", "input")
        }
        wanted = sorted(name for name in hooked if not name.split(" ")[1].startswith("weft"))
        return [
            one
            for table in wanted
            for one in _run(table, library.run(f"list table {table}\n", terse=True, as_json=True))
        ]
    finally:
        library.close()


def _run(what: str, answer: tuple[str, str]) -> list[dict[str, object]]:
    output, errors = answer
    if errors or not output:
        return []  # another program has deleted the table meanwhile
    document: list[dict[str, object]] = json.loads(output)["nftables"]
    return document


def listing(what: str, *, as_json: bool, terse: bool) -> str:
    """What ``nft list WHAT`` prints in this thread's network namespace; see ``Namespace.nftables_listing``."""
    try:
        library = runner()
    except KernelLacks:
        return ""
    try:
        output, errors = library.run(f"list {what}\n", terse=terse, as_json=as_json, handles=not as_json)
    finally:
        library.close()
    return "" if errors else output


def change(commands: str) -> None:
    """Run nft commands in this thread's network namespace; see ``Namespace.change_nftables``."""
    library = runner()
    try:
        _, errors = library.run(commands)
    finally:
        library.close()
    if errors:
        refuse(errors)
