"""WireGuard links of the kernel's module: keys, the UDP port and peers.

Source: ``wg(8)``, ``linux/wireguard.h``, ``linux/genetlink.h``.
"""

from __future__ import annotations

import base64
import contextlib
from collections.abc import Iterator, Sequence
from ipaddress import IPv6Network, ip_address
from struct import Struct

from weft.errors import KernelLacks, Missing
from weft.kernel.netlink.attributes import attribute, get_int, integer, nested, parse, parse_list, string
from weft.kernel.netlink.constants import (
    AF_INET,
    AF_INET6,
    CTRL_ATTR_FAMILY_ID,
    CTRL_ATTR_FAMILY_NAME,
    CTRL_CMD_GETFAMILY,
    GENL_ID_CTRL,
    NETLINK_GENERIC,
    WG_CMD_GET_DEVICE,
    WG_CMD_SET_DEVICE,
    WGALLOWEDIP_A_CIDR_MASK,
    WGALLOWEDIP_A_FAMILY,
    WGALLOWEDIP_A_IPADDR,
    WGDEVICE_A_IFNAME,
    WGDEVICE_A_LISTEN_PORT,
    WGDEVICE_A_PEERS,
    WGDEVICE_A_PRIVATE_KEY,
    WGPEER_A_ALLOWEDIPS,
    WGPEER_A_ENDPOINT,
    WGPEER_A_FLAGS,
    WGPEER_A_PUBLIC_KEY,
    WGPEER_F_REMOVE_ME,
    WGPEER_F_REPLACE_ALLOWEDIPS,
)
from weft.kernel.netlink.transport import HEADER_SIZE, NetlinkSocket, Request, parses_answer
from weft.kernel.values import WireGuard, WireGuardPeer
from weft.types import Address

_SECONDS = 10
_NEEDS = "the module wireguard"
_GENLMSGHDR = Struct("=BBH")  # command, version, reserved
_SOCKADDR4, _SOCKADDR6 = Struct("=H2s4s8x"), Struct("=H2sI16sI")
_AT_ONCE = 100
"""Peers in one message: an attribute has at most 64 KiB."""


@parses_answer
def get(name: str) -> WireGuard:
    """What is set on a link, in the calling thread's namespace. Raises Missing, KernelLacks."""
    with contextlib.closing(NetlinkSocket(NETLINK_GENERIC, seconds=_SECONDS)) as socket:
        return _get(socket, _family(socket), name)


def set_all(name: str, wanted: WireGuard) -> None:
    """Set key, port and peers, and remove other peers; sessions of peers that stay are kept.

    Raises Missing, KernelLacks and KernelRefused.
    """
    action = f"set the keys of the WireGuard link {name}"
    with contextlib.closing(NetlinkSocket(NETLINK_GENERIC, seconds=_SECONDS)) as socket:
        family = _family(socket)
        there = _get(socket, family, name)
        known = {one.key for one in wanted.peers}
        peers = [_removed(one.key) for one in there.peers if one.key not in known]
        kept = set(there.peers)
        peers += [_peer(one) for one in wanted.peers if one not in kept]
        device = b""
        if (there.private, there.port) != (wanted.private, wanted.port):
            device = attribute(WGDEVICE_A_PRIVATE_KEY, base64.b64decode(wanted.private))
            device += integer(WGDEVICE_A_LISTEN_PORT, wanted.port, 2)
        for part in _parts(peers):
            body = _GENLMSGHDR.pack(WG_CMD_SET_DEVICE, 1, 0) + string(WGDEVICE_A_IFNAME, name) + device
            socket.request(Request(family, 0, action, body + nested(WGDEVICE_A_PEERS, *part), _NEEDS))
            device = b""


def _parts(peers: Sequence[bytes]) -> Iterator[Sequence[bytes]]:
    yield peers[:_AT_ONCE]
    for first in range(_AT_ONCE, len(peers), _AT_ONCE):
        yield peers[first : first + _AT_ONCE]


