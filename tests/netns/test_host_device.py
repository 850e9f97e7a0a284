"""The host-device driver: it moves a link into the container, and always back to the host."""

from __future__ import annotations

from itertools import count
from typing import Any

import pytest

from lab import seen
from lab.calls import Afterwards, Answer, Steps, Weft, files, killed
from lab.cases import sampled
from lab.confs import DEFAULT4, network
from lab.host import Host, Lan
from lab.plugins import REFERENCE_FOLDER, Cni
from lab.snapshot import difference


def ipam(address: str = "192.0.2.9/24", **keys: Any) -> dict[str, Any]:
    return {"type": "static", "addresses": [{"address": address}], **keys}


def lend(device: str = "lan0", addresses: dict[str, Any] | None = None, **keys: Any) -> dict[str, Any]:
    return network("host-device", ipam() if addresses is None else addresses, device=device, **keys)


def wire(host: Host) -> Lan:
    """A neighbour on a veth that the host does not use, in the state that DEL leaves."""
    lan = host.lan()
    path = host.container("before")
    host.run("ip", "link", "set", lan.link, "netns", path)
    host.inside("before", "ip", "link", "set", lan.link, "netns", host.path)
    host.remove_container("before")
    return lan


def test_the_container_has_it_and_the_host_gets_it_back(host: Host, cni: Cni) -> None:
    lan = wire(host)
    netns = host.container()
    before, inner = host.snapshot(), seen.inner(netns)
    conf = lend()
    result = cni.add(conf, netns)
    assert lan.link not in seen.links(host)
    seen.agrees(host, result, netns)
    assert result["ips"] == [{"address": "192.0.2.9/24", "interface": 0}]
    host.serve_tcp(lan.name, 80)
    host.serve_tcp("c1", 80)
    assert host.fetch("c1", lan.outside, 80) == "192.0.2.9"
    assert host.fetch(lan.name, "192.0.2.9", 80) == lan.outside
    cni.check(conf, result, netns)
    cni.delete({**conf, "prevResult": result}, netns)
    assert "UP" not in seen.link(host, lan.link)["flags"]
    cni.delete(conf, netns)
    assert host.changes(before) == []
    assert difference(inner, seen.inner(netns)) == []


def test_changes_by_the_container_are_reverted(host: Host, cni: Cni) -> None:
    """Name, MTU and MAC address, and the alias that the link had on the host."""
    wire(host)
    host.run("ip", "link", "set", "lan0", "alias", "the uplink")
    before = host.snapshot()
    netns = host.container()
    conf = lend()
    cni.add(conf, netns)
    for words in (("down",), ("name", "mine0"), ("mtu", "1300"), ("address", "02:00:00:00:00:77"), ("up",)):
        host.inside("c1", "ip", "link", "set", "mine0" if "mine0" in seen.links(host, "c1") else "eth0", *words)
    cni.delete(conf, netns)
    assert host.changes(before) == []


def test_without_ipam_it_is_only_moved_and_up(host: Host, cni: Cni) -> None:
    lan = wire(host)
    netns = host.container()
    conf = network("host-device", device="lan0")
    result = cni.add(conf, netns)
    assert "ips" not in result and "UP" in seen.link(host, "eth0", "c1")["flags"]
    host.inside("c1", "ip", "address", "add", "192.0.2.9/24", "dev", "eth0")
    assert host.ping("c1", lan.outside)
    cni.check(conf, result, netns)
    cni.delete(conf, netns)
    assert "lan0" in seen.links(host)


def test_by_mac_address(host: Host, cni: Cni) -> None:
    wire(host)
    mac = seen.link(host, "lan0")["address"]
    result = cni.add(network("host-device", ipam(), hwaddr=mac.upper().replace(":", "-")), host.container())
    assert result["interfaces"][0]["mac"] == mac and "lan0" not in seen.links(host)


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({}, "specify either device, hwaddr, kernelpath or pciBusID"),
        ({"device": "nope"}, "device nope"),
        ({"device": "lo"}, "lo cannot be moved"),
        ({"device": "a/b"}, "device"),
        ({"hwaddr": "02:00:00:00:00:99"}, "hwaddr 02:00:00:00:00:99"),
        ({"hwaddr": "junk"}, "hwaddr"),
        ({"kernelpath": "/sys/class/net/lan0"}, "/sys/devices/"),
        ({"kernelpath": "/sys/devices/../class/net/lan0"}, "/sys/devices/"),
        ({"kernelpath": "/sys/devices/nowhere"}, "/sys/devices/nowhere"),
        ({"pciBusID": "../../net"}, "pciBusID"),
        ({"pciBusID": "ffff:00:00.0"}, "ffff:00:00.0"),
        ({"runtimeConfig": {"deviceID": "fffe:00:00.0"}, "pciBusID": "0000:00:00.0"}, "fffe:00:00.0"),
    ],
)
def test_what_cannot_be_found_is_refused(host: Host, cni: Cni, keys: dict[str, Any], words: str) -> None:
    wire(host)
    before = host.snapshot()
    problem = seen.problem(cni, "ADD", network("host-device", ipam(), **keys), host.container())
    assert problem["code"] == 7 and words in problem["msg"], problem
    assert host.changes(before) == []


