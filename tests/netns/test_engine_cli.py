"""``weft engine``: start, stop and show the engine; socket activation by systemd."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lab import engine
from lab.commands import Outcome, run
from lab.confined import confined
from lab.host import Host
from lab.plugins import OWN_FOLDER, ROOT, Cni
from lab.waiting import until

WEFT = str(ROOT / "bin" / "weft")
UNITS = ROOT / "conf" / "systemd"
PATIENCE = 60.0
CONF: dict[str, Any] = {
    "cniVersion": "1.0.0",
    "name": "operated",
    "type": "bridge",
    "bridge": "br-operated",
    "isGateway": True,
    "ipam": {"type": "host-local", "ranges": [[{"subnet": "10.74.0.0/24"}]]},
}


def weft(*arguments: str, check: bool = True) -> Outcome:
    return run(WEFT, "engine", *arguments, check=check, timeout=PATIENCE)


def place() -> Path:
    return Path(f"/run/weft/{os.stat('/proc/thread-self/ns/net').st_ino}/engine.sock")


def ended(process: int) -> None:
    """Wait until a process that is not a child of the test has exited."""
    deadline = time.monotonic() + PATIENCE
    while Path(f"/proc/{process}").exists():
        if Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
            return
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_start_status_use_stop(host: Host, cni: Cni) -> None:
    assert weft("status", check=False).code == 1
    assert weft("stop").stdout == "engine not running\n"
    process = weft("start", "--json").json["pid"]
    try:
        assert weft("start", "--json").json == {"pid": process, "state": "already running"}
        found = weft("status", "--json").json
        assert (found["running"], found["pid"], found["socket"]) == (True, process, str(place()))
        assert 5_000 < found["residentKiB"] < 200_000
        assert 0 <= found["ageSeconds"] < 600
        assert str(process) in weft("status").stdout
        path = host.container()
        cni.add(CONF, path, extra={"WEFT_ENGINE": "require"})
        cni.delete(CONF, path, extra={"WEFT_ENGINE": "require"})
    finally:
        assert weft("stop", "--json").json == {"pid": process, "state": "stopped"}
    ended(process)
    assert weft("status", "--json", check=False).json == {"running": False}
    assert not place().exists()


def test_killed_engine_is_not_shown(host: Host) -> None:
    process = weft("start", "--json").json["pid"]
    os.kill(process, signal.SIGSTOP)  # else it starts others
    for helper in engine.helpers(process):  # they would remove the socket
        os.kill(helper, signal.SIGKILL)
        until(lambda gone=helper: gone not in engine.helpers(process))
    os.kill(process, signal.SIGKILL)
    ended(process)
    assert place().exists()
    assert weft("status", check=False).code == 1
    again = weft("start", "--json").json
    assert again["state"] == "started"
    assert again["pid"] != process
    weft("stop")


def test_help_and_usage_errors(host: Host) -> None:
    text = weft("--help").stdout
    assert all(word in text for word in ("start", "status", "stop", "--idle"))
    assert "engine" in run(WEFT, "--help").stdout
    for wrong in (["--nonsense"], ["fly"], ["--idle", "x"], ["--idle", "-1"]):
        assert weft(*wrong, check=False).code == 2, wrong


class Activated:
    """What systemd does: it owns the socket, and starts the service when a client connects."""

    def __init__(self) -> None:
        self.path = place()
        self.path.parent.mkdir(parents=True, mode=0o700)
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(str(self.path))
        self.path.chmod(0o600)
        self.listener.listen(64)
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, *arguments: str) -> subprocess.Popen[bytes]:
        script = 'exec 3<&"$1"; export LISTEN_FDS=1 LISTEN_PID=$$; shift; exec "$@"'
        handed = str(self.listener.fileno())
        self.process = subprocess.Popen(
            ["/bin/bash", "-c", script, "-", handed, WEFT, "engine", *arguments],
            pass_fds=[self.listener.fileno()],
            stderr=subprocess.DEVNULL,
        )
        return self.process

    def close(self) -> None:
        self.listener.close()
        if self.process is not None:
            self.process.kill()
            self.process.wait()


@pytest.fixture
def activated(host: Host) -> Iterator[Activated]:
    found = Activated()
    try:
        yield found
    finally:
        found.close()


def calling(cni: Cni, command: str, path: str) -> subprocess.Popen[bytes]:
    """Start a call through the engine without waiting for its end."""
    environment = cni.environment(command, netns=path) | {"WEFT_ENGINE": "require"}
    process = subprocess.Popen(
        [OWN_FOLDER / "bridge"], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdin is not None
    process.stdin.write(json.dumps(CONF).encode())
    process.stdin.close()
    process.stdin = None
    return process


def test_systemd_socket_outlives_the_engines(host: Host, cni: Cni, activated: Activated) -> None:
    """Clients that connect after idle exit, SIGTERM or SIGKILL are served by the next engine."""
    path = host.container()
    for number, end in enumerate((None, signal.SIGTERM, signal.SIGKILL)):
        call = calling(cni, "ADD" if number % 2 == 0 else "DEL", path)
        engine = activated.start("--idle", "1" if end is None else "0")
        output, errors = call.communicate(timeout=PATIENCE)
        assert call.returncode == 0, (output, errors)
        if end is not None:
            assert engine.poll() is None
            engine.send_signal(end)
        assert engine.wait(PATIENCE) == (-signal.SIGKILL if end is signal.SIGKILL else 0)
        assert activated.path.exists(), "the engine removed the socket of systemd"
    cni.delete(CONF, path)


def test_a_socket_that_others_may_use_is_refused(host: Host, activated: Activated) -> None:
    activated.path.chmod(0o660)
    assert activated.start("--idle", "1").wait(PATIENCE) == 1


def test_engine_works_confined_as_by_its_unit(host: Host, cni: Cni) -> None:
    program = confined(UNITS / "weft-engine.service", WEFT, "engine")
    with subprocess.Popen(program, stderr=subprocess.DEVNULL) as engine:
        try:
            deadline = time.monotonic() + PATIENCE
            while not place().exists():
                assert engine.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.05)
            path = host.container()
            rich = {
                **CONF, "type": "weft", "driver": "bridge", "ipMasq": True, "portmap": {}, "firewall": {},
                "bandwidth": {"ingressRate": 8_000_000, "ingressBurst": 800_000}, "tuning": {"mtu": 1400},
                "runtimeConfig": {"portMappings": [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]},
            }  # fmt: skip
            required = {"WEFT_ENGINE": "require"}
            result = cni.add(rich, path, extra=required)
            cni.check(rich, result, path, extra=required)
            cni.delete(rich, path, extra=required)
        finally:
            engine.terminate()


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")
def test_systemd_analyze_accepts_the_units(tmp_path: Path) -> None:
    """systemd-analyze verify accepts them with an existing ExecStart, and rates them hardened."""
    for unit in UNITS.iterdir():
        text = unit.read_text().replace("/usr/local/bin/weft", WEFT)
        (tmp_path / unit.name).write_text(text)
    units = sorted(str(path) for path in tmp_path.iterdir())
    found = run("systemd-analyze", "verify", "--man=no", "--recursive-errors=no", *units, check=False, timeout=PATIENCE)
    assert (found.code, found.stdout, found.stderr) == (0, "", ""), found
    for service in sorted(map(str, tmp_path.glob("*.service"))):
        judged = run("systemd-analyze", "security", "--offline=yes", "--threshold=60", service, check=False)
        assert judged.code == 0, judged.stdout
