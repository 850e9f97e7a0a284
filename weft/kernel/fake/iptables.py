"""The fake kernel's iptables: chains and rules as lines of iptables-save."""

from __future__ import annotations

import re
from collections.abc import Iterable

from weft.errors import KernelRefused

_BUILT_IN = {
    "filter": ("INPUT", "FORWARD", "OUTPUT"),
    "nat": ("PREROUTING", "INPUT", "OUTPUT", "POSTROUTING"),
}


class FakeIptables:
    """One family's tables, each a dict of chains. ``forward`` and ``input`` are policies."""

    def __init__(self) -> None:
        self.chains: dict[str, dict[str, list[str]]] = {
            table: {name: [] for name in names} for table, names in _BUILT_IN.items()
        }
        self.forward = "ACCEPT"
        self.input = "ACCEPT"

    def save(self, table: str) -> tuple[str, ...]:
        chains = self.chains[table]
        policies = {"FORWARD": self.forward, "INPUT": self.input} if table == "filter" else {}
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
                raise KernelRefused(f"iptables-restore: chain {chain} {'exists' if verb == '-N' else 'does not exist'}")
            match verb:
                case "-N":
                    after[chain] = []
                case "-A":
                    after[chain].append(rule)
                case "-I":
                    number, _, rest = rule.partition(" ")
                    place, rule = (int(number) - 1, rest) if number.isdigit() else (0, rule)
                    after[chain].insert(place, rule)
                case "-D":
                    if rule not in after[chain]:
                        raise KernelRefused(f"iptables-restore: no such rule in {chain}: {rule}")
                    after[chain].remove(rule)
                case "-F":
                    after[chain] = []
                case "-E":
                    after = {rule if name == chain else name: rules for name, rules in after.items()}
                    for rules in after.values():
                        rules[:] = [re.sub(f"-j {chain}$", f"-j {rule}", one) for one in rules]
                case "-X":
                    used = any(f"-j {chain}" in rule for rules in after.values() for rule in rules)
                    if after[chain] or used or chain in _BUILT_IN[table]:
                        raise KernelRefused(f"iptables-restore: the chain {chain} is in use")
                    del after[chain]
                case _:
                    raise KernelRefused(f"iptables-restore: {line}")
        self.chains[table] = after
