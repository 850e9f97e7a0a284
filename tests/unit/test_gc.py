"""GC during other calls: freeing too much is worse than a leak."""

from __future__ import annotations

import contextlib
import fcntl
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import pytest

from cni_plugin.service import gc, removal
from cni_plugin.service.records import NetworkRecord, Phase, Record
from cni_plugin.service.verbs import Service
from weft import identity, locks
from weft.errors import Busy
from weft.kernel.fake.kernel import FakeKernel
from weft.kernel.host import Host
from weft.kernel.interface import VethPeer
from weft.locks import hold
from weft.types import Attachment, NamespaceId

ATTACHMENT = Attachment("blue", "c1", "eth0", "weft")


@pytest.fixture
def service(tmp_path: Path) -> Service:
    made = Service(FakeKernel(), Host(str(tmp_path), "boot", 0.0))
    made.records.prepare()
    return made


def test_an_add_that_completed_after_the_listing_is_kept(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    record = Record(ATTACHMENT, NamespaceId("/run/netns/c1", 1, 2), Phase.ADDING, "boot", 1.0)
    service.records.write(replace(record, phase=Phase.ATTACHED))
    monkeypatch.setattr(gc, "stale_attachments", lambda service: [record])
    assert gc.collect_stale(service).attachments == []
    assert service.records.read(ATTACHMENT) is not None


def test_an_incomplete_attachment_is_removed(service: Service) -> None:
    service.records.write(Record(ATTACHMENT, NamespaceId("/run/netns/c1", 1, 2), Phase.ADDING, "boot", 1.0))
    assert gc.collect_stale(service).attachments == [str(ATTACHMENT)]
    assert service.records.read(ATTACHMENT) is None


def _orphan(service: Service) -> str:
    name = identity.host_link(ATTACHMENT)
    service.kernel.host.add_link(name, "dummy", alias=identity.alias(identity.attachment_mark(ATTACHMENT), "c1/eth0"))
    return name


def test_an_orphaned_link_is_removed_with_its_lock(service: Service) -> None:
    name = _orphan(service)
    assert gc.collect_stale(service).leftovers == [f"link {name}"]
    assert service.kernel.host.link(name) is None
    assert service.records.stray_files() in ([], [service.records.shared_lock()])


def test_the_link_by_which_this_host_is_a_container_itself_is_kept(service: Service) -> None:
    """The host outside has put it here, with its own mark and record."""
    outside = service.kernel.add("/outside")  # type: ignore[attr-defined]
    outside.add_link("up0", "veth", peer=VethPeer("wire"))
    mark = identity.alias(identity.attachment_mark(ATTACHMENT), "c1/eth0")
    host = service.kernel.host
    host.add_link("eth0", "macvlan", alias=mark, parent="up0", parent_namespace=outside)
    assert gc.collect_stale(service).leftovers == [] and host.link("eth0") is not None


def test_an_orphaned_link_is_skipped_while_its_attachment_is_locked(service: Service) -> None:
    name = _orphan(service)
    with hold(service.records.lock(ATTACHMENT)):
        assert gc.collect_stale(service).leftovers == []
    assert service.kernel.host.link(name) is not None


def test_a_bridge_is_removed_with_its_last_orphaned_port(service: Service) -> None:
    host = service.kernel.host
    host.add_link("br0", "bridge", alias=identity.alias(identity.mark("bridge", "br0"), "bridge br0"))
    host.change_link(_orphan(service), master="br0")
    assert len(gc.collect_stale(service).leftovers) == 2
    assert host.link("br0") is None


@pytest.mark.parametrize("seconds", [5.0, 1000.0])
def test_networks_are_removed_while_the_engine_compares_all(
    service: Service, monkeypatch: pytest.MonkeyPatch, seconds: float
) -> None:
    """It holds the lock of what networks share for seconds then. Nobody waits long for a network meanwhile, and for
    the engine ``gc`` waits for half a minute.
    """
    for number in range(40):
        service.records.write_network(NetworkRecord(f"n{number}", "boot", ()))
    clock, got = [0.0], [0.0]
    with open(service.records.shared_lock(), "wb") as engine, open(service.records.network_lock("n0"), "ab") as add:
        fcntl.flock(engine, fcntl.LOCK_EX)

        def sleep(pause: float) -> None:
            clock[0] += pause
            if clock[0] > seconds:
                fcntl.flock(engine, fcntl.LOCK_UN)
            elif clock[0] < 30:
                with contextlib.suppress(BlockingIOError):
                    fcntl.flock(add, fcntl.LOCK_SH | fcntl.LOCK_NB)
                    got.append(clock[0])
                    fcntl.flock(add, fcntl.LOCK_UN)

        for module in (locks, removal):
            monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: clock[0], sleep=sleep))
        swept = gc.collect_stale(service)
    assert max(later - before for before, later in pairwise(got)) < 1.2 and got[-1] > min(seconds, 30) - 1.2
    if seconds < 30:
        assert clock[0] > seconds and len(swept.leftovers) == 40 and swept.errors == []
    else:
        assert clock[0] < 70 and swept.leftovers == [] and {type(one) for one in swept.errors} == {Busy}


def test_networks_that_are_used_do_not_keep_the_others_locked(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those that were locked before wait for them."""
    clock = [0.0]

    def sleep(pause: float) -> None:
        clock[0] += pause

    for module in (locks, removal):
        monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: clock[0], sleep=sleep))
    with contextlib.ExitStack() as used:
        for number in range(9):
            service.records.write_network(NetworkRecord(f"n{number}", "boot", ()))
            if 0 < number < 8:
                used.enter_context(hold(service.records.network_lock(f"n{number}"), shared=True))
        assert gc.collect_stale(service).leftovers == ["network n0", "network n8"]
    assert clock[0] < 1.1
