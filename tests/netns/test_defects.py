"""Known defects of the reference plugins, one test each, which weft does not have.

``WEFT_TEST_PLUGINS=/usr/lib/cni`` shows which of them the reference fails. Chained plugins and the
drivers for devices are in test_defects_others.py.
"""

from __future__ import annotations

import json
import os
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from lab import seen
from lab.commands import run
from lab.confs import DEFAULT4, DEFAULT6, SUBNET, bridge, dual, network, pool, ptp
from lab.host import Host
from lab.plugins import Cni

GATEWAY = bridge(pool(SUBNET), isGateway=True)
MASQUERADED = bridge(dual(), isGateway=True, ipMasq=True)
LEASES = Path("/var/lib/cni/networks/net")


def leased() -> list[str]:
    return sorted(path.name for path in LEASES.glob("*") if path.name[0].isdigit() or ":" in path.name)


def ipam(ranges: list[dict[str, Any]], plugin: str = "host-local", **keys: Any) -> dict[str, Any]:
    """A configuration for an IPAM plugin that is called on its own."""
    return {"cniVersion": "1.1.0", "name": "net", "type": plugin, "ipam": {"type": plugin, "ranges": [ranges], **keys}}


@pytest.mark.parametrize("driver", ["bridge", "ptp"])
@pytest.mark.parametrize("cause", ["pool", "route"])
def test_defect_01_a_failed_add_leaves_no_link(host: Host, cni: Cni, driver: str, cause: str) -> None:
    seen.forward(host)
    before = host.snapshot()
    netns = host.container()
    bad = [{"dst": "10.9.0.0/16", "gw": "192.0.2.1"}]
    one = {"type": "host-local", "ranges": [[{"subnet": SUBNET, "rangeStart": "10.80.0.1", "rangeEnd": "10.80.0.1"}]]}
    conf = network(driver, one if cause == "pool" else pool(SUBNET, routes=bad))
    assert seen.problem(cni, "ADD", conf, netns)["msg"]
    assert host.changes(before) == []
    assert seen.links(host, "c1") == ["lo"]
    assert leased() == []


@pytest.mark.parametrize("driver", ["bridge", "ptp"])
@pytest.mark.parametrize("end", ["empty", "vanished"])
def test_defect_02_del_without_a_namespace_cleans_the_rules(host: Host, cni: Cni, driver: str, end: str) -> None:
    """DEL without CNI_NETNS removes the attachment's nftables elements."""
    conf = MASQUERADED if driver == "bridge" else ptp(dual(), ipMasq=True)
    netns = host.container()
    cni.add(conf, netns)
    if end == "vanished":
        host.remove_container()
    cni.delete(conf, "" if end == "empty" else netns)
    rules = host.run("nft", "list", "ruleset").stdout + host.run("iptables-save", check=False).stdout
    assert "10.80.0.2" not in rules and "fd80::2" not in rules
    assert leased() == []
    assert [name for name in seen.links(host) if name.startswith("veth")] == []


def test_defect_03_two_attachments_of_one_container(host: Host, cni: Cni) -> None:
    lan = host.lan()
    netns = host.container()
    for ifname in ("eth0", "eth1"):
        cni.add(bridge(pool(SUBNET), isGateway=True, ipMasq=True), netns, ifname=ifname)
    host.inside("c1", "ip", "route", "add", "192.0.2.0/24", "via", "10.80.0.1", "dev", "eth1", "src", "10.80.0.3")
    cni.delete(bridge(pool(SUBNET), isGateway=True, ipMasq=True), netns, ifname="eth0")
    host.serve_tcp(lan.name, 80)
    assert host.fetch("c1", lan.outside, 80) == lan.host
    cni.delete(bridge(pool(SUBNET), isGateway=True, ipMasq=True), netns, ifname="eth1")


def test_defect_04_the_mac_of_the_bridge_is_pinned_from_the_start(host: Host, cni: Cni) -> None:
    """Used without a gateway first, then without ports, then with a gateway."""
    netns = host.container()
    first = cni.add(bridge(pool(SUBNET)), netns)
    cni.delete(bridge(pool(SUBNET)), netns)
    second = cni.add(GATEWAY, netns)
    assert first["interfaces"][0]["mac"] == second["interfaces"][0]["mac"] == seen.link(host, "br0")["address"]
    host.run("ip", "link", "delete", second["interfaces"][1]["name"])
    assert seen.link(host, "br0")["address"] == first["interfaces"][0]["mac"]


