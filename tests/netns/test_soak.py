"""Nothing grows: ADD, DEL, names and services for as long as WEFT_TEST_SOAK seconds say, by engine and agent.

An hour, with the figures printed: ``WEFT_TEST_SOAK=3600 tests/private .venv/bin/python -m pytest -s
tests/netns/test_soak.py::test_soak``. WEFT_TEST_SEED sets the order of the calls.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dns.rcode
import pytest

from lab import engine as engines
from lab import namespaces, sample
from lab.cases import Conf
from lab.commands import run
from lab.confs import DEFAULT4, DEFAULT6, pool
from lab.dns import ask, question, read, records
from lab.host import Host
from lab.plugins import OWN_FOLDER, Cni
from lab.waiting import until
from weft.locks import holder

SECONDS = float(os.environ.get("WEFT_TEST_SOAK", "25"))
STARTS = 60.0
KEPT, CHURNED = 20, 12
"""Containers that stay attached throughout, and those that come and go."""
SAMPLES = 20
RESIDENT = 1.05, 8 * 1024
"""How much memory may grow after the first fifth of the run: a factor, and KiB of slack. The
agent's store keeps the last 10,000 revisions, which a short run does not reach."""
THREADS, DESCRIPTORS = 4, 12
"""The engine starts its threads on demand, each with three descriptors: a few may come late."""
DISK = 4 << 20
"""Bytes by which the files may differ: SQLite's write-ahead log is truncated at checkpoints."""
FOLDERS = ("/run/weft", "/var/lib/cni", "/var/lib/weft")


@dataclass(frozen=True, slots=True)
class Use:
    """What engine and agent use with only the kept containers attached."""

    resident: dict[str, int]  # KiB; the engine with its helpers
    threads: dict[str, int]
    descriptors: dict[str, int]
    constant: dict[str, object]
    disk: int = 0


class Soak:
    def __init__(self, host: Host, cni: Cni) -> None:
        self.host, self.cni = host, cni
        self.random = random.Random(sample.seed())
        self.results: dict[str, dict[str, Any]] = {}
        self.done: Counter[str] = Counter()
        self.folder = Path(f"/run/weft/{os.stat('/proc/thread-self/ns/net').st_ino}")
        self.extra = {"WEFT_ENGINE": "auto", "WEFT_ENGINE_IDLE": "7200"}

    def conf(self, container: str) -> Conf:
        """The container's network: one of two bridges with names, a service and a published port."""
        number = int(container[1:])
        which = number % 2
        ipam = pool(f"10.{60 + which}.0.0/24", f"fd00:{60 + which}::/64", routes=[DEFAULT4, DEFAULT6])
        return {
            "cniVersion": "1.1.0", "name": f"soak{which}", "type": "weft", "driver": "bridge", "isGateway": True,
            "bridge": f"br-soak{which}", "ipMasq": True, "ipam": ipam, "names": {}, "portmap": {},
            "services": [{"name": f"web{which}", "port": 80, "virtual": True}],
            "runtimeConfig": {"portMappings": [{"hostPort": 20000 + number, "containerPort": 80, "protocol": "tcp"}]},
        }  # fmt: skip

    def attach(self, container: str) -> None:
        path = self.host.container(container)
        self.results[container] = self.cni.add(self.conf(container), path, container=container, extra=self.extra)
        self.done["ADD"] += 1

    def detach(self, container: str) -> None:
        """DEL; sometimes after the namespace is gone."""
        path = f"/run/netns/{container}"
        gone = self.random.random() < 0.2
        if gone:
            self.host.remove_container(container)
        self.cni.delete(self.conf(container), path, container=container, extra=self.extra)
        if not gone:
            self.host.remove_container(container)
        del self.results[container]
        self.done["DEL"] += 1

    def check(self, container: str) -> None:
        result = self.results[container]
        path = f"/run/netns/{container}"
        self.cni.check(self.conf(container), result, path, container=container, extra=self.extra)
        self.done["CHECK"] += 1

    def resolve(self, container: str) -> None:
        """A kept container is found by name, by one on the same network."""
        other = f"c{int(container[1:]) % 2 + 2 * self.random.randrange(KEPT // 2)}"
        with namespaces.inside(f"/run/netns/{other}"):
            reply = ask(self.results[other]["dns"]["nameservers"][0], 53, question(container), timeout=STARTS)
        found = read(reply)
        data = [line.split()[-1] for line in records(found.answer)]
        assert data == [self.address(container)], (container, data, dns.rcode.to_text(found.rcode()))
        self.done["DNS"] += 1

    def address(self, container: str) -> str:
        return str(self.results[container]["ips"][0]["address"]).partition("/")[0]

    def processes(self) -> dict[str, list[int]]:
        """The process ids of engine (with helpers) and agent."""
        found = {}
        for name in ("engine", "agent"):
            pid = holder(str(self.folder / f"{name}.lock"))
            assert pid, f"the {name} does not run"
            found[name] = [pid, *(engines.helpers(pid) if name == "engine" else ())]
        return found

    def settled(self) -> None:
        """Wait until the agent's catalog has the instances of the kept containers only."""

        def instances() -> int:
            listed = run(str(OWN_FOLDER.parent / "weft"), "services", "list", "-detailed", "--json", check=False)
            return len(json.loads(listed.stdout)) if listed.code == 0 else -1

        until(lambda: instances() == len(self.results) + 1, STARTS, "the catalog")  # and consul itself

    def use(self) -> Use:
        processes = self.processes()
        resident = {name: sum(map(_resident, pids)) for name, pids in processes.items()}
        files = [path for folder in FOLDERS for path in Path(folder).rglob("*") if path.is_file()]
        everything = json.loads(run("nft", "-j", "list", "ruleset").stdout)["nftables"]
        sets = {
            f"{one['family']} {one['table']} {one['name']}": len(one.get("elem", ()))
            for each in everything for one in each.values()
            if "elem" in one and not {"timeout", "dynamic"} & {*one.get("flags", ())}
        }  # fmt: skip
        constant: dict[str, object] = {
            "pids": processes,
            "zombies": _zombies({pid for pids in processes.values() for pid in pids}),
            "elements": sum(sets.values()),
            "sets": len(sets),
            "rules": sum("rule" in each for each in everything),
            "links": len(run("ip", "-o", "link", "show").stdout.splitlines()),
            "files": len(files),
        }
        threads = {name: sum(map(_threads, pids)) for name, pids in processes.items()}
        descriptors = {name: sum(map(_descriptors, pids)) for name, pids in processes.items()}
        return Use(resident, threads, descriptors, constant, sum(path.stat().st_size for path in files))


