"""The only caller of operations: applies a plan or undoes it, removes, checks.

Every driver's ADD, rollback, DEL and CHECK are these few functions; no driver has its own.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from types import TracebackType
from typing import TypeVar

from cni_plugin.ops.operation import Lease, LinkRef, Machine, Operation
from weft.errors import Conflict, WeftError
from weft.types import Result

Watch = Callable[[str, Operation], None]
"""Called before every step with "apply" or "undo" and the operation; tests inject faults and kills
here.
"""

Log = Callable[[str], None]
"""Gets one line for each step; None: steps are neither timed nor logged."""

_LONGEST_COMMANDS = 200  # characters of the equivalent commands that a line repeats
_T = TypeVar("_T")


def unwatched(verb: str, operation: Operation) -> None:
    """Nothing happens between steps."""


def apply(operation: Operation, machine: Machine, watch: Watch = unwatched, log: Log | None = None) -> None:
    """Apply one operation. Raises a WeftError."""
    watch("apply", operation)
    if log is None:
        operation.apply(machine)
    else:
        _logged(log, "apply", operation, machine, operation.apply)


class Attempt:
    """A with-block in which operations are applied; on an error all that were started are undone, in
    reverse.

    What cannot be undone is added to the error's hint. The record stays on disk then, and DEL or GC try
    again.
    """

    def __init__(self, machine: Machine, watch: Watch = unwatched, log: Log | None = None) -> None:
        self._machine = machine
        self._watch = watch
        self._log = log
        self._started: list[Operation] = []
        self.not_undone: list[WeftError] = []

    def __enter__(self) -> Attempt:
        return self

    def reserve(self, lease: Lease) -> Result:
        """Reserve the addresses of a lease. It undoes its own failure, so that it never frees an
        earlier lease.
        """
        self._watch("apply", lease)
        if self._log is None:
            answer = lease.reserve(self._machine)
        else:
            answer = _logged(self._log, "apply", lease, self._machine, lease.reserve)
        self._started.append(lease)
        return answer

    def apply(self, operations: Sequence[Operation]) -> None:
        """Apply in order."""
        for operation in operations:
            self._started.append(operation)
            try:
                apply(operation, self._machine, self._watch, self._log)
            except Conflict:
                # Nothing was changed, and undo could hit a living attachment with our own mark
                # whose record is lost.
                self._started.pop()
                raise

    def __exit__(
        self, kind: type[BaseException] | None, failure: BaseException | None, trace: TracebackType | None
    ) -> None:
        if failure is None:
            return
        # Whatever interrupts the rollback, the record must stay.
        self.not_undone = [WeftError("the rollback was interrupted")]
        self.not_undone = remove(self._started, self._machine, self._watch, self._log)
        if self.not_undone and isinstance(failure, WeftError):
            failure.hint = "; ".join(filter(None, (failure.hint, f"not undone: {_messages(self.not_undone)}")))


def remove(
    operations: Sequence[Operation], machine: Machine, watch: Watch = unwatched, log: Log | None = None
) -> list[WeftError]:
    """Undo in reverse, continuing after errors, which are returned.

    What is on a link that an operation of the list creates is not undone by itself: the kernel removes
    it with the link.
    """
    links = {link for operation in operations for link in operation.creates}
    errors: list[WeftError] = []
    for operation in reversed(operations):
        if operation.on_link in links:
            continue
        try:
            watch("undo", operation)
            if log is None:
                operation.undo(machine)
            else:
                _logged(log, "undo", operation, machine, operation.undo)
        except WeftError as error:
            errors.append(error)
    return errors


class Known:
    """What was found for shared operations: many attachments have the same, and each is compared once."""

    def __init__(self) -> None:
        self._found: dict[Operation, str | None] = {}
        self._same: dict[int, tuple[Operation, str | None]] = {}  # by id: to hash one takes 10 us

    def mismatch(self, operation: Operation, machine: Machine) -> str | None:
        known = self._same.get(id(operation))
        if known is None:
            if operation not in self._found:
                self._found[operation] = _mismatch(operation, machine)
            known = self._same[id(operation)] = operation, self._found[operation]
        return known[1]


@dataclass(frozen=True, slots=True)
class Difference:
    """What differs from what an operation has set up, in a sentence; ``operation`` as later ones adapt it."""

    operation: Operation
    sentence: str
    unleased: bool = False
    """Whether an address of the attachment is not leased to it, and so may be another container's."""

    def is_repairable(self, machine: Machine, shared: Sequence[Operation] = ()) -> bool:
        """Whether a repair mends it: that of what networks share tries everything."""
        try:
            return self.operation in shared or (not self.unleased and self.operation.is_repairable(machine))
        except WeftError:
            return False


def mismatches(operations: Sequence[Operation], machine: Machine, later: Sequence[Operation] = ()) -> list[str]:
    """The sentences of ``differences``."""
    return [one.sentence for one in differences(operations, machine, later)]


