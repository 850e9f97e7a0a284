"""Links: list, add, change and delete.

Source: ``ip-link(8)``, ``linux/if_link.h``, ``net/core/rtnetlink.c``.
"""

from __future__ import annotations

import struct
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from weft import identity
from weft.errors import KernelLacks, KernelRefused, Missing
from weft.kernel.interface import VethPeer
from weft.kernel.netlink import codec
from weft.kernel.netlink.attributes import Attributes, get_int, get_string, integer, mac_address, nested, parse
from weft.kernel.netlink.attributes import attribute as packed_attribute
from weft.kernel.netlink.constants import (
    AF_BRIDGE,
    AF_INET6,
    IFF_ALLMULTI,
    IFF_LOWER_UP,
    IFF_PROMISC,
    IFF_UP,
    IFLA_ADDRESS,
    IFLA_AF_SPEC,
    IFLA_ALT_IFNAME,
    IFLA_EXT_MASK,
    IFLA_GROUP,
    IFLA_IFALIAS,
    IFLA_IFNAME,
    IFLA_INET6_ADDR_GEN_MODE,
    IFLA_INFO_DATA,
    IFLA_INFO_KIND,
    IFLA_INFO_SLAVE_DATA,
    IFLA_INFO_SLAVE_KIND,
    IFLA_LINK,
    IFLA_LINK_NETNSID,
    IFLA_LINKINFO,
    IFLA_MASTER,
    IFLA_MTU,
    IFLA_TXQLEN,
    IN6_ADDR_GEN_MODE_NONE,
    NLM_F_CREATE,
    NLM_F_EXCL,
    RTEXT_FILTER_SKIP_STATS,
    RTM_DELLINK,
    RTM_GETLINK,
    RTM_NEWLINK,
)
from weft.kernel.netlink.errors import module
from weft.kernel.netlink.ioctls import link_attributes, link_index, link_name
from weft.kernel.netlink.link_settings import LinkSettings
from weft.kernel.netlink.rtnetlink import RouteSocket, request
from weft.kernel.netlink.transport import HEADER_SIZE, Request, parses_answer
from weft.kernel.values import Link

_ATTRIBUTES = 32  # their offset in a message
_CACHE_SIZE = 1000
_CACHE_SECONDS = 10.0
_PORT = "bridge_slave"
_UNKNOWN_KIND = "Unknown device type"


@parses_answer
def get(socket: RouteSocket, name: str) -> Link | None:
    """The link of that name, None if there is none; one filtered request."""
    message = _message(socket, name)
    if message is None:
        return None
    _remember(socket, name, message)
    found = parse(message, _ATTRIBUTES)
    master = get_int(found, IFLA_MASTER)
    return _link(message, found, link_name(socket.fileno(), master) if master else "")


def index(socket: RouteSocket, name: str, action: str) -> int:
    """The link's index; raises Missing, saying that one cannot ``action``."""
    known = socket.link_indexes.get(name)
    if known is not None and link_name(socket.fileno(), known) == name:
        return known
    message = _message(socket, name)
    if message is None:
        raise Missing(f"cannot {action}: the link {name} does not exist")
    return _remember(socket, name, message)


def _remember(socket: RouteSocket, name: str, message: bytes) -> int:
    if len(socket.link_indexes) > _CACHE_SIZE:
        socket.link_indexes.clear()
    found = socket.link_indexes[name] = index_of(message)
    return found


def cached(socket: RouteSocket, name: str) -> Link | None:
    """The link as read in the last seconds, verified without RTNL, else read anew.

    Verified are name, index, MAC address, MTU and flags, which ioctl(2) tells.
    """
    known = socket.link_cache.get(name)
    if known is not None and time.monotonic() - known[0] <= _CACHE_SECONDS:
        link = known[1]
        now = link_attributes(socket.fileno(), name, link.index)
        if now == (link.mac, link.mtu, link.up, link.promiscuous):
            return link
    read = get(socket, name)
    if read is not None:
        if len(socket.link_cache) > _CACHE_SIZE:
            socket.link_cache.clear()
        socket.link_cache[name] = (time.monotonic(), read)
    return read


