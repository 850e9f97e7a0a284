"""Call weft in this process, on the real or the fake kernel, with faults or kills at any step."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cni_plugin.dataplane.tables import TABLES
from cni_plugin.entry import cni
from cni_plugin.ops.operation import Lease, Machine, Operation
from cni_plugin.plan import modules
from cni_plugin.service.executor import Watch, unwatched
from cni_plugin.service.records import Record
from cni_plugin.service.verbs import Service
from cni_plugin.wire import config as configuration
from cni_plugin.wire import environment
from cni_plugin.wire.request import Request
from lab import engine
from weft.errors import KernelRefused
from weft.kernel.host import Host
from weft.kernel.interface import Kernel
from weft.kernel.linux.kernel import LinuxKernel
from weft.types import Result

STATE = ("/run/weft", "/var/lib/cni")
"""Directories with weft's persistent state."""

_CHANGES = frozenset({"os.rename", "os.remove", "os.link", "os.mkdir", "os.rmdir", "os.utime", "os.truncate"})
_MESSAGES = frozenset({"socket.sendto", "socket.sendmsg"})


@dataclass(frozen=True, slots=True)
class Answer:
    """The answer to a call: exit status, and the document on standard output ({} for none)."""

    status: int
    document: dict[str, Any]

    @property
    def ok(self) -> bool:
        return self.status == 0

    @property
    def code(self) -> int:
        """The CNI error code, 0 without an error."""
        return 0 if self.ok else int(self.document["code"])

    @property
    def text(self) -> str:
        return f"{self.document.get('msg', '')}: {self.document.get('details', '')}"


def variables(
    command: str, container: str, netns: str, ifname: str, args: str = "", path: str = "/nowhere"
) -> dict[str, str]:
    """The CNI_* variables of one call."""
    return {
        "CNI_COMMAND": command,
        "CNI_CONTAINERID": container,
        "CNI_NETNS": netns,
        "CNI_IFNAME": ifname,
        "CNI_ARGS": args,
        "CNI_PATH": path,
    }


class Weft:
    """weft as a function.

    Each call has a new kernel object, as a process would, unless one is given. ``path`` is CNI_PATH.
    """

    def __init__(self, kernel: Kernel | None = None, host: Host | None = None, path: str = "/nowhere") -> None:
        self._kernel = kernel
        self._path = path
        self._host = host

    def service(self, kernel: Kernel, watch: Watch = unwatched) -> Service:
        return Service(kernel, self._host or Host.current(kernel), watch=watch)

    def __call__(
        self,
        command: str,
        conf: Mapping[str, Any],
        netns: str = "",
        container: str = "c1",
        ifname: str = "eth0",
        *,
        args: str = "",
        watch: Watch = unwatched,
    ) -> Answer:
        """One call, under the plugin name in the ``type`` of the configuration."""

        def handle(request: Request) -> Result | None:
            kernel = self._kernel or LinuxKernel(TABLES)
            try:
                return self.service(kernel, watch).handle(request)
            finally:
                if self._kernel is None:
                    kernel.close()

        environ = variables(command, container, netns, ifname, args, self._path)
        if engine.wanted() and self._kernel is None and self._host is None:
            return _through_engine(conf, environ, None if watch is unwatched else watch)
        status, output = cni.run(str(conf["type"]), environ, json.dumps(conf).encode(), handle)
        return Answer(status, json.loads(output) if output else {})

    def add(self, conf: Mapping[str, Any], netns: str, container: str = "c1", ifname: str = "eth0") -> dict[str, Any]:
        """ADD that must succeed; the result."""
        answer = self("ADD", conf, netns, container, ifname)
        assert answer.ok, answer
        return answer.document

    def check(
        self, conf: Mapping[str, Any], result: Any, netns: str, container: str = "c1", ifname: str = "eth0"
    ) -> str:
        """The error message of CHECK, "" if it succeeds."""
        answer = self("CHECK", {**conf, "prevResult": result}, netns, container, ifname)
        return "" if answer.ok else answer.text

    def delete(self, conf: Mapping[str, Any], netns: str = "", container: str = "c1", ifname: str = "eth0") -> None:
        """DEL that must succeed without output."""
        answer = self("DEL", conf, netns, container, ifname)
        assert answer == Answer(0, {}), answer

    def collect(self, conf: Mapping[str, Any], *valid: tuple[str, str]) -> None:
        """GC of the network that must succeed; ``valid``: container ids and interface names."""
        keep = [{"containerID": container, "ifname": ifname} for container, ifname in valid]
        answer = self("GC", {**conf, "cniVersion": "1.1.0", "cni.dev/valid-attachments": keep})
        assert answer == Answer(0, {}), answer

    def request(self, command: str, conf: Mapping[str, Any], netns: str, container: str = "c1") -> Request:
        """The request that a call would make."""
        environ = variables(command, container, netns, "eth0")
        plugin = str(conf["type"])
        said, text = environment.read(environ, plugin, modules.reads_arguments), json.dumps(conf).encode()
        return Request(
            said.command, plugin, said.container, said.namespace, said.interface, said.path, said.arguments,
            said.override, environ, configuration.read(text, said.command, plugin), text,
        )  # fmt: skip

    def preview(self, conf: Mapping[str, Any], netns: str, container: str = "c1") -> Record:
        """The record that an ADD would write, without applying it."""
        kernel = self._kernel or LinuxKernel(TABLES)
        try:
            return self.service(kernel).preview(self.request("ADD", conf, netns, container))
        finally:
            if self._kernel is None:
                kernel.close()