def test_defect_05_check_holds_while_others_come_and_go(host: Host, cni: Cni) -> None:
    """30 concurrent ADDs on a bridge without a gateway."""
    conf = bridge(pool(SUBNET))
    places = {f"n{index}": host.container(f"n{index}") for index in range(30)}

    def attach(name: str) -> Any:
        outcome = in_host(cni, host, "ADD", conf, name, places[name])
        assert outcome.code == 0, outcome
        return outcome.json

    with ThreadPoolExecutor(8) as threads:
        results = dict(zip(places, threads.map(attach, places), strict=True))
        ips = [result["ips"][0]["address"] for result in results.values()]
        assert len(set(ips)) == 30
        macs = {result["interfaces"][0]["mac"] for result in results.values()}
        assert macs == {seen.link(host, "br0")["address"]}
        checks = [
            threads.submit(in_host, cni, host, "CHECK", {**conf, "prevResult": results[name]}, name, places[name])
            for name in places
        ]
        assert [one.result() for one in checks if one.result().code != 0] == []


def in_host(cni: Cni, host: Host, command: str, conf: dict[str, Any], container: str, netns: str) -> Any:
    """A call by a thread that is not in the host's network namespace."""
    environment = cni.environment(command, container, netns)
    argv = ("nsenter", f"--net={host.path}", "--", str(cni.folder / conf["type"]))
    return run(*argv, stdin=json.dumps(conf), environment=environment, check=False, timeout=60)


def test_defect_06_check_of_a_layer_2_bridge(host: Host, cni: Cni) -> None:
    netns = host.container()
    cni.check(bridge(), cni.add(bridge(), netns), netns)


@pytest.mark.parametrize("route", [DEFAULT4, DEFAULT6], ids=["ipv4", "ipv6"])
def test_defect_07_a_default_route_of_ipam_without_gateway(host: Host, cni: Cni, route: dict[str, str]) -> None:
    netns = host.container()
    conf = bridge(pool(SUBNET, "fd80::/64", routes=[route]), isDefaultGateway=True)
    result = cni.add(conf, netns)
    assert seen.route(host, "0.0.0.0/0", "c1")["gateway"] == "10.80.0.1"
    assert seen.route(host, "::/0", "c1")["gateway"] == "fd80::1"
    assert sorted(one["dst"] for one in result["routes"]) == ["0.0.0.0/0", "::/0"]
    cni.check(conf, result, netns)


@pytest.mark.parametrize("driver", ["bridge", "ptp"])
def test_defect_08_a_routes_attributes_are_applied(host: Host, cni: Cni, driver: str) -> None:
    routes = [
        {"dst": "10.9.0.0/16", "mtu": 1300, "advmss": 1200},
        {"dst": "10.10.0.0/16", "priority": 77, "table": 100},
        {"dst": "10.11.0.0/16", "scope": 253},
        {"dst": "fd09::/48", "mtu": 1280, "advmss": 1100, "priority": 5},
    ]
    netns = host.container()
    conf = network(driver, pool(SUBNET, "fd80::/64", routes=routes))
    result = cni.add(conf, netns)
    assert result["routes"] == routes
    seen.agrees(host, result, netns)
    there = seen.route(host, "10.11.0.0/16", "c1")
    assert there["scope"] == "link" and "gateway" not in there
    cni.check(conf, result, netns)
    host.inside("c1", "ip", "route", "change", "10.9.0.0/16", "via", "10.80.0.1", "mtu", "1400")
    assert "10.9.0.0/16" in seen.problem(cni, "CHECK", {**conf, "prevResult": result}, netns)["msg"]


@pytest.mark.parametrize("driver", ["bridge", "ptp", "loopback"])
def test_defect_09_the_result_tells_the_mtu(host: Host, cni: Cni, driver: str) -> None:
    conf = network(driver, None if driver == "loopback" else pool(SUBNET), mtu=1333)
    wanted = 65536 if driver == "loopback" else 1333
    result = cni.add(conf, host.container(), ifname="lo" if driver == "loopback" else "eth0")
    assert {one.get("mtu") for one in result["interfaces"]} == {wanted}
    older = cni.add({**conf, "cniVersion": "1.0.0"}, host.container("c2"), container="c2", ifname="eth0")
    assert {one.get("mtu") for one in older["interfaces"]} == {None}


