"""What callers of the reference plugins rely on: IPAM called alone, late DELs, refused ADDs. On the fake kernel."""

from __future__ import annotations

import shutil
from ipaddress import ip_interface
from pathlib import Path
from typing import Any

import pytest

from cni_plugin.networks import findings
from cni_plugin.networks.differences import LO_DOWN
from cni_plugin.ops import Gateways, Veth
from cni_plugin.ops.operation import Operation
from cni_plugin.plan import modules
from cni_plugin.service.context import ServiceContext
from cni_plugin.service.executor import Watch
from cni_plugin.service.gc import collect_stale
from lab.calls import Weft
from lab.cases import FIXED, Conf, conf, pool
from weft.errors import KernelLacks, KernelRefused
from weft.kernel.fake.kernel import FakeKernel
from weft.kernel.host import Host
from weft.kernel.interface import VethPeer


class Node:
    """A host with the fake kernel, two containers and a lease directory."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.kernel = FakeKernel()
        self.kernel.add("/c1")
        self.kernel.add("/c2")
        self.host = Host(str(folder / "run"), "boot", 0.0)
        self.weft = Weft(self.kernel, self.host)

    def ipam(self, *subnets: str, **keys: Any) -> Conf:
        return pool(*(subnets or ("10.60.0.0/28",)), dataDir=str(self.folder / "disk"), **keys)

    def leases(self, network: str) -> dict[str, str]:
        folder = self.folder / "disk" / network
        found = folder.iterdir() if folder.is_dir() else ()
        return {path.name: path.read_bytes().decode().replace("\r\n", "/") for path in found if path.name[0] in "1f"}


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path)


def pool_conf(node: Node, plugin: str = "host-local") -> Conf:
    return conf(plugin, "red", {"ipam": node.ipam()})


def test_a_second_add_to_host_local_is_refused_and_the_lease_stays(node: Node) -> None:
    """The reference says "duplicate allocation is not allowed"; a new address would leave one to two containers."""
    red = pool_conf(node)
    result = node.weft.add(red, "/c1")
    for path in ("/c1", "/c2", "/gone"):
        answer = node.weft("ADD", red, path)
        assert (answer.code, "10.60.0.2" in answer.text) == (101, True), answer
    assert node.leases("red") == {"10.60.0.2": "c1/eth0"}
    assert node.weft.check(red, result, "/c1") == ""
    assert node.weft.add(red, "/c2", "c2")["ips"][0]["address"] == "10.60.0.3/28"
    node.weft.delete(red, "/c1")
    assert node.leases("red") == {"10.60.0.3": "c2/eth0"}


def test_an_add_after_its_lease_was_deleted_by_hand(node: Node) -> None:
    red = pool_conf(node)
    node.weft.add(red, "/c1")
    shutil.rmtree(node.folder / "disk")
    assert node.weft.add(red, "/c1")["ips"][0]["address"] == "10.60.0.2/28"


@pytest.mark.parametrize("path", ["vm-1f3a", "/dev/null", "/no/such/path", "tap:7"])
@pytest.mark.parametrize("plugin", ["host-local", "static"])
def test_ipam_alone_never_opens_the_namespace(node: Node, plugin: str, path: str) -> None:
    addresses = {"type": "static", "addresses": [{"address": "10.60.0.2/28"}]}
    red = pool_conf(node) if plugin == "host-local" else conf(plugin, "red", {"ipam": addresses})
    result = node.weft.add(red, path)
    assert result["ips"][0]["address"] == "10.60.0.2/28"
    assert node.weft.check(red, result, path) == ""
    assert "open" not in node.kernel.calls
    node.weft.delete(red, path)
    assert node.leases("red") == {}


def test_gc_keeps_the_lease_of_what_has_no_namespace(node: Node) -> None:
    """A virtual machine's plugin passes any string as CNI_NETNS; only its DEL, or the runtime's GC, ends the lease."""
    red = pool_conf(node)
    node.weft.add(red, "vm-1f3a")
    assert collect_stale(node.weft.service(node.kernel)).attachments == []
    assert node.leases("red") == {"10.60.0.2": "c1/eth0"}
    node.weft.collect(red, ("c1", "eth0"))
    assert node.leases("red") == {"10.60.0.2": "c1/eth0"}
    node.weft.collect(red)
    assert node.leases("red") == {}


def test_a_del_with_a_path_that_is_gone_ends_the_attachment(node: Node) -> None:
    """A runtime unmounts /run/netns/NAME first, while a process still holds the namespace under another path."""
    red = conf("bridge", "red", {"bridge": "br0", "ipam": node.ipam()})
    node.weft.add(red, "/c1")
    node.weft.delete(red, "/c2")
    assert node.leases("red") == {"10.60.0.2": "c1/eth0"}
    node.weft.delete(red, "/gone")
    assert node.leases("red") == {}
    assert node.kernel.open("/c1").link("eth0") is None


def routed(node: Node, *subnets: str, **keys: Any) -> Conf:
    return conf("bridge", "red", {"bridge": "br0", "isGateway": True, "ipam": node.ipam(*subnets), **keys})


def network_state(node: Node) -> tuple[object, list[str]]:
    """The host without its sysctls, and what doctor says of attachments and networks."""
    service = node.weft.service(node.kernel)
    host = node.kernel.dump()[node.kernel.host.id.path]
    assert isinstance(host, dict)
    state = {name: part for name, part in host.items() if name != "sysctls"}
    return (state, node.kernel.dump()["rules"]), told_of_attachments(service)


def told_of_attachments(service: ServiceContext) -> list[str]:
    """What doctor says of them, but that nobody has set lo up."""
    return [one.what for one in findings.of_attachments(service) if LO_DOWN not in one.what]


def test_a_refused_add_takes_back_what_it_added_to_its_network(node: Node) -> None:
    """Not only the first ADD of a network: another gateway must not stay on the bridge, nor in the network's record."""
    node.weft.add(routed(node, "10.60.0.0/28"), "/c1")
    before = network_state(node)
    assert before[1] == []
    refused = [
        node.weft("ADD", routed(node, "10.61.0.0/28"), "/c2", "c2"),  # the bridge has another address
        node.weft("ADD", routed(node, "10.60.0.0/28", "fd60::/64", ipMasq=True), "/c2", "c2", watch=failing_at(Veth)),
        node.weft(
            "ADD", routed(node, "10.60.0.0/28", "fd60::/64", ipMasq=True), "/c2", "c2", watch=failing_at(Gateways)
        ),
    ]
    assert [answer.ok for answer in refused] == [False, False, False]
    assert network_state(node) == before
    assert node.weft.add(routed(node, "10.60.0.0/28", "fd60::/64"), "/c2", "c2")["ips"][1]["gateway"] == "fd60::1"


