"""The host driver: containers in the host's namespace are recorded; the kernel is unchanged."""

from __future__ import annotations

from itertools import count
from typing import Any

from lab import seen
from lab.calls import Steps, Weft, files, killed
from lab.cases import sampled
from lab.confs import network, pool
from lab.host import Host
from lab.namespaces import OWN
from lab.plugins import Cni

PORTS = {"portMappings": [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]}


def shared(**keys: Any) -> dict[str, Any]:
    return network("weft", name="host", driver="host", **keys)


def test_the_hosts_addresses_are_answered(host: Host, cni: Cni) -> None:
    lan = host.lan()
    before = host.snapshot()
    conf = shared(portmap={}, runtimeConfig=PORTS, ipMasq=True)
    result = cni.add(conf, OWN)
    assert [one["name"] for one in result["interfaces"]] == [lan.link]
    assert [ip["address"] for ip in result["ips"]] == [f"{lan.host}/24", f"{lan.host6}/64"]
    assert [ip["interface"] for ip in result["ips"]] == [0, 0]
    assert host.changes(before) == []
    cni.check(conf, result, OWN)
    second = cni.add(conf, OWN, container="c2")
    cni.delete(conf, OWN)
    cni.delete(conf, OWN)
    assert seen.problem(cni, "CHECK", {**conf, "prevResult": result}, OWN)["code"] == 3
    cni.check(conf, second, OWN, container="c2")
    seen.collect(cni, conf)
    assert seen.problem(cni, "CHECK", {**conf, "prevResult": second}, OWN, container="c2")["code"] == 3
    assert host.changes(before) == []


def test_without_a_default_route_the_result_has_no_addresses(host: Host, cni: Cni) -> None:
    result = cni.add(shared(), OWN)
    assert "interfaces" not in result and "ips" not in result
    cni.delete(shared())


def test_other_namespaces_are_refused(host: Host, cni: Cni) -> None:
    problem = seen.problem(cni, "ADD", shared(), host.container())
    assert problem["code"] == 8 and "share the host's" in problem["details"]


def test_ipam_is_refused(host: Host, cni: Cni) -> None:
    problem = seen.problem(cni, "ADD", shared(ipam=pool("10.80.0.0/24")), OWN)
    assert problem["code"] == 7 and "ipam" in problem["msg"]


def test_nothing_is_done_that_could_fail(host: Host) -> None:
    """No operation exists before or after which an error could be injected."""
    host.lan()
    steps = Steps()
    assert Weft()("ADD", shared(), OWN, watch=steps).ok
    assert Weft()("DEL", shared(), OWN, watch=steps).ok
    assert steps.taken == []


def test_a_kill_at_every_change(host: Host) -> None:
    """Only files change. DEL and GC complete the killed call alternately."""
    lan, weft = host.lan(), Weft()
    before = host.snapshot()
    for command in ("ADD", "DEL"):
        for at in sampled(command, count()):
            if command == "DEL":
                weft.add(shared(), OWN)
            alive = not killed(lambda steps: weft(command, shared(), OWN, watch=steps), at, files=True)  # noqa: B023
            if at % 2 == 0:
                weft.delete(shared(), OWN)
            weft.collect(shared())
            assert files() == [], (command, at)
            if alive:
                break
        assert at > 2
    assert host.changes(before) == [], lan
