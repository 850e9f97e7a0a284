"""weft gc, ipam and doctor: leftovers, owners of addresses, and findings."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from dataclasses import replace
from ipaddress import ip_address, ip_interface, ip_network
from pathlib import Path

import pytest

from cni_plugin.cli import agents, docker, engine
from cni_plugin.networks import requirements
from cni_plugin.ops import Veth
from cni_plugin.plan import modules
from cni_plugin.service.records import Phase
from lab.waiting import until
from weft import events
from weft.kernel.linux.probe import Ability
from weft.kernel.values import Element, KernelRoute
from weft.types import Route


@pytest.fixture
def blue(run):
    run.good("network", "create", "blue", "--subnet", "10.7.0.0/24")
    for name in ("c1", "c2"):
        run.container(name)
        run.good("attach", "blue", name)
    return run


def orphan(run) -> None:
    """A link and an nftables element of an attachment without a record."""
    run.kernel.host.add_link("veth0123456789", "dummy", alias="weft:0123456789abcdef:c9/eth0 on gone")
    run.kernel.rules.add([Element("masquerade4", (ip_interface("10.7.0.99").ip,), mark="weft:0123456789abcdef")])


def lease(run, address: str, age: float) -> None:
    path = run.folder / "leases/blue" / address
    path.write_bytes(b"c9\r\neth0")
    then = time.time() - age
    os.utime(path, (then, then))


def messages(said) -> list[str]:
    return [one["what"] for one in said.json["findings"]]


def test_a_healthy_host_has_no_findings(blue) -> None:
    said = blue("doctor", "--json")
    assert (said.code, messages(said)) == (0, [])
    assert "No problems found." in blue.good("doctor")
    blue.good("detach", "blue", "c1")
    blue.good("detach", "blue", "c2")
    assert blue("doctor").code == 0


@pytest.mark.parametrize("command", [("gc",), ("doctor", "--repair")])
def test_what_is_freed_is_an_event(blue, monkeypatch: pytest.MonkeyPatch, command: tuple[str, ...]) -> None:
    recorded: list[tuple[str, dict[str, events.Value]]] = []
    monkeypatch.setattr(events, "record", lambda folder, event, fields: recorded.append((event, dict(fields))))
    blue(*command)
    assert recorded == []
    lease(blue, "10.7.0.50", 3600)
    blue.kernel.remove("/run/netns/c2")
    blue(*command)
    (deleted, of_c2), (collected, summary) = recorded
    assert (deleted, of_c2["container"], of_c2["network"], of_c2["source"]) == ("del", "weft-c2", "blue", "gc")
    assert collected == "gc" and "c2/eth0" in str(summary["freed"]) and "10.7.0.50" in str(summary["freed"])


def test_doctor_finds_leftovers_and_gc_clears_them(blue) -> None:
    orphan(blue)
    lease(blue, "10.7.0.50", 3600)
    lease(blue, "10.7.0.51", 5)
    found = messages(blue("doctor", "--json"))
    assert found == [
        "link veth0123456789 has weft's mark and belongs to no attachment",
        "nftables element masquerade4 10.7.0.99 has weft's mark and belongs to no attachment",
        "address 10.7.0.50 on blue is leased to c9/eth0, which is gone",
    ]
    before = blue.kernel.dump()
    assert "would free link veth0123456789" in blue.good("gc", "--dry-run")
    assert blue.kernel.dump() == before
    assert blue.good("gc").splitlines() == [
        "freed link veth0123456789",
        "freed masquerade4 10.7.0.99",
        "freed address 10.7.0.50 of c9/eth0 on blue",
    ]
    assert blue.good("gc") == "nothing to remove\n"
    assert (blue.folder / "leases/blue/10.7.0.51").exists()
    assert blue.good("check").count("ok ") == 2


def test_doctor_finds_dead_and_incomplete_attachments(blue) -> None:
    blue.kernel.remove("/run/netns/c1")
    record = next(one for one in blue.service.records.all() if one.attachment.container == "weft-c2")
    blue.service.records.write(replace(record, phase=Phase.ADDING))
    found = messages(blue("doctor", "--json"))
    assert "weft-c1/eth0 on blue: its network namespace /run/netns/c1 no longer exists" in found
    assert "weft-c2/eth0 on blue: it is only partially attached" in found
    assert "half attached" in blue.good("ps")
    blue.good("gc")
    assert blue("ps", "-q").out == ""
    assert blue("doctor").code == 0


def _pair(run, container: str) -> str:
    """The host's end of a container's veth pair."""
    [record] = [one for one in run.service.records.all() if one.attachment.container == container]
    return next(one.host for one in record.operations if isinstance(one, Veth))


def test_a_link_that_is_gone_is_one_finding_and_made_again(blue) -> None:
    before, link = blue.kernel.dump(), _pair(blue, "weft-c2")
    blue.kernel.host.delete_link(link)
    gone = f"the container's link eth0 ({link} on the host) is missing"
    what = f"{gone}, with what was set up on it"
    assert messages(blue("doctor", "--json")) == [f"weft-c2/eth0 on blue: {what}"]
    [_, of_c2] = blue("check", "--json").json
    assert (of_c2["lacks"], [one["command"] for one in of_c2["remedies"]]) == ([what], ["weft doctor --repair"])
    said = blue.good("doctor", "--repair")
    assert f"1 problem repaired\n  - weft-c2/eth0 on blue: {what}" in said and "No problems found." in said
    assert _without_indexes(blue.kernel.dump()) == _without_indexes(before)
    assert blue.good("check").count("ok ") == 2


def _without_indexes(value: object) -> object:
    """A dump without what the kernel gives to a link in the order of their creation."""
    text = json.dumps(value, default=str, sort_keys=True)
    return re.sub(r'"(index|peer_index)": \d+', "", text)


def test_a_bridge_that_is_gone_is_one_finding(blue) -> None:
    blue.kernel.host.delete_link("weft-blue")
    what = "the bridge weft-blue is missing, with what was set up on it"
    assert messages(blue("doctor", "--json")) == [f"network blue: {what}"]
    assert {tuple(one["lacks"]) for one in blue("check", "--json").json} == {(what,)}
    assert f"1 problem repaired\n  - network blue: {what}" in blue.good("doctor", "--repair")
    assert blue.good("check").count("ok ") == 2


def test_a_link_that_another_has_the_name_of_is_left(blue) -> None:
    """One that somebody has made in its place is not deleted; the message says what is to be done."""
    container = blue.kernel.open("/run/netns/c2")
    container.delete_link("eth0")
    container.add_link("eth0", "dummy")
    said = blue("doctor", "--repair", "--json")
    assert (said.code, said.json["repaired"]) == (1, [])
    assert [one["command"] for one in said.json["findings"]] == [None]
    assert container.link("eth0").kind == "dummy"


def test_nothing_is_put_on_a_link_that_another_made(blue) -> None:
    """Also where something else of the container is made again."""
    container = blue.kernel.open("/run/netns/c2")
    blue.good("network", "create", "red", "--subnet", "10.8.0.0/24")
    blue.good("attach", "red", "c2", "--ifname", "eth1")
    for name in ("eth0", "eth1"):
        container.delete_link(name)
    container.add_link("eth0", "dummy", up=True)
    assert "1 problem repaired" in blue("doctor", "--repair").out
    assert container.link("eth1").kind == "veth" and container.addresses("eth0", 4) == ()


@pytest.mark.parametrize("only_address", [False, True])
def test_an_address_that_another_container_has_now_is_not_given_again(blue, only_address: bool) -> None:
    """The lease was removed by somebody, and taken by another container."""
    container = blue.kernel.open("/run/netns/c2")
    blue.good("ipam", "release", "blue", "10.7.0.3", "--force")
    lease(blue, "10.7.0.3", 0)
    if only_address:
        container.delete_address("eth0", ip_interface("10.7.0.3/24"))
    else:
        container.delete_link("eth0")
    before = blue.kernel.dump()
    said = blue("doctor", "--repair", "--json")
    assert said.json["repaired"] == [] and {one["mends"] for one in said.json["findings"]} == {"person"}
    assert any("10.7.0.3 is leased to c9/eth0" in one for one in messages(said))
    assert blue.kernel.dump() == before
    # Nor where something else of the container is made again.
    blue.good("network", "create", "red", "--subnet", "10.8.0.0/24")
    blue.good("attach", "red", "c2", "--ifname", "eth1")
    container.delete_link("eth1")
    assert "1 problem repaired" in blue("doctor", "--repair").out
    assert container.link("eth1") is not None
    assert container.link("eth0") is None or ip_interface("10.7.0.3/24") not in container.addresses("eth0")


def test_an_address_with_another_prefix_length_is_left(blue) -> None:
    container = blue.kernel.open("/run/netns/c2")
    container.delete_address("eth0", ip_interface("10.7.0.3/24"))
    container.add_address("eth0", ip_interface("10.7.0.3/16"))
    said = blue("doctor", "--repair", "--json")
    assert "weft-c2/eth0 on blue: eth0 lacks the address 10.7.0.3/24" in messages(said)
    assert container.addresses("eth0", 4) == (ip_interface("10.7.0.3/16"),)


def test_doctor_finds_drift_and_repairs_what_it_can(blue) -> None:
    blue.kernel.rules.remove()
    blue.kernel.host.set_sysctl("net/ipv4/ip_forward", "0")
    blue.kernel.host.change_link("weft-blue", up=False)
    blue.kernel.open("/run/netns/c2").delete_address("eth0", ip_interface("10.7.0.3/24"))
    found = messages(blue("doctor", "--json"))
    assert "IPv4 forwarding is disabled (net/ipv4/ip_forward is 0)" in found
    assert "network blue: the table inet weft is missing" in found
    assert "network blue: the bridge weft-blue is down" in found
    assert "weft-c2/eth0 on blue: eth0 lacks the address 10.7.0.3/24" in found
    assert len(found) == len(set(found))
    checked = {one["container"]: one for one in blue("check", "--json").json}
    assert {one["command"] for one in checked["weft-c1"]["remedies"]} == {"weft doctor --repair"}
    of_c2 = checked["weft-c2"]
    commands = dict(zip(of_c2["lacks"], (one["command"] for one in of_c2["remedies"]), strict=True))
    assert commands["the table inet weft is missing"] == "weft doctor --repair"
    assert commands["eth0 lacks the address 10.7.0.3/24"] == "weft doctor --repair"
    assert blue("check").out.count("run weft doctor --repair to restore it") == 2
    said = blue("doctor", "--repair", "--json")
    assert (said.code, said.json["findings"]) == (0, [])
    assert {one["what"] for one in said.json["repaired"]} == set(found)
    assert blue.good("check").count("ok ") == 2


def test_a_route_that_another_replaces_is_left(blue) -> None:
    """A container may have a default route of its own; two would be one too many."""
    container = blue.kernel.open("/run/netns/c2")
    [route] = [one for one in container.routes(link="eth0") if one.route.destination.prefixlen == 0]
    container.delete_route(route)
    other = replace(route, route=replace(route.route, gateway=ip_address("10.7.0.9")))
    container.add_route(other)
    [found] = blue("doctor", "--repair", "--json").json["findings"]
    assert "is now 0.0.0.0/0 via 10.7.0.9" in found["what"] and found["mends"] == "person"
    container.delete_route(other)
    assert "the route 0.0.0.0/0 via 10.7.0.1 dev eth0 is missing" in blue.good("doctor", "--repair")
    assert blue.good("check").count("ok ") == 2


def test_an_address_that_is_lost_is_leased_to_nobody_else(blue) -> None:
    """A lease is not taken again: its address may be another's by now."""
    (blue.folder / "leases/blue/10.7.0.3").unlink()
    [found] = blue("doctor", "--repair", "--json").json["findings"]
    assert "10.7.0.3" in found["what"] and found["command"] is None


