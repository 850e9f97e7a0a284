"""Operations on addresses, routes and kernel settings."""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass

from cni_plugin.ops.links import nsenter, retry_while_exists
from cni_plugin.ops.operation import LinkRef, Machine, Operation
from weft.errors import Busy, Conflict, Exists, KernelRefused, Missing
from weft.kernel.canonical import canonical
from weft.kernel.interface import KernelRoute, Namespace
from weft.types import Cidr, Side


def namespace_of(machine: Machine, side: Side, link: str) -> Namespace:
    """The side's namespace; raises Missing where it is gone."""
    namespace = machine.side(side)
    if namespace is None:
        raise Missing(f"the container's network namespace is gone, and {link} with it")
    return namespace


@dataclass(frozen=True, slots=True)
class LinkAddress(Operation):
    """A link has an address. Without ``prefix_route`` the kernel adds no route for its subnet."""

    side: Side
    link: str
    address: Cidr
    prefix_route: bool = True

    @property
    def on_link(self) -> LinkRef | None:
        return (self.side, self.link)

    def apply(self, machine: Machine) -> bool:
        namespace = namespace_of(machine, self.side, self.link)
        try:
            namespace.add_address(self.link, self.address, prefix_route=self.prefix_route)
        except Exists:
            if self.address in namespace.addresses(self.link):
                return False
            retry_while_exists(lambda: namespace.add_address(self.link, self.address, prefix_route=self.prefix_route))
        return True

    def undo(self, machine: Machine) -> None:
        namespace = machine.side(self.side)
        if namespace is not None:
            with contextlib.suppress(Missing):
                namespace.delete_address(self.link, self.address)

    def mismatch(self, machine: Machine) -> str | None:
        namespace = namespace_of(machine, self.side, self.link)
        if self.address in namespace.addresses(self.link):
            return None
        return f"{self.link} lacks the address {self.address}"

    def commands(self, namespace: str) -> tuple[str, ...]:
        word = "" if self.prefix_route else " noprefixroute"
        return (f"{nsenter(self.side, namespace)}ip address add {_added(self.address)} dev {self.link}{word}",)


@dataclass(frozen=True, slots=True)
class Gateways(Operation):
    """The gateway addresses of a network on its bridge, and no other's.

    Another IPv4 address, or an IPv6 one of an overlapping subnet, is a conflict unless it is one of ``siblings``,
    the gateways of the network's other subnets; with ``force`` it is removed. ``before`` are those of the
    addresses that were there before weft was, and so stay.
    """

    link: str
    addresses: tuple[Cidr, ...]
    siblings: tuple[Cidr, ...] = ()
    force: bool = False
    before: tuple[Cidr, ...] = ()

    @property
    def on_link(self) -> LinkRef | None:
        return (Side.HOST, self.link)

    def _there(self, machine: Machine) -> tuple[Cidr, ...]:
        """The link's addresses of the versions that matter."""
        versions = sorted({address.version for address in self.addresses})
        return tuple(one for version in versions for one in machine.host.addresses(self.link, version))

    def _strangers(self, there: tuple[Cidr, ...]) -> list[Cidr]:
        wanted = {*self.addresses, *self.siblings}
        versions = {address.version for address in self.addresses}
        return [
            one
            for one in there
            if one not in wanted
            and one.version in versions
            and (one.version == 4 or any(_overlap(one, address) for address in self.addresses))
        ]

    def apply(self, machine: Machine) -> bool:
        there = self._there(machine)
        strangers = self._strangers(there)
        if strangers and not self.force:
            wanted = ", ".join(map(str, self.addresses))
            raise Conflict(
                f"{self.link} already has the IP address {strangers[0]}, different from {wanted}",
                hint="use another bridge, remove that address, or set forceAddress",
            )
        for stranger in strangers:
            with contextlib.suppress(Missing):
                machine.host.delete_address(self.link, stranger)
        changed = bool(strangers)
        for address in self.addresses:
            if address not in there:
                with contextlib.suppress(Exists):
                    machine.host.add_address(self.link, address)
                changed = True
        return changed

    def undo(self, machine: Machine) -> None:
        for address in self.addresses:
            if address not in self.before:
                with contextlib.suppress(Missing):
                    machine.host.delete_address(self.link, address)

    def mismatch(self, machine: Machine) -> str | None:
        there = self._there(machine)
        for address in self.addresses:
            if address not in there:
                return f"{self.link} lacks the gateway address {address}"
        strangers = self._strangers(there)
        return f"{self.link} has the address {strangers[0]} besides the gateway's" if strangers else None

    def commands(self, namespace: str) -> tuple[str, ...]:
        return tuple(f"ip address add {_added(address)} dev {self.link}" for address in self.addresses)


def _added(address: Cidr) -> str:
    """An address as ``ip address add`` takes it: the kernel does not work out the broadcast address by itself."""
    return f"{address} broadcast +" if address.version == 4 and address.network.prefixlen < 31 else str(address)


def _overlap(one: Cidr, other: Cidr) -> bool:
    return (one.version == other.version and one.ip in other.network) or other.ip in one.network


