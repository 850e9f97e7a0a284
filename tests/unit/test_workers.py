"""Processes that parse what others send: what they may call, how they start and end, and what is refused
of what they say.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path

import pytest

from cni_plugin.agent import workers
from cni_plugin.agent.dns_front import DnsFront
from cni_plugin.agent.lookup_front import LookupFront
from cni_plugin.agent.probe_front import ProbeFront
from discovery.catalog import Catalog
from discovery.dns.network_zones import NetworkZones
from discovery.dns.settings import DnsSettings
from discovery.health.probes import ProbeResult
from discovery.metrics import Metrics
from discovery.structs import CheckDefinition, Status
from lab.waiting import PATIENTLY
from weft.kernel import netns
from weft.pair import Message, Pair, receive_first
from weft.spawner import Spawner

ROOT = Path(__file__).resolve().parents[2]

CONFINED = """
import ctypes, errno, os, signal, socket, sys, threading
sys.path.insert(0, sys.argv[1])
from weft import confinement
ctypes.CDLL(confinement._LIBRARY)
libc = ctypes.CDLL(None, use_errno=True)
own = os.getpid()
buffer = ctypes.create_string_buffer(1)
page = ctypes.addressof(buffer) & ~4095
status = open("/proc/self/status")
assert confinement.confine_worker()
def failed(what, *arguments):
    try:
        what(*arguments).close()
    except OSError as error:
        return error.errno == errno.EPERM
    except RuntimeError as error:
        return "start new thread" in str(error)
for what in ((open, "/etc/passwd"), (os.stat, "/"), (os.listdir, "/proc"), (os.unlink, "/x"), (os.fork,), (os.pipe,),
             (os.kill, own, 0), (os.execv, "/bin/true", ["true"]), (os.chmod, "/x", 0), (os.setresuid, 0, 0, 0),
             (os.mkdir, "/x"), (os.chdir, "/"), (os.memfd_create, "x"), (socket.socketpair,),
             (threading.Thread(target=own).start,)):
    assert failed(*what), what
for family, kind in ((1, 1), (1, 2), (16, 3), (17, 3), (17, 2), (2, 3), (10, 3), (38, 5), (40, 1)):
    assert failed(socket.socket, family, kind), (family, kind)
for family, kind in ((2, 1), (2, 2), (10, 1), (10, 2)):
    socket.socket(family, kind).close()
for call in (("mount", b"x", b"/mnt", b"tmpfs", 0, None), ("unshare", 0x10000000), ("ptrace", 16, 1, None, None),
             ("setns", 0, 0), ("prctl", 8, 1), ("mprotect", ctypes.c_void_p(page), 1, 7)):
    assert libc[call[0]](*call[1:]) == -1 and ctypes.get_errno() == errno.EPERM, call
lines = dict(line.split(None, 1) for line in status if line.startswith(("Cap", "NoNewPrivs", "Seccomp:")))
assert [int(lines[f"Cap{one}:"], 16) for one in ("Inh", "Prm", "Eff", "Amb")] == [0] * 4, lines
assert (int(lines["NoNewPrivs:"]), int(lines["Seccomp:"])) == (1, 2), lines
"""

WITH_THREADS = """
import asyncio, ctypes, errno, os, socket, sys, threading
sys.path.insert(0, sys.argv[1])
from weft import confinement
from discovery.health.resolver import Resolver
ctypes.CDLL(confinement._LIBRARY)
libc = ctypes.CDLL(None, use_errno=True)
own = os.getpid()
buffer = ctypes.create_string_buffer(1)
page = ctypes.addressof(buffer) & ~4095
assert confinement.confine_worker(threads=True)
def failed(what, *arguments):
    try:
        what(*arguments)
    except OSError as error:
        return error.errno == errno.EPERM
for flags in (os.O_WRONLY, os.O_RDWR, os.O_CREAT, os.O_TRUNC, os.O_TMPFILE | os.O_RDWR, os.O_APPEND):
    assert failed(os.open, "/tmp", flags), flags
for what in ((os.unlink, "/x"), (os.fork,), (os.kill, own, 0), (os.execv, "/bin/true", ["true"]), (os.mkdir, "/x"),
             (os.chmod, "/x", 0), (os.rename, "/x", "/y"), (os.setresuid, 0, 0, 0), (os.chdir, "/"),
             (os.memfd_create, "x")):
    assert failed(*what), what