def test_doctor_counts_only_what_it_has_repaired(blue) -> None:
    """A restored rule counts; a gateway address that conflicts with another address of the bridge does not."""
    blue.kernel.host.delete_address("weft-blue", ip_interface("10.7.0.1/24"))
    blue.kernel.host.add_address("weft-blue", ip_interface("10.99.0.1/24"))
    blue.kernel.host.set_sysctl("net/ipv4/ip_forward", "0")
    said = blue("doctor", "--repair").out
    assert "2 problems repaired\n  - IPv4 forwarding is disabled" in said
    assert "  - network blue: net/ipv4/conf/weft-blue/forwarding is 0 instead of 1" in said
    assert "1 problem left\n  - network blue: weft-blue lacks the gateway address 10.7.0.1/24" in said
    assert "--repair fixes" not in said


def test_doctor_finds_conflicting_networks(blue) -> None:
    for name, subnet in (("red", "10.7.0.128/25"), ("green", "192.168.77.0/24")):
        content = blue.list("blue") | {"name": name}
        content["plugins"][0] |= {"ipam": {"type": "host-local", "ranges": [[{"subnet": subnet}]]}}
        content["plugins"][0]["bridge"] = "weft-blue" if name == "green" else "weft-red"
        (blue.config / f"{name}.conflist").write_text(json.dumps(content))
    blue.kernel.host.add_link("lan0", "dummy", up=True)
    blue.kernel.host.add_address("lan0", ip_interface("192.168.77.5/24"))
    (blue.config / "zz.conflist").write_text("[]")
    found = messages(blue("doctor", "--json"))
    assert "networks blue and red overlap: 10.7.0.0/24 and 10.7.0.128/25" in found
    assert "networks blue and green use the same bridge weft-blue" in found
    assert any(
        one.startswith("subnet 192.168.77.0/24 of network green overlaps with") and "lan0" in one for one in found
    )
    assert any("zz.conflist" in one for one in found)


