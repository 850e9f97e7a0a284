"""``macvlan``: a link with its own MAC address on a parent link of the host.

Keys: ``master`` (default: the link of the default route), ``mode``, ``mtu`` (bytes, at most the
master's), ``mac``, ``linkInContainer``, ``bcqueuelen``, ``enabledad``, ``ipam``. The host cannot be
reached through its own parent link.
"""

from __future__ import annotations

from dataclasses import dataclass

from cni_plugin.plan import interface
from cni_plugin.plan.plan import Context, Plan, PlanPart
from cni_plugin.plan.traits import Driver, LinkTrial, Option, Parent, Value
from cni_plugin.wire.request import Request
from weft.errors import ConfigProblem
from weft.identity import ALTNAME_BYTES
from weft.section import Section
from weft.types import Side

DRIVER = Driver(
    link_kind="macvlan",
    parent=Parent.SHARED,
    parent_key="master",
    plugin=True,
    reads_arguments=True,
    creatable=True,
    options=(
        interface.MTU,
        interface.MASTER,
        Option("mode", Value.TEXT, ("mode", "macvlan_mode")),
        Option("bcqueuelen", Value.NUMBER),
    ),
    trials=(LinkTrial("macvlan", "macvlan", (("macvlan_mode", "bridge"),), on_parent=True),),
)
_MODES = ("bridge", "private", "vepa", "passthru")
_LONGEST_QUEUE = 2**32 - 1


@dataclass(frozen=True, slots=True)
class Macvlan:
    """A macvlan network's settings; ``queue``: IFLA_MACVLAN_BC_QUEUE_LEN, in packets."""

    master: str
    side: Side
    mode: str
    mtu: int
    mac: str
    queue: int
    detect: bool
    addressed: bool

    def plan(self, context: Context) -> Plan:
        parent = interface.parent_link(context, self.master, self.side)
        passthru = self.mode == "passthru"
        if passthru and self.mac not in ("", parent.mac):
            raise ConfigProblem(
                f"mac {self.mac} cannot be set in mode passthru, which uses that of {parent.name}, {parent.mac}",
                hint="remove mac, or use another mode",
            )
        options: list[tuple[str, int | str]] = [("macvlan_mode", self.mode)]
        if self.queue:
            options.append(("macvlan_bc_queue_len", self.queue))
        link = interface.container_link(
            context,
            "macvlan",
            mac=parent.mac if passthru else self.mac,
            mtu=interface.limited_mtu(self.mtu, parent),
            parent=parent.name,
            side=self.side,
            options=tuple(options),
        )
        return interface.attach(
            context,
            link,
            interface.result_interface(context, link),
            context.result,
            detect=self.detect,
            addressed=self.addressed and not context.pending,
        )


def read(request: Request, keys: Section) -> PlanPart | None:
    return Macvlan(
        master=interface.read_link(keys, "master", longest=ALTNAME_BYTES),
        side=interface.read_side(keys),
        mode=keys.text("mode", choices=("", *_MODES)) or "bridge",
        mtu=interface.read_mtu(keys, negative=False),
        mac=interface.read_mac(request, keys),
        queue=keys.integer("bcqueuelen", least=0, most=_LONGEST_QUEUE) or 0,
        detect=keys.flag("enabledad"),
        addressed=bool(request.config.ipam.text("type")),
    )
