"""Tracked connections: listed by their destination, and deleted.

conntrack keeps the translation that a connection got at its first packet. A client that keeps
sending datagrams keeps its entry alive, which leads past a port that was published since, or to a
container that is gone. Sources: ``linux/netfilter/nfnetlink_conntrack.h``,
``net/netfilter/nf_conntrack_netlink.c``, conntrack(8).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from ipaddress import ip_address
from struct import Struct

from weft.errors import KernelRefused, Missing
from weft.kernel.netlink.attributes import Attributes, attribute, nested, parse
from weft.kernel.netlink.constants import (
    AF_INET,
    AF_INET6,
    CTA_FILTER,
    CTA_FILTER_F_CTA_IP_DST,
    CTA_FILTER_F_CTA_IP_SRC,
    CTA_FILTER_F_CTA_PROTO_DST_PORT,
    CTA_FILTER_F_CTA_PROTO_NUM,
    CTA_FILTER_ORIG_FLAGS,
    CTA_FILTER_REPLY_FLAGS,
    CTA_IP_V4_DST,
    CTA_IP_V4_SRC,
    CTA_IP_V6_DST,
    CTA_IP_V6_SRC,
    CTA_PROTO_DST_PORT,
    CTA_PROTO_NUM,
    CTA_PROTO_SRC_PORT,
    CTA_PROTOINFO,
    CTA_PROTOINFO_TCP,
    CTA_PROTOINFO_TCP_STATE,
    CTA_TUPLE_IP,
    CTA_TUPLE_ORIG,
    CTA_TUPLE_PROTO,
    CTA_TUPLE_REPLY,
    IPCTNL_MSG_CT_DELETE,
    IPCTNL_MSG_CT_GET,
    IPPROTO_SCTP,
    IPPROTO_TCP,
    IPPROTO_UDP,
    NETLINK_NETFILTER,
    NFNETLINK_V0,
    NFNL_SUBSYS_CTNETLINK,
    TCP_CONNTRACK_CLOSE_WAIT,
    TCP_CONNTRACK_SYN_SENT,
)
from weft.kernel.netlink.transport import HEADER_SIZE, NetlinkSocket, Request, parses_answer
from weft.kernel.values import Flow
from weft.types import Address

PROTOCOLS = {"tcp": IPPROTO_TCP, "udp": IPPROTO_UDP, "sctp": IPPROTO_SCTP}
_NAMES = {number: name for name, number in PROTOCOLS.items()}
_FEW_PORTS = 8  # for more, one listing of a protocol is cheaper than one walk for each
_SUBSYSTEM = NFNL_SUBSYS_CTNETLINK << 8
_LIVE = range(TCP_CONNTRACK_SYN_SENT, TCP_CONNTRACK_CLOSE_WAIT + 1)
_CTA_IP = {4: (CTA_IP_V4_SRC, CTA_IP_V4_DST), 6: (CTA_IP_V6_SRC, CTA_IP_V6_DST)}
_FAMILIES = {4: AF_INET, 6: AF_INET6}
_SECONDS = 10
_NFGENMSG = Struct("=BBH")
_PORT = Struct("!H")
_TYPE = 0x3FFF  # NLA_TYPE_MASK
_SIZES = {4: 4, 6: 16}
_ORIGINAL = {
    version: Struct(f"={HEADER_SIZE}x4x 2xH 2xH 2xH{size}s 2xH{size}s 2xH 2xHB3x 8x 2xH2s")
    for version, size in _SIZES.items()
}
"""The first attributes of a connection, each after its length: the type, and the value of those that nest none."""

Place = tuple[Address, str, int]
"""An address, a protocol and a port."""
Counts = dict[Address, int]
PlaceCounts = dict[Place, int]


class Conntrack:
    """Connection tracking of the calling thread's namespace, opened at the first request.

    Keep it: to close any netfilter socket waits until the nftables elements that were deleted
    before are freed, 10 to 20 ms (nft_rcv_nl_event in ``nf_tables_api.c``). Raises KernelLacks and
    KernelRefused.
    """

    def __init__(self) -> None:
        self._socket: NetlinkSocket | None = None

    def close(self) -> None:
        """Close the socket; a second time does nothing."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def flows(
        self, protocol: str, port: int = 0, destination: Address | None = None, *, version: int = 0, live: bool = False
    ) -> tuple[Flow, ...]:
        """The connections to a port (0: to any), before any translation.

        The kernel walks its whole table for it, 5 ms for each IP version (``version`` 0: both)
        where that has 262,144 buckets. ``destination`` selects those to one address, ``live`` leaves
        out TCP connections that have ended. *Equivalent to:* ``conntrack -L -p PROTOCOL
        --orig-port-dst PORT --orig-dst DESTINATION``.
        """
        found = []
        versions = (version,) if version else _FAMILIES if destination is None else (destination.version,)
        for one in versions:
            for body in self._list(one, _filter(PROTOCOLS[protocol], port, destination)):
                flow = _flow(body, one)
                # Kernels before 5.8 ignore the filter and list everything.
                if flow is None or flow.protocol != protocol or port not in (0, flow.port):
                    continue
                if live and not _is_live(body):
                    continue
                if destination is None or flow.destination == destination:
                    found.append(flow)
        return tuple(found)

    def to_ports(self, ports: Collection[tuple[str, int]], version: int = 0) -> tuple[Flow, ...]:
        """The connections to any of the ports (protocol and port), before any translation."""
        wanted = frozenset(ports)
        few = wanted if len(wanted) <= _FEW_PORTS else {(protocol, 0) for protocol, _ in wanted}
        found = (flow for protocol, port in few for flow in self.flows(protocol, port, version=version))
        return tuple(flow for flow in found if (flow.protocol, flow.port) in wanted)

    def translated(self, target: Address, ports: Collection[tuple[str, int]]) -> tuple[Flow, ...]:
        """The connections to any of the ports (protocol and port, before translation) that ``target``
        answers.

        The kernel walks its table once; for IPv6, where its filter of addresses is inverted (6.18),
        once for each port or protocol. *Equivalent to:* ``conntrack -L --reply-src TARGET``.
        """
        if target.version == 6:
            return tuple(flow for flow in self.to_ports(ports, 6) if flow.reply_source == target)
        found = (_flow(body, 4) for body in self._list(4, _filter_of_replies(target)))
        wanted = frozenset(ports)
        # Kernels before 5.8 ignore the filter here, too.
        return tuple(
            flow
            for flow in found
            if flow is not None and flow.reply_source == target and (flow.protocol, flow.port) in wanted
        )

    def count_of(self, sources: Iterable[Address], services: Iterable[Place]) -> tuple[Counts, PlaceCounts]:
        """How many connections these addresses have opened, and how many go to these places, before any
        translation; those with none are missing.

        Walks the whole table once for each IP version, and keeps no entry: some microseconds each.
        *Equivalent to:* ``conntrack -L | grep …``.
        """
        by_source = {one.packed: one for one in sources}
        by_place = {(one.packed, PROTOCOLS[protocol], port): (one, protocol, port) for one, protocol, port in services}
        found: Counts = {}
        there: PlaceCounts = {}
        for version in _FAMILIES:
            if not any(len(packed) == _SIZES[version] for packed in (*by_source, *(one[0] for one in by_place))):
                continue

            def use(message: bytes, version: int = version) -> None:
                original = _original(message, version)
                if original is None:
                    return
                source, place = original
                if source in by_source:
                    found[by_source[source]] = found.get(by_source[source], 0) + 1
                if place in by_place:
                    there[by_place[place]] = there.get(by_place[place], 0) + 1

            try:
                self._opened().dump_each(_listing(version, b""), use)
            except Missing:
                continue
            except KernelRefused:
                self.close()
                raise
        return found, there

    def count(self) -> int:
        """How many connections are tracked.

        *Equivalent to:* ``sysctl net.netfilter.nf_conntrack_count``.
        """
        try:
            with open("/proc/sys/net/netfilter/nf_conntrack_count", encoding="ascii") as file:
                return int(file.read())
        except (OSError, ValueError):
            return 0

    def delete(self, flows: Iterable[Flow]) -> None:
        """Delete connections, so that their next packet is translated anew; missing ones are fine.

        *Equivalent to:* ``conntrack -D`` for each.
        """
        for flow in flows:
            version = flow.destination.version
            source, destination = _CTA_IP[version]
            original = nested(
                CTA_TUPLE_ORIG,
                nested(
                    CTA_TUPLE_IP,
                    attribute(source, flow.source.packed),
                    attribute(destination, flow.destination.packed),
                ),
                nested(
                    CTA_TUPLE_PROTO,
                    attribute(CTA_PROTO_NUM, bytes([PROTOCOLS[flow.protocol]])),
                    attribute(CTA_PROTO_SRC_PORT, _PORT.pack(flow.source_port)),
                    attribute(CTA_PROTO_DST_PORT, _PORT.pack(flow.port)),
                ),
            )
            body = _NFGENMSG.pack(_FAMILIES[version], NFNETLINK_V0, 0) + original
            request = Request(_SUBSYSTEM | IPCTNL_MSG_CT_DELETE, 0, "delete connections", body)
            outcome = self._opened().attempt(request)[0]
            if outcome.error is not None and not isinstance(outcome.error, Missing):
                raise outcome.error

    def _list(self, version: int, body: bytes) -> list[Attributes]:
        try:
            messages = self._opened().dump(_listing(version, body), consistent=False)
        except Missing:
            return []
        except KernelRefused:
            self.close()  # the rest of the dump may still come
            raise
        return [parse(message, HEADER_SIZE + _NFGENMSG.size) for message in messages]

    def _opened(self) -> NetlinkSocket:
        if self._socket is None:
            self._socket = NetlinkSocket(NETLINK_NETFILTER, seconds=_SECONDS)
        return self._socket


