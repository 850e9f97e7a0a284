"""The first process of a new release waits for calls of older ones; later processes read a file."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from weft import __version__, releases
from weft.releases import supersede

ENGINE = (
    "import signal, sys; signal.signal(signal.SIGTERM, lambda *_: sys.exit(7)); print('up', flush=True); signal.pause()"
)
CALL = "import signal, time; print('up', flush=True); time.sleep(0.5)"


@pytest.fixture
def processes(tmp_path: Path) -> Iterator[dict[str, subprocess.Popen[bytes]]]:
    """Processes with the command lines of an engine and a call of another installation of weft."""
    found = {}
    for name, body in (("weft-engine", ENGINE), ("weft-plugin", CALL)):
        script = tmp_path / "other" / name
        script.parent.mkdir(exist_ok=True)
        script.write_text(body)
        found[name] = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE)
    for process in found.values():
        assert process.stdout is not None and process.stdout.readline() == b"up\n"
    yield found
    for process in found.values():
        process.kill()
        process.wait()


def test_engines_are_terminated_and_calls_are_waited_for(
    processes: dict[str, subprocess.Popen[bytes]], tmp_path: Path
) -> None:
    supersede(str(tmp_path / "run"))
    assert processes["weft-engine"].wait(0.5) == 7, "the engine gets SIGTERM, not SIGKILL"
    assert processes["weft-plugin"].wait(0.5) == 0, "a call is never interrupted"
    assert (tmp_path / "run" / "engine.release").read_text() == __version__
    assert os.listdir(tmp_path / "run") == ["engine.release"]


@pytest.mark.parametrize("noted", [__version__, "99.0.0"])
def test_processes_are_not_searched_once_the_release_is_recorded(
    processes: dict[str, subprocess.Popen[bytes]], tmp_path: Path, noted: str
) -> None:
    (tmp_path / "engine.release").write_text(noted)
    supersede(str(tmp_path))
    assert processes["weft-engine"].poll() is None
    assert (tmp_path / "engine.release").read_text() == noted


def test_a_recorded_older_release_is_superseded(processes: dict[str, subprocess.Popen[bytes]], tmp_path: Path) -> None:
    (tmp_path / "engine.release").write_text("0.1.0")
    supersede(str(tmp_path))
    assert processes["weft-engine"].wait(0.5) == 7
    assert (tmp_path / "engine.release").read_text() == __version__


def test_the_wait_for_a_call_that_does_not_end_is_bounded(
    processes: dict[str, subprocess.Popen[bytes]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(releases, "_MAX_WAIT_SECONDS", 0.1)
    began = time.monotonic()
    supersede(str(tmp_path / "run"))
    assert time.monotonic() - began < 5
    assert (tmp_path / "run" / "engine.release").exists()


def test_processes_started_after_the_upgrade_are_not_of_another_release(
    processes: dict[str, subprocess.Popen[bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """They run the same files, and started after these were last replaced."""
    here = releases._program(releases._command_line(processes["weft-engine"].pid))
    monkeypatch.setattr(releases, "_program", lambda line: here)
    assert not releases._others().keys() & {process.pid for process in processes.values()}
    monkeypatch.setattr(releases, "_started", lambda process: 0.0)
    assert releases._others().keys() >= {process.pid for process in processes.values()}
