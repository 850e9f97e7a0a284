"""The names that the zone gives to nodes, services and addresses, in wire format:
``NAME.KIND[.DC].ZONE``.
"""

from __future__ import annotations

from discovery.dns import codec
from discovery.dns.codec import BadName
from discovery.structs import Node

ACE_PREFIX = b"xn--"
"""What an ASCII label that stands for a Unicode one begins with (RFC 5890 section 2.3.2.1)."""


def encode_host(name: str) -> bytes:
    """A host name in wire format; b"" if it is no valid name."""
    try:
        encoded = codec.encode_name(name)
    except BadName:
        return b""
    return encoded if encoded != b"\0" else b""


def full_name(name: str, category: bytes, datacenter: bytes, zone: bytes) -> bytes:
    """``NAME.CATEGORY.DC.ZONE``, without DC if that is b""; b"" if it is too long or no valid
    name.
    """
    start = encode_host(name)
    found = start[:-1] + codec.encode_labels(*filter(None, (category, datacenter)))[:-1] + zone
    return found if start and len(found) <= codec.MAX_NAME_LENGTH else b""


def node_name(node: Node, datacenter: bytes, zone: bytes) -> bytes:
    """``NODE.node.DC.ZONE``; b"" if the node's name is no valid one."""
    return full_name(node.name, b"node", datacenter, zone)


def unicode_label(label: bytes) -> bytes:
    """The UTF-8 of a label of a query: resolvers send ``bücher`` as ``xn--bcher-kva``. Other labels,
    and invalid ones, are returned as they are. Source: RFC 3492.
    """
    if not label.startswith(ACE_PREFIX):
        return label
    try:
        return label.removeprefix(ACE_PREFIX).decode("punycode").encode()
    except UnicodeError:
        return label
