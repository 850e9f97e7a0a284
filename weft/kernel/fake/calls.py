"""Recording of calls to the fake kernel, and errors injected into them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from weft.errors import WeftError


class CallLog:
    """The methods called so far, in ``calls``, and the errors that later calls raise."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self._failures: list[tuple[str, WeftError, int]] = []

    def fail(self, verb: str, error: WeftError, *, call: int = 1) -> None:
        """Raise an error at the ``call``-th next call of a method, before it has any effect."""
        self._failures.append((verb, error, call))

    def called(self, verb: str) -> None:
        """Record a call; raise the error that is due."""
        self.calls.append(verb)
        due = [error for name, error, call in self._failures if (name, call) == (verb, 1)]
        waiting = [failure for failure in self._failures if (failure[0], failure[2]) != (verb, 1)]
        self._failures = [(name, error, call - (name == verb)) for name, error, call in waiting]
        if due:
            raise due[0]

    @contextlib.contextmanager
    def unrecorded(self) -> Iterator[None]:
        """Neither record calls nor raise errors in the block."""
        calls, failures = list(self.calls), self._failures
        self._failures = []
        try:
            yield
        finally:
            self.calls, self._failures = calls, failures
