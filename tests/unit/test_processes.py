"""Programs that are started, and waiting for those that are just being started."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path

import pytest

from weft import processes

HERE = {"PATH": os.environ["PATH"]}


def test_input_output_and_status() -> None:
    found = processes.run(["sh", "-c", "cat; echo bad >&2; exit 3"], b"in", environment=HERE, timeout=20)
    assert (found.status, found.output, found.errors) == (3, b"in", b"bad\n")
    assert processes.spawn(["sh", "-c", "exit 4"], HERE) == 4
    assert processes.spawn(["sh", "-c", "kill -9 $$"], HERE, detached=True) == -signal.SIGKILL


def test_a_program_that_is_missing_or_does_not_end() -> None:
    for start in (processes.run, processes.spawn):
        given = {"stdin": b"", "environment": HERE, "timeout": 20} if start is processes.run else {"environment": HERE}
        with pytest.raises(FileNotFoundError):
            start(["/nowhere"], **given)  # type: ignore[operator]
    with pytest.raises(TimeoutError, match=r"sleep timed out after 0.05 s"):
        processes.run(["sleep", "600"], b"", environment=HERE, timeout=0.05)
    assert not processes._starting


def test_settling_waits_for_what_is_being_started_and_not_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A copy of a descriptor keeps the write end of a pipe open until execve."""
    reader, writer = os.pipe2(os.O_CLOEXEC)
    mark = tmp_path / "forked"

    def before_execve() -> None:
        mark.touch()
        time.sleep(0.2)

    given = {"environment": HERE, "timeout": 20, "before_execve": before_execve}
    starter = threading.Thread(target=processes.run, args=(["true"], b""), kwargs=given)
    starter.start()
    while not mark.exists():
        time.sleep(0.001)
    os.close(writer)
    processes.settle()
    os.set_blocking(reader, False)
    assert os.read(reader, 1) == b""  # EOF: nobody has the other end
    os.close(reader)
    starter.join()
    processes.settle()
    monkeypatch.setattr(processes, "_PATIENCE", 0.01)
    with processes._start():
        processes.settle()
