"""The fake kernel's limits, routing rules, connections, listeners and iptables."""

from __future__ import annotations

from collections.abc import Iterable

from weft.errors import Exists, KernelLacks, KernelRefused, Missing
from weft.kernel.fake.links import FakeState
from weft.kernel.interface import Flow, Limit, RoutingRule
from weft.types import Address

_BUILT_IN = {
    "filter": ("INPUT", "FORWARD", "OUTPUT"),
    "nat": ("PREROUTING", "INPUT", "OUTPUT", "POSTROUTING"),
}


class FakeTables:
    """iptables of one family: chains of lines by table. ``policies`` is what ``drops_forwarded`` looks at."""

    def __init__(self) -> None:
        self.chains: dict[str, dict[str, list[str]]] = {
            table: {name: [] for name in names} for table, names in _BUILT_IN.items()
        }
        self.forward = "ACCEPT"

    def save(self, table: str) -> tuple[str, ...]:
        chains = self.chains[table]
        policies = {"FORWARD": self.forward} if table == "filter" else {}
        heads = [
            f":{name} {policies.get(name, 'ACCEPT') if name in _BUILT_IN[table] else '-'} [0:0]" for name in chains
        ]
        return (*heads, *(f"-A {name} {rule}" for name, rules in chains.items() for rule in rules))

    def restore(self, table: str, lines: Iterable[str]) -> None:
        after = {name: list(rules) for name, rules in self.chains[table].items()}
        for line in lines:
            verb, chain, *words = line.split(" ", 2)
            rule = words[0] if words else ""
            if (verb == "-N") == (chain in after):
                raise KernelRefused(
                    f"iptables-restore: chain {chain} {'exists already' if verb == '-N' else 'is missing'}"
                )
            match verb:
                case "-N":
                    after[chain] = []
                case "-A":
                    after[chain].append(rule)
                case "-I":
                    after[chain].insert(0, rule.removeprefix("1 "))
                case "-D":
                    if rule not in after[chain]:
                        raise KernelRefused(f"iptables-restore: no such rule in {chain}: {rule}")
                    after[chain].remove(rule)
                case "-X":
                    used = any(f"-j {chain}" in rule for rules in after.values() for rule in rules)
                    if after[chain] or used or chain in _BUILT_IN[table]:
                        raise KernelRefused(f"iptables-restore: the chain {chain} is in use")
                    del after[chain]
                case _:
                    raise KernelRefused(f"iptables-restore: {line}")
        self.chains[table] = after


class FakeMore(FakeState):
    """What ``Namespace`` says beside links, addresses, routes and sysctls. ``called`` notes the verb."""

    def __init__(self) -> None:
        super().__init__()
        self.held_rules: list[RoutingRule] = []
        self.held_flows: list[Flow] = []
        self.held_listeners: dict[tuple[str, int], list[tuple[Address, str]]] = {}
        self.tables = {4: FakeTables(), 6: FakeTables()}

    def _noted(self, verb: str) -> None:
        raise NotImplementedError

    def limit(self, link: str) -> Limit | None:
        self._noted("limit")
        return self.held(link, f"list the queueing disciplines of {link}").limit

    def set_limit(self, link: str, limit: Limit | None) -> None:
        self._noted("set_limit")
        self.held(link, f"limit what {link} sends").limit = limit

    def redirect(self, link: str) -> str:
        self._noted("redirect")
        target = self.held(link, f"list the filters of {link}").redirect
        return target if target in self.links_by_name else ""

    def set_redirect(self, link: str, target: str) -> None:
        self._noted("set_redirect")
        doing = f"send on by {target} what comes in by {link}"
        if target:
            self.held(target, doing)
        self.held(link, doing).redirect = target

    def routing_rules(self) -> tuple[RoutingRule, ...]:
        self._noted("routing_rules")
        # A new rule comes before the older ones.
        newest_first = self.held_rules[::-1]
        return tuple(sorted(newest_first, key=lambda rule: rule.source.version))

    def add_routing_rule(self, rule: RoutingRule) -> None:
        self._noted("add_routing_rule")
        if rule in self.held_rules:
            raise Exists(f"cannot add the routing rule from {rule.source}: there is the same rule already")
        self.held_rules.append(rule)

    def delete_routing_rule(self, rule: RoutingRule) -> None:
        self._noted("delete_routing_rule")
        for there in reversed(self.held_rules):
            same = (there.source, there.table) == (rule.source, rule.table)
            if same and rule.protocol in (0, there.protocol):
                self.held_rules.remove(there)
                return
        raise Missing(f"cannot delete the routing rule from {rule.source} to table {rule.table}")

    def flows(self, protocol: str, port: int) -> tuple[Flow, ...]:
        self._noted("flows")
        return tuple(flow for flow in self.held_flows if (flow.protocol, flow.port) == (protocol, port))

    def delete_flows(self, flows: Iterable[Flow]) -> None:
        self._noted("delete_flows")
        gone = set(flows)
        self.held_flows = [flow for flow in self.held_flows if flow not in gone]

    def listeners(self, protocol: str, port: int) -> tuple[tuple[Address, str], ...]:
        self._noted("listeners")
        return tuple(self.held_listeners.get((protocol, port), ()))

    def iptables(self, version: int, table: str) -> tuple[str, ...]:
        self._noted("iptables")
        return self._table(version).save(table)

    def change_iptables(self, version: int, table: str, lines: Iterable[str]) -> None:
        self._noted("change_iptables")
        self._table(version).restore(table, lines)

    def drops_forwarded(self, version: int) -> bool:
        self._noted("drops_forwarded")
        return version in self.tables and self.tables[version].forward == "DROP"

    def _table(self, version: int) -> FakeTables:
        if version not in self.tables:
            raise KernelLacks("there is no program iptables", hint="install iptables")
        return self.tables[version]