for family, kind in ((1, 5), (16, 3), (17, 3), (2, 3), (10, 3), (38, 5), (40, 1)):
    assert failed(socket.socket, family, kind), (family, kind)
for call in (("mount", b"x", b"/mnt", b"tmpfs", 0, None), ("unshare", 0x10000000), ("ptrace", 16, 1, None, None),
             ("setns", 0, 0), ("prctl", 8, 1), ("mprotect", ctypes.c_void_p(page), 1, 7), ("process_vm_readv", own),
             ("setrlimit", 7, ctypes.c_void_p(page))):
    assert libc[call[0]](*call[1:]) == -1 and ctypes.get_errno() == errno.EPERM, call
assert libc.mmap(None, 4096, 7, 0x22, -1, 0) == -1
open("/etc/hosts").close()
async def look_up():
    lookup = await Resolver().start(sys.argv[2])
    return await asyncio.shield(lookup)
with asyncio.Runner() as runner:
    print(runner.run(look_up()))
"""

FAILING = """
import os, socket, sys
sys.path.insert(0, sys.argv[1])
from weft.spawner import Spawner
def echo(end):
    while data := end.recv(10):
        end.sendall(data)
def fail(end):
    raise ValueError("no")
def status(process):
    with open(f"/proc/{process}/status") as file:
        return dict(line.split(":", 1) for line in file)
os.pipe()
spawner = Spawner({"echo": lambda: echo, "fail": lambda: fail})
processes = [spawner.process]
for _ in range(3):
    process, end = spawner.start("echo")
    processes.append(process)
    end.sendall(b"x")
    assert end.recv(10) == b"x"
    assert len(os.listdir(f"/proc/{process}/fd")) == 4, "standard descriptors and the pair"
    if os.geteuid() == 0:
        found = status(process)
        assert found["Uid"].split() == found["Gid"].split() == ["65534"] * 4 and not found["Groups"].strip(), found
        assert int(found["CapBnd"], 16) == int(found["CapPrm"], 16) == 0, found
    spawner.kill(process)
    assert end.recv(10) == b""
spawner.kill(1)
spawner.kill(os.getpid())
process, end = spawner.start("fail")
assert end.recv(10) == b""
try:
    spawner.start("other")
except Exception as error:
    print(error)
process, end = spawner.start("echo")
processes.append(process)
spawner.close()
assert not [one for one in processes if os.path.exists(f"/proc/{one}") and status(one)["State"].strip()[0] != "Z"]
"""


def run(program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-Ic", program, str(ROOT), *arguments], capture_output=True, text=True, check=False, timeout=60
    )


def test_a_worker_opens_no_file_and_starts_nothing() -> None:
    done = run(CONFINED)
    if "cannot open shared object" in done.stderr:
        pytest.skip("no libseccomp here: a worker then has only its user and no capabilities")
    assert done.returncode == 0, done.stderr


def test_a_worker_with_threads_reads_and_does_nothing_else() -> None:
    """getaddrinfo(3) works there: this host's name is looked up as without confinement, found or not."""
    done = run(WITH_THREADS.replace("sys.argv[2]", "'127.0.0.9'"))
    if "cannot open shared object" in done.stderr:
        pytest.skip("no libseccomp here: a worker then has only its user and no capabilities")
    assert done.returncode == 0, done.stderr
    names = [line.split()[1] for line in Path("/etc/hosts").read_text().splitlines() if line.startswith("127.")]
    for name in [one for one in names if one != "localhost"][:1]:
        done = run(WITH_THREADS, name)
        assert "'127." in done.stdout, done.stderr


def test_workers_start_and_end_with_their_daemon() -> None:
    done = run(FAILING)
    assert done.returncode == 0, done.stderr
    assert "ValueError: no" in done.stderr


class Ends:
    """A pair whose other end a test has."""

    def __init__(self) -> None:
        own, self.other = socket.socketpair()
        self.other.setblocking(False)
        self.messages: list[Message] = []
        self.ended: list[str] = []
        self.pair = Pair(own, 100, lambda message, descriptors: self.messages.append(message), self.ended.append)


