"""The first reservation after a boot in a large directory: leases of the earlier boot cost nothing."""

from __future__ import annotations

import os
import sys
import time
from collections import Counter
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path

import pytest
from unit.ipam.test_host_local import parse

from ipam import view
from ipam.directory import Directory
from ipam.host_local import Owner, Pool, reserve
from ipam.leases import open_locked, release
from ipam.values import HostState, owner_text

FEW, MANY = 300, 900
BOOTED = time.time() - 100
counted: Counter[str] | None = None


def _count(event: str, given: tuple[object, ...]) -> None:
    if counted is not None and event in ("open", "os.remove"):
        counted[event] += 1


sys.addaudithook(_count)


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(view, "SMALL", 8)


def filled(folder: Path, count: int) -> tuple[Pool, HostState]:
    """A full directory of an earlier boot, unchanged since."""
    pool = parse({"type": "host-local", "ranges": [[{"subnet": "10.9.0.0/22"}]], "dataDir": str(folder / "disk")})
    path = Path(pool.directory)
    path.mkdir(parents=True)
    (path / "lock").touch()
    for number in range(count):
        file = path / str(ip_address("10.9.0.2") + number)
        file.write_bytes(owner_text(Owner(f"old{number}", "eth0")))
        os.utime(file, (BOOTED - 500,) * 2)
    os.utime(path, (BOOTED - 400,) * 2)
    return pool, HostState(str(folder / "index"), BOOTED, lambda network, owner: False, lambda network: True)


def old(pool: Pool) -> list[Path]:
    return [one for one in Path(pool.directory).glob("10.*") if one.read_bytes().startswith(b"old")]


def put(pool: Pool, address: str, container: str) -> None:
    """A lease that host-local makes now."""
    Path(pool.directory, address).unlink(missing_ok=True)
    Path(pool.directory, address).write_bytes(owner_text(Owner(container, "eth0")))


def test_the_first_reservation_costs_the_same_with_any_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    global counted
    monkeypatch.setattr(view, "_PURGE_SECONDS", 60.0)  # old leases are removed by the calls that follow
    found = {}
    for count in (FEW, MANY):
        pool, state = filled(tmp_path / f"{count}", count)
        counted = Counter()
        try:
            given = reserve(pool, Owner("new", "eth0"), state)
        finally:
            found[count], counted = counted, None
        assert str(given.ips[0].address.ip) == "10.9.0.2"  # of an old lease
        assert Path(pool.directory, "10.9.0.2").read_bytes() == owner_text(Owner("new", "eth0"))
        assert len(old(pool)) == count - 1
    assert found[MANY].total() <= found[FEW].total() + 2 and 0 < found[MANY]["open"] < 30, found


def test_calls_remove_the_old_leases_and_no_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pool, state = filled(tmp_path, FEW)
    monkeypatch.setattr(view, "_PURGE_SECONDS", 0.001)
    given = {}
    for number in range(FEW * 2):
        result = reserve(pool, Owner(f"new{number}", "eth0"), state)
        given[f"new{number}"] = str(result.ips[0].address.ip)
        if not old(pool) and list(Path(state.index).glob("*.seen")):
            break
    assert not old(pool) and list(Path(state.index).glob("*.seen"))
    assert len(set(given.values())) == len(given)
    assert {one.name for one in Path(pool.directory).glob("10.*")} == set(given.values())
    assert [str(one) for one in release(pool.directory, pool.network, Owner("new0", "eth0"), state)] == [given["new0"]]


def test_leases_that_host_local_makes_meanwhile_are_honoured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before the first call of this boot, and after it."""
    monkeypatch.setattr(view, "_PURGE_SECONDS", 0.0)
    pool, state = filled(tmp_path, FEW)
    put(pool, "10.9.0.2", "theirs1")
    given = {str(reserve(pool, Owner("new1", "eth0"), state).ips[0].address.ip)}
    assert len(old(pool)) >= FEW - 2
    put(pool, "10.9.0.4", "theirs2")
    given |= {str(reserve(pool, Owner(f"new{number}", "eth0"), state).ips[0].address.ip) for number in (2, 3)}
    assert given == {"10.9.0.3", "10.9.0.5", "10.9.0.6"}
    with open_locked(pool.directory, pool.network, state) as leases:
        assert [str(one) for one in leases.addresses_of(Owner("theirs1", "eth0"))] == ["10.9.0.2"]
        assert [str(one) for one in leases.addresses_of(Owner("theirs2", "eth0"))] == ["10.9.0.4"]
        assert leases.addresses_of(Owner("old9", "eth0")) == ()
    for container, address in (("theirs1", "10.9.0.2"), ("theirs2", "10.9.0.4")):
        assert Path(pool.directory, address).read_bytes() == owner_text(Owner(container, "eth0"))


def test_a_network_with_attachments_reads_its_leases(tmp_path: Path) -> None:
    """The clock may have been put forward: what weft has a record of is leased, however old its file looks."""
    pool, state = filled(tmp_path, FEW)
    living = Owner("old0", "eth0")
    state = replace(state, alive=lambda network, owner: owner == living, unused=lambda network: False)
    assert str(reserve(pool, Owner("new", "eth0"), state).ips[0].address.ip) == "10.9.0.3"
    assert [one.name for one in old(pool)] == ["10.9.0.2"]


def test_a_kill_between_two_calls_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The index is invalid then: leases of this boot are read from their files, old ones stay free."""
    monkeypatch.setattr(view, "_PURGE_SECONDS", 0.0)
    pool, state = filled(tmp_path, FEW)
    first = reserve(pool, Owner("new1", "eth0"), state).ips[0].address.ip
    os.utime(pool.directory)
    later = replace(state, booted=BOOTED + 10_000_000)  # the clock was put forward, too
    second = reserve(pool, Owner("new2", "eth0"), later).ips[0].address.ip
    assert first != second and len(old(pool)) == FEW - 2
    assert list(release(pool.directory, pool.network, Owner("new1", "eth0"), later)) == [first]


def test_a_clock_that_is_put_back_meanwhile_frees_no_lease_of_this_boot(tmp_path: Path) -> None:
    pool, state = filled(tmp_path, FEW)
    reserve(pool, Owner("new1", "eth0"), state)
    back = replace(state, booted=BOOTED - 3600)
    put(pool, "10.9.0.200", "theirs")
    os.utime(Path(pool.directory, "10.9.0.200"), (BOOTED - 3000,) * 2)  # by the clock that was put back
    for number in range(40):
        reserve(pool, Owner(f"later{number}", "eth0"), back)
    assert Path(pool.directory, "10.9.0.200").read_bytes() == owner_text(Owner("theirs", "eth0"))


def test_the_time_of_a_file_costs_two_calls(tmp_path: Path) -> None:
    """That of 65,533 files is asked for by the first reservation after another program has used a /16."""
    pool, _ = filled(tmp_path, FEW)
    calls: Counter[str] = Counter()
    with Directory(pool.directory) as directory:
        sys.setprofile(lambda frame, event, given: calls.update([event]))
        try:
            found = list(directory.modified())
        finally:
            sys.setprofile(None)
    assert len(found) == FEW + 1
    assert calls["call"] + calls["c_call"] <= 2 * len(found) + 50, calls
