"""portmap and ipMasq through iptables, where the configuration names that backend."""

from __future__ import annotations

import pytest

from lab import seen
from lab.confs import bridge, dual, port, published
from lab.ground import use_tables
from lab.host import Host, Lan
from lab.plugins import Cni
from lab.waiting import BRIEFLY

CHAIN = bridge(dual(), isGateway=True, hairpinMode=True)
MAPPINGS = (port(8080, 80), port(5353, 53, "udp"), port(8081, 80, address="192.0.2.1"))


@pytest.fixture
def lan(host: Host) -> Lan:
    return host.lan()


def test_published_ports(host: Host, cni: Cni, lan: Lan) -> None:
    use_tables(host)
    seen.forward(host)
    before = host.snapshot()
    conflist, runtime = published(CHAIN, MAPPINGS, backend="iptables")
    netns = host.container()
    result = cni.add_list(conflist, netns, runtime)
    cni.check_list(conflist, result, netns, runtime)
    host.serve_tcp("c1", 80)
    host.serve_udp("c1", 53)
    assert "WEFT-PORTS" in host.run("iptables-save", "-t", "nat").stdout
    assert host.fetch(lan.name, lan.host, 8080) == lan.outside
    assert host.fetch(lan.name, lan.host6, 8080) == lan.outside6
    assert host.fetch(lan.name, lan.host, 5353, "udp") == lan.outside
    assert host.fetch(lan.name, lan.host, 8081) == lan.outside
    assert host.fetch(None, "127.0.0.1", 8080) == "10.80.0.1"
    assert host.fetch(None, "127.0.0.1", 8081, timeout=0.4) is None
    assert host.fetch("c1", lan.host, 8080) == "10.80.0.1"
    host.run("iptables", "-t", "nat", "-D", "WEFT-PORTS", "1")
    problem = seen.problem(cni, "CHECK", cni._members(conflist, runtime)[1] | {"prevResult": result}, netns)
    assert problem["code"] == 104 and "WEFT-PORTS" in problem["msg"]
    cni.delete_list(conflist, None, "", runtime)
    seen.collect(cni, CHAIN)
    seen.collect(cni, {**CHAIN, "type": "portmap"})
    assert host.changes(before) == []


def test_conditions_hold(host: Host, cni: Cni, lan: Lan) -> None:
    """conditionsV4 and conditionsV6 are iptables arguments, so they select that backend."""
    conditions = {"conditionsV4": ["!", "-s", "10.80.0.0/24", "-i", "lan0"], "conditionsV6": ["-s", "2001:db8:99::2"]}
    conflist, runtime = published(CHAIN, [port(8080, 80)], **conditions)
    netns = host.container()
    result = cni.add_list(conflist, netns, runtime)
    cni.check_list(conflist, result, netns, runtime)
    cni.add(CHAIN, host.container("c2"), container="c2")
    host.serve_tcp("c1", 80)
    assert host.fetch(lan.name, lan.host, 8080) == lan.outside
    assert host.fetch(lan.name, lan.host6, 8080) == lan.outside6
    assert host.fetch("c2", lan.host, 8080, timeout=0.4) is None
    assert host.fetch("c2", lan.host6, 8080, timeout=0.4) is None


@pytest.mark.parametrize(
    ("keys", "code", "said"),
    [
        ({"conditionsV4": ["-s", "fd00::/8"]}, 7, "fd00::/8"),
        ({"conditionsV4": ["-s", "1.2.3.4", "-s", "1.2.3.5"]}, 7, "twice"),
        ({"conditionsV4": ["-i", "a b"]}, 7, "conditionsV4"),
        ({"conditionsV4": ["-s", "1.2.3.4"], "backend": "nftables"}, 7, "backend"),
        ({"conditionsV4": ["ip", "saddr", "1.2.3.4"], "backend": "nftables"}, 2, "conditionsV4"),
        ({"conditionsV6": ["!", "-p", "tcp"]}, 2, "conditionsV6"),
        ({"conditionsV6": ["-s"]}, 2, "conditionsV6"),
        ({"externalSetMarkChain": "X", "markMasqBit": 3, "backend": "iptables"}, 7, "markMasqBit"),
    ],
)
def test_what_cannot_be_is_refused(host: Host, cni: Cni, keys: dict[str, object], code: int, said: str) -> None:
    conf = {**CHAIN, "type": "portmap", **keys, "prevResult": {"cniVersion": "1.1.0"}}
    problem = seen.problem(cni, "ADD", conf, host.container())
    assert problem["code"] == code and said in problem["msg"]


