"""Docker, ufw and firewalld on the same host: the real ones, and traffic of weft's containers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from lab.firewalls import Firewalled

pytestmark = pytest.mark.usefixtures("own")


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Firewalled]:
    made = Firewalled(tmp_path)
    yield made
    made.close()


@pytest.fixture
def unfollowed(tmp_path: Path) -> Iterator[Firewalled]:
    """Neither engine nor agent restores anything."""
    made = Firewalled(tmp_path, followed=False)
    yield made
    made.close()


def assert_working(machine: Firewalled) -> None:
    found = machine.working()
    assert all(found.values()), found
    assert (machine.problems(), machine.findings()) == ([], {})


def test_docker_started_before_and_again(machine: Firewalled, root_image: Path) -> None:
    """Docker sets the policy of FORWARD to DROP, and guards its own containers by it."""
    machine.docker()
    machine.attach()
    assert_working(machine)

    # weft's rules open nothing of Docker's: neither a port that is not published, nor an internal network.
    machine.image(str(root_image))
    machine.run("docker", "network", "create", "--internal", "inner")
    machine.serve("d1", "-p", "8090:80")
    hidden = [machine.serve("d2"), machine.serve("d3", "--network", "inner")]
    assert machine.page("c1", "192.0.2.1:8090")
    ask = ("/bin/busybox", "timeout", "2", "/bin/busybox", "wget", "-q", "-O", "-", "http://10.80.0.2/")
    assert machine.run("docker", "exec", "d1", *ask).code == 0
    assert machine.run("docker", "exec", "d3", *ask, check=False).code != 0
    assert [machine.page(name, each, expected=False) for name in ("c1", "c2") for each in hidden] == [False] * 4

    machine.add("c3", "blue")
    machine.docker()
    assert_working(machine)
    assert machine.page("c3", "10.80.0.2")  # on one bridge: dockerd has iptables see bridged packets too
    machine.remove("c1", "c2", "c3")
    assert machine.rules() == []


@pytest.mark.long
def test_docker_started_afterwards(unfollowed: Firewalled, root_image: Path) -> None:
    """Nothing tells weft that packets are dropped now: check says it, the next ADD or doctor --repair cures it."""
    machine = unfollowed
    machine.attach()
    machine.docker()
    # weft has enabled forwarding, so Docker drops nothing, and nothing needs to be accepted.
    assert_working(machine)
    assert machine.rules() == []
    # As Docker does where forwarding is disabled again before its next start.
    machine.run("iptables", "-P", "FORWARD", "DROP")
    assert not machine.page("outside", "192.0.2.1:8080", expected=False)
    assert sorted(machine.problems()) == [
        "iptables lacks the rules for 10.82.0.0/24 in DOCKER-USER",
        "iptables lacks the rules for weft-blue in DOCKER-USER",
    ]
    machine.add("c3", "blue")
    assert machine.page("outside", "192.0.2.1:8080")
    assert machine.weft("doctor", "--repair").code == 0
    assert_working(machine)

    # Links of Docker's that have names of their own are known once weft's rules are made.
    machine.run("docker", "network", "create", "-o", "com.docker.network.bridge.name=custom0", "custom")
    machine.image(str(root_image))
    address = machine.serve("d1", "--network", "custom")
    machine.run("iptables", "-F", "DOCKER-USER")
    assert machine.weft("doctor", "--repair").code == 0
    assert not machine.page("c1", address, expected=False)

    # What a lost /run leaves is found by its mark.
    machine.remove("c1", "c2", "c3")
    machine.run("iptables", "-A", "DOCKER-USER", "-m", "comment", "--comment", "weft:0123456789abcdef", "-j", "ACCEPT")
    assert list(machine.findings()) == [
        "iptables rules with the comment weft:0123456789abcdef belong to no network",
    ]
    assert machine.weft("gc").code == 0
    assert machine.rules() == []


@pytest.mark.long
def test_ufw(machine: Firewalled) -> None:
    """The rules are in ufw's chains for its administrator's rules, after those; a reload empties the chains."""
    machine.attach()
    machine.ufw()
    machine.restored()
    assert_working(machine)
    machine.run("ufw", "reload")
    machine.restored()
    assert_working(machine)
    machine.add("c3", "blue")
    assert machine.page("outside", "192.0.2.1:8080") and machine.answered("c3")
    # The administrator's rules that are there come first.
    machine.run("ufw", "route", "deny", "in", "on", "lan0", "out", "on", "weft-blue")
    machine.run("ufw", "reload")
    assert machine.weft("doctor", "--repair").code == 1
    assert list(machine.findings().values()) == ["run iptables -I FORWARD -i lan0 -o weft-blue -j ACCEPT"]
    assert not machine.page("outside", "192.0.2.1:8080", expected=False)
    machine.remove("c1", "c2", "c3")
    assert machine.rules() == []


@pytest.mark.long
def test_ufw_unfollowed(unfollowed: Firewalled) -> None:
    """Where nothing restores the rules, check says which are missing, and doctor --repair adds them."""
    machine = unfollowed
    machine.attach()
    machine.ufw()
    assert len(machine.problems()) == 3
    assert machine.weft("doctor", "--repair").code == 0
    assert_working(machine)


@pytest.mark.long
def test_firewalld(machine: Firewalled) -> None:
    """Links and subnets are in the zone trusted, unless an administrator has put them in another."""
    machine.firewalld()
    machine.attach()
    assert_working(machine)
    machine.reload()
    machine.restored()
    assert_working(machine)
    machine.remove("c1", "c2")
    assert machine.run("firewall-cmd", "--zone=trusted", "--list-all").stdout.count("10.82.0.0/24") == 0
    assert machine.run("firewall-cmd", "--get-zone-of-interface=weft-blue", check=False).code != 0

    machine.run("firewall-cmd", "--permanent", "--zone=internal", "--add-interface=weft-blue")
    machine.reload()
    machine.run("ip", "netns", "delete", "c1")
    machine.run("ip", "netns", "delete", "c2")
    machine.attach()
    assert machine.run("firewall-cmd", "--get-zone-of-interface=weft-blue").stdout.strip() == "internal"
    machine.remove("c1", "c2")
    assert machine.run("firewall-cmd", "--get-zone-of-interface=weft-blue").stdout.strip() == "internal"
