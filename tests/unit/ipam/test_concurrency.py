"""Many processes on one lease directory: weft, killed at random, and the real host-local."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from random import Random

import pytest

from ipam import view as view_module
from ipam.host_local import HostState, Owner, Pool, owners, preview, read, release, reserve
from weft.section import Problems, Section

ROOT = Path(__file__).resolve().parents[3]
HOST_LOCAL = Path("/usr/lib/cni/host-local")

WORKER = """
import os, random, sys
sys.path.insert(0, sys.argv[1])
from ipam import view
from ipam.host_local import *
from ipam.ranges import *
from ipaddress import *
from weft.errors import PoolExhausted
data, name, small, held = sys.argv[2], sys.argv[3], int(sys.argv[4]), sys.argv[5:]
view.SMALL = small
subnet = ip_network("10.1.0.0/27")
span = Span(ip_address("10.1.0.1"), ip_address("10.1.0.30"))
pool = Pool("blue", data + "/blue", ((Range(subnet, span, span.first),),))
state = HostState(data + "/index", 0.0, lambda network, owner: True)
for container in held:
    release(pool.directory, "blue", Owner(container, "eth0"), state)
    print("-", container, flush=True)
dice, mine, count = random.Random(name), [], 0
print("ready", flush=True)
while True:
    if mine and (len(mine) > 5 or dice.random() < 0.5):
        container = mine.pop(dice.randrange(len(mine)))
        print("<", container, flush=True)
        release(pool.directory, "blue", Owner(container, "eth0"), state)
        print("-", container, flush=True)
    else:
        count += 1
        container = f"{name}.{count}"
        print(">", container, flush=True)
        try:
            address = reserve(pool, Owner(container, "eth0"), state).ips[0].address.ip
        except PoolExhausted:
            print("-", container, flush=True)
            continue
        mine.append(container)
        print("+", container, address, flush=True)
