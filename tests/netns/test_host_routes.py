"""What a network must not do to the routes of its host: router advertisements, and the LAN's router."""

from __future__ import annotations

from pathlib import Path

import pytest

from lab import frames, seen
from lab.confs import DEFAULT4, DEFAULT6, bridge, dual, network, pool, ptp
from lab.dnsmasq import Dnsmasq, end_keepers
from lab.host import Host, Lan
from lab.plugins import Cni
from lab.waiting import until

ROUTER = "02:00:00:00:00:99"


def advertised(host: Host, link: str) -> bool:
    return f"dev {link} proto ra" in host.run("ip", "-6", "route", "show", "default").stdout


def advertise(host: Host, lan: Lan, link: str) -> None:
    """The LAN's router sends an advertisement, and the host has its default route."""
    _, packet = frames.ip(
        frames.link_local(ROUTER), frames.ALL_NODES, frames.ICMP6,
        frames.router("2001:db8:99::", frames.option(1, ROUTER)),
    )  # fmt: skip

    def arrived() -> bool:
        frames.send(f"/run/netns/{lan.name}",
                    [frames.frame(ROUTER, 0x86DD, packet, "33:33:00:00:00:01")])  # fmt: skip
        return advertised(host, link)

    until(arrived, what="a default route by router advertisement")


def accept_ra(host: Host, link: str) -> str:
    return seen.setting(host, f"net/ipv6/conf/{link}/accept_ra")


def wire(host: Host, link: str) -> Lan:
    """A LAN whose router is the host's only default router; ``link`` may be a bridge of the host's own."""
    lan = host.lan()
    host.run("ip", "-6", "route", "flush", "default")
    if link != lan.link:
        host.run("ip", "link", "add", link, "address", "02:00:00:00:00:b0", "type", "bridge")
        host.run("ip", "link", "set", lan.link, "master", link)
        host.run("ip", "link", "set", link, "up")
    host.run("sysctl", "-qw", *(f"net.ipv6.conf.{key}={value}" for key, value in (
        ("all.forwarding", 0), (f"{link}.forwarding", 0), (f"{link}.accept_ra", 1), (f"{link}.accept_dad", 0),
    )))  # fmt: skip
    advertise(host, lan, link)
    return lan


CONFS = {
    "bridge": bridge(dual(), isGateway=True),
    "ptp": ptp(dual()),
    # A bridge of the host's own, which is its uplink, too.
    "own bridge": bridge(pool("fd80::/64", routes=[DEFAULT6]), isGateway=True, bridge="lanbr"),
}


@pytest.mark.parametrize("name", CONFS)
def test_the_host_keeps_its_default_route_by_router_advertisement(host: Host, cni: Cni, name: str) -> None:
    """IPv6 forwarding makes the kernel delete it, and ignore all later ones, unless accept_ra is 2."""
    link = "lanbr" if name == "own bridge" else "lan0"
    lan = wire(host, link)
    before = host.snapshot()
    conf, second = CONFS[name], ptp(pool("fd81::/64"), name="other")
    netns = host.container()
    cni.add(conf, netns)
    assert seen.setting(host, "net/ipv6/conf/all/forwarding") == "1"
    assert advertised(host, link) and accept_ra(host, link) == "2"
    host.run("ip", "-6", "route", "flush", "default")
    advertise(host, lan, link)
    cni.add(second, netns, ifname="eth1")
    cni.delete(conf, netns)
    seen.collect(cni, conf)
    # Another network needs forwarding still.
    assert (seen.setting(host, "net/ipv6/conf/all/forwarding"), accept_ra(host, link)) == ("1", "2")
    cni.delete(second, netns, ifname="eth1")
    seen.collect(cni, second)
    assert (seen.setting(host, "net/ipv6/conf/all/forwarding"), accept_ra(host, link)) == ("0", "1")
    assert advertised(host, link)

    def changed() -> list[str]:
        """Linux 6.18 keeps the anycast address of the subnet in one of ten runs, without any address or
        forwarding.
        """
        found = host.changes(before, within=0)
        return [line for line in found if "forward" not in line and '"type": "anycast"' not in line]

    until(lambda: not changed(), what="the kernel's removal of addresses")