def test_doctor_accepts_a_macvlan_network_in_the_subnet_of_its_parent(run) -> None:
    for name in ("lan0", "lan1"):
        run.kernel.host.add_link(name, "dummy", up=True)
    run.kernel.host.add_address("lan0", ip_interface("192.168.77.5/24"))
    run.good("network", "create", "wire", "-d", "macvlan", "-o", "parent=lan0", "--subnet", "192.168.77.0/24",
             "--ip-range", "192.168.77.128/25")  # fmt: skip
    assert messages(run("doctor", "--json")) == []
    content = run.list("wire")
    content["plugins"][0]["master"] = "lan1"
    (run.config / "wire.conflist").write_text(json.dumps(content))
    [found] = messages(run("doctor", "--json"))
    assert found.startswith("subnet 192.168.77.0/24 of network wire overlaps with") and "lan0" in found


@pytest.mark.parametrize("driver", ["macvlan", "ipvlan"])
def test_a_network_on_the_lan_leases_neither_the_hosts_nor_the_routers_address(run, driver: str) -> None:
    """Without a range; doctor tells of a network that would."""
    run.kernel.host.add_link("lan0", "dummy", up=True)
    for address in ("192.168.77.5/24", "fd77::5/64"):
        run.kernel.host.add_address("lan0", ip_interface(address))
    router = Route(ip_network("0.0.0.0/0"), ip_address("192.168.77.254"))
    run.kernel.host.add_route(KernelRoute(router, "lan0", protocol=4))
    run.good("network", "create", "wire", "-d", driver, "-o", "parent=lan0", "--subnet", "192.168.77.0/24",
             "--subnet", "fd77::/64")  # fmt: skip
    content = run.list("wire")
    ranges = content["plugins"][0]["ipam"]["ranges"]
    assert [one["exclude"] for [one] in ranges] == [["192.168.77.5", "192.168.77.254"], ["fd77::5"]]
    assert messages(run("doctor", "--json")) == []
    for [one] in ranges:
        del one["exclude"]
    (run.config / "wire.conflist").write_text(json.dumps(content))
    assert len(messages(run("doctor", "--json"))) == 3


