"""Features on the fake kernel: parsing, plans, VRFs (which few kernels have), and CHECK of a chain."""

from __future__ import annotations

from ipaddress import ip_address
from typing import Any

import pytest

from lab.calls import Weft
from lab.confs import bridge, network
from weft.kernel.fake.kernel import FakeKernel
from weft.kernel.host import Host
from weft.kernel.values import Flow, Listener

NETNS = "/run/netns/c1"
DRIVER = bridge(
    {
        "type": "static",
        "addresses": [
            {"address": "10.80.0.2/24", "gateway": "10.80.0.1"},
            {"address": "fd80::2/64", "gateway": "fd80::1"},
        ],
        "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}],
    },
    isGateway=True,
)


@pytest.fixture
def kernel() -> FakeKernel:
    made = FakeKernel()
    made.add(NETNS)
    return made


@pytest.fixture
def weft(kernel: FakeKernel, tmp_path: Any) -> Weft:
    return Weft(kernel, Host(str(tmp_path), "boot", 0.0))


def everything(kernel: FakeKernel) -> list[object]:
    """The whole state, with limits, redirections, routing rules, iptables and attributes of links."""
    found: list[object] = [kernel.dump()]
    for space in kernel.namespaces():
        found += [(link.limit, link.redirect, link.queue_length, link.port) for link in space.links_by_name.values()]
        found += [space.routing_rules()]
        found += [tables.save(name) for tables in space.tables.values() for name in ("filter", "nat")]
    return found


@pytest.mark.parametrize(
    "later",
    [
        network("vrf", vrfname="blue"),
        network("vrf", vrfname="blue", table=77),
        network("sbr"),
        network("sbr", table=4000),
        network("tuning", mac="02:00:00:AA:00:01", mtu=1400, promisc=True, allmulti=False, txQLen=7),
        network("bandwidth", egressRate=8000, egressBurst=8000, ingressRate=8000, ingressBurst=8000),
        network("firewall", ingressPolicy="isolated", backend="iptables"),
        network(
            "portmap",
            backend="iptables",
            runtimeConfig={"portMappings": [{"hostPort": 53, "containerPort": 53, "protocol": "udp"}]},
        ),
    ],
    ids=lambda conf: "-".join(map(str, (conf["type"], *list(conf)[3:5]))),
)
def test_add_check_and_del_of_a_chain(kernel: FakeKernel, weft: Weft, later: dict[str, Any]) -> None:
    result = weft.add(DRIVER, NETNS)
    weft.add({**later, "prevResult": result}, NETNS)
    weft.delete(later, NETNS)
    before = everything(kernel)
    told = weft.add({**later, "prevResult": result}, NETNS)
    assert everything(kernel) != before
    assert weft.check(later, told, NETNS) == ""
    assert weft.check(DRIVER, told, NETNS) == ""
    for _ in range(2):
        weft.delete(later)
    assert everything(kernel) == before
    assert weft.check(DRIVER, result, NETNS) == ""


def test_two_vrfs_have_two_tables(kernel: FakeKernel, weft: Weft) -> None:
    for number, name in enumerate(("red", "blue"), 1):
        driver = {**DRIVER, "name": name, "bridge": f"br{number}"}
        result = weft.add(driver, NETNS, ifname=f"eth{number}")
        conf = {**network("vrf", name=name), "vrfname": name, "prevResult": result}
        weft.add(conf, NETNS, ifname=f"eth{number}")
        link = kernel.open(NETNS).link(name)
        assert link is not None and (link.kind, link.options["vrf_table"]) == ("vrf", number)


@pytest.mark.parametrize(
    ("conf", "code", "said"),
    [
        (network("vrf"), 7, "vrfname"),
        (network("vrf", vrfname=""), 7, "vrfname"),
        (network("vrf", vrfname="eth0"), 7, "eth0"),
        (network("sbr", gateways=["10.0.0.1", "10.0.0.2"]), 7, "gateways"),
        (network("sbr", table="main"), 7, "table"),
        (network("bandwidth", ingressRate=5), 7, "ingressBurst"),
        (network("firewall", backend="magic"), 7, "magic"),
        (network("tuning", sysctl={"kernel.pid_max": "5"}), 7, "kernel.pid_max"),
    ],
)
def test_invalid_configurations_are_refused(weft: Weft, conf: dict[str, Any], code: int, said: str) -> None:
    result = weft.add(DRIVER, NETNS)
    answer = weft("ADD", {**conf, "prevResult": result}, NETNS)
    assert answer.code == code and said in answer.text


def test_bandwidth_needs_a_veth_pair(weft: Weft, kernel: FakeKernel) -> None:
    kernel.open(NETNS).add_link("eth0", "dummy")
    previous = {"cniVersion": "1.1.0", "interfaces": [{"name": "eth0", "sandbox": NETNS}]}
    conf = network("bandwidth", ingressRate=8000, ingressBurst=8000, prevResult=previous)
    answer = weft("ADD", conf, NETNS)
    assert answer.code == 2 and "veth" in answer.text


