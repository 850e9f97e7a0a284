"""TTLs and the time to deregistration go on where they were when the agent is started again."""

from __future__ import annotations

import asyncio
import json
import time
from dataclasses import replace
from pathlib import Path

import pytest
from unit.discovery.test_registry import WEB, run, running

from discovery import check_deadlines, layout
from discovery.check_deadlines import CheckDeadlines, decode_state
from discovery.health import checker
from discovery.registry import Registry
from discovery.structs import CheckDefinition, Instance, Status
from store.embedded import open_embedded

HOUR = CheckDefinition("service:web-1", "Service 'web' check", "ttl", "web-1", ttl=3600.0)
SHORT = CheckDefinition("service:web-1", "Service 'web' check", "ttl", "web-1", ttl=1.0)
GONE = CheckDefinition("service:web-1", "c", "ttl", "web-1", ttl=3600.0, deregister_after=60.0)


async def stored(path: Path) -> dict[str, object]:
    """The stored state of the check."""
    store = await open_embedded(path / "catalog.db")
    try:
        entry = await store.get(layout.local_key("n1", "status", "service:web-1"))
        assert entry is not None
        found: dict[str, object] = json.loads(entry.value)
        return found
    finally:
        await store.close()


def test_a_ttl_does_not_begin_again_with_the_agent(tmp_path: Path) -> None:
    async def test() -> None:
        async with running(tmp_path, checks=True) as parts:
            await parts.registry.register(WEB, [HOUR])
            await parts.registry.update_check(HOUR.id, Status.PASSING, "fine")
            before = parts.registry.deadlines.remaining(HOUR.id)
        assert before is not None
        await asyncio.sleep(0.3)
        async with running(tmp_path, checks=True) as parts:
            after = parts.registry.deadlines.remaining(HOUR.id)
            assert after is not None and after <= before - 0.3
            assert parts.health("web") == [("web-1", Status.PASSING)]

    run(test)


def test_a_check_that_is_of_another_type_now_has_no_ttl_left(tmp_path: Path) -> None:
    tcp = replace(SHORT, type="tcp", ttl=0.0, interval=3600.0, target="127.0.0.1:1")

    async def test() -> None:
        async with running(tmp_path) as parts:
            await parts.registry.register(WEB, [SHORT])
            await parts.registry.update_check(SHORT.id, Status.PASSING, "fine")
            await parts.registry.register(WEB, [tcp])
            assert parts.registry.deadlines.remaining(SHORT.id) is None
        assert await stored(tmp_path) == {"status": "passing"}

    run(test)


@pytest.mark.parametrize("offered", [False, True], ids=["registered", "of an attachment"])
def test_what_expired_while_the_agent_was_down_is_never_served_as_passing(tmp_path: Path, offered: bool) -> None:
    async def test() -> None:
        async with running(tmp_path, checks=True) as parts:
            await registered(parts.registry, offered)
            await parts.registry.update_check(SHORT.id, Status.PASSING, "fine")
            await parts.until(lambda: parts.health("web") == [("web-1", Status.PASSING)])
        await asyncio.sleep(1.1)
        async with running(tmp_path, checks=True) as parts:
            if offered:
                await registered(parts.registry, offered)
                await parts.until(lambda: parts.health("web") == [("web-1", Status.CRITICAL)])
            assert parts.health("web") == [("web-1", Status.CRITICAL)]
            assert parts.registry.checks()[SHORT.id].output == "TTL expired"
            await parts.registry.update_check(SHORT.id, Status.PASSING, "again")
            await parts.until(lambda: parts.health("web") == [("web-1", Status.PASSING)])
            await parts.until(lambda: parts.health("web") == [("web-1", Status.CRITICAL)])

    run(test)


async def registered(registry: Registry, offered: bool) -> None:
    if offered:
        await registry.offer("owner", [(WEB, [SHORT])])
    else:
        await registry.register(WEB, [SHORT])


def test_reports_are_stored_without_a_graceful_stop(tmp_path: Path) -> None:
    """After SIGKILL; a report is stored within about a second."""

    async def test() -> None:
        async with running(tmp_path) as parts:
            await parts.registry.register(WEB, [HOUR])
            await parts.registry.update_check(HOUR.id, Status.PASSING, "fine")
            await asyncio.sleep(0.1)
            await parts.registry.update_check(HOUR.id, Status.PASSING, "fine")
            expires = time.time() + (parts.registry.deadlines.remaining(HOUR.id) or 0.0)
            async with asyncio.timeout(20):
                while abs(float(str((await stored(tmp_path)).get("expires", 0))) - expires) > 0.05:
                    await asyncio.sleep(0.05)

    run(test)


def test_a_check_without_a_stored_state_gets_a_whole_ttl(tmp_path: Path) -> None:
    """Killed before it was stored, or stored by an earlier release."""

    async def test() -> None:
        async with running(tmp_path) as parts:
            await parts.registry.register(WEB, [SHORT])
        store = await open_embedded(tmp_path / "catalog.db")
        await store.delete(layout.local_key("n1", "status", SHORT.id))
        await store.close()
        async with running(tmp_path, checks=True) as parts:
            remaining = parts.registry.deadlines.remaining(SHORT.id)
            assert remaining is not None and 0 < remaining <= SHORT.ttl
            await parts.until(lambda: parts.registry.checks()[SHORT.id].output == "TTL expired")

    run(test)


