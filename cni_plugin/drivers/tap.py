"""``tap``: a tap device, for virtual machines that run inside the container.

Keys: ``multiQueue``, ``mtu`` (bytes), ``mac``, ``owner`` and ``group`` (uid and gid that may open it),
``selinuxContext`` (of the process that creates it), ``bridge`` (an existing one, inside the container),
``ipam``.
"""

from __future__ import annotations

from dataclasses import dataclass

from cni_plugin.plan import interface
from cni_plugin.plan.plan import Context, Plan, PlanPart
from cni_plugin.plan.traits import Driver, LinkTrial
from cni_plugin.wire.request import Request
from weft.errors import ConfigProblem
from weft.kernel.values import Link
from weft.section import Section
from weft.types import Side

DRIVER = Driver(
    link_kind="tun",
    plugin=True,
    reads_arguments=True,
    default_ipam="none",
    options=(interface.MTU,),
    trials=(LinkTrial("tun", "tun", (("tun_type", 2),)),),
)
_TAP = 2  # linux/if_tun.h, IFF_TAP
_LARGEST_ID = 2**31 - 1


@dataclass(frozen=True, slots=True)
class Tap:
    """A tap network's settings; ``options`` are those of the link."""

    mtu: int
    mac: str
    bridge: str
    addressed: bool
    options: tuple[tuple[str, int | str], ...]

    def plan(self, context: Context) -> Plan:
        if self.bridge:
            _check_bridge(context.facts.link(Side.CONTAINER, self.bridge), self.bridge)
        mtu = self.mtu or interface.DEFAULT_MTU
        link = interface.container_link(context, "tun", mac=self.mac, mtu=mtu, master=self.bridge, options=self.options)
        return interface.attach(
            context,
            link,
            interface.result_interface(context, link),
            context.result,
            addressed=self.addressed and not context.pending,
        )


def _check_bridge(link: Link | None, name: str) -> None:
    if link is None or link.kind != "bridge":
        what = "does not exist" if link is None else f"is a {link.kind or 'physical'} link, not a bridge"
        raise ConfigProblem(
            f"bridge {name} {what} in the container", hint="create it in the container's network namespace first"
        )


def read(request: Request, keys: Section) -> PlanPart | None:
    options: list[tuple[str, int | str]] = [("tun_type", _TAP)]
    if keys.flag("multiQueue"):
        options.append(("tun_multi_queue", 1))
    for key in ("owner", "group"):
        number = keys.integer(key, least=0, most=_LARGEST_ID)
        if number is not None:
            options.append((f"tun_{key}", number))
    if label := keys.text("selinuxContext"):
        options.append(("tun_selinux", label))
    return Tap(
        mtu=interface.read_mtu(keys),
        mac=interface.read_mac(request, keys),
        bridge=interface.read_link(keys, "bridge") if keys.text("bridge") else "",
        addressed=bool(request.config.ipam.text("type")),
        options=tuple(options),
    )
