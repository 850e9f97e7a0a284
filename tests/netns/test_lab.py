"""The test library: its host namespaces, snapshots and traffic, and where it refuses to run."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from lab import namespaces
from lab.commands import run
from lab.host import Host


def test_each_host_is_new(host: Host) -> None:
    assert [link["ifname"] for link in host.run("ip", "-j", "link").json] == ["lo"]
    assert host.run("readlink", "/proc/self/ns/net").stdout.strip() != namespaces.MARK.read_text().strip()


def test_host_namespace_is_removed_completely() -> None:
    before = os.readlink(namespaces.OWN)
    open_before = len(os.listdir("/proc/self/fd"))
    made = Host()
    path = made.container("short-lived")
    process = made.start("sleep", "60", name="short-lived")
    made.serve_tcp("short-lived", 80)
    made.close()
    assert os.readlink(namespaces.OWN) == before
    assert process.returncode == -9
    assert not Path(path).exists()
    assert len(os.listdir("/proc/self/fd")) == open_before


def test_only_private_namespaces_are_accepted(host: Host, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    assert "known to be private" in namespaces.isolation_problem(mark=mark)
    mark.write_text("net:[1]\n")
    assert "not the network namespace" in namespaces.isolation_problem(mark=mark)
    mark.write_text(os.readlink(namespaces.OWN))
    assert namespaces.isolation_problem(namespaces.OWN, mark) == ""
    # The right /run, but as here in another network namespace: refused.
    assert "not the network namespace" in namespaces.isolation_problem(namespaces.OWN)


def test_pytest_ends_at_once_where_it_is_not_private() -> None:
    """Runs without the private /run, so that even a bug cannot reach the machine's network."""
    program = ("sh", "-c", 'umount --lazy /run && exec "$@"', "sh", sys.executable, "-m", "pytest", "-q", __file__)
    outcome = run("unshare", "--mount", *program, check=False, timeout=60)
    assert outcome.code == 3, outcome
    assert "known to be private" in outcome.stdout + outcome.stderr


@pytest.mark.parametrize(
    "change",
    [
        "ip link add left type veth peer name right",
        "ip address add 10.1.0.1/24 dev lo",
        "ip route add 10.2.0.0/16 dev lo",
        "ip rule add from 10.3.0.1 table 100",
        "nft add table inet other",
        "sysctl -q -w net.ipv4.ip_forward=1",
        "tc qdisc add dev lo root tbf rate 1mbit burst 10k latency 50ms",
    ],
)
def test_a_snapshot_sees_each_change(host: Host, change: str) -> None:
    before = host.snapshot()
    assert host.changes(before) == []
    host.run(*change.split())
    assert host.changes(before, within=0)


def test_a_snapshot_overlooks_counters_and_the_order_of_elements(host: Host) -> None:
    host.run("nft", "add table inet t; add set inet t s { type ipv4_addr; }; add chain inet t c")
    host.run("nft", "add rule inet t c counter packets 5 bytes 500; add element inet t s { 10.0.0.1, 10.0.0.2 }")
    before = host.snapshot()
    host.run("nft", "flush chain inet t c; add rule inet t c counter packets 7 bytes 700")
    host.run("nft", "flush set inet t s; add element inet t s { 10.0.0.2 }; add element inet t s { 10.0.0.1 }")
    assert host.changes(before, within=0) == []


@pytest.mark.parametrize("protocol", ["tcp", "udp"])
def test_traffic_over_the_lan(host: Host, protocol: str) -> None:
    lan = host.lan()
    serve = host.serve_tcp if protocol == "tcp" else host.serve_udp
    server = serve(lan.name, 80)
    assert host.fetch(None, lan.outside, 80, protocol) == lan.host
    assert host.fetch(None, lan.outside6, 80, protocol) == lan.host6
    assert host.fetch(None, lan.outside, 81, protocol, timeout=0.2) is None
    assert server.clients == [lan.host, lan.host6]
    assert host.ping(lan.name, lan.host)
    assert not host.ping(lan.name, "192.0.2.77", timeout=0.2)


def test_a_command_that_hangs_is_ended_with_its_children() -> None:
    with pytest.raises(AssertionError, match="longer than"):
        run("sh", "-c", "sleep 987.25 & wait", timeout=0.3)
    commands = [path.read_bytes() for path in Path("/proc").glob("[0-9]*/cmdline") if path.exists()]
    assert not any(b"987.25" in command for command in commands)
