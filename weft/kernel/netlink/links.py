"""Links: read, made, changed, deleted. Source: ``ip-link(8)``, ``linux/if_link.h``, ``net/core/rtnetlink.c``."""

from __future__ import annotations

import contextlib
import fcntl
import struct
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from weft import identity
from weft.errors import KernelLacks, KernelRefused, Missing
from weft.kernel.interface import Link, VethPeer
from weft.kernel.netlink import codec
from weft.kernel.netlink.codec import Attributes, attribute
from weft.kernel.netlink.reader import number, scan, word
from weft.kernel.netlink.refusals import module
from weft.kernel.netlink.socket import Request, RouteSocket, link_name

_UP, _PROMISC, _ALLMULTI, _LOWER_UP = 0x1, 0x100, 0x200, 0x10000
_SKIP_STATISTICS = 8
_FIXED = 32  # bytes before a message's attributes
_ADDRESS, _NAME, _MTU, _LOWER, _MASTER, _QUEUE_LENGTH, _INFORMATION, _ALIAS = 1, 3, 4, 5, 10, 13, 18, 20
_KIND, _DATA, _PORT_KIND = 1, 2, 4
_BY_FAMILY, _GENERATE = 26, 8
_MOST_INDEXES = 1000
_FRESH = 10.0  # seconds
_UNKNOWN_KIND = "Unknown device type"

NESTED = 0x8000
"""Third member of an attribute that must say that it holds others; pyroute2 reads it from tuples alone."""


def get(socket: RouteSocket, name: str) -> Link | None:
    """The link of that name, None if there is none; one filtered request."""
    message = _message(socket, name, decoded=False)
    if message is None:
        return None
    found = scan(message, _FIXED)
    master = number(found, _MASTER)
    return _link(message, found, link_name(socket.fileno(), master) if master else "")


def index(socket: RouteSocket, name: str, doing: str) -> int:
    """The link's index; raises Missing, saying that one cannot ``doing``."""
    known = socket.indexes.get(name)
    if known is not None and link_name(socket.fileno(), known) == name:
        return known
    message = _message(socket, name, decoded=False)
    if message is None:
        raise Missing(f"cannot {doing}: there is no link {name}")
    if len(socket.indexes) > _MOST_INDEXES:
        socket.indexes.clear()
    socket.indexes[name] = index_of(message)
    return socket.indexes[name]


def glance(socket: RouteSocket, name: str) -> Link | None:
    """The link as it was looked at a moment ago, if all that can be seen without the kernel's lock is as it was then.

    That is: name, index, MAC address, MTU and flags. None where it must be looked at.
    """
    known = socket.seen.get(name)
    if known is None or time.monotonic() - known[0] > _FRESH:
        return None
    link = known[1]
    return link if _signs(socket, name, link.index) == (link.mac, link.mtu, link.up, link.promiscuous) else None


def look(socket: RouteSocket, name: str) -> Link | None:
    """The link, asked for unless ``glance`` tells it."""
    link = glance(socket, name)
    if link is None:
        link = get(socket, name)
        if link is not None:
            if len(socket.seen) > _MOST_INDEXES:
                socket.seen.clear()
            socket.seen[name] = (time.monotonic(), link)
    return link


def hardware(socket: RouteSocket, name: str) -> str:
    """The MAC address of a link whose index is known, without the kernel's lock; "" where that is not so."""
    known = socket.indexes.get(name)
    return _signs(socket, name, known)[0] if known is not None else ""


def _signs(socket: RouteSocket, name: str, index: int) -> tuple[str, int, bool, bool]:
    """MAC address, MTU, up, promiscuous (SIOCGIFHWADDR and its like); nothing where index and name do not fit."""
    descriptor = socket.fileno()
    # First of all the name by the index: the kernel looks for a module of a name that is not there.
    if link_name(descriptor, index) != name:
        return "", 0, False, False
    asked = struct.pack("=16s24x", name.encode())
    try:
        address, mtu, flags = (fcntl.ioctl(descriptor, number, asked) for number in (0x8927, 0x8921, 0x8913))
    except OSError:
        return "", 0, False, False
    said = struct.unpack_from("=H", flags, 16)[0]
    mac = address[18:24].hex(":")
    return mac, struct.unpack_from("=i", mtu, 16)[0], bool(said & _UP), bool(said & _PROMISC)


def made(socket: RouteSocket, name: str) -> None:
    """Note the index of a link that was just made, without waiting for the kernel's lock (SIOCGIFINDEX).

    Only for links that are there: for others the kernel would go and look for a module of that name.
    """
    with contextlib.suppress(OSError):
        answer = fcntl.ioctl(socket.fileno(), 0x8933, struct.pack("=16si20x", name.encode(), 0))
        socket.indexes[name] = int(struct.unpack_from("=i", answer, 16)[0])


def every(socket: RouteSocket) -> tuple[Link, ...]:
    """Every link, in the order of their indexes."""
    attributes: Attributes = [["IFLA_EXT_MASK", _SKIP_STATISTICS]]
    messages = socket.dump(Request(codec.GETLINK, 0, "list the links", attributes=attributes, decoded=False))
    told = [(message, scan(message, _FIXED)) for message in messages]
    known = {index_of(message): word(found, _NAME) for message, found in told}
    links = [_link(message, found, known.get(number(found, _MASTER), "")) for message, found in told]
    return tuple(sorted(links, key=lambda link: link.index))