@dataclass(frozen=True, slots=True)
class LinkRoute(Operation):
    """A route over a link."""

    side: Side
    route: KernelRoute

    @property
    def on_link(self) -> LinkRef | None:
        return (self.side, self.route.link)

    def apply(self, machine: Machine) -> bool:
        try:
            namespace_of(machine, self.side, self.route.link).add_route(self.route)
        except Exists:
            if self.mismatch(machine) is not None:
                raise
            return False
        return True

    def undo(self, machine: Machine) -> None:
        namespace = machine.side(self.side)
        if namespace is not None:
            with contextlib.suppress(Missing):
                namespace.delete_route(self.route)

    def mismatch(self, machine: Machine) -> str | None:
        # The kernel leaves out what is the default; so must what is compared with it.
        wanted = canonical(self.route).route
        namespace = namespace_of(machine, self.side, self.route.link)
        found = namespace.routes(link=self.route.link, family=wanted.destination.version, table=wanted.table or 254)
        if any(one.route == wanted for one in found):
            return None
        near = next((one for one in found if one.route.destination == wanted.destination), None)
        text = _text(self.route)
        return f"the route {text} is missing" if near is None else f"the route {text} is now {_text(near)}"

    def commands(self, namespace: str) -> tuple[str, ...]:
        return (f"{nsenter(self.side, namespace)}ip route append {_text(self.route)} proto {self.route.protocol}",)


def _text(wanted: KernelRoute) -> str:
    """A route in the words of ``ip route``."""
    route = wanted.route
    parts = [str(route.destination)]
    if route.gateway is not None:
        parts.append(f"via {route.gateway}")
    parts.append(f"dev {wanted.link}")
    if wanted.source is not None:
        parts.append(f"src {wanted.source}")
    names = ("mtu", route.mtu), ("advmss", route.advmss), ("metric", route.priority), ("table", route.table)
    parts += [f"{name} {value}" for name, value in (*names, ("scope", route.scope)) if value is not None]
    if wanted.onlink:
        parts.append("onlink")
    return " ".join(parts)


@dataclass(frozen=True, slots=True)
class Setting(Operation):
    """A kernel setting (sysctl). ``link`` is the link it belongs to, if any.

    ``before`` is the value to go back to; None leaves it, for what others may have come to rely on (forwarding).
    ``optional`` settings belong to a protocol that the kernel may lack or have switched off (IPv6).
    """

    side: Side
    key: str
    value: str
    link: str = ""
    before: str | None = None
    optional: bool = False

    @property
    def on_link(self) -> LinkRef | None:
        return (self.side, self.link) if self.link else None

    def apply(self, machine: Machine) -> bool:
        namespace = namespace_of(machine, self.side, self.key)
        try:
            namespace.set_sysctl(self.key, self.value)
        except Missing:
            if not self.optional:
                raise
            return False
        except KernelRefused:
            if not same_setting(namespace.sysctl(self.key), self.value):  # it cannot be written, and need not
                raise
            return False
        return True

    def undo(self, machine: Machine) -> None:
        namespace = machine.side(self.side)
        if namespace is None or self.before is None or not same_setting(namespace.sysctl(self.key), self.value):
            return
        with contextlib.suppress(KernelRefused):
            namespace.set_sysctl(self.key, self.before)

    def mismatch(self, machine: Machine) -> str | None:
        there = namespace_of(machine, self.side, self.key).sysctl(self.key)
        if same_setting(there, self.value) or (there is None and self.optional):
            return None
        return f"{self.key} is {there} instead of {self.value} in the {self.side}"

    def commands(self, namespace: str) -> tuple[str, ...]:
        return (f"{nsenter(self.side, namespace)}sysctl -w {self.key}={self.value}",)


def same_setting(there: str | None, value: str) -> bool:
    """Whether the kernel shows the value; it has tabs between several numbers where a person writes spaces."""
    return there is not None and there.split() == value.split()


@dataclass(frozen=True, slots=True)
class Detection(Operation):
    """Duplicate address detection of the container's IPv6 addresses is over, and found no other owner.

    Waits at most ``seconds``. Source: RFC 4862 section 5.4.
    """

    link: str
    seconds: int = 5

    @property
    def on_link(self) -> LinkRef | None:
        return (Side.CONTAINER, self.link)

    def apply(self, machine: Machine) -> bool:
        namespace = namespace_of(machine, Side.CONTAINER, self.link)
        deadline = time.monotonic() + self.seconds
        while True:
            running, failed = namespace.tentative(self.link)
            if failed:
                raise Conflict(f"an IPv6 address of {self.link} is somebody else's already")
            if not running:
                return False
            if time.monotonic() >= deadline:
                raise Busy(f"duplicate address detection on {self.link} takes longer than {self.seconds} s")
            time.sleep(0.05)

    def undo(self, machine: Machine) -> None:
        return None

    def mismatch(self, machine: Machine) -> str | None:
        _, failed = namespace_of(machine, Side.CONTAINER, self.link).tentative(self.link)
        return f"an IPv6 address of {self.link} is somebody else's" if failed else None

    def commands(self, namespace: str) -> tuple[str, ...]:
        return (f"# wait until no address of {self.link} is tentative",)
