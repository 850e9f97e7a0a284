"""Programs that weft starts from a process with many threads.

Between fork and ``execve(2)`` a new process has copies of all descriptors of this one, those that
other threads use included. So a thread that has closed a descriptor and must know that nobody of
this process has it any more calls ``settle``.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

_PATIENCE = 1.0  # seconds; a program on a network file system that hangs must not delay all calls
_starting: set[object] = set()
"""One for each process that has been forked and has not executed its program yet."""
_changed = threading.Condition()


@dataclass(frozen=True, slots=True)
class Finished:
    """A program's exit status, and what it has written."""

    status: int
    output: bytes
    errors: bytes


def run(
    argv: Sequence[str],
    stdin: bytes,
    *,
    environment: Mapping[str, str],
    timeout: float,
    before_execve: Callable[[], None] | None = None,
) -> Finished:
    """Run a program to its end; it is killed after ``timeout`` seconds.

    Raises OSError where it cannot be executed, TimeoutError after the timeout.
    """
    import subprocess

    pipe = subprocess.PIPE
    with _start():
        process = subprocess.Popen(
            argv, stdin=pipe, stdout=pipe, stderr=pipe, env=environment, preexec_fn=before_execve
        )
    with process:
        try:
            output, errors = process.communicate(stdin, timeout)
        except BaseException as error:
            process.kill()
            if isinstance(error, subprocess.TimeoutExpired):
                raise TimeoutError(f"{argv[0]} timed out after {timeout:g} s") from error
            raise
    return Finished(process.returncode, output, errors)


def spawn(argv: Sequence[str], environment: Mapping[str, str], *, detached: bool = False) -> int:
    """Start a program and wait for its end; its exit status.

    ``detached``: in a session of its own, with its standard descriptors on /dev/null. A daemon forks
    there and lives on. Raises OSError.
    """
    actions = [(os.POSIX_SPAWN_OPEN, number, os.devnull, os.O_RDWR, 0) for number in (0, 1, 2)] if detached else ()
    with _start():  # posix_spawn(3) returns when the program has been executed
        child = os.posix_spawnp(argv[0], list(argv), environment, file_actions=actions, setsid=detached)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def feed(argv: Sequence[str], stdin: bytes, environment: Mapping[str, str]) -> int:
    """Run a program on this one's terminal, with its input from ``stdin``; its exit status. Raises OSError."""
    import subprocess

    with _start():
        process = subprocess.Popen(argv, stdin=subprocess.PIPE, env=environment)
    with process:
        process.communicate(stdin)
    return process.returncode


def begin(argv: Sequence[str], environment: Mapping[str, str], *, stdin: bool) -> int:
    """Start a program that has this one's output, and its input or none; its process id. Raises OSError."""
    actions = [] if stdin else [(os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0)]
    with _start():
        return os.posix_spawnp(argv[0], list(argv), environment, file_actions=actions)


def launch(argv: Sequence[str], environment: Mapping[str, str], *, log: str, held: int) -> int:
    """Start a program in a session of its own, which outlives this process; its process id.

    What it writes is appended to the file ``log``; it keeps the descriptor ``held`` open, and with it a
    lock. Raises OSError.
    """
    actions = [
        (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
        (os.POSIX_SPAWN_OPEN, 1, log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW, 0o600),
        (os.POSIX_SPAWN_DUP2, 1, 2),
        (os.POSIX_SPAWN_DUP2, held, 3),
    ]
    with _start():
        return os.posix_spawnp(argv[0], list(argv), environment, file_actions=actions, setsid=True, setsigmask=())


def settle() -> None:
    """Wait for the processes that are between fork and execve now: what this thread has closed is then
    closed there, too.
    """
    with _changed:
        before = frozenset(_starting)
        if before:
            _changed.wait_for(lambda: before.isdisjoint(_starting), _PATIENCE)


@contextlib.contextmanager
def _start() -> Iterator[None]:
    one = object()
    with _changed:
        _starting.add(one)
    try:
        yield
    finally:
        with _changed:
            _starting.remove(one)
            _changed.notify_all()
