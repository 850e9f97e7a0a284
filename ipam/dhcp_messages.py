"""Encoding and decoding of DHCP messages, their options and packets. Pure.

Sources: RFC 2131 (the message), RFC 2132 (options), RFC 3396 (long options), RFC 3397 (119), RFC
3442 (121). pyroute2's codec sends only options that it knows, has no routes, search lists or split
options, and takes 0.3 s to import.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from ipaddress import IPv4Address, IPv4Network
from struct import Struct

CLIENT_PORT, SERVER_PORT = 68, 67
BROADCAST_MAC = "ff:ff:ff:ff:ff:ff"
ANY = IPv4Address("0.0.0.0")
BROADCAST = IPv4Address("255.255.255.255")

_FIXED = Struct("!BBBBIHH4s4s4s4s16s64s128s4s")
_COOKIE = b"\x63\x82\x53\x63"
_BROADCAST_FLAG = 0x8000
_MIN_MESSAGE = 300  # bytes; some relays and servers drop messages shorter than BOOTP's
_IP = Struct("!BBHHHBBH4s4s")
_UDP = Struct("!HHHH")
_MAX_NAME = 253


class Kind(IntEnum):
    """DHCP message types (option 53)."""

    DISCOVER = 1
    OFFER = 2
    REQUEST = 3
    DECLINE = 4
    ACK = 5
    NAK = 6
    RELEASE = 7


class Option(IntEnum):
    """Option codes. Source: RFC 2132."""

    PAD = 0
    SUBNET_MASK = 1
    ROUTERS = 3
    NAME_SERVERS = 6
    HOST_NAME = 12
    DOMAIN = 15
    STATIC_ROUTES = 33
    REQUESTED_ADDRESS = 50
    LEASE_TIME = 51
    OVERLOAD = 52
    MESSAGE_TYPE = 53
    SERVER_ID = 54
    PARAMETER_LIST = 55
    MESSAGE = 56
    MAX_MESSAGE_SIZE = 57
    RENEWAL = 58
    REBINDING = 59
    VENDOR_CLASS = 60
    CLIENT_ID = 61
    USER_CLASS = 77
    DOMAIN_SEARCH = 119
    CLASSLESS_ROUTES = 121
    END = 255


@dataclass(frozen=True, slots=True)
class Message:
    """A message. ``client`` is ciaddr, ``yours`` is yiaddr, ``seconds`` is secs."""

    kind: Kind
    xid: int
    mac: str
    client: IPv4Address = ANY
    yours: IPv4Address = ANY
    seconds: int = 0
    broadcast: bool = True
    reply: bool = False
    options: Mapping[int, bytes] = field(default_factory=dict)

    def addresses(self, option: int) -> tuple[IPv4Address, ...]:
        """The addresses in an option, () if it is absent."""
        data = self.options.get(option, b"")
        return tuple(IPv4Address(data[place : place + 4]) for place in range(0, len(data) - 3, 4))

    def number(self, option: int) -> int | None:
        data = self.options.get(option, b"")
        return int.from_bytes(data, "big") if len(data) == 4 else None


def encode(message: Message) -> bytes:
    """Encode a message. Options longer than 255 bytes are split (RFC 3396)."""
    mac = bytes.fromhex(message.mac.replace(":", ""))
    flags = _BROADCAST_FLAG if message.broadcast else 0
    fixed = _FIXED.pack(
        2 if message.reply else 1, 1, 6, 0, message.xid, message.seconds, flags, message.client.packed,
        message.yours.packed, bytes(4), bytes(4), mac, b"", b"", _COOKIE,
    )  # fmt: skip
    options = b"".join(
        _option(number, data) for number, data in message.options.items() if number != Option.MESSAGE_TYPE
    )
    whole = fixed + _option(Option.MESSAGE_TYPE, bytes([message.kind])) + options + bytes([Option.END])
    return whole.ljust(_MIN_MESSAGE, b"\0")


def _option(number: int, data: bytes) -> bytes:
    parts = [data[place : place + 255] for place in range(0, len(data), 255)] or [b""]
    return b"".join(bytes([number, len(part)]) + part for part in parts)


def decode(data: bytes) -> Message | None:
    """Decode a message, None if it is malformed."""
    if len(data) < _FIXED.size:
        return None
    op, hardware, length, _, xid, seconds, flags, client, yours, _, _, mac, name, file, cookie = _FIXED.unpack_from(
        data
    )
    if cookie != _COOKIE or hardware != 1 or length != 6:
        return None
    options: dict[int, bytes] = {}
    if not _read_options(data[_FIXED.size :], options):
        return None
    overload = options.get(Option.OVERLOAD, b"\0")[:1]
    for bit, more in ((1, file), (2, name)):
        if overload and overload[0] & bit and not _read_options(more, options):
            return None
    kind = options.get(Option.MESSAGE_TYPE, b"")
    if len(kind) != 1 or kind[0] not in set(Kind):
        return None
    return Message(
        Kind(kind[0]), xid, mac[:6].hex(":"), IPv4Address(client), IPv4Address(yours), seconds,
        bool(flags & _BROADCAST_FLAG), op == 2, options,
    )  # fmt: skip


def _read_options(data: bytes, options: dict[int, bytes]) -> bool:
    """Add the options in a field, joining split ones; False if it is truncated."""
    place = 0
    while place < len(data):
        number = data[place]
        if number == Option.END:
            return True
        if number == Option.PAD:
            place += 1
            continue
        if place + 2 > len(data) or place + 2 + data[place + 1] > len(data):
            return False
        options[number] = options.get(number, b"") + data[place + 2 : place + 2 + data[place + 1]]
        place += 2 + data[place + 1]
    return True


def packet(payload: bytes, source: IPv4Address, destination: IPv4Address) -> bytes:
    """A client message as an IP packet: UDP from port 68 to port 67."""
    length = _UDP.size + len(payload)
    pseudo = source.packed + destination.packed + bytes([0, 17]) + length.to_bytes(2, "big")
    head = _UDP.pack(CLIENT_PORT, SERVER_PORT, length, 0)
    udp = _UDP.pack(CLIENT_PORT, SERVER_PORT, length, checksum(pseudo + head + payload) or 0xFFFF)
    fields = (0x45, 0, _IP.size + length, 0, 0, 64, 17)
    bare = _IP.pack(*fields, 0, source.packed, destination.packed)
    return _IP.pack(*fields, checksum(bare), source.packed, destination.packed) + udp + payload


def payload(data: bytes) -> bytes | None:
    """The UDP payload of an IP packet to port 68, None for any other packet.

    The UDP checksum is not verified: veth links leave it to offloading.
    """
    if len(data) < _IP.size or data[0] >> 4 != 4:
        return None
    head = (data[0] & 15) * 4
    length = int.from_bytes(data[2:4], "big")
    fragment = int.from_bytes(data[6:8], "big") & 0x3FFF
    if head < _IP.size or data[9] != 17 or fragment or not head + _UDP.size <= length <= len(data):
        return None
    _, port, size, _ = _UDP.unpack_from(data, head)
    if port != CLIENT_PORT or not _UDP.size <= size <= length - head:
        return None
    return data[head + _UDP.size : head + size]


def checksum(data: bytes) -> int:
    """The Internet checksum (RFC 1071)."""
    padded = data + b"\0" * (len(data) % 2)
    total = sum(int.from_bytes(padded[place : place + 2], "big") for place in range(0, len(padded), 2))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def classless_routes(data: bytes) -> tuple[tuple[IPv4Network, IPv4Address], ...] | None:
    """The routes of option 121, None if malformed. Gateway 0.0.0.0 means on-link."""
    found = []
    place = 0
    while place < len(data):
        bits = data[place]
        octets = (bits + 7) // 8
        end = place + 1 + octets + 4
        if bits > 32 or end > len(data):
            return None
        subnet = data[place + 1 : place + 1 + octets].ljust(4, b"\0")
        gateway = IPv4Address(data[end - 4 : end])
        found.append((IPv4Network((subnet, bits), strict=False), gateway))
        place = end
    return tuple(found)


def static_routes(data: bytes) -> tuple[tuple[IPv4Network, IPv4Address], ...]:
    """The classful routes of option 33, without a default route."""
    found = []
    for place in range(0, len(data) - 7, 8):
        destination, gateway = IPv4Address(data[place : place + 4]), IPv4Address(data[place + 4 : place + 8])
        if int(destination):
            bits = next(bits for limit, bits in ((128, 8), (192, 16), (256, 24)) if data[place] < limit)
            found.append((IPv4Network((int(destination), bits), strict=False), gateway))
    return tuple(found)


def search_list(data: bytes) -> tuple[str, ...]:
    """The domains of option 119 (compressed DNS names), () if malformed."""
    found = []
    place = 0
    while place < len(data):
        name, place = _name(data, place)
        if not name:
            return ()
        found.append(name)
    return tuple(found)


def _name(data: bytes, place: int) -> tuple[str, int]:
    """The name at an offset and the offset after it; "" if malformed or a pointer loop."""
    labels: list[str] = []
    after = -1
    while place < len(data) and sum(map(len, labels)) + len(labels) <= _MAX_NAME:
        length = data[place]
        if length == 0:
            return ".".join(labels), (place + 1 if after < 0 else after)
        if length >= 0xC0:
            if place + 1 >= len(data):
                break
            after = place + 2 if after < 0 else after
            target = (length & 0x3F) << 8 | data[place + 1]
            if target >= place:
                break
            place = target
            continue
        label = text(data[place + 1 : place + 1 + length])
        if length > 63 or not label:
            break
        labels.append(label)
        place += 1 + length
    return "", len(data)


def text(data: bytes) -> str:
    """An option's text, "" if it is not a valid host or domain name."""
    found = data.rstrip(b"\0").decode("ascii", "replace")
    return found if found.isascii() and all(each.isalnum() or each in "-._" for each in found) else ""
