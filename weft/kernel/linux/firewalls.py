"""What other firewalls keep for administrators' rules in iptables' table filter: Docker's chain, ufw's.

Every ADD asks for them, so they are read from the kernel, without running a program: iptables-nft's
by netlink, iptables-legacy's by getsockopt(2) (``legacy``). Source: ``linux/netfilter/nf_tables.h``.
"""

from __future__ import annotations

import fcntl
import os
import struct
from collections.abc import Iterator

from weft.kernel.firewall_chains import HOOKS, OWN_CHAIN, RETURN, USER_CHAINS, Firewalls, UserChain, hook_of, mark_in
from weft.kernel.netlink.attributes import Attributes, parse, parse_list, string
from weft.kernel.netlink.constants import (
    NF_DROP,
    NFT_MSG_GETCHAIN,
    NFT_MSG_GETRULE,
    NFT_MSG_GETTABLE,
    NFT_RETURN,
    NFTA_CHAIN_NAME,
    NFTA_CHAIN_POLICY,
    NFTA_CHAIN_TABLE,
    NFTA_DATA_VERDICT,
    NFTA_EXPR_DATA,
    NFTA_EXPR_NAME,
    NFTA_IMMEDIATE_DATA,
    NFTA_RULE_CHAIN,
    NFTA_RULE_EXPRESSIONS,
    NFTA_RULE_TABLE,
    NFTA_RULE_USERDATA,
    NFTA_TABLE_NAME,
    NFTA_VERDICT_CODE,
)
from weft.kernel.nft.socket import NftSocket

_FAMILIES = {4: "ip", 6: "ip6"}
_TABLES_IN_USE = {4: "/proc/thread-self/net/ip_tables_names", 6: "/proc/thread-self/net/ip6_tables_names"}
_UFW_LOCK = "/run/ufw.lock"
_FLOCK = "hhqqi4x"  # struct flock


def firewalls(nft_socket: NftSocket) -> Firewalls:
    """firewalld, and the chains of ``USER_CHAINS`` that iptables-nft has, with the marks in them."""
    tables = [(family, (string(NFTA_TABLE_NAME, "filter"),)) for family in _FAMILIES.values()]
    tables.append(("inet", (string(NFTA_TABLE_NAME, "firewalld"),)))
    *found, firewalld = nft_socket.get(NFT_MSG_GETTABLE, tables)
    used = [version for version, table in zip(_FAMILIES, found, strict=True) if table is not None]
    chains = list(_user_chains(nft_socket, used)) if used else []
    return Firewalls(
        tuple(one for one in chains if one.name != OWN_CHAIN),
        firewalld is not None,
        tuple(one for one in chains if one.name == OWN_CHAIN),
    )


def _user_chains(nft_socket: NftSocket, used: list[int]) -> Iterator[UserChain]:
    sought = [(version, name) for version in used for name in (*HOOKS, *USER_CHAINS[version], OWN_CHAIN)]
    table = string(NFTA_CHAIN_TABLE, "filter")
    requests = [(_FAMILIES[version], (table, string(NFTA_CHAIN_NAME, name))) for version, name in sought]
    chains = dict(zip(sought, nft_socket.get(NFT_MSG_GETCHAIN, requests), strict=True))
    for (version, name), there in chains.items():
        if there is not None and name not in HOOKS:
            place = string(NFTA_RULE_TABLE, "filter"), string(NFTA_RULE_CHAIN, name)
            rules = nft_socket.get_all(NFT_MSG_GETRULE, _FAMILIES[version], *place, consistent=False)
            base = chains[version, hook_of(name)] or {}
            drops = base.get(NFTA_CHAIN_POLICY) == NF_DROP.to_bytes(4, "big")
            yield UserChain(version, name, tuple(map(_rule, rules)), drops)


def _rule(rule: Attributes) -> str:
    """See ``UserChain.rules``."""
    expressions = rule.get(NFTA_RULE_EXPRESSIONS, b"")
    if found := mark_in(expressions + b"\0" + rule.get(NFTA_RULE_USERDATA, b"")):
        return found
    parts = [parse(one) for one in parse_list(expressions)]
    verdicts = [one for one in parts if one.get(NFTA_EXPR_NAME) != b"counter\0"]
    if len(verdicts) != 1 or verdicts[0].get(NFTA_EXPR_NAME) != b"immediate\0":
        return ""
    data = parse(parse(verdicts[0].get(NFTA_EXPR_DATA, b"")).get(NFTA_IMMEDIATE_DATA, b""))
    code = parse(data.get(NFTA_DATA_VERDICT, b"")).get(NFTA_VERDICT_CODE, b"")
    return RETURN if code == NFT_RETURN.to_bytes(4, "big", signed=True) else ""


def legacy_in_use(version: int) -> bool:
    """Whether iptables-legacy has its table filter in this namespace."""
    try:
        descriptor = os.open(_TABLES_IN_USE[version], os.O_RDONLY | os.O_CLOEXEC)
    except OSError:  # the module is not loaded
        return False
    try:
        return b"filter" in os.read(descriptor, 4096).split()
    finally:
        os.close(descriptor)


def legacy_chains() -> tuple[UserChain, ...]:
    """The chains of ``USER_CHAINS`` that iptables-legacy has in the thread's namespace, and weft's own."""
    used = [version for version in _TABLES_IN_USE if legacy_in_use(version)]
    if not used:
        return ()
    from weft.kernel.linux import legacy

    return tuple(chain for version in used for chain in legacy.user_chains(version))


def is_ufw_busy() -> bool:
    """Whether a command of ufw runs: it holds its lock from its first change to its last.

    Source: create_lock in ``ufw/util.py``, F_GETLK in fcntl_locking(2).
    """
    try:
        descriptor = os.open(_UFW_LOCK, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        asked = struct.pack(_FLOCK, fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
        found: int = struct.unpack(_FLOCK, fcntl.fcntl(descriptor, fcntl.F_GETLK, asked))[0]
        return found != fcntl.F_UNLCK
    finally:
        os.close(descriptor)
