"""What other programs change on this host: notifications of nf_tables, links and addresses, and a look at
iptables-legacy, whose changes the kernel notifies nobody of.

Of weft's objects a notification has the mark, in a link's alias or an element's comment, so that one
lookup finds whose they are. What this and other processes of weft change is among the notifications:
the reader compares with the records. Sources: ``linux/netfilter/nfnetlink.h`` (NFNLGRP_NFTABLES),
``linux/rtnetlink.h``, ``nf_tables_commit`` in ``net/netfilter/nf_tables_api.c``.
"""

from __future__ import annotations

import re
import select
import time
from collections.abc import Iterable
from dataclasses import dataclass
from sys import byteorder

from weft.errors import KernelRefused
from weft.kernel.firewall_chains import OWN_CHAIN, USER_CHAINS, UserChain
from weft.kernel.linux.firewalls import legacy_chains
from weft.kernel.netlink.attributes import parse, string
from weft.kernel.netlink.constants import (
    IFF_UP,
    IFLA_IFNAME,
    IFLA_LINKINFO,
    IFLA_MASTER,
    IFLA_MTU,
    NETLINK_NETFILTER,
    NETLINK_ROUTE,
    NFNL_SUBSYS_NFTABLES,
    NFNLGRP_NFTABLES,
    NFT_MSG_DELCHAIN,
    NFT_MSG_DELRULE,
    NFT_MSG_DELSETELEM,
    NFT_MSG_DELTABLE,
    NFT_MSG_NEWCHAIN,
    NFT_MSG_NEWGEN,
    NFT_MSG_NEWRULE,
    NFT_MSG_NEWSETELEM,
    NFTA_RULE_CHAIN,
    NFTA_TABLE_NAME,
    RTM_DELADDR,
    RTM_DELLINK,
    RTM_NEWLINK,
    RTNLGRP_IPV4_IFADDR,
    RTNLGRP_IPV6_IFADDR,
    RTNLGRP_LINK,
)
from weft.kernel.netlink.transport import Message, NetlinkSocket

_MARK = re.compile(rb"weft:([0-9a-f]{16})")
_BUFFER = 1 << 22  # bytes
_LINK_FLAGS, _LINK_ATTRIBUTES = 24, 32  # offsets of ifi_flags and of the attributes in a message of a link
_NFTABLES_ATTRIBUTES = 20  # offset of the attributes in a message of nf_tables
_ADDRESS_LINK = 20  # offset of ifa_index in a message of an address
_MOST_DATAGRAMS = 4000  # read at once from one socket; more than that is as good as lost
_LEGACY_INTERVAL = 0.3  # seconds between two looks at iptables-legacy where it has chains that concern weft
_OWN_CHAIN = OWN_CHAIN.encode()
_CHAINS = tuple({name.encode() + b"\0" for names in USER_CHAINS.values() for name in (*names, OWN_CHAIN)})
_DELETIONS = (NFT_MSG_DELTABLE, NFT_MSG_DELCHAIN, NFT_MSG_DELRULE)


@dataclass(frozen=True, slots=True)
class Changes:
    """What was changed since the last look.

    ``deleted``: one of the watched tables, or all notifications were lost. ``tables``: a chain, rule
    or set of a watched table. ``firewalls``: of another table something was deleted, a chain changed
    or another program's rule added in a chain where weft has some; ``others``: it was changed in any way, apart from
    elements of sets and weft's own chain in it. ``addresses``: the links, by index, of which an address
    was removed. ``marks``: the digests in the marks of changed links and deleted elements.
    """

    deleted: bool = False
    tables: bool = False
    firewalls: bool = False
    others: bool = False
    addresses: frozenset[int] = frozenset()
    marks: frozenset[str] = frozenset()

    def __bool__(self) -> bool:
        """Whether something of weft's own was changed."""
        return self.deleted or self.tables or bool(self.addresses or self.marks)

    def __or__(self, other: Changes) -> Changes:
        return Changes(
            self.deleted or other.deleted,
            self.tables or other.tables,
            self.firewalls or other.firewalls,
            self.others or other.others,
            self.addresses | other.addresses,
            self.marks | other.marks,
        )


EVERYTHING = Changes(deleted=True, tables=True, firewalls=True, others=True)
"""A look at everything is needed: at first, and after notifications were lost (ENOBUFS)."""