def test_what_another_attachment_uses_stays_after_a_refused_add(node: Node) -> None:
    """c2 is attached with the same new gateway while the ADD of c3 that added it fails."""
    node.kernel.add("/c3")
    node.weft.add(routed(node, "10.60.0.0/28"), "/c1")
    dual = routed(node, "10.60.0.0/28", "fd60::/64")

    def fail(verb: str, operation: Operation) -> None:
        if verb == "apply" and isinstance(operation, Veth):
            node.weft.add(dual, "/c2", "c2")
            raise KernelRefused("no more links")

    assert not node.weft("ADD", dual, "/c3", "c3", watch=fail).ok
    assert ip_interface("fd60::1/64") in node.kernel.host.addresses("br0")
    assert network_state(node)[1] == []


def test_a_gateway_of_both_stays_when_the_other_ranges_are_refused(node: Node) -> None:
    """The same gateway with other sibling ranges is another operation; undoing it must not take the address."""
    node.weft.add(routed(node, "10.60.0.0/28"), "/c1")
    more = {"ipam": {**node.ipam(), "ranges": [[{"subnet": "10.60.0.0/28"}, {"subnet": "10.61.0.0/28"}]]}}
    deleted: list[str] = []
    original = node.kernel.host.delete_address
    node.kernel.host.delete_address = lambda link, address: (deleted.append(str(address)), original(link, address))  # type: ignore[method-assign]
    assert not node.weft("ADD", routed(node, **more), "/c2", "c2", watch=failing_at(Veth)).ok
    assert deleted == []
    assert network_state(node)[1] == []


def failing_at(kind: type[Operation]) -> Watch:
    def watch(verb: str, operation: Operation) -> None:
        if verb == "apply" and isinstance(operation, kind):
            raise KernelRefused(f"no {kind.__name__}")

    return watch