def _message(socket: RouteSocket, name: str, *, decoded: bool = True) -> Any:
    if identity.link_name_problem(name):
        return None
    attributes: Attributes = [["IFLA_EXT_MASK", _SKIP_STATISTICS], ["IFLA_IFNAME", name]]
    try:
        doing = f"look at the link {name}"
        request = Request(codec.GETLINK, 0, doing, attributes=attributes, decoded=decoded, single=True)
        ((message,),) = socket.request(request)
    except Missing:
        return None
    return message


def _link(message: bytes, found: dict[int, bytes], master: str) -> Link:
    about = scan(found.get(_INFORMATION, b""))
    kind = word(about, _KIND)
    flags = struct.unpack_from("=I", message, 24)[0]
    return Link(
        name=word(found, _NAME),
        index=index_of(message),
        kind=kind,
        mac=found.get(_ADDRESS, b"").hex(":"),
        mtu=number(found, _MTU),
        up=bool(flags & _UP),
        alias=word(found, _ALIAS),
        master=master,
        peer_index=number(found, _LOWER) if kind == "veth" else 0,
        promiscuous=bool(flags & _PROMISC),
        carrier=bool(flags & _LOWER_UP),
        all_multicast=bool(flags & _ALLMULTI),
        queue_length=number(found, _QUEUE_LENGTH),
        options=Details(message, "IFLA_INFO_DATA") if _DATA in about else {},
        port=Details(message, "IFLA_INFO_SLAVE_DATA") if word(about, _PORT_KIND) == "bridge" else {},
    )


class Details(Mapping[str, Any]):
    """What a link's kind alone knows, read when somebody asks: it is half of a message, and seldom wanted."""

    __slots__ = ("_known", "_message", "_name")

    def __init__(self, message: bytes, name: str) -> None:
        self._message = message
        self._name = name
        self._known: dict[str, Any] | None = None

    def _read(self) -> dict[str, Any]:
        if self._known is None:
            message = codec.decode(codec.NEWLINK, self._message)
            found = codec.plain(attribute(message, "IFLA_LINKINFO", self._name))
            slave = self._name == "IFLA_INFO_SLAVE_DATA"
            self._known = {key: value for key, value in found.items() if not slave or isinstance(value, int)}
        return self._known

    def __getitem__(self, key: str) -> Any:
        return self._read()[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._read())

    def __len__(self) -> int:
        return len(self._read())

    def __repr__(self) -> str:
        return repr(self._read())


@dataclass(frozen=True, slots=True)
class NewLink:
    """A link to be made. ``target`` is the namespace it is to be in as a descriptor, None for the socket's."""

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


def add(socket: RouteSocket, plan: NewLink, doing: str) -> None:
    """Make a link in one message, with its peer where it has one; the peer is left down.

    Raises ``Exists`` when a name is taken, ``KernelLacks`` for a kind that this kernel does not know.
    """
    check_name(plan.name, doing)
    attributes: Attributes = [["IFLA_IFNAME", plan.name], *_common(plan.mac, plan.mtu)]
    if plan.parent:
        attributes.append(["IFLA_LINK", plan.parent])
    if plan.master:
        attributes.append(["IFLA_MASTER", plan.master])
    if plan.target is not None:
        attributes.append(["IFLA_NET_NS_FD", plan.target])
    attributes.append(["IFLA_LINKINFO", {"attrs": _kind(plan, doing)}])
    fields = {"flags": _UP, "change": _UP} if plan.up else {}
    flags = codec.CREATE | codec.EXCL
    try:
        socket.request(Request(codec.NEWLINK, flags, doing, fields, attributes, needs=module(plan.kind)))
    except KernelLacks as error:
        if plan.options and _UNKNOWN_KIND not in error.message:
            raise KernelLacks(error.message, hint=f"this kernel lacks {' or '.join(plan.options)}") from error
        raise


def _kind(plan: NewLink, doing: str) -> Attributes:
    information: Attributes = [["IFLA_INFO_KIND", plan.kind]]
    if plan.peer is not None:
        check_name(plan.peer.name, doing)
        peer: Attributes = [["IFLA_IFNAME", plan.peer.name], *_common(plan.peer.mac, plan.peer.mtu)]
        if plan.peer_target is not None:
            peer.append(["IFLA_NET_NS_FD", plan.peer_target])
        # Not its "up": the driver opens a peer before it is joined and answers ENOTCONN (drivers/net/veth.c).
        information.append(["IFLA_INFO_DATA", {"attrs": [["VETH_INFO_PEER", {"attrs": peer}]]}])
    elif plan.options:
        information.append(_options(plan.kind, plan.options, doing))
    return information


def _options(kind: str, options: Mapping[str, int | str], doing: str) -> list[Any]:
    for option in options:
        if not codec.knows(kind, option):  # pyroute2 would leave it out without a word
            raise KernelRefused(f"cannot {doing}: {kind} links have no option {option}")
    return ["IFLA_INFO_DATA", {"attrs": codec.named(dict(options))}]


