"""``uplink``: the network's share of the host's uplink, in both directions, and that of single containers.

Keys, in a section ``uplink``: ``weight`` (1 to 100, of what is left), ``floor`` (guaranteed) and ``ceil``
(at most), rates in bits per second or as tc has them (``20mbit``), or an object with ``up`` and ``down``;
``priority`` (0 to 7, the lowest is served first). The rate of the uplink itself is in ``[uplink]`` of
weft.toml. A container has a class of its own where runtimeConfig ``uplink``, or else args.cni ``uplink``,
has such keys; its floor is a part of its network's.

HTB on the uplink schedules what containers send. What they receive is scheduled on an ifb link that the
bridge's egress is redirected to, where all networks meet. A packet's class is its priority, which nftables
sets by the container's address.
"""

from __future__ import annotations

from dataclasses import dataclass

from cni_plugin.dataplane import uplink
from cni_plugin.ops.operation import Operation
from cni_plugin.ops.queues import Ifb, Redirected
from cni_plugin.ops.uplink import FIRST, LAST, ROOT, USUAL_PRIORITY, UplinkClass, UplinkScheduler
from cni_plugin.plan import modules
from cni_plugin.plan.interface import DEFAULT_MTU, host_link, own_addresses
from cni_plugin.plan.plan import Context, Plan, PlanPart
from cni_plugin.plan.traits import Feature, LinkTrial, Option, Stage, Value
from cni_plugin.wire.request import Request
from weft import identity
from weft.errors import UNSUPPORTED_FIELD, ConfigProblem, Conflict
from weft.kernel.values import Element
from weft.section import Section
from weft.types import Side
from weft.uplink import MOST_WEIGHT, Uplink, rate, rate_text

_LEAST_PRIORITY = 7
FEATURE = Feature(
    Stage.FILTER,
    options=(
        Option("uplink.weight", Value.NUMBER, ("uplink-weight",), podman=False, least=1, most=MOST_WEIGHT),
        Option("uplink.floor", Value.TEXT, ("uplink-floor",), podman=False),
        Option("uplink.ceil", Value.TEXT, ("uplink-ceil",), podman=False),
        Option("uplink.priority", Value.NUMBER, ("uplink-priority",), podman=False, least=0, most=_LEAST_PRIORITY),
    ),
    trials=(LinkTrial("ifb", "ifb"),),
)
_LONGEST_NAME = 60
_KEYS = ("weight", "floor", "ceil", "priority")
_MAPS = {4: uplink.UPLINK_CLASS4, 6: uplink.UPLINK_CLASS6}


@dataclass(frozen=True, slots=True)
class Share:
    """What a network or a container gets: rates in bits per second, of uploads and of downloads."""

    weight: int = 1
    floors: tuple[int, int] = (0, 0)
    ceils: tuple[int, int] = (0, 0)
    priority: int = USUAL_PRIORITY


@dataclass(frozen=True, slots=True)
class Scheduled:
    """The share of the network, and that of the container if it has one of its own."""

    bridged: bool
    network: Share
    container: Share | None = None

    def plan(self, context: Context) -> Plan:
        link = host_link(context.result)
        addresses = [ip.address.ip for ip in own_addresses(context)]
        if not link or not addresses:
            raise ConfigProblem(
                "uplink requires addresses and a link of the host that leads to the container",
                hint="use driver bridge or ptp with ipam, or remove the key uplink",
                code=UNSUPPORTED_FIELD,
            )
        settings, name = context.facts.uplink(), context.attachment.network
        egress = _egress(context, settings)
        scheduled = [
            (place, index)
            for index, (place, bits) in enumerate(((egress, settings.up), (uplink.DOWNLOAD_LINK, settings.down)))
            if bits
        ]
        of_network = identity.mark("uplink", name)
        number = _number(context, of_network, name)
        shared: list[Operation] = []
        if settings.down:
            mac = identity.mac(context.host, "uplink", uplink.DOWNLOAD_LINK)
            alias = identity.alias(identity.mark("uplink", "download"), "downloads of the uplink")
            there = context.facts.link(Side.HOST, egress)
            shared.append(
                Ifb(uplink.DOWNLOAD_LINK, alias, mac, there.mtu if there is not None else DEFAULT_MTU, shared=True)
            )
        shared += (UplinkScheduler(place, index == 1) for place, index in scheduled)
        shared += (_class(place, index, f"network {name}", number, ROOT, self.network) for place, index in scheduled)
        redirected = (Redirected(link, uplink.DOWNLOAD_LINK, egress=True),) if settings.down else ()
        operations: list[Operation] = [] if self.bridged else [*redirected]
        mark, mine = identity.attachment_mark(context.attachment), number + 1
        guards: tuple[Element, ...] = ()
        if self.container is not None:
            attachment = context.attachment
            mine = _number(context, mark, name, attachment.container, attachment.interface)
            guards = (Element(uplink.UPLINK_CLASSES, (uplink.classid(mine),), mark=mark),)
            owner = f"container {attachment.container}"
            operations += (_class(place, index, owner, mine, number, self.container) for place, index in scheduled)
        return Plan(
            shared=(*shared, *(redirected if self.bridged else ())),
            operations=tuple(operations),
            guards=guards,
            shared_elements=(
                Element(uplink.UPLINK_CLASSES, (uplink.classid(number),), mark=f"{of_network}:{name[:_LONGEST_NAME]}"),
                Element(uplink.UPLINK_LINKS, (egress,), mark=identity.mark("uplink", "link")),
            ),
            elements=tuple(Element(_MAPS[one.version], (one,), (uplink.classid(mine),), mark) for one in addresses),
            result=context.result,
        )