def test_doctor_accepts_podmans_default_network_which_has_no_file(blue) -> None:
    for name in ("podman", "other"):
        content = blue.list("blue") | {"name": name}
        content["plugins"][0] |= {"bridge": f"br-{name}", "ipam": {}}
        (blue.config / f"{name}.conflist").write_text(json.dumps(content))
        blue.container(f"in-{name}")
        blue.good("attach", name, f"in-{name}")
        blue.good("detach", name, f"in-{name}")
        (blue.config / f"{name}.conflist").unlink()
    assert messages(blue("doctor", "--json")) == ["network other is set up but neither defined nor used"]


def test_doctor_finds_damaged_records(blue) -> None:
    record = next(one for one in blue.service.records.all() if one.attachment.container == "weft-c1")
    path = blue.service.records.path(record.attachment)
    with open(path, "ab") as file:
        file.write(b"x")
    said = blue("doctor", "--json")
    assert said.code == 1
    assert any("was damaged or no regular file, renamed" in one for one in messages(said))


def test_missing_abilities_are_findings_only_if_needed(blue) -> None:
    blue.abilities = (
        Ability("CAP_NET_ADMIN", "everything", essential=True),
        Ability("ipvlan", "driver ipvlan", "this kernel lacks the module ipvlan"),
    )
    out = blue.good("doctor")
    assert "no: this kernel lacks the module ipvlan" in out
    blue.abilities += (Ability("nftables nat", "masquerade and portmap", "no such thing"),)
    said = blue("doctor", "--json")
    assert (said.code, messages(said)) == (1, ["nftables nat: no such thing"])
    assert "network blue requires it" in said.json["findings"][0]["remedy"]
    assert {one["there"] for one in said.json["abilities"]} == {True, False}
    blue.abilities = (Ability("CAP_NET_ADMIN", "everything", "run as root", essential=True),)
    assert blue("doctor").code == 1


