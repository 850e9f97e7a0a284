"""The elements of all networks and attachments are restored at once, and none of what a DEL removes meanwhile."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import pytest

from cni_plugin.dataplane.nat import PORTS, PORTS4
from cni_plugin.dataplane.packets import CLOSED_LINKS
from cni_plugin.ops.groups import POLICIES
from cni_plugin.service import shared
from cni_plugin.service.verbs import Service
from lab.calls import Weft
from lab.confs import network, port
from weft import locks
from weft.kernel.fake.kernel import FakeKernel
from weft.kernel.host import Host
from weft.kernel.values import Element


def pool(number: int) -> dict[str, Any]:
    """Addresses of a network."""
    return {"type": "static", "addresses": [{"address": f"10.{number}.0.2/24", "gateway": f"10.{number}.0.1"}]}


CONFS = {
    "c1": network(
        "weft", driver="bridge", bridge="blue0", name="blue", isGateway=True, ipMasq=True, portmap={}, ipam=pool(80),
        runtimeConfig={"portMappings": [port(8080, 80)]},
    ),
    "c2": network("weft", driver="ptp", name="points", ipam=pool(81)),
    "c3": network("weft", driver="ptp", name="others", ipMasq=True, ipam=pool(82)),
}  # fmt: skip


@pytest.fixture
def kernel() -> FakeKernel:
    made = FakeKernel()
    for name in CONFS:
        made.add(f"/run/netns/{name}")
    return made


@pytest.fixture
def weft(kernel: FakeKernel, tmp_path: Any) -> Weft:
    made = Weft(kernel, Host(str(tmp_path), "boot", 0.0))
    for name, conf in CONFS.items():
        made.add(conf, f"/run/netns/{name}", name)
    return made


def watch(
    kernel: FakeKernel, monkeypatch: pytest.MonkeyPatch, before: Callable[[], object] = lambda: None
) -> list[list[str]]:
    """The collections of each transaction that adds elements, from now on."""
    found: list[list[str]] = []
    add = kernel.rules.add

    def watched(elements: Iterable[Element]) -> None:
        given = tuple(elements)
        found.append([one.collection for one in given])
        if len(found) == 1:
            before()
        add(given)

    monkeypatch.setattr(kernel.rules, "add", watched)
    return found


def test_all_but_ports_comes_back_in_one_transaction(
    kernel: FakeKernel, weft: Weft, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What closes networks before all else, also that of ptp, which is an element for each attachment."""
    before = kernel.rules.dump()
    kernel.rules.remove()
    found = watch(kernel, monkeypatch)
    shared.repair(weft.service(kernel))
    assert kernel.rules.dump() == before
    first, *others = found
    assert first.count(CLOSED_LINKS) == len(CONFS) and not PORTS.intersection(first)
    closing = [name in POLICIES for name in first]
    assert closing == sorted(closing, reverse=True)
    assert len(others) == 1 and PORTS4 in others[0] and not POLICIES.keys() & others[0]


def test_what_is_removed_meanwhile_does_not_come_back(
    kernel: FakeKernel, weft: Weft, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernel.rules.remove()
    found = watch(kernel, monkeypatch, lambda: weft.delete(CONFS["c2"], "/run/netns/c2", "c2"))
    shared.repair(weft.service(kernel))
    assert found[0].count(CLOSED_LINKS) == len(CONFS)
    assert len(kernel.rules.elements(CLOSED_LINKS)) == len(CONFS) - 1


def test_what_is_removed_meanwhile_is_not_told_as_restored(
    kernel: FakeKernel, weft: Weft, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``weft gc`` of many attachments is no other program that changes what weft has set up."""
    service = weft.service(kernel)
    lost = [one for one in kernel.rules.elements(CLOSED_LINKS) if one.mark in marks_of(service, "c2")]
    assert len(lost) == 1
    kernel.rules.delete(lost)
    found = watch(kernel, monkeypatch, lambda: weft.delete(CONFS["c2"], "/run/netns/c2", "c2"))
    assert shared.repair(service).changed == 0 and found == [[CLOSED_LINKS]]
    assert not set(lost) & set(kernel.rules.elements(CLOSED_LINKS))


def marks_of(service: Service, container: str) -> set[str]:
    return {mark for one in service.records.of_container(container) for each in one.operations for mark in each.marks}


def test_calls_do_not_wait_until_every_attachment_has_been_looked_at(
    weft: Weft, kernel: FakeKernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With thousands that takes longer than a call waits for what networks share."""
    service, seen = weft.service(kernel), []
    restore = shared.restore_attachment

    def watched(*given: Any, **keys: Any) -> shared.Restored:
        with locks.hold(service.records.shared_lock(), timeout=0):
            seen.append(given[1].attachment.container)
        return restore(*given, **keys)

    monkeypatch.setattr(shared, "restore_attachment", watched)
    shared.repair(service)
    assert sorted(seen) == sorted(CONFS)
