"""SIGKILL between any two steps of ADD and DEL: the next call completes or repeats the work.

A step is an operation; with ``files`` also each file change and each netlink message.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import count

import pytest

from cni_plugin.service.executor import unwatched
from lab.calls import Answer, Steps, files, killed
from lab.cases import CASES, Case, sampled
from lab.ground import Ground, rest
from lab.host import Host
from weft.files import TEMPORARY_SUFFIX

every_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
THOROUGHLY = ("bridge-dual", "ptp", "loopback", "macvlan", "weft-everything")
"""Cases with every combination of step and follow-up; the others differ in operations only."""

thorough = pytest.mark.parametrize(
    "case", [case for case in CASES if case.name in THOROUGHLY], ids=lambda case: case.name
)


class Victim:
    """A test case whose calls are killed, each time in a new container."""

    def __init__(self, ground: Ground) -> None:
        self.ground = ground
        self.conf = ground.conf
        self.path = ground.container
        self._number = 0

    def renew(self) -> None:
        """Create another container of the same name, after the plugin before in the chain."""
        ground = self.ground
        if ground.case.first:
            ground.weft.delete(ground.case.first, self.path)
            ground.weft.collect(ground.case.first)
        ground.host.remove_container()
        self.path = ground.container = ground.host.container()
        if ground.case.first:
            self.conf = {**ground.case.conf, "prevResult": ground.weft.add(ground.case.first, self.path)}

    def call(self, command: str, watch: Steps | None = None, netns: str | None = None) -> Answer:
        where = self.path if netns is None else netns
        return self.ground.weft(command, self.conf, where, watch=watch or unwatched)

    def left(self) -> list[str]:
        """What is left, without what the plugin before in the chain made."""
        first = self.ground.case.first
        if first:
            self.ground.weft.delete(first, self.path)
        self.ground.collect()
        return rest(self.path)


def _delete(victim: Victim, at: int) -> None:
    """DEL completes it."""
    answer = victim.call("DEL")
    assert answer.ok, (at, answer)
    assert not [path for path in files() if "/attachments/" in path and path.endswith(TEMPORARY_SUFFIX)], at
    assert victim.left() == [], at


def _collect(victim: Victim, at: int) -> None:
    """GC completes it without a DEL."""
    victim.ground.weft.collect(victim.ground.case.conf)
    assert victim.left() == [], at


def _again(victim: Victim, at: int) -> None:
    """The same ADD succeeds, CHECK finds no error, and DEL removes everything."""
    answer = victim.call("ADD")
    if not answer.ok:
        # If only the answer was missing, the container is attached already, and ADD is refused.
        assert answer.code == 101, (at, answer)
        assert "is already attached" in answer.text, (at, answer)
    else:
        document = answer.document
        assert victim.ground.weft.check(victim.ground.case.conf, document, victim.path) == "", at
    assert victim.call("DEL").ok
    assert victim.left() == [], at


def _without_namespace(victim: Victim, at: int) -> None:
    """The namespace is gone before a cleanup: DEL or GC still completes it."""
    path = victim.path
    victim.ground.host.remove_container()
    if at % 2:
        victim.ground.weft.collect(victim.ground.case.conf)
    else:
        assert victim.call("DEL", netns=path).ok, at
    assert victim.left() == [], at
    victim.path = victim.ground.host.container()


Finish = Callable[[Victim, int], None]
FINISHES: dict[str, Finish] = {"delete": _delete, "collect": _collect, "again": _again, "gone": _without_namespace}


def _kill_at_every_step(host: Host, case: Case, command: str, finishes: list[Finish], *, files: bool) -> int:
    """SIGKILL before each step in turn; returns the number of steps."""
    ground = Ground(host, case)
    victim = Victim(ground)
    for at in sampled(case.name, count()):
        victim.renew()
        if command == "DEL":
            assert victim.call("ADD").ok
        if not killed(partial(victim.call, command), at, files=files):
            break
        finishes[at % len(finishes)](victim, at)
    assert victim.call("DEL").ok
    assert victim.left() == []
    assert ground.finish() == []
    return at


@pytest.mark.parametrize("finish", FINISHES)
@pytest.mark.parametrize("command", ("ADD", "DEL"))
@thorough
def test_kill_before_every_operation(host: Host, case: Case, command: str, finish: str) -> None:
    _kill_at_every_step(host, case, command, [FINISHES[finish]], files=False)


@pytest.mark.parametrize("command", ("ADD", "DEL"))
@every_case
def test_kill_before_every_operation_in_turn(host: Host, case: Case, command: str) -> None:
    """The four follow-ups alternate from step to step, which takes a quarter of the time."""
    _kill_at_every_step(host, case, command, [*FINISHES.values()], files=False)


@pytest.mark.parametrize("command", ("ADD", "DEL"))
@thorough
def test_kill_before_every_change(host: Host, case: Case, command: str) -> None:
    assert _kill_at_every_step(host, case, command, [*FINISHES.values()], files=True) > 5
