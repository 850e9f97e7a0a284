"""Interface names, MAC addresses and marks: what the kernel would otherwise choose, derived here.

All are hashes of the attachment and the host, so that a plan is complete before the kernel is
changed, and anything a killed process left behind can be attributed. Sources: ``linux/if.h``
(IFNAMSIZ, IFALIASZ), ``net/core/dev.c`` (dev_valid_name).
"""

from __future__ import annotations

import re
from _blake2 import blake2b  # hashlib would load OpenSSL, which takes 4 ms
from functools import lru_cache
from ipaddress import IPv6Address

from weft.types import Attachment

ROUTE_PROTOCOL = 119
"""rtm_protocol of weft's routes (``ip route show proto 119``); unassigned in rt_protos."""

OVERLAY_GATEWAY6 = IPv6Address("fe80::1")
"""The gateway of an overlay network's IPv6 containers, on every host."""

NEIGHBOUR_PROTOCOL = 120
"""FRA_PROTOCOL of routing rules that an attachment adds for another link of its container."""

TEMPORARY_PREFIX = "weft"
"""Prefix of the name of a link while it is being created."""

_MARK = re.compile(r"^weft:([0-9a-f]{16})(?::|$)")
_ALIAS_BYTES = 255
ALTNAME_BYTES = 127
"""The longest alternative name of a link (ALTIFNAMSIZ without its zero byte)."""
_LINK_NAME = re.compile(r"^[^\x00-\x20\x7f-\U0010ffff/:%\"\\*]+$")
_IDENTIFIER = re.compile(r"^[a-zA-Z0-9][a-zA-Z0-9_.\-]*$")
_MAC = re.compile(r"^[0-9a-fA-F]{1,2}([:-][0-9a-fA-F]{1,2}){5}$|^[0-9a-fA-F]{4}(\.[0-9a-fA-F]{4}){2}$")
_PRINTED_MAC = re.compile(r"[0-9a-f][02468ace](?::[0-9a-f]{2}){5}")
_ZERO_MAC = "00:00:00:00:00:00"
LONGEST_IDENTIFIER = 255
_LONGEST_LABEL = 63
_LONGEST_DNS_NAME = 200


@lru_cache(512)
def link_name_problem(name: str, longest: int = 15) -> str:
    """Why a link's name is invalid, "" if it is valid.

    ``%`` is rejected because the kernel expands it, other characters because they break terminals,
    logs or nft scripts. ``longest`` is ``ALTNAME_BYTES`` where an existing link may be named by an
    alternative name (ip-link(8), ``property add altname``).
    """
    if not name:
        return "must not be empty"
    if len(name.encode("utf-8", "surrogateescape")) > longest:
        return f"must not be longer than {longest} bytes"
    if name in (".", ".."):
        return "is not a valid link name"
    if not _LINK_NAME.fullmatch(name):
        return 'must be printable ASCII without spaces and / : % " \\ *'
    return ""


def identifier_problem(text: str) -> str:
    """Why a container id or network name is invalid, "" if it is valid. Source: CNI SPEC.md."""
    if not text:
        return "must not be empty"
    if len(text) > LONGEST_IDENTIFIER:
        return f"must not be longer than {LONGEST_IDENTIFIER} characters"
    if not _IDENTIFIER.match(text) or text.endswith("\n"):
        return "must start with a letter or digit and hold only letters, digits, '_', '.' and '-'"
    return ""


def dns_name_problem(name: str) -> str:
    """Why a text is not a DNS name, "" if it is; underscores are allowed, since containers' names have
    them.
    """
    if not 0 < len(name) <= _LONGEST_DNS_NAME:
        return f"must have between 1 and {_LONGEST_DNS_NAME} characters"
    for label in name.split("."):
        if not 0 < len(label) <= _LONGEST_LABEL:
            return f"must have between 1 and {_LONGEST_LABEL} characters between two dots"
        if not all(letter.isascii() and (letter.isalnum() or letter in "-_") for letter in label):
            return "must consist of letters, digits, '-', '_' and dots"
    return ""