def _egress(context: Context, settings: Uplink) -> str:
    """The uplink's name. Raises ConfigProblem where weft.toml has no rate, or the link is missing."""
    if not settings.up and not settings.down:
        raise ConfigProblem(
            "the key uplink needs the rate of the uplink",
            hint="set up and down in the section [uplink] of weft.toml, or remove the key from the network",
        )
    link = settings.link or context.facts.default_link(Side.HOST)
    if not link:
        raise ConfigProblem(
            "the key uplink needs an uplink, and this host has no default route",
            hint="name the link in the section [uplink] of weft.toml",
        )
    if context.facts.link(Side.HOST, link) is None:
        raise ConfigProblem(
            f"the uplink {link} does not exist", hint="correct link in the section [uplink] of weft.toml"
        )
    return link


def _class(place: str, index: int, owner: str, number: int, parent: int, share: Share) -> UplinkClass:
    floor, ceil = share.floors[index] // 8, share.ceils[index] // 8
    return UplinkClass(place, owner, number, parent, share.weight, floor, ceil, share.priority)


def _number(context: Context, mark: str, *owner: str) -> int:
    """The number of a class: the owner's own if it has one, else one derived from its name, the first that
    is free from there on. Raises Conflict where there is none.
    """
    taken = {
        element.key[0]: identity.mark_digest(element.mark) for element in context.facts.elements(uplink.UPLINK_CLASSES)
    }
    mine = identity.mark_digest(mark)
    for key, digest in taken.items():
        if digest == mine and isinstance(key, int):
            return key & 0xFFFF
    slots = (LAST - FIRST) // 2
    start = int(identity.digest("uplink class", *owner), 16) % slots
    for step in range(slots):
        number = FIRST + (start + step) % slots * 2
        if uplink.classid(number) not in taken:
            return number
    raise Conflict(f"all {slots} classes of the uplink's scheduler are in use")


def read(request: Request, keys: Section) -> PlanPart | None:
    driver = modules.of_request(request)
    if not driver.routed:
        keys.problems.add("uplink requires a driver whose gateway is this host: bridge or ptp")
        return None
    network = _share(keys, Share())
    own = request.config.runtime.section("uplink") or request.config.args_cni.section("uplink")
    inherited = Share(network.weight, ceils=network.ceils, priority=network.priority)
    return Scheduled(driver.bridged, network, _share(own, inherited) if own else None)


def _share(keys: Section, default: Share) -> Share:
    keys.refuse_unknown(_KEYS)
    weight = keys.integer("weight", least=1, most=MOST_WEIGHT)
    priority = keys.integer("priority", least=0, most=_LEAST_PRIORITY)
    floors, ceils = _rates(keys, "floor"), _rates(keys, "ceil")
    for way, floor, ceil in zip(("up", "down"), floors, ceils, strict=True):
        if ceil and floor > ceil:
            keys.problems.add(f"{keys.at('floor')} {rate_text(floor)} ({way}) is more than ceil {rate_text(ceil)}")
    return Share(
        weight or default.weight,
        floors,
        (ceils[0] or default.ceils[0], ceils[1] or default.ceils[1]),
        default.priority if priority is None else priority,
    )


def _rates(keys: Section, key: str) -> tuple[int, int]:
    """A rate of both directions, or an object with ``up`` and ``down``."""
    if not isinstance(keys.raw(key), dict):
        both = rate(keys, key)
        return both, both
    each = keys.section(key)
    each.refuse_unknown(("up", "down"))
    return rate(each, "up"), rate(each, "down")