def _family(socket: NetlinkSocket) -> int:
    """The number of the module's messages."""
    body = _GENLMSGHDR.pack(CTRL_CMD_GETFAMILY, 1, 0) + string(CTRL_ATTR_FAMILY_NAME, "wireguard")
    try:
        [[answer]] = socket.request(Request(GENL_ID_CTRL, 0, "find the module wireguard", body, single=True))
    except Missing as error:
        raise KernelLacks(error.message, hint=f"this kernel lacks {_NEEDS}") from error
    return get_int({0: parse(answer, HEADER_SIZE + _GENLMSGHDR.size)[CTRL_ATTR_FAMILY_ID] + bytes(2)}, 0)


def _get(socket: NetlinkSocket, family: int, name: str) -> WireGuard:
    body = _GENLMSGHDR.pack(WG_CMD_GET_DEVICE, 1, 0) + string(WGDEVICE_A_IFNAME, name)
    private, port, peers = "", 0, list[WireGuardPeer]()
    for message in socket.dump(Request(family, 0, f"list the keys of the WireGuard link {name}", body, _NEEDS)):
        found = parse(message, HEADER_SIZE + _GENLMSGHDR.size)
        if WGDEVICE_A_PRIVATE_KEY in found:
            private = base64.b64encode(found[WGDEVICE_A_PRIVATE_KEY]).decode()
        port = int.from_bytes(found.get(WGDEVICE_A_LISTEN_PORT, b""), "little") or port
        peers += [_read(one) for one in parse_list(found.get(WGDEVICE_A_PEERS, b""))]
    return WireGuard(private, port, tuple(sorted(peers, key=lambda one: one.key)))


def _read(data: bytes) -> WireGuardPeer:
    found = parse(data)
    endpoint = found.get(WGPEER_A_ENDPOINT, bytes(2))
    address: Address | None = None
    port = 0
    if int.from_bytes(endpoint[:2], "little") in (AF_INET, AF_INET6):
        packed = endpoint[4:8] if len(endpoint) == _SOCKADDR4.size else endpoint[8:24]
        address, port = ip_address(packed), int.from_bytes(endpoint[2:4], "big")
    allowed = []
    for one in parse_list(found.get(WGPEER_A_ALLOWEDIPS, b"")):
        each = parse(one)
        if len(each[WGALLOWEDIP_A_IPADDR]) == 16:
            allowed.append(IPv6Network((each[WGALLOWEDIP_A_IPADDR], each[WGALLOWEDIP_A_CIDR_MASK][0])))
    return WireGuardPeer(base64.b64encode(found[WGPEER_A_PUBLIC_KEY]).decode(), address, port, tuple(allowed))


def _removed(key: str) -> bytes:
    packed = attribute(WGPEER_A_PUBLIC_KEY, base64.b64decode(key))
    return nested(0, packed, integer(WGPEER_A_FLAGS, WGPEER_F_REMOVE_ME))


def _peer(peer: WireGuardPeer) -> bytes:
    allowed = (
        nested(
            0,
            integer(WGALLOWEDIP_A_FAMILY, AF_INET6, 2),
            attribute(WGALLOWEDIP_A_IPADDR, one.network_address.packed),
            integer(WGALLOWEDIP_A_CIDR_MASK, one.prefixlen, 1),
        )
        for one in peer.allowed
    )
    attributes = [
        attribute(WGPEER_A_PUBLIC_KEY, base64.b64decode(peer.key)),
        integer(WGPEER_A_FLAGS, WGPEER_F_REPLACE_ALLOWEDIPS),
        nested(WGPEER_A_ALLOWEDIPS, *allowed),
    ]
    if peer.endpoint is not None:
        port, packed = peer.port.to_bytes(2, "big"), peer.endpoint.packed
        if peer.endpoint.version == 4:
            attributes.append(attribute(WGPEER_A_ENDPOINT, _SOCKADDR4.pack(AF_INET, port, packed)))
        else:
            attributes.append(attribute(WGPEER_A_ENDPOINT, _SOCKADDR6.pack(AF_INET6, port, 0, packed, 0)))
    return nested(0, *attributes)