def cached_mac(socket: RouteSocket, name: str) -> str:
    """The MAC address of a link whose index is cached, read without RTNL; "" if it is not."""
    known = socket.link_indexes.get(name)
    found = link_attributes(socket.fileno(), name, known) if known is not None else None
    return found.mac if found is not None else ""


def cache_index(socket: RouteSocket, name: str) -> None:
    """Remember the index of a link that was just added, read without RTNL."""
    number = link_index(socket.fileno(), name)
    if number:
        socket.link_indexes[name] = number


@parses_answer
def list_links(socket: RouteSocket) -> tuple[Link, ...]:
    """Every link, in the order of their indexes."""
    messages = socket.dump(Request(RTM_GETLINK, 0, "list the links", _ANY_LINK))
    parsed = [(message, parse(message, _ATTRIBUTES)) for message in messages]
    names = {index_of(message): get_string(found, IFLA_IFNAME) for message, found in parsed}
    if len(names) <= _CACHE_SIZE:
        socket.link_indexes.update((name, number) for number, name in names.items())
    links = [_link(message, found, names.get(get_int(found, IFLA_MASTER), "")) for message, found in parsed]
    return tuple(sorted(links, key=lambda link: link.index))


@parses_answer
def list_ports(socket: RouteSocket, master: str) -> tuple[Link, ...]:
    """The links of one master, in the order of their indexes."""
    number = index(socket, master, f"list the ports of {master}")
    messages = socket.dump(Request(RTM_GETLINK, 0, "list ports", _ANY_LINK + integer(IFLA_MASTER, number)))
    parsed = [(message, parse(message, _ATTRIBUTES)) for message in messages]
    links = [_link(message, found, master) for message, found in parsed if get_int(found, IFLA_MASTER) == number]
    return tuple(sorted(links, key=lambda link: link.index))


_ANY_LINK = bytes(16) + integer(IFLA_EXT_MASK, RTEXT_FILTER_SKIP_STATS)
"""A ``struct ifinfomsg`` that names no link, and what leaves statistics out of the answers."""


@parses_answer
def _message(socket: RouteSocket, name: str) -> bytes | None:
    if identity.link_name_problem(name, identity.ALTNAME_BYTES):
        return None
    # The kernel looks up an alternative name that fits under IFLA_IFNAME, too.
    number, text = IFLA_IFNAME if len(name) <= 15 else IFLA_ALT_IFNAME, name.encode("utf-8", "surrogateescape")
    body = _ANY_LINK + packed_attribute(number, text + b"\0")
    try:
        ((message,),) = socket.request(Request(RTM_GETLINK, 0, f"look up the link {name}", body, single=True))
    except Missing:
        return None
    return message


def _link(message: bytes, found: Attributes, master: str) -> Link:
    info = parse(found.get(IFLA_LINKINFO, b""))
    kind = get_string(info, IFLA_INFO_KIND)
    flags = struct.unpack_from("=I", message, 24)[0]
    is_port = get_string(info, IFLA_INFO_SLAVE_KIND) == "bridge"
    return Link(
        name=get_string(found, IFLA_IFNAME),
        index=index_of(message),
        kind=kind,
        mac=found.get(IFLA_ADDRESS, b"").hex(":"),
        mtu=get_int(found, IFLA_MTU),
        up=bool(flags & IFF_UP),
        alias=get_string(found, IFLA_IFALIAS),
        master=master,
        peer_index=get_int(found, IFLA_LINK) if kind == "veth" else 0,
        promiscuous=bool(flags & IFF_PROMISC),
        carrier=bool(flags & IFF_LOWER_UP),
        all_multicast=bool(flags & IFF_ALLMULTI),
        queue_length=get_int(found, IFLA_TXQLEN),
        group=get_int(found, IFLA_GROUP),
        elsewhere=IFLA_LINK_NETNSID in found,
        options=LinkOptions(kind, info[IFLA_INFO_DATA]) if IFLA_INFO_DATA in info else {},
        port=LinkOptions(_PORT, info.get(IFLA_INFO_SLAVE_DATA, b"")) if is_port else {},
        sysctls=LinkSettings(found.get(IFLA_AF_SPEC, b"")),
    )