CHAINED: dict[str, Conf] = {
    "vrf": {"vrfname": "red"},
    "sbr": {},
    "sbr-hints": {"addSourceHints": True},
    "sbr-table": {"table": 4000},
    "tuning": {
        "sysctl": {"net.ipv4.conf.IFNAME.arp_notify": "0", "net.ipv6.conf.IFNAME.accept_dad": "2"},
        "mac": "02:00:00:00:00:77", "mtu": 1400, "promisc": True, "allmulti": True, "txQLen": 9,
    },
    "bandwidth": {"ingressRate": 8000, "ingressBurst": 8000, "egressRate": 8000, "egressBurst": 8000},
    "firewall": {"ingressPolicy": "isolated"},
    "firewall-iptables": {"backend": "iptables"},
    "portmap": {"runtimeConfig": {"portMappings": [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]}},
    "portmap-iptables": {
        "backend": "iptables",
        "runtimeConfig": {"portMappings": [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]},
    },
}  # fmt: skip
"""Every chained plugin, by its name and what its keys make it do; but dnsname, which changes nothing in the kernel."""


def drivers(node: Node) -> dict[str, Conf]:
    """Every driver that makes an interface, on a host with what it needs."""
    fixed = {
        "type": "static",
        "addresses": [
            {"address": "10.60.0.2/24", "gateway": "10.60.0.1"}, {"address": "fd60::2/64", "gateway": "fd60::1"},
        ],
        "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}, {"dst": "10.77.0.0/16", "gw": "10.60.0.1"}],
    }  # fmt: skip
    return {
        "bridge": {"bridge": "br0", "isGateway": True, "hairpinMode": True, "ipam": fixed},
        "ptp": {"ipam": fixed},
        "macvlan": {"master": "lan0", "ipam": fixed},
        "ipvlan": {"master": "lan0", "ipam": fixed},
        "vlan": {"master": "lan0", "vlanId": 5, "ipam": fixed},
        "host-device": {"device": "nic0", "ipam": fixed},
        "dummy": {"ipam": fixed},
        "tap": {"ipam": fixed},
    }


NO_HOST_LINK = ("macvlan", "ipvlan", "vlan", "host-device", "dummy", "tap")
NOT_TOGETHER = {
    **{("bandwidth", driver): "requires a veth pair" for driver in NO_HOST_LINK},
    **{("firewall", driver): "requires a link of the host" for driver in NO_HOST_LINK},
}
"""What is refused, with the reason: the kernel has no such thing."""


def test_every_driver_that_makes_an_interface_is_among_the_pairs(node: Node) -> None:
    # overlay is the bridge driver with more rows, and needs files of its network.
    assert {*drivers(node), "loopback", "host", "overlay"} == {*modules.drivers()}
    assert {name.partition("-")[0] for name in CHAINED} == {
        modules.feature(name).FEATURE.plugin for name in modules.features() if modules.feature(name).FEATURE.plugin
    } - {"dnsname"}


@pytest.mark.parametrize("chained", CHAINED)
@pytest.mark.parametrize("driver", ["bridge", "ptp", "macvlan", "ipvlan", "vlan", "host-device", "dummy", "tap"])
def test_check_of_a_driver_before_every_chained_plugin(node: Node, driver: str, chained: str) -> None:
    """What a plugin changes of an earlier one's work is no error of CHECK, and is restored by its DEL."""
    node.kernel.host.add_link("lan0", "veth", up=True, peer=VethPeer("far0", up=True))
    node.kernel.host.add_link("nic0", "veth", up=True, peer=VethPeer("far1", up=True))
    plugin = chained.partition("-")[0]
    first = conf(driver, "red", drivers(node)[driver])
    result = node.weft.add(first, "/c1")
    alone = inside(node)
    later = conf(plugin, "red", {**CHAINED[chained], "prevResult": result})
    answer = node.weft("ADD", later, "/c1")
    if reason := NOT_TOGETHER.get((chained, driver)):
        assert not answer.ok and reason in answer.text
        assert inside(node) == alone
        assert node.weft.check(first, result, "/c1") == ""
        return
    told = answer.document
    assert answer.ok, answer
    assert node.weft.check(later, told, "/c1") == ""
    assert node.weft.check(first, told, "/c1") == ""
    service = node.weft.service(node.kernel)
    assert told_of_attachments(service) == []
    node.weft.delete({**later, "prevResult": told}, "/c1")
    assert inside(node) == alone
    assert node.weft.check(first, result, "/c1") == ""
    node.weft.delete(first, "/c1")


