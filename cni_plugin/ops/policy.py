"""Operations on policy routing: rules, routes moved to other tables, VRFs; and isolated bridge ports.

Sources: ip-rule(8), ip-vrf(8), ``Documentation/networking/vrf.rst``, bridge(8).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

from cni_plugin.ops.addresses import LinkRoute, namespace_of
from cni_plugin.ops.bridges import Port
from cni_plugin.ops.devices import ContainerLink
from cni_plugin.ops.links import has_mark, nsenter
from cni_plugin.ops.operation import LinkRef, Machine, Operation, reapply
from weft.errors import Conflict, Exists, KernelRefused, Missing
from weft.kernel.canonical import canonical, describe
from weft.kernel.interface import Namespace
from weft.kernel.values import KernelRoute, RoutingRule
from weft.types import Cidr, Side

_MAIN = 254


@dataclass(frozen=True, slots=True)
class RoutedFrom(Operation):
    """A routing rule in the container: packets from an address use a table of their own."""

    rule: RoutingRule

    def apply(self, machine: Machine) -> bool:
        try:
            namespace_of(machine, Side.CONTAINER, "the routing rule").add_routing_rule(self.rule)
        except Exists:
            return False
        return True

    def undo(self, machine: Machine) -> None:
        if machine.container is not None:
            with contextlib.suppress(Missing):
                machine.container.delete_routing_rule(self.rule)

    def mismatch(self, machine: Machine) -> str | None:
        there = namespace_of(machine, Side.CONTAINER, "the routing rule").routing_rules()
        return None if self.rule in there else f"no routing rule sends {self.rule.source} to table {self.rule.table}"

    def commands(self, namespace: str) -> tuple[str, ...]:
        words = f"from {self.rule.source} table {self.rule.table} protocol {self.rule.protocol}"
        return (f"{nsenter(Side.CONTAINER, namespace)}ip rule add {words}",)


@dataclass(frozen=True, slots=True)
class RoutedBeside(Operation):
    """Packets from the addresses of another ``link`` of the container leave by that link, as those of
    the attachment's ``own`` link leave by this one.

    The other attachment was alone when it was made, and has no such rules of its own. Undo leaves them
    where a third link needs them still; what is of a link that is gone has no effect.
    """

    link: str
    own: str
    rules: tuple[RoutingRule, ...]
    routes: tuple[KernelRoute, ...]

    @property
    def needs(self) -> tuple[LinkRef, ...]:
        return ((Side.CONTAINER, self.link),)

    def apply(self, machine: Machine) -> bool:
        container = namespace_of(machine, Side.CONTAINER, self.link)
        for route in self.routes:
            with contextlib.suppress(Exists, Missing):
                container.add_route(route)
        for rule in self.rules:
            with contextlib.suppress(Exists):
                container.add_routing_rule(rule)
        return True

    def undo(self, machine: Machine) -> None:
        container = machine.container
        if container is None:
            return
        if any(one.link not in ("", "lo", self.link, self.own) for one in container.routes(table=_MAIN)):
            return
        for rule in self.rules:
            with contextlib.suppress(Missing):
                container.delete_routing_rule(rule)
        tables = {rule.table for rule in container.routing_rules()}
        for route in reversed(self.routes):
            if route.route.table not in tables:  # else the other attachment has rules of its own by now
                with contextlib.suppress(KernelRefused):
                    container.delete_route(route)

    def mismatch(self, machine: Machine) -> str | None:
        container = namespace_of(machine, Side.CONTAINER, self.link)
        if container.link(self.link) is None:
            return None
        held = {cidr.ip for cidr in container.addresses(self.link)}
        there = {(rule.source, rule.table) for rule in container.routing_rules()}
        for rule in self.rules:
            if rule.source.network_address in held and (rule.source, rule.table) not in there:
                return f"no routing rule sends {rule.source} to table {rule.table}"
        return None

    def commands(self, namespace: str) -> tuple[str, ...]:
        inside = nsenter(Side.CONTAINER, namespace)
        rules = (f"from {rule.source} table {rule.table} protocol {rule.protocol}" for rule in self.rules)
        return (
            *(f"{inside}ip route append {describe(route)}" for route in self.routes),
            *(f"{inside}ip rule add {words}" for words in rules),
        )


@dataclass(frozen=True, slots=True)
class RouteMoved(Operation):
    """A route deleted from its table; ``to`` is the route in another table that replaces it, if any."""

    route: KernelRoute
    to: KernelRoute | None = None

    @property
    def on_link(self) -> LinkRef | None:
        return (Side.CONTAINER, self.route.link)

    def apply(self, machine: Machine) -> bool:
        try:
            namespace_of(machine, Side.CONTAINER, self.route.link).delete_route(self.route)
        except Missing:
            return False
        return True

    def undo(self, machine: Machine) -> None:
        # If its address or link is gone, the route cannot be added again and is not needed.
        if machine.container is not None:
            with contextlib.suppress(KernelRefused):
                machine.container.add_route(self.route)

    def mismatch(self, machine: Machine) -> str | None:
        wanted = canonical(self.route)
        there = namespace_of(machine, Side.CONTAINER, self.route.link).routes(
            link=self.route.link, table=wanted.route.table or _MAIN
        )
        # The kernel adds the prefix route again whenever the address is added again. Another source or
        # protocol shows a route that was added instead.
        if any(
            (one.route, one.source, one.protocol) == (wanted.route, wanted.source, wanted.protocol) for one in there
        ):
            return f"the route {self.route.route.destination} of {self.route.link} is in its first table again"
        return None

    def adapt(self, earlier: Operation) -> Operation:
        if isinstance(earlier, LinkRoute) and _same(earlier, self.route):
            return self if self.to is None else replace(earlier, route=self.to)
        return earlier

    def commands(self, namespace: str) -> tuple[str, ...]:
        return (
            f"{nsenter(Side.CONTAINER, namespace)}ip route delete {self.route.route.destination} dev {self.route.link}",
        )


def _same(earlier: LinkRoute, route: KernelRoute) -> bool:
    """Whether an operation's route is the one that the kernel dumped."""
    there = (earlier.side, earlier.route.link, canonical(earlier.route).route)
    return there == (Side.CONTAINER, route.link, canonical(route).route)


