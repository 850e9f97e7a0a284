"""Two networks of a container publish the same port: when one is detached, the other takes it over.

Every interleaving is tested: one call is paused before each of its steps while the other runs.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

from cni_plugin.service.records import Records
from cni_plugin.service.verbs import Service
from lab.calls import Answer, Steps, Weft, killed
from lab.commands import opened
from lab.confs import bridge, pool, port
from lab.ground import rest
from lab.host import Host
from lab.waiting import until
from weft.kernel.interface import Kernel
from weft.types import Attachment

PORTS = {"portMappings": [port(8080, 80)]}
NETS = {
    name: bridge(pool(f"10.{number}.0.0/24"), type="weft", driver="bridge", bridge=f"b-{name}", name=name,
                 isGateway=True, portmap={}, runtimeConfig=PORTS)
    for name, number in (("red", 81), ("blue", 82), ("green", 83))
}  # fmt: skip
LINKS = {"red": "eth0", "blue": "eth1", "green": "eth2"}

Watch = Callable[[str, object], None]


class PausingWeft(Weft):
    """Weft that can also be paused before and after it looks for the container's siblings."""

    def service(self, kernel: Kernel, watch: Any = None) -> Service:
        made = super().service(kernel, watch)
        look = made._sibling_marks

        def sibling_marks(mark: str) -> frozenset[str]:
            watch("before", "siblings")
            found = look(mark)
            watch("after", "siblings")
            return found

        made._sibling_marks = sibling_marks  # type: ignore[method-assign]
        return made


class Call:
    """A call in its own process, which is paused before step ``at`` until ``answer`` is called."""

    def __init__(self, work: Callable[[Watch], Answer], at: int = -1) -> None:
        (stood, standing), (go, self._go), (answer, writer) = (os.pipe() for _ in range(3))
        self.pid = os.fork()
        if self.pid == 0:
            try:
                os.close(self._go)
                found = work(Steps(at, lambda: (os.write(standing, b"s"), os.read(go, 1))))  # type: ignore[arg-type]
                os.write(writer, json.dumps([found.status, found.document]).encode())
            finally:
                os._exit(0)
        for descriptor in (standing, go, writer):
            os.close(descriptor)
        self._answer = answer
        self.is_paused = at >= 0 and os.read(stood, 1) == b"s"
        os.close(stood)

    def exited_or_at(self, *locks: str) -> bool:
        """Whether it has exited, or has one of these lock files open."""
        state = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()[0]
        return state == "Z" or any(path in locks for path in opened(self.pid))

    def answer(self) -> Answer:
        """Resume the call, wait for its end, and return its answer."""
        with contextlib.suppress(BrokenPipeError):  # it exited without being paused
            os.write(self._go, b"g")
        os.close(self._go)
        with open(self._answer, "rb") as file:
            text = file.read()
        os.waitpid(self.pid, 0)
        assert text, "the call exited without an answer"
        return Answer(*json.loads(text))


class Scene:
    """A container on some of the networks."""

    def __init__(self, host: Host, *networks: str) -> None:
        self.weft, self.path = PausingWeft(), host.container()
        self.results = {name: self.call("ADD", name).document for name in networks}

    def call(self, command: str, name: str, watch: Watch | None = None) -> Answer:
        conf = {**NETS[name], **({"prevResult": self.results[name]} if command == "CHECK" else {})}
        return self.weft(command, conf, self.path, "c1", LINKS[name], watch=watch or Steps())

    def start(self, command: str, name: str, at: int = -1) -> Call:
        return Call(lambda watch: self.call(command, name, watch), at)

    def lock(self, name: str) -> str:
        folder = f"/run/weft/{os.stat('/proc/thread-self/ns/net').st_ino}"
        return Records(folder).lock(Attachment(name, "c1", LINKS[name], "weft"))

    def end(self, host: Host, successor: str) -> None:
        """``successor`` has the port, in the kernel and by CHECK; DEL of all leaves nothing."""
        address = self.results[successor]["ips"][0]["address"].partition("/")[0]
        assert re.search(rf"\btcp \. 8080 .* : {re.escape(address)} \. 80\b", _ports(host)), _ports(host)
        assert self.call("CHECK", successor).ok
        for name in NETS:
            assert self.call("DEL", name).ok
        for name in NETS:
            self.weft.collect({**NETS[name], "runtimeConfig": {}})
        assert rest(self.path) == []
        host.remove_container()


