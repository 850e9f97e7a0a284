"""``limits``: how much a container may take of what all containers of this host share.

Keys, in a section ``limits``, 0 for no limit: ``dnsQueries`` (queries by UDP to this host, a second),
``newConnections`` (connections opened through or to this host, a second), ``connections`` (entries of
the connection tracking table; by default a quarter of it), ``newNeighbours`` (addresses that it makes
this host resolve, a second). On bridges also ``macLearning`` and ``multicastGroups``, which are the
driver's. Defaults count for type ``weft``; under a reference plugin's name only keys that are set.

Each container has its own limit, an element with the link and a source address of the container; a
container that may forge its source (``ipspoofchk`` false) escapes it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from cni_plugin.dataplane import limits
from cni_plugin.plan import modules
from cni_plugin.plan.interface import host_link
from cni_plugin.plan.plan import Context, Plan, PlanPart
from cni_plugin.plan.traits import Feature, Stage
from cni_plugin.wire.plugins import OWN_NAME
from cni_plugin.wire.request import Request
from weft import identity
from weft.kernel.values import Element
from weft.section import Section
from weft.types import Address, Side

FEATURE = Feature(Stage.PORT_GUARD, section=False, keys=("limits",))
DNS_QUERIES, NEW_CONNECTIONS, NEW_NEIGHBOURS = 1000, 50000, 50
"""The defaults, a second."""
NEIGHBOUR_BURST = 256
CONNECTIONS = 65536
"""The default on a host whose table of connections has no limit to take a quarter of."""
_MOST = 2**31 - 1
_TABLE = "net/netfilter/nf_conntrack_max"
_SETS = {
    4: (limits.DNS_QUERIES4, limits.NEW_CONNECTIONS4, limits.NEW_NEXTHOPS4),
    6: (limits.DNS_QUERIES6, limits.NEW_CONNECTIONS6, limits.NEW_NEXTHOPS6),
}
_EXACT = {4: limits.CONNECTIONS4, 6: limits.CONNECTIONS6}
_SAMPLED = {4: limits.CONNECTIONS_SAMPLED4, 6: limits.CONNECTIONS_SAMPLED6}


@dataclass(frozen=True, slots=True)
class Limits:
    """A container's limits, 0 for none. ``connections`` is None for a share of the host's table."""

    bridged: bool
    dns_queries: int = 0
    new_connections: int = 0
    connections: int | None = 0
    new_neighbours: int = 0

    def plan(self, context: Context) -> Plan:
        result = context.result
        link = host_link(result)
        inner = next((one for one in result.interfaces if one.sandbox), None)
        if not link or inner is None or not result.ips:
            return Plan(result=result)
        sources: list[Address] = [ip.address.ip for ip in result.ips]
        if any(source.version == 6 for source in sources) and inner.mac:
            sources.append(identity.link_local(inner.mac))
        mark = identity.attachment_mark(context.attachment)
        connections = _share(context) if self.connections is None else self.connections
        own = tuple(
            Element(name, (link, source), mark=mark, limit=limit)
            for source in dict.fromkeys(sources)
            for name, limit in self._of(source.version, connections)
        )
        if not own:
            return Plan(result=result)
        if not self.bridged:
            return Plan(guards=(*own, Element(limits.LIMITED_LINKS, (link,), mark=mark)), result=result)
        # A bridge belongs to the network.
        shared = Element(limits.LIMITED_LINKS, (link,), mark=identity.mark("link", link))
        return Plan(guards=own, shared_elements=(shared,), result=result)

    def _of(self, version: int, connections: int) -> Iterator[tuple[str, tuple[int, ...]]]:
        bursts = 2 * self.dns_queries, self.new_connections, max(NEIGHBOUR_BURST, self.new_neighbours)
        rates = self.dns_queries, self.new_connections, self.new_neighbours
        for name, rate, burst in zip(_SETS[version], rates, bursts, strict=True):
            if rate:
                yield name, (rate, burst)
        if connections > limits.EXACT:
            yield _SAMPLED[version], (connections // limits.SAMPLED,)
        elif connections:
            yield _EXACT[version], (connections,)


def _share(context: Context) -> int:
    """A quarter of the host's connection tracking table."""
    table = context.facts.sysctl(Side.HOST, _TABLE) or ""
    return max(int(table) // 4, 1) if table.isdigit() and int(table) else CONNECTIONS


def read(request: Request, keys: Section) -> PlanPart | None:
    own = request.plugin == OWN_NAME
    driver = modules.of_request(request)
    if not driver.routed or not (own or "limits" in keys):
        return None
    given = keys.section("limits")

    def number(key: str, default: int) -> int:
        found = given.integer(key, least=0, most=_MOST)
        return (default if own else 0) if found is None else found

    connections = given.integer("connections", least=0, most=_MOST)
    return Limits(
        driver.bridged,
        number("dnsQueries", DNS_QUERIES),
        number("newConnections", NEW_CONNECTIONS),
        connections if connections is not None or own else 0,
        number("newNeighbours", NEW_NEIGHBOURS),
    )
