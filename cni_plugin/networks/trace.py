"""``weft trace``: the way of a packet between containers, this host and other machines.

``weft.kernel.trace`` follows it; here containers are found by what attachments' records say of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from ipaddress import ip_address
from shlex import quote

from cni_plugin.networks import attachments
from cni_plugin.networks.attachments import Endpoint
from cni_plugin.networks.live import Live, compare
from cni_plugin.service.context import ServiceContext
from cni_plugin.service.records import Record
from weft import identity
from weft.errors import BadOption, UnknownContainer, WeftError
from weft.kernel.interface import Namespace
from weft.kernel.linux.live import LivePacket
from weft.kernel.route_lookup import RouteQuestion, RouteType
from weft.kernel.trace.hops import Place, Way
from weft.kernel.trace.packet import EPHEMERAL, Packet
from weft.kernel.trace.walk import Walk
from weft.kernel.values import Link
from weft.types import Address

HOST = "host"
_NAMED = "/run/netns/"


@dataclass(frozen=True, slots=True)
class Question:
    """From where to where: a container (its id, a unique prefix, or ID/IFNAME), ``host``, or an address.

    ``version`` 0 is that of the addresses, IPv4 first.
    """

    start: str
    end: str
    protocol: str = "tcp"
    port: int = 0
    version: int = 0


@dataclass(frozen=True, slots=True)
class Traced:
    """The packet as it was sent, and its way; ``live`` is what became of a real one, None without one."""

    packet: Packet
    way: Way
    live: Live | None = None


def trace(context: ServiceContext, question: Question, *, live: bool = False) -> Traced:
    """Follow the packet, and with ``live`` send it. Raises UnknownContainer, BadOption and KernelRefused."""
    with _containers(context) as containers, ExitStack() as undo:
        target = containers.address(question.end, question)
        protocol = _protocol(question.protocol, target)
        outside = _as_address(question.start)
        start = None if question.start == HOST else containers.start(question.start, outside)
        real: LivePacket | None = None
        if live:
            if start is None and question.start != HOST:
                raise BadOption(f"--live sends from a container or this host, and {question.start} is neither")
            real = LivePacket(start.namespace.id if start else None, target, protocol, question.port)
            undo.callback(real.close)
        sent: list[Packet] = []

        def packet(source: Address) -> Packet:
            port = real.bind(source) if real is not None else EPHEMERAL
            sent.append(Packet(source, target, protocol, port, question.port))
            return sent[0]

        walk = Walk(context.kernel.host, context.kernel.rules, containers.behind, containers.owner)
        if question.start == HOST:
            way = walk.from_host(target, packet)
        elif start is not None:
            way = walk.from_container(start, target, packet)
        else:
            assert outside is not None
            way = walk.from_link(containers.link_to(outside), packet(outside))
        if not sent:
            return Traced(Packet(target, target, question.protocol, port=question.port), way)
        found = compare(sent[0], way, walk.matches, real.send(), walk.text) if real is not None else None
        return Traced(sent[0], way, found)


def _protocol(name: str, target: Address) -> str:
    return "icmpv6" if name == "icmp" and target.version == 6 else name


def _as_address(text: str) -> Address | None:
    try:
        return ip_address(text)
    except ValueError:
        return None


class _Containers:
    """The attached containers. Of their records only those are parsed that a question is about, and their
    namespaces are opened when they are looked at.
    """

    def __init__(self, context: ServiceContext) -> None:
        self._context = context
        self._owners: dict[Address, Place | None] = {}
        self._opened: dict[str, Namespace] = {}

    def close(self) -> None:
        for namespace in self._opened.values():
            namespace.close()

    def behind(self, link: Link) -> Place | None:
        """The container whose veth has this end on the host, by its mark; None also where it is gone."""
        digest = identity.mark_digest(link.alias) if link.kind == "veth" else ""
        return self._open(self._context.records.read_digest(digest) if digest else None)

    def _open(self, record: Record | None) -> Place | None:
        if record is not None and not self._context.is_gone(record.namespace):
            with suppress(WeftError):
                return self.place(record)
        return None

    def place(self, record: Record) -> Place:
        path = record.namespace.path
        if path not in self._opened:
            self._opened[path] = self._context.kernel.open(path)
        named = f"ip netns exec {quote(path.removeprefix(_NAMED))} "
        prefix = named if path.startswith(_NAMED) else f"nsenter --net={quote(path)} "
        return Place(record.attachment.container, self._opened[path], prefix)

    def find(self, text: str) -> Endpoint:
        container, _, interface = text.partition("/")
        found = attachments.find(self._context, container, interface)
        if not found:
            hint = 'specify the id of a container of weft ps, an address, or "host"'
            raise UnknownContainer(f"{text} is not attached", hint=hint)
        return found[0]

    def owner(self, address: Address) -> Place | None:
        """The container that has an address, None for another machine's and where its namespace is gone."""
        if address not in self._owners:
            found = (self._open(one) for one in self._context.records.containing(f'"{address}/') if _has(one, address))
            self._owners[address] = next(filter(None, found), None)
        return self._owners[address]

    def start(self, text: str, address: Address | None) -> Place | None:
        """The container that sends, None for another machine's address."""
        return self.owner(address) if address is not None else self.place(self.find(text).records[0])

    def address(self, text: str, question: Question) -> Address:
        """The destination: an address, that of a container, or the host's on the container's network."""
        version = question.version
        if (literal := _as_address(text)) is not None:
            if version not in (0, literal.version):
                raise BadOption(f"{text} is no IPv{version} address")
            return literal
        if text == HOST:
            start = None if question.start == HOST or _as_address(question.start) else self.find(question.start)
            own = [ip.gateway for ip in start.result.ips if ip.gateway] if start else []
            mine = [cidr.ip for _, cidr in self._context.kernel.host.all_addresses() if not cidr.ip.is_loopback]
            found = [*own, *mine]
        else:
            found = [ip_address(one.partition("/")[0]) for one in self.find(text).addresses]
        chosen = [one for one in found if version in (0, one.version)]
        if not chosen:
            raise BadOption(f"{text} has no {f'IPv{version} ' if version else ''}address")
        return min(chosen, key=lambda one: one.version)

    def link_to(self, source: Address) -> str:
        """The link that packets from an address come in by: where the route to it leads."""
        route = self._context.kernel.host.find_route(RouteQuestion(source))
        if route.type is not RouteType.UNICAST:
            raise BadOption(f"{source} is not an address that packets come from: its route is {route.type}")
        return route.link


@contextmanager
def _containers(context: ServiceContext) -> Iterator[_Containers]:
    found = _Containers(context)
    try:
        yield found
    finally:
        found.close()


def _has(record: Record, address: Address) -> bool:
    """Whether a container's attachment has an address."""
    return any(ip.address.ip == address for ip in record.result.ips)
