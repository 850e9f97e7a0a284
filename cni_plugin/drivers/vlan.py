"""``vlan``: a VLAN (802.1Q) link on a parent link of the host, for one container.

Keys: ``master`` (default: the link of the default route), ``vlanId`` (0 to 4094), ``mtu`` (bytes, at
most the master's), ``linkInContainer``, ``enabledad``, ``ipam`` (required). The MAC address is the
master's; under weft's own name ``runtimeConfig.mac`` as with bridge, which the reference ignores.
"""

from __future__ import annotations

from dataclasses import dataclass

from cni_plugin.plan import interface
from cni_plugin.plan.plan import Context, Plan, PlanPart
from cni_plugin.plan.traits import Driver, LinkTrial, Option, Parent, Value
from cni_plugin.wire.plugins import OWN_NAME
from cni_plugin.wire.request import Request
from weft.identity import ALTNAME_BYTES
from weft.section import Section
from weft.types import Side

_LAST_VLAN = 4094

DRIVER = Driver(
    link_kind="vlan",
    parent=Parent.SHARED,
    parent_key="master",
    plugin=True,
    creatable=True,
    options=(
        interface.MTU,
        interface.MASTER,
        Option("vlanId", Value.NUMBER, ("vlan",), least=1, most=_LAST_VLAN),
    ),
    trials=(LinkTrial("vlan", "vlan", (("vlan_id", 5),), on_parent=True),),
)


@dataclass(frozen=True, slots=True)
class Vlan:
    """A VLAN network's settings."""

    master: str
    side: Side
    vid: int
    mtu: int
    detect: bool
    mac: str = ""

    def plan(self, context: Context) -> Plan:
        parent = interface.parent_link(context, self.master, self.side)
        link = interface.container_link(
            context,
            "vlan",
            mac=self.mac or parent.mac,
            mtu=interface.limited_mtu(self.mtu, parent),
            parent=parent.name,
            side=self.side,
            options=(("vlan_id", self.vid),),
        )
        return interface.attach(
            context,
            link,
            interface.result_interface(context, link),
            context.result,
            detect=self.detect,
            addressed=not context.pending,
        )


def read(request: Request, keys: Section) -> PlanPart | None:
    interface.require_ipam(request, "vlan")
    return Vlan(
        master=interface.read_link(keys, "master", longest=ALTNAME_BYTES),
        side=interface.read_side(keys),
        vid=keys.integer("vlanId", least=0, most=_LAST_VLAN) or 0,
        mtu=interface.read_mtu(keys, negative=False),
        detect=keys.flag("enabledad"),
        mac=interface.read_mac(request) if request.plugin == OWN_NAME else "",
    )
