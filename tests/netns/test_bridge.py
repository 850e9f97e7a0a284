"""The bridge driver with real containers: its keys, its result, and what DEL leaves."""

from __future__ import annotations

import pytest

from lab import seen
from lab.confs import DEFAULT4, DEFAULT6, SUBNET, bridge, dual, pool
from lab.host import Host
from lab.plugins import Cni
from lab.snapshot import difference


def test_containers_reach_each_other_and_the_host(host: Host, cni: Cni) -> None:
    """Both families, no NAT, CHECK, and no change left after two DELs and a GC."""
    seen.forward(host)
    conf = bridge(dual(), isGateway=True)
    one, two = host.container("c1"), host.container("c2")
    before, inner = host.snapshot(), seen.inner(one)
    first, second = cni.add(conf, one), cni.add(conf, two, container="c2")
    seen.agrees(host, first, one)
    seen.agrees(host, second, two, "c2")
    assert [ip["address"] for ip in first["ips"]] == ["10.80.0.2/24", "fd80::2/64"]
    assert [ip["gateway"] for ip in second["ips"]] == ["10.80.0.1", "fd80::1"]
    assert [one.get("interface") for one in first["ips"]] == [2, 2]
    host.serve_tcp("c2", 80)
    host.serve_udp("c2", 53)
    host.serve_tcp(None, 81)
    assert host.fetch("c1", "10.80.0.3", 80) == "10.80.0.2"
    assert host.fetch("c1", "fd80::3", 80) == "fd80::2"
    assert host.fetch("c1", "10.80.0.3", 53, "udp") == "10.80.0.2"
    assert host.fetch("c1", "10.80.0.1", 81) == "10.80.0.2"
    assert host.fetch("c1", "fd80::1", 81) == "fd80::2"
    assert host.fetch(None, "10.80.0.3", 80) == "10.80.0.1"
    assert host.fetch(None, "fd80::3", 80) == "fd80::1"
    cni.check(conf, first, one)
    cni.check(conf, second, two, container="c2")
    cni.delete({**conf, "prevResult": first}, one)
    cni.check(conf, second, two, container="c2")
    cni.delete(conf, one)
    assert difference(inner, seen.inner(one)) == []
    assert host.fetch(None, "10.80.0.3", 80) == "10.80.0.1"
    cni.delete(conf, two, container="c2")
    seen.collect(cni, conf)
    assert host.changes(before) == []


def test_the_outside_reaches_a_container_by_its_address(host: Host, cni: Cni) -> None:
    lan = host.lan(default_route=True)
    cni.add(bridge(dual(), isGateway=True), host.container())
    host.serve_tcp("c1", 80)
    assert host.fetch(lan.name, "10.80.0.2", 80) == lan.outside
    assert host.fetch(lan.name, "fd80::2", 80) == lan.outside6


def test_forwarding_is_switched_on_for_the_families_in_use_alone(host: Host, cni: Cni) -> None:
    cni.add(bridge(pool(SUBNET), isGateway=True), host.container())
    assert seen.setting(host, "net/ipv4/ip_forward") == "1"
    assert seen.setting(host, "net/ipv6/conf/all/forwarding") == "0"
    cni.add(bridge(dual(), isGateway=True, bridge="br1", name="six"), host.container("c2"), container="c2")
    assert seen.setting(host, "net/ipv6/conf/all/forwarding") == "1"


def test_without_a_gateway_the_bridge_has_no_address(host: Host, cni: Cni) -> None:
    result = cni.add(bridge(dual()), host.container())
    assert seen.addresses(host, "br0") == []
    assert [ip["gateway"] for ip in result["ips"]] == ["10.80.0.1", "fd80::1"]
    assert seen.setting(host, "net/ipv4/ip_forward") == "0"
    assert seen.link(host, "br0")["flags"].count("UP") == 1
    assert seen.setting(host, "net/ipv6/conf/br0/accept_ra") == "0"


def test_a_port_has_no_ipv6_of_its_own(host: Host, cni: Cni) -> None:
    """It only forwards; addresses and routes of the port would slow the deletion of every link."""
    result = cni.add(bridge(dual(), isGateway=True), host.container())
    port = result["interfaces"][1]["name"]
    assert host.ping("c1", "fd80::1")
    assert seen.addresses(host, port) == []
    routes = host.run("ip", "-6", "route", "show", "table", "all", "dev", port).stdout.splitlines()
    assert all(route.startswith("multicast ff00::/8 ") for route in routes)


