"""``isolation``: who may connect to a network's containers, and what they may connect to.

Keys, at the top level: ``isolation``: ``closed`` (no new connections from other networks or from
outside, except to published ports: the default for type ``weft``), ``routed`` (from outside, but not
from other networks of weft), ``open`` (the default for the reference plugins' types); ``internal``: no
connections to the outside either, and to the host only DNS; ``hostAccess``: ``open`` (the default) or
``dns``, what containers may reach on this host; ``metadata``: whether they may reach clouds' metadata
services and link-local addresses (not by default for type ``weft``). Links are elements of sets, so
rules do not grow with networks. On a bridge that networks share, the strictest setting counts; on a
bridge that existed before weft, nothing is closed unless a key says so.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from cni_plugin.dataplane import guard, packets
from cni_plugin.ops import LinkGroup
from cni_plugin.ops.firewalls import passed_on
from cni_plugin.plan import interface, modules
from cni_plugin.plan.interface import host_link
from cni_plugin.plan.plan import Context, Plan, PlanPart
from cni_plugin.plan.traits import Feature, Option, Stage, Value
from cni_plugin.wire.plugins import OWN_NAME
from cni_plugin.wire.request import Request
from weft import identity
from weft.kernel.values import Element, Scalar
from weft.section import Section
from weft.types import Result, Side

FEATURE = Feature(
    Stage.NETWORK_GUARD,
    section=False,
    keys=("isolation", "internal", "hostAccess", "metadata"),
    options=(
        Option("isolation", Value.CHOICE, ("isolation",), choices=("closed", "routed", "open")),
        Option("hostAccess", Value.CHOICE, ("host-access",), choices=("open", "dns")),
        Option("metadata", Value.FLAG),
    ),
)
CLOSED, ROUTED, OPEN = "closed", "routed", "open"
_WITHIN = {4: packets.INTRA_NETWORK4, 6: packets.INTRA_NETWORK6}

_FORWARDED = guard.CLOSED | guard.ROUTED | guard.INTERNAL


@dataclass(frozen=True, slots=True)
class Isolation:
    """A network's isolation from other networks, from the outside and from this host."""

    bridged: bool
    mode: str
    internal: bool = False
    metadata: bool = True
    host: bool = True
    asked: bool = True
    direct: bool = False
    routes: bool = True
    """Whether this host routes for the network: else packets to its gateway, another machine, are bridged."""

    def plan(self, context: Context) -> Plan:
        result = context.result
        link = host_link(result)
        if not link or (self.bridged and not self.asked and _is_foreign(context, link)):
            return Plan(result=result)
        # A bridge belongs to the network, the host end of a ptp pair to one container.
        tunnel = interface.tunnel(result)
        mark = identity.mark("link", link) if self.bridged else identity.attachment_mark(context.attachment)
        found = (*self._elements(link, result), *(self._tunnelled(link, tunnel, result) if tunnel else ()))
        elements = tuple(dict.fromkeys(Element(name, key, mark=mark) for name, key in found))
        shared = (passed_on(link, (ip.address.network for ip in result.ips), bridged=self.bridged),)
        bits = self._bits()
        if self.direct:  # peers' packets come in by the uplink, and only elements tell which they are
            bits &= ~_FORWARDED
        bits |= guard.OVERLAY if (bits or self.direct) and tunnel else 0
        group = tuple(LinkGroup(one, bits) for one in (link, tunnel) if one and bits)
        if self.bridged:
            return Plan(shared=(*group, *shared), shared_elements=elements, result=result)
        return Plan(shared=shared, operations=group, guards=elements, result=result)

    def _bits(self) -> int:
        """The policy in the link's group."""
        bits = {CLOSED: guard.CLOSED, ROUTED: guard.ROUTED, OPEN: 0}[self.mode]
        bits |= guard.INTERNAL * self.internal | guard.NO_METADATA * (not self.metadata)
        bits |= guard.DNS_ONLY * (not self.host)
        if not self.routes:
            # With br_netfilter bridged packets are judged, too, and the guard, which compares no names of links,
            # cannot tell one that is bridged to another machine from one that leaves the network.
            bits &= ~_FORWARDED
        return bits | (0 if self.bridged or not bits else guard.PAIR)

    def _elements(self, link: str, result: Result) -> Iterator[tuple[str, tuple[Scalar, ...]]]:
        if self.mode != OPEN:
            yield packets.CLOSED_LINKS if self.mode == CLOSED else packets.ROUTED_LINKS, (link,)
            yield packets.CLOSED_OR_ROUTED_LINKS, (link,)
            if self.bridged:
                yield packets.INTRA_NETWORK_LINKS, (link, link)
            else:
                for ip in result.ips:
                    yield _WITHIN[ip.address.version], (link, ip.address.network)
        if self.internal:
            yield packets.INTERNAL_LINKS, (link,)
        if not self.metadata:
            yield packets.NO_METADATA_LINKS, (link,)
        if not self.host:
            yield packets.DNS_ONLY_LINKS, (link,)

    def _tunnelled(self, link: str, tunnel: str, result: Result) -> Iterator[tuple[str, tuple[Scalar, ...]]]:
        """The same for the VXLAN link of an overlay network: what it leads to is the same network."""
        yield from self._elements(tunnel, result)
        yield packets.INTRA_NETWORK_LINKS, (link, tunnel)


def _is_foreign(context: Context, bridge: str) -> bool:
    """Whether weft did not create the bridge: a default of ours must not cut off what else is behind
    it.
    """
    there = context.facts.link(Side.HOST, bridge)
    if there is None or identity.mark_digest(there.alias):
        return False
    return bool(there.alias) or there.mac != identity.mac(context.host, "bridge", bridge)


def read(request: Request, keys: Section) -> PlanPart | None:
    own = request.plugin == OWN_NAME
    internal = keys.flag("internal")
    usual = CLOSED if own or internal else OPEN
    mode = keys.text("isolation", usual, choices=(CLOSED, ROUTED, OPEN))
    host = keys.text("hostAccess", "dns" if internal else "open", choices=("open", "dns"))
    if internal and mode != CLOSED:
        keys.problem("isolation", "cannot be set together with internal, which closes the network")
    if internal and host != "dns":
        keys.problem("hostAccess", "cannot be set together with internal, which allows DNS only")
    if internal and keys.flag("ipMasq"):
        keys.problem("ipMasq", "cannot be set together with internal, which allows no outgoing connections")
    metadata = keys.flag("metadata", mode == OPEN) and not internal
    driver = modules.of_request(request)
    asked = any(key in keys for key in FEATURE.keys) or not driver.parent_key  # such a bridge is never foreign
    direct = own and keys.flag("direct")
    routes = not driver.bridged or driver.clustered or keys.flag("isGateway") or keys.flag("isDefaultGateway")
    found = Isolation(driver.bridged, mode, internal, metadata, host == "open", asked, direct, routes)
    return found if own or asked else None