def _listing(version: int, body: bytes) -> Request:
    """The request that lists the connections of an IP version; ``body`` is a filter."""
    body = _NFGENMSG.pack(_FAMILIES[version], NFNETLINK_V0, 0) + body
    return Request(_SUBSYSTEM | IPCTNL_MSG_CT_GET, 0, "list connections", body, needs="nf_conntrack_netlink")


@parses_answer
def _original(message: bytes, version: int) -> tuple[bytes, tuple[bytes, int, int]] | None:
    """The source of a connection, and its destination, protocol and port (0 without ports), before any
    translation.

    The kernel writes these first, so that they are at fixed places, which is much faster than to parse all
    attributes. Source: ``ctnetlink_fill_info`` in ``net/netfilter/nf_conntrack_netlink.c``.
    """
    if len(message) < _ORIGINAL[version].size:
        return None
    of, of_ip, of_source, source, of_destination, destination, of_protocol, of_number, number, of_port, port = (
        _ORIGINAL[version].unpack_from(message)
    )
    if (of & _TYPE, of_ip & _TYPE, of_source, of_destination) != (CTA_TUPLE_ORIG, CTA_TUPLE_IP, *_CTA_IP[version]):
        raise ValueError("the original addresses are not the first attribute")
    if (of_protocol & _TYPE, of_number) != (CTA_TUPLE_PROTO, CTA_PROTO_NUM):
        raise ValueError("the protocol is not after the addresses")
    return source, (destination, number, _PORT.unpack(port)[0] if of_port == CTA_PROTO_DST_PORT else 0)


