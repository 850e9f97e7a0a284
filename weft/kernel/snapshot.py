"""A namespace's links, addresses and routes as a nested dict, to compare states.

Works on Linux and on the fake. Omitted is what changes by itself: ifindexes, timers, counters,
carrier, STP state, and IPv6 link-local addresses with their routes, which depend on the carrier.
"""

from __future__ import annotations

from weft.kernel.interface import Namespace
from weft.kernel.values import KernelRoute

_VOLATILE = ("br_root", "br_topology", "br_group_addr", "brport_id", "brport_no", "brport_state", "brport_designated")
_COUNTED = ("_timer", "_cnt", "_groups", "_used", "_ack", "_pending", "_num_queues", "_num_disabled_queues")


def snapshot(namespace: Namespace) -> dict[str, dict[str, object]]:
    """For each link its attributes, addresses, VLANs and routes, as strings and numbers."""
    found: dict[str, dict[str, object]] = {}
    for link in namespace.links():
        settings: dict[str, object] = {
            "kind": link.kind,
            "mac": link.mac,
            "mtu": link.mtu,
            "up": link.up,
            "alias": link.alias,
            "master": link.master,
            "promiscuous": link.promiscuous,
            "addresses": sorted(str(cidr) for cidr in namespace.addresses(link.name) if not cidr.is_link_local),
            "routes": [],
        }
        settings |= {key: value for key, value in (*link.options.items(), *link.port.items()) if not _changes(key)}
        if link.master or link.kind == "bridge":
            settings["vlans"] = [str(vlan) for vlan in namespace.vlans(link.name)]
        found[link.name] = settings
    lines: dict[str, list[str]] = {}
    for route in namespace.routes():
        if not (route.route.destination.version == 6 and route.route.destination.is_link_local):
            lines.setdefault(route.link, []).append(_line(route))
    for name, routes in lines.items():
        found.setdefault(name, {})["routes"] = sorted(routes)
    return found


def _changes(key: str) -> bool:
    return key.startswith(_VOLATILE) or key.endswith(_COUNTED)


def _line(route: KernelRoute) -> str:
    wanted = route.route
    words = [str(wanted.destination)]
    for word, value in (
        ("via", wanted.gateway),
        ("nhid", route.nexthop or None),
        ("src", route.source),
        ("metric", wanted.priority),
        ("table", wanted.table),
        ("mtu", wanted.mtu),
        ("advmss", wanted.advmss),
        ("scope", wanted.scope),
        ("proto", route.protocol),
    ):
        if value is not None:
            words += [word, str(value)]
    return " ".join([*words, *(["onlink"] if route.onlink else [])])