@dataclass(frozen=True, slots=True)
class Vrf(Operation):
    """A VRF in the container, with its routing table; deleted with its last port.

    Without an alias it existed before, and is used as it is. *Equivalent to:* ``ip link add NAME type
    vrf table N``.
    """

    name: str
    table: int
    alias: str = ""

    def apply(self, machine: Machine) -> bool:
        container = namespace_of(machine, Side.CONTAINER, self.name)
        link = container.link(self.name)
        if link is None:
            options: dict[str, int | str] = {"vrf_table": self.table}
            container.add_link(self.name, "vrf", alias=self.alias, up=True, options=options)
            return True
        if link.kind != "vrf":
            raise Conflict(f"{self.name} is a {link.kind or 'physical'} link, not a VRF", hint="use another vrfname")
        return False

    def undo(self, machine: Machine) -> None:
        container = machine.container
        link = container.link(self.name) if container is not None else None
        if container is None or link is None or link.kind != "vrf":
            return
        # Any mark of weft's will do: the attachment that created it may be gone, and this one be the last.
        if not has_mark(link, self.alias) and not link.alias.startswith("weft:"):
            return
        with contextlib.suppress(Missing):
            if not container.ports(self.name):
                container.delete_link(self.name)

    def mismatch(self, machine: Machine) -> str | None:
        link = namespace_of(machine, Side.CONTAINER, self.name).link(self.name)
        if link is None or link.kind != "vrf":
            return f"the VRF {self.name} is missing"
        if link.options.get("vrf_table") != self.table:
            return f"the VRF {self.name} has the table {link.options.get('vrf_table')} instead of {self.table}"
        return None if link.up else f"the VRF {self.name} is down"

    def is_repairable(self, machine: Machine) -> bool:
        return namespace_of(machine, Side.CONTAINER, self.name).link(self.name) is None

    def commands(self, namespace: str) -> tuple[str, ...]:
        inside = nsenter(Side.CONTAINER, namespace)
        return (f"{inside}ip link add {self.name} type vrf table {self.table}", f"{inside}ip link set {self.name} up")


