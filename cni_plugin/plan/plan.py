"""The one idea: a driver is a pure function from an attachment to a list of small reversible operations.

``Plan`` is such a list with the result it leads to, ``Context`` what a driver or feature may look at, and ``compose``
joins a driver and its features to one plan. Nothing here touches the kernel. What an operation is says
``ops.operation``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from cni_plugin.ops.operation import Operation
from cni_plugin.wire.request import Config, Request
from weft.kernel.interface import Element, KernelRoute, Link, RoutingRule
from weft.types import Attachment, Cidr, NamespaceId, Result, Side


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


class PlanPart(Protocol):
    """A driver's or feature's settings, read and validated: they turn a context into a part of the plan."""

    def plan(self, context: Context) -> Plan: ...


Reader = Callable[[Request], "PlanPart | None"]
"""Reads a part's settings; None where the configuration does not ask for it. Problems are noted, not raised."""


def compose(context: Context, parts: Sequence[PlanPart]) -> Plan:
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