def inside(node: Node) -> dict[str, object]:
    """The container, with attributes of its links that a dump does not have."""
    space = node.kernel.open("/c1")
    links = {
        link.name: (link.master, link.promiscuous, link.all_multicast, link.queue_length) for link in space.links()
    }
    return {"state": node.kernel.dump()["/c1"], "links": links, "rules": sorted(map(str, space.routing_rules()))}


def dual_links(node: Node, driver: str = "ptp") -> tuple[dict[str, Conf], dict[str, Any]]:
    """Two interfaces of one container, each with default routes of both families: IPv6 makes them one of two next
    hops."""
    confs, results = {}, {}
    for number, ifname in enumerate(("eth0", "eth1"), 1):
        ipam = {
            "type": "static",
            "addresses": [
                {"address": f"10.6{number}.0.2/24", "gateway": f"10.6{number}.0.1"},
                {"address": f"fd6{number}::2/64", "gateway": f"fd6{number}::1"},
            ],
            "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}],
        }
        keys = {"bridge": f"br{number}", "isGateway": True} if driver == "bridge" else {}
        confs[ifname] = conf(driver, f"net{number}", {"ipam": ipam, **keys})
        results[ifname] = node.weft.add(confs[ifname], "/c1", ifname=ifname)
    return confs, results


def routes_of(node: Node, table: int, link: str = "") -> list[tuple[str, str, str]]:
    found = node.kernel.open("/c1").routes(table=table, link=link)
    return sorted((str(one.route.destination), str(one.route.gateway or one.source or ""), one.link) for one in found)


@pytest.mark.parametrize("driver", ["bridge", "ptp"])
def test_vrf_keeps_all_addresses_and_takes_its_next_hops_from_the_main_table(node: Node, driver: str) -> None:
    confs, results = dual_links(node, driver)
    space = node.kernel.open("/c1")
    space.add_address("eth0", ip_interface("fd99::7/64"))  # by hand: no prevResult names it
    before = inside(node)
    addresses = {one for one in space.addresses("eth0") if not one.is_link_local}
    later = conf("vrf", "net1", {"vrfname": "red", "table": 77, "prevResult": results["eth0"]})
    told = node.weft.add(later, "/c1")
    assert {one for one in space.addresses("eth0") if not one.is_link_local} == addresses
    assert [one for one in routes_of(node, 254) if one[2] == "eth0"] == []
    assert [one for one in routes_of(node, 254) if one[0] == "::/0"] == [("::/0", "fd62::1", "eth1")]
    assert ("::/0", "fd61::1", "eth0") in routes_of(node, 77)
    assert (("fd61::/64", "", "eth0") in routes_of(node, 77)) is (driver == "bridge")  # ptp: by the gateway alone
    assert node.weft.check(later, told, "/c1") == ""
    assert node.weft.check(confs["eth0"], told, "/c1") == ""
    node.weft.delete(later, "/c1")
    assert inside(node) == before


def test_a_vrf_that_fails_leaves_addresses_and_routes(node: Node) -> None:
    _, results = dual_links(node)
    space = node.kernel.open("/c1")
    space.add_address("eth0", ip_interface("fd99::7/64"))
    before = inside(node)
    later = conf("vrf", "net1", {"vrfname": "red", "prevResult": results["eth0"]})
    for verb, call in (("add_address", 1), ("add_route", 1), ("add_route", 3), ("change_link", 1)):
        node.kernel.fail(verb, KernelRefused("no"), call=call)
        assert not node.weft("ADD", later, "/c1").ok
        assert inside(node) == before, (verb, call)


def test_vrf_refuses_a_link_with_another_master(node: Node) -> None:
    """It was taken from the bridge of the container, and never given back."""
    space = node.kernel.open("/c1")
    space.add_link("inner", "bridge", up=True)
    for name, keys in (("a", {"bridge": "inner"}), ("b", {})):
        first = conf("tap", name, {"ipam": {**FIXED, "addresses": [{"address": "10.60.0.2/24"}]}, **keys})
        result = node.weft.add(first, "/c1", ifname=name)
        if name == "b":
            space.add_link("blue", "vrf", options={"vrf_table": 9})
            space.change_link(name, master="blue")
        before = inside(node)
        later = conf("vrf", name, {"vrfname": "red", "prevResult": result})
        answer = node.weft("ADD", later, "/c1", ifname=name)
        assert answer.code == 101 and ("inner" if name == "a" else "blue") in answer.text
        assert inside(node) == before


