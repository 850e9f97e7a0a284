"""The engine answers as a process of its own does; a SIGKILL of either side leaves nothing."""

from __future__ import annotations

import concurrent.futures
import contextlib
import json
import os
import re
import signal
import socket
import stat
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cni_plugin.engine.connection import IO_TIMEOUT
from cni_plugin.engine.helpers import process_count
from cni_plugin.wire import frame
from lab import engine as engines
from lab.commands import opened, run
from lab.host import Host
from lab.plugins import OWN_FOLDER, ROOT, Cni
from lab.waiting import until

PLUGIN = OWN_FOLDER / "bridge"
ENGINE = ROOT / ".venv" / "bin" / "weft-engine"
CONF: dict[str, Any] = {
    "cniVersion": "1.0.0",
    "name": "engined",
    "type": "bridge",
    "bridge": "br-engined",
    "isGateway": True,
    "ipMasq": True,
    "ipam": {"type": "host-local", "ranges": [[{"subnet": "10.72.0.0/24"}]]},
}


class Engine:
    """An engine in the test's host namespace."""

    def __init__(self, *arguments: str) -> None:
        self.folder = Path(f"/run/weft/{os.stat('/proc/thread-self/ns/net').st_ino}")
        self.socket = self.folder / "engine.sock"
        self.process = subprocess.Popen([ENGINE, "--log", *arguments], stderr=subprocess.PIPE)
        until(lambda: self.socket.exists() or self.process.poll() is not None, 60, "an engine")
        assert self.process.poll() is None, self.process.communicate()
        until(lambda: len(engines.helpers(self.process.pid)) == process_count() - 1)

    def kill(self, *, whole: bool = False) -> None:
        """SIGKILL to its main process, whose helpers then exit; if ``whole``, to these first."""
        if whole:
            helpers = engines.helpers(self.process.pid)
            for helper in helpers:
                os.kill(helper, signal.SIGKILL)
            until(lambda: not engines.helpers(self.process.pid))
        self.process.kill()
        self.process.wait()

    def close(self) -> str:
        """End it with SIGTERM, unless it has exited already; returns its standard error."""
        with contextlib.suppress(ProcessLookupError):
            self.process.terminate()
        try:
            return self.process.communicate(timeout=60)[1].decode()
        finally:
            self.process.kill()


@pytest.fixture
def engine(host: Host) -> Iterator[Engine]:
    found = Engine()
    try:
        yield found
    finally:
        found.close()


class Through(Cni):
    """Calls that fail without an engine (WEFT_ENGINE=require)."""

    def environment(self, *arguments: Any, **rest: Any) -> dict[str, str]:
        return super().environment(*arguments, **rest) | {"WEFT_ENGINE": "require"}


@pytest.fixture
def through() -> Through:
    return Through(OWN_FOLDER)


def left(folder: Path) -> list[str]:
    """The records, leases and links that exist."""
    places = (folder / "attachments", Path("/var/lib/cni/networks/engined"))
    files = [path.name for place in places if place.is_dir() for path in place.iterdir()]
    links = [link["ifname"] for link in run("ip", "-j", "link", "show", "type", "veth").json]
    return sorted(name for name in files if not name.startswith(("lock", "last_"))) + links


