"""What an operation is: one small reversible change, as a frozen value. The executor is the only caller."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from ipam.leases import HostState
from weft.kernel.interface import Namespace, Ruleset
from weft.types import Result, Side

LinkRef = tuple[Side, str]
"""A link: which namespace, which name."""


Delegate = Callable[[str, str, Mapping[str, str], bytes], bytes]
"""Runs a foreign plugin: its name, CNI_COMMAND, further CNI_* variables, standard input; answers its output."""


def no_siblings(mark: str) -> frozenset[str]:
    return frozenset()


@dataclass(frozen=True, slots=True)
class Machine:
    """What operations act on. ``container`` is None once that namespace is gone.

    ``sibling_marks`` tells the marks of the other attachments that the container of an attachment's mark has.
    """

    host: Namespace
    container: Namespace | None
    rules: Callable[[], Ruleset]
    leases: HostState
    delegate: Delegate
    sibling_marks: Callable[[str], frozenset[str]] = no_siblings

    def side(self, side: Side) -> Namespace | None:
        return self.host if side is Side.HOST else self.container


class Operation:
    """One small reversible change; each kind is a frozen value that says these six things."""

    __slots__ = ()

    @property
    def creates(self) -> tuple[LinkRef, ...]:
        """The links that exist because of this operation; what lies on them goes when they go."""
        return ()

    @property
    def on_link(self) -> LinkRef | None:
        """The link this is a property of, None for what stands by itself."""
        return None

    def apply(self, machine: Machine) -> bool:
        """Do it; False where it was so already. Raises a WeftError, leaving nothing that undo does not undo.

        A Conflict says that nothing was changed: what is in the way is not undone.
        """
        raise NotImplementedError

    def undo(self, machine: Machine) -> None:
        """Take it back. What is gone already, or is not weft's by its mark, is fine."""
        raise NotImplementedError

    def mismatch(self, machine: Machine) -> str | None:
        """What is not as this operation left it, in a sentence; None if all is."""
        raise NotImplementedError

    def adapt(self, earlier: Operation) -> Operation:
        """An earlier operation as it stands now that this one has changed what it made: what CHECK compares with."""
        return earlier

    def commands(self, namespace: str) -> tuple[str, ...]:
        """The shell commands it equals; ``namespace`` is the container's path."""
        raise NotImplementedError


class Lease(Operation):
    """The operation that yields addresses: it runs before planning, since its answer is an input."""

    __slots__ = ()

    @property
    def needs_link(self) -> bool:
        """Whether the container's link must be there and up first, since the addresses come over it."""
        return False

    def reserve(self, machine: Machine) -> Result:
        """Apply, and answer the addresses; all or none, and on failure only what this very call took is freed."""
        raise NotImplementedError

    def preview(self, machine: Machine) -> Result:
        """What ``reserve`` would answer now, changing nothing."""
        raise NotImplementedError

    def available(self, machine: Machine) -> None:
        """Raises a WeftError (code 50) when ``reserve`` could not succeed now."""
        raise NotImplementedError

    def holding(self, answer: Result) -> Lease:
        """The same lease, knowing what it was answered: what CHECK compares with."""
        raise NotImplementedError

    def apply(self, machine: Machine) -> bool:
        self.reserve(machine)
        return True
