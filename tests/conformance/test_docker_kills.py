"""SIGKILL of dockerd, the driver and containers at random moments: nothing is left, and nothing is double.

WEFT_TEST_DOCKER_KILLS says how many, WEFT_TEST_SEED chooses the moments:
``WEFT_TEST_DOCKER_KILLS=500 tests/private .venv/bin/python -m pytest -s
tests/conformance/test_docker_kills.py::test_kills``.
"""

from __future__ import annotations

import json
import os
import random
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab import sample
from lab.docked import Docked
from lab.waiting import until

pytestmark = [pytest.mark.usefixtures("own"), pytest.mark.long]
KILLS = int(os.environ.get("WEFT_TEST_DOCKER_KILLS", "8"))
WEIGHTS = {"driver": 4, "dockerd": 3, "container": 3}
TOGETHER = 10
"""Kills between two comparisons, which wait for what the driver must find missing twice."""
AGREED = 90.0
"""Seconds until the driver agrees with Docker, on a loaded machine."""
NETWORKS = {
    "kept": ("--ipam-driver", "weft", "--subnet", "10.96.0.0/24"),
    "given": ("--subnet", "10.97.0.0/24"),
    "points": ("-o", "driver=ptp", "--ipam-driver", "weft", "--subnet", "10.98.0.0/24"),
}
# Runs until /run/quiet exists; what fails meanwhile is the point of it.
_WORKER = """
me=$1 first=$2 second=$3
docker() { timeout 100 /usr/bin/env docker "$@" >/dev/null 2>&1; }
docker rm -f w$me
while ! test -e /run/quiet; do
    docker run -d --name w$me --net=$first --label weft.service=s$me:80 -p 818$me:80 page /bin/sleep 600
    docker network connect $second w$me
    docker network create -d weft --ipam-driver weft extra$me
    docker run --rm --net=extra$me page /bin/sleep 0
    docker network disconnect $second w$me
    docker restart -t 0 w$me
    docker network rm extra$me
    test -e /run/quiet || docker rm -f w$me
    sleep 0.1
done
"""


@pytest.fixture
def machine(tmp_path: Path, root_image: Path) -> Iterator[Docked]:
    made = Docked(tmp_path, str(root_image))
    yield made
    made.close()


def kill(machine: Docked, victim: str, chance: random.Random) -> bool:
    """Kill it, and start it again; False if there was nothing to kill."""
    if victim == "driver":
        machine.kill_driver()
        time.sleep(chance.choice((0, 0, 0.5)))  # also where Docker calls meanwhile
        machine.drive()
    elif victim == "dockerd":
        machine.kill_docker()
        machine.docker()
    else:
        script = (
            "pgrep -f '^/bin/sleep 600$|^containerd-shim' | shuf -n1 --random-source=/dev/zero | xargs -r kill -KILL"
        )
        return machine.run("sh", "-c", script, check=False).code == 0
    return True


def doubles(machine: Docked) -> list[str]:
    """Addresses of Docker's networks, and published ports, that two attachments have."""
    found: Counter[str] = Counter()
    for one in machine.weft("ps", "--json").json:
        found.update(str(address).partition("/")[0] for address in one.get("addresses", ()))
    return [text for text, number in found.items() if number > 1]


def agreed(machine: Docked) -> bool:
    """Whether what the driver keeps is what Docker has: endpoints, networks, and attachments of them."""
    kept, there = machine.endpoints()
    networks = set(machine.ask("network", "ls", "-q", "--no-trunc", "--filter", "driver=weft").split())
    own = machine.kept_networks()
    return kept == there and networks == own


def compare(machine: Docked) -> None:
    until(lambda: agreed(machine), AGREED, lambda: f"agreement: {machine.endpoints()}, {machine.log()}")
    assert doubles(machine) == []
    until(lambda: whole(machine), AGREED, lambda: f"attachments as they should be: {state(machine)}")
    until(
        lambda: strays(machine) == [], AGREED, lambda: f"no link without attachment: {strays(machine)} {state(machine)}"
    )


def strays(machine: Docked) -> list[str]:
    """The host's ends of veth pairs, if they are not as many as the attachments."""
    links = [name for name in machine.links() if name.startswith("veth")]
    return links if len(links) != len(machine.weft("ps", "--all", "--json").json) else []


def whole(machine: Docked) -> bool:
    """Whether nothing lacks what it should have, if there is an attachment at all."""
    return not machine.endpoints()[0] or machine.problems() == []


def state(machine: Docked) -> str:
    """What is wrong, and everything that tells why."""
    asked = (("check",), ("ps", "-a"), ("doctor",), ("events",))
    said = [machine.weft(*argv).stdout for argv in asked]
    containers = machine.ask("ps", "-a", "--no-trunc")
    return "\n".join([*said, containers, str(machine.endpoints()), machine.log()])


def quiet(machine: Docked) -> None:
    """Stop the workers, and wait for what they have asked Docker."""
    machine.write("/run/quiet", "")
    ended = machine.until("sh", "-c", "! pgrep -f [w]eft-worker", timeout=300)
    assert ended.code == 0, ended


def work(machine: Docked) -> None:
    machine.run("rm", "-f", "/run/quiet")
    for number, pair in enumerate((("kept", "given"), ("given", "points"), ("points", "kept"))):
        argv = ("sh", "-c", _WORKER, "weft-worker", str(number), *pair)
        machine.start(*argv, log=machine.folder / f"worker{number}")


def test_kills(machine: Docked) -> None:
    chance = random.Random(sample.seed())
    killed: Counter[str] = Counter()
    for name, options in NETWORKS.items():
        machine.ask("network", "create", "-d", "weft", *options, name)
    started = time.monotonic()
    while killed.total() < KILLS:
        work(machine)
        for _ in range(min(TOGETHER, KILLS - killed.total())):
            time.sleep(chance.uniform(0, 2.5))
            victim = chance.choices(list(WEIGHTS), list(WEIGHTS.values()))[0]
            killed[victim] += kill(machine, victim, chance)
        quiet(machine)
        compare(machine)
        print(f"{killed.total()} kills: {dict(killed)}, {time.monotonic() - started:.0f} s", flush=True)
    names = machine.ask("ps", "-aq").split()
    if names:
        machine.ask("rm", "-f", *names)
    for name in machine.ask("network", "ls", "-q", "--filter", "driver=weft").split():
        machine.ask("network", "rm", name)
    until(lambda: machine.left() == [], AGREED, lambda: f"{machine.left()} {state(machine)}")
    leases = json.loads(machine.weft("ps", "--json").stdout or "[]")
    assert leases == []