def test_a_process_that_only_reserves_the_port_is_no_conflict(weft: Weft, kernel: FakeKernel) -> None:
    result = weft.add(DRIVER, NETNS)
    mapping = {"hostPort": 80, "containerPort": 80, "protocol": "tcp"}
    conf = network("portmap", runtimeConfig={"portMappings": [mapping]}, prevResult=result)
    for process, reserved, code in (("nginx (7)", False, 101), ("podman (8)", True, 0)):
        kernel.host.sockets["tcp", 80] = [Listener(ip_address("0.0.0.0"), 80, process, reserved)]
        answer = weft("ADD", conf, NETNS)
        assert answer.code == code and (not code or process in answer.text)


def test_only_stale_udp_conntrack_entries_are_flushed(weft: Weft, kernel: FakeKernel) -> None:
    """Stale: to the host's port, with another container as its target.

    Flows of containers to remote servers stay.
    """

    def flow(destination: str, answers: str, port: int = 53) -> Flow:
        source = ip_address("192.0.2.9")
        return Flow("udp", source, 4000, ip_address(destination), port, ip_address(answers), 53)

    result = weft.add(DRIVER, NETNS)
    stale, far = flow("10.80.0.1", "10.80.0.77"), flow("9.9.9.9", "9.9.9.9")
    other = flow("10.80.0.1", "10.80.0.77", port=54)
    kernel.host.conntrack = [stale, far, other]
    mapping = {"hostPort": 53, "containerPort": 53, "protocol": "udp"}
    conf = network("portmap", runtimeConfig={"portMappings": [mapping]}, prevResult=result)
    weft.add(conf, NETNS)
    assert kernel.host.conntrack == [far, other]
    mine = flow("10.80.0.1", "10.80.0.2")
    kernel.host.conntrack = [mine, far, other]
    weft.delete(conf)
    assert kernel.host.conntrack == [far, other]


@pytest.mark.parametrize("own", [True, False], ids=["own", "another's"])
def test_a_network_with_vlans_turns_on_vlan_filtering_of_its_bridge(kernel: FakeKernel, weft: Weft, own: bool) -> None:
    """Only on bridges that weft created; others are left unchanged, as by the reference plugin."""
    if own:
        weft.add({**DRIVER, "name": "plain", "ipam": {}}, NETNS, ifname="eth9")
    else:
        kernel.host.add_link("br0", "bridge", mac="02:00:00:00:00:77", alias="mine", up=True)
    conf = {**DRIVER, "vlan": 7}
    result = weft.add(conf, NETNS)
    link = kernel.host.link("br0")
    assert link is not None and bool(link.options["br_vlan_filtering"]) is own
    assert weft.check(conf, result, NETNS) == ""
    kernel.host.change_link("br0", options={"br_vlan_filtering": 0})
    assert ("br0 does not filter VLANs" in weft.check(conf, result, NETNS)) is own


def test_hairpin_mode_of_an_isolated_port_in_a_chain(weft: Weft, kernel: FakeKernel) -> None:
    """CHECK of the bridge knows what portmap has changed, and DEL of portmap takes it back."""
    conf = {**DRIVER, "portIsolation": True}
    result = weft.add(conf, NETNS)
    name = result["interfaces"][1]["name"]
    chained = network(
        "portmap", runtimeConfig={"portMappings": [{"hostPort": 80, "containerPort": 80, "protocol": "tcp"}]}
    )
    weft.add({**chained, "prevResult": result}, NETNS)

    def mode() -> int:
        link = kernel.host.link(name)
        assert link is not None
        return link.port.get("brport_mode", 0)

    assert mode() == 1
    assert weft.check(conf, result, NETNS) == "" and weft.check(chained, result, NETNS) == ""
    weft.delete(chained)
    assert mode() == 0
    assert weft.check(conf, result, NETNS) == ""


@pytest.mark.parametrize("protocol", ["tcp", "udp", "sctp"])
def test_connections_end_with_their_port(weft: Weft, kernel: FakeKernel, protocol: str) -> None:
    result = weft.add(DRIVER, NETNS)
    conf = network(
        "portmap", runtimeConfig={"portMappings": [{"hostPort": 80, "containerPort": 8080, "protocol": protocol}]}
    )
    weft.add({**conf, "prevResult": result}, NETNS)

    def flow(target: str, number: int = 8080) -> Flow:
        client, host = ip_address("192.0.2.9"), ip_address("192.0.2.1")
        return Flow(protocol, client, 4000, host, 80, ip_address(target), number)

    others = [flow("10.80.0.3"), flow("10.80.0.2", 8081)]
    kernel.host.conntrack = [flow("10.80.0.2"), *others]
    weft.delete(conf)
    assert kernel.host.conntrack == others
