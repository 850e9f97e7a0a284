"""``bandwidth`` with real traffic: both directions at the configured rate, no qdisc after DEL."""

from __future__ import annotations

import socket
import threading
import time
from typing import Any

import pytest

from lab import namespaces, seen
from lab.confs import bridge, dual, network, ptp
from lab.host import Host
from lab.plugins import Cni

RATE = 4_000_000
LIMITS = {"ingressRate": RATE, "ingressBurst": 400_000, "egressRate": RATE, "egressBurst": 400_000}
SECONDS = 1.5
DRIVERS = [bridge(dual(), isGateway=True), ptp(dual())]


def limited(driver: dict[str, Any], **keys: Any) -> dict[str, Any]:
    return network("bandwidth", name=driver["name"], **(keys or LIMITS))


def speed(host: Host, sender: str | None, receiver: str | None, address: str) -> float:
    """Received bits per second of a TCP stream that is sent for a moment without pacing."""
    places = [host.path if name is None else f"/run/netns/{name}" for name in (sender, receiver)]
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with namespaces.inside(places[1]):
        server = socket.create_server(("", 5001), family=family)
    with namespaces.inside(places[0]):
        client = socket.socket(family)
    arrived = []

    def receive() -> None:
        connection, _ = server.accept()
        connection.settimeout(0.2)
        deadline, count = time.monotonic() + SECONDS, 0
        while time.monotonic() < deadline:
            try:
                count += len(connection.recv(1 << 16))
            except TimeoutError:
                continue
        arrived.append(count)
        connection.close()

    thread = threading.Thread(target=receive)
    thread.start()
    with server, client:
        client.settimeout(SECONDS * 2)
        client.connect((address, 5001))
        try:
            while thread.is_alive():
                client.send(b"x" * 8192)
        except OSError:
            pass
        thread.join()
    return arrived[0] * 8 / SECONDS


def limited_to(rate: float, *way: Any) -> bool:
    """Whether the rate is the limit; retried, as a loaded machine only ever slows a stream."""
    for _ in range(4):
        found = speed(*way)
        if found > 0.5 * rate:
            break
    return 0.5 * rate < found < 1.5 * rate


@pytest.mark.parametrize("driver", DRIVERS, ids=lambda conf: str(conf["type"]))
def test_both_directions_are_as_fast_as_allowed(host: Host, cni: Cni, driver: dict[str, Any]) -> None:
    netns = host.container()
    result = cni.add(driver, netns)
    before = host.snapshot()
    limits = limited(driver)
    told = cni.add({**limits, "prevResult": result}, netns)
    assert told["interfaces"][:-1] == result["interfaces"] and "sandbox" not in told["interfaces"][-1]
    ifb = seen.link(host, told["interfaces"][-1]["name"])
    assert (ifb["linkinfo"]["info_kind"], ifb["address"]) == ("ifb", told["interfaces"][-1]["mac"])
    cni.check(limits, told, netns)
    assert limited_to(RATE, host, None, "c1", "10.80.0.2")
    assert limited_to(RATE, host, "c1", None, "fd80::1" if driver["type"] == "bridge" else "10.80.0.1")
    cni.delete(limits, "")
    cni.delete(limits, netns)
    assert host.changes(before) == []
    assert any(speed(host, None, "c1", "10.80.0.2") > 10 * RATE for _ in range(4))
    cni.check(driver, result, netns)


def test_two_interfaces_of_one_container_have_their_own_limits(host: Host, cni: Cni) -> None:
    netns = host.container()
    names = []
    for ifname in ("eth0", "eth1"):
        result = cni.add(DRIVERS[0], netns, ifname=ifname)
        names.append(
            cni.add({**limited(DRIVERS[0]), "prevResult": result}, netns, ifname=ifname)["interfaces"][-1]["name"]
        )
    assert len(set(names)) == 2
    cni.delete(limited(DRIVERS[0]), netns, ifname="eth0")
    assert names[0] not in seen.links(host) and names[1] in seen.links(host)


def test_the_largest_burst_and_any_case_of_keys(host: Host, cni: Cni) -> None:
    """The keys as containerd writes them."""
    netns = host.container()
    result = cni.add(DRIVERS[0], netns)
    burst = 2**32 - 1
    runtime = {"Bandwidth": {"IngressRate": RATE, "IngressBurst": burst, "EgressRate": RATE, "EgressBurst": burst}}
    conf = {**network("bandwidth"), "runtimeConfig": runtime}
    told = cni.add({**conf, "prevResult": result}, netns)
    cni.check(conf, told, netns)
    assert "rate 4Mbit" in host.run("tc", "qdisc", "show", "dev", told["interfaces"][-1]["name"]).stdout
    # A rate in the network configuration overrides all of runtimeConfig.
    other = host.container("c2")
    result = cni.add(DRIVERS[0], other, container="c2")
    conf = {**conf, "ingressRate": RATE, "ingressBurst": RATE, "prevResult": result}
    assert len(cni.add(conf, other, container="c2")["interfaces"]) == 3


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"ingressRate": RATE}, "ingressRate"),
        ({"egressBurst": RATE}, "egressBurst"),
        ({"ingressRate": RATE, "ingressBurst": 2**35}, "4 GiB"),
        ({"ingressRate": -1, "ingressBurst": 1}, "ingressRate"),
    ],
)
def test_what_cannot_be_is_refused(host: Host, cni: Cni, keys: dict[str, int], said: str) -> None:
    netns = host.container()
    result = cni.add(DRIVERS[0], netns)
    before = host.snapshot()
    problem = seen.problem(cni, "ADD", {**limited(DRIVERS[0], **keys), "prevResult": result}, netns)
    assert problem["code"] == 7 and said in problem["msg"]
    assert host.changes(before) == []


def test_without_limits_nothing_changes_and_prevresult_is_required(host: Host, cni: Cni) -> None:
    netns = host.container()
    result = cni.add(DRIVERS[0], netns)
    assert cni.add({**network("bandwidth"), "prevResult": result}, netns) == result
    problem = seen.problem(cni, "ADD", network("bandwidth"), netns)
    assert problem["code"] == 7 and "prevResult" in problem["msg"]


@pytest.mark.parametrize("end", ["rate", "ifb", "filter"])
def test_check_reports_manual_changes(host: Host, cni: Cni, end: str) -> None:
    netns = host.container()
    result = cni.add(DRIVERS[0], netns)
    limits = limited(DRIVERS[0])
    told = cni.add({**limits, "prevResult": result}, netns)
    veth, ifb = told["interfaces"][1]["name"], told["interfaces"][-1]["name"]
    match end:
        case "rate":
            host.run(*f"tc qdisc replace dev {veth} root tbf rate 9mbit burst 50000 limit 62500".split())
        case "ifb":
            host.run("ip", "link", "delete", ifb)
        case "filter":
            host.run("tc", "qdisc", "delete", "dev", veth, "ingress")
    problem = seen.problem(cni, "CHECK", {**limits, "prevResult": told}, netns)
    assert problem["code"] == 104 and (veth in problem["msg"] or ifb in problem["msg"])
    cni.delete(limits, netns)


def test_weft_as_one_plugin_limits_too(host: Host, cni: Cni) -> None:
    netns = host.container()
    keys = {key: value for key, value in DRIVERS[0].items() if key not in ("type", "name")}
    conf = network("weft", name="one", driver="bridge", bandwidth=LIMITS, **keys)
    cni.check(conf, cni.add(conf, netns), netns)
    assert speed(host, None, "c1", "10.80.0.2") < 1.5 * RATE
    cni.delete(conf, netns)
    assert seen.links(host) == ["lo", "br0"]
