"""``uplink`` with real traffic: shares, floors, priorities and unused rate under contention; both directions."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from cni_plugin.agent import uplink as metrics
from cni_plugin.dataplane.tables import TABLES
from cni_plugin.service.shared import repair
from lab.calls import Weft
from lab.confs import DEFAULT4, DEFAULT6, Conf, pool
from lab.contention import Stream, connect, rates, running
from lab.ground import FORWARDING
from lab.host import Host, Lan
from lab.plugins import ROOT
from weft.kernel.linux.kernel import LinuxKernel

MBIT = 1_000_000
SECONDS = 1.2
BOTH = pytest.mark.parametrize("download", [False, True], ids=["up", "down"])


@pytest.fixture
def uplink(host: Host) -> None:
    """A host with 24 Mbit/s both ways."""
    configure(host)


def configure(host: Host, up: str = "24mbit", down: str = "24mbit", **more: object) -> None:
    keys = {"up": up, "down": down, **more}
    lines = [f"{key} = {json.dumps(value)}" for key, value in keys.items() if value]
    host.configure("\n".join(["[uplink]", *lines, ""]))


def conf(name: str, number: int, uplink: Conf | None = None, **keys: Any) -> Conf:
    subnets, routes = (f"10.8{number}.0.0/24", f"fd00:8{number}::/64"), [DEFAULT4, DEFAULT6]
    plain = {
        "cniVersion": "1.1.0", "name": name, "type": "weft", "driver": "bridge", "bridge": f"br-{name}",
        "isGateway": True, "ipMasq": True, "ipam": pool(*subnets, routes=routes), **keys,
    }  # fmt: skip
    return plain if uplink is None else {**plain, "uplink": uplink}


class Contest:
    """A host with an uplink, and containers that have streams over it: uploads by IPv4, downloads by IPv6."""

    def __init__(self, host: Host, download: bool) -> None:
        self.host, self.download = host, download
        self.weft = Weft()
        self.lan: Lan = host.lan()
        host.run("sysctl", "-q", "-w", *(f"{key}=1" for key in FORWARDING))  # which weft leaves on
        self._places: dict[str, str] = {}
        self._port = 5000

    def attach(self, container: str, conf: Conf) -> dict[str, Any]:
        self._places[container] = self.host.container(container)
        return self.weft.add(conf, self._places[container], container)

    def streams(self, container: str, count: int = 1) -> list[Stream]:
        found = []
        for _ in range(count):
            self._port += 1
            outside = f"/run/netns/{self.lan.name}"
            address = self.lan.outside6 if self.download else self.lan.outside
            found.append(connect(self._places[container], outside, address, self._port, download=self.download))
        return found

    def measure(self, *groups: list[Stream], seconds: float = SECONDS) -> list[float]:
        """Bits per second of each group, while all of them run."""
        every = [stream for group in groups for stream in group]
        with running(every):
            each = dict(zip(map(id, every), rates(every, seconds), strict=True))
        found = [sum(each[id(stream)] for stream in group) for group in groups]
        print("Mbit/s:", *(f"{rate / MBIT:.1f}" for rate in found))
        return found


@BOTH
def test_networks_share_by_weight_and_borrow_what_is_idle(host: Host, uplink: None, download: bool) -> None:
    """3:1; alone, the lighter one has all of it."""
    contest = Contest(host, download)
    contest.attach("c1", conf("heavy", 1, {"weight": 3}))
    contest.attach("c2", conf("light", 2, {"weight": 1}))
    heavy, light = contest.measure(contest.streams("c1", 2), contest.streams("c2", 2))
    assert 2 < heavy / light < 4.5
    assert 0.7 * 24 * MBIT < heavy + light < 1.15 * 24 * MBIT
    (alone,) = contest.measure(contest.streams("c2", 2))
    assert 0.7 * 24 * MBIT < alone < 1.15 * 24 * MBIT


@BOTH
def test_a_floor_is_kept_beside_a_flood(host: Host, uplink: None, download: bool) -> None:
    """One stream beside twenty of a network with a hundred times its weight."""
    contest = Contest(host, download)
    contest.attach("c1", conf("small", 1, {"floor": "8mbit", "ceil": "12mbit"}))
    contest.attach("c2", conf("flood", 2, {"weight": 100}))
    for _ in range(3):  # beside other programs a single stream sends late; by its weight it would have 0.24 Mbit/s
        small, flood = contest.measure(contest.streams("c1"), contest.streams("c2", 20))
        if small > 0.8 * 8 * MBIT:
            break
    assert 0.5 * 8 * MBIT < small < 1.15 * 12 * MBIT
    assert flood > 8 * MBIT


def test_a_container_has_a_class_of_its_own(host: Host, uplink: None) -> None:
    """Its floor is a part of its network's; beyond that it is refused, naming who has the rest."""
    contest = Contest(host, download=False)
    net = conf("apps", 1, {"floor": "12mbit"})
    contest.attach("c1", {**net, "args": {"cni": {"uplink": {"floor": "8mbit"}}}})
    contest.attach("c2", {**net, "runtimeConfig": {"uplink": {"ceil": "4mbit"}}})
    contest.attach("c3", net)
    refused = contest.weft("ADD", {**net, "runtimeConfig": {"uplink": {"floor": "5mbit"}}}, host.container("c4"), "c4")
    assert refused.code == 101
    assert "uplink.floor 5mbit of container c4" in refused.text
    assert "4mbit; c1/eth0 on apps has 8mbit" in refused.text.replace(" (weft)", "")
    first, second, third = contest.measure(*(contest.streams(name, 4) for name in ("c1", "c2", "c3")))
    shown = host.run(str(ROOT / "bin/weft"), "show", "c1").stdout
    assert re.search(
        r"up weight 1, floor 8mbit, priority 4 \(class 7765:[0-9a-f]+ of container c1\): \d+ bytes sent", shown
    )
    sent, dropped = metrics.traffic()
    assert sent["up", "apps"] > SECONDS * MBIT / 8 and sent.keys() == dropped.keys()
    assert sum(1 for direction, owner in sent if direction == "up" and owner.startswith("weft:")) == 2
    assert first > 0.8 * 8 * MBIT
    assert second < 1.15 * 4 * MBIT
    assert third > 2 * MBIT