def differences(
    operations: Sequence[Operation],
    machine: Machine,
    later: Sequence[Operation] = (),
    *,
    shared: int = 0,
    known: Known | None = None,
    below: Callable[[], Sequence[Operation]] = tuple,
) -> list[Difference]:
    """What differs from what the operations have set up. What was on a link that is lost is not listed.

    ``later`` are the operations of plugins further on in the chain, which may have changed the same
    things. The first ``shared`` operations are shared ones; what is ``known`` of these is added to it.
    ``below`` answers others, compared elsewhere, whose links these may be on.
    """
    found = []
    for index, (_, expected) in enumerate(_adapted(operations, later)):
        if known is not None and index < shared:
            sentence = known.mismatch(expected, machine)
        else:
            sentence = _mismatch(expected, machine)
        if sentence:
            found.append(Difference(expected, sentence))
    if any(isinstance(one.operation, Lease) for one in found):
        found = [replace(one, unleased=True) for one in found]
    return _causes(found, machine, below()) if found else found


def _causes(found: Sequence[Difference], machine: Machine, below: Sequence[Operation]) -> list[Difference]:
    """The differences without those that follow from a link that is lost; its own says so."""
    lost = {link for operation in below for link in operation.lost(machine)}
    causes: list[Difference] = []
    followed: set[LinkRef] = set()
    for one in found:
        mine = one.operation.lost(machine)
        lacking = lost.intersection(one.operation.needs)
        lost.update(mine)
        if lacking and (not mine or mine != one.operation.creates):
            followed |= lacking
        else:
            causes.append(one)
    return [
        replace(one, sentence=f"{one.sentence}, with what was set up on it")
        if not followed.isdisjoint(one.operation.lost(machine))
        else one
        for one in causes
    ]


def _adapted(operations: Sequence[Operation], later: Sequence[Operation] = ()) -> Iterator[tuple[Operation, Operation]]:
    """Each operation, and how it is after the changes that later ones have made to its effect."""
    changes = [(place, one) for place, one in enumerate((*operations, *later)) if _adapts(one)]
    for index, operation in enumerate(operations):
        expected = operation
        for place, change in changes:
            if place > index:
                expected = change.adapt(expected)
        yield operation, expected


def _adapts(operation: Operation) -> bool:
    """Whether operations of that class can change what an earlier one is compared with."""
    return type(operation).adapt is not Operation.adapt


def _mismatch(operation: Operation, machine: Machine) -> str | None:
    try:
        return operation.mismatch(machine)
    except WeftError as error:
        return str(error)


def restore(operations: Sequence[Operation], machine: Machine) -> int:
    """Restore what other programs have reverted while the container runs; how many operations that were.

    What fails is left to CHECK to report.
    """
    changed = 0
    for operation in operations:
        with contextlib.suppress(WeftError):
            changed += operation.restore(machine)
    return changed


def repair(
    endpoints: Sequence[Sequence[Operation]], machine: Machine, watch: Watch = unwatched, log: Log | None = None
) -> list[WeftError]:
    """Make again what differs of the operations of a running container's endpoints, and all that was on a
    link that is lost, in order; the errors.

    Left out is what is on a link that cannot be made, and all of an endpoint whose addresses are not leased
    to it: another container may have them.
    """
    remade: set[LinkRef] = set()
    failed: set[LinkRef] = set()
    errors: list[WeftError] = []
    operations = [operation for each in endpoints for operation in each]
    leased = [is_leased for each in endpoints for is_leased in [_are_leased(each, machine)] * len(each)]
    for (operation, expected), is_leased in zip(_adapted(operations), leased, strict=True):
        lost = operation.lost(machine)
        if not is_leased or not failed.isdisjoint(operation.needs):
            failed.update(lost)
            continue
        try:
            if not operation.creates and not remade.isdisjoint(operation.needs):
                apply(operation, machine, watch, log)
            elif _mismatch(expected, machine) is None:
                continue
            elif expected.is_repairable(machine):
                watch("apply", operation)
                (operation if lost else expected).repair(machine)
                remade.update(lost)
            else:
                failed.update(lost)
        except WeftError as error:
            errors.append(error)
            failed.update(lost)
    return errors


def _are_leased(operations: Sequence[Operation], machine: Machine) -> bool:
    return all(_mismatch(one, machine) is None for one in operations if isinstance(one, Lease))


def _logged(log: Log, verb: str, operation: Operation, machine: Machine, step: Callable[[Machine], _T]) -> _T:
    """Take one step and log it: ``apply Veth: changed, 0.41 ms: ip link add …``."""
    started = time.monotonic()
    outcome = "undone" if verb == "undo" else "changed"
    try:
        result = step(machine)
        if result is False:
            outcome = "unchanged"
        return result
    except BaseException as error:
        outcome = f"failed: {error}"
        raise
    finally:
        milliseconds = (time.monotonic() - started) * 1000
        log(f"{verb} {type(operation).__name__}: {outcome}, {milliseconds:.2f} ms{_commands(operation, machine)}")


def _commands(operation: Operation, machine: Machine) -> str:
    container = machine.container.id.path if machine.container is not None else ""
    commands = " ".join("; ".join(operation.commands(container)).split())
    return f": {commands[:_LONGEST_COMMANDS]}" if commands else ""


def _messages(errors: Sequence[WeftError]) -> str:
    return "; ".join(error.message for error in errors)
