"""What ``ps``, ``check``, ``doctor``, ``gc`` and ``status`` do grows with what is attached, not with its square.

Counted on the fake kernel: requests to the kernel, what it lists for them, and files opened or listed.
"""

from __future__ import annotations

import os
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest

from cni_plugin.cli import listing, tool
from cni_plugin.dataplane.nat import PORTS4
from cni_plugin.networks import attachments, conflists, findings, leases, pools
from cni_plugin.ops import Elements
from cni_plugin.service import gc, records, shared
from cni_plugin.service.verbs import Service
from ipam import host_local_config
from lab.calls import Weft
from lab.cases import conf, pool
from weft.identity import mark_digest
from weft.kernel.fake.kernel import FakeKernel
from weft.kernel.fake.namespace import FakeNamespace
from weft.kernel.host import Host
from weft.kernel.values import Element

FEW, MANY, EACH = 10, 40, 3
_FILES = ("open", "os.listdir", "os.scandir", "os.rename", "os.remove")


class Filled:
    """A host with so many networks of three containers each."""

    def __init__(self, folder: Path, count: int) -> None:
        self.kernel = FakeKernel()
        self.config = folder / "net.d"
        self.config.mkdir(parents=True)
        host = Host(str(folder / "run"), "boot", time.time() - 3600)
        weft = Weft(self.kernel, host)
        for number in range(count):
            keys = {"driver": "bridge", "bridge": f"b{number}", "isGateway": True, "ipMasq": True}
            given = conf("weft", f"n{number}", {**keys, "ipam": pool(f"10.9.{number}.0/24")})
            conflists.write(
                str(self.config), f"n{number}", {"cniVersion": "1.1.0", "name": f"n{number}", "plugins": [given]}
            )
            for each in range(EACH):
                path = f"/run/netns/c{number}-{each}"
                self.kernel.add(path).links_by_name["lo"].up = True
                weft.add(given, path, f"c{number}-{each}")
        for path in (folder / "leases").rglob("10.*"):
            os.utime(path, (time.time() - 600,) * 2)  # older than those that are held whoever has them
        self.context = Service(self.kernel, host)

    def lists(self) -> Any:
        return conflists.listed(str(self.config))


def _ps(filled: Filled) -> None:
    assert len(attachments.endpoints(filled.context)) % EACH == 0


def _check(filled: Filled) -> None:
    weft = tool.Tool(config=str(filled.config), make=lambda: filled.context, missing_privileges=lambda: "")
    with pytest.raises(SystemExit) as ended:
        listing.check.main(["--json"], obj=weft, prog_name="check")
    assert ended.value.code == 0


def _doctor(filled: Filled) -> None:
    assert findings.begun(filled.context, *filled.lists())(()) == []


def _gc(filled: Filled) -> None:
    swept = gc.collect_stale(filled.context)
    assert (swept.attachments, swept.leftovers, swept.errors) == ([], [], [])
    assert leases.free_stale(filled.context, filled.lists()[0]) == []


def _gone(filled: Filled) -> None:
    """GC after half of the containers are gone."""
    paths = [path for path in filled.kernel.others() if path.endswith(("-0", "-1"))]
    for path in paths:
        filled.kernel.remove(path)
    assert len(gc.collect_stale(filled.context).attachments) == len(paths)


def _unused(filled: Filled) -> None:
    """GC of half of the networks, whose containers are gone."""
    for path in [path for path in filled.kernel.others() if int(path[len("/run/netns/c") : -2]) % 2]:
        filled.kernel.remove(path)
    swept = gc.collect_stale(filled.context)
    networks = sum(each.startswith("network ") for each in swept.leftovers)
    assert networks == len(filled.lists()[0]) / 2 and not swept.errors


TOOLS: dict[str, Callable[[Filled], None]] = {
    "ps": _ps, "check": _check, "doctor": _doctor, "gc": _gc, "gone": _gone, "unused": _unused,
}  # fmt: skip
counted: Counter[str] | None = None


def _count(event: str, given: tuple[object, ...]) -> None:
    if counted is not None and event in _FILES:
        counted["files"] += 1


sys.addaudithook(_count)


