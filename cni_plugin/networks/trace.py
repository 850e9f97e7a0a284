"""``weft trace``: the way of a packet between containers, this host and other machines.

``weft.kernel.trace`` follows it; here containers are found by what attachments' records say of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from ipaddress import ip_address

from cni_plugin.networks import attachments
from cni_plugin.networks.attachments import Endpoint, State
from cni_plugin.service.context import ServiceContext
from weft.errors import BadOption, UnknownContainer, WeftError
from weft.kernel.interface import Namespace
from weft.kernel.route_lookup import RouteQuestion, RouteType
from weft.kernel.trace.hops import Place, Way
from weft.kernel.trace.packet import Packet
from weft.kernel.trace.walk import Walk
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
    """The packet as it was sent, and its way."""

    packet: Packet
    way: Way


def trace(context: ServiceContext, question: Question) -> Traced:
    """Follow the packet. Raises UnknownContainer, BadOption and KernelRefused."""
    with _containers(context) as containers:
        target = containers.address(question.end, question)
        sent: list[Packet] = []

        def packet(source: Address) -> Packet:
            sent.append(Packet(source, target, _protocol(question.protocol, target), port=question.port))
            return sent[0]

        walk = Walk(context.kernel.host, containers.behind, containers.owner)
        if question.start == HOST:
            way = walk.from_host(target, packet)
        elif (source := _as_address(question.start)) is not None and containers.owner(source) is None:
            way = walk.from_link(containers.link_to(source), packet(source))
        else:
            start = containers.place(containers.find(question.start)) if source is None else containers.owner(source)
            assert start is not None
            way = walk.from_container(start, target, packet)
        made = sent[0] if sent else Packet(target, target, question.protocol, port=question.port)
        return Traced(made, way)


def _protocol(name: str, target: Address) -> str:
    return "icmpv6" if name == "icmp" and target.version == 6 else name


def _as_address(text: str) -> Address | None:
    try:
        return ip_address(text)
    except ValueError:
        return None


class _Containers:
    """The attached containers, whose namespaces are opened when they are looked at."""

    def __init__(self, context: ServiceContext) -> None:
        self._context = context
        self._endpoints = [one for one in attachments.endpoints(context) if one.state is not State.GONE]
        veths = {link.name for link in context.kernel.host.links() if link.kind == "veth"}
        self._by_link = {
            each.name: one
            for one in self._endpoints
            for each in one.result.interfaces
            if not each.sandbox and each.name in veths
        }
        self._by_address = {
            ip_address(text.partition("/")[0]): one for one in self._endpoints for text in one.addresses
        }
        self._opened: dict[str, Namespace] = {}

    def close(self) -> None:
        for namespace in self._opened.values():
            namespace.close()

    def behind(self, link: str) -> Place | None:
        """The container whose veth has this end on the host; None also where its namespace is gone."""
        return self._open(self._by_link.get(link))

    def _open(self, endpoint: Endpoint | None) -> Place | None:
        if endpoint is not None:
            with suppress(WeftError):
                return self.place(endpoint)
        return None

    def place(self, endpoint: Endpoint) -> Place:
        path = endpoint.namespace.path
        if path not in self._opened:
            self._opened[path] = self._context.kernel.open(path)
        prefix = f"ip netns exec {path.removeprefix(_NAMED)} " if path.startswith(_NAMED) else f"nsenter --net={path} "
        return Place(endpoint.container, self._opened[path], prefix)

    def find(self, text: str) -> Endpoint:
        container, _, interface = text.partition("/")
        found = attachments.find(self._context, container, interface)
        if not found:
            hint = 'specify the id of a container of weft ps, an address, or "host"'
            raise UnknownContainer(f"{text} is not attached", hint=hint)
        return found[0]

    def owner(self, address: Address) -> Place | None:
        """The container that has an address, None for another machine's and where its namespace is gone."""
        return self._open(self._by_address.get(address))

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


def rule_text(context: ServiceContext, table: str, chain: str, handle: int) -> str:
    """A rule as nft lists it, "" if it is gone."""
    mark = f"# handle {handle}"
    lines = context.kernel.host.nftables_listing(f"chain {table} {chain}").splitlines()
    return next((line.partition(" # handle")[0].strip() for line in lines if line.rstrip().endswith(mark)), "")
