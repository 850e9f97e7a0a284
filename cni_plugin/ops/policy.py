"""Operations on how a container's packets find their way: rules, routes moved to other tables, VRFs, isolated ports.

Sources: ip-rule(8), ip-vrf(8), ``Documentation/networking/vrf.rst``, bridge(8).
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, replace

from cni_plugin.ops.addresses import LinkRoute, namespace_of
from cni_plugin.ops.links import Port, has_mark, nsenter
from cni_plugin.ops.operation import LinkRef, Machine, Operation
from weft.errors import Conflict, Exists, KernelRefused, Missing
from weft.kernel.canonical import canonical
from weft.kernel.interface import KernelRoute, Namespace, RoutingRule
from weft.types import Cidr, Side

_MAIN = 254


@dataclass(frozen=True, slots=True)
class RoutedFrom(Operation):
    """In the container, packets from an address are routed by a table of their own."""

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
class RouteMoved(Operation):
    """A route of the container's link is not where it was; ``to`` is the one that stands for it, if any."""

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
        # Where its address or link is gone the route cannot be again, and nobody misses it.
        if machine.container is not None:
            with contextlib.suppress(KernelRefused):
                machine.container.add_route(self.route)

    def mismatch(self, machine: Machine) -> str | None:
        wanted = canonical(self.route)
        there = namespace_of(machine, Side.CONTAINER, self.route.link).routes(
            link=self.route.link, table=wanted.route.table or _MAIN
        )
        # The kernel adds what belongs to an address again whenever that is added anew.
        if any(one.route == wanted.route for one in there):
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
    """Whether an operation's route is the one that the kernel shows."""
    there = (earlier.side, earlier.route.link, canonical(earlier.route).route)
    return there == (Side.CONTAINER, route.link, canonical(route).route)


@dataclass(frozen=True, slots=True)
class Vrf(Operation):
    """A virtual routing domain of the container with a table of its own; it goes with its last link.

    Without an alias it was there before, and is used as it is.
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
            raise Conflict(f"{self.name} is a {link.kind or 'physical'} link and no VRF", hint="use another vrfname")
        return False

    def undo(self, machine: Machine) -> None:
        container = machine.container
        link = container.link(self.name) if container is not None else None
        if container is None or link is None or link.kind != "vrf":
            return
        # Any of weft's marks will do: the attachment that made it may be gone, and this be the last.
        if not has_mark(link, self.alias) and not link.alias.startswith("weft:"):
            return
        if not any(port.master == self.name for port in container.links()):
            with contextlib.suppress(Missing):
                container.delete_link(self.name)

    def mismatch(self, machine: Machine) -> str | None:
        link = namespace_of(machine, Side.CONTAINER, self.name).link(self.name)
        if link is None or link.kind != "vrf":
            return f"the VRF {self.name} is missing"
        if link.options.get("vrf_table") != self.table:
            return f"the VRF {self.name} has the table {link.options.get('vrf_table')} instead of {self.table}"
        return None if link.up else f"the VRF {self.name} is down"

    def commands(self, namespace: str) -> tuple[str, ...]:
        inside = nsenter(Side.CONTAINER, namespace)
        return (f"{inside}ip link add {self.name} type vrf table {self.table}", f"{inside}ip link set {self.name} up")


@dataclass(frozen=True, slots=True)
class InVrf(Operation):
    """A link of the container is in a VRF, its routes are in the VRF's table.

    The kernel takes a link down and up as it enters or leaves, so that routes (all) and addresses (of IPv6) may go
    with it: ``addresses`` and ``routes`` are put back on either side.
    """

    link: str
    vrf: str
    table: int
    addresses: tuple[Cidr, ...] = ()
    routes: tuple[KernelRoute, ...] = ()

    @property
    def on_link(self) -> LinkRef | None:
        return (Side.CONTAINER, self.link)

    def apply(self, machine: Machine) -> bool:
        container = namespace_of(machine, Side.CONTAINER, self.link)
        container.change_link(self.link, master=self.vrf)
        self._restore(container, self.table)
        return True

    def undo(self, machine: Machine) -> None:
        container = machine.container
        link = container.link(self.link) if container is not None else None
        if container is None or link is None or link.master != self.vrf:
            return
        with contextlib.suppress(KernelRefused):
            container.change_link(self.link, master="")
            self._restore(container, 0)

    def _restore(self, container: Namespace, table: int) -> None:
        for address in self.addresses:
            with contextlib.suppress(Exists):
                container.add_address(self.link, address)
        for route in self.routes:
            with contextlib.suppress(Exists):
                container.add_route(self._in(route, table) if table else route)

    @staticmethod
    def _in(route: KernelRoute, table: int) -> KernelRoute:
        return replace(route, route=replace(route.route, table=table))

    def mismatch(self, machine: Machine) -> str | None:
        container = namespace_of(machine, Side.CONTAINER, self.link)
        link = container.link(self.link)
        if link is None or link.master != self.vrf:
            return f"{self.link} is not in the VRF {self.vrf}"
        there = [one.route for one in container.routes(link=self.link, table=self.table)]
        for route in self.routes:
            if canonical(self._in(route, self.table)).route not in there:
                return f"the route {route.route.destination} of {self.link} is missing in the table {self.table}"
        return None

    def adapt(self, earlier: Operation) -> Operation:
        if isinstance(earlier, LinkRoute) and (earlier.side, earlier.route.link) == (Side.CONTAINER, self.link):
            return replace(earlier, route=self._in(earlier.route, self.table))
        return earlier

    def commands(self, namespace: str) -> tuple[str, ...]:
        return (f"{nsenter(Side.CONTAINER, namespace)}ip link set {self.link} master {self.vrf}",)


@dataclass(frozen=True, slots=True)
class Isolated(Operation):
    """A bridge's port that exchanges frames with no other such port, only with the bridge's own side."""

    link: str

    @property
    def on_link(self) -> LinkRef | None:
        return (Side.HOST, self.link)

    def apply(self, machine: Machine) -> bool:
        link = machine.host.link(self.link)
        if link is not None and not link.port:
            return False  # no port: there are no siblings to be kept from
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

    def commands(self, namespace: str) -> tuple[str, ...]:
        return (f"bridge link set dev {self.link} isolated on",)
