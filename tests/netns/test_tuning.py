"""``tuning``: sysctls and link attributes are as configured, and as before after DEL."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lab import seen
from lab.confs import bridge, dual, network
from lab.host import Host
from lab.plugins import Cni
from lab.snapshot import difference

DRIVER = bridge(dual(), isGateway=True)
MAC = "02:00:00:AA:00:01"
ALL = {
    "sysctl": {
        "net.ipv4.conf.IFNAME.arp_filter": "1",
        "net/ipv4/conf/IFNAME/log_martians": "1",
        "net.ipv4.ip_local_port_range": "30000 60000",
    },
    "mac": MAC, "mtu": 1400, "promisc": True, "allmulti": True, "txQLen": 99,
}  # fmt: skip
KEYS = ("net/ipv4/conf/eth0/arp_filter", "net/ipv4/conf/eth0/log_martians", "net/ipv4/ip_local_port_range")
ALLOWLIST = Path("/etc/cni/tuning/allowlist.conf")


def tuning(**keys: Any) -> dict[str, Any]:
    return network("tuning", **keys)


@pytest.fixture
def allowlist() -> Iterator[Path]:
    ALLOWLIST.parent.mkdir(parents=True, exist_ok=True)
    yield ALLOWLIST
    ALLOWLIST.unlink(missing_ok=True)


def test_all_is_as_asked_and_then_as_before(host: Host, cni: Cni) -> None:
    netns = host.container()
    result = cni.add(DRIVER, netns)
    before = host.snapshot(), seen.inner(netns), [seen.setting(host, key, "c1") for key in KEYS]
    told = cni.add(tuning(**ALL, prevResult=result), netns)
    link = seen.link(host, "eth0", "c1")
    assert (link["address"], link["mtu"], link["txqlen"]) == (MAC.lower(), 1400, 99)
    assert link["promiscuity"] == 1 and link["allmulti"] == 1
    assert [seen.setting(host, key, "c1") for key in KEYS] == ["1", "1", "30000\t60000"]
    mine = told["interfaces"][2]
    assert (mine["mac"], mine["mtu"]) == (MAC.lower(), 1400)
    assert host.ping("c1", "10.80.0.1") and host.ping("c1", "fd80::1")
    cni.check(tuning(**ALL), told, netns)
    cni.check(DRIVER, told, netns)
    cni.delete(tuning(**ALL), netns)
    cni.delete(tuning(**ALL), netns)
    assert host.changes(before[0]) == [] and difference(before[1], seen.inner(netns)) == []
    assert [seen.setting(host, key, "c1") for key in KEYS] == before[2]
    cni.check(DRIVER, result, netns)


def test_a_list_is_empty_again(host: Host, cni: Cni) -> None:
    netns, key = host.container(), "net/ipv4/ip_local_reserved_ports"
    result = cni.add(DRIVER, netns)
    conf = tuning(sysctl={key: "8080,9000-9010"})
    told = cni.add({**conf, "prevResult": result}, netns)
    assert seen.setting(host, key, "c1") == "8080,9000-9010"
    cni.check(conf, told, netns)
    cni.delete(conf, netns)
    assert seen.setting(host, key, "c1") == ""


def test_who_asks_last_is_heard(host: Host, cni: Cni) -> None:
    """Order of precedence: args.cni, runtimeConfig, CNI_ARGS, the configuration."""
    netns = host.container()
    result = cni.add(DRIVER, netns)
    conf = tuning(mac="02:00:00:00:00:01", prevResult=result)
    args = "IgnoreUnknown=1;MAC=02:00:00:00:00:02"
    runtime = {"runtimeConfig": {"mac": "02:00:00:00:00:03"}}
    override = {"args": {"cni": {"mac": "02:00:00:00:00:04", "mtu": 1300, "sysctl": {"net.core.somaxconn": "77"}}}}
    for keys, argument, mac in (
        ({}, "", "02:00:00:00:00:01"),
        ({}, args, "02:00:00:00:00:02"),
        (runtime, args, "02:00:00:00:00:03"),
        ({**runtime, **override, "mtu": 1400}, args, "02:00:00:00:00:04"),
    ):
        told = cni.add({**conf, **keys}, netns, args=argument)
        assert seen.link(host, "eth0", "c1")["address"] == told["interfaces"][2]["mac"] == mac
        cni.check({**conf, **keys}, told, netns, args=argument)
        if "args" in keys:
            assert seen.link(host, "eth0", "c1")["mtu"] == 1300
            assert seen.setting(host, "net/core/somaxconn", "c1") == "77"
        cni.delete({**conf, **keys}, netns, args=argument)


def test_overrides_without_settings_of_its_own(host: Host, cni: Cni) -> None:
    """With sysctls in args.cni alone, the reference plugin ends with a Go panic."""
    netns = host.container()
    result = cni.add(DRIVER, netns)
    cni.add(tuning(args={"cni": {"sysctl": {"net.core.somaxconn": "78"}}}, prevResult=result), netns)
    assert seen.setting(host, "net/core/somaxconn", "c1") == "78"


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"sysctl": {"kernel.domainname": "x"}}, "kernel.domainname"),
        ({"sysctl": {"net/../kernel/domainname": "x"}}, "net/../kernel"),
        ({"sysctl": {"net.core.somaxconn": "1", "net/core/somaxconn": "2"}}, "twice"),
        ({"sysctl": {"net.core.somaxconn": 5}}, "somaxconn"),
        ({"sysctl": {"net.core.no_such_thing": "5"}}, "no_such_thing"),
        ({"sysctl": ["net.core.somaxconn"]}, "sysctl"),
        ({"mac": "nonsense"}, "mac"),
        ({"mtu": 9}, "mtu"),
        ({"txQLen": -1}, "txQLen"),
    ],
)
def test_what_cannot_be_is_refused(host: Host, cni: Cni, keys: dict[str, Any], said: str) -> None:
    netns = host.container()
    result = cni.add(DRIVER, netns)
    before = seen.inner(netns)
    problem = seen.problem(cni, "ADD", tuning(**keys, prevResult=result), netns)
    assert problem["code"] == 7 and said in problem["msg"]
    assert difference(before, seen.inner(netns)) == []


def test_refused_value_changes_nothing(host: Host, cni: Cni) -> None:
    netns = host.container()
    result = cni.add(DRIVER, netns)
    before = seen.inner(netns), seen.setting(host, KEYS[0], "c1")
    conf = tuning(sysctl={"net.ipv4.conf.IFNAME.arp_filter": "1", "net.core.somaxconn": "many"}, prevResult=result)
    problem = seen.problem(cni, "ADD", conf, netns)
    assert "somaxconn" in problem["msg"] and problem["code"] == 103
    assert (seen.inner(netns), seen.setting(host, KEYS[0], "c1")) == before


def test_sysctl_allowlist(host: Host, cni: Cni, allowlist: Path) -> None:
    netns = host.container()
    result = cni.add(DRIVER, netns)
    allowlist.write_text("^net\\.core\\..*$\n\n")
    cni.add(tuning(sysctl={"net.core.somaxconn": "79"}, prevResult=result), netns)
    cni.delete(tuning(), netns)
    problem = seen.problem(cni, "ADD", tuning(sysctl={"net.ipv4.ip_forward": "1"}, prevResult=result), netns)
    assert problem["code"] == 7 and str(ALLOWLIST) in problem["msg"]


@pytest.mark.parametrize(
    "change",
    ["mtu 1390", "address 02:00:00:00:00:09", "promisc off", "allmulticast off", "txqueuelen 5"],
)
def test_check_reports_manual_changes(host: Host, cni: Cni, change: str) -> None:
    netns = host.container()
    result = cni.add(DRIVER, netns)
    told = cni.add(tuning(**ALL, prevResult=result), netns)
    host.inside("c1", "ip", "link", "set", "eth0", *change.split())
    assert seen.problem(cni, "CHECK", tuning(**ALL, prevResult=told), netns)["code"] == 104


def test_weft_as_one_plugin_tunes_too(host: Host, cni: Cni) -> None:
    netns = host.container()
    keys = {key: value for key, value in DRIVER.items() if key not in ("type", "name")}
    conf = network("weft", name="one", driver="bridge", tuning=ALL, **keys)
    told = cni.add(conf, netns)
    assert seen.link(host, "eth0", "c1")["address"] == told["interfaces"][2]["mac"] == MAC.lower()
    cni.check(conf, told, netns)
    cni.delete(conf, netns)
    assert seen.links(host, "c1") == ["lo"]
