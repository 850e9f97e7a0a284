"""The value of an nftables expression for a packet, and whether a condition holds.

Expressions are those of libnftables-json(5). What a packet alone does not tell (random numbers, sockets,
time) has no value: UNKNOWN, and a condition with it is neither true nor false: None.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from typing import Protocol

from weft.kernel.trace.packet import PROTOCOLS, WITH_PORTS, Packet

Json = Mapping[str, object]


class _Unknown:
    def __repr__(self) -> str:
        return "UNKNOWN"


UNKNOWN = _Unknown()
"""A value that this packet does not tell."""
ABSENT = object()
"""The value of a field that the packet does not have, such as ``tcp dport`` of UDP: no condition holds."""


class _Route(str):
    """The link of a route, "" without one; compared with a truth value where a rule asks if there is one."""

    __slots__ = ()


_ECHO = {"icmp": "echo-request", "icmpv6": "echo-request"}
_NETWORK = {"ip": 4, "ip6": 6}
_NUMBERS = {str(number): name for name, number in PROTOCOLS.items()} | {"ipv6-icmp": "icmpv6"}


class Surroundings(Protocol):
    """What rules ask for beside the packet."""

    def elements(self, declared: Json, key: object) -> tuple[object, ...]:
        """The elements of a set or map (by its declaration) that may have the key, as libnftables-json(5);
        all of them where the key is not known.
        """

    def address_type(self, address: str, link: str) -> str:
        """``local``, ``broadcast``, ``multicast`` or ``unicast``, of an address and a link ("" any link)."""

    def leaves_by(self, address: str) -> str:
        """The link that packets to an address leave by, "" where they do not leave this host."""

    def source(self, nexthop: str) -> str:
        """The address that packets to a next hop are sent from, "" if there is none."""

    def group(self, link: str) -> int:
        """The group of a link."""


@dataclass(frozen=True, slots=True)
class Situation:
    """A packet at a hook of the family ``bridge`` or of the others, and what else the kernel is asked.

    ``declared`` are the sets and maps of the rule's table, by name.
    """

    packet: Packet
    family: str
    around: Surroundings
    declared: Mapping[str, Json]


def value(expression: object, situation: Situation) -> object:
    """What the expression is for this packet: text, a number, a tuple of both, UNKNOWN or ABSENT."""
    if not isinstance(expression, Mapping):
        return expression
    for kind, body in expression.items():
        if kind == "concat":
            parts = tuple(value(one, situation) for one in _listed(body))
            return ABSENT if any(one is ABSENT for one in parts) else parts
        if kind == "map" and isinstance(body, Mapping):
            return mapped(body, situation)
        if kind == "&":
            return _masked(_listed(body), situation)
        read = _READERS.get(kind)
        return read(body, situation) if read is not None and isinstance(body, Mapping) else UNKNOWN
    return UNKNOWN


def mapped(body: Json, situation: Situation) -> object:
    """The value of a map at a key; ABSENT where it has none, which ends the rule.

    Where the packet does not tell the whole key, as of a slot that is chosen at random, one of ``choices``.
    """
    return next(iter(choices(body, situation)), ABSENT)


def choices(body: Json, situation: Situation) -> list[object]:
    """The values that a map may have at a key."""
    key = value(body["key"], situation)
    if key is ABSENT:
        return []
    found: list[object] = []
    for element in elements_of(body["data"], situation, key):
        if isinstance(element, list) and len(element) == 2:
            matches = contains((element[0],), key)
            if matches:
                return [element[1]]
            if matches is None and element[1] not in found:
                found.append(element[1])
    return found


def elements_of(data: object, situation: Situation, key: object) -> tuple[object, ...]:
    """The elements of a named set or map that may have a key, or of an anonymous one."""
    if isinstance(data, str) and data.startswith("@"):
        declared = situation.declared.get(data[1:])
        return situation.around.elements(declared, key) if declared is not None else ()
    if isinstance(data, Mapping) and "set" in data:
        return tuple(_listed(data["set"]))
    return (data,)


def holds(body: Json, situation: Situation) -> bool | None:
    """Whether ``match`` is true; None if that is not known."""
    left, right, operator = value(body["left"], situation), body["right"], str(body["op"])
    if left is ABSENT:
        return False
    if left is UNKNOWN:
        return None
    if isinstance(left, _Route) and isinstance(right, bool):
        return (bool(left) is right) is not (operator == "!=")
    if operator in ("<", ">", "<=", ">="):
        return _compared(left, right, operator)
    if isinstance(left, frozenset):  # bits: of conntrack's state and status, and of TCP's flags
        wanted = {str(one) for one in _listed(right)}
        masked = isinstance(body["left"], Mapping) and "&" in body["left"]
        same = left == wanted if masked and operator != "in" else bool(left & wanted)
        return same is not (operator in ("!=", "!"))
    found = contains(elements_of(right, situation, left), left)
    return None if found is None else found is not (operator == "!=")


def contains(elements: Iterable[object], sought: object) -> bool | None:
    """Whether the value is one of the elements; None if one of them is not understood.

    Elements with a limit match only what exceeds it, which a first packet does not.
    """
    unsure = False
    for element in elements:
        if isinstance(element, Mapping) and isinstance(element.get("elem"), Mapping):
            body = element["elem"]
            if _is_over(body):
                continue
            element = body["val"]
        found = _is(element, sought)
        if found:
            return True
        unsure |= found is None
    return None if unsure else False


def _is_over(body: Json) -> bool:
    """Whether the element is for packets over a limit or a number of connections."""
    return any(isinstance(one := body.get(key), Mapping) and bool(one.get("inv")) for key in ("limit", "ct count"))


def _is(element: object, sought: object) -> bool | None:
    if sought is UNKNOWN:
        return None
    if isinstance(element, Mapping):
        if "concat" in element:
            parts = _listed(element["concat"])
            if not isinstance(sought, tuple) or len(parts) != len(sought):
                return None
            found = [_is(one, other) for one, other in zip(parts, sought, strict=True)]
            return False if False in found else None if None in found else True
        if isinstance(prefix := element.get("prefix"), Mapping):
            return _within(f"{prefix['addr']}/{prefix['len']}", sought)
        if isinstance(span := element.get("range"), list):
            low, high, one = (_ordered(each) for each in (span[0], span[1], sought))
            try:
                return bool(low <= one <= high)  # type: ignore[operator]
            except TypeError:
                return None
        return None
    if isinstance(element, str) and element.endswith("*") and isinstance(sought, str):
        return sought.startswith(element[:-1])
    if isinstance(element, list):
        return contains(element, sought)
    return _normal(element) == _normal(sought)


def _within(network: str, sought: object) -> bool | None:
    try:
        return ip_address(str(sought)) in ip_network(network, strict=False)
    except (ValueError, TypeError):
        return None


def _normal(one: object) -> object:
    """Addresses in one spelling, protocols by name, hexadecimal numbers as numbers."""
    if isinstance(one, str):
        if one in _NUMBERS:
            return _NUMBERS[one]
        if one.startswith("0x"):
            return int(one, 16)
        if ":" in one or one[:1].isdigit():
            try:
                return ip_address(one)
            except ValueError:
                return one.lower()
    if isinstance(one, int) and str(one) in _NUMBERS:
        return _NUMBERS[str(one)]
    return one


def _ordered(one: object) -> object:
    """Something that can be compared: an address or a number; MAC addresses as text."""
    found = _normal(one)
    return PROTOCOLS[found] if isinstance(found, str) and found in PROTOCOLS else found


def _compared(left: object, right: object, operator: str) -> bool | None:
    one, other = _ordered(left), _ordered(right)
    if not isinstance(one, int | IPv4Address | IPv6Address) or type(one) is not type(other):
        return None
    below, same = one < other, one == other  # type: ignore[operator]
    return {"<": below, "<=": below or same, ">": not (below or same), ">=": not below}[operator]


def _masked(parts: list[object], situation: Situation) -> object:
    found, mask = value(parts[0], situation), parts[1]
    if isinstance(found, frozenset):
        return found & {str(one) for one in _listed(mask)}
    if isinstance(found, int) and isinstance(mask, int):
        return found & mask
    return found if found in (UNKNOWN, ABSENT) else UNKNOWN


# What an expression reads


def _meta(body: Json, situation: Situation) -> object:
    packet = situation.packet
    if (key := str(body["key"])) in ("iifgroup", "oifgroup"):  # asks the kernel
        return situation.around.group(packet.incoming if key == "iifgroup" else packet.outgoing)
    protocol = {4: "ip", 6: "ip6"}[packet.version]
    group = "multicast" if packet.destination.is_multicast else "host"
    return {
        "iifname": packet.incoming, "iif": packet.incoming, "oifname": packet.outgoing, "oif": packet.outgoing,
        "l4proto": packet.protocol, "protocol": protocol, "mark": packet.mark, "nfproto": f"ipv{packet.version}",
        "pkttype": group,
    }.get(key, UNKNOWN)  # fmt: skip


def _payload(body: Json, situation: Situation) -> object:
    packet = situation.packet
    protocol, field = str(body.get("protocol", "")), str(body.get("field", ""))
    if protocol == "ether":
        kind = {4: "ip", 6: "ip6"}[packet.version]
        return {"saddr": packet.source_mac or UNKNOWN, "daddr": packet.destination_mac or UNKNOWN, "type": kind}.get(
            field, UNKNOWN
        )
    if protocol in ("arp", "vlan"):
        return ABSENT
    if protocol in _NETWORK:
        if packet.version != _NETWORK[protocol]:
            return ABSENT
        return {
            "saddr": str(packet.source), "daddr": str(packet.destination), "version": packet.version,
            "protocol": packet.protocol, "nexthdr": packet.protocol,
        }.get(field, UNKNOWN)  # fmt: skip
    if protocol == "th" or protocol in PROTOCOLS or protocol in ("igmp", "udplite", "dccp", "ah", "esp", "comp"):
        return _transport(protocol, field, packet)
    return UNKNOWN


def _transport(protocol: str, field: str, packet: Packet) -> object:
    if protocol not in ("th", packet.protocol):
        return ABSENT
    if packet.protocol in WITH_PORTS:
        flags = frozenset({"syn"}) if packet.protocol == "tcp" else UNKNOWN
        return {"sport": packet.source_port, "dport": packet.port, "flags": flags}.get(field, UNKNOWN)
    if protocol == "th":
        return UNKNOWN
    return {"type": _ECHO[packet.protocol], "code": 0}.get(field, UNKNOWN)


def _conntrack(body: Json, situation: Situation) -> object:
    packet = situation.packet
    first = packet.first
    version = {4: "ip", 6: "ip6"}[first.version]
    found: dict[str, object] = {
        "state": frozenset({"new" if packet.tracked else "untracked"}), "status": packet.status,
        "mark": packet.connection_mark, "direction": "original",
    }  # fmt: skip
    if not packet.tracked and body["key"] != "state":
        return ABSENT
    if body.get("dir") == "original":
        found |= {
            f"{version} saddr": str(first.source), f"{version} daddr": str(first.destination),
            "saddr": str(first.source), "daddr": str(first.destination), "protocol": first.protocol,
            "proto-src": first.source_port, "proto-dst": first.port, "l3proto": f"ipv{first.version}",
        }  # fmt: skip
    key = str(body["key"])
    if key in ("ip saddr", "ip daddr", "ip6 saddr", "ip6 daddr") and key not in found:
        return ABSENT if body.get("dir") == "original" else UNKNOWN
    return found.get(key, UNKNOWN)


def _fib(body: Json, situation: Situation) -> object:
    flags, packet = _listed(body.get("flags")), situation.packet
    if not {"daddr", "saddr"} & set(flags):
        return UNKNOWN
    address = str(packet.destination if "daddr" in flags else packet.source)
    link = packet.incoming if "iif" in flags else packet.outgoing if "oif" in flags else ""
    if body.get("result") == "type":
        return situation.around.address_type(address, link)
    if body.get("result") in ("oif", "oifname"):  # ``fib daddr . iif oif exists``: by that link
        found = situation.around.leaves_by(address)
        return _Route(found if found == link or not link else "")
    return UNKNOWN


def _route(body: Json, situation: Situation) -> object:
    packet = situation.packet
    if body.get("key") != "nexthop":
        return UNKNOWN
    if _NETWORK.get(str(body.get("family", "")), packet.version) != packet.version:
        return ABSENT
    return str(packet.nexthop) if packet.nexthop is not None else UNKNOWN


_READERS: dict[str, Callable[[Json, Situation], object]] = {
    "meta": _meta, "payload": _payload, "ct": _conntrack, "fib": _fib, "rt": _route,
}  # fmt: skip


def _listed(one: object) -> list[object]:
    return list(one) if isinstance(one, list | tuple) else [one]