class HostEvents:
    """Sockets that receive the notifications of the calling thread's network namespace.

    Raises KernelRefused where they cannot be opened.
    """

    def __init__(self, tables: tuple[str, ...]) -> None:
        """``tables`` are those to watch, each by family and name."""
        self._legacy = legacy_chains()
        self._mtus: dict[str, tuple[bytes, bytes]] = {}
        self._names = tuple({string(NFTA_TABLE_NAME, table.partition(" ")[2]) for table in tables})
        groups = (RTNLGRP_LINK, RTNLGRP_IPV4_IFADDR, RTNLGRP_IPV6_IFADDR)
        self._links = NetlinkSocket(NETLINK_ROUTE, groups=sum(1 << one - 1 for one in groups), receive_buffer=_BUFFER)
        try:
            self._nftables = NetlinkSocket(NETLINK_NETFILTER, groups=1 << NFNLGRP_NFTABLES - 1, receive_buffer=_BUFFER)
        except KernelRefused:
            self._links.close()
            raise

    def close(self) -> None:
        """Close the sockets."""
        self._links.close()
        self._nftables.close()

    def wait(self, stop: int, seconds: float) -> bool:
        """Wait for a change, at most so long; False once ``stop`` is readable."""
        watched = [stop, self._links.fileno(), self._nftables.fileno()]
        deadline = time.monotonic() + seconds
        while True:
            left = max(0.0, deadline - time.monotonic())
            ready, _, _ = select.select(watched, [], [], min(left, _LEGACY_INTERVAL) if self._legacy else left)
            if ready or left <= _LEGACY_INTERVAL or self._legacy != legacy_chains():
                return stop not in ready

    def read(self) -> Changes:
        """All notifications that have arrived; never waits."""
        before, self._legacy = self._legacy, legacy_chains()
        changes = Changes(firewalls=before != self._legacy, others=_others(before) != _others(self._legacy))
        for socket, changes_of in ((self._nftables, self._of_nftables), (self._links, self._of_links)):
            for number in range(_MOST_DATAGRAMS + 1):
                try:
                    messages = socket.receive("watch this host", wait=False)
                except KernelRefused:  # MessagesLost
                    return self._lost()
                if not messages:
                    break
                if number == _MOST_DATAGRAMS:
                    return self._lost()
                changes |= changes_of(messages)
        return changes

    def _lost(self) -> Changes:
        """Discard what is queued, which is older than the look that follows."""
        for socket in (self._nftables, self._links):
            for _ in range(_MOST_DATAGRAMS * 10):
                try:
                    if not socket.receive("watch this host", wait=False):
                        break
                except KernelRefused:
                    continue
        return EVERYTHING

    def _of_nftables(self, messages: list[Message]) -> Changes:
        deleted = tables = firewalls = others = False
        marks: set[str] = set()
        for _, kind, _, message in messages:
            if kind >> 8 != NFNL_SUBSYS_NFTABLES or (kind := kind & 0xFF) in (NFT_MSG_NEWGEN, NFT_MSG_NEWSETELEM):
                continue
            if not any(name in message for name in self._names):
                firewalls |= kind in _DELETIONS or kind == NFT_MSG_NEWCHAIN or _is_before_own(kind, message)
                others |= kind != NFT_MSG_DELSETELEM and not _is_in_own_chain(kind, message)
            elif kind == NFT_MSG_DELSETELEM:
                marks.update(one.decode() for one in _MARK.findall(message))
            else:
                tables = True
                deleted |= kind == NFT_MSG_DELTABLE
        return Changes(deleted, tables, firewalls, others, marks=frozenset(marks))

    def _of_links(self, messages: list[Message]) -> Changes:
        marks: set[str] = set()
        addresses: set[int] = set()
        for _, kind, _, message in messages:
            if kind in (RTM_NEWLINK, RTM_DELLINK) and (found := _MARK.search(message)):
                digest = found[1].decode()
                if self._is_changed(digest, kind, message):
                    marks.add(digest)
            if kind == RTM_DELADDR:
                addresses.add(int.from_bytes(message[_ADDRESS_LINK : _ADDRESS_LINK + 4], byteorder))
        return Changes(addresses=frozenset(addresses), marks=frozenset(marks))

    def _is_changed(self, digest: str, kind: int, message: bytes) -> bool:
        """Whether a link is not as every link of weft's is once it is set up: most notifications are of
        such, since all that joins a bridge makes some.
        """
        if kind == RTM_DELLINK:
            self._mtus.pop(digest, None)
            return True
        attributes = parse(message, _LINK_ATTRIBUTES)
        mtu, name = attributes.get(IFLA_MTU, b""), attributes.get(IFLA_IFNAME, b"")
        resized = self._mtus.get(digest, (name, mtu)) != (name, mtu)
        self._mtus[digest] = name, mtu
        flags = int.from_bytes(message[_LINK_FLAGS : _LINK_FLAGS + 4], byteorder)
        alone = IFLA_MASTER not in attributes and b"bridge\0" not in attributes.get(IFLA_LINKINFO, b"")
        return resized or alone or not flags & IFF_UP


def _others(chains: Iterable[UserChain]) -> list[UserChain]:
    """Without weft's own chains."""
    return [one for one in chains if one.name != OWN_CHAIN]


def _is_before_own(kind: int, message: bytes) -> bool:
    """Whether a rule was added where weft has some, and is none of these."""
    return kind == NFT_MSG_NEWRULE and any(one in message for one in _CHAINS) and not _MARK.search(message)


def _is_in_own_chain(kind: int, message: bytes) -> bool:
    """Whether a rule of weft's own chain beside other firewalls' was added or deleted: nobody reloads that."""
    if kind not in (NFT_MSG_NEWRULE, NFT_MSG_DELRULE) or _OWN_CHAIN not in message:
        return False
    return parse(message, _NFTABLES_ATTRIBUTES).get(NFTA_RULE_CHAIN) == f"{OWN_CHAIN}\0".encode()
