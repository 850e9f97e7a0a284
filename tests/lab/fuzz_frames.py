"""Frames of every kind from a container's port, each made of a seed and a number alone.

What a frame forges names its number: MAC addresses 02:66:NUMBER, prefixes 2001:db8:NUMBER::/64, and a
token in its payload. So an entry of a table, or a captured frame, leads to the frame that caused it.
"""

from __future__ import annotations

import random
import struct
from collections.abc import Callable
from dataclasses import dataclass

from lab import frames
from lab.frames import ICMP, ICMP6, UDP

FORGED = "02:66:"
TOKEN = b"FUZZ"
ETHERTYPES = (0x88CC, 0x8809, 0x888E, 0x88F7, 0x88E3, 0x8902, 0x8035, 0x9000, 0x8847, 0x8863, 0x8864, 0x22F0, 0x88A8)
"""LLDP, LACP, EAPOL, PTP, MRP, CFM, RARP, loopback, MPLS, PPPoE, AVTP, an empty tag."""


@dataclass(frozen=True, slots=True)
class World:
    """The addresses that frames are made of: the sender's own, a sibling's, the host's, a neighbour's.

    ``tags``: the contents of VLAN tags, priority and VLAN.
    """

    mac: str
    sibling_mac: str
    host_mac: str
    own: tuple[str, ...]
    sibling: tuple[str, ...]
    gateway: tuple[str, ...]
    outside: tuple[str, ...]
    tags: tuple[int, ...] = (0, 0, 1, 7, 4095, 0x2000)

    @property
    def own6(self) -> tuple[str, ...]:
        return (*(one for one in self.own if ":" in one), frames.link_local(self.mac))


class Maker:
    """Makes one frame. ``random`` is seeded by the seed and the frame's number."""

    def __init__(self, world: World, seed: str, number: int) -> None:
        self.world, self.number = world, number
        self.random = random.Random(f"{seed} {number}")
        self.forged = FORGED + number.to_bytes(4, "big").hex(":")
        self.prefix = f"2001:db8:{number >> 16:x}:{number & 0xFFFF:x}::"
        self.token = TOKEN + number.to_bytes(4, "big")

    def make(self) -> tuple[str, bytes]:
        """The frame's kind and the frame."""
        kind = self.random.choice(KINDS)
        content = kind(self)
        made = frames.frame(self.source(), *content, self.destination())
        return f"{kind.__name__.strip('_')}{(wrap := self.random.choice(WRAPS)).__name__}", wrap(self, made)

    def source(self) -> str:
        own = self.world.mac
        return self.random.choice([own, own, own, self.forged, self.world.sibling_mac, self.world.host_mac])

    def destination(self) -> str:
        last = self.random.randrange(256)
        return self.random.choice(
            [
                self.world.sibling_mac, self.world.host_mac, frames.BROADCAST, f"01:80:c2:00:00:{last % 16:02x}",
                f"01:80:c2:00:00:{last:02x}", f"33:33:00:00:00:{last % 24:02x}", f"01:00:5e:00:00:{last:02x}",
                "01:00:0c:cc:cc:cc", "01:1b:19:00:00:00", self.forged,
            ]
        )  # fmt: skip

    def address(self, version: int, own: bool = False) -> str:
        """An address to send from: mostly the container's own, or one that it has not."""
        world = self.world
        special = {
            4: ("8.8.8.8", "127.0.0.1", "0.0.0.0", "255.255.255.255", "169.254.169.254", "10.80.0.255", "224.0.0.1"),
            6: ("::", "::1", "2001:4860::8888", "ff02::1", frames.link_local(world.sibling_mac), "::ffff:10.80.0.2"),
        }[version]
        mine = [one for one in (*world.own, *world.own6) if (":" in one) == (version == 6)]
        others = [one for one in (*world.sibling, *world.gateway, *world.outside) if (":" in one) == (version == 6)]
        return self.random.choice(mine if own or self.random.random() < 0.5 else [*others, *special])

    def target(self, version: int) -> str:
        world = self.world
        special = {4: ("255.255.255.255", "224.0.0.251", "127.0.0.1"), 6: ("ff02::1", "ff02::2", "ff02::16", "::1")}
        found = [
            one
            for one in (*world.sibling, *world.gateway, *world.outside, *special[version])
            if (":" in one) == (version == 6)
        ]
        return self.random.choice(found)

    def packet(self, version: int, protocol: int, content: bytes, before: bytes = b"") -> tuple[int, bytes]:
        return frames.ip(self.address(version), self.target(version), protocol, content, before=before)


