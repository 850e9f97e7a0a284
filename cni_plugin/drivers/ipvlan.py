"""``ipvlan``: a link on a link of the host's that shares its MAC address; the kernel tells them apart
by IP address.

Keys: ``master`` (default: the link of the default route; in a chain, the one that prevResult names),
``mode``, ``mtu`` (bytes, at most the master's), ``linkInContainer``, ``enabledad``, ``ipam`` (required
unless prevResult has addresses, which then move to this link).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from cni_plugin.plan import interface
from cni_plugin.plan.plan import Context, Plan, PlanPart
from cni_plugin.plan.traits import Driver, LinkTrial, Option, Parent, Value
from cni_plugin.wire.request import Request
from weft.identity import ALTNAME_BYTES
from weft.section import Section
from weft.types import Result, Side

DRIVER = Driver(
    link_kind="ipvlan",
    parent=Parent.SHARED,
    parent_key="master",
    plugin=True,
    creatable=True,
    options=(interface.MTU, interface.MASTER, Option("mode", Value.TEXT, ("mode", "ipvlan_mode"))),
    trials=(LinkTrial("ipvlan", "ipvlan", on_parent=True),),
)
_MODES = {"": 0, "l2": 0, "l3": 1, "l3s": 2}  # linux/if_link.h, enum ipvlan_mode


@dataclass(frozen=True, slots=True)
class Ipvlan:
    """An ipvlan network's settings; ``mode`` is the kernel's number; ``inherits``: the addresses are
    prevResult's.
    """

    master: str
    side: Side
    mode: int
    mtu: int
    detect: bool
    inherits: bool

    def plan(self, context: Context) -> Plan:
        parent = interface.parent_link(context, self.master, self.side)
        link = interface.container_link(
            context,
            "ipvlan",
            mac=parent.mac,
            mtu=interface.limited_mtu(self.mtu, parent),
            parent=parent.name,
            side=self.side,
            options=(("ipvlan_mode", self.mode),),
        )
        found, before = context.result, context.config.previous
        if self.inherits and before is not None:
            found = replace(before, dns=before.dns if context.config.dns is None else context.config.dns)
        return interface.attach(
            context,
            link,
            interface.result_interface(context, link),
            found,
            detect=self.detect,
            addressed=not context.pending,
        )


def read(request: Request, keys: Section) -> PlanPart | None:
    before = request.config.previous
    addressed = bool(request.config.ipam.text("type"))
    inherits = not addressed and before is not None and bool(before.ips)
    if not inherits:
        interface.require_ipam(request, "ipvlan")
    return Ipvlan(
        master=_master(keys, before),
        side=interface.read_side(keys),
        mode=_MODES[keys.text("mode", choices=_MODES)],
        mtu=interface.read_mtu(keys),
        detect=keys.flag("enabledad"),
        inherits=inherits,
    )


def _master(keys: Section, before: Result | None) -> str:
    """The parent's name, "" for the default; in a chain, the interface in prevResult."""
    name = interface.read_link(keys, "master", longest=ALTNAME_BYTES)
    if name or before is None:
        return name
    if len(before.interfaces) != 1 or not before.interfaces[0].name:
        keys.problems.add("master is missing, and prevResult does not hold exactly one named interface to use instead")
        return ""
    return before.interfaces[0].name