def test_the_default_bridge_is_cni0(host: Host, cni: Cni) -> None:
    conf = bridge(pool(SUBNET))
    del conf["bridge"]
    assert cni.add(conf, host.container())["interfaces"][0]["name"] == "cni0"
    assert seen.link(host, "cni0")["linkinfo"]["info_kind"] == "bridge"


@pytest.mark.parametrize("addressed", [True, False])
def test_existing_bridge_is_used_and_kept(host: Host, cni: Cni, addressed: bool) -> None:
    """It keeps its address, unless weft assigned it."""
    host.run("ip", "link", "add", "br0", "address", "02:00:00:00:00:17", "type", "bridge")
    host.run("sysctl", "-qw", "net.ipv6.conf.br0.accept_ra=0")
    host.run("ip", "link", "set", "br0", "up")
    # The first port changes a bridge's GSO and TSO limits permanently.
    host.run("ip", "link", "add", "port0", "master", "br0", "type", "veth", "peer", "name", "port1")
    if addressed:
        host.run("ip", "address", "add", "10.80.0.1/24", "dev", "br0")
    seen.forward(host)
    before = host.snapshot()
    conf = bridge(pool(SUBNET), isGateway=True)
    results = {name: cni.add(conf, host.container(name), container=name) for name in ("c1", "c2")}
    assert results["c1"]["interfaces"][0] == {"name": "br0", "mac": "02:00:00:00:00:17", "mtu": 1500}
    assert host.ping("c1", "10.80.0.1") and host.ping("c1", "10.80.0.3")
    for name, result in results.items():
        cni.check(conf, result, f"/run/netns/{name}", container=name)
        cni.delete(conf, f"/run/netns/{name}", container=name)
    seen.collect(cni, conf)
    assert host.changes(before) == []


def test_failed_first_add_keeps_an_existing_bridge(host: Host, cni: Cni) -> None:
    host.run("ip", "link", "add", "br0", "up", "type", "bridge")
    host.run("ip", "address", "add", "10.99.0.1/24", "dev", "br0")
    host.run("sysctl", "-qw", "net.ipv6.conf.br0.accept_ra=0")
    before = host.snapshot()
    seen.problem(cni, "ADD", bridge(pool(SUBNET), isGateway=True), host.container())
    assert host.changes(before) == []


def test_networks_of_different_mtu_on_one_bridge(host: Host, cni: Cni) -> None:
    for name, mtu, size in (("c1", 1500, 1500), ("c2", 1400, 1400), ("c3", 1500, 1400)):
        conf = bridge(pool(SUBNET, dataDir=f"/run/leases-{name}"), mtu=mtu, name=name)
        netns = host.container(name)
        result = cni.add(conf, netns, container=name)
        assert result["interfaces"][0]["mtu"] == size
        seen.agrees(host, result, netns, name)
        cni.check(conf, result, netns, container=name)


@pytest.mark.parametrize("name", ["", "sixteen-chars-00", "a/b", "a b", "other"])
def test_link_of_another_type_is_refused(host: Host, cni: Cni, name: str) -> None:
    host.run("ip", "link", "add", "other", "type", "veth", "peer", "name", "other-far")
    before = host.snapshot()
    problem = seen.problem(cni, "ADD", bridge(pool(SUBNET), bridge=name), host.container())
    assert problem["code"] == (101 if name == "other" else 7)
    assert host.changes(before) == []


def test_is_default_gateway_brings_default_routes(host: Host, cni: Cni) -> None:
    netns = host.container()
    conf = bridge(pool(SUBNET, "fd80::/64"), isDefaultGateway=True)
    result = cni.add(conf, netns)
    assert result["routes"] == [{"dst": "0.0.0.0/0", "gw": "10.80.0.1"}, {"dst": "::/0", "gw": "fd80::1"}]
    assert seen.addresses(host, "br0") == ["10.80.0.1/24", "fd80::1/64"]
    seen.agrees(host, result, netns)
    cni.check(conf, result, netns)


def test_is_default_gateway_leaves_a_default_route_of_ipam(host: Host, cni: Cni) -> None:
    netns = host.container()
    routes = [{"dst": "0.0.0.0/0", "gw": "10.80.0.9"}]
    result = cni.add(bridge(pool(SUBNET, routes=routes), isDefaultGateway=True), netns)
    assert result["routes"] == routes
    assert seen.route(host, "0.0.0.0/0", "c1")["gateway"] == "10.80.0.9"