def normal_mac(text: str) -> str:
    """A unicast MAC address as the kernel prints it. Raises ValueError for anything else."""
    if _PRINTED_MAC.fullmatch(text) and text != _ZERO_MAC:
        return text
    if not _MAC.match(text):
        raise ValueError("is not a MAC address, like 02:42:0a:00:00:05")
    if "." in text:
        digits = text.replace(".", "")
        octets = [int(digits[start : start + 2], 16) for start in range(0, 12, 2)]
    else:
        octets = [int(part, 16) for part in re.split("[:-]", text)]
    if octets[0] & 1:
        raise ValueError("is a multicast MAC address; the first byte must be even")
    if not any(octets):
        raise ValueError("is the zero MAC address")
    return ":".join(f"{octet:02x}" for octet in octets)


@lru_cache(512)
def digest(*parts: str) -> str:
    """A hash of the parts, 16 hexadecimal digits."""
    text = "\0".join(parts)
    return blake2b(text.encode("utf-8", "surrogateescape"), digest_size=8).hexdigest()


def attachment_digest(attachment: Attachment) -> str:
    """The hash that identifies an attachment in record file names and marks."""
    return digest(attachment.network, attachment.container, attachment.interface, attachment.plugin)


def mark(*parts: str) -> str:
    """The mark of an object that attachments share, such as a bridge."""
    return f"weft:{digest(*parts)}"


def attachment_mark(attachment: Attachment) -> str:
    """The mark of an attachment's objects, in link aliases and comments of nft elements."""
    return f"weft:{attachment_digest(attachment)}"


def mark_digest(text: str) -> str:
    """The hash in an alias or comment, "" if it is not a mark."""
    found = _MARK.match(text)
    return found.group(1) if found else ""


def alias(mark: str, about: str) -> str:
    """A link alias (IFLA_IFALIAS): the mark, then a description of the link."""
    return f"{mark}:{about}".encode("utf-8", "replace")[:_ALIAS_BYTES].decode("utf-8", "ignore")


def host_link(attachment: Attachment) -> str:
    """The name of the host end of an attachment's veth pair."""
    return "veth" + digest("link", attachment.network, attachment.container, attachment.interface)[:10]


def vlan_gateway_port(link: str) -> str:
    """The port of a bridge that leads to the link with a VLAN's gateway address."""
    return "veth" + digest("vlan", link)[:10]


def temporary_link(attachment: Attachment) -> str:
    """The name of an attachment's link while it is being created; unique across namespaces."""
    return TEMPORARY_PREFIX + digest("passing", attachment_digest(attachment))[:10]


def routing_table(link: str) -> int:
    """The number of the routing table for packets from the addresses of a container's link."""
    return (ROUTE_PROTOCOL << 24) + int(digest("table", link)[:6], 16)


def mac(host: str, *parts: str) -> str:
    """A locally administered MAC address, a hash of the host and the parts.

    ``host`` makes it unique among hosts whose bridges share a layer 2 segment.
    """
    octets = blake2b("\0".join((host, *parts)).encode("utf-8", "surrogateescape"), digest_size=6).digest()
    return ":".join(f"{octet:02x}" for octet in ((octets[0] & 0xFC) | 0x02, *octets[1:]))


def link_local(mac: str) -> IPv6Address:
    """The link-local address that the kernel derives from the MAC address (RFC 4291, appendix A)."""
    octets = bytes.fromhex(mac.replace(":", ""))
    return IPv6Address(b"\xfe\x80" + bytes(6) + bytes([octets[0] ^ 2]) + octets[1:3] + b"\xff\xfe" + octets[3:])


def overlay_bridge(network: str) -> str:
    """The name of an overlay network's bridge."""
    return "wov" + digest("overlay", network)[:10]


def overlay_vxlan(bridge: str) -> str:
    """The name of the VXLAN link that belongs to an overlay network's bridge."""
    return "wvx" + bridge.removeprefix("wov")


def overlay_vlan(bridge: str) -> str:
    """The name of the VLAN link by which a VLAN is part of an overlay network."""
    return "wvl" + bridge.removeprefix("wov")