def test_interface_name_in_use_in_the_container(host: Host, cni: Cni) -> None:
    wire(host)
    netns = host.container()
    host.inside("c1", "ip", "link", "add", "eth0", "type", "veth", "peer", "name", "eth1")
    before = host.snapshot()
    problem = seen.problem(cni, "ADD", lend(), netns)
    assert problem["code"] == 101 and "eth0" in problem["msg"]
    assert host.changes(before) == []
    assert seen.links(host, "c1") == ["lo", "eth1", "eth0"]


def test_links_of_the_same_name_or_index(host: Host, cni: Cni) -> None:
    wire(host)
    mac = seen.link(host, "lan0")["address"]
    host.run("ip", "link", "add", "eth0", "type", "veth", "peer", "name", "eth0-far")
    netns = host.container()
    host.inside("c1", "ip", "link", "add", "lan0", "type", "veth", "peer", "name", "far")
    before = set(seen.links(host))
    conf = lend()
    cni.add(conf, netns)
    assert set(seen.links(host, "c1")) == {"lo", "far", "lan0", "eth0"}
    assert seen.link(host, "eth0", "c1")["address"] == mac
    cni.delete(conf, netns)
    # If the link's index is in use in the container, the kernel assigns another one.
    assert set(seen.links(host)) == before and seen.link(host, "lan0")["address"] == mac
    assert "ifalias" not in seen.link(host, "lan0")


def test_host_name_in_use_at_del(host: Host, cni: Cni) -> None:
    """The link returns under another name, DEL reports that, and succeeds once the name is free."""
    wire(host)
    mac = seen.link(host, "lan0")["address"]
    netns = host.container()
    conf = lend()
    cni.add(conf, netns)
    host.run("ip", "link", "add", "lan0", "type", "veth", "peer", "name", "other")
    for _ in range(2):
        problem = seen.problem(cni, "DEL", conf, netns)
        assert problem["code"] == 101 and "lan0" in problem["msg"]
        assert seen.links(host, "c1") == ["lo"]
    host.run("ip", "link", "delete", "lan0")
    cni.delete(conf, netns)
    assert seen.link(host, "lan0")["address"] == mac


@pytest.mark.parametrize("recorded", [True, False])
def test_link_returned_by_the_kernel(host: Host, cni: Cni, recorded: bool) -> None:
    """As it does for a physical link when its namespace ends:

    DEL finds it by its alias and renames it.
    """
    wire(host)
    before = host.snapshot()
    conf = lend()
    cni.add(conf, host.container())
    host.inside("c1", "ip", "link", "set", "eth0", "down")
    host.inside("c1", "ip", "link", "set", "eth0", "netns", host.path, "name", "dev5")
    host.remove_container()
    if not recorded:
        host.run("rm", "-r", "/run/weft")
    cni.delete(conf, "/run/netns/c1")
    cni.delete(conf, "/run/netns/c1")
    assert host.changes(before) == []


def test_del_without_a_record(host: Host, cni: Cni) -> None:
    wire(host)
    before = host.snapshot()
    netns = host.container()
    conf = lend()
    result = cni.add(conf, netns)
    host.run("rm", "-r", "/run/weft")
    seen.collect(cni, conf)
    assert seen.links(host, "c1") == ["lo", "eth0"]
    cni.delete({**conf, "prevResult": result}, netns)
    assert host.changes(before) == []


def test_gc_returns_the_link(host: Host, cni: Cni) -> None:
    wire(host)
    before = host.snapshot()
    conf = lend()
    cni.add(conf, host.container())
    seen.collect(cni, conf, (("c1", "eth0"),))
    assert seen.links(host, "c1") == ["lo", "eth0"]
    seen.collect(cni, conf)
    assert host.changes(before) == []