def test_masquerading(host: Host, cni: Cni, lan: Lan) -> None:
    use_tables(host)
    seen.forward(host)
    before = host.snapshot()
    conf = {**CHAIN, "ipMasq": True, "ipMasqBackend": "iptables"}
    netns = host.container()
    result = cni.add(conf, netns)
    cni.check(conf, result, netns)
    host.serve_tcp(lan.name, 80)
    host.serve_tcp(None, 81)
    assert host.fetch("c1", lan.outside, 80) == lan.host
    assert host.fetch("c1", lan.outside6, 80) == lan.host6
    assert host.fetch("c1", "10.80.0.1", 81) == "10.80.0.2"
    assert "10.80.0.2" in host.run("iptables-save", "-t", "nat").stdout
    host.remove_container("c1")
    cni.delete(conf, "")
    seen.collect(cni, conf)
    assert host.changes(before) == []


@pytest.mark.parametrize("backend", ["nftables", "iptables"])
@pytest.mark.parametrize("protocol", ["tcp", "udp"])
def test_port_with_a_listening_process_is_refused(host: Host, cni: Cni, lan: Lan, backend: str, protocol: str) -> None:
    """Its socket would become unreachable. At other addresses of the host the port is free."""
    serve = host.serve_tcp if protocol == "tcp" else host.serve_udp
    serve(None, 8080, "127.0.0.1")
    netns = host.container()
    result = cni.add(CHAIN, netns)
    before = host.snapshot()
    conf = {**CHAIN, "type": "portmap", "backend": backend, "prevResult": result}
    for address, refused in (("", True), ("127.0.0.1", True), ("192.0.2.1", False)):
        runtime = {"portMappings": [port(8080, 80, protocol, address=address)]}
        outcome = cni("ADD", {**conf, "runtimeConfig": runtime}, netns=netns)
        assert (outcome.code == 1) == refused, outcome
        if refused:
            assert outcome.json["code"] == 101 and "8080" in outcome.json["msg"] and "(" in outcome.json["msg"]
            # The network's own chain, empty, may exist already.
            assert not [line for line in host.changes(before) if "8080" in line or "10.80.0.2" in line]


LOOPBACKS = (("127.0.0.1", "10.80.0.1"), ("::1", "fd80::1"))


@pytest.mark.parametrize(
    ("conditions", "reached"),
    [
        ({}, True),
        ({"conditionsV4": ["-s", "127.0.0.0/8"], "conditionsV6": ["-s", "::1"]}, True),
        ({"conditionsV4": ["!", "-s", "10.80.0.0/24"], "conditionsV6": ["!", "-i", "lan0"]}, True),
        ({"conditionsV4": ["-d", "127.0.0.1"], "conditionsV6": ["-d", "::/0"]}, True),
        ({"conditionsV4": ["-s", "192.0.2.0/24"], "conditionsV6": ["!", "-s", "::1"]}, False),
        ({"conditionsV4": ["-d", "192.0.2.1"], "conditionsV6": ["-i", "lan0"]}, False),
    ],
    ids=lambda value: " ".join(word for words in value.values() for word in words) if isinstance(value, dict) else "",
)
def test_from_the_loopback(host: Host, cni: Cni, conditions: dict[str, list[str]], reached: bool) -> None:
    """Conditions on 127.0.0.1 and ::1 hold, although iptables sees a substitute source address."""
    conflist, runtime = published(CHAIN, [port(8080, 80)], backend="iptables", **conditions)
    netns = host.container()
    result = cni.add_list(conflist, netns, runtime)
    cni.check_list(conflist, result, netns, runtime)
    host.serve_tcp("c1", 80)
    for address, seen_from in LOOPBACKS:
        answer = host.fetch(None, address, 8080, **({} if reached else {"timeout": BRIEFLY}))
        assert answer == (seen_from if reached else None), address
