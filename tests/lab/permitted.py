"""Which frames of a container may reach others on its bridge, written from the documentation and not from
the rules.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, replace
from ipaddress import ip_address

from lab import frames
from lab.frames import ICMP, ICMP6, UDP
from lab.fuzz_frames import World

_TAGS = (0x8100, 0x88A8)
_EXTENSIONS = (0, 43, 60)


@dataclass(frozen=True, slots=True)
class Checks:
    """What is checked of a port: its MAC address, its IP addresses but in the VLANs of its ``trunk``."""

    mac: bool
    addresses: bool
    trunk: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Vlans:
    """The VLANs of a bridge port: the one of its frames without a tag, and those of frames with one."""

    native: int
    tagged: tuple[int, ...] = ()


Tag = tuple[int, int]
"""Protocol and contents of a VLAN tag that the kernel has removed."""


def misled(made: bytes, tag: Tag | None, sender: Vlans, listener: Vlans) -> str:
    """Why a frame must not have arrived at another port of a bridge that filters VLANs, "" if it may."""
    protocol, content = struct.unpack("!HH", made[12:16].ljust(4, b"\0"))
    vlan = (content & 0xFFF or sender.native) if protocol == _TAGS[0] else sender.native
    if vlan not in (sender.native, *sender.tagged):
        return f"sent to VLAN {vlan}, which its port is not in"
    if vlan not in (listener.native, *listener.tagged):
        return f"sent to VLAN {vlan}, which the receiver's port is not in"
    wanted = vlan if vlan in listener.tagged else 0
    arrived = tag[1] & 0xFFF if tag and tag[0] == _TAGS[0] else 0
    return "" if arrived == wanted else f"sent to VLAN {vlan}, arrived with the tag of VLAN {arrived}"


def objection(data: bytes, tag: Tag | None, world: World, checks: Checks) -> str:
    """Why a frame must not have arrived, "" if it may."""
    to, source, (kind,) = data[:6], data[6:12], struct.unpack("!H", data[12:14])
    content = data[14:]
    if to[:5] == b"\x01\x80\xc2\0\0" and to[5] < 16:
        return "a reserved address"
    if checks.mac and source != frames.octets(world.mac):
        return "a forged MAC address"
    if kind in _TAGS and not tag:
        tag = kind, *struct.unpack("!H", content[:2].ljust(2, b"\0"))
        kind, content = *struct.unpack("!H", content[2:4].ljust(2, b"\0")), content[4:]
    if kind in _TAGS:
        return "two tags"
    if kind < 0x600 and content.startswith(b"\xaa\xaa\x03\0\0\0"):
        return "a SNAP header"
    if checks.addresses and tag:
        if tag[0] != _TAGS[0] or tag[1] & 0xFFF not in checks.trunk:
            return "a tag"
        checks = replace(checks, addresses=False)
    if kind == 0x0806:
        return _arp(content, world, checks)
    if kind == 0x86DD:
        return _ip6(content, world, checks)
    if not checks.addresses:
        return ""
    return _ip4(content, world) if kind == 0x0800 else "another protocol"


def _arp(content: bytes, world: World, checks: Checks) -> str:
    if checks.mac and len(content) >= 14 and content[8:14] != frames.octets(world.mac):
        return "a forged MAC address in ARP"
    if not checks.addresses:
        return ""
    if content[:6] != b"\0\x01\x08\0\x06\x04":
        return "no ARP of Ethernet and IPv4"
    return "" if content[14:18] in (bytes(4), *_packed(world.own, 4)) else "a forged address in ARP"


def _packed(addresses: tuple[str, ...], size: int) -> list[bytes]:
    return [one for one in (ip_address(address).packed for address in addresses) if len(one) == size]


def _ip4(content: bytes, world: World) -> str:
    source, to, protocol = content[12:16], content[16:20], content[9:10]
    first = not struct.unpack("!H", content[6:8].ljust(2, b"\0"))[0] & 0x1FFF
    length = 4 * (content[0] & 15) if content else 0
    ports = content[length : length + 4]
    if source == bytes(4) and to == b"\xff" * 4 and protocol == bytes([UDP]) and ports == struct.pack("!HH", 68, 67):
        return ""
    if source not in _packed(world.own, 4):
        return "a forged IPv4 address"
    if first and protocol == bytes([UDP]) and ports == struct.pack("!HH", 67, 68):
        return "a DHCP server"
    return "a redirect" if first and protocol == bytes([ICMP]) and ports[:1] == b"\x05" else ""


def _ip6(content: bytes, world: World, checks: Checks) -> str:
    source, kind, place = content[8:24], content[6:7], 40
    while kind and kind[0] in _EXTENSIONS and len(content) >= place + 8:
        kind, place = content[place : place + 1], place + 8 * (1 + content[place + 1])
    body = content[place:]
    message = body[0] if kind == bytes([ICMP6]) and body else None
    if message in (134, 137):
        return "a router's message"
    if not checks.addresses:
        return ""
    own = _packed(world.own6, 16)
    if source == bytes(16):
        known = message in (131, 132, 143, 133) or (message == 135 and body[8:24] in own)
        return "" if known else "no address of its own"
    if source not in own:
        return "a forged IPv6 address"
    if kind == bytes([UDP]) and body[:4] == struct.pack("!HH", 547, 546):
        return "a DHCPv6 server"
    mac = frames.octets(world.mac)
    if message == 136 and (body[8:24] not in own or body[24:32] not in (b"", b"\x02\x01" + mac)):
        return "a forged neighbour advertisement"
    if message == 135 and body[24:32] not in (b"", b"\x01\x01" + mac):
        return "a forged neighbour solicitation"
    return "a forged router solicitation" if message == 133 and body[8:16] not in (b"", b"\x01\x01" + mac) else ""
