"""A driver is a pure function from an attachment to a list of small reversible operations.

``Plan`` is such a list with the result of the ADD, ``Context`` what a driver or feature may read, and
``compose`` makes one plan of a driver and its features. Nothing here touches the kernel. Operations:
``ops.operation``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Protocol

from cni_plugin.ops.operation import Operation
from cni_plugin.wire.request import Config, Request
from weft.kernel.values import Element, KernelRoute, Link, RoutingRule
from weft.types import Attachment, Cidr, NamespaceId, Result, Side

if TYPE_CHECKING:
    from weft.uplink import Uplink


@dataclass(frozen=True, slots=True)
class Plan:
    """What an ADD will do, and its result.

    ``shared`` belongs to the network: applied where missing, kept when the attachment is deleted.
    ``operations`` are the attachment's own, in order. ``guards`` are nftables elements of dropping
    rules: added before the attachment's first link is created, and deleted after its last one.
    ``elements`` and ``shared_elements`` are the attachment's and the network's other nftables elements;
    ``compose`` collects them so that a plan is one transaction. ``after`` is applied once the elements
    are in place.
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
    """A device in sysfs: the name of its kernel driver, and its links on the host, in order."""

    driver: str = ""
    links: tuple[str, ...] = ()


class Facts(Protocol):
    """Read-only access to the host and the container."""

    def link(self, side: Side, name: str) -> Link | None: ...

    def links(self, side: Side) -> tuple[Link, ...]: ...

    def default_link(self, side: Side) -> str:
        """The link of the default route, IPv4 before IPv6, "" if there is none."""

    def uplink_mtu(self) -> int:
        """The MTU of the host's uplink in bytes, 0 without one."""

    def device(self, location: str) -> Device | None:
        """The device at a path in /sys/devices, a PCI address, or an auxiliary device's name."""

    def addresses(self, side: Side, link: str, permanent: bool = False) -> tuple[Cidr, ...]:
        """The addresses of a link; ``permanent``: only those without a lifetime."""

    def sysctl(self, side: Side, key: str) -> str | None: ...

    def routes(self, side: Side, link: str = "") -> tuple[KernelRoute, ...]:
        """The routes of a link, or of all links, in every table but local."""

    def routing_rules(self, side: Side) -> tuple[RoutingRule, ...]: ...

    def drops_forwarded(self, version: int) -> bool:
        """Whether the policy of the host's iptables chain FORWARD is DROP."""

    def uplink(self) -> Uplink:
        """The host's uplink as weft.toml describes it. Raises ConfigProblem."""

    def elements(self, collection: str) -> tuple[Element, ...]:
        """The elements of a set or map of weft's table, () before that is installed."""

    def lines(self, path: str) -> tuple[str, ...] | None:
        """The lines of an administrator's file, None if there is no such file."""


@dataclass(frozen=True, slots=True)
class Context:
    """Everything a driver or feature may base its part of the plan on.

    ``host`` identifies this host's namespace; ``result`` is the result so far: IPAM's for a driver, the
    driver's for a feature, prevResult for a chained plugin. ``gateways`` are those of all subnets of
    the network, where weft's own IPAM knows them. ``pending``: the addresses are not known yet, since
    DHCP needs the link that is being planned. ``operations`` are those of the plan so far.
    ``handed_over``: as in the request.
    """

    attachment: Attachment
    namespace: NamespaceId
    host: str
    config: Config
    result: Result
    facts: Facts
    gateways: tuple[Cidr, ...] = ()
    pending: bool = False
    operations: tuple[Operation, ...] = ()
    handed_over: bool = False


class PlanPart(Protocol):
    """The validated settings of a driver or feature, which make its part of the plan."""

    def plan(self, context: Context) -> Plan: ...


Reader = Callable[[Request], "PlanPart | None"]
"""Reads the settings of a driver or feature; None if the configuration does not ask for it. Problems
are collected.
"""


def compose(context: Context, parts: Sequence[PlanPart]) -> Plan:
    """One plan of a driver and its features, in order; each sees the result of those before it."""
    whole = Plan(result=context.result)
    for part in parts:
        if whole.operations or context.result is not whole.result:
            context = replace(context, result=whole.result, operations=whole.operations)
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
    if not context.handed_over:
        return whole
    return replace(whole, operations=_outside(whole.operations), after=_outside(whole.after))


def _outside(operations: Sequence[Operation]) -> tuple[Operation, ...]:
    """The operations without those in the container, where the runtime configures the link itself."""
    return tuple(one.handed_over() if one.creates else one for one in operations if one.creates or not one.is_inside)
