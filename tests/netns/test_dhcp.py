"""Addresses from a DHCP server (dnsmasq), requested over the container's own link."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cni_plugin.dataplane.tables import TABLES
from lab import seen
from lab.abilities import require
from lab.calls import Steps, Weft, killed
from lab.confs import network
from lab.dnsmasq import Dnsmasq, end_keepers
from lab.host import Host, Lan
from lab.plugins import REFERENCE_FOLDER, Cni
from lab.waiting import until
from weft.kernel.linux.kernel import LinuxKernel


@pytest.fixture(autouse=True)
def keepers(host: Host) -> Iterator[None]:
    yield
    end_keepers()


def dhcp(plugin: str = "macvlan", ipam: dict[str, Any] | None = None, **keys: Any) -> dict[str, Any]:
    return network(plugin, {"type": "dhcp", **(ipam or {})}, **keys)


def folder() -> Path:
    [found] = Path("/run/weft").glob("*/dhcp")
    return found


def keeper() -> int:
    return int((folder() / "keeper.lock").read_text())


def lease() -> tuple[Path, dict[str, Any]]:
    [path] = folder().glob("*.json")
    return path, json.loads(path.read_text())


def rewrite_lease(**changes: Any) -> None:
    """Change the only lease's file; the DHCP daemon then rereads it."""
    path, value = lease()
    path.with_suffix(".new").write_text(json.dumps({**value, **changes}))
    path.with_suffix(".new").rename(path)


@pytest.fixture
def wire(host: Host) -> Lan:
    require("macvlan")
    return host.lan()


def test_macvlan_gets_an_address_uses_it_and_gives_it_back(host: Host, cni: Cni, wire: Lan, tmp_path: Path) -> None:
    server = Dnsmasq(
        host, wire, tmp_path, f"--dhcp-option=3,{wire.outside}", "--dhcp-option=6,192.0.2.53",
        "--dhcp-option=15,example.test", "--dhcp-option=119,one.test,two.test",
    )  # fmt: skip
    before = host.snapshot()
    netns = host.container()
    conf = dhcp(master=wire.link)
    result = cni.add(conf, netns)
    [ip] = result["ips"]
    address = ip["address"].split("/")[0]
    assert (ip["address"].endswith("/24"), ip["gateway"], ip["interface"]) == (True, wire.outside, 0)
    assert result["routes"] == [{"dst": "0.0.0.0/0", "gw": wire.outside}]
    assert result["dns"] == {
        "nameservers": ["192.0.2.53"], "domain": "example.test", "search": ["one.test", "two.test"],
    }  # fmt: skip
    assert server.leases == [address]
    seen.agrees(host, result, netns)
    host.serve_tcp(wire.name, 80)
    assert host.fetch("c1", wire.outside, 80) == address
    cni.check(conf, result, netns)
    cni.delete({**conf, "prevResult": result}, netns)
    cni.delete(conf, netns)
    until(lambda: server.leases == [])
    assert list(folder().glob("*.json")) == []
    assert host.changes(before) == []


def test_add_without_a_dhcp_server_leaves_nothing(host: Host, cni: Cni, wire: Lan) -> None:
    before = host.snapshot()
    netns = host.container()
    conf = dhcp(master=wire.link)
    problem = seen.problem(cni, "ADD", conf, netns)
    assert problem["code"] == 11 and "no DHCP server answered" in problem["msg"], problem
    assert seen.links(host, "c1") == ["lo"]
    assert host.changes(before) == []
    cni.delete(conf, netns)