def test_another_address_on_the_bridge_needs_force(host: Host, cni: Cni) -> None:
    host.run("ip", "link", "add", "br0", "up", "type", "bridge")
    host.run("ip", "address", "add", "10.99.0.1/24", "dev", "br0")
    netns = host.container()
    conf = bridge(pool(SUBNET), isGateway=True)
    problem = seen.problem(cni, "ADD", conf, netns)
    assert "already has" in problem["msg"] and "10.99.0.1/24" in problem["msg"] and problem["code"] == 101
    assert seen.links(host, "c1") == ["lo"]
    cni.add({**conf, "forceAddress": True}, netns)
    assert seen.addresses(host, "br0") == ["10.80.0.1/24"]


def test_the_gateway_follows_a_changed_subnet_once_nobody_is_attached(host: Host, cni: Cni) -> None:
    """As when a Kubernetes node is registered anew and gets another podCIDR."""
    before, after = (bridge(pool(f"10.{one}.0.0/24", f"fd{one}::/64"), isGateway=True) for one in (80, 81))
    cni.add(before, host.container())
    second = host.container("c2")
    problem = seen.problem(cni, "ADD", after, second, container="c2")
    assert problem["code"] == 101 and "already has the IP address 10.80.0.1/24" in problem["msg"]
    assert seen.addresses(host, "br0") == ["10.80.0.1/24", "fd80::1/64"]
    cni.delete(before, "/run/netns/c1")
    host.run("ip", "address", "add", "192.0.2.9/32", "dev", "br0")  # an administrator's
    assert "192.0.2.9/32" in seen.problem(cni, "ADD", after, second, container="c2")["msg"]
    host.run("ip", "address", "delete", "192.0.2.9/32", "dev", "br0")
    result = cni.add(after, second, container="c2")
    assert seen.addresses(host, "br0") == ["10.81.0.1/24", "fd81::1/64"]
    assert host.ping("c2", "10.81.0.1") and host.ping("c2", "fd81::1")
    cni.check(after, result, second, container="c2")


def test_two_subnets_of_one_family_share_a_bridge(host: Host, cni: Cni) -> None:
    netns = host.container()
    conf = bridge(pool(SUBNET, "10.81.0.0/24"), isGateway=True)
    result = cni.add(conf, netns)
    assert seen.addresses(host, "br0") == ["10.80.0.1/24", "10.81.0.1/24"]
    assert host.ping("c1", "10.80.0.1") and host.ping("c1", "10.81.0.1")
    cni.check(conf, result, netns)


def test_a_gateway_that_the_configuration_names(host: Host, cni: Cni) -> None:
    ipam = {"type": "host-local", "subnet": SUBNET, "gateway": "10.80.0.254", "routes": [DEFAULT4]}
    result = cni.add(bridge(ipam, isGateway=True), host.container())
    assert result["ips"] == [{"address": "10.80.0.1/24", "gateway": "10.80.0.254", "interface": 2}]
    assert seen.addresses(host, "br0") == ["10.80.0.254/24"]
    assert seen.route(host, "0.0.0.0/0", "c1")["gateway"] == "10.80.0.254"
    assert host.ping("c1", "10.80.0.254")


def test_mtu_holds_for_both_ends_and_a_new_bridge(host: Host, cni: Cni) -> None:
    netns = host.container()
    conf = bridge(pool(SUBNET), isGateway=True, mtu=1400)
    result = cni.add(conf, netns)
    assert [one["mtu"] for one in result["interfaces"]] == [1400, 1400, 1400]
    seen.agrees(host, result, netns)
    ping = ("ping", "-nq", "-c1", "-M", "do", "10.80.0.1")
    assert host.inside("c1", *ping, "-w10", "-s1372", check=False).code == 0
    assert host.inside("c1", *ping, "-W1", "-s1373", check=False).code != 0
    cni.check(conf, result, netns)


@pytest.mark.parametrize("mtu", [67, 65536])
def test_invalid_mtu_is_refused(host: Host, cni: Cni, mtu: int) -> None:
    before = host.snapshot()
    problem = seen.problem(cni, "ADD", bridge(pool(SUBNET), mtu=mtu), host.container())
    assert problem["code"] == 7 and f"mtu {mtu}" in problem["msg"]
    assert host.changes(before) == []


