"""A container's share of the uplink, and what its class has sent and dropped."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass

from cni_plugin.dataplane.uplink import DOWNLOAD_LINK, MAJOR
from cni_plugin.networks.attachments import Endpoint
from cni_plugin.ops.uplink import UplinkClass
from cni_plugin.service.context import ServiceContext
from weft.errors import KernelRefused
from weft.kernel.values import ClassTraffic
from weft.uplink import rate_text


@dataclass(frozen=True, slots=True)
class UplinkUse:
    """The share of the class that a container's traffic belongs to, ``owner``'s, in one direction.

    ``floor`` and ``ceil`` are bits per second, 0 for none; ``traffic`` is None where the class is missing.
    """

    direction: str
    classid: str
    owner: str
    weight: int
    floor: int
    ceil: int
    priority: int
    traffic: ClassTraffic | None

    def __str__(self) -> str:
        rates = [f"{name} {rate_text(rate)}" for name, rate in (("floor", self.floor), ("ceil", self.ceil)) if rate]
        share = ", ".join([f"weight {self.weight}", *rates, f"priority {self.priority}"])
        seen = "not in force"
        if self.traffic is not None:
            seen = f"{self.traffic.sent} bytes sent, {self.traffic.drops} packets dropped"
        return f"{self.direction} {share} (class {self.classid} of {self.owner}): {seen}"


def uplink_of(context: ServiceContext, one: Endpoint) -> tuple[UplinkUse, ...]:
    """The container's shares, of its own class or of its network's; () where neither has one."""
    found: dict[bool, UplinkClass] = {}
    for operation in (*one.shared, *one.operations):
        if isinstance(operation, UplinkClass):
            found[operation.link == DOWNLOAD_LINK] = operation
    return tuple(_use(each, traffic(context, each.link)) for _, each in sorted(found.items()))


def traffic(context: ServiceContext, link: str) -> Mapping[int, ClassTraffic]:
    """What the classes of a link's scheduler have sent, by number; of a missing link nothing."""
    with suppress(KernelRefused):
        return {each.number: each for each in context.kernel.host.class_traffic(link)}
    return {}


def _use(one: UplinkClass, seen: Mapping[int, ClassTraffic]) -> UplinkUse:
    return UplinkUse(
        "down" if one.link == DOWNLOAD_LINK else "up",
        f"{MAJOR:x}:{one.leaf:x}",
        one.owner,
        one.weight,
        one.floor * 8,
        one.ceil * 8,
        one.priority,
        seen.get(one.leaf),
    )