def test_registering_again_extends_no_ttl(tmp_path: Path) -> None:
    """hashicorp/consul#6231: a check that nobody reports any more must not stay passing."""

    async def test() -> None:
        async with running(tmp_path, checks=True) as parts:
            await parts.registry.register(WEB, [HOUR])
            await parts.registry.update_check(HOUR.id, Status.PASSING, "fine")
            before = parts.registry.deadlines.remaining(HOUR.id)
            await asyncio.sleep(0.1)
            await parts.registry.register(WEB, [HOUR], replace_checks=True)
            after = parts.registry.deadlines.remaining(HOUR.id)
            assert before is not None and after is not None and after <= before - 0.1
            assert parts.registry.checks()[HOUR.id].status is Status.PASSING

    run(test)


def test_a_report_of_the_same_status_publishes_nothing(tmp_path: Path) -> None:
    async def test() -> None:
        async with running(tmp_path) as parts:
            await parts.registry.register(WEB, [HOUR])
            await parts.registry.update_check(HOUR.id, Status.PASSING, "fine")
            await parts.until(lambda: parts.health("web") == [("web-1", Status.PASSING)])
            index = parts.catalog.node_checks("n1")[1].modify_index
            for _ in range(10):
                await parts.registry.update_check(HOUR.id, Status.PASSING, "fine")
            await parts.registry.stop()
            assert parts.catalog.node_checks("n1")[1].modify_index == index

    run(test)


def test_a_report_that_came_while_the_agent_was_stopped_counts(tmp_path: Path) -> None:
    """As after SIGSTOP: when it goes on, the timer is due and the report is still in the socket."""

    async def test() -> None:
        async with running(tmp_path, checks=True) as parts:
            await registered(parts.registry, offered=False)
            await parts.registry.update_check(SHORT.id, Status.PASSING, "fine")
            statuses: set[Status] = set()
            parts.catalog.subscribe(lambda *_: statuses.update(status for _, status in parts.health("web")))
            await parts.until(lambda: parts.health("web") == [("web-1", Status.PASSING)])
            time.sleep(2.0)
            await asyncio.sleep(0.3)
            await parts.registry.update_check(SHORT.id, Status.PASSING, "fine")
            assert Status.CRITICAL not in statuses
            await parts.until(lambda: Status.CRITICAL in statuses)

    run(test)


def test_time_without_an_agent_does_not_count_for_deregistration(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Consul's timer begins anew with the agent; counting the time that it was down would
    deregister what nobody could probe.
    """

    async def test() -> None:
        async with running(tmp_path) as parts:
            await parts.registry.register(WEB, [GONE])
            monkeypatch.setattr(time, "monotonic", lambda real=time.monotonic: real() + 50)
        assert 50 <= float(str((await stored(tmp_path))["critical"])) < 55
        monkeypatch.undo()
        monkeypatch.setattr(time, "time", lambda real=time.time: real() + 3500)
        async with running(tmp_path) as parts:
            assert 50 <= parts.registry.deadlines.critical()[GONE.id] < 55

    run(test)


def test_a_service_is_deregistered_by_what_both_runs_saw(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checker, "REAP_SECONDS", 0.05)

    async def test() -> None:
        async with running(tmp_path, checks=True) as parts:
            await parts.registry.register(WEB, [GONE])
            parts.registry.deadlines._critical_since[GONE.id] -= 59.0
        async with running(tmp_path, checks=True) as parts:
            assert "web-1" in parts.registry.instances()
            await parts.until(lambda: "web-1" not in parts.registry.instances())

    run(test)


def test_states_of_attachments_that_ended_meanwhile_are_forgotten(tmp_path: Path) -> None:
    async def test() -> None:
        async with running(tmp_path) as parts:
            await registered(parts.registry, offered=True)
            await parts.registry.update_check(SHORT.id, Status.PASSING, "fine")
        store = await open_embedded(tmp_path / "catalog.db")
        for kind in ("service/", "check/", "node"):  # as when their lease expires
            await store.delete(layout.host_prefix("n1") + kind, prefix=True)
        await store.close()
        async with running(tmp_path) as parts:
            assert parts.registry.checks() == {}
        with pytest.raises(AssertionError):
            await stored(tmp_path)

    run(test)


def test_many_checks_are_registered_in_linear_time(tmp_path: Path) -> None:
    """Each registration told the checker to compare all checks: 10,000 took a minute."""
    compared: list[str] = []

    async def test() -> None:
        async with running(tmp_path, checks=True) as parts:
            parts.registry.subscribe(compared.append)
            for number in range(50):
                one = Instance("", f"s{number}", f"s{number}")
                await parts.registry.register(one, [CheckDefinition(f"c{number}", "c", "ttl", one.id, ttl=60.0)])

    run(test)
    assert compared == [f"c{number}" for number in range(50)]


@pytest.mark.parametrize(("ahead", "remaining"), [(-7200.0, 3600.0), (0.0, 1800.0), (1000.0, 800.0), (7200.0, -5400.0)])
def test_a_clock_that_was_set_extends_no_ttl(monkeypatch: pytest.MonkeyPatch, ahead: float, remaining: float) -> None:
    now = time.time()
    deadlines = CheckDeadlines()
    monkeypatch.setattr(check_deadlines.time, "time", lambda: now + ahead)
    expired = deadlines.restore(HOUR, (Status.PASSING, now + 1800.0, 0.0))
    assert deadlines.remaining(HOUR.id) == pytest.approx(remaining, abs=5)
    assert expired is (remaining < 0)


def test_states_of_earlier_releases_and_malformed_ones() -> None:
    assert decode_state(b'"passing"') == (Status.PASSING, None, 0.0)
    for value in (b"{", b"[]", b"{}", b'{"status":"odd"}', b'{"status":"passing","expires":"x"}'):
        with pytest.raises(ValueError):
            decode_state(value)
