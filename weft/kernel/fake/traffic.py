"""The fake kernel's qdiscs, policy routing rules, conntrack entries, sockets and iptables."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from dataclasses import replace

from weft.errors import Exists, KernelLacks, KernelRefused, Missing
from weft.kernel.fake.iptables import FakeIptables
from weft.kernel.fake.links import FakeState
from weft.kernel.firewall_chains import OWN_CHAIN, RETURN, USER_CHAINS, Firewalls, UserChain, hook_of
from weft.kernel.values import ClassTraffic, Flow, Limit, Listener, RoutingRule, TrafficClass
from weft.kernel.verdicts import BaseChain, of_iptables
from weft.types import Address

_PROGRAMS = {4: "iptables", 6: "ip6tables"}
_MARK = re.compile(r"weft:[0-9a-f]{16}")


class FakeTraffic(FakeState):
    """A namespace's qdiscs, redirects, routing rules, conntrack entries, sockets and iptables."""

    def __init__(self) -> None:
        super().__init__()
        self.rule_list: list[RoutingRule] = []
        self.conntrack: list[Flow] = []
        self.sockets: dict[tuple[str, int], list[Listener]] = {}
        self.tables = {4: FakeIptables(), 6: FakeIptables()}
        self.zones: dict[str, str] | None = None
        """firewalld's zones of links; None: no firewalld."""
        self.permanent_zones: dict[str, str] = {}
        self.nft_rules: dict[str, list[str]] = {}
        """The rules of ``change_nftables``, by ``chain FAMILY TABLE NAME``."""

    def _called(self, verb: str) -> None:
        raise NotImplementedError

    def limit(self, link: str) -> Limit | None:
        self._called("limit")
        return self.existing(link, f"list the queueing disciplines of {link}").limit

    def set_limit(self, link: str, limit: Limit | None) -> None:
        self._called("set_limit")
        self.existing(link, f"set the rate limit of {link}").limit = limit

    def redirect(self, link: str, *, egress: bool = False) -> str:
        self._called("redirect")
        there = self.existing(link, f"list the filters of {link}")
        target = there.redirect_egress if egress else there.redirect
        return target if target in self.links_by_name else ""

    def set_redirect(self, link: str, target: str, *, egress: bool = False) -> None:
        self._called("set_redirect")
        doing = f"redirect the {'egress' if egress else 'ingress'} of {link} to {target}"
        if target:
            self.existing(target, doing)
        if egress:
            self.existing(link, doing).redirect_egress = target
        else:
            self.existing(link, doing).redirect = target

    def root_qdisc(self, link: str) -> str:
        self._called("root_qdisc")
        there = self.existing(link, f"list the queueing disciplines of {link}")
        return "tbf 1:" if there.limit is not None else there.root_qdisc

    def add_scheduler(self, link: str, major: int, default: int) -> None:
        self._called("add_scheduler")
        doing = f"make the scheduler htb of {link}"
        there = self.existing(link, doing)
        if there.root_qdisc or there.limit is not None:
            raise Exists(f"cannot {doing}: the kernel says Exclusivity flag on, cannot modify")
        there.root_qdisc = f"htb {major:x}:"

    def delete_scheduler(self, link: str, major: int) -> None:
        self._called("delete_scheduler")
        there = self.existing(link, f"delete the scheduler htb of {link}")
        if there.root_qdisc == f"htb {major:x}:":
            there.root_qdisc, there.classes = "", {}

    def classes(self, link: str) -> tuple[TrafficClass, ...]:
        self._called("classes")
        there = self.existing(link, f"list the classes of {link}")
        return tuple(there.classes[number] for number in sorted(there.classes))

    def set_class(self, link: str, major: int, wanted: TrafficClass, *, leaf: bool) -> None:
        self._called("set_class")
        doing = f"set the class {major:x}:{wanted.number:x} of {link}"
        there = self.existing(link, doing)
        if there.root_qdisc != f"htb {major:x}:":
            raise Missing(f"cannot {doing}: the kernel says Failed to find specified qdisc")
        # Without the parent it has none, see htb_change_class.
        there.classes[wanted.number] = wanted if wanted.parent in there.classes else replace(wanted, parent=0)

    def delete_class(self, link: str, major: int, number: int) -> None:
        self._called("delete_class")
        doing = f"delete the class {major:x}:{number:x} of {link}"
        there = self.existing(link, doing)
        if any(one.parent == number for one in there.classes.values()):
            raise KernelRefused(f"cannot {doing}: the kernel says HTB class in use", hint="it is in use")
        there.classes.pop(number, None)

    def class_traffic(self, link: str) -> tuple[ClassTraffic, ...]:
        self._called("class_traffic")
        there = self.existing(link, f"list the queueing disciplines of {link}").classes
        parents = {one.parent for one in there.values()}
        return tuple(ClassTraffic(number) for number in sorted(there) if number not in parents)

    def routing_rules(self) -> tuple[RoutingRule, ...]:
        self._called("routing_rules")
        # The kernel inserts a rule before others of its priority.
        newest_first = self.rule_list[::-1]
        return tuple(sorted(newest_first, key=lambda rule: rule.source.version))

    def add_routing_rule(self, rule: RoutingRule) -> None:
        self._called("add_routing_rule")
        if rule in self.rule_list:
            raise Exists(f"cannot add the routing rule from {rule.source}: the kernel says File exists")
        self.rule_list.append(rule)

    def delete_routing_rule(self, rule: RoutingRule) -> None:
        self._called("delete_routing_rule")
        for existing in reversed(self.rule_list):
            same = (existing.source, existing.table) == (rule.source, rule.table)
            if same and rule.protocol in (0, existing.protocol):
                self.rule_list.remove(existing)
                return
        raise Missing(f"cannot delete the routing rule from {rule.source}: the kernel says No such file or directory")

    def flows(self, ports: Collection[tuple[str, int]], version: int = 0) -> tuple[Flow, ...]:
        self._called("flows")
        return tuple(
            flow
            for flow in self.conntrack
            if (flow.protocol, flow.port) in ports and version in (0, flow.destination.version)
        )

    def translated_flows(self, target: Address, ports: Collection[tuple[str, int]]) -> tuple[Flow, ...]:
        self._called("translated_flows")
        return tuple(
            flow for flow in self.conntrack if flow.reply_source == target and (flow.protocol, flow.port) in ports
        )

    def delete_flows(self, flows: Iterable[Flow]) -> None:
        self._called("delete_flows")
        gone = set(flows)
        self.conntrack = [flow for flow in self.conntrack if flow not in gone]

    def listeners(self, protocol: str, ports: Collection[int], caller: int = 0) -> tuple[Listener, ...]:
        self._called("listeners")
        return tuple(one for port in ports for one in self.sockets.get((protocol, port), ()))

    def iptables(self, version: int, table: str, backend: str = "") -> tuple[str, ...]:
        self._called("iptables")
        return self._table(version).save(table)

    def change_iptables(self, version: int, table: str, lines: Iterable[str], backend: str = "") -> None:
        self._called("change_iptables")
        self._table(version).restore(table, lines)

    def drops_forwarded(self, version: int) -> bool:
        self._called("drops_forwarded")
        return version in self.tables and self.tables[version].forward == "DROP"

    def firewalls(self) -> Firewalls:
        self._called("firewalls")
        found = [
            UserChain(
                version,
                name,
                tuple(map(_rule, table.chains["filter"][name])),
                (table.input if hook_of(name) == "INPUT" else table.forward) == "DROP",
            )
            for version, table in self.tables.items()
            for name in (*USER_CHAINS[version], OWN_CHAIN)
            if name in table.chains["filter"]
        ]
        own = tuple(one for one in found if one.name == OWN_CHAIN)
        return Firewalls(tuple(one for one in found if one not in own), self.zones is not None, own)

    def base_chains(self) -> tuple[BaseChain, ...]:
        self._called("base_chains")
        found = [(version, table.save("filter")) for version, table in self.tables.items()]
        return tuple(chain for version, lines in found for chain in of_iptables(lines, _PROGRAMS[version], version))

    def nftables_listing(self, what: str, *, as_json: bool = False, terse: bool = False) -> str:
        self._called("nftables_listing")
        return "\n".join(self.nft_rules.get(what, ()))

    def change_nftables(self, commands: str) -> None:
        self._called("change_nftables")
        for line in commands.splitlines():
            verb, what, family, table, *rest = line.split(" ")
            if (verb, what) == ("delete", "table"):
                self.nft_rules = {
                    key: rules
                    for key, rules in self.nft_rules.items()
                    if not key.startswith(f"chain {family} {table} ")
                }
            elif (verb, what) == ("add", "rule"):
                chain, *words = rest
                self.nft_rules.setdefault(f"chain {family} {table} {chain}", []).append(" ".join(words))

    def firewalld_zone(self, place: str, *, permanent: bool = False) -> str | None:
        self._called("firewalld_zone")
        zones = self.permanent_zones if permanent else self.zones
        return zones.get(place, "") if zones is not None else None

    def set_firewalld_zone(self, place: str, zone: str) -> None:
        self._called("set_firewalld_zone")
        assert self.zones is not None
        self.zones[place] = zone

    def _table(self, version: int) -> FakeIptables:
        if version not in self.tables:
            raise KernelLacks("iptables is not installed", hint="install iptables")
        return self.tables[version]


def _rule(rule: str) -> str:
    """See ``UserChain.rules``."""
    found = _MARK.search(rule)
    return found[0] if found else RETURN if rule == "-j RETURN" else ""
