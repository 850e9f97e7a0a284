"""What other firewalls keep for administrators' rules in iptables' table filter: Docker's chain, ufw's.

Every ADD asks for them, so they are read from the kernel, without running a program: iptables-nft's
by netlink, iptables-legacy's by getsockopt(2) (``legacy``). Source: ``linux/netfilter/nf_tables.h``.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator

from weft.kernel.interface import USER_CHAINS, Firewalls, UserChain, hook_of
from weft.kernel.netlink.attributes import string
from weft.kernel.netlink.constants import (
    NF_DROP,
    NFT_MSG_GETCHAIN,
    NFT_MSG_GETRULE,
    NFT_MSG_GETTABLE,
    NFTA_CHAIN_NAME,
    NFTA_CHAIN_POLICY,
    NFTA_CHAIN_TABLE,
    NFTA_RULE_CHAIN,
    NFTA_RULE_EXPRESSIONS,
    NFTA_RULE_TABLE,
    NFTA_RULE_USERDATA,
    NFTA_TABLE_NAME,
)
from weft.kernel.nft.socket import NftSocket

_MARKS = re.compile(rb"weft:[0-9a-f]{16}")
_FAMILIES = {4: "ip", 6: "ip6"}
_TABLES_IN_USE = {4: "/proc/thread-self/net/ip_tables_names", 6: "/proc/thread-self/net/ip6_tables_names"}
HOOKS = {"INPUT": 1, "FORWARD": 2}  # NF_INET_LOCAL_IN, NF_INET_FORWARD


def firewalls(nft_socket: NftSocket) -> Firewalls:
    """firewalld, and the chains of ``USER_CHAINS`` that iptables-nft has, with the marks in them."""
    tables = [(family, (string(NFTA_TABLE_NAME, "filter"),)) for family in _FAMILIES.values()]
    tables.append(("inet", (string(NFTA_TABLE_NAME, "firewalld"),)))
    *found, firewalld = nft_socket.get(NFT_MSG_GETTABLE, tables)
    used = [version for version, table in zip(_FAMILIES, found, strict=True) if table is not None]
    return Firewalls(tuple(_user_chains(nft_socket, used)) if used else (), firewalld is not None)


def _user_chains(nft_socket: NftSocket, used: list[int]) -> Iterator[UserChain]:
    sought = [(version, name) for version in used for name in (*HOOKS, *USER_CHAINS[version])]
    table = string(NFTA_CHAIN_TABLE, "filter")
    requests = [(_FAMILIES[version], (table, string(NFTA_CHAIN_NAME, name))) for version, name in sought]
    chains = dict(zip(sought, nft_socket.get(NFT_MSG_GETCHAIN, requests), strict=True))
    for (version, name), there in chains.items():
        if there is not None and name not in HOOKS:
            place = string(NFTA_RULE_TABLE, "filter"), string(NFTA_RULE_CHAIN, name)
            rules = nft_socket.get_all(NFT_MSG_GETRULE, _FAMILIES[version], *place, consistent=False)
            parts = (rule.get(part, b"") for rule in rules for part in (NFTA_RULE_EXPRESSIONS, NFTA_RULE_USERDATA))
            base = chains[version, hook_of(name)] or {}
            drops = base.get(NFTA_CHAIN_POLICY) == NF_DROP.to_bytes(4, "big")
            yield UserChain(version, name, marks_in(b"\0".join(parts)), drops)


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


def marks_in(data: bytes) -> tuple[str, ...]:
    return tuple(sorted(mark.decode() for mark in _MARKS.findall(data)))
