"""A network's subnet must be free on this host: on a real kernel, with its routes of all kinds."""

from __future__ import annotations

from typing import Any

from lab import seen
from lab.confs import DEFAULT4, bridge, pool
from lab.host import Host
from lab.plugins import Cni


def conf(name: str, subnet: str, **keys: Any) -> dict[str, Any]:
    made = bridge(pool(subnet, routes=[DEFAULT4]), name=name, bridge=f"b-{name}", isGateway=True, **keys)
    return {**made, "type": "weft", "driver": "bridge"}


def test_a_subnet_in_use_is_refused_and_routes_that_say_nothing_are_not(host: Host, cni: Cni) -> None:
    host.run("ip", "link", "add", "up0", "type", "veth", "peer", "name", "up1")
    for arguments in (
        "link set up0 up",
        "link set up1 up",
        "address add 10.1.2.3/16 dev up0",
        "address add 10.2.0.9/32 dev up0",
        "route add 0.0.0.0/1 dev up0",
        "route add 128.0.0.0/1 dev up0",
        "route add unreachable 10.0.0.0/8 metric 999",
        "route add blackhole 10.77.0.0/16",
        "route add 10.77.0.0/16 via 10.1.0.9 table 100",
        "route add 10.8.0.0/16 via 10.1.0.9",
    ):
        host.run("ip", *arguments.split())
    seen.forward(host)
    before = host.snapshot()
    path = host.container("c1")
    for subnet, owner in (
        ("10.1.64.0/24", "the address 10.1.2.3/16 of this host's up0"),
        ("10.2.0.0/24", "the address 10.2.0.9/32 of this host's up0"),
        ("10.8.7.0/24", "this host's route to 10.8.0.0/16 over up0"),
        ("127.3.0.0/24", "loopback"),
    ):
        problem = seen.problem(cni, "ADD", conf("blue", subnet), path, container="c1")
        assert problem["code"] == 101 and owner in problem["msg"], problem
        assert host.changes(before) == []
    cni.add(conf("blue", "10.77.0.0/24"), path, container="c1")
    assert host.ping("c1", "10.77.0.1")
    problem = seen.problem(cni, "ADD", conf("red", "10.77.0.0/25"), host.container("c2"), container="c2")
    assert "network blue on b-blue, with 1 container" in problem["msg"]
    # A route that comes later refuses no container of a network that is set up.
    host.run("ip", "route", "add", "10.77.0.0/20", "via", "10.1.0.9")
    cni.add(conf("blue", "10.77.0.0/24"), host.container("c3"), container="c3")
    assert host.ping("c3", "10.77.0.1")
