"""An error before and after each operation of each driver leaves nothing; the next ADD works."""

from __future__ import annotations

import pytest

from lab.calls import Afterwards, Steps
from lab.cases import CASES, Case, sampled
from lab.ground import Ground
from lab.host import Host

every_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


def _steps(ground: Ground) -> list[str]:
    """The names of the operations of an ADD without errors, which is then removed again."""
    record = ground.weft.preview(ground.conf, ground.container)
    seen = Steps()
    answer = ground.add(seen)
    assert answer.ok, answer
    assert not ground.weft.check(ground.case.conf, answer.document, ground.container)
    applied = [operation for verb, operation in seen.taken if verb == "apply"]
    own = [operation for operation in record.operations if operation in applied]
    assert len(own) + 1 >= len(record.operations), "ADD applied other operations than its preview lists"
    assert ground.delete().ok
    ground.collect(*([("c1", "eth0")] if ground.case.first else []))
    return [type(operation).__name__ for operation in applied]


def _afterwards(ground: Ground) -> None:
    """An ADD succeeds as on a new host, and so do DEL and a second DEL."""
    answer = ground.add()
    assert answer.ok, answer
    assert not ground.weft.check(ground.case.conf, answer.document, ground.container)
    assert ground.delete().ok
    assert ground.delete().ok
    assert ground.finish() == []


@every_case
def test_before_every_step(host: Host, case: Case) -> None:
    ground = Ground(host, case)
    if not case.first:
        ground.no_forwarding()
    names = _steps(ground)
    ground.remember()
    for at, name in sampled(case.name, enumerate(names)):
        if not case.first:
            ground.no_forwarding()
        answer = ground.add(Steps(at))
        assert (answer.status, answer.code) == (1, 103), (at, name, answer)
        assert "a fault that a test made" in answer.text
        assert ground.changes() == [], (at, name)
        if at % 4 == 0:
            assert ground.delete().ok, (at, name)
    _afterwards(ground)


@every_case
def test_after_every_step(host: Host, case: Case) -> None:
    ground = Ground(host, case)
    if not case.first:
        ground.no_forwarding()
    names = _steps(ground)
    ground.remember()
    for at, name in sampled(case.name, enumerate(names)):
        if not case.first:
            ground.no_forwarding()
        fault = Afterwards(at)
        answer = ground.add(fault)
        assert fault.happened
        assert not answer.ok, (at, name, answer)
        assert ground.changes() == [], (at, name)
    _afterwards(ground)


@every_case
def test_other_attachment_is_unaffected(host: Host, case: Case) -> None:
    """What the network shares is unchanged, and CHECK of the other attachment succeeds."""
    ground = Ground(host, case)
    other = host.container("c2")
    conf = case.conf
    if case.first:
        conf = {**conf, "prevResult": ground.weft.add(case.first, other, "c2"), "runtimeConfig": {}}
    elif "runtimeConfig" in conf:
        conf = {**conf, "runtimeConfig": {}}
    conf = {**conf, **case.beside}
    result = ground.weft.add(conf, other, "c2")
    seen = Steps()
    assert ground.add(seen).ok
    assert ground.delete().ok
    ground.remember()
    for at in sampled(case.name, range(len(seen.taken))):
        assert not ground.add(Steps(at)).ok
        assert ground.changes() == [], (at, seen.taken[at])
    assert ground.weft.check(conf, result, other, "c2") == ""
    ground.weft.delete(conf, other, "c2")
    if case.first:
        ground.weft.delete(case.first, other, "c2")
    _afterwards(ground)


@every_case
def test_in_every_step_of_a_removal(host: Host, case: Case) -> None:
    """DEL reports the error and does everything else; the next DEL or GC completes it."""
    ground = Ground(host, case)
    seen = Steps()
    assert ground.add().ok
    assert ground.delete(seen).ok
    ground.collect(*([("c1", "eth0")] if case.first else []))
    ground.remember()
    for at, step in sampled(case.name, enumerate(seen.taken)):
        assert ground.add().ok
        answer = ground.delete(Steps(at))
        assert not answer.ok, step
        if at % 2 and not case.first:
            ground.collect()
        else:
            assert ground.delete().ok
            ground.collect(*([("c1", "eth0")] if case.first else []))
        assert ground.changes() == [], step
    _afterwards(ground)
