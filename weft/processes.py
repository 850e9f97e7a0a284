"""Programs that weft starts from a process with many threads.

Between fork and ``execve(2)`` a new process has copies of all descriptors of this one, those that
other threads use included. So a thread that has closed a descriptor and must know that nobody of
this process has it any more calls ``settle``.
"""

from __future__ import annotations

import os
from _thread import allocate_lock
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

_starting = allocate_lock()
"""Held from before the fork until the new process has executed its program."""


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
    with _starting:
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
    with _starting:  # posix_spawn(3) returns when the program has been executed
        child = os.posix_spawnp(argv[0], list(argv), environment, file_actions=actions, setsid=detached)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def settle() -> None:
    """Wait until no process is between fork and execve: what was closed before is closed there, too."""
    with _starting:
        pass
