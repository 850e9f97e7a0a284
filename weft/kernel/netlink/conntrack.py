"""Connections that the kernel tracks: listed by their port, and forgotten.

The kernel decides once for a connection where it leads. A client that keeps sending datagrams keeps its
connection alive, and would be led past a port that has been published since, or to a container that is gone.
Sources: ``linux/netfilter/nfnetlink_conntrack.h``, ``net/netfilter/nf_conntrack_netlink.c``, conntrack(8).
"""

from __future__ import annotations

import _socket  # without the ``socket`` module's enumerations, which take milliseconds
import os
from collections.abc import Iterable
from ipaddress import ip_address
from struct import Struct

from weft.errors import KernelLacks, KernelRefused
from weft.kernel.interface import Flow
from weft.kernel.nft.socket import Attributes, attribute, attributes, nested
from weft.types import Address

PROTOCOLS = {"tcp": 6, "udp": 17, "sctp": 132}
_NETLINK_NETFILTER = 12
_SUBSYSTEM = 1 << 8
_GET, _DELETE = 1, 2
_REQUEST, _ACK, _DUMP = 1, 4, 0x300
_ERROR, _DONE = 2, 3
_ENOENT = 2
_ORIGINAL, _REPLY, _PROTOCOL_INFORMATION, _ID, _FILTER = 1, 2, 4, 12, 25
_TCP, _STATE = 1, 1
_LIVE = range(1, 6)  # SYN_SENT to CLOSE_WAIT: nf_conntrack_tcp.h
_TUPLE_IP, _TUPLE_PROTOCOL = 1, 2
_ADDRESSES = {4: (1, 2), 6: (3, 4)}
_NUMBER, _SOURCE_PORT, _PORT = 1, 2, 3
_FILTER_ORIGINAL = 1
_BY_NUMBER, _BY_PORT = 1 << 3, 1 << 5
_BY_DESTINATION = 1 << 1
_FAMILIES = {4: 2, 6: 10}
_SECONDS = 10
_BUFFER = 1 << 17
_MESSAGE = Struct("=IHHII")
_GENERIC = Struct("=BBH")
_ERRNO = Struct("=i")
_SHORT = Struct("!H")


