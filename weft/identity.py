"""Names, MAC addresses and marks: everything the kernel would otherwise choose, chosen here.

All follow from the attachment and the host alone, so a plan is known before the kernel is touched, and
what a killed process left behind is recognised by anybody. Sources: ``linux/if.h`` (IFNAMSIZ, IFALIASZ),
``net/core/dev.c`` (dev_valid_name).
"""

from __future__ import annotations

import re
from _blake2 import blake2b  # hashlib would load OpenSSL, which takes 4 ms
from functools import lru_cache

from weft.types import Attachment

ROUTE_PROTOCOL = 119
"""The protocol number weft's routes bear (``ip route show proto 119``); free in iproute2's rt_protos."""

TEMPORARY_PREFIX = "weft"
"""How the names of links begin that are not finished yet."""

_MARK = re.compile(r"^weft:([0-9a-f]{16})(?::|$)")
_ALIAS_BYTES = 255
_LINK_NAME = re.compile(r"^[^\x00-\x20\x7f-\U0010ffff/:%\"\\*]+$")
_IDENTIFIER = re.compile(r"^[a-zA-Z0-9][a-zA-Z0-9_.\-]*$")
_MAC = re.compile(r"^[0-9a-fA-F]{1,2}([:-][0-9a-fA-F]{1,2}){5}$|^[0-9a-fA-F]{4}(\.[0-9a-fA-F]{4}){2}$")
LONGEST_IDENTIFIER = 255


@lru_cache(512)
def link_name_problem(name: str) -> str:
    """What is wrong with a link's name, "" if nothing is.

    ``%`` is refused because the kernel expands it, the rest because it would spoil a terminal, a log or a rule.
    """
    if not name:
        return "must not be empty"
    if len(name.encode("utf-8", "surrogateescape")) > 15:
        return "must not be longer than 15 bytes"
    if name in (".", ".."):
        return "is not a name the kernel takes"
    if not _LINK_NAME.fullmatch(name):
        return 'must be printable ASCII without spaces and / : % " \\ *'
    return ""


def identifier_problem(text: str) -> str:
    """What is wrong with a container id or network name, "" if nothing is."""
    if not text:
        return "must not be empty"
    if len(text) > LONGEST_IDENTIFIER:
        return f"must not be longer than {LONGEST_IDENTIFIER} characters"
    if not _IDENTIFIER.match(text) or text.endswith("\n"):
        return "must start with a letter or digit and hold only letters, digits, '_', '.' and '-'"
    return ""


def normal_mac(text: str) -> str:
    """A MAC address as the kernel prints it; raises ValueError for text that is none, or a group's, or zero."""
    if not _MAC.match(text):
        raise ValueError("is not a MAC address, like 02:42:0a:00:00:05")
    if "." in text:
        digits = text.replace(".", "")
        octets = [int(digits[place : place + 2], 16) for place in range(0, 12, 2)]
    else:
        octets = [int(part, 16) for part in re.split("[:-]", text)]
    if octets[0] & 1:
        raise ValueError("is a multicast MAC address; the first byte must be even")
    if not any(octets):
        raise ValueError("is the zero MAC address")
    return ":".join(f"{octet:02x}" for octet in octets)


@lru_cache(512)
def digest(*parts: str) -> str:
    """16 hex digits that stand for the parts; parts cannot run together."""
    text = "\0".join(parts)
    return blake2b(text.encode("utf-8", "surrogateescape"), digest_size=8).hexdigest()


def attachment_digest(attachment: Attachment) -> str:
    """What identifies an attachment in record names and marks."""
    return digest(attachment.network, attachment.container, attachment.interface, attachment.plugin)


def mark(*parts: str) -> str:
    """The mark of what belongs to something that attachments share: a bridge, a subnet."""
    return f"weft:{digest(*parts)}"


def attachment_mark(attachment: Attachment) -> str:
    """The mark that everything made for an attachment bears: a link's alias, an nft element's comment."""
    return f"weft:{attachment_digest(attachment)}"


def mark_digest(text: str) -> str:
    """The digest in an alias or comment, "" if the text is no mark of weft's."""
    found = _MARK.match(text)
    return found.group(1) if found else ""


def alias(mark: str, about: str) -> str:
    """A link alias that bears the mark and says to a person what the link is for."""
    return f"{mark}:{about}".encode("utf-8", "replace")[:_ALIAS_BYTES].decode("utf-8", "ignore")


def host_link(attachment: Attachment) -> str:
    """The name of the host's end of an attachment's veth pair."""
    return "veth" + digest("link", attachment.network, attachment.container, attachment.interface)[:10]


def temporary_link(attachment: Attachment) -> str:
    """The name of an attachment's link while it is being made, free in every namespace."""
    return TEMPORARY_PREFIX + digest("passing", attachment_digest(attachment))[:10]


def mac(host: str, *parts: str) -> str:
    """A locally administered MAC address that no other host and no other parts share.

    ``host`` tells hosts apart, so that bridges joined by a wire do not answer for each other.
    """
    octets = blake2b("\0".join((host, *parts)).encode("utf-8", "surrogateescape"), digest_size=6).digest()
    return ":".join(f"{octet:02x}" for octet in ((octets[0] & 0xFC) | 0x02, *octets[1:]))