@pytest.mark.parametrize("driver", ["bridge", "ptp", "loopback"])
def test_defect_10_the_hosts_own_namespace_is_refused(host: Host, cni: Cni, driver: str) -> None:
    """The error is one JSON document, and nothing is configured."""
    conf = network(driver, {**pool(SUBNET), "type": "host-local"})
    before = host.snapshot()
    assert seen.problem(cni, "ADD", conf, host.path)["code"] == 8
    assert host.changes(before) == []
    assert leased() == []


def test_defect_10_ipam_alone_configures_nothing_in_the_hosts_own_namespace(host: Host, cni: Cni) -> None:
    """host-local alone only leases: it takes any CNI_NETNS, as the reference does."""
    conf = network("host-local", {**pool(SUBNET), "type": "host-local"})
    before = host.snapshot()
    assert cni.add(conf, host.path)["ips"][0]["address"] == "10.80.0.2/24"
    assert leased() == ["10.80.0.2"]
    cni.delete(conf, host.path)
    assert host.changes(before) == []
    assert leased() == []


def test_defect_11_an_earlier_lease_outlives_a_failed_add(host: Host, cni: Cni) -> None:
    """A failed ADD frees only its own leases, also if only the second of two sets is full."""
    netns = host.container()
    result = cni.add(GATEWAY, netns)
    assert seen.problem(cni, "ADD", GATEWAY, netns)["msg"]
    assert leased() == ["10.80.0.2"]
    cni.check(GATEWAY, result, netns)
    full = {"subnet": "10.81.0.0/24", "rangeStart": "10.81.0.1", "rangeEnd": "10.81.0.1"}
    two = {"type": "host-local", "ranges": [[{"subnet": "10.82.0.0/24"}], [full]]}
    conf = {"cniVersion": "1.1.0", "name": "net", "type": "host-local", "ipam": two}
    assert seen.problem(cni, "ADD", conf, netns)["msg"]
    assert leased() == ["10.80.0.2"]


@pytest.mark.parametrize(
    "bounds",
    [
        {"rangeStart": "10.80.0.255"},
        {"rangeStart": "10.80.0.9", "rangeEnd": "10.80.0.5"},
        {"rangeEnd": "10.81.0.5"},
    ],
)
def test_defect_12_a_range_stays_within_its_subnet(host: Host, cni: Cni, bounds: dict[str, str]) -> None:
    conf = ipam([{"subnet": SUBNET, **bounds}])
    problem = seen.problem(cni, "ADD", conf, host.container())
    assert next(iter(bounds.values())) in problem["msg"]
    assert leased() == []


@pytest.mark.parametrize(
    "bounds",
    [
        {"rangeStart": "10.80.0.0", "rangeEnd": "10.80.0.0"},
        {"gateway": "10.99.0.1"},
    ],
)
def test_defect_13_no_network_address_and_no_gateway_elsewhere(host: Host, cni: Cni, bounds: dict[str, str]) -> None:
    problem = seen.problem(cni, "ADD", ipam([{"subnet": SUBNET, **bounds}]), host.container())
    assert next(iter(bounds.values())) in problem["msg"]
    assert leased() == []


def test_defect_14_an_empty_lease_file_does_not_take_its_address_for_ever(host: Host, cni: Cni) -> None:
    """A power loss leaves an empty file where the content was not yet written to disk."""
    LEASES.mkdir(parents=True)
    (LEASES / "10.80.0.2").touch()
    os.utime(LEASES / "10.80.0.2", (1_000_000_000, 1_000_000_000))
    conf = ipam([{"subnet": SUBNET, "rangeStart": "10.80.0.2", "rangeEnd": "10.80.0.3"}])
    netns = host.container()
    for name in ("a", "b"):
        cni.add(conf, netns, container=name)
    assert leased() == ["10.80.0.2", "10.80.0.3"]
    for name in ("a", "b"):
        cni.delete(conf, netns, container=name)
    assert leased() == []


def test_defect_15_a_route_needs_a_destination(host: Host, cni: Cni) -> None:
    problem = seen.problem(cni, "ADD", ipam([{"subnet": SUBNET}], routes=[{"gw": "10.80.0.1"}]), host.container())
    assert problem["code"] == 7 and "dst" in problem["msg"]
    assert leased() == []