def test_forwarding_stays_for_others_and_with_it_the_hosts_route(host: Host, cni: Cni) -> None:
    """Another engine's bridge came meanwhile: it found forwarding on, and relies on it."""
    wire(host, "lan0")
    conf = CONFS["ptp"]
    netns = host.container()
    cni.add(conf, netns)
    host.run("ip", "link", "add", "docker0", "type", "bridge")
    host.run("ip", "link", "set", "docker0", "up")
    host.run("ip", "address", "add", "fd99::1/64", "dev", "docker0", "nodad")
    cni.delete(conf, netns)
    seen.collect(cni, conf)
    assert (seen.setting(host, "net/ipv6/conf/all/forwarding"), accept_ra(host, "lan0")) == ("1", "2")
    assert advertised(host, "lan0")


def test_an_administrators_accept_ra_stays(host: Host, cni: Cni) -> None:
    wire(host, "lan0")
    host.run("sysctl", "-qw", "net.ipv6.conf.lan0.accept_ra=0")
    netns = host.container()
    cni.add(CONFS["ptp"], netns)
    cni.delete(CONFS["ptp"], netns)
    seen.collect(cni, CONFS["ptp"])
    assert (seen.setting(host, "net/ipv6/conf/all/forwarding"), accept_ra(host, "lan0")) == ("1", "0")


def bridged(host: Host) -> Lan:
    """The host's own bridge on the LAN, with its address and its default route."""
    lan = host.lan()
    host.run("ip", "link", "add", "br0", "address", "02:00:00:00:00:b0", "type", "bridge")
    host.run("ip", "link", "set", lan.link, "master", "br0")
    host.run("ip", "link", "set", "br0", "up")
    host.run("ip", "address", "flush", "dev", lan.link)
    host.run("ip", "address", "add", f"{lan.host}/24", "dev", "br0")
    host.run("ip", "route", "replace", "default", "via", lan.outside)
    return lan


@pytest.mark.parametrize("keys", [{}, {"type": "weft", "driver": "bridge", "names": {}}], ids=["bridge", "weft"])
def test_the_router_that_dhcp_tells_of_is_not_the_host(
    host: Host, cni: Cni, tmp_path: Path, keys: dict[str, object]
) -> None:
    lan = bridged(host)
    Dnsmasq(host, lan, tmp_path)
    before = host.snapshot()
    conf = {**bridge({"type": "dhcp"}, isDefaultGateway=True), **keys}
    netns = host.container()
    try:
        result = cni.add(conf, netns)
        assert seen.addresses(host, "br0") == [f"{lan.host}/24"]
        assert seen.route(host, "0.0.0.0/0", "c1")["gateway"] == lan.outside
        assert host.ping(None, lan.outside) and host.ping("c1", lan.outside)
        # Nor does the agent answer for it.
        assert lan.outside not in result.get("dns", {}).get("nameservers", [])
        cni.check(conf, result, netns)
        cni.delete(conf, netns)
        seen.collect(cni, conf)
    finally:
        end_keepers()
    assert host.changes(before) == []


def test_the_hosts_own_router_is_refused_as_a_gateway_address(host: Host, cni: Cni) -> None:
    lan = bridged(host)
    before = host.snapshot()
    ipam = pool("192.0.2.0/24", routes=[DEFAULT4])
    ipam["ranges"][0][0].update(rangeStart="192.0.2.50", gateway=lan.outside)
    netns = host.container()
    problem = seen.problem(cni, "ADD", network("bridge", ipam, bridge="br0", isGateway=True), netns)
    assert f"gateway {lan.outside} is another machine" in problem["msg"] and "isGateway" in problem["details"]
    assert host.changes(before) == []
    cni.add(network("bridge", ipam, bridge="br0"), netns)
    assert host.ping("c1", lan.outside)
