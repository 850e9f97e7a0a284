"""Samples of the suites on faults, kills, concurrency, DEL and CHECK, through an engine.

All of them: ``WEFT_TEST_ENGINE=require tests/private .venv/bin/python -m pytest
tests/netns/test_faults.py …``.
"""

from __future__ import annotations

import pytest
from netns import test_delete as removals
from netns import test_faults as faults
from netns import test_flood as flood
from netns import test_kills as kills
from netns import test_truth as truth

from lab import engine
from lab.calls import Answer, Fault, Steps, Weft
from lab.cases import CASES, Case
from lab.ground import Ground, rest
from lab.host import Host

BY_NAME = {case.name: case for case in CASES}
rich = pytest.mark.parametrize("case", [BY_NAME["weft-everything"]], ids=lambda case: case.name)
few = pytest.mark.parametrize(
    "case", [BY_NAME[name] for name in ("ptp-dual", "portmap-chained")], ids=lambda case: case.name
)


@pytest.fixture(autouse=True)
def through_an_engine(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WEFT_TEST_ENGINE", "require")
    engine.ready()


def test_calls_go_through_the_engine(host: Host) -> None:
    """One engine serves the calls, another the watched calls; it is replaced after SIGKILL."""
    weft, path = Weft(), host.container()
    conf = BY_NAME["bridge"].conf
    process = engine.process()
    assert weft("ADD", conf, path).ok
    assert engine.process() == process
    assert weft("DEL", conf, path).ok
    seen = Steps()
    assert weft("ADD", conf, path, watch=seen).ok
    assert seen.taken
    watched = engine.process()
    assert watched != process
    assert weft("DEL", conf, path).ok
    assert engine.process() == watched
    refused = weft("ADD", conf, path, watch=Steps(1))
    assert str(Fault("a fault that a test made").message) in refused.text
    assert kills.killed(lambda steps: weft("ADD", conf, path, watch=steps), 1)
    assert weft("DEL", conf, path) == Answer(0, {})
    weft.collect(conf)
    assert rest(path) == []


@few
def test_a_fault_before_every_step(host: Host, case: Case) -> None:
    faults.test_before_every_step(host, case)


@rich
def test_a_fault_after_every_step(host: Host, case: Case) -> None:
    faults.test_after_every_step(host, case)


@few
def test_a_fault_in_every_step_of_a_removal(host: Host, case: Case) -> None:
    faults.test_in_every_step_of_a_removal(host, case)


@rich
@pytest.mark.parametrize("command", ("ADD", "DEL"))
def test_the_engine_is_killed_before_a_change(host: Host, case: Case, command: str) -> None:
    """SIGKILL before every sixth file change or netlink message."""
    ground = Ground(host, case)
    victim = kills.Victim(ground)
    finishes = [*kills.FINISHES.values()]
    at = 0
    while True:
        victim.renew()
        if command == "DEL":
            assert victim.call("ADD").ok
        if not kills.killed(lambda steps: victim.call(command, steps), at, files=True):
            break
        finishes[at % len(finishes)](victim, at)
        at += 6
    assert at > 15
    assert victim.call("DEL").ok
    assert victim.left() == []


def test_64_at_once(host: Host) -> None:
    flood.test_64_at_once(host)


def test_additions_removals_and_collections_together(host: Host) -> None:
    flood.test_additions_removals_and_collections_together(host)


def test_clients_that_are_killed(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flood, "KILLS", 60)
    flood.test_a_thousand_kills(host)


@rich
@pytest.mark.parametrize("way", ("DEL", "GC"))
@pytest.mark.parametrize("broken", ("namespace gone", "all state wiped", "rules flushed"))
def test_whatever_is_broken(host: Host, case: Case, broken: str, way: str) -> None:
    removals.test_whatever_is_broken(host, case, broken, way)


@pytest.mark.parametrize("place", ("/run/weft", "/var/lib/cni/networks/whole"))
def test_on_a_full_disk(host: Host, place: str) -> None:
    removals.test_on_a_full_disk(host, place)


@pytest.mark.parametrize("place", ("/run/weft", "/var/lib/cni/networks/whole"))
def test_on_a_read_only_disk(host: Host, place: str) -> None:
    removals.test_on_a_read_only_disk(host, place, "DEL")


@rich
def test_every_operation_that_is_undone_is_missed(host: Host, case: Case) -> None:
    truth.test_every_operation_that_is_undone_is_missed(host, case)


@pytest.mark.parametrize("flush", truth.FLUSHES)
def test_the_next_add_brings_the_rules_back(host: Host, flush: str) -> None:
    truth.test_the_next_add_brings_the_rules_back(host, flush)