async def wait(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENTLY
    while not condition():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.01)


def framed(text: bytes, descriptors: int = 0, payload: bytes = b"") -> bytes:
    lengths = len(text).to_bytes(4, "big") + len(payload).to_bytes(4, "big")
    return lengths + bytes((descriptors,)) + text + payload


@pytest.mark.parametrize(
    "sent",
    [
        framed(b"[" + b"1," * 60 + b"1]"), framed(b'["x"'), framed(b"{}"), framed(b"[]"), framed(b"\xff"),
        framed(b'["x"]', 1), b"\xff" * 9, framed(b"[" * 99), framed(b'["x"]', payload=b"x" * 96),
    ],
    ids=["large", "no JSON", "no list", "empty", "no text", "descriptor", "length", "deep", "large bytes"],
)  # fmt: skip
def test_what_is_no_message_ends_the_pair(sent: bytes) -> None:
    async def test() -> None:
        ends = Ends()
        ends.other.send(framed(b'["good"]') + sent)
        await wait(lambda: ends.ended)
        assert ends.ended[0]
        assert ends.messages == [["good"]]
        assert not ends.pair.is_open

    asyncio.run(test())


def test_descriptors_that_nobody_expects_end_the_pair() -> None:
    async def test() -> None:
        ends = Ends()
        before = len(os.listdir("/proc/self/fd"))
        socket.send_fds(ends.other, [framed(b'["x"]')], [0, 1])
        await wait(lambda: ends.ended)
        assert "descriptors" in ends.ended[0] and not ends.messages
        assert len(os.listdir("/proc/self/fd")) == before - 1, "the pair's own is closed, and those that came"

    asyncio.run(test())


def test_large_messages_and_their_descriptors_arrive_in_order() -> None:
    async def test() -> None:
        one, other = socket.socketpair()
        found: list[tuple[Message, list[int]]] = []
        receiver = Pair(one, 1 << 24, lambda *both: found.append(both), lambda why: None, descriptors=4)
        sender = Pair(other, 100, lambda *both: None, lambda why: None)
        read, write = os.pipe()
        text = "x" * 2_000_000
        for number in range(3):
            sender.send([number, text], [write] if number == 1 else [])
        os.close(write)
        await wait(lambda: len(found) == 3)
        assert [(message[0], len(descriptors)) for message, descriptors in found] == [(0, 0), (1, 1), (2, 0)]
        assert all(message[1] == text for message, _ in found)
        os.write(found[1][1][0], b"y")
        assert os.read(read, 1) == b"y"
        receiver.close()
        sender.close()

    asyncio.run(test())


class FakeSpawner(Spawner):
    """Starts workers that a test plays."""

    def __init__(self) -> None:
        self.workers: list[socket.socket] = []
        self.killed: list[int] = []

    def start(self, name: str) -> tuple[int, socket.socket]:
        own, other = socket.socketpair()
        other.setblocking(False)
        self.workers.append(other)
        return os.getpid() + len(self.workers), own

    def kill(self, process: int) -> None:
        self.killed.append(process)


