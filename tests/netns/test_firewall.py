"""``firewall`` with real traffic: ingress policies, and what a host with a DROP policy forwards."""

from __future__ import annotations

from typing import Any

import pytest

from lab import seen
from lab.confs import bridge, network, pool, port, published
from lab.ground import use_tables
from lab.host import Host
from lab.plugins import Cni

ROUTES = [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}]
NETS = {
    name: bridge(
        pool(f"10.{number}.0.0/24", f"fd{number}::/64", routes=ROUTES), bridge=f"br-{name}", name=name, isGateway=True
    )
    for name, number in (("red", 81), ("blue", 82), ("free", 83))
}
PLACES = {"red": ("10.81.0.2", "fd81::2"), "blue": ("10.82.0.2", "fd82::2"), "free": ("10.83.0.2", "fd83::2")}


def attach(host: Host, cni: Cni, net: str, name: str, **keys: Any) -> Any:
    """ADD of a container, with a firewall unless no keys are given; returns the result."""
    netns = host.container(name)
    result = cni.add(NETS[net], netns, container=name)
    if keys:
        conf = network("firewall", name=net, **keys)
        assert cni.add({**conf, "prevResult": result}, netns, container=name) == result
        cni.check(conf, result, netns, container=name)
    host.serve_tcp(name, 80)
    return result


def reached(host: Host, sender: str, *addresses: str) -> list[bool]:
    """Whether each address responds, where a response is expected."""
    return [host.reaches(sender, address, 80) for address in addresses]


def blocked(host: Host, sender: str, *addresses: str) -> list[bool]:
    """Whether each address gives no response, where none is expected."""
    return [not host.reaches(sender, address, 80, expected=False) for address in addresses]


def test_networks_are_kept_apart(host: Host, cni: Cni) -> None:
    """same-bridge: open to bridge, host, and networks without a policy; closed to the others."""
    for name in ("red", "blue"):
        attach(host, cni, name, name, ingressPolicy="same-bridge")
    attach(host, cni, "red", "red2", ingressPolicy="same-bridge")
    attach(host, cni, "free", "free")
    assert blocked(host, "red", *PLACES["blue"]) == [True, True]
    assert blocked(host, "blue", *PLACES["red"], "10.81.0.3", "fd81::3") == [True] * 4
    assert reached(host, "red2", *PLACES["red"]) == [True, True]
    assert reached(host, "free", *PLACES["red"], *PLACES["blue"]) == [True] * 4
    assert reached(host, "red", *PLACES["free"]) == [True, True]
    assert host.fetch(None, "10.81.0.2", 80) is not None
    conf = network("firewall", name="blue", ingressPolicy="same-bridge")
    cni.delete(conf, "", container="blue")
    assert reached(host, "red", *PLACES["blue"]) == [True, True]


def test_containers_are_kept_apart(host: Host, cni: Cni) -> None:
    """isolated: also on one bridge, whether bridged or routed by the host."""
    for name in ("c1", "c2"):
        attach(host, cni, "red", name, ingressPolicy="isolated")
    assert blocked(host, "c1", "10.81.0.3", "fd81::3") == [True, True]
    for name in ("c1", "c2"):
        host.inside(name, "ip", "route", "replace", "10.81.0.0/24", "via", "10.81.0.1", "dev", "eth0", "onlink")
    assert blocked(host, "c1", "10.81.0.3") == [True]
    assert host.ping("c1", "10.81.0.1") and host.fetch(None, "10.81.0.3", 80) is not None


@pytest.mark.parametrize("policy", ["same-bridge", "isolated"])
def test_published_ports_are_open_to_other_networks(host: Host, cni: Cni, policy: str) -> None:
    """By the host's addresses, as from outside; the container's own addresses stay closed to them."""
    lan = host.lan()
    result = attach(host, cni, "red", "red", ingressPolicy=policy)
    _, runtime = published(NETS["red"], [port(8080, 80)])
    netns = "/run/netns/red"
    cni.add({**network("portmap", name="red", runtimeConfig=runtime), "prevResult": result}, netns, container="red")
    attach(host, cni, "blue", "blue", ingressPolicy=policy)
    assert blocked(host, "blue", *PLACES["red"]) == [True, True]
    for address in (lan.host, lan.host6, "10.82.0.1", "fd82::1", "10.81.0.1"):
        assert host.reaches("blue", address, 8080), address
    if policy == "same-bridge":
        attach(host, cni, "red", "red2", ingressPolicy=policy)
        assert host.reaches("red2", lan.host, 8080) and host.reaches("red2", lan.host6, 8080)


