"""Rules that choose a routing table by a packet's source.

Source: ``ip-rule(8)``, ``net/core/fib_rules.c``.
"""

from __future__ import annotations

from ipaddress import ip_network
from typing import Any

from weft.errors import Exists
from weft.kernel.netlink.codec import attribute, decode
from weft.kernel.netlink.constants import (
    AF_INET,
    AF_INET6,
    FR_ACT_TO_TBL,
    NLM_F_CREATE,
    NLM_F_EXCL,
    RT_TABLE_UNSPEC,
    RTM_DELRULE,
    RTM_GETRULE,
    RTM_NEWRULE,
)
from weft.kernel.netlink.rtnetlink import RouteSocket, request
from weft.kernel.netlink.transport import parses_answer
from weft.kernel.values import RoutingRule

_FAMILIES = {4: AF_INET, 6: AF_INET6}


@parses_answer
def list_rules(socket: RouteSocket) -> tuple[RoutingRule, ...]:
    """The rules that select a table by source address, IPv4 first, in the kernel's order."""
    found: list[RoutingRule] = []
    for family in _FAMILIES.values():
        for message in map(decode, socket.dump(request(RTM_GETRULE, 0, "list the routing rules", {"family": family}))):
            source = attribute(message, "FRA_SRC")
            if message["action"] == FR_ACT_TO_TBL and source:
                table = int(attribute(message, "FRA_TABLE") or message["table"])
                protocol = int(attribute(message, "FRA_PROTOCOL") or 0)
                found.append(RoutingRule(ip_network(f"{source}/{message['src_len']}"), table, protocol))
    return tuple(found)


def add(socket: RouteSocket, rule: RoutingRule) -> None:
    """Raises ``Exists`` where the rule exists."""
    fields, attributes = _message(rule)
    action = f"add the routing rule from {rule.source} to table {rule.table}"
    if rule in list_rules(socket):  # the kernel adds a duplicate, with another priority
        raise Exists(f"cannot {action}: the rule exists")
    socket.request(request(RTM_NEWRULE, NLM_F_CREATE | NLM_F_EXCL, action, fields, attributes, needs=_needs(rule)))


def delete(socket: RouteSocket, rule: RoutingRule) -> None:
    """Raises ``Missing``; what the rule leaves out matches any."""
    fields, attributes = _message(rule)
    action = f"delete the routing rule from {rule.source} to table {rule.table}"
    socket.request(request(RTM_DELRULE, 0, action, fields, attributes, needs=_needs(rule)))


def _message(rule: RoutingRule) -> tuple[dict[str, Any], list[Any]]:
    fields = {
        "family": _FAMILIES[rule.source.version],
        "src_len": rule.source.prefixlen,
        "table": rule.table if rule.table < 256 else RT_TABLE_UNSPEC,
        "action": FR_ACT_TO_TBL,
    }
    attributes: list[Any] = [["FRA_SRC", str(rule.source.network_address)], ["FRA_TABLE", rule.table]]
    if rule.protocol:
        attributes.append(["FRA_PROTOCOL", rule.protocol])
    return fields, attributes


def _needs(rule: RoutingRule) -> str:
    return f"routing rules for IPv{rule.source.version} (policy routing)"