def _resident(pid: int) -> int:
    """Proportional set size in KiB: shared memory counts once."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Pss:"))


def _threads(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/task"))


def _descriptors(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


def _zombies(parents: set[int]) -> int:
    found = 0
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, parent = stat.read_text().rpartition(")")[2].split()[:2]
            found += state == "Z" and int(parent) in parents
    return found


@pytest.fixture
def soak(host: Host, cni: Cni) -> Iterator[Soak]:
    made = Soak(host, cni)
    try:
        yield made
    finally:
        for name in ("agent", "engine"):
            lock = str(made.folder / f"{name}.lock")
            if pid := holder(lock):
                os.kill(pid, signal.SIGTERM)
                until(lambda lock=lock: not holder(lock), STARTS, f"the end of the {name}")


@pytest.mark.long
def test_soak(soak: Soak) -> None:
    kept = [f"c{number}" for number in range(KEPT)]
    coming = [f"c{number}" for number in range(KEPT, KEPT + CHURNED)]
    for container in kept:
        soak.attach(container)
    until(lambda: (soak.folder / "engine.sock").exists(), STARTS, "the engine")
    begun, taken = time.monotonic(), list[Use]()
    while len(taken) < SAMPLES + 1:
        until_next = begun + SECONDS * len(taken) / SAMPLES
        turns = 0
        while time.monotonic() < until_next or turns < 2 * CHURNED:
            turns += 1
            container = soak.random.choice(coming)
            if container in soak.results:
                soak.detach(container)
            else:
                soak.attach(container)
            if turns % 5 == 0:
                soak.resolve(soak.random.choice(kept))
            if turns % 20 == 0:
                soak.check(soak.random.choice(kept))
        for container in coming:
            if container in soak.results:
                soak.detach(container)
        soak.settled()
        taken.append(soak.use())
        elapsed = time.monotonic() - begun
        print(f"{elapsed:7.0f} s {dict(soak.done)} {taken[-1]}", flush=True)
    warm, last = taken[SAMPLES // 5], taken[-1]
    # Each sample, so that a value that comes back by chance at the end is no proof.
    for each in taken[SAMPLES // 5 :]:
        assert each.constant == warm.constant
        for name in warm.threads:
            assert each.threads[name] <= warm.threads[name] + THREADS, (name, warm, each)
            assert each.descriptors[name] <= warm.descriptors[name] + DESCRIPTORS, (name, warm, each)
    for name, before in warm.resident.items():
        assert last.resident[name] <= before * RESIDENT[0] + RESIDENT[1], (name, warm, last)
    assert last.disk <= warm.disk + DISK, (warm, last)