LOST = Answer(1, {"code": 11, "msg": "the engine ended before it answered"})


def _through_engine(conf: Mapping[str, Any], environ: Mapping[str, str], watch: Watch | None) -> Answer:
    files = isinstance(watch, Steps) and watch.files
    reply = engine.call(str(conf["type"]), environ, json.dumps(conf).encode(), watch, files=files)
    return LOST if reply is None else Answer(reply[0], json.loads(reply[1]) if reply[1] else {})


class Fault(KernelRefused):
    """The error that a test injects."""


class Steps:
    """Counts the steps of a call, and calls ``hurt`` before one of them.

    Given to a call as its ``watch``. ``at`` counts from 0; -1 means never. With ``files``, every
    change of a file and every message to the kernel is a step as well.
    """

    def __init__(self, at: int = -1, hurt: Callable[[], None] | None = None, *, files: bool = False) -> None:
        self.files = files
        self._at = at
        self._hurt = hurt or refuse
        self.taken: list[tuple[str, Operation | str]] = []

    def __call__(self, verb: str, operation: Operation | str) -> None:
        self.taken.append((verb, operation))
        if len(self.taken) - 1 == self._at:
            self._hurt()


def refuse() -> None:
    raise Fault("a fault that a test made")


class Afterwards:
    """A ``watch`` that fails step ``at`` of an ADD after it took effect: the kernel reports an
    error.

    ``apply`` of the operation raises, so the executor cannot know that it had an effect.
    """

    def __init__(self, at: int) -> None:
        self._at = at
        self._seen = -1
        self.happened = False

    def __call__(self, verb: str, operation: Operation) -> None:
        if verb != "apply":
            return
        self._seen += 1
        if self._seen != self._at:
            return
        self.happened = True
        kind = type(operation)
        name = "reserve" if isinstance(operation, Lease) else "apply"
        original = getattr(kind, name)

        def once(this: Operation, machine: Machine) -> object:
            if this != operation:
                return original(this, machine)
            setattr(kind, name, original)
            done = original(this, machine)
            if isinstance(this, Lease):
                # A lease undoes its own partial work when it fails, also after an error of the file
                # system.
                this.undo(machine)
            raise Fault(f"{this} was done, and reported as failed; {done}")

        setattr(kind, name, once)


def killed(work: Callable[[Steps], object], at: int, *, files: bool = False) -> bool:
    """Run ``work`` in a child that is killed before step ``at``; False if it ended before.

    If calls go through an engine, the engine is killed.
    """
    steps = Steps(at, lambda: os.kill(os.getpid(), signal.SIGKILL), files=files)
    if engine.wanted():
        return work(steps) == LOST and engine.was_killed()
    child = os.fork()
    if child == 0:
        if files:
            sys.addaudithook(lambda event, given: noted(steps, event, given))
        code = 1
        try:
            work(steps)
            code = 0
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        assert os.WTERMSIG(status) == signal.SIGKILL, status
        return True
    assert os.WEXITSTATUS(status) == 0, status
    return False


def noted(steps: Callable[[str, str], None], event: str, given: tuple[Any, ...]) -> None:
    """A Python audit event as a step, if it is a change of a file or a message to the kernel."""
    opened = event == "open" and isinstance(given[2], int) and given[2] & (os.O_CREAT | os.O_WRONLY | os.O_RDWR)
    if opened or event in _CHANGES or event in _MESSAGES:
        steps(event, str(given[0]))


def files() -> list[str]:
    """All records, leases and locks, except permanent files (locks of lease directories, engine)."""
    found = []
    for folder in STATE:
        for path in Path(folder).rglob("*"):
            kept = path.name in ("lock", "ruleset.verified") or path.name.startswith(("last_reserved_ip.", "engine."))
            furniture = path.parent.name == "ipam" or kept
            if path.is_file() and not furniture:
                found.append(str(path))
    return sorted(found)


def leases(network: str, folder: str = "/var/lib/cni/networks") -> dict[str, str]:
    """The leases of a network according to the files: ``{"10.1.0.2": "c1 eth0"}``."""
    place = Path(folder) / network
    if not place.is_dir():
        return {}
    return {
        path.name: " ".join(path.read_text().split())
        for path in place.iterdir()
        if path.name != "lock" and not path.name.startswith("last_reserved_ip.")
    }


def at_once(works: Sequence[Callable[[], Answer]]) -> list[Answer]:
    """Run each function in its own process, all started at the same moment; the answers in order."""
    start_reader, start = os.pipe()
    readers = []
    children = []
    for work in works:
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                os.close(start)
                os.read(start_reader, 1)
                answer = work()
                os.write(writer, json.dumps([answer.status, answer.document]).encode())
            finally:
                os._exit(0)
        os.close(writer)
        readers.append(reader)
        children.append(child)
    os.close(start_reader)
    os.close(start)
    answers = []
    for reader, child in zip(readers, children, strict=True):
        with open(reader, "rb") as file:
            text = file.read()
        os.waitpid(child, 0)
        answers.append(Answer(*json.loads(text)) if text else Answer(1, {"code": 0, "msg": "the child died"}))
    return answers
