"""The host's uplink changes: its MTU, its address, the link that it is."""

from __future__ import annotations

import json
import signal
import subprocess
from collections.abc import Callable, Iterator
from typing import Any
from urllib.request import urlopen

import pytest

from lab import seen
from lab.calls import Weft
from lab.confs import DEFAULT4, DEFAULT6, bridge, dual, pool, port, ptp
from lab.host import Host
from lab.plugins import ROOT, Cni
from lab.waiting import until

EXPECTED = 60.0
SUBNETS = pool("10.80.0.0/24", "fd80::/64", routes=[DEFAULT4, DEFAULT6])
OWN = [
    {"cniVersion": "1.1.0", "name": "blue", "type": "weft", "driver": driver, "ipMasq": True, "ipam": SUBNETS, **keys}
    for driver, keys in (("bridge", {"isDefaultGateway": True}), ("ptp", {}))
]


def mtu(host: Host, name: str = "c1") -> int:
    return int(seen.link(host, "eth0", name)["mtu"])


@pytest.fixture
def agent(host: Host) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen([ROOT / "bin/weft", "agent"], stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    yield process
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=EXPECTED)


@pytest.mark.parametrize("conf", OWN, ids=lambda conf: str(conf["driver"]))
def test_the_default_mtu_is_that_of_the_uplink(host: Host, conf: dict[str, Any]) -> None:
    """Of new containers; CHECK tells of those whose MTU is larger than the uplink's now."""
    host.lan()
    host.run("ip", "link", "set", "lan0", "mtu", "1400")
    weft = Weft()
    answers = {}
    for name, asked, expected in (
        ("c1", {}, 1400),
        ("c2", {"mtu": 1450}, 1450),
        ("c3", {"internal": True, "ipMasq": False}, 1500),
    ):
        network = {**conf, "name": name, "bridge": f"b-{name}", "ipam": pool(f"10.8{name[1]}.0.0/24"), **asked}
        path = host.container(name)
        answers[name] = network, path, weft.add(network, path, name)
        assert mtu(host, name) == expected
        assert {one["mtu"] for one in answers[name][2]["interfaces"]} == {expected}

    def complaints() -> dict[str, str]:
        found = {name: weft.check(network, answer, path, name) for name, (network, path, answer) in answers.items()}
        return {name: str(one) for name, one in found.items() if one}

    assert complaints() == {}
    host.run("ip", "link", "set", "lan0", "mtu", "1300")
    (name,), (sentence,) = zip(*complaints().items(), strict=True)
    assert name == "c1" and "the MTU of eth0 is 1400, and that of the host's uplink is only 1300 now" in sentence
    host.run("ip", "link", "set", "lan0", "mtu", "9000")
    assert complaints() == {}


def test_a_small_mtu_of_the_uplink_leaves_ipv6_to_the_container(host: Host) -> None:
    host.lan()
    host.run("ip", "link", "set", "lan0", "mtu", "1000")
    Weft().add(OWN[0], host.container())
    assert mtu(host) == 1280
    assert "fd80::2" in host.inside("c1", "ip", "-6", "address", "show", "eth0").stdout


@pytest.mark.parametrize("make", [bridge, ptp])
def test_under_a_reference_name_the_default_mtu_is_1500(host: Host, cni: Cni, make: Callable[..., Any]) -> None:
    host.lan()
    host.run("ip", "link", "set", "lan0", "mtu", "1400")
    cni.add(make(dual()), host.container())
    assert mtu(host) == 1500


def test_another_uplink_is_followed(host: Host, agent: subprocess.Popen[bytes]) -> None:
    """Masquerading, a published port and the node's address, while the agent runs."""
    seen.hurry(host)
    lan = host.lan()
    conf = {**OWN[0], "portmap": {}, "runtimeConfig": {"portMappings": [port(8080, 80)]}}
    weft = Weft()
    netns = host.container()
    answer = weft.add(conf, netns)
    host.serve_tcp("c1", 80)
    host.serve_tcp(lan.name, 81)

    def address() -> str:
        try:
            with urlopen("http://127.0.0.1:8500/v1/catalog/nodes", timeout=5) as reply:
                (node,) = json.load(reply)
            return str(node["Address"])
        except OSError:
            return ""

    def at(own: str) -> None:
        assert host.fetch("c1", lan.outside, 81) == own
        assert host.fetch(lan.name, own, 8080) == lan.outside
        until(lambda: address() == own, EXPECTED, f"the node's address {own}")

    at(lan.host)
    # Another address on the same link.
    host.run("ip", "address", "add", "192.0.2.7/24", "dev", "lan0")
    host.run("ip", "address", "delete", f"{lan.host}/24", "dev", "lan0")
    host.run("ip", "address", "replace", "192.0.2.7/24", "dev", "lan0")
    host.run("ip", "route", "replace", "default", "via", lan.outside)
    at("192.0.2.7")
    # Without an uplink the last address stays.
    host.run("ip", "route", "delete", "default")
    host.run("ip", "-6", "route", "delete", "default")
    # Another link, to another machine.
    second = host.lan("second", link="lan1", subnet="198.51.100.0/24", subnet6="2001:db8:98::/64")
    host.serve_tcp(second.name, 81)
    assert host.fetch("c1", second.outside, 81) == second.host
    assert host.fetch(second.name, second.host, 8080) == second.outside
    until(lambda: address() == second.host, EXPECTED, "the node's second address")
    assert not weft.check(conf, answer, netns)