BREAKS = {
    "renamed": (("link", "set", "eth0", "down"), ("link", "set", "eth0", "name", "x0"), "eth0 is missing"),
    "down": (("link", "set", "eth0", "down"), (), "is down"),
    "mtu": (("link", "set", "eth0", "mtu", "1300"), (), "MTU"),
    "alias": (("link", "set", "eth0", "alias", "x"), (), "not the one"),
    "address": (("address", "flush", "dev", "eth0"), (), "lacks the address"),
    "route": (("route", "delete", "default"), (), "route 0.0.0.0/0"),
}


@pytest.mark.parametrize("broken", BREAKS)
def test_check_sees_what_is_broken_by_hand(host: Host, cni: Cni, broken: str) -> None:
    wire(host)
    netns = host.container()
    conf = lend(addresses=ipam(routes=[{**DEFAULT4, "gw": "192.0.2.2"}]))
    result = cni.add(conf, netns)
    cni.check(conf, result, netns)
    *steps, sentence = BREAKS[broken]
    for words in filter(None, steps):
        host.inside("c1", "ip", *words)
    problem = seen.problem(cni, "CHECK", {**conf, "prevResult": result}, netns)
    assert problem["code"] == 104 and sentence in problem["msg"], problem


class Call:
    """Repeated calls for one attachment, in this process."""

    def __init__(self, host: Host) -> None:
        wire(host)
        self.host, self.weft, self.conf = host, Weft(), lend()
        self.netns = host.container()
        self.before, self.inner = host.snapshot(), seen.inner(self.netns)

    def __call__(self, command: str, watch: Any = None) -> Answer:
        return self.weft(command, self.conf, self.netns, watch=watch or Steps())

    def left(self) -> list[str]:
        return self.host.changes(self.before) + difference(self.inner, seen.inner(self.netns)) + files()


@pytest.mark.parametrize("when", [Steps, Afterwards])
def test_a_fault_at_every_step(host: Host, when: Any) -> None:
    call = Call(host)
    steps = Steps()
    assert call("ADD", steps).ok and call("DEL").ok
    call.weft.collect(call.conf)
    assert call.left() == []
    for at in sampled("host-device", range(len(steps.taken))):
        answer = call("ADD", when(at))
        assert not answer.ok, at
        assert call.left() == [], (at, steps.taken[at])
    for at in range(2):
        assert call("ADD").ok
        call("DEL", Steps(at))
        assert call("DEL").ok
        call.weft.collect(call.conf)
        assert call.left() == [], at


@pytest.mark.parametrize("command", ["ADD", "DEL"])
def test_a_kill_at_every_change(host: Host, command: str) -> None:
    """Of kernel state and of files; DEL, GC and the next ADD complete the killed call in turn."""
    call = Call(host)
    for at in sampled(command, count()):
        if command == "DEL":
            assert call("ADD").ok
        if not killed(lambda steps: call(command, steps), at, files=True):
            break
        if at % 3 == 0:
            assert call("DEL").ok, at
        elif at % 3 == 1:
            call.weft.collect(call.conf)
        else:
            answer = call("ADD")
            assert answer.ok or "is already attached" in answer.text, (at, answer)
            assert call("DEL").ok, at
        call.weft.collect(call.conf)
        assert call.left() == [], at
    assert at > 5
    assert call("DEL").ok


@pytest.mark.skipif(not (REFERENCE_FOLDER / "host-device").exists(), reason="the reference plugins are not installed")
def test_the_answer_is_the_reference_plugins_own(host: Host, cni: Cni) -> None:
    wire(host)
    netns = host.container()
    conf = lend(version="1.0.0")
    answers = []
    for plugins in (Cni(REFERENCE_FOLDER), cni):
        answer = plugins.add(conf, netns)
        answer["interfaces"][0].pop("mtu", None)
        if not answer.get("dns"):
            answer.pop("dns", None)
        answers.append(answer)
        plugins.delete(conf, netns)
    assert answers[0] == answers[1]


@pytest.mark.skipif(not (REFERENCE_FOLDER / "host-device").exists(), reason="the reference plugins are not installed")
def test_what_the_reference_plugin_attached_comes_back(host: Host, cni: Cni) -> None:
    wire(host)
    before = host.snapshot()
    netns = host.container()
    conf = lend(version="1.0.0")
    result = Cni(REFERENCE_FOLDER).add(conf, netns)
    cni.delete({**conf, "prevResult": result}, netns)
    assert host.changes(before) == []