Content = tuple[int, bytes]


def _udp(maker: Maker) -> Content:
    ports = maker.random.choice([(4000, 4000), (4000, 53), (67, 68), (68, 67), (547, 546), (5353, 5353), (4000, 4789)])
    return maker.packet(maker.random.choice([4, 6]), UDP, frames.udp(*ports, maker.token))


def _vxlan(maker: Maker) -> Content:
    inner = frames.frame(maker.forged, *_arp(maker))
    return maker.packet(4, UDP, frames.udp(4000, 4789, struct.pack("!II", 0x08000000, 0) + inner + maker.token))


def _gre(maker: Maker) -> Content:
    return maker.packet(4, 47, struct.pack("!HH", 0, 0x6558) + frames.frame(maker.forged, *_arp(maker)) + maker.token)


def _dhcp(maker: Maker) -> Content:
    """A server's offer, or a client's request, with this frame's MAC address."""
    server = maker.random.random() < 0.5
    head = struct.pack("!BBBBI", 2 if server else 1, 1, 6, 0, maker.number) + bytes(20) + frames.octets(maker.forged)
    body = head.ljust(236, b"\0") + b"\x63\x82\x53\x63\x35\x01" + bytes([2 if server else 1]) + b"\xff" + maker.token
    ports = (67, 68) if server else (68, 67)
    source = maker.address(4) if server else "0.0.0.0"
    return frames.ip(source, "255.255.255.255", UDP, frames.udp(*ports, body))


def _arp(maker: Maker) -> Content:
    mac = maker.random.choice([maker.world.mac, maker.forged, maker.world.sibling_mac])
    operation = maker.random.choice([1, 2, 2, 3, 4, 8])
    made = frames.arp(operation, mac, maker.address(4), maker.world.sibling_mac, maker.target(4), maker.token)
    if maker.random.random() < 0.2:  # other types and lengths
        place = maker.random.randrange(6)
        made = made[:place] + bytes([maker.random.randrange(256)]) + made[place + 1 :]
    return 0x0806, made


def _discovery(maker: Maker) -> Content:
    """Neighbour discovery, router messages and redirects, with and without options, behind headers."""
    mac = maker.random.choice([maker.world.mac, maker.forged])
    token = frames.note(maker.token)
    target = maker.address(6)
    content = maker.random.choice(
        [
            frames.advertisement(target, frames.option(2, mac) + token),
            frames.advertisement(target, token + frames.option(2, mac)),
            frames.advertisement(target, token),
            frames.solicitation(target, frames.option(1, mac) + token),
            frames.solicitation(target, token),
            frames.router(maker.prefix, frames.option(1, mac) + token),
            frames.router(maker.prefix, token),
            struct.pack("!BBHI", 133, 0, 0, 0) + frames.option(1, mac) + token,
            struct.pack("!BBHI", 137, 0, 0, 0) + bytes(32) + frames.option(2, mac) + token,
        ]
    )
    return maker.packet(6, ICMP6, content, maker.random.choice([b"", b"", _headers(maker, ICMP6)]))


def _headers(maker: Maker, protocol: int) -> bytes:
    """Up to three IPv6 extension headers, of which the first is hop-by-hop."""
    kinds = [0, *(maker.random.choice([60, 43, 44, 60]) for _ in range(maker.random.randrange(3)))]
    following = [*kinds[1:], protocol]
    made = b""
    for kind, after in zip(kinds, following, strict=True):
        if kind == 44:
            offset = maker.random.choice([0, 0, 1, 8 * maker.random.randrange(9) + maker.random.randrange(2)])
            made += struct.pack("!BBHI", after, 0, offset, maker.number)
        elif kind == 43:
            made += struct.pack("!BBBBI", after, 0, maker.random.choice([0, 2, 4]), 0, 0)
        else:
            made += bytes([after, 0, 1, 4, 0, 0, 0, 0])
    return made


