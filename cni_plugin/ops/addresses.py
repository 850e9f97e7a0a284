"""Operations on addresses, routes and sysctls."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from ipaddress import ip_interface

from cni_plugin.ops.links import nsenter, retry_while_exists
from cni_plugin.ops.operation import LinkRef, Machine, Operation, reapply
from weft import identity
from weft.errors import Busy, Conflict, Exists, KernelRefused, Missing
from weft.kernel.canonical import canonical
from weft.kernel.interface import Namespace
from weft.kernel.values import KernelRoute
from weft.types import Cidr, Side


def namespace_of(machine: Machine, side: Side, link: str) -> Namespace:
    """The namespace of that side; raises Missing if it is gone."""
    namespace = machine.side(side)
    if namespace is None:
        raise Missing(f"the container's network namespace is gone, and {link} with it")
    return namespace


@dataclass(frozen=True, slots=True)
class LinkAddress(Operation):
    """An address of a link. *Equivalent to:* ``ip address add ADDRESS dev LINK``, with noprefixroute
    unless ``prefix_route``.
    """

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
        if self.address in namespace.addresses(self.link, self.address.version):
            return None
        return f"{self.link} lacks the address {self.address}"

    def is_repairable(self, machine: Machine) -> bool:
        """Unless the link has it with another prefix length, which somebody has put in its place."""
        there = namespace_of(machine, self.side, self.link).addresses(self.link, self.address.version)
        return all(one.ip != self.address.ip for one in there)

    def restore(self, machine: Machine) -> bool:
        return self.side is Side.HOST and reapply(self, machine)

    def commands(self, namespace: str) -> tuple[str, ...]:
        word = "" if self.prefix_route else " noprefixroute"
        return (f"{nsenter(self.side, namespace)}ip address add {_added(self.address)} dev {self.link}{word}",)


@dataclass(frozen=True, slots=True)
class Gateways(Operation):
    """The gateway addresses of a network on its bridge.

    Any other IPv4 address, or an IPv6 address of an overlapping subnet, is a conflict, or removed with
    ``force``, unless it is in ``siblings``: the gateways of the network's other subnets. ``before`` are
    those of the addresses that the bridge had before weft used it, which undo leaves.

    ``anycast``: every host has them, so they are the host's alone as /32 of scope link, and fe80::1 for
    IPv6; ``addresses`` have the prefix length of the network's subnet.
    """

    link: str
    addresses: tuple[Cidr, ...]
    siblings: tuple[Cidr, ...] = ()
    force: bool = False
    before: tuple[Cidr, ...] = ()
    anycast: bool = False

    @property
    def on_link(self) -> LinkRef | None:
        return (Side.HOST, self.link)

    @property
    def held(self) -> tuple[Cidr, ...]:
        """The addresses as the link has them."""
        return tuple(map(_anycast, self.addresses)) if self.anycast else self.addresses

    def excludes(self, other: Gateways) -> bool:
        """Whether the host cannot have both: another link with one of the subnets."""
        links = self.link != other.link
        return links and any(_overlap(one, another) for one in self.addresses for another in other.addresses)

    def _there(self, machine: Machine) -> tuple[Cidr, ...]:
        """The link's addresses of the gateways' IP versions."""
        versions = sorted({address.version for address in self.addresses})
        return tuple(one for version in versions for one in machine.host.addresses(self.link, version))

    def _foreign(self, there: tuple[Cidr, ...]) -> list[Cidr]:
        wanted = {*self.held, *self.siblings}
        versions = {address.version for address in self.addresses}
        return [
            one
            for one in there
            if one not in wanted
            and one.version in versions
            and (one.version == 4 or any(_overlap(one, address) for address in self.addresses))
            and not (self.anycast and self._is_own(one))
        ]

    def _is_own(self, one: Cidr) -> bool:
        """Whether an address beside anycast gateways may be the host's own of the network."""
        single = one.network.num_addresses == 1
        return single and any(one.version == each.version and one.ip in each.network for each in self.addresses)

    def apply(self, machine: Machine) -> bool:
        there = self._there(machine)
        foreign = self._foreign(there)
        if foreign and not self.force:
            wanted = ", ".join(map(str, self.addresses))
            raise Conflict(
                f"{self.link} already has the IP address {foreign[0]}, different from {wanted}",
                hint="use another bridge, delete that address, or set forceAddress",
            )
        for address in foreign:
            with contextlib.suppress(Missing):
                machine.host.delete_address(self.link, address)
        changed = bool(foreign)
        for address in self.held:
            if address not in there:
                with contextlib.suppress(Exists):
                    machine.host.add_address(self.link, address, link_scope=self.anycast)
                changed = True
        return changed

    def replaces(self, earlier: Operation) -> bool:
        if not isinstance(earlier, Gateways) or earlier.link != self.link:
            return False
        return not {*earlier.addresses} <= {*self.addresses, *self.siblings}

    def undo(self, machine: Machine) -> None:
        for address in self.held:
            if address not in self.before:
                with contextlib.suppress(Missing):
                    machine.host.delete_address(self.link, address)

    def sparing(self, kept: Operation) -> Operation:
        if isinstance(kept, Gateways) and kept.link == self.link:
            return replace(self, before=self.before + kept.held)
        return self

    def mismatch(self, machine: Machine) -> str | None:
        there = self._there(machine)
        for address in self.held:
            if address not in there:
                return f"{self.link} lacks the gateway address {address}"
        foreign = self._foreign(there)
        return f"{self.link} has the address {foreign[0]} besides the gateway's" if foreign else None

    def commands(self, namespace: str) -> tuple[str, ...]:
        scope = " scope link" if self.anycast else ""
        return tuple(f"ip address add {_added(address)} dev {self.link}{scope}" for address in self.held)