def test_hairpin_mode(host: Host, cni: Cni) -> None:
    for index, wanted in enumerate((True, False)):
        result = cni.add(bridge(pool(SUBNET), hairpinMode=wanted), host.container(f"h{index}"), container=f"h{index}")
        port = seen.link(host, result["interfaces"][1]["name"])
        assert port["linkinfo"]["info_slave_data"]["hairpin"] is wanted


def test_promiscuous_mode(host: Host, cni: Cni) -> None:
    netns = host.container()
    conf = bridge(pool(SUBNET), promiscMode=True)
    result = cni.add(conf, netns)
    assert "PROMISC" in seen.link(host, "br0")["flags"]
    cni.check(conf, result, netns)
    host.run("ip", "link", "set", "br0", "promisc", "off")
    problem = seen.problem(cni, "CHECK", {**conf, "prevResult": result}, netns)
    assert "br0 is not promiscuous" in problem["msg"]


def test_hairpin_and_promiscuous_exclude_each_other(host: Host, cni: Cni) -> None:
    before = host.snapshot()
    problem = seen.problem(cni, "ADD", bridge(pool(SUBNET), hairpinMode=True, promiscMode=True), host.container())
    assert problem["code"] == 7 and "promiscMode" in problem["msg"] and "hairpinMode" in problem["msg"]
    assert host.changes(before) == []


def test_isolated_ports_reach_the_host_and_not_each_other(host: Host, cni: Cni) -> None:
    conf = bridge(dual(), isGateway=True, portIsolation=True)
    for name in ("c1", "c2"):
        cni.add(conf, host.container(name), container=name)
    cni.add({**conf, "portIsolation": False}, host.container("c3"), container="c3")
    for name in ("c2", "c3"):
        host.serve_tcp(name, 80)
    assert host.fetch("c1", "10.80.0.3", 80, timeout=0.5) is None
    assert host.fetch("c1", "fd80::3", 80, timeout=0.5) is None
    assert host.fetch("c1", "10.80.0.4", 80) == "10.80.0.2"
    assert host.ping("c1", "10.80.0.1") and host.ping("c1", "fd80::1")


def test_layer_2_alone(host: Host, cni: Cni) -> None:
    """Without ipam the link is up and has no address; the container may configure its own."""
    conf = bridge()
    results = {}
    for index, name in enumerate(("c1", "c2"), 1):
        results[name] = cni.add(conf, host.container(name), container=name)
        assert "ips" not in results[name] and len(results[name]["interfaces"]) == 3
        assert "UP" in seen.link(host, "eth0", name)["flags"]
        host.inside(name, "ip", "address", "add", f"192.168.7.{index}/24", "dev", "eth0")
    assert host.ping("c1", "192.168.7.2")
    cni.check(conf, results["c1"], "/run/netns/c1")


def test_a_container_interface_that_stays_down(host: Host, cni: Cni) -> None:
    netns = host.container()
    conf = bridge(disableContainerInterface=True)
    result = cni.add(conf, netns)
    assert "UP" not in seen.link(host, "eth0", "c1")["flags"]
    cni.check(conf, result, netns)
    before = host.snapshot()
    refused = bridge(pool(SUBNET), disableContainerInterface=True)
    problem = seen.problem(cni, "ADD", refused, netns, ifname="eth1")
    assert problem["code"] == 7 and "disableContainerInterface" in problem["msg"]
    assert host.changes(before) == []


def test_duplicate_address_detection(host: Host, cni: Cni) -> None:
    """Off by default, so that an address is usable at once; if on, ADD waits for DAD."""
    quick = cni.add(bridge(dual(), isGateway=True), host.container())
    assert seen.setting(host, "net/ipv6/conf/eth0/accept_dad", "c1") == "0"
    assert host.ping("c1", "fd80::1")
    netns = host.container("c2")
    cni.add(bridge(dual(), isGateway=True, enabledad=True), netns, container="c2")
    assert seen.setting(host, "net/ipv6/conf/eth0/accept_dad", "c2") == "1"
    assert seen.setting(host, "net/ipv6/conf/eth0/enhanced_dad", "c2") == "1"
    tentative = host.inside("c2", "ip", "-6", "-j", "address", "show", "tentative").json
    assert [one for one in tentative if one and one["addr_info"]] == []
    assert quick["ips"][1]["address"] == "fd80::2/64"


def test_duplicate_address_is_detected(host: Host, cni: Cni) -> None:
    cni.add(bridge(), host.container("c2"), container="c2")
    host.inside("c2", "ip", "address", "add", "fd80::2/64", "dev", "eth0", "nodad")
    netns = host.container()
    problem = seen.problem(cni, "ADD", bridge(dual(), enabledad=True), netns)
    assert problem["code"] == 101 and "duplicate address detection failed" in problem["msg"]
    assert seen.links(host, "c1") == ["lo"]


