"""Operations on how fast links send: token buckets, and the link that limits what comes in.

What a link receives cannot wait anywhere: so it is sent on to an ``ifb`` link first, which can be limited. Sources:
tc-tbf(8), tc-mirred(8), ``drivers/net/ifb.c``.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass

from cni_plugin.ops.links import has_mark
from cni_plugin.ops.operation import LinkRef, Machine, Operation
from weft.errors import Conflict, Missing
from weft.kernel.interface import Limit
from weft.types import Side


@dataclass(frozen=True, slots=True)
class Limited(Operation):
    """A link of the host sends no faster than the limit."""

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
            return f"what {self.link} sends is not limited"
        if there.rate != self.limit.rate:
            return f"{self.link} may send {there.rate * 8} bit/s instead of {self.limit.rate * 8}"
        # The burst is a part of the queue, and reads back exactly.
        if there.queue != self.limit.queue:
            return f"{there.queue} bytes may wait at {self.link} instead of {self.limit.queue}"
        return None

    def commands(self, namespace: str) -> tuple[str, ...]:
        words = f"rate {self.limit.rate}bps burst {self.limit.burst} limit {self.limit.queue}"
        return (f"tc qdisc replace dev {self.link} root tbf {words}",)


@dataclass(frozen=True, slots=True)
class Ifb(Operation):
    """A link of the host that sends on what it is given, so that it can be limited. ``mtu`` in bytes."""

    name: str
    alias: str
    mac: str
    mtu: int

    @property
    def creates(self) -> tuple[LinkRef, ...]:
        return ((Side.HOST, self.name),)

    def apply(self, machine: Machine) -> bool:
        if machine.host.link(self.name) is not None:
            raise Conflict(f"there is a link {self.name} already", hint="delete the attachment that made it first")
        machine.host.add_link(self.name, "ifb", mac=self.mac, mtu=self.mtu, alias=self.alias, up=True)
        return True

    def undo(self, machine: Machine) -> None:
        link = machine.host.link(self.name)
        # A process killed between making the link and naming it leaves no alias, but the planned MAC.
        if link is None or not (has_mark(link, self.alias) or (not link.alias and link.mac == self.mac)):
            return
        with contextlib.suppress(Missing):
            machine.host.delete_link(self.name)

    def mismatch(self, machine: Machine) -> str | None:
        link = machine.host.link(self.name)
        if link is None or link.kind != "ifb":
            return f"the host's link {self.name} is missing" if link is None else f"{self.name} is no ifb link"
        return None if link.up else f"the host's link {self.name} is down"

    def commands(self, namespace: str) -> tuple[str, ...]:
        return (
            f"ip link add {self.name} address {self.mac} mtu {self.mtu} type ifb",
            f"ip link set {self.name} alias '{self.alias}' up",
        )


@dataclass(frozen=True, slots=True)
class Redirected(Operation):
    """All that comes in by a link of the host goes on by another one."""

    link: str
    target: str

    @property
    def on_link(self) -> LinkRef | None:
        return (Side.HOST, self.link)

    def apply(self, machine: Machine) -> bool:
        machine.host.set_redirect(self.link, self.target)
        return True

    def undo(self, machine: Machine) -> None:
        with contextlib.suppress(Missing):
            if machine.host.redirect(self.link) in ("", self.target):
                machine.host.set_redirect(self.link, "")

    def mismatch(self, machine: Machine) -> str | None:
        there = machine.host.redirect(self.link)
        if there == self.target:
            return None
        return f"what comes in by {self.link} goes on by {there or 'nothing'} instead of {self.target}"

    def commands(self, namespace: str) -> tuple[str, ...]:
        match = "parent ffff: protocol all u32 match u32 0 0"
        return (
            f"tc qdisc add dev {self.link} ingress",
            f"tc filter add dev {self.link} {match} action mirred egress redirect dev {self.target}",
        )