@pytest.mark.parametrize("driver", ["bridge", "ipvlan", "host-device", "ptp"])
def test_other_drivers(host: Host, cni: Cni, wire: Lan, tmp_path: Path, driver: str) -> None:
    require(driver if driver == "ipvlan" else "")
    server = Dnsmasq(host, wire, tmp_path)
    netns = host.container()
    if driver == "bridge":
        host.run("ip", "link", "add", "br0", "address", "02:00:00:00:00:b0", "type", "bridge")
        host.run("ip", "link", "set", wire.link, "master", "br0")
        host.run("ip", "link", "set", "br0", "up")
    key = {"bridge": "bridge", "ipvlan": "master", "host-device": "device"}.get(driver)
    conf = dhcp(driver, **({key: "br0" if key == "bridge" else wire.link} if key else {}))
    before = host.snapshot()
    if driver == "ptp":
        assert "ptp" in seen.problem(cni, "ADD", conf, netns)["msg"]
        assert host.changes(before) == [] and seen.links(host, "c1") == ["lo"]
        return
    result = cni.add(conf, netns)
    assert [ip["address"].split("/")[0] for ip in result["ips"]] == server.leases
    seen.agrees(host, result, netns)
    assert host.ping("c1", wire.outside)
    cni.check(conf, result, netns)
    cni.delete({**conf, "prevResult": result}, netns)
    until(lambda: server.leases == [])


def test_a_port_is_waited_for_before_the_lease_and_announced_after_it(host: Host, wire: Lan, tmp_path: Path) -> None:
    """The server must hear the request, and neighbours the address; the record has it once, the last."""
    Dnsmasq(host, wire, tmp_path)
    netns = host.container()
    host.run("ip", "link", "add", "br0", "address", "02:00:00:00:00:b0", "type", "bridge")
    host.run("ip", "link", "set", wire.link, "master", "br0")
    host.run("ip", "link", "set", "br0", "up")
    weft, conf, steps = Weft(), dhcp("bridge", bridge="br0"), Steps()
    answer = weft("ADD", conf, netns, watch=steps)
    assert answer.ok, answer
    wanted = ("Reachable", "DhcpLease", "LinkAddress")
    applied = [type(operation).__name__ for _, operation in steps.taken]
    assert [name for name in applied if name in wanted] == ["Reachable", "DhcpLease", "LinkAddress", "Reachable"]
    [record] = Weft().service(LinuxKernel(TABLES)).records.all()
    kept = [type(operation).__name__ for operation in record.operations]
    assert kept.count("Reachable") == 1 and kept[-1] == "Reachable", kept
    assert weft.check(conf, answer.document, netns) == ""
    weft.delete(conf, netns)
    assert seen.links(host, "c1") == ["lo"]


def test_features_under_weft_know_the_address(host: Host, cni: Cni, tmp_path: Path) -> None:
    """Restrictive rules precede the link; those that need the address follow the lease."""
    lan = host.lan()
    server = Dnsmasq(host, lan, tmp_path)
    host.run("ip", "link", "add", "br0", "address", "02:00:00:00:00:b0", "type", "bridge")
    host.run("ip", "link", "set", lan.link, "master", "br0")
    host.run("ip", "link", "set", "br0", "up")
    host.run("ip", "address", "flush", "dev", lan.link)
    host.run("ip", "address", "add", f"{lan.host}/24", "dev", "br0")
    conf = {
        **dhcp("weft", driver="bridge", bridge="br0", portmap={}, sbr={}),
        "runtimeConfig": {"portMappings": [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]},
    }
    netns = host.container()
    result = cni.add(conf, netns)
    [address] = server.leases
    host.serve_tcp("c1", 80)
    assert host.fetch(None, lan.host, 8080) is not None
    rules = host.run("nft", "list", "ruleset").stdout
    port = result["interfaces"][1]["name"]
    assert any(port in line and address in line for line in rules.splitlines()), rules
    assert f"from {address} lookup" in host.inside("c1", "ip", "rule").stdout
    host.serve_tcp(lan.name, 80)
    assert host.fetch("c1", lan.outside, 80, source=address) == address
    cni.check(conf, result, netns)
    cni.delete({**conf, "prevResult": result}, netns)
    until(lambda: server.leases == [])
    assert seen.links(host, "c1") == ["lo"]
    # The kernel forgets the next hops of its packets by itself.
    left = host.run("nft", "list", "ruleset").stdout.splitlines()
    assert [line for line in left if address in line and "expires" not in line] == []
    assert "veth" not in " ".join(set(seen.links(host)) - {lan.link})