def _anycast(address: Cidr) -> Cidr:
    return ip_interface(address.ip) if address.version == 4 else ip_interface((identity.OVERLAY_GATEWAY6, 64))


def _added(address: Cidr) -> str:
    """An address as ``ip address add`` takes it; the kernel does not derive the broadcast address
    itself.
    """
    return f"{address} broadcast +" if address.version == 4 and address.network.prefixlen < 31 else str(address)


def _overlap(one: Cidr, other: Cidr) -> bool:
    return (one.version == other.version and one.ip in other.network) or other.ip in one.network


@dataclass(frozen=True, slots=True)
class LinkRoute(Operation):
    """A route over a link. *Equivalent to:* ``ip route append ROUTE dev LINK``."""

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
        # A dump leaves out default values, so they are left out here, too.
        wanted = canonical(self.route).route
        found = self._there(machine)
        if any(one.route == wanted for one in found):
            return None
        near = self._near(found)
        text = _text(self.route)
        return f"the route {text} is missing" if near is None else f"the route {text} is now {_text(near)}"

    def _there(self, machine: Machine) -> tuple[KernelRoute, ...]:
        """The routes over the link in the table."""
        wanted = self.route.route
        namespace = namespace_of(machine, self.side, self.route.link)
        return tuple(
            namespace.routes(link=self.route.link, family=wanted.destination.version, table=wanted.table or 254)
        )

    def _near(self, found: Sequence[KernelRoute]) -> KernelRoute | None:
        """A route to the same destination."""
        return next((one for one in found if one.route.destination == self.route.route.destination), None)

    def is_repairable(self, machine: Machine) -> bool:
        """Unless there is another route to the destination, which somebody has put in its place."""
        return self._near(self._there(machine)) is None

    def restore(self, machine: Machine) -> bool:
        return self.side is Side.HOST and reapply(self, machine)

    def commands(self, namespace: str) -> tuple[str, ...]:
        return (f"{nsenter(self.side, namespace)}ip route append {_text(self.route)} proto {self.route.protocol}",)


def _text(wanted: KernelRoute) -> str:
    """A route in the syntax of ``ip route``."""
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
    """A sysctl. ``link`` is the link that it belongs to, if any.

    Undo restores ``before``; None leaves the value, since other software may rely on it (forwarding).
    An ``optional`` one may be missing, as IPv6's are in a kernel without it. *Equivalent to:* ``sysctl
    -w KEY=VALUE``.
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
            if not same_setting(namespace.sysctl(self.key), self.value):  # read-only, but has the value already
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
        found = "missing" if there is None else f"{there} instead of {self.value}"
        return f"{self.key} is {found} in the {self.side}"

    def adapt(self, earlier: Operation) -> Operation:
        if isinstance(earlier, Setting) and (earlier.side, earlier.key) == (self.side, self.key):
            return replace(earlier, value=self.value)
        return earlier

    def restore(self, machine: Machine) -> bool:
        return self.side is Side.HOST and reapply(self, machine)

    def commands(self, namespace: str) -> tuple[str, ...]:
        return (f"{nsenter(self.side, namespace)}sysctl -w {self.key}={self.value}",)


def same_setting(there: str | None, value: str) -> bool:
    """Whether the sysctl has the value; the kernel separates numbers by tabs, people by spaces."""
    return there is not None and there.split() == value.split()


@dataclass(frozen=True, slots=True)
class Detection(Operation):
    """Wait at most ``seconds`` for duplicate address detection of the container's IPv6 addresses.

    Raises Conflict if another node has one of them, Busy on a timeout. Source: RFC 4862 section 5.4.
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
                raise Conflict(f"duplicate address detection failed: another node has an IPv6 address of {self.link}")
            if not running:
                return False
            if time.monotonic() >= deadline:
                raise Busy(f"duplicate address detection on {self.link} did not finish within {self.seconds} s")
            time.sleep(0.05)

    def undo(self, machine: Machine) -> None:
        return None

    def mismatch(self, machine: Machine) -> str | None:
        _, failed = namespace_of(machine, Side.CONTAINER, self.link).tentative(self.link)
        return f"duplicate address detection failed for an IPv6 address of {self.link}" if failed else None

    def is_repairable(self, machine: Machine) -> bool:
        return False

    def commands(self, namespace: str) -> tuple[str, ...]:
        return (f"# wait until no address of {self.link} is tentative",)