def test_changed_policy_replaces_the_previous_one(host: Host, cni: Cni) -> None:
    """The reference's rules are per bridge and are never deleted, so ``isolated`` would stay."""
    attach(host, cni, "red", "c1", ingressPolicy="isolated")
    attach(host, cni, "red", "c2", ingressPolicy="isolated")
    for name in ("c1", "c2"):
        conf = network("firewall", name="red", ingressPolicy="isolated")
        cni.delete(conf, f"/run/netns/{name}", container=name)
    for name in ("c1", "c2"):
        result = cni("ADD", {**NETS["red"]}, netns=f"/run/netns/{name}", container=name)
        assert result.code == 1, "DEL of the firewall only removes the policy, the container stays attached"
    assert reached(host, "c1", "10.81.0.3", "fd81::3") == [True, True]


def test_del_removes_all_elements(host: Host, cni: Cni) -> None:
    seen.forward(host)
    before = host.snapshot()
    attach(host, cni, "red", "c1", ingressPolicy="isolated")
    host.remove_container("c1")
    for conf in (network("firewall", name="red", ingressPolicy="isolated"), NETS["red"]):
        cni.delete(conf, "", container="c1")
        cni.delete(conf, "", container="c1")
        seen.collect(cni, conf)
    assert host.changes(before) == []


@pytest.mark.parametrize("backend", ["", "iptables"])
def test_a_host_that_drops_lets_containers_through(host: Host, cni: Cni, backend: str) -> None:
    """As beside Docker: outgoing packets, their replies and published ports pass, nothing else."""
    lan = host.lan(default_route=True)
    use_tables(host)
    seen.forward(host)
    before = host.snapshot()
    for program in ("iptables", "ip6tables"):
        host.run(program, "-P", "FORWARD", "DROP")
    result = attach(host, cni, "red", "c1")
    host.serve_tcp(lan.name, 80)
    assert blocked(host, "c1", lan.outside, lan.outside6) == [True, True]
    conf = network("firewall", name="red", backend=backend)
    cni.add({**conf, "prevResult": result}, "/run/netns/c1")
    cni.check(conf, result, "/run/netns/c1")
    assert reached(host, "c1", lan.outside, lan.outside6) == [True, True]
    assert blocked(host, lan.name, *PLACES["red"]) == [True, True]
    _, runtime = published(NETS["red"], [port(8080, 80)])
    cni.add({**network("portmap", name="red", runtimeConfig=runtime), "prevResult": result}, "/run/netns/c1")
    assert host.fetch(lan.name, lan.host, 8080) == lan.outside
    assert host.fetch(lan.name, lan.host6, 8080) == lan.outside6
    # A rule of the administrator takes precedence.
    host.run("iptables", "-A", "CNI-ADMIN", "-s", "10.81.0.2", "-j", "DROP")
    assert blocked(host, "c1", lan.outside) == [True] and reached(host, "c1", lan.outside6) == [True]
    host.run("iptables", "-F", "CNI-ADMIN")
    host.run("iptables", "-D", "CNI-FORWARD", "2")
    assert seen.problem(cni, "CHECK", {**conf, "prevResult": result}, "/run/netns/c1")["code"] == 104
    for one in (network("portmap", name="red"), conf, NETS["red"]):
        cni.delete(one, "")
    seen.collect(cni, NETS["red"])
    for program in ("iptables", "ip6tables"):
        host.run(program, "-P", "FORWARD", "ACCEPT")
    assert host.changes(before) == []


def test_a_host_that_accepts_gets_no_iptables(host: Host, cni: Cni) -> None:
    attach(host, cni, "red", "c1", backend="")
    assert "CNI-FORWARD" not in host.run("iptables-save").stdout


@pytest.mark.parametrize(
    ("keys", "code", "said"),
    [
        ({"backend": "magic"}, 7, "magic"),
        ({"backend": "firewalld"}, 2, "firewalld"),
        ({"ingressPolicy": "closed"}, 7, "closed"),
        ({"backend": "iptables", "iptablesAdminChainName": "-j ACCEPT"}, 7, "iptablesAdminChainName"),
    ],
)
def test_what_cannot_be_is_refused(host: Host, cni: Cni, keys: dict[str, str], code: int, said: str) -> None:
    netns = host.container()
    result = cni.add(NETS["red"], netns)
    before = host.snapshot()
    problem = seen.problem(cni, "ADD", network("firewall", name="red", prevResult=result, **keys), netns)
    assert problem["code"] == code and said in problem["msg"]
    assert host.changes(before) == []