def test_a_busy_worker_is_not_taken_for_hung(monkeypatch: pytest.MonkeyPatch) -> None:
    """It has as much time as it uses a processor for, on a loaded machine; then, or without progress, it is hung."""
    now, used = [0.0], [0.0]
    monkeypatch.setattr(workers.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(workers, "_processor_seconds", lambda process: used[0])

    def hung(seconds: float, work: float) -> bool:
        now[0] += seconds
        used[0] += work
        return one._is_hung(now[0])

    one = object.__new__(workers.Worker)
    one._process, one._progress = 1, []
    assert not any(hung(5.0, 0.9) for _ in range(12))
    assert hung(5.0, 0.9)
    assert not one._is_hung(0.5)
    assert not hung(2.0, 0.0)
    assert not hung(9.0, 0.0)
    assert hung(2.0, 0.0)


COUNTS = [1, 2, *range(9)]


@pytest.mark.parametrize(
    "answer",
    [
        ["pong", 1, *COUNTS[:-1]], ["pong", 1, *COUNTS, 1], ["pong", 99, *COUNTS], ["pong", 0, *COUNTS],
        ["pong", 1, *COUNTS[:-1], -1], ["pong", 1, *COUNTS[:-1], True], ["pong", 1, *COUNTS[:-1], "1"],
        ["pong", 1, *COUNTS[:-1], 1e9], ["pong", 1, *COUNTS[:-1], 1 << 70], ["open", "0.0.0.0", 53], [["pong"]],
        ["pong", *["x" * 500] * 4],
    ],
    ids=str,
)  # fmt: skip
def test_a_worker_that_says_anything_else_is_replaced(answer: Message) -> None:
    async def test(spawner: FakeSpawner, front: DnsFront) -> None:
        spawner.workers[0].send(framed(json.dumps(answer).encode()))
        await wait(lambda: len(spawner.workers) == 2)
        assert spawner.killed
        assert front.counters.queries == 0

    served(test)


def test_counts_of_a_replaced_worker_are_kept() -> None:
    async def test(spawner: FakeSpawner, front: DnsFront) -> None:
        for number in range(2):
            worker = spawner.workers[number]
            said = json.dumps(["pong", number + 1, *COUNTS[:2], 10, *COUNTS[3:]]).encode()
            worker.send(framed(said))
            await wait(lambda: front.counters.queries == 10 * (number + 1))  # noqa: B023
            worker.close()
            await wait(lambda: len(spawner.workers) == number + 2)  # noqa: B023

    served(test)


HTTP = CheckDefinition("h", "h", "http", target="http://web:80/", interval=1.0)
INSIDE = CheckDefinition(
    "c", "c", "tcp", target="127.0.0.1:80", interval=1.0, netns="/proc/self/ns/net", reachable=("127.0.0.1",)
)


def probed(definition: CheckDefinition, test: Callable[[FakeSpawner, ProbeFront], Awaitable[None]]) -> ProbeResult:
    """The result of a check, whose worker the test plays."""

    async def run() -> ProbeResult:
        spawner = FakeSpawner()
        front = ProbeFront(spawner, Metrics(), LookupFront(spawner, Metrics()))
        probing = asyncio.create_task(front.probe(definition))
        await wait(lambda: spawner.workers)
        try:
            await test(spawner, front)
            return await asyncio.wait_for(probing, PATIENTLY)
        finally:
            probing.cancel()
            await front.stop()

    return asyncio.run(run())


def say(worker: socket.socket, *message: object) -> None:
    worker.send(framed(json.dumps(message).encode()))


def test_a_check_that_a_worker_has_not_finished_is_executed_by_the_next() -> None:
    async def test(spawner: FakeSpawner, front: ProbeFront) -> None:
        spawner.workers[0].close()
        await wait(lambda: len(spawner.workers) == 2)
        say(spawner.workers[1], "result", 1, "passing", "x" * 10_000)

    assert probed(HTTP, test) == (Status.PASSING, "x" * HTTP.output_max_size)


@pytest.mark.parametrize(
    "message",
    [
        ["result", 1, "fine", ""], ["result", 2, "passing", ""], ["result", "1", "passing", ""],
        ["result", 1, "passing"], ["lookup", 1, 1, "x" * 2000], ["lookup", 1, -1, "web"], ["lookup", 1, 1, 7],
        ["socket", 1], ["pong", 1, 1],
    ],
    ids=str,
)  # fmt: skip
def test_a_worker_that_says_no_result_is_replaced(message: Message) -> None:
    async def test(spawner: FakeSpawner, front: ProbeFront) -> None:
        say(spawner.workers[0], *message)
        await wait(lambda: len(spawner.workers) == 2)
        say(spawner.workers[1], "result", 1, "warning", "")

    assert probed(HTTP, test)[0] is Status.WARNING


NAME = CheckDefinition("n", "n", "tcp", target="db.example.com:80", interval=1.0)
LOOKED_UP = [
    ["found", 1, [[2, "127.0.0.1x"]]], ["found", 1, [[10, "127.0.0.1"]]], ["found", 1, [["2", "127.0.0.1"]]],
    ["found", 1, [[16, "127.0.0.1"]]], ["found", 1, "127.0.0.1"], ["found", 2, []], ["found", "1", []], ["failed", 1],
    ["failed", 1, 0, 7], ["started", 9], ["started"], ["lookup", 1, "x"], ["pong", 1, 1],
]  # fmt: skip


@pytest.mark.parametrize("message", LOOKED_UP, ids=str)
def test_a_worker_that_looks_nothing_up_is_replaced(message: Message) -> None:
    """What it has not looked up, the next one does, and the check gets that answer."""
    found: list[Message] = []

    async def test(spawner: FakeSpawner, front: ProbeFront) -> None:
        say(spawner.workers[0], "lookup", 1, 1, "db.example.com")
        await wait(lambda: len(spawner.workers) == 2)
        say(spawner.workers[1], *message)
        await wait(lambda: len(spawner.workers) == 3)
        say(spawner.workers[2], "started", 1)
        say(spawner.workers[2], "found", 1, [[2, "192.0.2.7"]])
        found.extend(await asyncio.to_thread(messages, spawner.workers[0], "found"))
        say(spawner.workers[0], "result", 1, "passing", "")

    probed(NAME, test)
    assert found == ["found", 1, 1, [[2, "192.0.2.7"]]]


def messages(worker: socket.socket, kind: str) -> Message:
    """The first message of a kind that the agent has sent to a worker."""
    worker.setblocking(True)
    worker.settimeout(PATIENTLY)
    while (found := receive_first(worker))[0] != kind:
        pass
    return found


def test_a_containers_check_looks_up_no_other_host() -> None:
    async def test(spawner: FakeSpawner, front: ProbeFront) -> None:
        say(spawner.workers[0], "lookup", 1, 1, "example.com")
        await wait(lambda: len(spawner.workers) == 2)
        say(spawner.workers[1], "result", 1, "passing", "")

    probed(replace(INSIDE, type="http", target="http://127.0.0.1/"), test)


@pytest.mark.parametrize(
    ("definition", "request_", "said"),
    [
        (INSIDE, [1, 2, "127.0.0.1", 80], ""),
        (INSIDE, [1, 2, "127.0.0.1", 81], "same host and port"),
        (INSIDE, [1, 2, "127.0.0.2", 80], "reaches the container alone"),
        (INSIDE, [1, 2, "::1", 80], "no such address"),
        (INSIDE, [1, 16, "127.0.0.1", 80], "no such check"),
        (INSIDE, [2, 2, "127.0.0.1", 80], "no such check"),
        (INSIDE, [1, 2, "127.0.0.1", "80"], "no such address"),
        (INSIDE, [1, 2, "localhost", 80], "does not appear"),
        (INSIDE, [1], "not enough"),
        (INSIDE, {}, "not enough"),
        (INSIDE, [[1], 2, "127.0.0.1", 80], "unhashable"),
        (HTTP, [1, 2, "127.0.0.1", 80], "no such check"),
        (replace(INSIDE, netns_inode=1), [1, 2, "127.0.0.1", 80], "not the container's network namespace"),
    ],
    ids=str,
)
def test_sockets_are_opened_as_the_check_permits(
    definition: CheckDefinition, request_: object, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(netns, "inside", lambda descriptor: contextlib.nullcontext())  # needs root

    async def test(spawner: FakeSpawner, front: ProbeFront) -> None:
        worker = spawner.workers[0]
        worker.setblocking(True)
        _, (control, *_), _, _ = await asyncio.to_thread(socket.recv_fds, worker, 1 << 16, 4)
        with socket.socket(fileno=control) as asking:
            asking.send(json.dumps(request_).encode())
            answer, found, _, _ = await asyncio.to_thread(socket.recv_fds, asking, 1024, 4)
        assert bool(found) is not bool(said)
        if said:
            assert said in json.loads(answer)[1]
        for one in found:
            with socket.socket(fileno=one) as opened:
                assert (opened.family, opened.type) == (socket.AF_INET, socket.SOCK_STREAM)
        say(worker, "result", 1, "passing", "")

    probed(definition, test)


def served(test: Callable[[FakeSpawner, DnsFront], Awaitable[None]]) -> None:
    async def run() -> None:
        spawner = FakeSpawner()
        settings = DnsSettings(listen=())
        front = DnsFront(Catalog(), NetworkZones(), settings, Metrics(), spawner)
        starting = asyncio.create_task(front.start())
        await wait(lambda: spawner.workers)
        try:
            await test(spawner, front)
        finally:
            starting.cancel()
            await front.stop()

    asyncio.run(run())