def test_sbr_with_source_hints_leaves_the_subnet_in_the_main_table(node: Node) -> None:
    confs, results = dual_links(node, "bridge")
    before = inside(node)
    later = conf("sbr", "net1", {"addSourceHints": True, "prevResult": results["eth0"]})
    told = node.weft.add(later, "/c1")
    main = [
        one for one in node.kernel.open("/c1").routes(table=254, link="eth0") if not one.route.destination.is_link_local
    ]
    assert sorted((str(one.route.destination), str(one.source), one.route.scope) for one in main) == [
        ("10.61.0.0/24", "10.61.0.2", None),  # None: the default scope of a route without a gateway, link
        ("fd61::/64", "fd61::2", None),
    ]
    assert node.weft.check(later, told, "/c1") == node.weft.check(confs["eth0"], told, "/c1") == ""
    node.weft.delete(later, "/c1")
    assert inside(node) == before


def test_nested_sbr_and_vrf_know_the_routes_of_ptp(node: Node) -> None:
    """The subnet is routed through the gateway: a table of their own must have that route, not the kernel's usual."""
    ipam = {**FIXED, "addresses": [{"address": "10.60.0.2/24", "gateway": "10.60.0.1"}]}
    for feature, keys, table in (("sbr", {}, 100), ("vrf", {"vrfname": "red", "table": 77}, 77)):
        whole = conf("weft", feature, {"driver": "ptp", "ipam": ipam, feature: keys})
        result = node.weft.add(whole, "/c1")
        near = [("10.60.0.1/32", "10.60.0.2", "eth0"), ("10.60.0.0/24", "10.60.0.1", "eth0")]
        assert {*near} <= {*routes_of(node, table)}
        assert [one for one in routes_of(node, 254) if one[0] != "fe80::/64"] == []
        assert node.weft.check(whole, result, "/c1") == ""
        node.weft.delete(whole, "/c1")


@pytest.mark.parametrize("gateway", [True, False])
@pytest.mark.parametrize("ports", [0, 1])
def test_the_result_names_the_mac_address_of_a_bridge_that_is_not_wefts(node: Node, gateway: bool, ports: int) -> None:
    """Nobody has set it: it was the lowest of the ports', and so another one with each container."""
    host = node.kernel.host
    host.add_link("br0", "bridge", up=True)
    host.add_link("gone", "dummy", up=True, master="br0")
    if ports:
        host.add_link("nic0", "dummy", mac="fe:00:00:00:00:01", up=True, master="br0")
    host.delete_link("gone")  # without any port, it has the MAC address 00:00:00:00:00:00 now

    def mac() -> str:
        link = host.link("br0")
        assert link is not None
        return link.mac

    before = mac()
    red = conf("bridge", "red", {"bridge": "br0", "isGateway": gateway, "ipam": node.ipam()})
    results = [node.weft.add(red, "/c1"), node.weft.add(red, "/c2", "c2")]
    told = {result["interfaces"][0]["mac"] for result in results}
    assert told == {mac()} == ({before} if ports else told) and mac() != "00:00:00:00:00:00"
    node.weft.delete(red, "/c1")
    assert node.weft.check(red, results[1], "/c2", "c2") == "" and told == {mac()}
    host.change_link("br0", mac="06:00:00:00:00:09")  # the owner of the bridge may
    assert node.weft.check(red, results[1], "/c2", "c2") == ""
    assert node.weft.add(red, "/c1")["interfaces"][0]["mac"] == mac() == "06:00:00:00:00:09"


