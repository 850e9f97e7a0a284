"""Run a command with a time limit; processes that it leaves are killed."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a command ended: its exit status and what it wrote."""

    code: int
    stdout: str
    stderr: str

    @property
    def json(self) -> Any:
        """Standard output parsed as JSON; raises AssertionError with all output if it is invalid."""
        try:
            return json.loads(self.stdout)
        except ValueError:
            raise AssertionError(f"no JSON on standard output: {self}") from None


def run(
    *argv: str,
    stdin: str | bytes = b"",
    timeout: float = 60,
    environment: Mapping[str, str] | None = None,
    check: bool = True,
    folder: str | None = None,
    descriptors: tuple[int, ...] = (),
) -> Outcome:
    """Run a command; raises AssertionError if it fails (unless ``check`` is False) or takes too
    long.

    All processes of its session are killed when the time limit (seconds) is reached.
    """
    with subprocess.Popen(
        argv,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=None if environment is None else dict(environment),
        cwd=folder,
        pass_fds=descriptors,
        start_new_session=True,
    ) as process:
        try:
            out, err = process.communicate(stdin.encode() if isinstance(stdin, str) else stdin, timeout)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            out, err = process.communicate()
            raise AssertionError(f"{argv} took longer than {timeout} s; it wrote {out!r} {err!r}") from None
    outcome = Outcome(process.returncode, out.decode(errors="replace"), err.decode(errors="replace"))
    if check and outcome.code != 0:
        raise AssertionError(f"{argv} failed: {outcome}")
    return outcome


def opened(pid: int) -> list[str]:
    """The files that a process has open; [] if it has ended."""
    found = []
    with contextlib.suppress(FileNotFoundError):
        for path in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(OSError):  # closed since
                found.append(os.readlink(path))
    return found