def work(filled: Filled, use: Callable[[Filled], None], monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """What one use of a tool costs, with an empty cache of records."""
    global counted
    records._cache.clear()
    found: Counter[str] = Counter()
    with monkeypatch.context() as patched:
        for name in dir(FakeNamespace):
            method = getattr(FakeNamespace, name)
            if not name.startswith("_") and name != "settle" and callable(method):  # the fake's own
                patched.setattr(FakeNamespace, name, _counting(found, method))
        decode = records.codec.decode
        patched.setattr(records.codec, "decode", lambda *given: found.update(decoded=1) or decode(*given))
        subnets = conflists.subnets
        patched.setattr(conflists, "subnets", lambda network: found.update(subnets=1) or subnets(network))
        counted = found
        try:
            use(filled)
        finally:
            counted = None
    return found


def _counting(found: Counter[str], method: Callable[..., Any]) -> Callable[..., Any]:
    def called(*given: Any, **keys: Any) -> Any:
        found["kernel"] += 1
        answer = method(*given, **keys)
        found["listed"] += len(answer) if isinstance(answer, tuple) else 0
        return answer

    return called


@pytest.mark.parametrize("name", TOOLS)
def test_work_is_linear(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "_most_cached", 8)  # as if there were many more records than are cached
    found = {}
    for count in (FEW, MANY):
        monkeypatch.setattr(host_local_config, "DATA_DIRECTORY", str(tmp_path / f"{count}" / "leases"))
        found[count] = work(Filled(tmp_path / f"{count}", count), TOOLS[name], monkeypatch)
    factor = 1.25 * MANY / FEW  # a square would be 4 * MANY / FEW
    for what, many in found[MANY].items():
        assert many <= factor * found[FEW][what] + 20, (what, found)
    assert found[MANY]["files"] >= MANY * EACH, found


def _first_of_a_network(filled: Filled) -> None:
    """The first container of one network more."""
    filled.kernel.add("/run/netns/new")
    keys = {"driver": "bridge", "bridge": "new", "isGateway": True, "ipMasq": True, "ipam": pool("10.10.0.0/24")}
    Weft(filled.kernel, filled.context.host).add(conf("weft", "new", keys), "/run/netns/new", "new")


def _published_twice(filled: Filled) -> None:
    """DEL of an attachment with a published port, which others of its container may take over."""
    record = next(iter(filled.context.records.all()))
    elements = (Element(PORTS4, ("tcp", 80), ("10.9.0.9", 80), "weft:00112233445566aa"),)
    records._cache.clear()
    assert counted is not None
    counted.clear()
    shared.pass_on_ports(filled.context, replace(record, operations=(Elements(elements),)))


def _bridge_changed(filled: Filled) -> None:
    """Another program has deleted a bridge."""
    [network] = [one for one in filled.context.records.networks() if one.network == "n0"]
    filled.kernel.host.delete_link("b0")
    assert counted is not None
    counted.clear()
    marks = {mark_digest(mark) for one in network.shared for mark in one.marks}
    found = shared.repair_concerned(filled.context, shared.Concerned(marks, frozenset()))
    assert found.changed and filled.kernel.host.link("b0") is not None


def _found(filled: Filled) -> None:
    """An attachment is named by its whole id, as ``weft attach``, ``show`` and ``detach`` look for it."""
    [one] = attachments.find(filled.context, "c0-0")
    assert one.container == "c0-0"


@pytest.mark.parametrize(
    ("use", "whats"),
    [
        (_found, ("decoded", "kernel")),
        (_first_of_a_network, ("decoded", "files")),
        (_published_twice, ("decoded", "kernel")),
        (_bridge_changed, ("kernel",)),
    ],
)
def test_others_are_not_looked_at(
    use: Callable[[Filled], None], whats: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What concerns one network or container costs the same with few others as with many."""
    found = {}
    for count in (FEW, MANY):
        monkeypatch.setattr(host_local_config, "DATA_DIRECTORY", str(tmp_path / f"{count}" / "leases"))
        found[count] = work(Filled(tmp_path / f"{count}", count), use, monkeypatch)
    for what in whats:
        assert found[MANY][what] <= found[FEW][what] + 2, (what, found)


def test_overlaps_are_found_as_by_comparing_all() -> None:
    from ipaddress import ip_network
    from random import Random

    chance = Random(3)
    for _ in range(200):
        subnets = [
            ip_network((chance.randrange(1 << 8) << 24, chance.randrange(1, 9)), strict=False)
            if chance.random() < 0.8
            else ip_network((chance.randrange(1 << 8) << 120, chance.randrange(1, 9)), strict=False)
            for _ in range(12)
        ]
        index = pools.Subnets(subnets)
        for one in subnets:
            wanted = [place for place, each in enumerate(subnets) if each.version == one.version and each.overlaps(one)]
            assert index.overlapping(one) == wanted
            inner = [place for place in wanted if subnets[place].prefixlen >= one.prefixlen]
            assert index.within([one]) == inner


def test_elements_are_made_only_of_sets_with_an_unknown_mark(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """``weft gc`` looks at the marks of all elements, which are a dozen for each attachment."""
    monkeypatch.setattr(host_local_config, "DATA_DIRECTORY", str(tmp_path / "leases"))
    filled = Filled(tmp_path, 2)
    filled.kernel.rules.calls.clear()
    _gc(filled)
    calls = Counter(filled.kernel.rules.calls)
    assert (calls["mark_digests"], calls["elements"]) == (len(filled.kernel.rules.collections()), 0)
    filled.kernel.rules.add([Element(PORTS4, ("tcp", 80), (ip_address("10.9.0.9"), 80), "weft:00112233445566aa")])
    assert gc.collect_stale(filled.context).leftovers == [f"{PORTS4} tcp"]


def test_check_of_all_lists_the_host_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Links, addresses and FDB rows are dumped, a container is asked for its link and addresses once, by doctor
    also for its lo; what the lists miss is asked of the kernel itself.
    """
    monkeypatch.setattr(host_local_config, "DATA_DIRECTORY", str(tmp_path / "leases"))
    filled = Filled(tmp_path, 2)
    filled.kernel.calls.clear()
    _check(filled)
    calls = Counter(filled.kernel.calls)
    assert calls["all_ports_fdb"] == 1
    assert calls["links"] - calls["all_addresses"] == 1, calls  # the fake lists links for addresses
    in_containers = {name: calls[name] for name in ("open", "link", "addresses")}
    assert in_containers == dict.fromkeys(in_containers, 2 * EACH), calls

    filled.kernel.calls.clear()
    _doctor(filled)
    calls = Counter(filled.kernel.calls)
    assert (calls["all_ports_fdb"], calls["open"], calls["identify"]) == (1, 2 * EACH, 2 * EACH), calls
    assert calls["link"] == 2 * EACH, calls  # whether lo is up costs no message
    assert calls["links"] - calls["all_addresses"] == 1, calls

    listed = filled.context.comparing_all()
    [one, *_] = attachments.endpoints(listed)
    listed.kernel.host.links()
    host_link = next(each.name for each in one.result.interfaces if each.name.startswith("veth"))
    filled.kernel.host.change_link(host_link, up=False)
    assert attachments.mismatches(listed, one) == []  # as old as the list
    later = filled.context.comparing_all()
    assert attachments.mismatches(later, one) == [f"the host's link {host_link} is down"]
    later.kernel.host.links()
    filled.kernel.host.change_link(host_link, up=True)
    assert attachments.mismatches(later, one) == []  # the list still has it down, the kernel has not


def test_what_mends_a_difference_is_decided_where_it_was_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By each process for its part: where all is broken, the first would look at everything once more."""
    monkeypatch.setattr(host_local_config, "DATA_DIRECTORY", str(tmp_path / "leases"))
    filled, of_each = Filled(tmp_path, 2), attachments.of_each
    for link in filled.kernel.host.links():
        if link.kind == "veth":
            filled.kernel.host.change_link(link.name, up=False)

    def looked(*given: Any) -> list[Any]:
        found = of_each(*given)
        filled.kernel.calls.clear()
        return found

    monkeypatch.setattr(attachments, "of_each", looked)
    weft = tool.Tool(config=str(filled.config), make=lambda: filled.context, missing_privileges=lambda: "")
    with pytest.raises(SystemExit) as ended:
        listing.check.main(["--json"], obj=weft, prog_name="check")
    assert ended.value.code == 1 and filled.kernel.calls == []
