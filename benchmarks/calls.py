"""Timed calls of CNI plugins: one process per call, from start to exit, as a runtime does it."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
REFERENCE = Path("/usr/lib/cni")
OWN = ROOT / "bin" / "cni"
Conf = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Contender:
    """The plugins to call. ``engine`` is the value of WEFT_ENGINE."""

    name: str
    folder: Path
    engine: str = ""


REFERENCE_PLUGINS = Contender("reference", REFERENCE)
ENGINE = Contender("weft", OWN, "require")
IN_PROCESS = Contender("in process", OWN, "off")


@dataclass(slots=True)
class RunningCall:
    """A call in progress."""

    process: int
    output: int
    errors: int
    what: str


@dataclass(slots=True)
class Call:
    """Calls of one plugin for one container."""

    contender: Contender
    plugin: str
    conf: Conf
    container: str
    netns: str
    interface: str = "eth0"
    stdin: bytes = field(init=False)

    def __post_init__(self) -> None:
        self.stdin = json.dumps(self.conf).encode()

    def start(self, command: str) -> RunningCall:
        environment = {
            "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
            "CNI_COMMAND": command,
            "CNI_CONTAINERID": self.container,
            "CNI_NETNS": self.netns,
            "CNI_IFNAME": self.interface,
            "CNI_PATH": str(self.contender.folder),
        }
        if self.contender.engine:
            environment["WEFT_ENGINE"] = self.contender.engine
        given, output, errors = (os.memfd_create(name) for name in ("stdin", "stdout", "stderr"))
        os.write(given, self.stdin)
        os.lseek(given, 0, os.SEEK_SET)
        executable = str(self.contender.folder / self.plugin)
        process = os.posix_spawn(
            executable,
            [executable],
            environment,
            file_actions=[(os.POSIX_SPAWN_DUP2, one, number) for number, one in enumerate((given, output, errors))],
        )
        os.close(given)
        return RunningCall(process, output, errors, f"{self.contender.name}: {self.plugin} {command}")

    def timed(self, command: str) -> tuple[float, bytes]:
        """Seconds, and standard output. Raises AssertionError if the call fails."""
        elapsed, _, output = self.measured(command)
        return elapsed, output

    def measured(self, command: str) -> tuple[float, float, bytes]:
        """Seconds, CPU seconds of the plugin and its child processes, and standard output."""
        started = time.perf_counter()
        running = self.start(command)
        _, status, used = os.wait4(running.process, 0)
        elapsed = time.perf_counter() - started
        return elapsed, used.ru_utime + used.ru_stime, output_of(running, status)


def output_of(running: RunningCall, status: int) -> bytes:
    """Standard output of a call that has exited. Raises AssertionError if it failed."""
    written = [os.pread(one, 1 << 22, 0) for one in (running.output, running.errors)]
    os.close(running.output)
    os.close(running.errors)
    if status:
        raise AssertionError(f"{running.what} failed with {status}: {written}")
    return written[0]


def run_concurrently(calls: Sequence[Call], command: str) -> float:
    """Seconds until all calls, started concurrently, have exited."""
    started = time.perf_counter()
    running = [call.start(command) for call in calls]
    statuses = [os.waitpid(one.process, 0)[1] for one in running]
    elapsed = time.perf_counter() - started
    for one, status in zip(running, statuses, strict=True):
        output_of(one, status)
    return elapsed


@dataclass(slots=True)
class Chain:
    """The plugins of a conflist, called in order as a runtime does."""

    contender: Contender
    members: Sequence[Conf]
    container: str
    netns: str
    runtime: Mapping[str, Any] = field(default_factory=dict)
    result: Any = None

    def _call(self, conf: Conf) -> Call:
        given = {**conf, "runtimeConfig": dict(self.runtime)} if self.runtime else dict(conf)
        if self.result is not None:
            given["prevResult"] = self.result
        return Call(self.contender, conf["type"], given, self.container, self.netns)

    def add(self) -> float:
        """Seconds for all the plugins' ADD."""
        self.result = None
        total = 0.0
        for conf in self.members:
            elapsed, output = self._call(conf).timed("ADD")
            self.result = json.loads(output)
            total += elapsed
        return total

    def delete(self) -> float:
        """Seconds for all the plugins' DEL, last plugin first."""
        return sum(self._call(conf).timed("DEL")[0] for conf in reversed(self.members))

    def only(self) -> Call:
        """The call of a chain of one plugin."""
        return self._call(self.members[0])