@pytest.mark.parametrize("lacking", [("install",), ("lacks", "install", "add", "delete", "elements", "collections")])
def test_a_plain_bridge_needs_no_nftables(tmp_path: Path, lacking: tuple[str, ...]) -> None:
    """A kernel without nf_tables, or without its family inet, has bridges, addresses and routes all the same."""
    node = Node(tmp_path)

    def lacks(*_: object, **__: object) -> None:
        raise KernelLacks("nftables: Operation not supported")

    for verb in lacking:
        setattr(node.kernel.rules, verb, lacks)
    for red in (routed(node), conf("ptp", "line", {"ipam": node.ipam("10.61.0.0/28")}), pool_conf(node, "host-local")):
        result = node.weft.add(red, "/c1")
        assert node.weft.check(red, result, "/c1") == ""
        assert node.weft("STATUS", red).ok
        node.weft.delete(red, "/c1")
        node.weft.delete(red, "/c1")  # without a record it looks for what has weft's mark
        node.weft.collect(red)
    assert node.kernel.host.link("br0") is None
    answer = node.weft("ADD", routed(node, ipMasq=True), "/c1")
    assert not answer.ok and "nftables" in answer.text
    if "collections" in lacking:
        assert node.weft("STATUS", routed(node, ipMasq=True)).code == 50
    node.weft.delete(routed(node, ipMasq=True), "/c1")
    assert node.leases("red") == {}


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({}, {"nameservers": ["192.0.2.53"]}),
        ({"nameservers": None}, {"nameservers": ["192.0.2.53"]}),
        ({"domain": ""}, {"nameservers": ["192.0.2.53"]}),
        ({"nameservers": []}, None),
        ({"search": []}, None),
        ({"domain": "example.org"}, {"domain": "example.org"}),
    ],
)
def test_a_given_dns_overrides_ipam_even_with_an_empty_list(node: Node, given: Any, said: Any) -> None:
    ipam = {**FIXED, "dns": {"nameservers": ["192.0.2.53"]}}
    red = conf("bridge", "red", {"ipam": ipam, "dns": given})
    assert node.weft.add(red, "/c1").get("dns") == said


@pytest.mark.parametrize("plugin", ["static", "host-local"])
def test_ipam_alone_refuses_a_configuration_without_ipam(node: Node, plugin: str) -> None:
    answer = node.weft("ADD", conf(plugin, "red", {}), "/c1")
    assert (answer.code, "ipam is missing" in answer.text) == (7, True)
    node.weft.delete(conf(plugin, "red", {}), "/c1")


def test_destinations_with_host_bits(node: Node) -> None:
    """CRI-O ships one. The kernel masks it in IPv6 and refuses it in IPv4; IPAM answers what was written."""
    routes = [{"dst": "1100:200::1/24"}, {"dst": "10.9.0.1/16"}]
    for plugin, ipam in (("static", {**FIXED, "routes": routes}), ("host-local", node.ipam(routes=routes))):
        assert node.weft.add(conf(plugin, "red", {"ipam": ipam}), "/c1")["routes"] == routes
        node.weft.delete(conf(plugin, "red", {"ipam": ipam}), "/c1")
    six = conf(
        "bridge", "six", {"isGateway": True, "ipam": node.ipam("10.60.0.0/28", "1100:200::/64", routes=routes[:1])}
    )
    result = node.weft.add(six, "/c1")
    assert result["routes"] == routes[:1] and node.weft.check(six, result, "/c1") == ""
    assert "1100:200::/24" in [str(one.route.destination) for one in node.kernel.open("/c1").routes()]
    tuned = conf("tuning", "six", {"prevResult": result})
    assert node.weft.add(tuned, "/c1")["routes"] == routes[:1]
    refused = node.weft("ADD", conf("ptp", "four", {"ipam": node.ipam(routes=routes[1:])}), "/c2")
    assert (refused.code, "10.9.0.1/16" in refused.text, "10.9.0.0/16" in refused.text) == (7, True, True)
    assert node.leases("four") == {}


@pytest.mark.parametrize("plugin", ["macvlan", "vlan", "tuning"])
def test_a_negative_mtu_that_the_reference_or_the_kernel_refuses(node: Node, plugin: str) -> None:
    node.kernel.host.add_link("lan0", "dummy", up=True)
    first = conf("bridge", "red", {"ipam": FIXED, "mtu": -100})  # ignored, as by the reference
    result = node.weft.add(first, "/c1")
    keys = {"prevResult": result} if plugin == "tuning" else {"master": "lan0", "ipam": FIXED}
    answer = node.weft("ADD", conf(plugin, "other", {"mtu": -100, **keys}), "/c1", ifname="eth1")
    assert (answer.code, "mtu -100" in answer.text) == (7, True)


