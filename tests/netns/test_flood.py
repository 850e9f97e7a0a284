"""Concurrent calls, and calls killed at random times: no address twice, no error, nothing left."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import time
from functools import partial

from lab.calls import Answer, Weft, at_once, leases, variables
from lab.cases import EVERYWHERE, Conf, conf, pool
from lab.ground import held_twice, rest
from lab.host import Host
from lab.plugins import chosen_folder
from lab.waiting import until

MANY = 64
KILLS = 1000


def _red(number: int = 0) -> Conf:
    """A bridge network with masquerading, two addresses and a published port for each container."""
    ports = [{"hostPort": 20000 + number, "containerPort": 80, "protocol": "tcp"}] if number else []
    keys: Conf = {"driver": "bridge", "bridge": "wred", "isGateway": True, "ipMasq": True, "portmap": {}}
    addresses = pool("10.40.0.0/24", "fd00:40::/64", routes=EVERYWHERE)
    return conf("weft", "red", {**keys, "ipam": addresses, "runtimeConfig": {"portMappings": ports}})


def _processes(command: str, confs: list[Conf], paths: list[str]) -> list[tuple[int, bytes]]:
    """One process of the executable for each container, all started before the first is awaited."""
    started = []
    for number, (each, path) in enumerate(zip(confs, paths, strict=True), 1):
        environment = {**variables(command, f"c{number}", path, "eth0"), "PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}
        process = subprocess.Popen(
            [str(chosen_folder() / each["type"])],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment,
        )  # fmt: skip
        assert process.stdin is not None
        process.stdin.write(json.dumps(each).encode())
        process.stdin.close()
        process.stdin = None
        started.append(process)
    ended = [(process, process.communicate(timeout=120)) for process in started]
    return [(process.returncode, output) for process, (output, _) in ended]


def test_64_at_once(host: Host) -> None:
    weft = Weft()
    paths = [host.container(f"c{number}") for number in range(1, MANY + 1)]
    confs = [_red(number) for number in range(1, MANY + 1)]
    added = _processes("ADD", confs, paths)
    assert [answer for answer in added if answer[0] != 0] == []
    results = [json.loads(output) for _, output in added]
    addresses = [ip["address"] for result in results for ip in result["ips"]]
    assert len(set(addresses)) == 2 * MANY
    assert len(leases("red")) == 2 * MANY
    assert held_twice("red", {f"c{number}": path for number, path in enumerate(paths, 1)}) == []
    complaints = [
        weft.check(each, result, path, f"c{number}")
        for number, (each, result, path) in enumerate(zip(confs, results, paths, strict=True), 1)
    ]
    assert [complaint for complaint in complaints if complaint] == []
    deleted = _processes("DEL", confs, paths)
    assert [answer for answer in deleted if answer != (0, b"")] == []
    assert leases("red") == {}
    weft.collect(_red())
    assert rest(*paths) == []


def test_concurrent_first_adds(host: Host) -> None:
    """32 ADDs find neither bridge, rules nor directories; then two networks share a bridge."""
    weft = Weft()
    paths = [host.container(f"c{number}") for number in range(1, 33)]
    blue = {**_red(), "name": "blue", "isGateway": False, "ipam": pool("10.41.0.0/24")}
    for confs in ([_red()], [_red()], [_red(), blue], [_red(), blue]):
        given = [confs[number % len(confs)] for number in range(32)]
        added = at_once([partial(weft, "ADD", given[n], path, f"c{n}") for n, path in enumerate(paths)])
        assert [answer for answer in added if not answer.ok] == []
        for n, path in enumerate(paths):
            assert weft.check(given[n], added[n].document, path, f"c{n}") == ""
        deleted = at_once([partial(weft, "DEL", given[n], path, f"c{n}") for n, path in enumerate(paths)])
        assert [answer for answer in deleted if not answer.ok] == []
        for each in confs:
            weft.collect(each)
        assert rest(*paths) == []


def test_additions_removals_and_collections_together(host: Host) -> None:
    """GC keeps the attachments that it is given as valid, during concurrent ADDs and DELs."""
    weft = Weft()
    paths = [host.container(f"c{number}") for number in range(16)]
    valid = [(f"c{number}", "eth0") for number in range(16)]
    keep = [{"containerID": container, "ifname": name} for container, name in valid]
    sweep = {**_red(), "cni.dev/valid-attachments": keep}
    for _ in range(4):
        works = [partial(weft, "ADD", _red(), path, f"c{n}") for n, path in enumerate(paths)]
        works += [partial(weft, "GC", sweep)] * 4
        answers = at_once(works)
        assert [answer for answer in answers if not answer.ok] == []
        assert [weft.check(_red(), answers[n].document, path, f"c{n}") for n, path in enumerate(paths)] == [""] * 16
        works = [partial(weft, "DEL", _red(), path, f"c{n}") for n, path in enumerate(paths)]
        answers = at_once(works + [partial(weft, "GC", sweep)] * 4)
        assert [answer for answer in answers if not answer.ok] == []
        assert leases("red") == {}
    weft.collect(_red())
    assert rest(*paths) == []


class Churn:
    """ADD and DEL of 16 containers on two networks; some are killed after a random time."""

    def __init__(self, host: Host, seed: int) -> None:
        self._random = random.Random(seed)
        self.paths = [host.container(f"c{number}") for number in range(16)]
        self.confs = [_red(number + 1) for number in range(16)]
        blue = conf("ptp", "blue", {"ipMasq": True, "ipam": pool("10.42.0.0/27", routes=EVERYWHERE)})
        self.confs[8:] = [blue] * 8
        self._weft = Weft()
        self._running: dict[int, float] = {}
        self.killed = 0
        self.answers: list[Answer] = []

    def start(self) -> None:
        number = self._random.randrange(16)
        command = self._random.choice(("ADD", "ADD", "DEL"))
        path = self.paths[number] if self._random.random() < 0.9 or command == "ADD" else ""
        child = os.fork()
        if child == 0:
            try:
                answer = self._weft(command, self.confs[number], path, f"c{number}")
                expected = answer.ok or "is already attached" in answer.text
                if not expected:
                    os.write(2, f"{command} c{number}: {answer}\n".encode())
                os._exit(0 if expected else 1)
            finally:
                os._exit(2)
        self._running[child] = time.monotonic() + self._random.uniform(0, 0.09)

    def wait(self, most: int) -> None:
        """Kill those whose time is over until ``most`` run; AssertionError if a call failed."""
        while len(self._running) > most:
            for child, end in list(self._running.items()):
                ended, status = os.waitpid(child, os.WNOHANG)
                if not ended and time.monotonic() >= end:
                    os.kill(child, signal.SIGKILL)
                    ended, status = os.waitpid(child, 0)
                if ended:
                    del self._running[child]
                    if os.WIFSIGNALED(status):
                        self.killed += 1
                    else:
                        assert status == 0, "a call failed; see standard error"
            time.sleep(0.001)

    def stop(self) -> None:
        for child in self._running:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)


def test_a_thousand_kills(host: Host) -> None:
    """In forked children: most kills of an executable would hit the interpreter's start."""
    seed = int(os.environ.get("WEFT_TEST_SEED") or random.SystemRandom().randrange(1 << 32))
    print(f"WEFT_TEST_SEED={seed}")
    churn, weft = Churn(host, seed), Weft()
    red = {f"c{number}": churn.paths[number] for number in range(8)}
    blue = {f"c{number}": churn.paths[number] for number in range(8, 16)}
    try:
        while churn.killed < KILLS:
            for _ in range(40):
                churn.start()
                churn.wait(3)
            churn.wait(0)
            assert held_twice("red", red) + held_twice("blue", blue) == [], f"seed {seed}"
    finally:
        churn.stop()
    weft.collect(churn.confs[0])
    weft.collect(churn.confs[8])
    assert rest(*churn.paths) == [], f"seed {seed}"


def test_executables_killed_at_random(host: Host) -> None:
    """The executable itself, killed while it starts, reads, works or writes its result."""
    chance = random.Random(11)
    path, weft = host.container(), Weft()
    for number in range(48):
        command = ("ADD", "DEL")[number % 2]
        process = subprocess.Popen(
            [str(chosen_folder() / "weft")], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL,
            env={**variables(command, "c1", path, "eth0"), "PATH": "/usr/sbin:/usr/bin"},
        )  # fmt: skip
        assert process.stdin is not None
        process.stdin.write(json.dumps(_red(1)).encode())
        process.stdin.close()
        try:
            process.wait(timeout=chance.uniform(0, 0.3))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        assert held_twice("red", {"c1": path}) == []
    weft.collect(_red())
    # An engine that a call has started may hold the shared lock once more, whose file goes with it.
    until(lambda: rest(path) == [], what=f"the removal of {rest(path)}")
