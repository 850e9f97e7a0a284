"""Work on many independent items by all processors, in forked processes: CPython runs one thread at a time."""

from __future__ import annotations

import gc
import marshal
import os
from collections.abc import Callable, Sequence
from typing import TypeVar, cast

_T = TypeVar("_T")
_R = TypeVar("_R")
LEAST = 200
"""Items for which a process is worth its start: 30 ms, and a copy of what both write to."""


def shared_out(items: Sequence[_T], work: Callable[[Sequence[_T]], list[_R]], forked: Callable[[], None]) -> list[_R]:
    """``work(items)``, in as many processes as there are processors, each with at least ``LEAST`` items.

    ``work`` only reads, answers one value for each item, and these are made of strings, numbers, lists
    and tuples. ``forked`` is called first in each new process, which must not use the sockets of this
    one. For a process without other threads. What a process did not answer for, since ``work`` raised
    an error there or the process was killed, is worked on by this one, which then raises the error.
    """
    count = max(min(len(os.sched_getaffinity(0)), len(items) // LEAST), 1)
    size = -(-len(items) // count) or 1
    parts = [items[first : first + size] for first in range(0, len(items), size)]
    if count > 1:
        gc.freeze()  # a collection in one process would copy all that they share
    started = [_start(lambda part=part: work(part), forked) for part in parts[1:]]  # type: ignore[misc]
    found = work(parts[0]) if parts else []
    for part, (process, pipe) in zip(parts[1:], started, strict=True):
        answer = _answer(process, pipe)
        found += cast(list[_R], answer) if answer is not None else work(part)
    return found


def _start(work: Callable[[], object], forked: Callable[[], None]) -> tuple[int, int]:
    """A new process, and the pipe to which it writes what ``work`` answers."""
    read, write = os.pipe()
    process = os.fork()
    if process:
        os.close(write)
        return process, read
    status = 1
    try:
        os.close(read)
        forked()
        with open(write, "wb") as pipe:
            pipe.write(marshal.dumps(work()))  # type: ignore[arg-type]
        status = 0
    finally:
        os._exit(status)  # whatever happened: never back into the caller


def _answer(process: int, read: int) -> object:
    """What the process answered, None if it did not."""
    with open(read, "rb") as pipe:
        answer = pipe.read()
    _, status = os.waitpid(process, 0)
    return marshal.loads(answer) if status == 0 else None
