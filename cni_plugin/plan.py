"""The one idea: a driver is a pure function from an attachment to a list of small reversible operations.

``Operation`` is what such a list holds, ``Plan`` the list with the result it leads to, ``Context`` what a
driver or feature may look at, and ``compose`` joins a driver and its features to one plan. Nothing here
touches the kernel; the executor is the only caller of operations.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from cni_plugin.kernel import Element, KernelRoute, Link, Namespace, RoutingRule, Ruleset
from cni_plugin.types import Attachment, Cidr, NamespaceId, Result, Side
from cni_plugin.wire.request import Config, Request
from ipam.leases import State

Place = tuple[Side, str]
"""A link: which namespace, which name."""


Delegate = Callable[[str, str, Mapping[str, str], bytes], bytes]
"""Runs a foreign plugin: its name, CNI_COMMAND, further CNI_* variables, standard input; answers its output."""


def no_kin(mark: str) -> frozenset[str]:
    return frozenset()


@dataclass(frozen=True, slots=True)
class Machine:
    """What operations act on. ``container`` is None once that namespace is gone.

    ``kin`` tells the marks of the other attachments that the container of an attachment's mark has.
    """

    host: Namespace
    container: Namespace | None
    rules: Callable[[], Ruleset]
    leases: State
    delegate: Delegate
    kin: Callable[[str], frozenset[str]] = no_kin

    def side(self, side: Side) -> Namespace | None:
        return self.host if side is Side.HOST else self.container


class Operation:
    """One small reversible change; each kind is a frozen value that says these six things."""

    __slots__ = ()

    @property
    def makes(self) -> tuple[Place, ...]:
        """The links that exist because of this operation; what lies on them goes when they go."""
        return ()

    @property
    def lies_on(self) -> Place | None:
        """The link this is a property of, None for what stands by itself."""
        return None

    def apply(self, machine: Machine) -> bool:
        """Do it; False where it was so already. Raises a WeftError, leaving nothing that undo does not undo.

        A Conflict says that nothing was changed: what is in the way is not undone.
        """
        raise NotImplementedError

    def undo(self, machine: Machine) -> None:
        """Take it back. What is gone already, or is not weft's by its mark, is fine."""
        raise NotImplementedError

    def lacks(self, machine: Machine) -> str | None:
        """What is not as this operation left it, in a sentence; None if all is."""
        raise NotImplementedError

    def adapt(self, earlier: Operation) -> Operation:
        """An earlier operation as it stands now that this one has changed what it made: what CHECK compares with."""
        return earlier

    def commands(self, namespace: str) -> tuple[str, ...]:
        """The shell commands it equals; ``namespace`` is the container's path."""
        raise NotImplementedError


class Lease(Operation):
    """The operation that yields addresses: it runs before planning, since its answer is an input."""

    __slots__ = ()

    @property
    def needs_link(self) -> bool:
        """Whether the container's link must be there and up first, since the addresses come over it."""
        return False

    def reserve(self, machine: Machine) -> Result:
        """Apply, and answer the addresses; all or none, and on failure only what this very call took is freed."""
        raise NotImplementedError

    def preview(self, machine: Machine) -> Result:
        """What ``reserve`` would answer now, changing nothing."""
        raise NotImplementedError

    def available(self, machine: Machine) -> None:
        """Raises a WeftError (code 50) when ``reserve`` could not succeed now."""
        raise NotImplementedError

    def holding(self, answer: Result) -> Lease:
        """The same lease, knowing what it was answered: what CHECK compares with."""
        raise NotImplementedError

    def apply(self, machine: Machine) -> bool:
        self.reserve(machine)
        return True


@dataclass(frozen=True, slots=True)
class Plan:
    """What an ADD will do and answer.

    ``shared`` belongs to the network: done where lacking, kept when the attachment goes. ``operations``
    are the attachment's own, in order. ``guards`` are nftables elements that forbid: they are there before the
    attachment's first link is, and until its last one is gone. ``elements`` and ``shared_elements`` are nftables
    elements of either kind; compose gathers them so that a plan's rules change in one transaction. ``after`` needs the
    rules in place.
    """

    shared: tuple[Operation, ...] = ()
    operations: tuple[Operation, ...] = ()
    shared_elements: tuple[Element, ...] = ()
    elements: tuple[Element, ...] = ()
    guards: tuple[Element, ...] = ()
    after: tuple[Operation, ...] = ()
    result: Result = field(default_factory=Result)


@dataclass(frozen=True, slots=True)
class Device:
    """A piece of hardware: its driver's name and the host's links that it serves, in order."""

    driver: str = ""
    links: tuple[str, ...] = ()


class Facts(Protocol):
    """A read-only look at the host and the container, for what a plan must know beforehand."""

    def link(self, side: Side, name: str) -> Link | None: ...

    def links(self, side: Side) -> tuple[Link, ...]: ...

    def default_link(self, side: Side) -> str:
        """The link of the default route, IPv4's before IPv6's, "" where there is none."""

    def device(self, place: str) -> Device | None:
        """The hardware under a path in /sys/devices, or of a PCI address or auxiliary device's name."""

    def addresses(self, side: Side, link: str) -> tuple[Cidr, ...]: ...

    def sysctl(self, side: Side, key: str) -> str | None: ...

    def routes(self, side: Side, link: str = "") -> tuple[KernelRoute, ...]:
        """The routes of a link (of all) in every table but local."""

    def routing_rules(self, side: Side) -> tuple[RoutingRule, ...]: ...

    def drops_forwarded(self, version: int) -> bool:
        """Whether an iptables FORWARD chain of the host drops what no rule accepts."""

    def lines(self, path: str) -> tuple[str, ...] | None:
        """The lines of a file that the administrator may have written, None where there is none."""


@dataclass(frozen=True, slots=True)
class Context:
    """Everything a driver or feature may base its part of the plan on.

    ``host`` tells this host's namespace from every other one; ``result`` is what stands so far: the IPAM
    answer for a driver, the driver's result for a feature, the prevResult for a chained plugin. ``gateways``
    are those of all the network's subnets, where weft's own IPAM knows them. ``pending``: the addresses are not known
    yet, for they will come over the link that is being planned; all that needs none is.
    """

    attachment: Attachment
    namespace: NamespaceId
    host: str
    config: Config
    result: Result
    facts: Facts
    gateways: tuple[Cidr, ...] = ()
    pending: bool = False


class Part(Protocol):
    """A driver's or feature's settings, read and validated: they turn a context into a part of the plan."""

    def plan(self, context: Context) -> Plan: ...


Reader = Callable[[Request], "Part | None"]
"""Reads a part's settings; None where the configuration does not ask for it. Problems are noted, not raised."""


def compose(context: Context, parts: Sequence[Part]) -> Plan:
    """One plan from a driver and its features, in their order; each sees the result of those before."""
    whole = Plan(result=context.result)
    for part in parts:
        if context.result is not whole.result:
            context = replace(context, result=whole.result)
        step = part.plan(context)
        whole = Plan(
            shared=whole.shared + tuple(one for one in step.shared if one not in whole.shared),
            operations=whole.operations + step.operations,
            shared_elements=whole.shared_elements + step.shared_elements,
            elements=whole.elements + step.elements,
            guards=whole.guards + step.guards,
            after=whole.after + step.after,
            result=step.result,
        )
    return whole