def test_defect_16_the_cost_does_not_grow_with_the_leases(host: Host, cni: Cni, tmp_path: Path) -> None:
    """System calls of ADD and DEL with 10 and with 20,000 leases, without the directory scan."""
    conf = ipam([{"subnet": "10.64.0.0/12"}])
    netns = host.container()

    def calls(command: str) -> int:
        trace = tmp_path / "trace"
        program = str(cni.folder / "host-local")
        environment = cni.environment(command, "one", netns)
        argv = ("strace", "-f", "-qq", "-e", "trace=open,openat,read,pread64,getdents64", "-o", str(trace), program)
        run(*argv, stdin=json.dumps(conf), environment=environment, timeout=60)
        return len(trace.read_text().splitlines())

    def measured() -> tuple[int, int]:
        cni.add(conf, netns, container="first")
        found = calls("ADD"), calls("DEL")
        cni.delete(conf, netns, container="first")
        return found

    few = measured()
    for index in range(20_000):
        address = 0x0A40_1000 + index
        name = ".".join(str(address >> shift & 255) for shift in (24, 16, 8, 0))
        (LEASES / name).write_text(f"old-{index}\r\neth0")
    many = measured()
    assert all(after <= 3 * before for before, after in zip(few, many, strict=True)), (few, many)


@pytest.mark.parametrize("driver", ["bridge", "ptp", "host-local"])
def test_defect_25_status_tells_of_a_bad_and_of_an_exhausted_pool(host: Host, cni: Cni, driver: str) -> None:
    one = {"subnet": SUBNET, "rangeStart": "10.80.0.2", "rangeEnd": "10.80.0.2"}
    conf = network(driver, {"type": "host-local", "ranges": [[one]]})
    assert cni("STATUS", conf).code == 0
    cni.add(conf, host.container())
    problem = seen.problem(cni, "STATUS", conf)
    assert problem["code"] == 50 and "10.80.0.2" in problem["msg"]
    bad = {**conf, "ipam": {"type": "host-local", "ranges": [[{"subnet": "10.80.0.0"}]]}}
    assert "10.80.0.0" in seen.problem(cni, "STATUS", bad)["msg"]


@pytest.mark.parametrize("driver", ["bridge", "ptp"])
def test_defect_25_gc_detaches_what_is_not_valid_any_more(host: Host, cni: Cni, driver: str) -> None:
    lan = host.lan()
    conf = network(driver, pool(SUBNET, routes=[DEFAULT4]), ipMasq=True, isGateway=True)
    for name in ("kept", "gone", "dead"):
        cni.add(conf, host.container(name), container=name)
    host.remove_container("dead")
    seen.collect(cni, conf, (("kept", "eth0"),))
    assert leased() == ["10.80.0.2"]
    assert seen.links(host, "gone") == ["lo"]
    rules = host.run("nft", "list", "ruleset").stdout
    assert "10.80.0.2" in rules and "10.80.0.3" not in rules and "10.80.0.4" not in rules
    host.serve_tcp(lan.name, 80)
    assert host.fetch("kept", lan.outside, 80) == lan.host


DAMAGE = {
    "masquerade": ("nft delete element inet weft masquerade4 '{ 10.80.0.2 }'", "masquerade4"),
    "rules": ("nft flush ruleset", "inet weft"),
    "a rule": (
        "nft flush chain inet weft masquerade_outgoing",
        "masquerade_outgoing|not as (it was|they were) installed",
    ),
    "hairpin": ("bridge link set dev HOST hairpin off", "hairpin is off"),
    "isolation": ("bridge link set dev HOST isolated off", "isolated is off"),
    "host mtu": ("ip link set HOST mtu 1400", "MTU of HOST is 1400"),
    "container mtu": ("nsenter --net=NETNS ip link set eth0 mtu 1400", "MTU of eth0 is 1400"),
    "host link down": ("ip link set HOST down", "HOST is down"),
    "container link down": ("nsenter --net=NETNS ip link set eth0 down", "eth0 is down"),
    "bridge down": ("ip link set br0 down", "br0 is down"),
    "off the bridge": ("ip link set HOST nomaster", "HOST is on no bridge"),
    "forwarding": ("sysctl -qw net.ipv4.ip_forward=0", "ip_forward is 0"),
    "announcing": ("nsenter --net=NETNS sysctl -qw net.ipv4.conf.eth0.arp_notify=0", "arp_notify is 0"),
    "gateway": ("ip address delete 10.80.0.1/24 dev br0", "10.80.0.1/24"),
    "address": ("nsenter --net=NETNS ip address delete 10.80.0.2/24 dev eth0", "10.80.0.2/24"),
    "route": ("nsenter --net=NETNS ip route delete default", "0.0.0.0/0"),
    "mac": ("nsenter --net=NETNS ip link set eth0 address 02:00:00:00:00:99", "02:00:00:00:00:99"),
    "lease": ("rm /var/lib/cni/networks/net/10.80.0.2", "10.80.0.2 is not leased"),
}


