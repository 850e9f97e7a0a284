"""Shared memory of an engine's processes. Needs no root."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from ipaddress import ip_address
from pathlib import Path

import pytest

from cni_plugin.engine.shared import LeaseChangeRing, SharedRegion, SharedVerifiedGeneration
from ipam import cache, leases
from ipam.leases import HostState, Owner, open_locked
from ipam.view import View
from lab.waiting import until


def in_a_child(work: Callable[[], object]) -> None:
    """Run ``work`` in a forked child; raises AssertionError if it fails."""
    child = os.fork()
    if not child:
        status = 1
        try:
            work()
            status = 0
        finally:
            os._exit(status)
    assert os.waitpid(child, 0)[1] == 0


def test_a_region_is_held_by_one_process_at_a_time() -> None:
    region = SharedRegion(8)

    def count() -> None:
        for _ in range(2000):
            with region:
                found = int.from_bytes(region.memory[:8], "little")
                region.memory[:8] = (found + 1).to_bytes(8, "little")

    child = os.fork()
    if not child:
        count()
        os._exit(0)
    count()
    assert os.waitpid(child, 0)[1] == 0
    assert int.from_bytes(region.memory[:8], "little") == 4000


def test_a_region_held_by_a_killed_process_is_released() -> None:
    region = SharedRegion(1)
    child = os.fork()
    if not child:
        with region:
            region.memory[:1] = b"x"
            time.sleep(60)
    until(lambda: region.memory[:1] == b"x")
    os.kill(child, signal.SIGKILL)
    with region:
        os.waitpid(child, 0)


def test_the_verified_generation_is_shared_between_processes() -> None:
    verified = SharedVerifiedGeneration()
    assert verified.found is None

    def find() -> None:
        with verified.lock:
            verified.found = "0123456789abcdef", 7

    in_a_child(find)
    assert verified.found == ("0123456789abcdef", 7)
    verified.found = None
    assert verified.found is None


def test_messages_arrive_in_order_in_every_process() -> None:
    ring = LeaseChangeRing(64)
    assert ring.poll() == []

    def publish() -> None:
        ring.publish(b"a")
        ring.publish(b"b" * 20)

    for _ in range(20):  # wraps around several times
        in_a_child(publish)
        ring.publish(b"")
        assert ring.poll() == [b"a", b"b" * 20, b""]
    assert ring.poll() == []


def test_a_reader_that_was_lapped_gets_none() -> None:
    ring = LeaseChangeRing(64)
    for _ in range(3):
        ring.publish(b"x" * 30)
    assert ring.poll() is None
    assert ring.poll() == []
    ring.publish(b"y")
    assert ring.poll() == [b"y"]
    ring.publish(b"z" * 61)  # longer than the ring
    assert ring.poll() == []


@pytest.fixture
def remembering() -> Iterator[LeaseChangeRing]:
    ring = LeaseChangeRing()
    cache.enable(ring)
    yield ring
    cache._cached = cache._feed = None


def test_processes_see_each_others_leases_without_rereading_the_directory(
    tmp_path: Path, remembering: LeaseChangeRing, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Leases and releases are published; the directory is read again only after a foreign change."""
    state = HostState(index=str(tmp_path / "index"), booted=0.0, alive=lambda *_: True)
    path = tmp_path / "leases"
    path.mkdir()
    reads: list[int] = []
    really = View._owners
    monkeypatch.setattr(View, "_owners", lambda self, names: (reads.append(1), really(self, names))[1])

    @contextmanager
    def held() -> Iterator[leases.Leases]:
        with open_locked(str(path), "blue", state) as found:
            yield found

    def take(number: int) -> None:
        with held() as found:
            assert found.lease((ip_address(f"10.1.0.{number}"),), Owner(f"c{number}", "eth0"))

    def free(number: int) -> None:
        with held() as found:
            assert found.release(Owner(f"c{number}", "eth0")) == (ip_address(f"10.1.0.{number}"),)

    def knows(*numbers: int) -> None:
        before = len(reads)
        with held() as found:
            for number in range(2, 20):
                mine = found.addresses_of(Owner(f"c{number}", "eth0"))
                assert mine == ((ip_address(f"10.1.0.{number}"),) if number in numbers else ())
        assert len(reads) == before

    take(2)
    in_a_child(lambda: [take(3), knows(2, 3)])
    knows(2, 3)
    take(4)
    in_a_child(lambda: [knows(2, 3, 4), free(2), take(5), take(6), free(5)])
    knows(3, 4, 6)
    (path / "10.1.0.9").write_text("c9\r\neth0")  # written by another program
    with held() as found:
        assert found.addresses_of(Owner("c9", "eth0")) == (ip_address("10.1.0.9"),)
    assert len(reads) > 1