def _ports(host: Host) -> str:
    return host.run("nft", "list", "map", "inet", "weft", "ports4").stdout


def test_add_during_del_of_another_network(host: Host) -> None:
    """ADD is paused before or after it finds the port in use; DEL of the other network runs."""
    for at in count():
        scene = Scene(host, "red")
        coming = scene.start("ADD", "blue", at)
        going = scene.start("DEL", "red")
        until(lambda: going.exited_or_at(scene.lock("blue")), 60)  # noqa: B023
        stood = coming.is_paused
        added, deleted = coming.answer(), going.answer()
        assert added.ok and deleted.ok, (at, added, deleted)
        scene.results["blue"] = added.document
        scene.end(host, "blue")
        if not stood:
            break
    assert at > 12


def test_del_during_add_of_another_network(host: Host) -> None:
    """DEL is paused, and ADD of the other network runs as far as it can."""
    for at in count():
        scene = Scene(host, "red")
        going = scene.start("DEL", "red", at)
        coming = scene.start("ADD", "blue")
        until(lambda: coming.exited_or_at(), 60)  # noqa: B023
        stood = going.is_paused
        added, deleted = coming.answer(), going.answer()
        assert added.ok and deleted.ok, (at, added, deleted)
        scene.results["blue"] = added.document
        scene.end(host, "blue")
        if not stood:
            break
    assert at > 3


def test_two_concurrent_dels(host: Host) -> None:
    """Neither hands its ports to the other, or waits for it: both hand them to the third."""
    for at in count():
        scene = Scene(host, "red", "blue", "green")
        first = scene.start("DEL", "red", at)
        second = scene.start("DEL", "blue")
        # The first may have found the second's network attached and be about to hand it the ports.
        held = [scene.lock(name) for name in ("red", "green")]
        held += [path for path in (scene.lock("blue"),) if path in opened(first.pid)]
        until(lambda: second.exited_or_at(*held), 60)  # noqa: B023
        stood = first.is_paused
        answers = first.answer(), second.answer()
        assert answers[0].ok and answers[1].ok, (at, answers)
        scene.end(host, "green")
        if not stood:
            break
    assert at > 3


def test_del_during_check_of_another_network(host: Host) -> None:
    """CHECK holds the other attachment's lock, so that its ports cannot be handed over at once."""
    for at in count():
        scene = Scene(host, "red", "blue")
        looking = scene.start("CHECK", "blue", at)
        going = scene.start("DEL", "red")
        until(lambda: going.exited_or_at(scene.lock("blue")), 60)  # noqa: B023
        stood = looking.is_paused
        looking.answer()  # either result is right while the ports change hands
        assert going.answer().ok
        scene.end(host, "blue")
        if not stood:
            break
    assert at == 2


def test_killed_del(host: Host) -> None:
    """Whatever was done before the SIGKILL, the next DEL hands the ports over."""
    for at in count():
        scene = Scene(host, "red", "blue")
        alive = not killed(lambda steps: scene.call("DEL", "red", steps), at, files=True)  # noqa: B023
        assert scene.call("DEL", "red").ok
        scene.end(host, "blue")
        if alive:
            break
    assert at > 5


def test_gc_hands_ports_over(host: Host) -> None:
    """GC hands the ports over as DEL does."""
    scene = Scene(host, "red", "blue")
    scene.weft.collect({**NETS["red"], "runtimeConfig": {}})
    scene.end(host, "blue")
