"""``bandwidth``: how much a container may receive and send.

Keys: ``ingressRate``, ``ingressBurst``, ``egressRate``, ``egressBurst``, in bits a second and bits, seen from the
container; where none of them is given, the same of runtimeConfig ``bandwidth``. What the container receives is limited
where the host's end of its veth pair sends; what it sends, at an ``ifb`` link of the host to which it is redirected.
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
from weft.kernel.interface import Limit
from weft.section import Section
from weft.types import ResultInterface, Side

FEATURE = Feature(Stage.QUEUES, plugin="bandwidth", trials=(LinkTrial("ifb", "ifb"),))
_KEYS = ("ingressRate", "ingressBurst", "egressRate", "egressBurst")
_LARGEST_RATE = 2**63 - 1
_LARGEST = 2**32 - 1
_HEADER = 18
_LATENCY = 40
"""A queue holds what can be sent in a 40th of a second (25 ms), beside the burst."""


@dataclass(frozen=True, slots=True)
class Rate:
    """Bits a second, and bits that may go at once."""

    rate: int
    burst: int

    def limit(self, mtu: int) -> Limit:
        """In bytes; a burst holds one packet at least, or none would ever pass."""
        rate = max(self.rate // 8, 1)
        burst = min(max(self.burst // 8, mtu + _HEADER), _LARGEST)
        return Limit(rate, burst, min(rate // _LATENCY + burst, _LARGEST))


@dataclass(frozen=True, slots=True)
class Bandwidth:
    """What the container may receive and send, None for as much as it can."""

    receives: Rate | None = None
    sends: Rate | None = None

    def plan(self, context: Context) -> Plan:
        if self.receives is None and self.sends is None:
            return Plan(result=context.result)
        link = host_end(context)
        if not link:
            raise ConfigProblem(
                f"bandwidth needs a veth pair, and {context.attachment.interface} is none that leads to the host",
                hint="use the driver bridge or ptp, or give no rates",
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
    """The attachment's own: its name and MAC address follow from network, container and interface."""
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
    return Bandwidth(_rate(section, "ingress"), _rate(section, "egress"))


def _rate(section: Section, direction: str) -> Rate | None:
    rate = section.integer(f"{direction}Rate", least=0, most=_LARGEST_RATE) or 0
    burst = section.integer(f"{direction}Burst", least=0, most=_LARGEST_RATE) or 0
    if bool(rate) != bool(burst):
        lacking, there = ("Burst", "Rate") if rate else ("Rate", "Burst")
        section.problem(f"{direction}{there}", f"needs {direction}{lacking} beside it")
        return None
    if burst // 8 >= _LARGEST:
        section.problem(f"{direction}Burst", "must be less than 4 GiB (bits are meant)")
        return None
    return Rate(rate, burst) if rate else None
