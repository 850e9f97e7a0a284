"""Hosts that systemd boots: etcd is its unit, before and after a reboot, and until the host leaves."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from lab.booted_hosts import BootedHost
from lab.many_hosts import members, network, remove_network, token
from lab.waiting import until

AGENT, ETCD = "weft-agent.service", "weft-etcd.service"
PATIENTLY = 90.0
RUNNING = ("loaded", "enabled", "active", "active")


@pytest.fixture
def hosts(isolation: None, tmp_path: Path) -> Iterator[tuple[BootedHost, BootedHost]]:
    """Two hosts on which systemd runs weft's agent."""
    network()
    made: list[BootedHost] = []
    try:
        for number in (1, 2):
            made.append(BootedHost(number, tmp_path / str(number)))
        for one in made:
            one.weft("install", "--systemd")
            one.run("systemctl", "enable", "--now", AGENT)
        yield made[0], made[1]
    finally:
        for one in made:
            one.close()
        remove_network()


def alive(host: BootedHost) -> dict[str, tuple[str, bool]]:
    """The nodes' roles, and whether their agents run, as a host lists them; {} if it cannot."""
    found = host.weft("node", "ls", "--json", check=False)
    return {row["name"]: (row["role"], row["alive"]) for row in found.json} if found.code == 0 else {}


def member_id(host: BootedHost, name: str) -> str:
    """etcd's id of a member, as a member lists it; "" where it does not."""
    lines = host.ctl("member", "list", check=False).stdout.splitlines()
    return next((words[0] for line in lines if (words := line.split(", "))[2:3] == [name]), "")


def journal(host: BootedHost) -> str:
    """What the units of weft have logged last."""
    return host.run("journalctl", "--no-pager", "--lines", "200", "--unit", AGENT, "--unit", ETCD, check=False).stdout


def states(host: BootedHost) -> tuple[str, ...]:
    """Whether the unit of etcd is known, is started at boot, and runs; and whether the agent does."""
    enabled = host.systemctl("is-enabled", ETCD).stdout.strip()
    active = tuple(host.systemctl("is-active", one).stdout.strip() for one in (ETCD, AGENT))
    return host.property(ETCD, "LoadState"), enabled, *active


def kept(host: BootedHost) -> bool:
    """Whether the etcd of a host answers with what was written first."""
    return host.ctl("get", "/weft/v2/kv/kept", user="node", check=False).stdout.split()[1:] == ["x"]


@pytest.mark.long
def test_etcd_is_a_unit_of_systemd(hosts: tuple[BootedHost, BootedHost]) -> None:
    one, two = hosts
    one.weft("cluster", "init")
    assert states(one) == RUNNING
    assert one.property(ETCD, "Type") == "exec", "the others may be switched on later"
    assert members(one) == {"n1": "false"}
    until(lambda: alive(one) == {"n1": ("voter", True)}, PATIENTLY, "the agent's sign of life")
    one.ctl("put", "/weft/v2/kv/kept", "x", user="node")
    before = one.etcd()
    one.run("kill", "-KILL", str(before))
    until(lambda: one.etcd() not in (0, before), PATIENTLY, "etcd, started again by systemd")
    one.run("systemctl", "restart", ETCD)
    until(lambda: kept(one), PATIENTLY, "the data after a restart")

    one.reboot()
    until(lambda: states(one) == RUNNING, PATIENTLY, "etcd after the reboot")
    until(lambda: kept(one), PATIENTLY, "the data after the reboot")
    until(lambda: alive(one) == {"n1": ("voter", True)}, PATIENTLY, "the agent after the reboot")

    two.weft("cluster", "join", token(one))
    until(lambda: members(one) == {"n1": "false", "n2": "true"}, PATIENTLY, "the learner")
    assert states(two) == RUNNING
    # Its agent, to which the unit leaves few files to write, makes it a member again.
    removed = member_id(one, "n2")
    one.ctl("member", "remove", removed)
    until(lambda: member_id(one, "n2") not in ("", removed), PATIENTLY, lambda: f"a member again: {journal(two)}")
    until(lambda: states(two) == RUNNING, PATIENTLY, lambda: f"etcd of the other host: {states(two)} {journal(two)}")
    assert "Read-only file system" not in journal(two)
    one.weft("cluster", "leave")
    assert states(one)[:1] == ("not-found",) and states(one)[2:] == ("inactive", "active")
    assert not one.path("/var/lib/weft/etcd-member").exists() and not one.path("/etc/weft/etcd").exists()
    assert kept(two)
    two.weft("cluster", "leave", "--last")
    assert states(two)[:1] == ("not-found",) and states(two)[2:] == ("inactive", "active")


@pytest.mark.long
def test_an_agent_starts_once_its_configuration_is_corrected(hosts: tuple[BootedHost, BootedHost]) -> None:
    """systemd gives up a service that ends five times in ten seconds."""
    one, _ = hosts
    configuration = one.path("/etc/weft/weft.toml")
    before = configuration.read_text()
    configuration.write_text("[agent]\nnode = 5\n")
    one.run("systemctl", "restart", AGENT, check=False)
    until(lambda: int(one.property(AGENT, "NRestarts")) > 5, PATIENTLY, "six starts")
    assert "node" in journal(one)
    configuration.write_text(before)
    until(lambda: one.systemctl("is-active", AGENT).stdout.strip() == "active", 15, lambda: journal(one))