def test_classless_routes_beat_the_router_and_priority_is_the_metric(
    host: Host, cni: Cni, wire: Lan, tmp_path: Path
) -> None:
    Dnsmasq(
        host, wire, tmp_path, "--dhcp-option=3,192.0.2.9", f"--dhcp-option=121,198.51.100.0/24,{wire.outside}",
        "--dhcp-option=33,203.0.113.0,192.0.2.9",
    )  # fmt: skip
    netns = host.container()
    result = cni.add(dhcp(ipam={"priority": 50}, master=wire.link), netns)
    assert result["routes"] == [{"dst": "198.51.100.0/24", "gw": wire.outside, "priority": 50}]
    seen.agrees(host, result, netns)


def test_options_are_sent_and_the_client_is_known(host: Host, cni: Cni, wire: Lan, tmp_path: Path) -> None:
    server = Dnsmasq(host, wire, tmp_path)
    ipam = {
        "provide": [
            {"option": "host-name", "fromArg": "K8S_POD_NAME", "value": "other"},
            {"option": "60", "value": "weft-test"},
        ],
        "request": [{"skipDefault": True, "option": "subnet-mask"}],
    }
    result = cni.add(dhcp(ipam=ipam, master=wire.link), host.container(), args="IgnoreUnknown=1;K8S_POD_NAME=pod-7")
    assert "routes" not in result
    assert "vendor class: weft-test" in server.log
    assert "client provides name: pod-7" in server.log
    client = (tmp_path / "leases").read_text().split()[4]
    assert bytes.fromhex(client.replace(":", "")) == b"\0c1/net/eth0"


def test_lease_is_renewed_after_sigkill_of_the_daemon(host: Host, cni: Cni, wire: Lan, tmp_path: Path) -> None:
    server = Dnsmasq(host, wire, tmp_path)
    conf = dhcp(master=wire.link)
    netns = host.container()
    result = cni.add(conf, netns)
    first = keeper()
    assert os.stat(folder() / "keeper.sock").st_mode & 0o777 == 0o600
    os.kill(first, signal.SIGKILL)
    before = server.log.count("DHCPACK")
    _, value = lease()
    rewrite_lease(since=value["since"] - 65)
    cni.check(conf, result, netns)
    assert keeper() != first
    until(lambda: server.log.count("DHCPACK") == before + 1)
    until(lambda: lease()[1]["since"] > value["since"])
    assert "DHCPDISCOVER" not in server.log.split("DHCPACK")[-2], "the lease was requested anew"
    cni.check(conf, result, netns)


def test_lease_is_rebound_with_another_server(host: Host, cni: Cni, wire: Lan, tmp_path: Path) -> None:
    """Between T2 and expiry any DHCP server may extend the lease."""
    Dnsmasq(host, wire, tmp_path)
    conf = dhcp(master=wire.link)
    netns = host.container()
    result = cni.add(conf, netns)
    _, value = lease()
    rewrite_lease(since=value["since"] - 110, server="192.0.2.77", server_mac="02:00:00:00:00:77")
    cni.check(conf, result, netns)
    until(lambda: lease()[1]["since"] > value["since"])
    assert lease()[1]["server"] == wire.outside