def _extended(maker: Maker) -> Content:
    return maker.packet(6, UDP, frames.udp(4000, 4000, maker.token), _headers(maker, UDP))


def _fragment(maker: Maker) -> Content:
    kind, packet = maker.packet(4, UDP, frames.udp(4000, 4000, maker.token * 4))
    offset = maker.random.choice([0x2000, 0x2001, 1, 2, 0x1FFF, 0x4000])
    return kind, packet[:6] + struct.pack("!H", offset) + packet[8:10] + b"\0\0" + packet[12:]


def _source_route(maker: Maker) -> Content:
    """Loose or strict source routing, or record route, as an option of IPv4."""
    kind, packet = maker.packet(4, UDP, frames.udp(4000, 4000, maker.token))
    option = bytes([maker.random.choice([131, 137, 7]), 7, 4]) + bytes([192, 0, 2, 2]) + b"\0"
    head = bytes([0x47]) + packet[1:2] + struct.pack("!H", len(packet) + 8) + packet[4:10] + b"\0\0" + packet[12:20]
    return kind, head + option + packet[20:]


def _icmp(maker: Maker) -> Content:
    head = struct.pack("!BBHI", maker.random.choice([0, 3, 5, 5, 8, 9, 10, 13]), maker.random.randrange(4), 0, 0)
    return maker.packet(4, ICMP, head + maker.token + bytes(28))


def _igmp(maker: Maker) -> Content:
    head = struct.pack("!BBH4s", maker.random.choice([0x16, 0x17, 0x12, 0x22]), 100, 0, bytes([239, 1, 1, 1]))
    return maker.packet(4, 2, head + maker.token)


def _mld(maker: Maker) -> Content:
    head = struct.pack("!BBHHH", maker.random.choice([131, 132, 143]), 0, 0, 100, 0) + bytes([255, 5]) + bytes(14)
    return maker.packet(6, ICMP6, head + maker.token, bytes([ICMP6, 0, 5, 2, 0, 0, 0, 0]))


def _other(maker: Maker) -> Content:
    return maker.random.choice(ETHERTYPES), maker.token + maker.random.randbytes(maker.random.randrange(60))


def _llc(maker: Maker) -> Content:
    """802.3: spanning tree's and other LLC headers, or none."""
    head = maker.random.choice(
        [b"\x42\x42\x03" + bytes(35), b"\xaa\xaa\x03\0\0\x0c\x20\0", b"\xff\xff", b"\xf0\xf0\x03"]
    )
    return len(head) + 8, head + maker.token


KINDS: tuple[Callable[[Maker], Content], ...] = (
    _udp, _udp, _vxlan, _gre, _dhcp, _arp, _arp, _discovery, _discovery, _discovery, _extended, _fragment,
    _source_route, _icmp, _igmp, _mld, _other, _llc,
)  # fmt: skip


def _bare(maker: Maker, made: bytes) -> bytes:
    return made


def _cut(maker: Maker, made: bytes) -> bytes:
    return made[: maker.random.randrange(14, len(made))]


def _tags(maker: Maker, made: bytes) -> bytes:
    for _ in range(maker.random.choice([1, 1, 2, 2, 3])):
        made = frames.tagged(made, maker.random.choice(maker.world.tags), maker.random.choice([0x8100, 0x8100, 0x88A8]))
    return made


def _snap(maker: Maker, made: bytes) -> bytes:
    return frames.snap(made)


def _tagged_snap(maker: Maker, made: bytes) -> bytes:
    return frames.tagged(frames.snap(made), 0)


WRAPS: tuple[Callable[[Maker, bytes], bytes], ...] = (
    _bare,
    _bare,
    _bare,
    _bare,
    _cut,
    _tags,
    _tags,
    _snap,
    _tagged_snap,
)