class LinkOptions(Mapping[str, Any]):
    """A link's options, each decoded when it is asked for: they are half of a message, and few are needed."""

    __slots__ = ("_attributes", "_data", "_kind")

    def __init__(self, kind: str, data: bytes) -> None:
        self._kind = kind
        self._data = data
        self._attributes: Attributes | None = None

    @parses_answer
    def _value(self, key: str) -> int | str | None:
        if self._attributes is None:
            self._attributes = parse(self._data)
        value = codec.link_option(self._kind, key, self._attributes)
        return value if self._kind != _PORT or isinstance(value, int) else None

    def __getitem__(self, key: str) -> Any:
        value = self._value(key)
        if value is None:
            raise KeyError(key)
        return value

    def __iter__(self) -> Iterator[str]:
        return (name for name in codec.link_option_names(self._kind) if self._value(name) is not None)

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __repr__(self) -> str:
        return repr(dict(self))


@dataclass(frozen=True, slots=True)
class NewLink:
    """A link to add.

    ``target`` is a descriptor of the namespace that it is to be in, None for the socket's.
    """

    name: str
    kind: str
    mac: str = ""
    mtu: int = 0
    up: bool = False
    master: int = 0
    parent: int = 0
    peer: VethPeer | None = None
    peer_target: int | None = None
    target: int | None = None
    options: Mapping[str, int | str] | None = None


def add(socket: RouteSocket, plan: NewLink, action: str) -> None:
    """Add a link in one message, with its peer where it has one; the peer is left down.

    Raises ``Exists`` when a name is taken, ``KernelLacks`` for a kind that this kernel lacks.
    """
    check_name(plan.name, action)
    attributes: list[Any] = [["IFLA_IFNAME", plan.name], *_common(plan.mac, plan.mtu)]
    if plan.parent:
        attributes.append(["IFLA_LINK", plan.parent])
    if plan.master:
        attributes.append(["IFLA_MASTER", plan.master])
    if plan.target is not None:
        attributes.append(["IFLA_NET_NS_FD", plan.target])
    attributes.append(["IFLA_LINKINFO", {"attrs": _link_info(plan, action)}])
    fields = {"flags": IFF_UP, "change": IFF_UP} if plan.up else {}
    flags = NLM_F_CREATE | NLM_F_EXCL
    try:
        socket.request(request(RTM_NEWLINK, flags, action, fields, attributes, needs=module(plan.kind)))
    except KernelLacks as error:
        if plan.options and _UNKNOWN_KIND not in error.message:
            raise KernelLacks(error.message, hint=f"this kernel lacks {' or '.join(plan.options)}") from error
        raise


def _link_info(plan: NewLink, action: str) -> list[Any]:
    info: list[Any] = [["IFLA_INFO_KIND", plan.kind]]
    if plan.peer is not None:
        check_name(plan.peer.name, action)
        peer: list[Any] = [["IFLA_IFNAME", plan.peer.name], *_common(plan.peer.mac, plan.peer.mtu)]
        if plan.peer_target is not None:
            peer.append(["IFLA_NET_NS_FD", plan.peer_target])
        # Without IFF_UP: the driver opens the peer before the pair is joined: ENOTCONN
        # (drivers/net/veth.c).
        info.append(["IFLA_INFO_DATA", {"attrs": [["VETH_INFO_PEER", {"attrs": peer}]]}])
    elif plan.options:
        info.append(_options(plan.kind, plan.options, action))
    return info


def _options(kind: str, options: Mapping[str, int | str], action: str) -> list[Any]:
    for option in options:
        if not codec.has_option(kind, option):
            raise KernelRefused(f"cannot {action}: {kind} links have no option {option}")
    return ["IFLA_INFO_DATA", {"attrs": codec.named(dict(options))}]


def _common(mac: str, mtu: int) -> list[Any]:
    attributes: list[Any] = []
    if mac:
        attributes.append(["IFLA_ADDRESS", mac])
    if mtu:
        attributes.append(["IFLA_MTU", mtu])
    return attributes


