"""Rules that choose a routing table by a packet's source. Source: ``ip-rule(8)``, ``net/core/fib_rules.c``."""

from __future__ import annotations

from ipaddress import ip_network
from typing import Any

from weft.errors import Exists
from weft.kernel.interface import RoutingRule
from weft.kernel.netlink import codec
from weft.kernel.netlink.codec import Attributes, attribute
from weft.kernel.netlink.socket import Request, RouteSocket

_FAMILIES = {4: codec.AF_INET, 6: codec.AF_INET6}
_TO_TABLE = 1


def every(socket: RouteSocket) -> tuple[RoutingRule, ...]:
    """Every rule that sends packets from somewhere to a table, IPv4 first, in the kernel's order."""
    found: list[RoutingRule] = []
    for family in _FAMILIES.values():
        for message in socket.dump(Request(codec.GETRULE, 0, "list the routing rules", {"family": family})):
            source = attribute(message, "FRA_SRC")
            if message["action"] == _TO_TABLE and source:
                table = int(attribute(message, "FRA_TABLE") or message["table"])
                protocol = int(attribute(message, "FRA_PROTOCOL") or 0)
                found.append(RoutingRule(ip_network(f"{source}/{message['src_len']}"), table, protocol))
    return tuple(found)


def add(socket: RouteSocket, rule: RoutingRule) -> None:
    """Raises ``Exists`` where there is the same rule already."""
    fields, attributes = _message(rule)
    doing = f"add the routing rule from {rule.source} to table {rule.table}"
    if rule in every(socket):  # the kernel takes a twin, with another priority
        raise Exists(f"cannot {doing}: there is the same rule already")
    socket.request(Request(codec.NEWRULE, codec.CREATE | codec.EXCL, doing, fields, attributes, needs=_needs(rule)))


def delete(socket: RouteSocket, rule: RoutingRule) -> None:
    """Raises ``Missing``; what the rule leaves out matches any."""
    fields, attributes = _message(rule)
    doing = f"delete the routing rule from {rule.source} to table {rule.table}"
    socket.request(Request(codec.DELRULE, 0, doing, fields, attributes, needs=_needs(rule)))


def _message(rule: RoutingRule) -> tuple[dict[str, Any], Attributes]:
    fields = {
        "family": _FAMILIES[rule.source.version],
        "src_len": rule.source.prefixlen,
        "table": rule.table if rule.table < 256 else 0,
        "action": _TO_TABLE,
    }
    attributes: Attributes = [["FRA_SRC", str(rule.source.network_address)], ["FRA_TABLE", rule.table]]
    if rule.protocol:
        attributes.append(["FRA_PROTOCOL", rule.protocol])
    return fields, attributes


def _needs(rule: RoutingRule) -> str:
    return f"routing rules for IPv{rule.source.version} (policy routing)"
