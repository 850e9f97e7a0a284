"""Traffic control: token bucket filters, and the ifb link that shapes ingress traffic.

There is no queue on ingress, so it is redirected to an ``ifb`` link, which has one. Sources: tc-tbf(8),
tc-mirred(8), ``drivers/net/ifb.c``.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass

from cni_plugin.ops.links import half_created, has_mark
from cni_plugin.ops.operation import LinkRef, Machine, Operation, reapply
from weft.errors import Conflict, Missing
from weft.kernel.values import Limit, Link
from weft.types import Side


@dataclass(frozen=True, slots=True)
class Limited(Operation):
    """A token bucket filter (tbf) as the root qdisc of a link of the host."""

    link: str
    limit: Limit

    @property
    def on_link(self) -> LinkRef | None:
        return (Side.HOST, self.link)

    def apply(self, machine: Machine) -> bool:
        machine.host.set_limit(self.link, self.limit)
        return True

    def undo(self, machine: Machine) -> None:
        with contextlib.suppress(Missing):
            machine.host.set_limit(self.link, None)

    def mismatch(self, machine: Machine) -> str | None:
        there = machine.host.limit(self.link)
        if there is None:
            return f"{self.link} has no tbf qdisc"
        if there.rate != self.limit.rate:
            return f"the rate of {self.link} is {there.rate * 8} bit/s instead of {self.limit.rate * 8}"
        # The burst is part of the limit, which is dumped exactly.
        if there.queue != self.limit.queue:
            return f"the queue limit of {self.link} is {there.queue} bytes instead of {self.limit.queue}"
        return None

    def commands(self, namespace: str) -> tuple[str, ...]:
        words = f"rate {self.limit.rate}bps burst {self.limit.burst} limit {self.limit.queue}"
        return (f"tc qdisc replace dev {self.link} root tbf {words}",)


@dataclass(frozen=True, slots=True)
class Ifb(Operation):
    """An ifb link on the host. ``mtu`` in bytes. A ``shared`` one belongs to networks."""

    name: str
    alias: str
    mac: str
    mtu: int
    shared: bool = False

    @property
    def creates(self) -> tuple[LinkRef, ...]:
        return ((Side.HOST, self.name),)

    def apply(self, machine: Machine) -> bool:
        there = machine.host.link(self.name)
        if self.shared and there is not None and there.kind == "ifb" and has_mark(there, self.alias):
            machine.host.change_link(self.name, up=True)
            return not there.up
        if there is not None:
            raise Conflict(f"link {self.name} already exists", hint="DEL the attachment that created it first")
        machine.host.add_link(self.name, "ifb", mac=self.mac, mtu=self.mtu, alias=self.alias, up=True)
        return True

    def undo(self, machine: Machine) -> None:
        link = machine.host.link(self.name)
        if link is None or not (has_mark(link, self.alias) or half_created(link, self.mac)):
            return
        with contextlib.suppress(Missing):
            machine.host.delete_link(self.name)

    def mismatch(self, machine: Machine) -> str | None:
        link = machine.host.link(self.name)
        if link is None or link.kind != "ifb":
            return f"the host's link {self.name} is missing" if link is None else f"{self.name} is not an ifb link"
        if not self._is_ours(link):
            return f"the host's link {self.name} is not the one that was made"
        return None if link.up else f"the host's link {self.name} is down"

    def lost(self, machine: Machine) -> tuple[LinkRef, ...]:
        link = machine.host.link(self.name)
        return () if link is not None and self._is_ours(link) else self.creates

    def is_repairable(self, machine: Machine) -> bool:
        link = machine.host.link(self.name)
        return link is None or self._is_ours(link)

    def _is_ours(self, link: Link) -> bool:
        return link.kind == "ifb" and (has_mark(link, self.alias) or half_created(link, self.mac))

    def repair(self, machine: Machine) -> None:
        if self.lost(machine):
            self.apply(machine)
        else:
            machine.host.change_link(self.name, up=True)

    def commands(self, namespace: str) -> tuple[str, ...]:
        return (
            f"ip link add {self.name} address {self.mac} mtu {self.mtu} type ifb",
            f"ip link set {self.name} alias '{self.alias}' up",
        )


@dataclass(frozen=True, slots=True)
class Redirected(Operation):
    """Ingress (or egress) traffic of a link of the host is redirected to another link (mirred)."""

    link: str
    target: str
    egress: bool = False

    @property
    def on_link(self) -> LinkRef | None:
        return (Side.HOST, self.link)

    @property
    def needs(self) -> tuple[LinkRef, ...]:
        return ((Side.HOST, self.link), (Side.HOST, self.target))

    def apply(self, machine: Machine) -> bool:
        machine.host.set_redirect(self.link, self.target, egress=self.egress)
        return True

    def undo(self, machine: Machine) -> None:
        with contextlib.suppress(Missing):
            if machine.host.redirect(self.link, egress=self.egress) in ("", self.target):
                machine.host.set_redirect(self.link, "", egress=self.egress)

    def mismatch(self, machine: Machine) -> str | None:
        there = machine.host.redirect(self.link, egress=self.egress)
        if there == self.target:
            return None
        way = "egress" if self.egress else "ingress"
        return f"{way} traffic of {self.link} is redirected to {there or 'nothing'} instead of {self.target}"

    def restore(self, machine: Machine) -> bool:
        return self.egress and reapply(self, machine)

    def commands(self, namespace: str) -> tuple[str, ...]:
        match = f"parent {'ffff:fff3' if self.egress else 'ffff:'} protocol all u32 match u32 0 0"
        return (
            f"tc qdisc add dev {self.link} {'clsact' if self.egress else 'ingress'}",
            f"tc filter add dev {self.link} {match} action mirred egress redirect dev {self.target}",
        )
