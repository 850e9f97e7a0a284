"""Many containers of Docker's at once.

WEFT_TEST_DOCKER_CONTAINERS says how many: 200 take minutes, so ``bin/test long`` and a person run it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from lab.docked import Docked
from lab.waiting import until

pytestmark = [pytest.mark.usefixtures("own"), pytest.mark.long(sampled=False)]
CONTAINERS = int(os.environ.get("WEFT_TEST_DOCKER_CONTAINERS", "200"))
TOGETHER = 16
PATIENTLY = 600.0
COMMAND_SECONDS = 600.0


@pytest.fixture
def machine(docked: Docked) -> Iterator[Docked]:
    yield docked
    docked.empty()


def test_containers_started_and_removed_sixteen_at_once(machine: Docked) -> None:
    """Each has an address and a port of its own, and is reached there; nothing is left of them."""
    create = ("network", "create", "-d", "weft", "--subnet")
    machine.ask(*create, "10.96.0.0/22", "--ipam-driver", "weft", "own")
    machine.ask(*create, "10.97.0.0/22", "given")
    before = set(machine.links())

    def start(number: int) -> None:
        network = "own" if number % 2 else "given"
        port = ("-p", f"{20000 + number}:80") if number % 4 == 0 else ("-p", "80") if number % 4 == 1 else ()
        command = ("docker", "run", "-d", "--name", f"c{number}", f"--net={network}", *port, "page")
        machine.run(*command, "/bin/httpd", "-f", "-p", "80", "-h", "/www", timeout=COMMAND_SECONDS)

    def remove(number: int) -> None:
        machine.run("docker", "rm", "-f", f"c{number}", timeout=COMMAND_SECONDS)

    with ThreadPoolExecutor(TOGETHER) as pool:
        list(pool.map(start, range(CONTAINERS)))
        kept, there = machine.endpoints()
        assert kept == there and len(there) == CONTAINERS
        shown = machine.weft("ps", "--json").json
        addresses = [str(address).partition("/")[0] for one in shown for address in one["addresses"]]
        assert len(set(addresses)) == len(addresses) == CONTAINERS
        ports = [text.partition("->")[0] for one in shown for text in one["ports"]]
        assert len(set(ports)) == len(ports) == (CONTAINERS + 3) // 4 + (CONTAINERS + 2) // 4
        for number in (0, CONTAINERS // 2 // 4 * 4, (CONTAINERS - 1) // 4 * 4):
            assert machine.page("outside", f"192.0.2.1:{20000 + number}")
        until(lambda: machine.problems() == [], PATIENTLY, lambda: f"{machine.problems()[:5]}")
        list(pool.map(remove, range(CONTAINERS)))
    kept, there = machine.endpoints()
    assert there == set()
    until(lambda: not machine.endpoints()[0], PATIENTLY, "the removal of all endpoints")
    bridges = {name for name in machine.links() if name.startswith("weft-")}
    assert set(machine.links()) - bridges == before - bridges