def start(cni: Cni, command: str, container: str, netns: str) -> subprocess.Popen[bytes]:
    """Start a call without waiting for its end."""
    process = subprocess.Popen(
        [PLUGIN],
        env=cni.environment(command, container, netns),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdin is not None
    process.stdin.write(json.dumps(CONF).encode())
    process.stdin.close()
    process.stdin = None
    return process


def test_another_plugin_has_the_callers_environment(
    host: Host, engine: Engine, through: Through, tmp_path: Path
) -> None:
    """Source: CNI specification section 4, "Delegated plugin execution procedure"."""
    (tmp_path / "fake").write_text(f"#!/bin/sh\nenv >{tmp_path}/$CNI_COMMAND\necho '{{\"ips\":[]}}'\n")
    (tmp_path / "fake").chmod(0o755)
    conf = {"cniVersion": "1.1.0", "name": "engined", "type": "bridge", "ipam": {"type": "fake"}}
    given = {"HTTPS_PROXY": "http://192.0.2.1", "EMPTY": "", "CNI_OF_OTHERS": "=x"}
    outcome = through("ADD", conf, netns=host.container(), path=str(tmp_path), extra=given)
    assert outcome.json["msg"] == "IPAM plugin returned missing IP config"
    for command in ("ADD", "DEL"):
        lines = (tmp_path / command).read_text().splitlines()
        assert {f"{name}={value}" for name, value in given.items()} <= set(lines)
        assert "CNI_CONTAINERID=c1" in lines and not any(line.startswith("MALLOC_ARENA_MAX") for line in lines)


@pytest.mark.parametrize("path", ["plugins", "/nowhere:./plugins", "/nowhere::plugins:"])
def test_folders_of_plugins_may_be_relative(host: Host, engine: Engine, cni: Cni, tmp_path: Path, path: str) -> None:
    """As cnitool is called in its guide: ``CNI_PATH=./bin cnitool add``."""
    (tmp_path / "plugins").mkdir()
    (tmp_path / "plugins" / "fake").write_text("#!/bin/sh\necho '{\"ips\":[]}'\n")
    (tmp_path / "plugins" / "fake").chmod(0o755)
    conf = {"cniVersion": "1.1.0", "name": "engined", "type": "bridge", "ipam": {"type": "fake"}}
    auto = {"WEFT_ENGINE": "auto"}
    outcome = cni("ADD", conf, netns=host.container(), path=path, extra=auto, folder=str(tmp_path))
    assert outcome.json["msg"] == "IPAM plugin returned missing IP config"


def test_answers_as_a_process_of_its_own_does(host: Host, engine: Engine, through: Through, cni: Cni) -> None:
    path = host.container()
    result = through.add(CONF, path)
    through.check(CONF, result, path)
    again = through("ADD", CONF, netns=path)
    assert again == cni("ADD", CONF, netns=path)
    assert again.json["code"] == 101
    through.delete(CONF, path)
    other = cni.add(CONF, path)
    through.check(CONF, other, path)
    assert [link["name"] for link in other["interfaces"]] == [link["name"] for link in result["interfaces"]]
    assert other["interfaces"] == result["interfaces"]
    through.delete(CONF, path)
    assert left(engine.folder) == []
    for conf in ({}, {"cniVersion": "1.0.0"}, {**CONF, "mtu": "x"}, {**CONF, "cniVersion": "7"}):
        assert through("ADD", conf, netns=path, plugin="bridge") == cni("ADD", conf, netns=path, plugin="bridge")
    for extra in ({"CNI_NETNS": "/nowhere"}, {"CNI_IFNAME": ""}, {"CNI_COMMAND": "FLY"}, {"CNI_ARGS": "X"}):
        assert through("ADD", CONF, netns=path, extra=extra) == cni("ADD", CONF, netns=path, extra=extra)


def test_socket_is_private(engine: Engine) -> None:
    assert stat.S_IMODE(engine.socket.stat().st_mode) == 0o600
    assert stat.S_IMODE(engine.folder.stat().st_mode) & 0o077 == 0
    # Even if the socket's mode lets another user connect, the engine refuses the request.
    for place in (engine.folder, engine.socket):
        place.chmod(0o777)
    script = (
        "import os, socket, sys; os.setuid(65534); s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1]);"
        "s.sendall(bytes.fromhex(sys.argv[2])); sys.exit(len(s.recv(1)))"
    )
    sent = frame.request(frame.RequestFrame("0", str(ROOT), frame.view(), "bridge", {}, b""))
    python = str(ROOT / ".venv/bin/python")
    assert run(python, "-Ic", script, str(engine.socket), sent.hex(), check=False).code in (0, 1)
    assert "permission denied" in engine.close()


def test_malformed_and_stalled_clients_block_no_other(host: Host, engine: Engine, through: Through) -> None:
    path = host.container()
    stuck = []
    for data in (b"", b"W", b"WEFT\1\0\0\0\xff\xff\x0f\0", b"GET / HTTP/1.1\r\n\r\n", os.urandom(4096)) * 8:
        client = socket.socket(socket.AF_UNIX)
        client.connect(str(engine.socket))
        with contextlib.suppress(OSError):
            client.sendall(data)
        stuck.append(client)
    started = time.monotonic()
    through.add(CONF, path)
    through.delete(CONF, path)
    # Served one after the other, the 24 clients with unfinished requests would take this long each.
    assert time.monotonic() - started < 8 * IO_TIMEOUT
    for client in stuck:
        client.close()
    assert left(engine.folder) == []


def test_required_engine_that_is_missing_is_an_error(host: Host, through: Through) -> None:
    path = host.container()
    outcome = through("ADD", CONF, netns=path)
    assert (outcome.code, outcome.json["code"], outcome.json["cniVersion"]) == (1, 11, "1.0.0")


def test_engine_starts_on_demand_and_exits_when_idle(host: Host, cni: Cni) -> None:
    path = host.container()
    extra = {"WEFT_ENGINE": "auto", "WEFT_ENGINE_IDLE": "4"}
    folder = Path(f"/run/weft/{os.stat('/proc/thread-self/ns/net').st_ino}")
    cni.add(CONF, path, extra=extra)  # returns, so the engine it started keeps none of its pipes open
    until((folder / "engine.sock").exists, 60, "an engine")
    cni.delete(CONF, path, extra={"WEFT_ENGINE": "require"})
    assert left(folder) == []
    until(lambda: not (folder / "engine.sock").exists(), 60, "the idle engine to exit")


def test_stale_socket_of_a_killed_engine(host: Host, engine: Engine, cni: Cni) -> None:
    path = host.container()
    engine.kill(whole=True)
    assert engine.socket.exists()
    cni.add(CONF, path, extra={"WEFT_ENGINE": "auto", "WEFT_ENGINE_IDLE": "1"})
    cni.delete(CONF, path)
    assert left(engine.folder) == []


def test_sigterm_under_load(host: Host, engine: Engine, through: Through) -> None:
    """SIGTERM: requests that were accepted are completed and answered."""
    calls = [(f"c{number}", host.container(f"c{number}")) for number in range(12)]
    running = [start(through, "ADD", *call) for call in calls]
    until(lambda: any((engine.folder / "attachments").glob("*.json")), what="an ADD")
    engine.process.send_signal(signal.SIGTERM)
    outcomes = [process.communicate(timeout=60) for process in running]
    assert engine.process.wait(60) == 0
    codes = [json.loads(out).get("code", 0) for out, _ in outcomes]
    assert set(codes) <= {0, 11}, outcomes  # 11: called after the engine had exited
    assert 0 in codes
    for call in calls:
        Cni(OWN_FOLDER).delete(CONF, call[1], container=call[0])
    assert left(engine.folder) == []


@pytest.mark.parametrize("delay", [each / 1000 for each in range(1, 40, 3)])
@pytest.mark.parametrize("command", ["ADD", "DEL"])
def test_sigkill_under_load(host: Host, command: str, delay: float, through: Through, cni: Cni) -> None:
    """SIGKILL of the engine: the client reports an error, and a DEL removes everything."""
    path = host.container()
    engine = Engine()
    through.add(CONF, path)
    if command == "ADD":
        through.delete(CONF, path)
    process = start(through, command, "c1", path)
    time.sleep(delay)
    engine.kill()
    out, _ = process.communicate(timeout=60)
    if process.returncode:
        assert json.loads(out)["code"] == 11
    cni.delete(CONF, path)
    assert left(engine.folder) == []
    cni.add(CONF, path)
    cni.delete(CONF, path)


@pytest.mark.parametrize("delay", [each / 1000 for each in range(0, 30, 3)])
def test_a_client_that_is_killed_leaves_nothing_after_its_del(
    host: Host, engine: Engine, through: Through, delay: float
) -> None:
    path = host.container()
    for _ in range(3):
        process = start(through, "ADD", "c1", path)
        time.sleep(delay)
        process.kill()
        process.communicate()
        through.delete(CONF, path)
        assert left(engine.folder) == []


def test_request_of_a_disconnected_client_is_not_started(host: Host, engine: Engine, through: Through) -> None:
    """An ADD waits for the attachment's lock when its client disconnects."""
    path = host.container()
    through.add(CONF, path)
    through.delete(CONF, path)
    from cni_plugin.service.records import Records
    from weft import locks
    from weft.types import Attachment

    lock = Records(str(engine.folder)).lock(Attachment("engined", "c1", "eth0", "bridge"))
    with locks.hold(lock):
        process = start(through, "ADD", "c1", path)
        until(lambda: lock in opened(engine.process.pid), what="the request to wait for the lock")
        process.kill()
        process.communicate()
    assert "the client has disconnected" in engine.close()
    assert left(engine.folder) == []


def test_concurrent_calls(host: Host, engine: Engine, through: Through) -> None:
    calls = [(f"c{number}", host.container(f"c{number}")) for number in range(64)]
    with concurrent.futures.ThreadPoolExecutor(64) as pool:
        results = list(pool.map(lambda call: through.add(CONF, call[1], container=call[0]), calls))
        addresses = {ip["address"] for result in results for ip in result["ips"]}
        assert len(addresses) == 64
        list(pool.map(lambda call: through.delete(CONF, call[1], container=call[0]), calls))
    assert left(engine.folder) == []


@pytest.mark.skipif(process_count() < 2, reason="with one processor an engine has no helpers")
def test_helpers_share_the_work(host: Host, engine: Engine, through: Through) -> None:
    """They serve calls under load and sleep otherwise; the engine works without them."""
    helpers = engines.helpers(engine.process.pid)
    calls = [(f"c{number}", host.container(f"c{number}")) for number in range(16)]

    def at_once(work: Any) -> None:
        with concurrent.futures.ThreadPoolExecutor(16) as pool:
            list(pool.map(work, calls))

    def add(call: tuple[str, str]) -> None:
        through.add(CONF, call[1], container=call[0])

    def delete(call: tuple[str, str]) -> None:
        through.delete(CONF, call[1], container=call[0])

    add(calls[0])
    delete(calls[0])
    before = [ticks(helper) for helper in helpers]
    until(lambda: (at_once(add), at_once(delete)) and [ticks(each) for each in helpers] > before)
    os.kill(helpers[0], signal.SIGKILL)
    at_once(add)
    at_once(delete)
    assert left(engine.folder) == []
    engine.close()
    assert not any(Path(f"/proc/{helper}").exists() for helper in helpers)


@pytest.mark.skipif(process_count() < 2, reason="with one processor an engine has no helpers")
def test_helpers_of_a_killed_engine_clean_up(host: Host, engine: Engine, cni: Cni) -> None:
    """Accepted requests are answered, no client hangs, and the next engine starts at once."""
    helpers = engines.helpers(engine.process.pid)
    calls = [(f"c{number}", host.container(f"c{number}")) for number in range(12)]
    running = [start(cni, "ADD", *call) for call in calls]
    until(lambda: any((engine.folder / "attachments").glob("*.json")), 60.0, "an ADD")
    engine.kill()
    outcomes = [process.communicate(timeout=60) for process in running]
    assert {json.loads(out).get("code", 0) for out, _ in outcomes} <= {0, 11}, outcomes
    until(lambda: not any(Path(f"/proc/{helper}").exists() for helper in helpers), 60.0, "the end of the helpers")
    another = Engine()
    try:
        for call in calls:
            cni.delete(CONF, call[1], container=call[0], extra={"WEFT_ENGINE": "require"})
    finally:
        another.close()
    assert left(engine.folder) == []


def ticks(process: int) -> int:
    """The processor time that a process has used, in clock ticks."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


def test_completed_del_leaves_nothing(host: Host, engine: Engine, through: Through) -> None:
    """The same names again at once, a thousand times: the DEL before has left nothing."""
    path = host.container()
    conf = {**CONF, "ipMasq": False}
    for _ in range(1000):
        for command in ("ADD", "DEL"):
            process = start_with(through, conf, command, path)
            out, err = process
            assert err == b"", err
            assert command == "ADD" or out == b"", out
    assert left(engine.folder) == []


def start_with(cni: Cni, conf: dict[str, Any], command: str, netns: str) -> tuple[bytes, bytes]:
    done = subprocess.run(
        [PLUGIN],
        env=cni.environment(command, "c1", netns),
        input=json.dumps(conf).encode(),
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done
    return done.stdout, done.stderr


def test_client_of_another_version_replaces_the_engine(host: Host, engine: Engine) -> None:
    """The engine declines a client of another version, and exits."""
    client = socket.socket(socket.AF_UNIX)
    client.settimeout(10)
    client.connect(str(engine.socket))
    sent = frame.RequestFrame("99.0.0", str(ROOT), frame.view(), "bridge", {"CNI_COMMAND": "ADD"}, b"{}")
    client.sendall(frame.request(sent))
    reply = client.recv(100)
    assert frame.REPLY.unpack(reply)[2] == 1
    assert engine.process.wait(60) == 0
    assert not engine.socket.exists()


def test_second_engine_is_refused(host: Host, engine: Engine) -> None:
    assert run(str(ENGINE), timeout=60).code == 0
    assert engine.process.poll() is None
    assert engine.socket.exists()


def test_operations_are_logged_for_debugging(host: Host, through: Through) -> None:
    path, name = host.container(), CONF["name"]
    engine = Engine("--debug")
    through.add(CONF, path)
    through.delete(CONF, path)
    lines = engine.close().splitlines()
    assert any(re.search(rf"^ADD \S+/eth0 on {name}: apply Veth: changed, [0-9.]+ ms: ip ", line) for line in lines)
    assert any(re.search(rf"^DEL \S+/eth0 on {name}: undo Veth: undone, [0-9.]+ ms", line) for line in lines)
    assert len([line for line in lines if re.search(rf"^(ADD|DEL) \S+/eth0 on {name}: [^:]+, [0-9.]+ ms$", line)]) == 2


def test_the_client_in_python(host: Host, engine: Engine, cni: Cni) -> None:
    """The Python client, for hosts without a C compiler, speaks the same protocol."""
    path = host.container()
    script = (
        "import sys; sys.path[:0] = [sys.argv.pop(1)]; sys.argv[:] = sys.argv[1:];"
        "from cni_plugin.entry.shim import main; sys.exit(main())"
    )
    argv = [str(ROOT / ".venv/bin/python"), "-IBc", script, str(ROOT), "/x/bridge"]
    for command in ("ADD", "DEL"):
        environment = cni.environment(command, netns=path) | {"WEFT_ENGINE": "require"}
        outcome = run(*argv, stdin=json.dumps(CONF), environment=environment, check=False)
        assert outcome.code == 0, outcome
    assert left(engine.folder) == []
    assert engine.close().count(f" on {CONF['name']}: ") == 2
