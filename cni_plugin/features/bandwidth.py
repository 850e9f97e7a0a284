"""``bandwidth``: traffic shaping of what a container receives (ingress) and sends (egress).

Keys: ``ingressRate``, ``ingressBurst``, ``egressRate``, ``egressBurst``, in bits per second and bits,
as seen by the container; if none is set, the same keys of runtimeConfig ``bandwidth``. Ingress is
shaped on the host end of the veth pair, egress on an ``ifb`` link of the host to which it is
redirected. ``shapedSubnets`` and ``unshapedSubnets`` are refused: one queue has all packets.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from cni_plugin.ops.operation import Operation
from cni_plugin.ops.queues import Ifb, Limited, Redirected
from cni_plugin.plan.interface import DEFAULT_MTU, host_end
from cni_plugin.plan.plan import Context, Plan, PlanPart
from cni_plugin.plan.traits import Feature, LinkTrial, Stage
from cni_plugin.wire.request import Request
from weft import identity
from weft.errors import UNSUPPORTED_FIELD, ConfigProblem
from weft.kernel.values import Limit
from weft.section import Section, quoted
from weft.types import ResultInterface, Side

FEATURE = Feature(Stage.QUEUES, plugin="bandwidth", trials=(LinkTrial("ifb", "ifb"),))
_KEYS = ("ingressRate", "ingressBurst", "egressRate", "egressBurst")
_SUBNETS = ("shapedSubnets", "unshapedSubnets")
_LARGEST_RATE = 2**63 - 1
_LARGEST = 2**32 - 1
_HEADER = 18
_LATENCY = 40
"""The queue holds 1/40 s (25 ms) of traffic besides the burst."""


@dataclass(frozen=True, slots=True)
class Rate:
    """Rate in bits per second, burst in bits."""

    rate: int
    burst: int

    def limit(self, mtu: int) -> Limit:
        """The same in bytes; a burst smaller than one packet would let none pass."""
        rate = max(self.rate // 8, 1)
        burst = min(max(self.burst // 8, mtu + _HEADER), _LARGEST)
        return Limit(rate, burst, min(rate // _LATENCY + burst, _LARGEST))


@dataclass(frozen=True, slots=True)
class Bandwidth:
    """The limits of both directions, None for unlimited."""

    receives: Rate | None = None
    sends: Rate | None = None

    def plan(self, context: Context) -> Plan:
        if self.receives is None and self.sends is None:
            return Plan(result=context.result)
        link = host_end(context)
        if not link:
            raise ConfigProblem(
                f"bandwidth requires a veth pair to the host, and {context.attachment.interface} is not one",
                hint="use driver bridge or ptp, or set no rates",
                code=UNSUPPORTED_FIELD,
            )
        mtu = _mtu(context, link)
        operations: list[Operation] = []
        result = context.result
        if self.receives is not None:
            operations.append(Limited(link, self.receives.limit(mtu)))
        if self.sends is not None:
            ifb = _ifb(context, mtu)
            operations += [ifb, Limited(ifb.name, self.sends.limit(mtu)), Redirected(link, ifb.name)]
            shown = ResultInterface(ifb.name, ifb.mac, mtu=mtu)
            result = replace(result, interfaces=(*result.interfaces, shown))
        return Plan(operations=tuple(operations), result=result)


def _mtu(context: Context, link: str) -> int:
    there = context.facts.link(Side.HOST, link)
    said = next((one.mtu for one in context.result.interfaces if one.name == link), 0)
    return there.mtu if there is not None else said or DEFAULT_MTU


def _ifb(context: Context, mtu: int) -> Ifb:
    """The attachment's ifb link; its name and MAC address are derived from the attachment."""
    attachment = context.attachment
    who = (attachment.network, attachment.container, attachment.interface)
    return Ifb(
        "bwp" + identity.digest("ifb", *who)[:12],
        identity.alias(identity.attachment_mark(attachment), str(attachment)),
        identity.mac(context.host, "ifb", *who),
        mtu,
    )


def read(request: Request, keys: Section) -> PlanPart | None:
    given = any(keys.integer(key, least=0, most=_LARGEST_RATE) for key in _KEYS)
    section = keys if given else request.config.runtime.section("bandwidth")
    found = Bandwidth(_rate(section, "ingress"), _rate(section, "egress"))
    named = next((key for key in _SUBNETS if section.texts(key)), "")
    if named and found != Bandwidth():
        raise ConfigProblem(
            f"{section.at(named)} {quoted(section.raw(named))} is not supported",
            hint="remove it, which limits the traffic with all subnets, or remove the rates",
            code=UNSUPPORTED_FIELD,
        )
    return found


def _rate(section: Section, direction: str) -> Rate | None:
    rate = section.integer(f"{direction}Rate", least=0, most=_LARGEST_RATE) or 0
    burst = section.integer(f"{direction}Burst", least=0, most=_LARGEST_RATE) or 0
    if bool(rate) != bool(burst):
        lacking, there = ("Burst", "Rate") if rate else ("Rate", "Burst")
        section.problem(f"{direction}{there}", f"requires {direction}{lacking}")
        return None
    if burst // 8 >= _LARGEST:
        section.problem(f"{direction}Burst", "must be less than 4 GiB (the value is in bits)")
        return None
    return Rate(rate, burst) if rate else None
