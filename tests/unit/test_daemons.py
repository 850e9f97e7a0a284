"""A call replaces a daemon of an older release, and keeps one of the same or a newer release."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from weft import __version__, daemons
from weft.daemons import REFRESHED, Daemon
from weft.errors import Busy, LibraryMissing, WeftError


def serve(path: Path, answer: bytes) -> subprocess.Popen[bytes]:
    """A daemon that sends ``answer`` to every client."""
    program = (
        "import socket, sys\n"
        "listener = socket.socket(socket.AF_UNIX)\n"
        "listener.bind(sys.argv[1]); listener.listen(8)\n"
        "print('ready', flush=True)\n"
        "while True:\n"
        "    connection, _ = listener.accept()\n"
        "    connection.send(bytes.fromhex(sys.argv[2])); connection.close()\n"
    )
    process = subprocess.Popen([sys.executable, "-c", program, str(path), answer.hex()], stdout=subprocess.PIPE)
    assert process.stdout is not None and process.stdout.readline() == b"ready\n"
    return process


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """The modules that were started; each then listens on the socket."""
    modules: list[str] = []

    def start(module: str, purpose: str, library: str) -> None:
        path = tmp_path / "agent.sock"
        path.unlink(missing_ok=True)
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(path))
        listener.listen(8)
        modules.append(module)

        def answer() -> None:
            while True:
                connection, _ = listener.accept()
                connection.send(REFRESHED)
                connection.close()

        threading.Thread(target=answer, daemon=True).start()

    monkeypatch.setattr(daemons, "start", start)
    return modules


AGENT = Daemon("cni_plugin.agent.main", "answers names", "weft agent")


def test_a_daemon_is_started_if_none_answers(started: list[str], tmp_path: Path) -> None:
    AGENT.ensure(str(tmp_path / "agent.sock"))
    assert started == [AGENT.module]


def test_a_daemon_without_its_library_is_not_started(tmp_path: Path) -> None:
    lacking = Daemon("cni_plugin.agent.main", "answers names", "weft agent", "no_such_library")
    with pytest.raises(LibraryMissing, match="the process that answers names needs the library no_such_library"):
        lacking.ensure(str(tmp_path / "agent.sock"))


@pytest.mark.parametrize("answer", [b"looked\n", b"looked\n0.0.1\n"], ids=["0.1", "older"])
def test_an_older_release_is_replaced(started: list[str], tmp_path: Path, answer: bytes) -> None:
    process = serve(tmp_path / "agent.sock", answer)
    AGENT.ensure(str(tmp_path / "agent.sock"))
    assert started == [AGENT.module]
    assert process.wait(10) == -15


@pytest.mark.parametrize("answer", [REFRESHED, b"looked\n99.0.0\n"], ids=["equal", "newer"])
def test_an_equal_or_newer_release_is_kept(started: list[str], tmp_path: Path, answer: bytes) -> None:
    process = serve(tmp_path / "agent.sock", answer)
    try:
        AGENT.ensure(str(tmp_path / "agent.sock"))
        assert (started, process.poll()) == ([], None)
    finally:
        process.terminate()
        process.wait(10)


def test_earlier_releases_read_only_the_first_line() -> None:
    assert REFRESHED[: len(b"looked\n")] == b"looked\n"
    assert REFRESHED.decode().splitlines() == ["looked", __version__]


def test_other_listeners_and_missing_sockets_are_not_daemons(tmp_path: Path) -> None:
    process = serve(tmp_path / "other.sock", b"HTTP/1.1 400\r\n")
    try:
        assert daemons.refresh(str(tmp_path / "other.sock")) is None
    finally:
        process.terminate()
        process.wait(10)
    assert daemons.refresh(str(tmp_path / "missing.sock")) is None


def test_a_daemon_that_does_not_start_in_time_is_an_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(daemons, "start", lambda module, purpose, library: None)
    monkeypatch.setattr(daemons, "_START_TIMEOUT", 0.1)
    with pytest.raises(WeftError, match=r"did not start within 0\.1 s"):
        AGENT.ensure(str(tmp_path / "agent.sock"))
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize("text", ["[agent", "[agent]\nnodes = 1\n"])
def test_a_daemon_with_an_invalid_configuration_is_not_waited_for(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, text: str
) -> None:
    (tmp_path / "weft.toml").write_text(text)
    monkeypatch.setenv("WEFT_CONFIG", str(tmp_path / "weft.toml"))
    daemon = Daemon("cni_plugin.agent.main", "answers names", "weft agent")
    with pytest.raises(WeftError, match=rf"no process answers names, .*{tmp_path}/weft.toml"):
        daemon.ensure(str(tmp_path / "agent.sock"))


@pytest.mark.parametrize("stopped", [True, False], ids=["stopped", "hung"])
def test_a_daemon_that_does_not_answer_is_given_up(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, started: list[str], stopped: bool
) -> None:
    monkeypatch.setattr(daemons, "_SILENT_SECONDS", 60.0 if stopped else 0.5)
    program = "import socket, sys, time; s = socket.socket(socket.AF_UNIX); s.bind(sys.argv[1]); s.listen(8); "
    program += "print(flush=True); time.sleep(300)"
    path = tmp_path / "agent.sock"
    process = subprocess.Popen([sys.executable, "-c", program, str(path)], stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None and process.stdout.readline()
        if stopped:
            process.send_signal(signal.SIGSTOP)
        with pytest.raises(Busy, match="is stopped" if stopped else "has not answered for"):
            AGENT.ensure(str(path))
        assert started == []
    finally:
        process.kill()
        process.communicate()


def test_a_daemon_that_is_busy_is_waited_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(daemons, "_SILENT_SECONDS", 1.0)
    program = (
        "import socket, sys, time; s = socket.socket(socket.AF_UNIX); s.bind(sys.argv[1]); s.listen(8); "
        "print(flush=True); c = s.accept()[0]; end = time.monotonic() + 2.5\n"
        "while time.monotonic() < end: pass\n"
        "c.send(bytes.fromhex(sys.argv[2]))"
    )
    path = tmp_path / "agent.sock"
    argv = [sys.executable, "-c", program, str(path), REFRESHED.hex()]
    with subprocess.Popen(argv, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stdout.readline()
        AGENT.ensure(str(path))
