"""SIGKILL at random moments, of calls and of both daemons: nothing is left after DEL and one GC.

WEFT_TEST_KILLS says how many; ten thousand, with the figures printed:
``WEFT_TEST_KILLS=10000 tests/private .venv/bin/python -m pytest -s
tests/netns/test_random_kills.py::test_random_kills``. WEFT_TEST_SEED chooses the moments.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lab import engine as engines
from lab import sample
from lab.calls import Weft, variables
from lab.cases import EVERYWHERE_TWICE, PORTS, Conf, conf, pool
from lab.commands import run
from lab.ground import rest
from lab.host import Host
from lab.plugins import OWN_FOLDER, ROOT
from lab.waiting import until
from weft.errors import WeftError
from weft.locks import holder

KILLS = int(os.environ.get("WEFT_TEST_KILLS", "120"))
EXPECTED = 60.0
"""Seconds for a daemon to start, and for the helpers of a killed engine to end."""

FOREIGN = """#!/bin/sh
# An IPAM plugin of another project: a file is the lease.
mkdir -p /var/lib/cni/foreign
lease=/var/lib/cni/foreign/10.46.0.9
case $CNI_COMMAND in
ADD) echo "$CNI_CONTAINERID" >$lease
     sleep 0.01
     echo '{"cniVersion": "1.1.0", "ips": [{"address": "10.46.0.9/24", "gateway": "10.46.0.1"}]}';;
