"""CHECK reports each single change and nothing else; the next ADD restores flushed rules."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from cni_plugin.dataplane.tables import TABLES
from cni_plugin.ops import BaseRules, Bridge, Promiscuous, Setting
from cni_plugin.ops.operation import Operation
from cni_plugin.service import shared
from cni_plugin.service.executor import mismatches
from lab.calls import Weft, at_once, leases
from lab.cases import CASES, Case, sampled
from lab.ground import Ground
from lab.host import Host
from weft.errors import WeftError
from weft.kernel.linux.kernel import LinuxKernel

BY_NAME = {case.name: case for case in CASES}
WHOLE, PTP = BY_NAME["weft-everything"], BY_NAME["ptp-dual"]


class Record:
    """The operations in the record of the attachment, and a machine to undo them on."""

    def __init__(self, ground: Ground) -> None:
        self.kernel = LinuxKernel(TABLES)
        service = ground.weft.service(self.kernel)
        self.container = self.kernel.open(ground.container)
        self.machine = service.machine(self.container)
        found = [one for one in service.records.all() if one.attachment.plugin == ground.case.conf["type"]]
        assert len(found) == 1
        self.operations = (*found[0].shared, *found[0].operations)

    def close(self) -> None:
        self.container.close()
        self.kernel.close()


def _break_operation(operation: Operation, record: Record) -> None:
    """Undo one operation, or invert its effect where undo leaves shared state alone."""
    host = record.kernel.host
    if isinstance(operation, Bridge):
        host.delete_link(operation.name)
    elif isinstance(operation, BaseRules):
        record.kernel.rules.remove()
    elif isinstance(operation, Promiscuous):
        host.change_link(operation.link, promiscuous=False)
    elif isinstance(operation, Setting):
        _invert(operation, record)
    else:
        # Out of order an undo may fail: a chain that is still referenced, for example.
        with contextlib.suppress(WeftError):
            operation.undo(record.machine)


def _invert(setting: Setting, record: Record) -> None:
    side = record.machine.side(setting.side)
    assert side is not None
    there = side.sysctl(setting.key)
    for value in ("0", "1", "20000 30000"):
        if there not in (None, value):
            with contextlib.suppress(WeftError):
                return side.set_sysctl(setting.key, value)
    return None


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_every_operation_that_is_undone_is_missed(host: Host, case: Case) -> None:
    """Each in a new attachment; an undo without an effect on the host need not be reported."""
    ground = Ground(host, case)
    missed = 0
    previewed = ground.weft.preview(ground.conf, ground.container)
    count = len(previewed.shared) + len(previewed.operations)
    places = list(sampled(case.name, range(count)))
    for place in places:
        lacks = _undone(ground, place, count)
        if not lacks:
            assert _undone(ground, place, count, look=True) == [], place
        missed += bool(lacks)
    assert missed or len(places) < count


def _undone(ground: Ground, place: int, count: int, *, look: bool = False) -> list[str]:
    """Undo one operation of a new attachment:

    CHECK's mismatches, or with ``look`` the host's changes.
    """
    case = ground.case
    answer = ground.add()
    assert answer.ok, answer
    assert ground.weft.check(case.conf, answer.document, ground.container) == ""
    record = Record(ground)
    assert len(record.operations) == count
    operation = record.operations[place]
    try:
        if look:
            ground.remember()
        _break_operation(operation, record)
        found = ground.changes() if look else mismatches(record.operations, record.machine)
        if found and not look:
            complaint = ground.weft.check(case.conf, answer.document, ground.container)
            assert found[0] in complaint, operation
    finally:
        record.close()
    assert ground.delete().ok
    if case.first:
        ground.weft.delete(case.first, ground.container)
    ground.collect()
    if case.first:
        ground.conf = {**case.conf, "prevResult": ground.weft.add(case.first, ground.container)}
    return found


def _lease(host: Host, text: str) -> None:
    for address in leases("whole"):
        Path("/var/lib/cni/networks/whole", address).write_text(text)


Mutation = tuple[Callable[[Host, str], object], str]


def _host(*argv: str) -> Callable[[Host, str], object]:
    return lambda host, link: host.run(*(word.replace("LINK", link) for word in argv))


def _inside(*argv: str) -> Callable[[Host, str], object]:
    return lambda host, link: host.inside("c1", *argv)


MUTATIONS: dict[str, Mutation] = {
    "bridge down": (_host("ip", "link", "set", "wbr0", "down"), "wbr0"),
    "bridge MAC": (_host("ip", "link", "set", "wbr0", "address", "02:00:00:00:00:99"), "wbr0"),
    "bridge MTU": (_host("ip", "link", "set", "wbr0", "mtu", "1300"), "MTU of the bridge wbr0"),
    "bridge group": (_host("ip", "link", "set", "wbr0", "group", "default"), "group"),
    "route_localnet": (_host("sysctl", "-qw", "net.ipv4.conf.wbr0.route_localnet=1"), "route_localnet"),
    "bridge forwarding": (_host("sysctl", "-qw", "net.ipv4.conf.wbr0.forwarding=0"), "wbr0/forwarding"),
    "gateway address": (_host("ip", "address", "delete", "10.21.0.1/24", "dev", "wbr0"), "10.21.0.1"),
    "gateway address v6": (_host("ip", "address", "delete", "fd00:21::1/64", "dev", "wbr0"), "fd00:21::1"),
    "another gateway": (_host("ip", "address", "add", "10.77.0.1/24", "dev", "wbr0"), "10.77.0.1"),
    "forwarding": (_host("sysctl", "-qw", "net.ipv4.ip_forward=0"), "ip_forward"),
    "forwarding v6": (_host("sysctl", "-qw", "net.ipv6.conf.all.forwarding=0"), "forwarding"),
    "port down": (_host("ip", "link", "set", "LINK", "down"), "down"),
    "port off the bridge": (_host("ip", "link", "set", "LINK", "nomaster"), "wbr0"),
    "port MTU": (_host("ip", "link", "set", "LINK", "mtu", "1400"), "MTU"),
    "hairpin": (_host("bridge", "link", "set", "dev", "LINK", "hairpin", "off"), "hairpin"),
    "isolated": (_host("bridge", "link", "set", "dev", "LINK", "isolated", "on"), "isolated"),
    "container link down": (_inside("ip", "link", "set", "eth0", "down"), "eth0"),
    "container link gone": (_inside("ip", "link", "delete", "eth0"), "eth0"),
    "container link renamed": (
        _inside("sh", "-c", "ip link set eth0 down; ip link set eth0 name x; ip link set x up"), "eth0",
    ),
    "container MTU": (_inside("ip", "link", "set", "eth0", "mtu", "1400"), "MTU"),
    "container MAC": (_inside("ip", "link", "set", "eth0", "address", "02:00:00:00:00:99"), "MAC"),
    "address": (_inside("ip", "address", "delete", "10.21.0.2/24", "dev", "eth0"), "10.21.0.2"),
    "address v6": (_inside("ip", "address", "delete", "fd00:21::2/64", "dev", "eth0"), "fd00:21::2"),
    "other prefix": (
        _inside("sh", "-c", "ip address flush dev eth0; ip address add 10.21.0.2/16 dev eth0"), "10.21.0.2/24",
    ),
    "route": (_inside("ip", "route", "delete", "default"), "0.0.0.0/0"),
    "route v6": (_inside("ip", "-6", "route", "delete", "default"), "::/0"),
    "other route": (_inside("ip", "route", "replace", "default", "via", "10.21.0.9", "proto", "119"), "10.21.0.9"),
    "table": (_host("nft", "delete", "table", "inet", "weft"), "table"),
    "ruleset": (_host("nft", "flush", "ruleset"), "table"),
    "chain": (_host("nft", "flush", "chain", "inet", "weft", "nat_postrouting"), "nat_postrouting"),
    "guard": (_host("nft", "flush", "chain", "inet", "weft", "raw_prerouting"), "raw_prerouting"),
    "ports": (_host("nft", "flush", "map", "inet", "weft", "ports4"), "ports4"),
    "ports at an address": (_host("nft", "flush", "map", "inet", "weft", "ports4_at"), "ports4_at"),
    "masquerading": (_host("nft", "flush", "set", "inet", "weft", "masquerade4"), "masquerade4"),
    "masquerading v6": (_host("nft", "flush", "set", "inet", "weft", "masquerade6"), "masquerade6"),
    "local subnets": (_host("nft", "flush", "set", "inet", "weft", "masquerade_exempt4"), "masquerade_exempt4"),
    "hairpin masquerading": (_host("nft", "flush", "set", "inet", "weft", "hairpin4"), "hairpin4"),
    "rule added": (_host("nft", "add", "rule", "inet", "weft", "raw_prerouting", "drop"), "raw_prerouting"),
    "rule of others in weft's chain": (
        _host("nft", "insert", "rule", "inet", "weft", "nat_postrouting", "accept"),
        "nat_postrouting",
    ),
    "lease gone": (lambda host, link: [Path("/var/lib/cni/networks/whole", one).unlink() for one in leases("whole")],
                   "10.21.0.2"),
    "lease another's": (lambda host, link: _lease(host, "c9\r\neth0"), "10.21.0.2"),
    "lease empty": (lambda host, link: _lease(host, ""), "10.21.0.2"),
}  # fmt: skip


@pytest.mark.parametrize("mutation", MUTATIONS)
def test_check_reports_every_manual_change(host: Host, mutation: str) -> None:
    ground = Ground(host, WHOLE)
    result = ground.add().document
    assert ground.weft.check(WHOLE.conf, result, ground.container) == ""
    change, word = MUTATIONS[mutation]
    change(host, result["interfaces"][1]["name"])
    answer = ground.weft("CHECK", {**WHOLE.conf, "prevResult": result}, ground.container)
    assert (answer.code, word in answer.text) == (104, True), answer
    assert ground.delete().ok


def test_check_reports_no_false_positive(host: Host) -> None:
    """60 attachments, all checked concurrently, twice, during ADDs and DELs of others."""
    weft = Weft()
    paths = [host.container(f"c{number}") for number in range(60)]
    conf = {**WHOLE.conf, "runtimeConfig": {}}
    results = at_once([lambda n=n, path=path: weft("ADD", conf, path, f"c{n}") for n, path in enumerate(paths)])
    assert [answer for answer in results if not answer.ok] == []
    churn = [host.container(f"d{number}") for number in range(8)]
    for command in ("ADD", "DEL"):
        works = [
            lambda n=n, path=path: weft("CHECK", {**conf, "prevResult": results[n].document}, path, f"c{n}")
            for n, path in enumerate(paths)
        ]
        works += [lambda n=n, path=path: weft(command, conf, path, f"d{n}") for n, path in enumerate(churn)]  # noqa: B023
        assert [answer for answer in at_once(works) if not answer.ok] == []


FLUSHES = {
    "ruleset": ("nft", "flush", "ruleset"),
    "table": ("nft", "delete", "table", "inet", "weft"),
    "chain": ("nft", "flush", "chain", "inet", "weft", "nat_postrouting"),
}


@pytest.mark.parametrize("flush", FLUSHES)
def test_the_next_add_brings_the_rules_back(host: Host, flush: str) -> None:
    """The rules and elements of all networks and existing attachments, and of no deleted one."""
    weft = Weft()
    first, second, third = (host.container(name) for name in ("c1", "c2", "c3"))
    whole = weft.add(WHOLE.conf, first, "c1")
    line = weft.add({**PTP.conf, "ipam": {"type": "host-local", "subnet": "10.55.0.0/24"}}, second, "c2")
    before = host.run("nft", "-j", "list", "table", "inet", "weft").stdout
    host.run(*FLUSHES[flush])
    assert weft.check(WHOLE.conf, whole, first, "c1") != ""
    passing = {**BY_NAME["bridge-static"].conf, "bridge": "wbr1"}
    weft.add(passing, third, "c3")
    assert weft.check(WHOLE.conf, whole, first, "c1") == ""
    assert weft.check(PTP.conf, line, second, "c2") == ""
    weft.delete(passing, third, "c3")
    weft.collect(passing)
    after = host.run("nft", "-j", "list", "table", "inet", "weft").stdout
    assert sorted(_elements(before)) == sorted(_elements(after))


def _elements(listing: str) -> list[str]:
    sets = [one.get("set") or one.get("map") for one in json.loads(listing)["nftables"]]
    lasting = [one for one in sets if one and "timeout" not in one.get("flags", ())]
    return [json.dumps([one["name"], element]) for one in lasting for element in one.get("elem", [])]


def test_a_bridge_that_was_deleted(host: Host) -> None:
    """A new container has it created again, with the port of the old one, and both work."""
    weft = Weft()
    old, new = host.container("c1"), host.container("c2")
    conf = {**WHOLE.conf, "runtimeConfig": {}}
    result = weft.add(conf, old, "c1")
    host.run("ip", "link", "delete", "wbr0")
    assert "wbr0" in weft.check(conf, result, old, "c1")
    fresh = weft.add(conf, new, "c2")
    assert weft.check(conf, fresh, new, "c2") == ""
    assert weft.check(conf, result, old, "c1") == ""
    assert host.ping("c2", "10.21.0.1") and host.ping("c1", "10.21.0.1")
    host.run("ip", "link", "delete", "wbr0")
    with contextlib.closing(LinuxKernel(TABLES)) as kernel:
        shared.repair(weft.service(kernel))
    assert weft.check(conf, result, old, "c1") == "" and weft.check(conf, fresh, new, "c2") == ""
