"""Operations on iptables, for configurations with that backend. Rules are written as ``iptables-save``
prints them.

Chains belong to the network, like the base rules; an attachment's rules have its mark as their comment.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass

from cni_plugin.ops.firewalls import commented
from cni_plugin.ops.operation import Machine, Operation, reapply
from weft.errors import KernelLacks

_PROGRAMS = {4: "iptables", 6: "ip6tables"}


@dataclass(frozen=True, slots=True)
class TableChain(Operation):
    """A chain with its fixed rules and the jumps to it, as pairs of chain and rule.

    With ``first``, rules and jumps are inserted before all others. Undo deletes the chain unless it has
    other rules or other jumps to it.
    """

    version: int
    table: str
    chain: str
    jumps: tuple[tuple[str, str], ...] = ()
    rules: tuple[str, ...] = ()
    first: bool = False

    @property
    def in_firewalls(self) -> bool:
        return True

    def _lines(self) -> tuple[str, ...]:
        """The rules and jumps, as iptables-save prints them."""
        jumps = tuple(f"-A {chain} {rule}" for chain, rule in self.jumps)
        return (*jumps, *(f"-A {self.chain} {rule}" for rule in self.rules))

    def _declared(self, there: tuple[str, ...]) -> bool:
        return any(line.startswith(f":{self.chain} ") for line in there)

    def apply(self, machine: Machine) -> bool:
        there = machine.host.iptables(self.version, self.table)
        lines = [] if self._declared(there) else [f"-N {self.chain}"]
        for line in self._lines():
            if line not in there:
                _, chain, rule = line.split(" ", 2)
                lines.append(f"-I {chain} 1 {rule}" if self.first else line)
        if lines:
            machine.host.change_iptables(self.version, self.table, lines)
        return bool(lines)

    def undo(self, machine: Machine) -> None:
        with contextlib.suppress(KernelLacks):
            there = machine.host.iptables(self.version, self.table)
            own = self._lines()
            others = [line for line in there if line.startswith(f"-A {self.chain} ") and line not in own]
            others += [line for line in there if f"-j {self.chain}" in line.split(" --comment ")[0] and line not in own]
            if not self._declared(there) or others:
                return
            lines = [f"-D {line[3:]}" for line in own if line in there]
            machine.host.change_iptables(self.version, self.table, (*lines, f"-X {self.chain}"))

    def mismatch(self, machine: Machine) -> str | None:
        there = machine.host.iptables(self.version, self.table)
        program = _PROGRAMS[self.version]
        if not self._declared(there):
            return f"{program} lacks the chain {self.chain} in {self.table}"
        missing = next((line for line in self._lines() if line not in there), None)
        return f"{program} lacks the rule {missing} in {self.table}" if missing else None

    def commands(self, namespace: str) -> tuple[str, ...]:
        program = f"{_PROGRAMS[self.version]} -t {self.table}"
        verb = "-I" if self.first else "-A"
        return (f"{program} -N {self.chain}", *(f"{program} {verb} {line[3:]}" for line in self._lines()))


@dataclass(frozen=True, slots=True)
class TableRules(Operation):
    """An attachment's rules in a chain, each with its mark as comment, added by one iptables-restore."""

    version: int
    table: str
    chain: str
    mark: str
    rules: tuple[str, ...]

    @property
    def in_firewalls(self) -> bool:
        return True

    def apply(self, machine: Machine) -> bool:
        there = machine.host.iptables(self.version, self.table)
        lines = [line for line in self._lines() if line not in there]
        if lines:
            machine.host.change_iptables(self.version, self.table, lines)
        return bool(lines)

    def undo(self, machine: Machine) -> None:
        with contextlib.suppress(KernelLacks):
            there = machine.host.iptables(self.version, self.table)
            mine = [line for line in there if line.startswith(f"-A {self.chain} ") and commented(self.mark) in line]
            if mine:
                machine.host.change_iptables(self.version, self.table, [f"-D {line[3:]}" for line in mine])

    def _lines(self) -> tuple[str, ...]:
        return tuple(f"-A {self.chain} {rule}" for rule in self.rules)

    def mismatch(self, machine: Machine) -> str | None:
        there = machine.host.iptables(self.version, self.table)
        missing = next((line for line in self._lines() if line not in there), None)
        return f"{_PROGRAMS[self.version]} lacks the rule {missing} in {self.table}" if missing else None

    def restore(self, machine: Machine) -> bool:
        return reapply(self, machine)

    def commands(self, namespace: str) -> tuple[str, ...]:
        return tuple(f"{_PROGRAMS[self.version]} -t {self.table} {line}" for line in self._lines())