@dataclass(frozen=True, slots=True)
class InVrf(Operation):
    """A link of the container is a port of a VRF, and its routes of the main table are in the VRF's.

    The kernel sets a link down and up as it enters or leaves a VRF, which takes its routes and its IPv6
    addresses: all of ``addresses`` and ``routes`` are added again both times. ``without_route`` are
    addresses without the kernel's route to their subnet. Raises Conflict if the link has another master.
    *Equivalent to:* ``ip link set LINK master VRF``.
    """

    link: str
    vrf: str
    table: int
    addresses: tuple[Cidr, ...] = ()
    routes: tuple[KernelRoute, ...] = ()
    without_route: tuple[Cidr, ...] = ()

    @property
    def on_link(self) -> LinkRef | None:
        return (Side.CONTAINER, self.link)

    def apply(self, machine: Machine) -> bool:
        container = namespace_of(machine, Side.CONTAINER, self.link)
        link = container.link(self.link)
        if link is not None and link.master not in ("", self.vrf):
            raise Conflict(
                f"{self.link} cannot enter the VRF {self.vrf}: it is a port of {link.master}",
                hint=f"remove vrf, or what makes it a port of {link.master}",
            )
        container.change_link(self.link, master=self.vrf)
        for step in self._restoration(container, self.routes, [self._moved(route) for route in self.routes]):
            with contextlib.suppress(Exists):
                step()
        return True

    def undo(self, machine: Machine) -> None:
        container = machine.container
        link = container.link(self.link) if container is not None else None
        if container is None or link is None or link.master != self.vrf:
            return
        try:
            container.change_link(self.link, master="")
        except KernelRefused:
            return
        for step in self._restoration(container, [self._moved(route) for route in self.routes], self.routes):
            with contextlib.suppress(KernelRefused):
                step()

    def _restoration(
        self, container: Namespace, before: Sequence[KernelRoute], after: Sequence[KernelRoute]
    ) -> Iterator[Callable[[], None]]:
        """What adds the addresses and routes again. An IPv6 route that has next hops on other links has
        stayed in its former table, and is deleted there.
        """
        for prefix_route, addresses in ((True, self.addresses), (False, self.without_route)):
            for address in addresses:
                yield partial(container.add_address, self.link, address, prefix_route=prefix_route)
        for old, new in zip(before, after, strict=True):
            if old.route.destination.version == 6 and old != new:
                with contextlib.suppress(Missing):
                    container.delete_route(old)
            yield partial(container.add_route, new)

    def _moved(self, route: KernelRoute) -> KernelRoute:
        """The route in the VRF's table, if it is of the main table."""
        if (route.route.table or _MAIN) != _MAIN:
            return route
        return replace(route, route=replace(route.route, table=self.table))

    def mismatch(self, machine: Machine) -> str | None:
        container = namespace_of(machine, Side.CONTAINER, self.link)
        link = container.link(self.link)
        if link is None or link.master != self.vrf:
            return f"{self.link} is not in the VRF {self.vrf}"
        there = [one.route for one in container.routes(link=self.link)]
        for route in self.routes:
            moved = canonical(self._moved(route)).route
            if moved not in there:
                return f"the route {moved.destination} of {self.link} is missing in the table {moved.table or _MAIN}"
        return None

    def adapt(self, earlier: Operation) -> Operation:
        if isinstance(earlier, LinkRoute) and earlier.on_link == self.on_link:
            return replace(earlier, route=self._moved(earlier.route))
        if isinstance(earlier, ContainerLink) and (Side.CONTAINER, earlier.name) == self.on_link:
            return replace(earlier, master=self.vrf)
        return earlier

    def commands(self, namespace: str) -> tuple[str, ...]:
        return (f"{nsenter(Side.CONTAINER, namespace)}ip link set {self.link} master {self.vrf}",)


@dataclass(frozen=True, slots=True)
class Isolated(Operation):
    """A bridge port isolated from other isolated ports. *Equivalent to:* ``bridge link set dev LINK
    isolated on``.
    """

    link: str

    @property
    def on_link(self) -> LinkRef | None:
        return (Side.HOST, self.link)

    def apply(self, machine: Machine) -> bool:
        link = machine.host.link(self.link)
        if link is not None and not link.port:
            return False  # not a bridge port
        machine.host.change_port(self.link, {"brport_isolated": 1})
        return True

    def undo(self, machine: Machine) -> None:
        link = machine.host.link(self.link)
        if link is not None and link.port:
            with contextlib.suppress(Missing):
                machine.host.change_port(self.link, {"brport_isolated": 0})

    def mismatch(self, machine: Machine) -> str | None:
        link = machine.host.link(self.link)
        if link is None:
            return f"the host's link {self.link} is missing"
        return f"the port {self.link} is not isolated" if link.port.get("brport_isolated", 1) != 1 else None

    def adapt(self, earlier: Operation) -> Operation:
        return replace(earlier, isolated=True) if isinstance(earlier, Port) and earlier.link == self.link else earlier

    def restore(self, machine: Machine) -> bool:
        return reapply(self, machine)

    def commands(self, namespace: str) -> tuple[str, ...]:
        return (f"bridge link set dev {self.link} isolated on",)