def test_container_announces_its_addresses(host: Host, cni: Cni) -> None:
    cni.add(bridge(dual()), host.container())
    assert seen.setting(host, "net/ipv4/conf/eth0/arp_notify", "c1") == "1"
    assert seen.setting(host, "net/ipv6/conf/eth0/ndisc_notify", "c1") == "1"


def test_ipv6_is_enabled_if_the_container_had_it_disabled(host: Host, cni: Cni) -> None:
    netns = host.container()
    host.inside("c1", "sysctl", "-qw", "net.ipv6.conf.all.disable_ipv6=1", "net.ipv6.conf.default.disable_ipv6=1")
    cni.add(bridge(dual(), isGateway=True), netns)
    assert seen.addresses(host, "eth0", "c1") == ["10.80.0.2/24", "fd80::2/64"]
    assert host.ping("c1", "fd80::1")


def test_which_mac_address_wins(host: Host, cni: Cni) -> None:
    """Order of precedence: runtimeConfig.mac, args.cni.mac, CNI_ARGS."""
    asked: dict[str, object] = {}
    macs = []
    for index, more in enumerate(
        ({}, {"args": {"cni": {"mac": "02-00-00-00-00-BB"}}}, {"runtimeConfig": {"mac": "02:00:00:00:00:cc"}})
    ):
        asked |= more
        name = f"m{index}"
        result = cni.add(
            bridge(pool(SUBNET), **asked),
            host.container(name),
            container=name,
            args="IgnoreUnknown=1;MAC=02:00:00:00:00:aa",
        )
        macs.append(result["interfaces"][2]["mac"])
        assert seen.link(host, "eth0", name)["address"] == macs[-1]
    assert macs == ["02:00:00:00:00:aa", "02:00:00:00:00:bb", "02:00:00:00:00:cc"]
    group = bridge(pool(SUBNET), runtimeConfig={"mac": "01:00:00:00:00:01"})
    problem = seen.problem(cni, "ADD", group, "/run/netns/m0")
    assert "runtimeConfig.mac" in problem["msg"] and "multicast" in problem["msg"]


def test_dns_of_the_network_or_of_ipam(host: Host, cni: Cni) -> None:
    own = {"nameservers": ["192.0.2.53"], "search": ["example.org"]}
    static = {"type": "static", "addresses": [{"address": "10.80.0.5/24"}], "dns": {"nameservers": ["192.0.2.1"]}}
    netns = host.container()
    assert cni.add(bridge(static), netns)["dns"] == {"nameservers": ["192.0.2.1"]}
    cni.delete(bridge(static), netns)
    assert cni.add(bridge(static, dns=own), netns)["dns"] == own


def test_static_addresses(host: Host, cni: Cni) -> None:
    addresses = [{"address": "10.80.0.5/24", "gateway": "10.80.0.1"}, {"address": "fd80::5/64"}]
    conf = bridge({"type": "static", "addresses": addresses, "routes": [DEFAULT4, DEFAULT6]}, isGateway=True)
    netns = host.container()
    result = cni.add(conf, netns)
    assert [ip["gateway"] for ip in result["ips"]] == ["10.80.0.1", "fd80::1"]
    seen.agrees(host, result, netns)
    assert host.ping("c1", "10.80.0.1") and host.ping("c1", "fd80::1")
    cni.check(conf, result, netns)
    cni.delete(conf, netns)
    assert seen.links(host, "c1") == ["lo"]


def test_no_address_from_ipam_is_an_error(host: Host, cni: Cni) -> None:
    before = host.snapshot()
    problem = seen.problem(cni, "ADD", bridge({"type": "static"}), host.container())
    assert "missing IP config" in problem["msg"]
    assert host.changes(before) == []


def test_existing_interface_is_left_alone(host: Host, cni: Cni) -> None:
    netns = host.container()
    conf = bridge(pool(SUBNET))
    first = cni.add(conf, netns)
    problem = seen.problem(cni, "ADD", conf, netns)
    assert problem["code"] == 101 and "already attached" in problem["msg"]
    other = seen.problem(cni, "ADD", bridge(pool("10.82.0.0/24"), name="other"), netns)
    assert other["code"] == 101 and "eth0" in other["msg"]
    cni.check(conf, first, netns)