@pytest.mark.parametrize("how", ["expiry", "refusal"])
def test_the_link_goes_down_with_the_lease(host: Host, cni: Cni, wire: Lan, tmp_path: Path, how: str) -> None:
    server = Dnsmasq(host, wire, tmp_path)
    conf = dhcp(master=wire.link)
    netns = host.container()
    result = cni.add(conf, netns)
    _, value = lease()
    server.stop()
    if how == "refusal":
        (tmp_path / "other").mkdir()
        Dnsmasq(host, wire, tmp_path / "other", "--dhcp-range=192.0.2.200,192.0.2.210,255.255.255.0,2m",
               f"--dhcp-host=id:00:{b'c1/net/eth0'.hex(':')},192.0.2.205")  # fmt: skip
    rewrite_lease(since=value["since"] - (130 if how == "expiry" else 65))
    cni("CHECK", {**conf, "prevResult": result}, netns=netns)
    until(lambda: lease()[1]["lost"])
    assert seen.link(host, "eth0", "c1")["operstate"] == "DOWN"
    problem = seen.problem(cni, "CHECK", {**conf, "prevResult": result}, netns)
    assert problem["code"] == 104 and "lost" in problem["msg"]
    cni.delete(conf, netns)
    assert list(folder().glob("*.json")) == []


def test_delete_works_when_the_container_and_the_keeper_are_gone(
    host: Host, cni: Cni, wire: Lan, tmp_path: Path
) -> None:
    Dnsmasq(host, wire, tmp_path)
    conf = dhcp(master=wire.link)
    netns = host.container()
    cni.add(conf, netns)
    os.kill(keeper(), signal.SIGKILL)
    host.remove_container()
    cni.delete(conf, netns)
    cni.delete(conf, netns)
    assert list(folder().glob("*.json")) == []


def test_under_the_references_macvlan(host: Host, cni: Cni, wire: Lan, tmp_path: Path) -> None:
    """As the ipam plugin ``dhcp``, weft serves the main plugin of another project."""
    if not (REFERENCE_FOLDER / "macvlan").exists():
        pytest.skip("the reference plugins are not in /usr/lib/cni (Debian: containernetworking-plugins)")
    reference = Cni(REFERENCE_FOLDER)
    server = Dnsmasq(host, wire, tmp_path)
    conf = {**dhcp(master=wire.link), "cniVersion": "1.0.0"}
    netns = host.container()
    path = f"{cni.folder}:{REFERENCE_FOLDER}"
    result = reference.add(conf, netns, path=path)
    assert [ip["address"].split("/")[0] for ip in result["ips"]] == server.leases
    assert host.ping("c1", wire.outside)
    reference.check(conf, result, netns, path=path)
    reference.delete({**conf, "prevResult": result}, netns, path=path)
    until(lambda: server.leases == [])


def test_a_kill_between_any_two_steps_leaves_nothing_that_delete_does_not_end(
    host: Host, wire: Lan, tmp_path: Path
) -> None:
    server = Dnsmasq(host, wire, tmp_path)
    netns = host.container()
    conf = dhcp(master=wire.link)
    weft = Weft()
    before = host.snapshot()
    at = 0
    while killed(lambda steps: weft("ADD", conf, netns, watch=steps), at):
        weft.delete(conf, netns)
        assert seen.links(host, "c1") == ["lo"] and list(Path("/run/weft").glob("*/dhcp/*.json")) == []
        at += 1
    assert at >= 5
    assert len(server.leases) == 1
    weft.delete(conf, netns)
    until(lambda: server.leases == [])
    assert host.changes(before) == []


def test_a_fault_after_the_lease_gives_it_back(host: Host, wire: Lan, tmp_path: Path) -> None:
    server = Dnsmasq(host, wire, tmp_path)
    netns = host.container()
    conf = dhcp(master=wire.link)
    steps = Steps(5)
    answer = Weft()("ADD", conf, netns, watch=steps)
    assert not answer.ok and "a fault that a test made" in answer.text
    assert "DhcpLease" in [type(operation).__name__ for _, operation in steps.taken[:5]], steps.taken
    until(lambda: "DHCPRELEASE" in server.log and server.leases == [])
    assert seen.links(host, "c1") == ["lo"]
