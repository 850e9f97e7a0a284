"""The group of a host's link (IFLA_GROUP), from which ``dataplane.guard`` knows its network's policy."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from cni_plugin.dataplane import guard, packets
from cni_plugin.dataplane.guard import GROUP, GROUP_MASK
from cni_plugin.ops.links import Veth
from cni_plugin.ops.nftables import Elements
from cni_plugin.ops.operation import LinkRef, Machine, Operation, reapply
from weft.errors import Missing
from weft.types import Side

POLICIES = {
    packets.CLOSED_LINKS: guard.CLOSED,
    packets.ROUTED_LINKS: guard.ROUTED,
    packets.INTERNAL_LINKS: guard.INTERNAL,
    packets.DNS_ONLY_LINKS: guard.DNS_ONLY,
    packets.NO_METADATA_LINKS: guard.NO_METADATA,
}


def of_elements(operations: Sequence[Operation]) -> Iterator[LinkGroup]:
    """The groups that say what the elements of an earlier release's record say."""
    bits: dict[str, int] = {}
    known = {one.link for one in operations if isinstance(one, LinkGroup)}
    pairs = {one.host for one in operations if isinstance(one, Veth) and not one.bridge}
    for element in (each for one in operations if isinstance(one, Elements) for each in one.elements):
        link = str(element.key[0])
        if element.collection in POLICIES and link not in known:
            bits[link] = bits.get(link, guard.PAIR * (link in pairs)) | POLICIES[element.collection]
    return (LinkGroup(link, each) for link, each in bits.items())


@dataclass(frozen=True, slots=True)
class LinkGroup(Operation):
    """The bits of ``dataplane.guard`` in a link's group; a group that an administrator has set is kept.

    Undo leaves the bits ``spared``, those of other networks on the same bridge. *Equivalent to:* ``ip link
    set LINK group N``.
    """

    link: str
    bits: int
    spared: int = 0

    @property
    def on_link(self) -> LinkRef | None:
        return (Side.HOST, self.link)

    def _there(self, machine: Machine) -> int | None:
        """The bits of the link now, None where it is missing or its group is an administrator's."""
        link = machine.host.link(self.link)
        if link is None or (link.group and link.group & GROUP_MASK != GROUP):
            return None
        return link.group & ~GROUP_MASK

    def apply(self, machine: Machine) -> bool:
        there = self._there(machine)
        if there is None or there & self.bits == self.bits:
            return False
        machine.host.change_link(self.link, group=GROUP | there | self.bits)
        return True

    def undo(self, machine: Machine) -> None:
        there = self._there(machine)
        if there:
            left = there & ~self.bits | self.spared
            with contextlib.suppress(Missing):
                machine.host.change_link(self.link, group=GROUP | left if left else 0)

    def sparing(self, kept: Operation) -> Operation:
        if isinstance(kept, LinkGroup) and kept.link == self.link:
            return replace(self, spared=self.spared | kept.bits)
        return self

    def mismatch(self, machine: Machine) -> str | None:
        there = self._there(machine)
        if there is None or there & self.bits == self.bits:
            return None
        return f"the link {self.link} is not in the group {GROUP | there | self.bits:#x}"

    def restore(self, machine: Machine) -> bool:
        return reapply(self, machine)

    def commands(self, namespace: str) -> tuple[str, ...]:
        return (f"ip link set {self.link} group {GROUP | self.bits}",)
