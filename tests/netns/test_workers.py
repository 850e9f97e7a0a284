"""What parses DNS, HTTP and answers to checks runs without privileges; its loss is short and touches nothing else."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from netns.test_services import CHECKED, STARTS, Load, Topology

from lab.callers import status
from lab.host import Host
from lab.plugins import ROOT, Cni
from lab.services import Greeters, Held
from lab.waiting import until
from weft.capabilities import AGENT, SPAWNER, Capability

NOBODY = ["65534"] * 4
_SLOW = 5.0
"""Times longer than on an idle machine, at most."""

WRITES = """
import http.client
client = http.client.HTTPConnection("127.0.0.1", 8500)
client.request("PUT", "/v1/kv/key", "other")
print(client.getresponse().status)
"""


@pytest.fixture
def topology(host: Host, cni: Cni) -> Iterator[Topology]:
    made = Topology(host, cni)
    try:
        yield made
    finally:
        made.close()


def children(process: int) -> dict[str, int]:
    """The processes that a process has started, by name."""
    found = {}
    with contextlib.suppress(OSError):
        for child in Path(f"/proc/{process}/task/{process}/children").read_text().split():
            with contextlib.suppress(OSError):
                found[Path(f"/proc/{child}/comm").read_text().strip()] = int(child)
    return found


def worker(topology: Topology, name: str = "weft-dns") -> int:
    """The process id of an agent's worker, 0 if there is none."""
    return children(children(topology.agent()).get("weft-spawner", 0)).get(name, 0)


def mask(capabilities: tuple[Capability, ...]) -> str:
    return f"{sum(1 << one for one in capabilities):016x}"


def capabilities(process: int) -> list[str]:
    found = status(process)
    return [found[f"Cap{name}"] for name in ("Prm", "Eff", "Inh", "Amb")]


def assert_unprivileged(process: int) -> None:
    found = status(process)
    assert {found[f"Cap{name}"] for name in ("Prm", "Eff", "Inh", "Amb", "Bnd")} == {"0" * 16}
    assert (found["NoNewPrivs"], found["Seccomp"]) == ("1", "2")
    assert found["Uid"].split() == found["Gid"].split() == NOBODY and not found["Groups"]


def test_what_parses_dns_has_no_privilege_and_is_replaced(topology: Topology) -> None:
    for name in ("a", "client"):
        topology.add(name, "blue", 10, services=[] if name == "client" else [CHECKED])
    topology.until_healthy("a")
    agent = topology.agent()
    spawner, none = children(agent)["weft-spawner"], "0" * 16
    assert capabilities(agent) == [mask(AGENT), mask(AGENT), none, none]
    assert capabilities(spawner) == [mask(SPAWNER), mask(SPAWNER), none, none]
    assert_unprivileged(worker(topology))

    held = Held("/run/netns/client", topology.virtual(), 80, 5)
    try:
        with Load(topology, "client") as load:
            until(lambda: load.answers[topology.address("a")] > 5)
            for number in (signal.SIGKILL, signal.SIGSTOP):
                before = worker(topology)
                os.kill(before, number)
                began, answered = time.monotonic(), load.answers[topology.address("a")]
                until(lambda: worker(topology) not in (0, before), STARTS, "another process")  # noqa: B023
                until(lambda: load.answers[topology.address("a")] > answered + 1, STARTS, "DNS")  # noqa: B023
                seconds = time.monotonic() - began
                print(f"DNS was back {seconds:.2f} s after {number.name}")
                assert seconds < 2 * _SLOW
        assert set(load.connections) == {"a"}
        assert set(load.answers) <= {topology.address("a"), "silent"}
        assert held.alive() == 5
    finally:
        held.close()
    assert topology.agent() == agent
    left = (spawner, worker(topology))
    os.kill(agent, signal.SIGKILL)
    until(lambda: not any(_lives(one) for one in left), what="the end of the agent's processes")


