"""The ownership of addresses over time: eight processes of eight threads, killed and rebooted.

Each thread logs when it was given an address and when it asked to have it released. In between the
address is its own, also while its process is dead: no two such intervals of one address overlap.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections import defaultdict
from itertools import pairwise
from pathlib import Path
from random import Random

from ipam.host_local import owners
from lab.sample import offset

ROOT = Path(__file__).resolve().parents[3]
PROCESSES, THREADS = 8, 8
OPERATIONS = int(os.environ.get("WEFT_TEST_OPERATIONS", "1000"))
"""Reservations and releases in all; the figure in docs/reliability.md is of a million."""

WORKER = """
import os, random, sys, threading, time
sys.path.insert(0, sys.argv[1])
from ipam.host_local import *
from ipam.ranges import *
from ipaddress import *
from weft.errors import PoolExhausted
data, name, threads, booted, inherited = sys.argv[2], sys.argv[3], int(sys.argv[4]), float(sys.argv[5]), sys.argv[6:]
subnet = ip_network("10.1.0.0/25")
span = Span(ip_address("10.1.0.1"), ip_address("10.1.0.126"))
pool = Pool("blue", data + "/blue", ((Range(subnet, span, span.first),),))
living = set(inherited)

def log(*words):
    os.write(1, f"{time.monotonic_ns()} {' '.join(words)}\\n".encode())

def work(number):
    state = HostState(data + "/index", booted, lambda network, owner: owner.container in living)
    dice, mine, count = random.Random(f"{name}.{number}"), inherited[number::threads], 0
    while True:
        if mine and (len(mine) > 2 or dice.random() < 0.5):
            container = mine.pop(dice.randrange(len(mine)))
            log("<", container)
            release(pool.directory, "blue", Owner(container, "eth0"), state)
            living.discard(container)
            continue
        count += 1
        container = f"{name}.{number}.{count}"
        living.add(container)
        log(">", container)
        try:
            address = reserve(pool, Owner(container, "eth0"), state).ips[0].address.ip
        except PoolExhausted:
            living.discard(container)
            continue
        log("+", container, str(address))
        mine.append(container)

sys.setswitchinterval(0.0005)
for number in range(threads):
    threading.Thread(target=work, args=(number,)).start()
"""


class History:
    """What the processes logged. ``held``: the containers of a process that may own an address."""

    def __init__(self, data: Path, booted: float) -> None:
        self.data, self.booted = data, booted
        self.running: dict[str, tuple[subprocess.Popen[bytes], Path]] = {}
        self.given: dict[str, tuple[str, int]] = {}
        self.released: dict[str, int] = {}
        self.operations = 0
        self._turn = 0

    def start(self, slot: str, held: list[str]) -> None:
        self._turn += 1
        path = self.data / f"log.{slot}.{self._turn}"
        words = [str(ROOT), str(self.data), f"{slot}{self._turn}", str(THREADS), str(self.booted), *held]
        with open(path, "wb") as log:
            process = subprocess.Popen([sys.executable, "-I", "-S", "-c", WORKER, *words], stdout=log)
        self.running[slot] = process, path

    def kill(self, slot: str) -> list[str]:
        """SIGKILL a process; the containers that own an address, or may, for who comes after it."""
        process, path = self.running.pop(slot)
        assert process.poll() is None, "ended before it was killed"
        process.kill()
        process.wait()
        held = dict.fromkeys(self.inherited(process))
        for line in path.read_text().splitlines(keepends=True):
            if not line.endswith("\n"):
                break
            at, sign, container, *address = line.split()
            self.operations += 1
            if sign == "+":
                self.given[container] = address[0], int(at)
            elif sign == "<":
                self.released.setdefault(container, int(at))
            held[container] = None
        return [one for one in held if one not in self.released or not self._is_free(one)]

    def inherited(self, process: subprocess.Popen[bytes]) -> list[str]:
        arguments = process.args
        assert isinstance(arguments, list)
        return [str(one) for one in arguments[10:]]

    def _is_free(self, container: str) -> bool:
        return all(owner.container != container for _, owner, _ in owners(str(self.data / "blue")))

    def overlaps(self) -> list[str]:
        """The pairs of containers that owned an address at the same time."""
        of_address: dict[str, list[tuple[int, int, str]]] = defaultdict(list)
        for container, (address, start) in self.given.items():
            of_address[address].append((start, self.released.get(container, sys.maxsize), container))
        found = []
        for address, intervals in of_address.items():
            intervals.sort()
            for (_, end, one), (start, _, other) in pairwise(intervals):
                if start < end:
                    found.append(f"{address}: {one} and {other}")
        return found


def test_no_address_has_two_owners_at_a_time(tmp_path: Path) -> None:
    """Processes are killed at random, the index is deleted, and all die at a reboot, after which the
    leases of the boot before are nobody's."""
    dice = Random(offset("history", 1 << 30))
    (tmp_path / "blue").mkdir()
    history = History(tmp_path, booted=0.0)
    slots = [f"p{number}" for number in range(PROCESSES)]
    try:
        for slot in slots:
            history.start(slot, [])
        while history.operations < OPERATIONS:
            time.sleep(0.3 + dice.random() / 2)
            slot = dice.choice(slots)
            held = history.kill(slot)
            if dice.random() < 0.1:
                for path in (tmp_path / "index").glob("*"):
                    path.unlink(missing_ok=True)
            if dice.random() < 0.05:
                _reboot(history, slots, slot)
            else:
                history.start(slot, held)
        for slot in slots:
            history.kill(slot)
    finally:
        for process, _ in history.running.values():
            process.kill()
            process.wait()
    print(f"{history.operations} operations, {len(history.given)} addresses given")
    assert len(history.given) > OPERATIONS / 10
    assert history.overlaps() == []


def _reboot(history: History, slots: list[str], dead: str) -> None:
    """All processes die; nobody owns what they had; /run is empty and all leases are of an older boot."""
    for slot in slots:
        if slot != dead:
            history.kill(slot)
    at = time.monotonic_ns()
    for container in history.given:
        history.released.setdefault(container, at)
    for path in (history.data / "index").glob("*"):
        path.unlink()
    history.booted = time.time()
    for slot in slots:
        history.start(slot, [])
