"""The loopback driver: lo of the container."""

from __future__ import annotations

import pytest

from lab import seen
from lab.confs import network
from lab.host import Host
from lab.plugins import Cni
from lab.snapshot import difference
from lab.waiting import until

CONF = network("loopback", name="lo")


def test_lo_is_up_and_down_again(host: Host, cni: Cni) -> None:
    before = host.snapshot()
    netns = host.container()
    # lo keeps its qdisc and addresses once it has been up; these are the kernel's.
    host.inside("c1", "ip", "link", "set", "lo", "up")
    host.inside("c1", "ip", "link", "set", "lo", "down")
    inner = seen.inner(netns)
    result = cni.add(CONF, netns, ifname="lo")
    assert result["interfaces"] == [{"name": "lo", "mac": "00:00:00:00:00:00", "mtu": 65536, "sandbox": netns}]
    assert result["ips"] == [{"address": "127.0.0.1/8", "interface": 0}, {"address": "::1/128", "interface": 0}]
    seen.agrees(host, result, netns, ifname="lo")
    assert host.ping("c1", "127.0.0.1") and host.ping("c1", "::1")
    cni.check(CONF, result, netns, ifname="lo")
    for _ in range(2):
        cni.delete({**CONF, "prevResult": result}, netns, ifname="lo")
        assert difference(inner, seen.inner(netns)) == []
    seen.collect(cni, CONF)
    assert host.changes(before) == []


def test_the_interface_name_does_not_matter(host: Host, cni: Cni) -> None:
    """containerd passes CNI_IFNAME=eth0."""
    netns = host.container()
    result = cni.add(CONF, netns, ifname="eth0")
    assert result["interfaces"][0]["name"] == "lo" and host.ping("c1", "127.0.0.1")
    cni.check(CONF, result, netns, ifname="eth0")
    cni.delete(CONF, netns, ifname="eth0")
    assert "UP" not in seen.link(host, "lo", "c1")["flags"]


def test_a_lo_that_was_up_before_stays_up(host: Host, cni: Cni) -> None:
    netns = host.container()
    host.inside("c1", "ip", "link", "set", "lo", "up")
    cni.add(CONF, netns, ifname="lo")
    cni.delete(CONF, netns, ifname="lo")
    assert host.ping("c1", "127.0.0.1")


def test_check_notices_that_lo_is_down(host: Host, cni: Cni) -> None:
    netns = host.container()
    result = cni.add(CONF, netns, ifname="lo")
    host.inside("c1", "ip", "link", "set", "lo", "down")
    problem = seen.problem(cni, "CHECK", {**CONF, "prevResult": result}, netns, ifname="lo")
    assert problem["code"] == 104 and "lo is down" in problem["msg"]


def test_without_ipv6_there_is_one_address(host: Host, cni: Cni) -> None:
    netns = host.container()
    host.inside("c1", "sysctl", "-qw", "net.ipv6.conf.all.disable_ipv6=1", "net.ipv6.conf.lo.disable_ipv6=1")
    result = cni.add(CONF, netns, ifname="lo")
    assert [ip["address"] for ip in result["ips"]] == ["127.0.0.1/8"] == seen.addresses(host, "lo", "c1")


def test_a_previous_result_is_passed_on(host: Host, cni: Cni) -> None:
    previous = {
        "cniVersion": "1.1.0",
        "interfaces": [{"name": "eth0", "mac": "02:00:00:00:00:01", "sandbox": "/somewhere"}],
        "ips": [{"address": "192.0.2.7/24", "interface": 0}],
    }
    assert cni.add({**CONF, "prevResult": previous}, host.container(), ifname="lo") == previous


@pytest.mark.parametrize("address", ["10.1.0.5/24", "fd00::5/64"])
def test_a_namespace_that_is_not_a_containers_is_refused(host: Host, cni: Cni, address: str) -> None:
    netns = host.container()
    host.inside("c1", "ip", "link", "set", "lo", "up")
    host.inside("c1", "ip", "address", "add", address, "dev", "lo")
    # Another kernel thread adds the route of an IPv6 address.
    until(lambda: f"local {address.split('/')[0]} " in host.inside("c1", "ip", "route", "show", "table", "all").stdout)
    inner = seen.inner(netns)
    problem = seen.problem(cni, "ADD", CONF, netns, ifname="lo")
    assert problem["code"] == 8 and address in problem["msg"]
    assert difference(inner, seen.inner(netns)) == []