def round_trip(host: Host, name: str, address: str) -> float:
    """The median of some round-trip times, in milliseconds."""
    said = host.inside(name, "ping", "-n", "-c", "15", "-i", "0.1", address, check=False).stdout
    times = sorted(float(found) for found in re.findall(r"time=([0-9.]+)", said))
    return times[len(times) // 2] if times else float("inf")


def test_a_high_priority_does_not_wait_for_bulk(host: Host, uplink: None) -> None:
    """The median round trip of an urgent network beside streams, and of the network that has them."""
    contest = Contest(host, download=False)
    contest.attach("c1", conf("urgent", 1, {"priority": 0}))
    contest.attach("c2", conf("bulk", 2, {"priority": 7}))
    with running(contest.streams("c2", 6)):
        for _ in range(4):  # a busy machine delays single packets
            urgent, bulk = (round_trip(host, name, contest.lan.outside) for name in ("c1", "c2"))
            print(f"round trip: {urgent:.1f} ms beside bulk, {bulk:.1f} ms within it")
            if urgent < 10 and urgent < bulk / 2:
                break
    assert urgent < 10 and urgent < bulk / 2


def test_what_is_not_possible_is_refused_and_changes_nothing(host: Host, uplink: None) -> None:
    contest = Contest(host, download=False)
    path = host.container("c1")
    before = host.snapshot()
    for keys, settings, said in (
        ({"weight": 0}, {}, "uplink.weight 0 must be between 1 and 100"),
        ({"priority": 8}, {}, "uplink.priority 8 must be between 0 and 7"),
        ({"floor": "fast"}, {}, 'uplink.floor "fast" must be a rate'),
        ({"floor": "9mbit", "ceil": "8mbit"}, {}, "uplink.floor 9mbit (up) is more than ceil 8mbit"),
        ({"speed": 3}, {}, "uplink.speed 3 is unknown"),
        ({"floor": {"left": 3}}, {}, "uplink.floor.left 3 is unknown"),
        ({"floor": "25mbit"}, {}, "uplink.floor 25mbit of network net on lan0 is more than is left"),
        ({}, {"up": "", "down": ""}, "the key uplink needs the rate of the uplink"),
        ({}, {"link": "wan7"}, "the uplink wan7 does not exist"),
        ({}, {"rate": 5}, "unknown key uplink.rate"),
        ({}, {"up": "fast"}, 'uplink.up "fast" must be a rate'),
    ):
        configure(host, **settings)  # type: ignore[arg-type]
        answer = contest.weft("ADD", conf("net", 1, {**keys, "weight": keys.get("weight", 1)}), path)
        assert not answer.ok, (keys, settings)
        assert said in answer.text, answer.text
        assert host.changes(before) == [], (keys, settings)
    for family in ("-4", "-6"):
        host.run("ip", family, "route", "delete", "default")
    configure(host)
    assert "this host has no default route" in contest.weft("ADD", conf("net", 1, {"weight": 1}), path).text
    layer2 = {"cniVersion": "1.1.0", "name": "l2", "type": "weft", "driver": "macvlan", "uplink": {"weight": 1}}
    assert "uplink requires a driver whose gateway is this host" in contest.weft("ADD", layer2, path).text


def test_floors_of_networks_do_not_exceed_the_rate(host: Host, uplink: None) -> None:
    contest = Contest(host, download=False)
    contest.attach("c1", conf("first", 1, {"floor": "15mbit"}))
    answer = contest.weft("ADD", conf("second", 2, {"floor": {"up": "10mbit"}}), host.container("c2"), "c2")
    assert answer.code == 101
    assert "uplink.floor 10mbit of network second on lan0 is more than is left of the uplink's 24mbit" in answer.text
    assert "9mbit; first has 15mbit" in answer.text
    configure(host, up="14mbit")
    answer = contest.weft("ADD", conf("third", 3, {"weight": 2}), host.container("c3"), "c3")
    assert "uplink.up 14mbit in weft.toml is less than what is guaranteed" in answer.text


def test_another_root_qdisc_is_left_alone(host: Host, uplink: None) -> None:
    contest = Contest(host, download=False)
    host.run(
        "tc",
        "qdisc",
        "add",
        "dev",
        "lan0",
        "root",
        "handle",
        "1:",
        "tbf",
        "rate",
        "9mbit",
        "burst",
        "9k",
        "limit",
        "9k",
    )
    path = host.container("c1")
    answer = contest.weft("ADD", conf("net", 1, {"weight": 1}), path)
    assert answer.code == 101 and "lan0 has the root qdisc tbf 1: of another program" in answer.text
    assert "tbf 1: root" in host.run("tc", "qdisc", "show", "dev", "lan0").stdout
    host.run("tc", "qdisc", "delete", "dev", "lan0", "root")
    contest.weft.add(conf("net", 1, {"weight": 1}), path)


@pytest.mark.parametrize("driver", ["bridge", pytest.param("ptp", marks=pytest.mark.long)])
def test_the_last_network_takes_everything_with_it(host: Host, uplink: None, driver: str) -> None:
    contest = Contest(host, download=False)
    before = host.snapshot()
    first, second = conf("first", 1, {"weight": 3}), conf("second", 2, {"floor": "1mbit"})
    for one in (first, second):
        one["driver"] = driver
        if driver == "ptp":
            for key in ("bridge", "isGateway"):
                del one[key]
    paths = [host.container(name) for name in ("c1", "c2", "c3")]
    contest.weft.add(first, paths[0], "c1")
    own = {**second, "runtimeConfig": {"uplink": {"weight": 9}}}
    results = [
        contest.weft.add(conf, path, name) for conf, path, name in ((second, paths[1], "c2"), (own, paths[2], "c3"))
    ]
    assert contest.weft.check(own, results[1], paths[2], "c3") == ""
    contest.weft.delete(first, paths[0], "c1")
    contest.weft.collect(first)
    classes = host.run("tc", "class", "show", "dev", "lan0").stdout
    assert classes.count("class htb") == 5, classes
    assert contest.weft.check(second, results[0], paths[1], "c2") == ""
    for path, name in ((paths[1], "c2"), (paths[2], "c3")):
        contest.weft.delete(second, path, name)
    contest.weft.collect(second)
    assert host.changes(before) == []


def test_what_others_delete_is_found_and_restored(host: Host, uplink: None) -> None:
    contest = Contest(host, download=False)
    net = {**conf("net", 1, {"weight": 3}), "runtimeConfig": {"uplink": {"weight": 9}}}
    result = contest.attach("c1", net)
    path = "/run/netns/c1"
    for command, said in (
        ("tc qdisc delete dev lan0 root", "lan0 has the root qdisc of the kernel instead of htb 7765:"),
        ("tc qdisc delete dev weft-download root", "weft-download has the root qdisc of the kernel"),
        ("tc qdisc delete dev br-net clsact", "egress traffic of br-net is redirected to nothing"),
        ("ip link delete weft-download", "the host's link weft-download is missing"),
        ("nft flush map inet weft uplink_class4", "nftables lacks 10.81.0.2"),
        ("nft flush ruleset", "nftables lacks"),
    ):
        host.run(*command.split())
        assert said in contest.weft.check(net, result, path), command
        repaired(contest)
        assert contest.weft.check(net, result, path) == "", command


def repaired(contest: Contest) -> None:
    """What weft doctor --repair does."""
    kernel = LinuxKernel(TABLES)
    try:
        repair(contest.weft.service(kernel))
    finally:
        kernel.close()


def test_a_changed_rate_and_a_moved_uplink_are_followed(host: Host, uplink: None) -> None:
    """By the next ADD on the network, or by a repair; shares stay the same."""
    contest = Contest(host, download=False)
    net = conf("net", 1, {"weight": 3})
    result = contest.attach("c1", net)
    configure(host, up="400mbit")
    assert "the rate of lan0 is 24mbit instead of 400mbit" in contest.weft.check(net, result, "/run/netns/c1")
    contest.attach("c2", net)
    assert contest.weft.check(net, result, "/run/netns/c1") == ""
    assert "ceil 400Mbit" in host.run("tc", "class", "show", "dev", "lan0").stdout
    configure(host, up="8mbit")
    repaired(contest)
    assert contest.weft.check(net, result, "/run/netns/c1") == ""
    other = host.lan("other", link="lan1", subnet="198.51.100.0/24", subnet6="2001:db8:98::/64")
    host.run("ip", "route", "delete", "default", "dev", "lan0")
    contest.attach("c3", net)
    contest.lan = other
    (rate,) = contest.measure(contest.streams("c1", 2), seconds=1)
    assert 0.7 * 8 * MBIT < rate < 1.15 * 8 * MBIT
    for name in ("c1", "c2", "c3"):
        contest.weft.delete(net, f"/run/netns/{name}", name)
    contest.weft.collect(net)
    for link in ("lan0", "lan1"):
        assert "htb" not in host.run("tc", "qdisc", "show", "dev", link).stdout
