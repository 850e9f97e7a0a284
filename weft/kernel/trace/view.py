"""A network namespace as its nftables rules see it: the rules with their elements, links, and routes."""

from __future__ import annotations

import json
import re
from contextlib import suppress
from functools import cached_property
from ipaddress import ip_address

from weft.errors import KernelRefused
from weft.kernel.interface import Ruleset
from weft.kernel.route_lookup import RouteQuestion, RouteType
from weft.kernel.trace.expressions import UNKNOWN, Json
from weft.kernel.trace.hops import Place
from weft.kernel.trace.ruleset import Decision, Nftables, RuleId
from weft.kernel.values import Element, Link, Scalar
from weft.types import Address, Subnet

LOCAL = (RouteType.LOCAL, RouteType.BROADCAST, RouteType.ANYCAST)


_OWN = ("inet weft ", "bridge weft ")
_COUNTED = re.compile(r"counter packets \d+ bytes \d+ ?")


class View:
    """What is listed is listed once, when it is first needed: of other programs' sets those that a rule asks
    for, of weft's (``own_sets``) the one element.
    """

    def __init__(self, place: Place, own_sets: Ruleset | None = None) -> None:
        self.place = place
        self._namespace = place.namespace
        self._own_sets = own_sets
        self._listed: dict[str, tuple[object, ...]] = {}

    @cached_property
    def rules(self) -> Nftables:
        """The rules of all programs here."""
        text = self._namespace.nftables_listing("ruleset", as_json=True, terse=True)
        return Nftables(json.loads(text)["nftables"] if text else [], self)

    @cached_property
    def links(self) -> dict[str, Link]:
        return {link.name: link for link in self._namespace.links()}

    @cached_property
    def own(self) -> frozenset[tuple[str, Address]]:
        """The links here and their addresses."""
        return frozenset((name, cidr.ip) for name, cidr in self._namespace.all_addresses())

    def has(self, address: Address) -> bool:
        """Whether the address is one of this namespace's own."""
        return any(own == address for _, own in self.own)

    def decided(self, decision: Decision) -> tuple[str, ...]:
        """The rules that led to a decision and the one that made it, each as nft lists it, with its chain."""
        return tuple(f"{one.chain}: {self.text(one)}" for one in (*decision.trail, decision.rule))

    def text(self, rule: RuleId) -> str:
        """A rule as nft lists it, without what it has counted."""
        if not rule.handle:
            return "policy of the chain"
        return self._texts.get((rule.table, rule.handle)) or f"a rule that is gone, handle {rule.handle}"

    @cached_property
    def _texts(self) -> dict[tuple[str, int], str]:
        """All rules by table and handle: handles are unique within a table."""
        found, table = {}, ""
        for line in self._namespace.nftables_listing("ruleset", terse=True).splitlines():
            text, mark, handle = line.strip().rpartition(" # handle ")
            if text.startswith("table "):
                table = text.removeprefix("table ").removesuffix(" {")
            elif mark and not text.endswith("{"):
                found[table, int(handle)] = _COUNTED.sub("", text)
        return found

    # What expressions ask for (``expressions.Surroundings``)

    def elements(self, declared: Json, key: object) -> tuple[object, ...]:
        """The elements of a set or map that may have a key: weft's own are asked for that one."""
        if isinstance(there := declared.get("elem"), list):
            return tuple(there)
        name = f"{declared['family']} {declared['table']} {declared['name']}"
        parts = key if isinstance(key, tuple) else (key,)
        if self._own_sets is not None and name.startswith(_OWN) and not declared.get("flags") and UNKNOWN not in parts:
            with suppress(KernelRefused):  # such as a set of another release, which is listed
                found = self._own_sets.at(str(declared["name"]), tuple(map(_scalar, parts)))
                return () if found is None else (_json(found),)
        if name not in self._listed:
            self._listed[name] = self._list(name)
        return self._listed[name]

    def _list(self, name: str) -> tuple[object, ...]:
        for kind in ("set", "map"):
            text = self._namespace.nftables_listing(f"{kind} {name}", as_json=True)
            for one in json.loads(text)["nftables"] if text else ():
                if isinstance(found := one.get(kind), dict) and isinstance(found.get("elem"), list):
                    return tuple(found["elem"])
        return ()

    def address_type(self, address: str, link: str) -> str:
        """``local``, ``broadcast``, ``multicast`` or ``unicast``: of a link alone, unless that is ""."""
        target = ip_address(address)
        if target.is_multicast:
            return "multicast"
        if link and (link, target) not in self.own:
            return "unicast"
        found = self._namespace.find_route(RouteQuestion(target)).type
        return str(found) if found in (*LOCAL, RouteType.UNICAST) else "unicast"

    def leaves_by(self, address: str) -> str:
        """The link that packets to an address leave by, "" where they do not leave this namespace."""
        route = self._namespace.find_route(RouteQuestion(ip_address(address)))
        return route.link if route.type is RouteType.UNICAST else ""

    def source(self, nexthop: str) -> str:
        found = self._namespace.find_route(RouteQuestion(ip_address(nexthop))).source
        return str(found) if found is not None else ""

    def group(self, link: str) -> int:
        return self.links[link].group if link in self.links else 0


def forwarding(version: int) -> str:
    """The sysctl that says whether packets of an IP version are forwarded."""
    return "net/ipv4/ip_forward" if version == 4 else "net/ipv6/conf/all/forwarding"


def _scalar(part: object) -> Scalar:
    """A part of a key as ``Element`` has it."""
    if isinstance(part, int):
        return part
    try:
        return ip_address(str(part))
    except ValueError:
        return str(part)


def _json(element: Element) -> object:
    """An element as libnftables-json(5) has it."""
    key = _parts(element.key)
    if element.data:
        return [key, _parts(element.data)]
    return {"elem": {"val": key, "limit": {"inv": True}}} if element.limit else key


def _parts(parts: tuple[Scalar, ...]) -> object:
    found = [_part(one) for one in parts]
    return found[0] if len(found) == 1 else {"concat": found}


def _part(part: Scalar) -> object:
    if isinstance(part, Subnet):
        return {"prefix": {"addr": str(part.network_address), "len": part.prefixlen}}
    return part if isinstance(part, int) else str(part)
