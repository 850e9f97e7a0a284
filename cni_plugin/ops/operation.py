"""The interface of operations: small reversible changes, as frozen values. The executor is the only
caller.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Self

from ipam.leases import HostState
from weft.kernel.interface import Namespace, Ruleset
from weft.types import Result, Side

LinkRef = tuple[Side, str]
"""A link: the side whose namespace it is in, and its name."""


Delegate = Callable[[str, str, Mapping[str, str], bytes], bytes]
"""Runs another plugin with its name, CNI_COMMAND, further CNI_* variables and standard input; returns
its output.
"""


def no_siblings(mark: str) -> frozenset[str]:
    return frozenset()


def no_others() -> Iterator[Namespace]:
    return iter(())


@dataclass(frozen=True, slots=True)
class Machine:
    """What operations act on. ``container`` is None once that namespace is gone.

    ``sibling_marks`` returns the marks of the same container's other attachments, given the mark of one
    of them. ``caller`` is the process that a runtime has started for this call, 0 if there is none.
    ``others`` opens every other network namespace of this machine that can be found, one after another.
    """

    host: Namespace
    container: Namespace | None
    rules: Callable[[], Ruleset]
    leases: HostState
    delegate: Delegate
    sibling_marks: Callable[[str], frozenset[str]] = no_siblings
    caller: int = 0
    others: Callable[[], Iterator[Namespace]] = no_others

    def side(self, side: Side) -> Namespace | None:
        return self.host if side is Side.HOST else self.container


class Operation:
    """One small reversible change; each class is a frozen dataclass."""

    __slots__ = ()

    @property
    def creates(self) -> tuple[LinkRef, ...]:
        """The links that this operation creates; whatever is configured on them is deleted with them."""
        return ()

    @property
    def marks(self) -> frozenset[str]:
        """The marks of a shared operation's objects, as the kernel's notifications have them."""
        return frozenset()

    @property
    def on_link(self) -> LinkRef | None:
        """The link that this operation configures, None if its effect belongs to no link."""
        return None

    @property
    def needs(self) -> tuple[LinkRef, ...]:
        """The links without which the effect cannot be there."""
        return () if self.on_link is None else (self.on_link,)

    @property
    def in_firewalls(self) -> bool:
        """Whether the effect is in rules that other programs keep as well, such as Docker, ufw, firewalld:
        it is restored once they do not change them any more.
        """
        return False

    @property
    def is_inside(self) -> bool:
        """Whether the operation configures the container's network namespace, and no link of the host."""
        on = self.on_link
        return (on[0] if on is not None else getattr(self, "side", Side.HOST)) is Side.CONTAINER

    def handed_over(self) -> Self:
        """The operation where the runtime moves the link that it creates into the container itself."""
        return self

    def settled(self, link: str) -> Self:
        """The operation once the runtime has moved the link, and named it."""
        return self

    @property
    def hidden(self) -> bool:
        """Whether the kernel does not show the effect, so that ``mismatch`` cannot tell if it is missing.

        A shared operation of that kind is applied when it is first recorded for a network.
        """
        return False

    def apply(self, machine: Machine) -> bool:
        """Make the change; False if nothing had to be changed. Raises WeftError; undo then reverts what
        was done.

        Conflict means that nothing was changed: what is in the way is left alone, and undo is not
        called.
        """
        raise NotImplementedError

    def undo(self, machine: Machine) -> None:
        """Revert the change. What is gone already, or does not have weft's mark, is left alone."""
        raise NotImplementedError

    def mismatch(self, machine: Machine) -> str | None:
        """How the state differs from what ``apply`` left, in a sentence; None if it does not."""
        raise NotImplementedError

    def is_missing(self, machine: Machine) -> bool:
        """Whether a shared operation has to be applied: each ADD asks, without a lock. An operation that
        has much to compare looks only at what tells whether the comparison is worth it.
        """
        return self.mismatch(machine) is not None

    def restore(self, machine: Machine) -> bool:
        """Make the change again where another program has reverted it while the container runs; whether
        something was changed. Nothing is where only a new ADD can. ``machine`` has no container.
        """
        return False

    def lost(self, machine: Machine) -> tuple[LinkRef, ...]:
        """The links of ``creates`` that are not as ``apply`` left them, so that what was set up on them is
        not there either.
        """
        sides = ((machine.side(side), side, name) for side, name in self.creates)
        return tuple((side, name) for there, side, name in sides if there is None or there.link(name) is None)

    def is_repairable(self, machine: Machine) -> bool:
        """Whether ``repair`` mends what ``mismatch`` says. ``machine`` has the container."""
        return True

    def repair(self, machine: Machine) -> None:
        """Make the change again, where an operator asks for it and the container runs. Raises WeftError."""
        self.apply(machine)

    def adapt(self, earlier: Operation) -> Operation:
        """An earlier operation with the changes that this one made to its effect: what CHECK compares
        with.
        """
        return earlier

    def sparing(self, kept: Operation) -> Operation:
        """The operation to undo where ``kept`` stays in effect, so that undo leaves what both have."""
        return self

    def replaces(self, earlier: Operation) -> bool:
        """Whether the effect of an earlier shared operation must be undone for this one, as the network's
        configuration has changed.
        """
        return False

    def commands(self, namespace: str) -> tuple[str, ...]:
        """The equivalent shell commands; ``namespace`` is the path of the container's network
        namespace.
        """
        raise NotImplementedError


def reapply(operation: Operation, machine: Machine) -> bool:
    """Apply the operation if the kernel differs from what it left; whether that was needed."""
    return operation.mismatch(machine) is not None and operation.apply(machine)


class Lease(Operation):
    """An operation that reserves addresses; it is applied before planning, which needs them."""

    __slots__ = ()

    @property
    def needs_link(self) -> bool:
        """Whether the container's link must be up first, since the addresses come over it (DHCP)."""
        return False

    def reserve(self, machine: Machine) -> Result:
        """Reserve addresses, all or none; on failure only what this call reserved is released."""
        raise NotImplementedError

    def preview(self, machine: Machine) -> Result:
        """What ``reserve`` would return now; nothing is changed."""
        raise NotImplementedError

    def available(self, machine: Machine) -> None:
        """Raises WeftError (code 50) if ``reserve`` could not succeed now."""
        raise NotImplementedError

    def holding(self, answer: Result) -> Lease:
        """The same lease with the addresses it was given, for CHECK to compare with."""
        raise NotImplementedError

    def apply(self, machine: Machine) -> bool:
        self.reserve(machine)
        return True

    def is_repairable(self, machine: Machine) -> bool:
        """No: the addresses would be others."""
        return False