def change(
    socket: RouteSocket,
    name: str,
    action: str,
    *,
    up: bool | None = None,
    mac: str | None = None,
    mtu: int | None = None,
    alias: str | None = None,
    master: str | None = None,
    promiscuous: bool | None = None,
    all_multicast: bool | None = None,
    queue_length: int | None = None,
    group: int | None = None,
    new_name: str | None = None,
    target: int | None = None,
    options: Mapping[str, int | str] | None = None,
) -> None:
    """Change a link with one message; the kernel moves it, renames it, then sets it up or down."""
    here = index(socket, name, action)
    attributes = _common(mac or "", mtu or 0)
    if new_name is not None:
        check_name(new_name, action)
        attributes.append(["IFLA_IFNAME", new_name])
    if alias is not None:
        attributes.append(["IFLA_IFALIAS", alias])
    if master is not None:
        attributes.append(["IFLA_MASTER", index(socket, master, action) if master else 0])
    if queue_length is not None:
        attributes.append(["IFLA_TXQLEN", queue_length])
    if group is not None:
        attributes.append(["IFLA_GROUP", group])
    if target is not None:
        attributes.append(["IFLA_NET_NS_FD", target])
    if options:
        kind = _kind(socket, name)
        info: list[Any] = [["IFLA_INFO_KIND", kind], _options(kind, options, action)]
        attributes.append(["IFLA_LINKINFO", {"attrs": info}])
    flags = mask = 0
    for wanted, bit in ((up, IFF_UP), (promiscuous, IFF_PROMISC), (all_multicast, IFF_ALLMULTI)):
        if wanted is not None:
            mask |= bit
            flags |= bit if wanted else 0
    fields = {"index": here, "flags": flags, "change": mask}
    socket.request(request(RTM_NEWLINK, 0, action, fields, attributes, needs=" or ".join(options or ())))


def announce(socket: RouteSocket, name: str) -> None:
    """Set the MAC address that a link has, once more. Packed, since it is in every ADD. Raises KernelRefused."""
    action = f"announce the addresses of {name}"
    header = struct.pack("=IiII", 0, index(socket, name, action), 0, 0)
    body = header + mac_address(IFLA_ADDRESS, cached_mac(socket, name))
    socket.request(Request(RTM_NEWLINK, 0, action, body))


def finish(socket: RouteSocket, name: str, alias: str, action: str, *, addrgen_none: bool) -> None:
    """Set the alias of a new link; with ``addrgen_none`` it generates no IPv6 link-local address.

    It must have no carrier yet, which would have brought the address. A kernel without IPv6
    generates none anyway.
    """
    fields = {"index": index(socket, name, action)}
    attributes = packed_attribute(IFLA_IFALIAS, alias.encode("utf-8", "surrogateescape"))
    mode = packed_attribute(IFLA_INET6_ADDR_GEN_MODE, bytes([IN6_ADDR_GEN_MODE_NONE]))
    none = nested(IFLA_AF_SPEC, nested(AF_INET6, mode))
    try:
        socket.request(
            request(RTM_NEWLINK, 0, action, fields, attributes + (none if addrgen_none else b""), needs="IPv6")
        )
    except KernelLacks:
        if not addrgen_none:
            raise
        socket.request(request(RTM_NEWLINK, 0, action, fields, attributes))


def _kind(socket: RouteSocket, name: str) -> str:
    message = _message(socket, name)
    return get_string(parse(parse(message, _ATTRIBUTES).get(IFLA_LINKINFO, b"")), IFLA_INFO_KIND) if message else ""


def delete(socket: RouteSocket, name: str) -> None:
    """Delete a link and return when the kernel has acknowledged it (some 15 ms); raises
    ``Missing``.
    """
    action = f"delete the link {name}"
    if identity.link_name_problem(name):
        raise Missing(f"cannot {action}: the link {name} does not exist")
    socket.request(request(RTM_DELLINK, 0, action, {}, [["IFLA_IFNAME", name]]))


def check_name(name: str, action: str) -> None:
    """Raises KernelRefused for a name that the kernel would expand (``%``) or that is none."""
    problem = identity.link_name_problem(name)
    if problem:
        raise KernelRefused(f"cannot {action}: the link name {name!r} {problem}")


def index_of(message: bytes) -> int:
    """The index in the fixed part of a link message."""
    return int(struct.unpack_from("=i", message, 20)[0])


def is_bridge_event(message: bytes) -> bool:
    """Whether a link message is about a bridge port (AF_BRIDGE) and not about the link itself."""
    return message[HEADER_SIZE] == AF_BRIDGE
