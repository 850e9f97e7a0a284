"""What Docker does while the driver is down: the next start agrees with Docker, and frees the rest."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from lab.docked import Docked
from lab.waiting import until

# Docker gives each call of a driver that is down 15 seconds.
pytestmark = [pytest.mark.usefixtures("own"), pytest.mark.long]
AGREED = 60.0
"""Seconds until the driver agrees with Docker, on a loaded machine."""
LATER = 3.0
"""Seconds until the driver starts: Docker repeats a call for 15 seconds."""
OWN = ("network", "create", "-d", "weft", "--ipam-driver", "weft", "--subnet")


@pytest.fixture
def machine(docked: Docked) -> Iterator[Docked]:
    yield docked
    docked.empty()


def agreed(machine: Docked) -> bool:
    """Whether the driver keeps exactly the networks and endpoints that Docker has."""
    kept, there = machine.endpoints()
    networks = set(machine.ask("network", "ls", "-q", "--no-trunc", "--filter", "driver=weft").split())
    return kept == there and machine.kept_networks() == networks


def test_what_docker_removes_meanwhile(machine: Docked) -> None:
    """Networks and containers that are removed without the driver; then the same are made again."""
    machine.ask(*OWN, "10.96.0.0/24", "stays")
    machine.ask(*OWN, "10.97.0.0/24", "own")
    machine.ask("network", "create", "-d", "weft", "--subnet", "10.98.0.0/24", "given")
    machine.serve("stays", "--net=stays", "-p", "8080:80")
    machine.serve("goes", "--net=stays", "-p", "8081:80", "--label", "weft.service=web:80")
    machine.serve("ended", "--net=own")
    machine.ask("stop", "-t", "0", "ended")
    links = set(machine.links())
    machine.kill_driver()
    with ThreadPoolExecutor(4) as pool:
        removals = (("network", "rm", "own"), ("network", "rm", "given"), ("rm", "-f", "goes"), ("rm", "ended"))
        list(pool.map(lambda argv: machine.ask(*argv), removals))
    assert machine.page("outside", "192.0.2.1:8080")  # what runs needs no driver
    machine.drive()
    until(lambda: agreed(machine), AGREED, lambda: f"agreement {machine.endpoints()}")
    assert not machine.page("outside", "192.0.2.1:8081", expected=False)
    until(lambda: len(machine.files("/var/lib/weft/docker/pools")) == 1, AGREED, "the release of the pool")
    assert len(links - set(machine.links())) >= 2  # the bridges
    machine.ask(*OWN, "10.97.0.0/24", "own")
    assert machine.serve("again", "--net=stays", "-p", "8081:80") == "10.96.0.4"
    assert machine.page("outside", "192.0.2.1:8081")
    until(lambda: machine.problems() == [], AGREED, lambda: f"{machine.problems()} {machine.log()}")


@pytest.mark.parametrize("how", ["stopped", "killed", "booted"])
def test_docker_starts_before_the_driver(machine: Docked, how: str) -> None:
    """dockerd is back a while before the driver, which then agrees with it."""
    machine.ask(*OWN, "10.96.0.0/24", "stays")
    machine.ask("network", "create", "-d", "weft", "--subnet", "10.98.0.0/24", "given")
    machine.serve("always", "--net=stays", "--restart=always", "-p", "8080:80", "--label", "weft.service=web:80")
    machine.serve("once", "--net=given", "-p", "8081:80")
    machine.kill_driver()
    if how != "stopped":
        machine.kill_docker()
    if how == "booted":
        machine.boot()
    machine.start_docker()
    time.sleep(LATER)
    machine.drive()
    machine.docker_answers(120)
    until(lambda: machine.inspect("always")["State"]["Running"], AGREED, "the container with a restart policy")
    until(lambda: agreed(machine), AGREED, lambda: f"agreement {machine.endpoints()} {machine.log()}")
    assert machine.page("outside", "192.0.2.1:8080")
    assert not machine.page("outside", "192.0.2.1:8081", expected=False)
    machine.ask("start", "once")
    assert machine.page("outside", "192.0.2.1:8081")
    assert machine.resolves("once", "web.service.consul")
    until(lambda: agreed(machine) and machine.problems() == [], AGREED, lambda: f"{machine.problems()}")
