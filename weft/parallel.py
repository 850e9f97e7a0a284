"""Work on many independent items by all processors, in forked processes: CPython runs one thread at a time."""

from __future__ import annotations

import gc
import marshal
import os
from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar, cast

_T = TypeVar("_T")
_R = TypeVar("_R")
LEAST = 200
"""Items for which a process is worth its start: 30 ms, and a copy of what both write to."""
_PARTS = 8  # for each process
_NUMBER = 4  # bytes; a pipe has room for 16,000 numbers


def begun(
    items: Sequence[_T], work: Callable[[Sequence[_T]], list[_R]], forked: Callable[[], None]
) -> Callable[[], list[_R]]:
    """Begin ``work(items)`` in forked processes: as many as there are processors but one, so that each and
    this one have at least ``LEAST`` items. What is returned does this process's share and waits for theirs; it is
    to be called once. Until then this process may do something else.

    ``work`` only reads, answers one value for each item, and these are made of strings, numbers, lists
    and tuples. It is given a part of the items at a time: each process takes the next one when it is done, so
    that none waits for one that has less of a processor. ``forked`` is called first in each new process, which
    must not use the sockets of this one. For a process without other threads. What a process did not answer
    for, since ``work`` raised an error there or the process was killed, is worked on by this one, which then
    raises the error.
    """
    count = max(min(len(os.sched_getaffinity(0)), len(items) // LEAST), 1)
    size = -(-len(items) // (count * _PARTS if count > 1 else 1)) or 1
    parts = [items[first : first + size] for first in range(0, len(items), size)]
    queue = _queue(range(count, len(parts)))

    def share(number: int) -> dict[int, list[_R]]:
        """What is found for the part of that number, and for those that are taken then."""
        found = {}
        while number < len(parts):
            found[number] = work(parts[number])
            number = int.from_bytes(os.read(queue, _NUMBER) or b"\xff" * _NUMBER)
        return found

    if count > 1:
        gc.freeze()  # a collection in one process would copy all that they share
    started = [_start(lambda first=first: share(first), forked) for first in range(1, count)]  # type: ignore[misc]

    def finish() -> list[_R]:
        found: dict[int, list[_R]] = {}
        try:
            found.update(share(0))
        finally:
            os.close(queue)
            for process, pipe in started:
                found.update(cast(dict[int, list[_R]], _answer(process, pipe) or {}))
        return [one for number, part in enumerate(parts) for one in found.get(number) or work(part)]

    return finish


def _queue(numbers: Iterable[int]) -> int:
    """A descriptor from which each of several processes reads the next number, and nothing after the last."""
    read, write = os.pipe()
    os.write(write, b"".join(number.to_bytes(_NUMBER) for number in numbers))
    os.close(write)
    return read


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