def test_defect_26_check_notices_whatever_is_not_as_add_left_it(host: Host, cni: Cni) -> None:
    """One attachment for each kind of damage; CHECK reports each by name."""
    conf = bridge(dual(), isGateway=True, ipMasq=True, hairpinMode=True, portIsolation=True)
    unseen = []
    netns = host.container()
    cni.check(conf, cni.add(conf, netns), netns)
    cni.delete(conf, netns)
    host.run("rm", "/var/lib/cni/networks/net/last_reserved_ip.0")
    for what, (command, words) in DAMAGE.items():
        result = cni.add(conf, netns)
        outer = result["interfaces"][1]["name"]
        address = result["ips"][0]["address"].removesuffix("/24")
        command, words = (
            text.replace("HOST", outer).replace("NETNS", netns).replace("10.80.0.2", address)
            for text in (command, words)
        )
        host.run("sh", "-c", command)
        outcome = cni("CHECK", {**conf, "prevResult": result}, netns=netns)
        if outcome.code == 0 or not re.search(words, outcome.json["msg"]) or outcome.json["code"] == 999:
            unseen.append((what, outcome))
        cni.delete(conf, netns)
    assert unseen == []


def test_defect_27_each_kind_of_failure_has_its_code(host: Host, cni: Cni) -> None:
    netns = host.container()
    one = {"type": "host-local", "ranges": [[{"subnet": SUBNET, "rangeStart": "10.80.0.2", "rangeEnd": "10.80.0.2"}]]}
    result = cni.add(bridge(one), netns)
    codes = {
        "an option that weft has not": seen.problem(
            cni, "ADD", network("portmap", prevResult=result, conditionsV4=["-m", "statistic"]), netns
        ),
        "no such attachment": seen.problem(cni, "CHECK", {**bridge(one), "prevResult": result}, netns, container="c9"),
        "bad configuration": seen.problem(cni, "ADD", bridge(one, mtu="x"), netns),
        "no namespace": seen.problem(cni, "ADD", bridge(one), "/nowhere", container="c9"),
        "pool exhausted": seen.problem(cni, "ADD", bridge(one), host.container("c2"), container="c2"),
        "conflict": seen.problem(cni, "ADD", bridge(one), netns),
        "not available": seen.problem(cni, "STATUS", bridge(one)),
    }
    assert [problem["code"] for problem in codes.values()] == [2, 3, 7, 8, 100, 101, 50], codes


def test_defect_27_what_is_locked_may_be_tried_again(host: Host, cni: Cni) -> None:
    """The lock of the leases is held for longer than STATUS waits: error code 50 and the reason."""
    LEASES.mkdir(parents=True)
    holder = host.start("flock", str(LEASES / "lock"), "sleep", "30")
    host.run("sh", "-c", f"until ! flock -n {LEASES}/lock true; do sleep 0.02; done", timeout=5)
    problem = seen.problem(cni, "STATUS", GATEWAY)
    assert problem["code"] == 50 and "locked" in problem["msg"]
    assert holder.poll() is None


@pytest.mark.parametrize("version", ["0.4.0", "1.0.0", "1.1.0"])
def test_defect_28_errors_and_versions_speak_the_callers_version(host: Host, cni: Cni, version: str) -> None:
    problem = seen.problem(cni, "ADD", bridge({"type": "static"}, version=version), host.container())
    assert problem["cniVersion"] == version
    answer = cni("VERSION", {"cniVersion": version}, plugin="bridge").json
    assert answer["cniVersion"] == version
    assert answer["supportedVersions"][-1] == "1.1.0"