def _filter(protocol: int, port: int, destination: Address | None) -> bytes:
    """The original tuple to look for, and which parts of it count."""
    original = nested(
        CTA_TUPLE_PROTO,
        attribute(CTA_PROTO_NUM, bytes([protocol])),
        attribute(CTA_PROTO_DST_PORT, _PORT.pack(port)),
    )
    flags = CTA_FILTER_F_CTA_PROTO_NUM | (CTA_FILTER_F_CTA_PROTO_DST_PORT if port else 0)
    if destination is not None and destination.version == 4:  # for IPv6 the kernel lists all others (6.18)
        original += nested(CTA_TUPLE_IP, attribute(CTA_IP_V4_DST, destination.packed))
        flags |= CTA_FILTER_F_CTA_IP_DST
    selected = attribute(CTA_FILTER_ORIG_FLAGS, flags.to_bytes(4, "little"))
    return nested(CTA_TUPLE_ORIG, original) + nested(CTA_FILTER, selected)


def _filter_of_replies(source: Address) -> bytes:
    """The source of replies to look for, IPv4."""
    reply = nested(CTA_TUPLE_IP, attribute(CTA_IP_V4_SRC, source.packed))
    selected = attribute(CTA_FILTER_REPLY_FLAGS, CTA_FILTER_F_CTA_IP_SRC.to_bytes(4, "little"))
    return nested(CTA_TUPLE_REPLY, reply) + nested(CTA_FILTER, selected)


@parses_answer
def _is_live(body: Attributes) -> bool:
    """Whether a TCP connection has not ended; the entries of other protocols do not tell."""
    tcp = parse(body.get(CTA_PROTOINFO, b"")).get(CTA_PROTOINFO_TCP)
    return tcp is None or parse(tcp).get(CTA_PROTOINFO_TCP_STATE, b"\0")[0] in _LIVE


@parses_answer
def _flow(body: Attributes, version: int) -> Flow | None:
    """A connection, None of a protocol without ports."""
    original, reply = _tuple(body.get(CTA_TUPLE_ORIG, b""), version), _tuple(body.get(CTA_TUPLE_REPLY, b""), version)
    if original is None or reply is None or original[0] not in _NAMES:
        return None
    source, source_port, destination, port = original[1:]
    return Flow(
        _NAMES[original[0]],
        ip_address(source),
        source_port,
        ip_address(destination),
        port,
        ip_address(reply[1]),
        reply[2],
    )


def _tuple(data: bytes, version: int) -> tuple[int, bytes, int, bytes, int] | None:
    """Protocol, source, its port, destination, its port."""
    found = parse(data)
    addresses, protocol = parse(found.get(CTA_TUPLE_IP, b"")), parse(found.get(CTA_TUPLE_PROTO, b""))
    source, destination = _CTA_IP[version]
    if source not in addresses or CTA_PROTO_DST_PORT not in protocol or CTA_PROTO_NUM not in protocol:
        return None
    ports = (_PORT.unpack_from(protocol[number])[0] for number in (CTA_PROTO_SRC_PORT, CTA_PROTO_DST_PORT))
    source_port, port = ports
    return protocol[CTA_PROTO_NUM][0], addresses[source], source_port, addresses[destination], port