def _common(mac: str, mtu: int) -> Attributes:
    attributes: Attributes = []
    if mac:
        attributes.append(["IFLA_ADDRESS", mac])
    if mtu:
        attributes.append(["IFLA_MTU", mtu])
    return attributes


def change(
    socket: RouteSocket,
    name: str,
    doing: str,
    *,
    up: bool | None = None,
    mac: str | None = None,
    mtu: int | None = None,
    alias: str | None = None,
    master: str | None = None,
    promiscuous: bool | None = None,
    all_multicast: bool | None = None,
    queue_length: int | None = None,
    new_name: str | None = None,
    target: int | None = None,
    options: Mapping[str, int | str] | None = None,
) -> None:
    """Change a link with one message; the kernel moves, renames, then sets it up or down, in this order."""
    here = index(socket, name, doing)
    attributes = _common(mac or "", mtu or 0)
    if new_name is not None:
        check_name(new_name, doing)
        attributes.append(["IFLA_IFNAME", new_name])
    if alias is not None:
        attributes.append(["IFLA_IFALIAS", alias])
    if master is not None:
        attributes.append(["IFLA_MASTER", index(socket, master, doing) if master else 0])
    if queue_length is not None:
        attributes.append(["IFLA_TXQLEN", queue_length])
    if target is not None:
        attributes.append(["IFLA_NET_NS_FD", target])
    if options:
        kind = str(attribute(_message(socket, name), "IFLA_LINKINFO", "IFLA_INFO_KIND") or "")
        information: Attributes = [["IFLA_INFO_KIND", kind], _options(kind, options, doing)]
        attributes.append(["IFLA_LINKINFO", {"attrs": information}])
    flags = mask = 0
    for wanted, bit in ((up, _UP), (promiscuous, _PROMISC), (all_multicast, _ALLMULTI)):
        if wanted is not None:
            mask |= bit
            flags |= bit if wanted else 0
    fields = {"index": here, "flags": flags, "change": mask}
    socket.request(Request(codec.NEWLINK, 0, doing, fields, attributes, needs=" or ".join(options or ())))


def finish(socket: RouteSocket, name: str, alias: str, doing: str, *, addrgen_none: bool) -> None:
    """Give a link that was just made its alias; ``addrgen_none`` also that IPv6 gives it no address by itself.

    It must have no carrier yet, which would have brought the address. A kernel without IPv6 gives none anyway.
    """
    fields = {"index": index(socket, name, doing)}
    attributes = _attribute(_ALIAS, alias.encode("utf-8", "surrogateescape"))
    none = _attribute(_BY_FAMILY | NESTED, _attribute(codec.AF_INET6 | NESTED, _attribute(_GENERATE, b"\1")))
    try:
        socket.request(Request(codec.NEWLINK, 0, doing, fields, attributes + (none if addrgen_none else b""), "IPv6"))
    except KernelLacks:
        if not addrgen_none:
            raise
        socket.request(Request(codec.NEWLINK, 0, doing, fields, attributes))


def _attribute(kind: int, value: bytes) -> bytes:
    return struct.pack("=HH", len(value) + 4, kind) + value + b"\0" * (-len(value) % 4)


def delete(socket: RouteSocket, name: str) -> None:
    """Delete a link and return when the kernel has acknowledged it (some 15 ms); raises ``Missing``."""
    doing = f"delete the link {name}"
    if identity.link_name_problem(name):
        raise Missing(f"cannot {doing}: there is no link {name}")
    socket.request(Request(codec.DELLINK, 0, doing, attributes=[["IFLA_IFNAME", name]]))


def change_port(socket: RouteSocket, name: str, attributes: Mapping[str, int]) -> None:
    """Set attributes of a bridge port (``brport_mode``, ``brport_isolated`` …)."""
    doing = f"set the bridge port {name} to {', '.join(f'{key} {value}' for key, value in attributes.items())}"
    for key in attributes:
        if not codec.knows_port(key):
            raise KernelRefused(f"cannot {doing}: a bridge port has no attribute {key}")
    fields = {"family": codec.AF_BRIDGE, "index": index(socket, name, doing)}
    nested = ("IFLA_PROTINFO", {"attrs": codec.named(dict(attributes))}, NESTED)
    socket.request(Request(codec.SETLINK, 0, doing, fields, [nested], needs="bridge ports"))


def check_name(name: str, doing: str) -> None:
    """Raises KernelRefused for a name that the kernel would expand (``%``) or that is none."""
    problem = identity.link_name_problem(name)
    if problem:
        raise KernelRefused(f"cannot {doing}: the link name {name!r} {problem}")


def index_of(message: memoryview | bytes) -> int:
    """The index in the fixed part of a link message."""
    return int(struct.unpack_from("=i", message, 20)[0])


def of_bridge(message: memoryview) -> bool:
    """Whether a link message tells of a bridge port (which has left its bridge) and not of the link itself."""
    return message[16] == codec.AF_BRIDGE