"""


def pool_of(data: Path) -> Pool:
    problems = Problems()
    pool = read(
        Section({"subnet": "10.1.0.0/27", "dataDir": str(data)}, "ipam", problems),
        network="blue",
        version="1.0.0",
        arguments={},
        args_cni=Section({}, "", problems),
        runtime=Section({}, "", problems),
    )
    problems.raise_any()
    return pool


class Worker:
    """A process that reserves and releases. ``maybe``: who may own an address after its kill."""

    def __init__(self, data: Path, name: str, small: int, maybe: set[str]) -> None:
        self.log = data / f"log.{name}"
        self.inherited = maybe
        with open(self.log, "wb") as log, open(data / f"errors.{name}", "wb") as errors:
            self.process = subprocess.Popen(
                [sys.executable, "-I", "-S", "-c", WORKER, str(ROOT), str(data), name, str(small), *sorted(maybe)],
                stdout=log,
                stderr=errors,
            )

    def ready(self) -> None:
        deadline = time.monotonic() + 20
        while b"ready" not in self.log.read_bytes():
            assert self.process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.01)

    def kill(self) -> tuple[set[str], dict[str, str]]:
        """Kill it: the containers that may own an address, and those that certainly own one."""
        assert self.process.poll() is None, "exited before it was killed"
        self.process.kill()
        self.process.wait()
        maybe, surely = set(self.inherited), {}
        lines = self.log.read_text().splitlines(keepends=True)
        for line in (each for each in lines if each.endswith("\n")):
            sign, *words = line.split()
            if sign == ">":
                maybe.add(words[0])
            elif sign == "+":
                surely[words[0]] = words[1]
            elif sign == "<":
                surely.pop(words[0], None)
            elif sign == "-":
                maybe.discard(words[0])
        return maybe, surely


@pytest.mark.parametrize("small", [256, 0], ids=["read", "indexed"])
def test_no_address_is_allocated_twice_or_lost_by_kills(tmp_path: Path, small: int) -> None:
    """After each kill, certain owners are on disk, no address has two owners, and no other lease
    exists. The next process releases what the killed one may have had. In the end all is free."""
    dice = Random(7)
    (tmp_path / "blue").mkdir()
    workers = {name: Worker(tmp_path, f"{name}.0", small, set()) for name in "abc"}
    try:
        for turn in range(1, 9):
            name = dice.choice("abc")
            workers[name].ready()
            time.sleep(dice.random() * 0.05)
            maybe, surely = workers[name].kill()
            on_disk = {owner.container: str(address) for address, owner, _ in owners(str(tmp_path / "blue"))}
            assert {each: on_disk.get(each) for each in surely} == surely
            mine = {each for each in on_disk if each.startswith(name)}
            assert mine <= maybe
            workers[name] = Worker(tmp_path, f"{name}.{turn}", small, maybe)
        left = set()
        surely = {}
        for worker in workers.values():
            worker.ready()
            maybe, held = worker.kill()
            left |= maybe
            surely |= held
        assert len(set(surely.values())) == len(surely)
    finally:
        for worker in workers.values():
            worker.process.kill()
            worker.process.wait()
    done = sum(log.read_text().count("+") for log in tmp_path.glob("log.*"))
    assert done > 50
    assert not b"".join(each.read_bytes() for each in tmp_path.glob("errors.*"))
    state = HostState(str(tmp_path / "index"), 0.0, lambda network, owner: True)
    for container in left:
        release(str(tmp_path / "blue"), "blue", Owner(container, "eth0"), state)
    pool = pool_of(tmp_path)
    given = {str(reserve(pool, Owner(f"z{number}", "eth0"), state).ips[0].address) for number in range(29)}
    assert len(given) == 29


def host_local(verb: str, data: Path, container: str) -> subprocess.CompletedProcess[str]:
    config = {
        "cniVersion": "1.0.0",
        "name": "blue",
        "type": "bridge",
        "ipam": {"type": "host-local", "subnet": "10.1.0.0/27", "dataDir": str(data)},
    }
    environment = {
        "CNI_COMMAND": verb,
        "CNI_CONTAINERID": container,
        "CNI_IFNAME": "eth0",
        "CNI_NETNS": "/nonexistent",
        "CNI_PATH": "/usr/lib/cni",
    }
    return subprocess.run(
        [HOST_LOCAL], input=json.dumps(config), env=environment, capture_output=True, text=True, timeout=20, check=False
    )


@pytest.mark.skipif(not os.access(HOST_LOCAL, os.X_OK), reason=f"there is no {HOST_LOCAL}")
@pytest.mark.parametrize("small", [256, 0], ids=["read", "indexed"])
def test_the_real_host_local_beside_weft(tmp_path: Path, small: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(view_module, "SMALL", small)
    state = HostState(str(tmp_path / "index"), 0.0, lambda network, owner: True)
    pool, dice = pool_of(tmp_path), Random(3)
    model: dict[str, str] = {}
    for step in range(60):
        ours = dice.random() < 0.5
        if model and dice.random() < 0.4:
            container = dice.choice(sorted(model))
            if ours:
                release(pool.directory, "blue", Owner(container, "eth0"), state)
            else:
                assert host_local("DEL", tmp_path, container).returncode == 0
            del model[container]
        else:
            container = f"c{step}"
            if ours:
                expected = preview(pool, Owner(container, "eth0"), state)
                answer = reserve(pool, Owner(container, "eth0"), state)
                assert answer == expected
                model[container] = str(answer.ips[0].address)
            else:
                expected = preview(pool, Owner(container, "eth0"), state)
                done = host_local("ADD", tmp_path, container)
                assert done.returncode == 0, done.stdout
                model[container] = json.loads(done.stdout)["ips"][0]["address"]
                assert model[container] == str(expected.ips[0].address)
        held = {owner.container: f"{address}/27" for address, owner, _ in owners(pool.directory)}
        assert held == model
    for container in model:
        assert host_local("CHECK", tmp_path, container).returncode == 0