def test_what_reads_answers_to_checks_has_no_privilege_and_is_replaced(topology: Topology) -> None:
    topology.add("a", "blue", 10, services=[CHECKED])
    topology.until_healthy("a")
    before = worker(topology, "weft-probes")
    assert_unprivileged(before)
    os.kill(before, signal.SIGKILL)
    topology.servers["a"].close()
    until(lambda: topology.healthy() == [], STARTS, "a critical check")
    before = worker(topology, "weft-probes")
    os.kill(before, signal.SIGSTOP)
    topology.servers["a"] = Greeters("/run/netns/a", {"a": ("::", 80)})
    topology.until_healthy("a")
    assert worker(topology, "weft-probes") not in (0, before)


GRPC_SERVER = """
import asyncio, grpc
class Health(grpc.GenericRpcHandler):
    def service(self, details):
        async def answer(request, context):
            return b"\\x08\\x01" if request == b"\\x0a\\x03web" else b"\\x08\\x02"
        return grpc.unary_unary_rpc_method_handler(answer)
async def serve():
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((Health(),))
    server.add_insecure_port("127.0.0.1:9123")
    await server.start()
    await server.wait_for_termination()
asyncio.run(serve())
"""


def test_grpc_checks_and_lookups_have_no_privilege_and_are_replaced(topology: Topology) -> None:
    """Both in processes that may start threads and read files, as nobody; what they have not done, the next ones do."""
    topology.add("a", "blue", 10, services=[CHECKED])
    topology.until_healthy("a")
    topology.host.start(str(ROOT / ".venv/bin/python"), "-Ic", GRPC_SERVER)
    checks = {"web": {"GRPC": "127.0.0.1:9123/web"}, "db": {"GRPC": "127.0.0.1:9123/db"}, "no": {"TCP": "no.invalid:1"}}
    for name, check in checks.items():
        body = {"ID": name, "Name": name, "Interval": "1s", "Timeout": "9s", **check}
        topology.api("/v1/agent/check/register", "PUT", body)

    def results() -> dict[str, tuple[str, str]]:
        found = topology.api("/v1/agent/checks")
        return {name: (found[name]["Status"], found[name]["Output"].rpartition(": ")[2]) for name in checks}

    wanted = {"web": ("passing", "SERVING"), "db": ("critical", "NOT_SERVING")}
    until(lambda: wanted.items() <= results().items(), STARTS, "results of gRPC checks")
    until(lambda: "[Errno -" in results()["no"][1], STARTS, "the result of a lookup")
    processes = {name: worker(topology, f"weft-{name}") for name in ("grpc", "lookups")}
    for process in processes.values():
        assert_unprivileged(process)
        os.kill(process, signal.SIGKILL)
    until(lambda: all(worker(topology, f"weft-{name}") not in (0, before) for name, before in processes.items()))
    topology.api("/v1/agent/check/register", "PUT", {"Name": "new", "Interval": "1s", **checks["web"]})
    until(lambda: topology.api("/v1/agent/checks")["new"]["Status"] == "passing", STARTS, "a check by a new process")


def test_what_speaks_http_has_no_privilege_and_is_replaced(topology: Topology) -> None:
    """Who calls is asked of the kernel by the agent; a worker that is lost takes its connections with it."""
    topology.add("a", "blue", 10, services=[CHECKED])
    topology.until_healthy("a")
    agent, before = topology.agent(), worker(topology, "weft-http")
    assert_unprivileged(before)
    topology.api("/v1/kv/key", "PUT", "value")
    refused = topology.host.run("setpriv", "--reuid=65534", "--clear-groups", "/usr/bin/python3", "-ISc", WRITES)
    assert refused.stdout == "403\n"
    for number in (signal.SIGKILL, signal.SIGSTOP):
        before = worker(topology, "weft-http")
        os.kill(before, number)
        began = time.monotonic()
        until(lambda: worker(topology, "weft-http") not in (0, before), STARTS, "another process")  # noqa: B023
        assert topology.api("/v1/kv/key?raw") == "value"
        print(f"HTTP was back {time.monotonic() - began:.2f} s after {number.name}")
    assert topology.agent() == agent
    topology.until_healthy("a")


def _lives(process: int) -> bool:
    with contextlib.suppress(OSError):
        return status(process)["State"][0] not in "ZX"
    return False