def test_external_set_mark_chain_without_a_backend(node: Node) -> None:
    """As in what Kubernetes, containerd and AKS document."""
    result = node.weft.add(routed(node), "/c1")
    ports = {"portMappings": [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]}
    for keys, code in (({}, 0), ({"backend": "iptables"}, 0), ({"backend": "nftables"}, 7), ({"markMasqBit": 5}, 7)):
        later = conf("portmap", "red", {"externalSetMarkChain": "KUBE-MARK-MASQ", "snat": True, **keys})
        assert node.weft("ADD", {**later, "runtimeConfig": ports, "prevResult": result}, "/c1").code == code
        node.weft.delete(later, "/c1")


SBR_REPORTS: dict[str, tuple[Conf, Conf, list[tuple[int, str, str]]]] = {
    # containernetworking/plugins#893: the address is the runtime's and has no gateway, the route has one.
    "plugins-893": (
        {"routes": [{"dst": "0.0.0.0/0", "gw": "10.60.0.254"}]},
        {"ips": ["10.60.0.204/24"]},
        [(100, "0.0.0.0/0", "10.60.0.254"), (100, "10.60.0.0/24", "10.60.0.204")],
    ),
    # openshift/containernetworking-plugins#222: the same in IPv6, whose default route stayed in the main table.
    "openshift-222": (
        {"routes": [{"dst": "0.0.0.0/0", "gw": "10.60.0.254"}, {"dst": "::/0", "gw": "fd60::fe"}]},
        {"ips": ["10.60.0.204/24", "fd60::204/64"]},
        [(100, "0.0.0.0/0", "10.60.0.254"), (101, "::/0", "fd60::fe"), (101, "fd60::/64", "")],
    ),
    # containernetworking/plugins#654, multus-cni#706: no gateway anywhere but in the plugin's own key.
    "plugins-654": (
        {},
        {"ips": ["10.60.0.204/24"]},
        [(100, "0.0.0.0/0", "10.60.0.1"), (100, "10.60.0.0/24", "10.60.0.204")],
    ),
}


@pytest.mark.parametrize("name", SBR_REPORTS)
def test_reports_of_default_routes_that_sbr_forgets(node: Node, name: str) -> None:
    ipam, runtime, expected = SBR_REPORTS[name]
    node.kernel.host.add_link("lan0", "dummy", up=True)
    keys = {"master": "lan0", "ipam": {"type": "static", **ipam}, "runtimeConfig": runtime}
    first = conf("ipvlan", "red", keys)
    result = node.weft.add(first, "/c1", ifname="eth1")
    gateways = {"gateways": ["10.60.0.1"]} if name == "plugins-654" else {}
    told = node.weft.add(conf("sbr", "red", {**gateways, "prevResult": result}), "/c1", ifname="eth1")
    for table, destination, gateway in expected:
        assert (destination, gateway, "eth1") in routes_of(node, table)
    assert [one for one in routes_of(node, 254) if one[0] != "fe80::/64"] == []
    assert node.weft.check(first, told, "/c1", ifname="eth1") == ""


def test_tuning_may_switch_ipv6_off_after_a_driver(node: Node) -> None:
    """containernetworking/cni#289: a common list, where the driver's own sysctls are of IPv6, too."""
    for name, keys in (("bridge", {"bridge": "br0", "isGateway": True}), ("ipvlan", {"master": "lan0"})):
        if name == "ipvlan":
            node.kernel.host.add_link("lan0", "dummy", up=True)
        first = conf(name, name, {"ipam": node.ipam(f"10.6{len(name)}.0.0/28"), **keys})
        result = node.weft.add(first, "/c1", ifname=name)
        sysctl = {"net.ipv6.conf.all.disable_ipv6": "1", "net.ipv6.conf.default.disable_ipv6": "1"}
        later = conf("tuning", name, {"sysctl": sysctl, "prevResult": result})
        told = node.weft.add(later, "/c1", ifname=name)
        assert node.weft.check(first, told, "/c1", ifname=name) == ""
        assert node.weft.check(later, told, "/c1", ifname=name) == ""
        node.weft.delete(later, "/c1", ifname=name)
        node.weft.delete(first, "/c1", ifname=name)
        assert node.kernel.open("/c1").sysctl("net/ipv6/conf/all/disable_ipv6") == "0"