class Conntrack:
    """Asks the kernel by one socket, which is opened at the first question, in the calling thread's namespace.

    Keep it: to close any netfilter socket waits until the nftables elements that were deleted before are freed, 10 to
    20 ms (nft_rcv_nl_event in ``nf_tables_api.c``). Raises KernelLacks and KernelRefused.
    """

    def __init__(self) -> None:
        self._socket: _socket.socket | None = None

    def close(self) -> None:
        """Close the socket; a second time does nothing."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def flows(
        self, protocol: str, port: int = 0, destination: Address | None = None, *, live: bool = False
    ) -> tuple[Flow, ...]:
        """The connections to a port (0: to any), before any translation.

        The kernel goes through its whole table for it, 5 ms for each IP version where that has 262,144 buckets.
        ``destination`` asks for those to one address alone, ``live`` leaves out those of TCP that have ended.
        """
        number = PROTOCOLS[protocol]
        found = []
        for version in _FAMILIES if destination is None else (destination.version,):
            original = nested(_TUPLE_PROTOCOL, attribute(_NUMBER, bytes([number])), attribute(_PORT, _SHORT.pack(port)))
            wanted = _BY_NUMBER | (_BY_PORT if port else 0)
            if destination is not None and version == 4:  # for IPv6 the kernel gives all others (6.18)
                original += nested(_TUPLE_IP, attribute(_ADDRESSES[version][1], destination.packed))
                wanted |= _BY_DESTINATION
            # Kernels before 5.8 do not know the filter and answer with everything, so all is looked at once more.
            narrow = nested(_FILTER, attribute(_FILTER_ORIGINAL, wanted.to_bytes(4, "little")))
            for body in self._ask(_GET, _DUMP, version, nested(_ORIGINAL, original) + narrow):
                flow = _flow(body, protocol, version)
                if flow is None or port not in (0, flow.port) or (live and not _lives(body)):
                    continue
                if destination is None or flow.destination == destination:
                    found.append(flow)
        return tuple(found)

    def count(self) -> int:
        """How many connections are tracked. *Equivalent to:* ``sysctl net.netfilter.nf_conntrack_count``."""
        try:
            with open("/proc/sys/net/netfilter/nf_conntrack_count", encoding="ascii") as file:
                return int(file.read())
        except (OSError, ValueError):
            return 0

    def delete(self, gone: Iterable[Flow]) -> None:
        """Have the kernel decide anew about the connections. What has ended meanwhile is fine."""
        for flow in gone:
            version = flow.destination.version
            places = _ADDRESSES[version]
            addresses = (attribute(places[0], flow.source.packed), attribute(places[1], flow.destination.packed))
            protocol = (
                attribute(_NUMBER, bytes([PROTOCOLS[flow.protocol]])),
                attribute(_SOURCE_PORT, _SHORT.pack(flow.source_port)),
                attribute(_PORT, _SHORT.pack(flow.port)),
            )
            tuple_ = nested(_ORIGINAL, nested(_TUPLE_IP, *addresses), nested(_TUPLE_PROTOCOL, *protocol))
            self._ask(_DELETE, _ACK, version, tuple_)

    def _ask(self, kind: int, flags: int, version: int, body: bytes) -> list[Attributes]:
        """The answers to one request; what is missing is none."""
        content = _GENERIC.pack(_FAMILIES[version], 0, 0) + body
        head = _MESSAGE.pack(_MESSAGE.size + len(content), _SUBSYSTEM | kind, flags | _REQUEST, 1, 0)
        if self._socket is None:
            self._socket = _opened()
        found: list[Attributes] = []
        try:
            self._socket.send(head + content)
            while True:
                data = memoryview(self._socket.recv(_BUFFER))
                while data:
                    length, answer, _, _, _ = _MESSAGE.unpack_from(data)
                    if answer in (_ERROR, _DONE):
                        code = _ERRNO.unpack_from(data, _MESSAGE.size)[0]
                        if code and code != -_ENOENT:
                            raise KernelRefused(f"cannot ask for connections: the kernel says {os.strerror(-code)}")
                        return found
                    found.append(attributes(data[_MESSAGE.size + _GENERIC.size : length]))
                    data = data[(length + 3) & ~3 :]
        except OSError as error:
            self.close()  # answers may still come: never to the next question
            raise KernelRefused(f"cannot ask for connections: {error.strerror or error}") from error


def _opened() -> _socket.socket:
    try:
        opened = _socket.socket(_socket.AF_NETLINK, _socket.SOCK_RAW | _socket.SOCK_CLOEXEC, _NETLINK_NETFILTER)
    except OSError as error:
        raise KernelLacks(f"the kernel tracks no connections: {error.strerror}") from error
    opened.settimeout(_SECONDS)
    return opened


def _lives(body: Attributes) -> bool:
    """Whether a connection of TCP goes on; of other protocols nothing says that it ended."""
    tcp = attributes(body.get(_PROTOCOL_INFORMATION, b"")).get(_TCP)
    return tcp is None or attributes(tcp).get(_STATE, b"\0")[0] in _LIVE


def _flow(body: Attributes, protocol: str, version: int) -> Flow | None:
    """A connection of the protocol, None for another's."""
    original, reply = _ends(body.get(_ORIGINAL, b""), version), _ends(body.get(_REPLY, b""), version)
    if original is None or reply is None or original[0] != PROTOCOLS[protocol]:
        return None
    source, source_port, destination, port = original[1:]
    return Flow(
        protocol, ip_address(source), source_port, ip_address(destination), port, ip_address(reply[1]), reply[2]
    )


def _ends(data: bytes, version: int) -> tuple[int, bytes, int, bytes, int] | None:
    """Protocol, source, its port, destination, its port."""
    said = attributes(data)
    addresses, protocol = attributes(said.get(_TUPLE_IP, b"")), attributes(said.get(_TUPLE_PROTOCOL, b""))
    places = _ADDRESSES[version]
    if places[0] not in addresses or _PORT not in protocol or _NUMBER not in protocol:
        return None
    ports = (_SHORT.unpack_from(protocol[place])[0] for place in (_SOURCE_PORT, _PORT))
    source_port, port = ports
    return protocol[_NUMBER][0], addresses[places[0]], source_port, addresses[places[1]], port
