"""The only caller of operations: applies a plan or takes it back, removes, checks.

Every driver's ADD, rollback, DEL and CHECK are these few lines; none has its own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import TracebackType

from cni_plugin.ops.operation import Lease, Machine, Operation
from weft.errors import Conflict, WeftError
from weft.types import Result

Watch = Callable[[str, Operation], None]
"""Called before every step with "apply" or "undo" and the operation; the tests' place for faults and kills."""


def unwatched(verb: str, operation: Operation) -> None:
    """Nothing happens between steps."""


class Attempt:
    """A with-block in which operations are applied; if it fails, all that was begun is undone, in reverse.

    What cannot be undone either is added to the error's hint; the record on disk still knows it, and DEL
    or GC try again.
    """

    def __init__(self, machine: Machine, watch: Watch = unwatched) -> None:
        self._machine = machine
        self._watch = watch
        self._begun: list[Operation] = []
        self.left: list[WeftError] = []

    def __enter__(self) -> Attempt:
        return self

    def reserve(self, lease: Lease) -> Result:
        """The addresses of a lease, reserved. It undoes its own failure, so that it never frees an earlier one."""
        self._watch("apply", lease)
        answer = lease.reserve(self._machine)
        self._begun.append(lease)
        return answer

    def apply(self, operations: Sequence[Operation]) -> None:
        """Apply in order."""
        for operation in operations:
            self._begun.append(operation)
            self._watch("apply", operation)
            try:
                operation.apply(self._machine)
            except Conflict:
                # Nothing was changed, and what is in the way may bear our own mark: a living attachment, record lost.
                self._begun.pop()
                raise

    def __exit__(
        self, kind: type[BaseException] | None, failure: BaseException | None, trace: TracebackType | None
    ) -> None:
        if failure is None:
            return
        # Until it is known to be undone it is not: whatever breaks off the undoing, the record must stay.
        self.left = [WeftError("the undoing was broken off")]
        self.left = remove(self._begun, self._machine, self._watch)
        if self.left and isinstance(failure, WeftError):
            failure.hint = "; ".join(filter(None, (failure.hint, f"not undone: {_sentences(self.left)}")))


def remove(operations: Sequence[Operation], machine: Machine, watch: Watch = unwatched) -> list[WeftError]:
    """Undo in reverse, never stopping at an error; the errors are returned.

    What lies on a link that the same list made is not undone by itself: it goes with the link.
    """
    made = {place for operation in operations for place in operation.creates}
    errors: list[WeftError] = []
    for operation in reversed(operations):
        if operation.on_link in made:
            continue
        try:
            watch("undo", operation)
            operation.undo(machine)
        except WeftError as error:
            errors.append(error)
    return errors


def mismatches(operations: Sequence[Operation], machine: Machine, later: Sequence[Operation] = ()) -> list[str]:
    """What is not as the operations left it, a sentence each.

    ``later`` are the operations of plugins further on in the chain: they may have changed what these made.
    """
    sentences = []
    for place, operation in enumerate(operations):
        now = operation
        for change in (*operations[place + 1 :], *later):
            now = change.adapt(now)
        try:
            sentence = now.mismatch(machine)
        except WeftError as error:
            sentence = str(error)
        if sentence:
            sentences.append(sentence)
    return sentences


def _sentences(errors: Sequence[WeftError]) -> str:
    return "; ".join(error.message for error in errors)