DEL) rm -f $lease;;
esac
"""
_BRIDGE: Conf = {"driver": "bridge", "isGateway": True, "ipMasq": True}
_WHOLE = {**_BRIDGE, "bridge": "wk0", "ipam": pool("10.44.0.0/24", "fd00:44::/64", routes=EVERYWHERE_TWICE)}
_NAMED = {**_BRIDGE, "bridge": "wk1", "ipam": pool("10.45.0.0/24"), "names": {}}
CONFS = {
    "whole": conf("weft", "kwhole", {**_WHOLE, "portmap": {}, "runtimeConfig": PORTS, "bandwidth": {}}),
    "ptp": conf("ptp", "kptp", {"ipMasq": True, "ipam": pool("10.47.0.0/24", routes=EVERYWHERE_TWICE[:1])}),
    "macvlan": conf("macvlan", "kmac", {"ipam": pool("192.0.2.0/25", "2001:db8:99::/112")}),
    "foreign": conf("bridge", "kforeign", {"bridge": "wk2", "isGateway": True, "ipam": {"type": "foreign"}}),
    "names": conf("weft", "knames", {**_NAMED, "services": [{"name": "web", "port": 80, "virtual": True}]}),
}
WEIGHTS = {"whole": 16, "ptp": 8, "macvlan": 8, "foreign": 6, "names": 2}
VICTIMS = {"call": 24, "leader": 6, "executable": 2, "client": 6, "engine": 2, "helpers": 1, "whole engine": 3}
"""What is killed: the process of a call with its group or alone; the executable; the client of an
engine, the engine, its helpers, all of its processes. With names, half of the kills are the agent's.
"""
ENDS = ("delete", "collect", "gone, delete", "gone, collect")


class Kills:
    def __init__(self, host: Host, folder: Path) -> None:
        self.host = host
        self.random = random.Random(sample.seed())
        self.path = host.container()
        self.weft = Weft(path=str(folder))
        self.folder = Path(f"/run/weft/{os.stat('/proc/thread-self/ns/net').st_ino}")
        self.plugins = folder
        self.killed: Counter[str] = Counter()
        self.missed = 0
        self.expected: dict[tuple[str, str, str], float] = {}
        (folder / "foreign").write_text(FOREIGN)
        (folder / "foreign").chmod(0o755)

    def one(self) -> None:
        """One call that is killed at a random moment, its cleanup, and what is left."""
        chance = self.random
        name = chance.choices(list(WEIGHTS), list(WEIGHTS.values()))[0]
        victim = chance.choices(list(VICTIMS), list(VICTIMS.values()))[0]
        if name == "names" and chance.random() < 0.5:
            victim = "agent"
        command = chance.choices(("ADD", "DEL", "GC"), (6, 4, 1))[0]
        end = chance.choice(ENDS)
        given = CONFS[name]
        if command != "ADD":
            answer = self.weft("ADD", given, self.path)
            assert answer.ok, answer
        elif name == "names" and victim == "agent":
            self.start_agent()
        if self.kill(victim, command, name):
            self.killed[f"{victim} in {command}"] += 1
        else:
            self.missed += 1
        what = (sum(self.killed.values()), name, victim, command, end)
        self.finish(given, end, what)

    def kill(self, victim: str, command: str, name: str) -> bool:
        """Start a call and kill the victim while it runs; False if it ended before."""
        key = (victim, command, name)
        if victim in ("client", "engine", "helpers", "whole engine"):
            self.start_engine()
        moment = self.random.random() * 1.2 * self.expected.get(key, 0.05)
        started = time.monotonic()
        process = self.call(victim, command, CONFS[name])
        try:
            process.wait(timeout=moment)
            ended = True
        except subprocess.TimeoutExpired:
            ended = False
        if ended:
            # The call took less; what is expected follows it.
            self.expected[key] = (time.monotonic() - started + 3 * self.expected.get(key, 0.05)) / 4
            return False
        self.expected[key] = max(self.expected.get(key, 0.05), moment)
        self.strike(victim, process)
        process.wait(timeout=EXPECTED)
        if victim in ("engine", "helpers", "whole engine"):
            self.end_engine()
        return True

    def strike(self, victim: str, process: subprocess.Popen[bytes]) -> None:
        with contextlib.suppress(ProcessLookupError):
            if victim in ("call", "executable"):
                os.killpg(process.pid, signal.SIGKILL)
            elif victim in ("leader", "client"):
                os.kill(process.pid, signal.SIGKILL)
            elif victim == "agent":
                if pid := holder(str(self.folder / "agent.lock")):
                    os.kill(pid, signal.SIGKILL)
                process.wait(timeout=EXPECTED)
            else:
                engine = holder(str(self.folder / "engine.lock"))
                helpers = engines.helpers(engine)
                chosen = {"engine": [engine], "helpers": helpers, "whole engine": [*helpers, engine]}[victim]
                for pid in chosen:
                    os.kill(pid, signal.SIGKILL)

    def call(self, victim: str, command: str, given: Conf) -> subprocess.Popen[bytes]:
        document = {**given, "cni.dev/valid-attachments": []} if command == "GC" else given
        environ = {
            **variables(command, "c1", self.path, "eth0", path=str(self.plugins)),
            "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
        }
        environ["WEFT_ENGINE"] = "off"
        if victim in ("call", "leader", "agent"):
            return _Fork(lambda: self.weft(command, document, self.path))  # type: ignore[return-value]
        if victim != "executable":
            environ["WEFT_ENGINE"] = "require"
        process = subprocess.Popen(
            [str(OWN_FOLDER / given["type"])], env=environ, start_new_session=True,
            stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        assert process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            process.stdin.write(json.dumps(document).encode())
            process.stdin.close()
        process.stdin = None
        return process

    def finish(self, given: Conf, end: str, what: tuple[object, ...]) -> None:
        """DEL and GC, or GC alone; half of the times without the namespace. Nothing may be left."""
        before = self.path
        if end.startswith("gone"):
            self.host.remove_container()
        # An engine whose client was killed completes the call, or undoes it.
        until(lambda: not self.locked(), EXPECTED, "the end of the other processes' calls")
        if end.endswith("delete"):
            answer = self.weft("DEL", given, before)
            assert answer.ok, (what, answer)
        self.weft.collect(given)
        if end.startswith("gone"):
            self.path = self.host.container()
        left = self.left()
        deadline = time.monotonic() + EXPECTED
        # The other processes of a killed one complete their calls, and are waited for by theirs.
        while left and time.monotonic() < deadline:
            time.sleep(0.05)
            left = self.left()
        assert left == [], what

    def left(self) -> list[str]:
        """What is left, but the files of the daemons themselves."""
        try:
            found = rest(self.path)
        except WeftError as error:
            return [str(error)]
        own, agents = f"{self.folder}/", ("link weft-services ", f"{self.folder}/agent/")
        sockets = [line for line in found if line.startswith(own) and "/" not in line.removeprefix(own)]
        return [line for line in found if line not in sockets and not line.startswith(agents)]

    def locked(self) -> list[str]:
        """The locks of attachments and networks that a process holds."""
        folders = (self.folder / "attachments", self.folder / "networks")
        return [str(path) for folder in folders for path in folder.glob("*.lock") if holder(str(path))]

    def start_engine(self) -> None:
        if holder(str(self.folder / "engine.lock")):
            return
        process = subprocess.Popen(
            [str(engines.PROGRAM), "--idle", "600"], start_new_session=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        self.engine = process
        until((self.folder / "engine.sock").exists, EXPECTED, "the engine")
        until(lambda: holder(str(self.folder / "engine.lock")), EXPECTED, "the engine")

    def end_engine(self) -> None:
        """Reap what was killed; the rest of its group completes its calls and exits."""
        main, group = self.engine, self.engine.pid
        if holder(str(self.folder / "engine.lock")):
            main.terminate()
        main.wait(timeout=EXPECTED)
        until(lambda: not _in_group(group), EXPECTED, "the end of the engine's helpers")
        for name in ("engine.sock", "engine.sock.new"):
            (self.folder / name).unlink(missing_ok=True)

    def start_agent(self) -> None:
        """By an ADD and its DEL, so that it runs when the next ADD comes."""
        given = CONFS["names"]
        assert self.weft("ADD", given, self.path).ok
        assert self.weft("DEL", given, self.path).ok

    def stop(self) -> None:
        for name in ("engine", "agent"):
            lock = str(self.folder / f"{name}.lock")
            if pid := holder(lock):
                os.kill(pid, signal.SIGTERM)
                until(lambda lock=lock: not holder(lock), EXPECTED, f"the end of the {name}")

    def services(self) -> list[str]:
        """The services that an agent still has, started again if it was killed."""
        self.start_agent()

        def listed() -> list[str]:
            out = run(str(ROOT / "bin/weft"), "services", "list", "--json", timeout=EXPECTED, check=False)
            names = [str(name) for name in json.loads(out.stdout)] if out.code == 0 else [out.stderr]
            return [name for name in names if name != "consul"]

        deadline = time.monotonic() + EXPECTED
        while (found := listed()) and time.monotonic() < deadline:
            time.sleep(0.2)
        return found


class _Fork:
    """A call in a fork of this process, in a session of its own: most kills of the executable would
    hit the start of its interpreter.
    """

    def __init__(self, work: Callable[[], object]) -> None:
        self.pid = os.fork()
        if self.pid == 0:
            try:
                os.setsid()
                null = os.open(os.devnull, os.O_RDWR)
                os.dup2(null, 2)
                work()
            finally:
                os._exit(0)
        self._ended = False

    def wait(self, timeout: float) -> int:
        deadline = time.monotonic() + timeout
        while not self._ended:
            self._ended = os.waitpid(self.pid, os.WNOHANG)[0] != 0
            if not self._ended:
                if time.monotonic() > deadline:
                    raise subprocess.TimeoutExpired("call", timeout)
                time.sleep(0.0005)
        return 0


def _in_group(group: int) -> bool:
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            fields = stat.read_text().rpartition(")")[2].split()
            if int(fields[2]) == group and fields[0] not in "XZ":
                return True
    return False


@pytest.fixture
def kills(host: Host, tmp_path: Path) -> Iterator[Kills]:
    host.lan()
    made = Kills(host, tmp_path)
    try:
        yield made
    finally:
        made.stop()


@pytest.mark.long
def test_random_kills(kills: Kills) -> None:
    started = time.monotonic()
    while (count := sum(kills.killed.values())) < KILLS:
        kills.one()
        if count // 500 != sum(kills.killed.values()) // 500:
            print(
                f"{time.monotonic() - started:6.0f} s {count + 1} kills, {kills.missed} calls ended before", flush=True
            )
    assert kills.services() == []
    kills.weft.collect(CONFS["names"])
    print(f"{time.monotonic() - started:6.0f} s {sum(kills.killed.values())} kills: {dict(kills.killed)}", flush=True)
    assert kills.left() == []