@pytest.mark.parametrize("joined", [False, True])
def test_a_driver_is_usable_where_all_that_it_needs_is_there(
    blue, monkeypatch: pytest.MonkeyPatch, joined: bool
) -> None:
    monkeypatch.setattr(agents, "is_of_cluster", lambda: joined)
    blue.abilities = tuple(
        Ability(one.name, one.serves, "Unknown device type" if one.name in ("ipvlan", "bridge VLAN filtering") else "")
        for one in requirements.trials()
    )
    found = {one["name"]: one["problem"] for one in blue("doctor", "--json").json["drivers"]}
    assert found.keys() == set(modules.drivers())
    assert found["ipvlan"] == "ipvlan: Unknown device type"
    assert found["bridge"] == found["macvlan"] == ""  # networks without VLANs
    assert found["overlay"].startswith("" if joined else "this host is in no cluster: weft cluster init")
    assert bool(found["overlay"]) is not joined
    lines = {line.split()[0]: line.split()[1] for line in blue("doctor").out.split("Drivers\n")[1].splitlines()[1:4]}
    assert set(lines.values()) <= {"yes", "no:"}
    blue.abilities = (Ability("CAP_NET_ADMIN", "everything", "run as root", essential=True),)
    problems = {one["problem"] for one in blue("doctor", "--json").json["drivers"]}
    assert problems == {"CAP_NET_ADMIN: run as root"}


def test_ipam_lists_owners_and_usage(blue) -> None:
    lease(blue, "10.7.0.50", 3600)
    lines = blue.good("ipam", "ls", "blue").splitlines()
    assert [line.split()[:3] for line in lines[1:4]] == [
        ["blue", "10.7.0.2", "weft-c1/eth0"],
        ["blue", "10.7.0.3", "weft-c2/eth0"],
        ["blue", "10.7.0.50", "c9/eth0"],
    ]
    assert lines[1].endswith("attachment") and lines[3].endswith("1h    -")
    assert lines[-1].split(maxsplit=2) == ["blue", "10.7.0.1-10.7.0.254", "3 of 253"]
    assert json.loads(blue.good("ipam", "ls", "--json"))["ranges"][0]["used"] == 3


def test_ipam_release_refuses_addresses_in_use(blue) -> None:
    lease(blue, "10.7.0.50", 3600)
    assert blue.good("ipam", "release", "blue", "10.7.0.50") == "10.7.0.50\n"
    assert blue("ipam", "release", "blue", "10.7.0.50").code == 3
    said = blue("ipam", "release", "blue", "10.7.0.2")
    assert said.code == 4
    assert "in use by weft-c1/eth0" in said.err
    assert (blue.folder / "leases/blue/10.7.0.2").exists()
    blue.good("ipam", "release", "--force", "blue", "10.7.0.2")
    assert not (blue.folder / "leases/blue/10.7.0.2").exists()
    assert blue("ipam", "release", "blue", "nonsense").code == 2


def test_a_host_without_any_state_has_no_findings(run) -> None:
    assert run.good("gc") == "nothing to remove\n"
    assert run("doctor").code == 0
    assert len(run.good("ps").splitlines()) == 1
    assert run.good("check") == "no attachments\n"


def test_doctor_names_an_engine_of_another_installation(run, monkeypatch: pytest.MonkeyPatch) -> None:
    with subprocess.Popen(["sleep", "600"]) as other:
        monkeypatch.setattr(engine, "running", lambda: engine.Running(other.pid, "", 0.0, 0))
        found = {one["what"]: one["remedy"] for one in run("doctor", "--json").json["findings"]}
        other.kill()
    assert found[f"the engine, process {other.pid}, runs other code than this command"] == "run weft up --restart"


def test_a_daemon_is_of_other_code_once_a_file_was_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a checkout that was brought up to date, whose version is the same."""
    before = time.time_ns() - 1_000_000_000
    monkeypatch.setattr(agents.code, "changed_ns", lambda: before)
    with subprocess.Popen([sys.executable, "-c", "input()", agents.code.ROOT], stdin=subprocess.PIPE) as daemon:
        arguments = Path(f"/proc/{daemon.pid}/cmdline")
        until(arguments.read_bytes, what="the arguments, which a process has only at the end of its exec")
        assert agents.runs_own_code(daemon.pid)
        monkeypatch.setattr(agents.code, "changed_ns", lambda: time.time_ns() + 1_000_000_000)
        assert not agents.runs_own_code(daemon.pid)
        daemon.kill()


def test_doctor_names_a_driver_for_docker_of_another_installation(run, monkeypatch: pytest.MonkeyPatch) -> None:
    with subprocess.Popen(["sleep", "600"]) as other:
        monkeypatch.setattr(docker, "running", lambda: other.pid)
        found = {one["what"]: one["remedy"] for one in run("doctor", "--json").json["findings"]}
        other.kill()
    what = f"the driver for Docker, process {other.pid}, runs other code than this command"
    assert found[what] == "run weft up --restart"
