"""Events of calls, repairs and checks on the real kernel, by whichever process serves them."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

from cni_plugin.cli import agents
from lab import seen
from lab.commands import Outcome, run
from lab.confs import SUBNET, bridge, pool
from lab.host import Host
from lab.plugins import ROOT, Cni
from lab.waiting import until


def weft(*words: str) -> Outcome:
    return run(str(ROOT / "bin/weft"), *words, environment={"PATH": os.environ["PATH"]}, timeout=120)


def told(*words: str) -> list[dict[str, object]]:
    return [json.loads(line) for line in weft("events", "--json", *words).stdout.splitlines()]


def test_calls_repairs_and_health_are_events(host: Host, cni: Cni) -> None:
    conf = {**bridge(pool(SUBNET)), "isGateway": True, "ipMasq": True}
    netns = host.container()
    before = len(told())
    result = cni.add(conf, netns, container="c1")
    problem = seen.problem(cni, "ADD", conf, netns)
    seen.problem(cni, "ADD", {**conf, "mtu": "much"}, netns)
    added, refused, invalid = told()[before:]
    assert (added["event"], added["container"], added["network"]) == ("add", "c1", conf["name"])
    assert added["addresses"] == result["ips"][0]["address"] and float(str(added["ms"])) > 0
    assert "[" in str(added["by"]) and "error" not in added
    assert (refused["code"], refused["error"]) == (problem["code"], problem["msg"])
    assert invalid["code"] == 7 and "mtu" in str(invalid["error"])
    cni.delete(conf, netns, container="c1")
    assert [one["event"] for one in told("--filter", "container=c1")][-1] == "del"

    weft("up")
    try:
        weft("network", "create", "blue", "--subnet", "10.7.0.0/24", "--config-dir", "/run/nets")
        weft("attach", "blue", "c1", "--config-dir", "/run/nets")
        host.run("nft", "delete", "table", "inet", "weft")
        until(lambda: told("--filter", "event=repair"), 60.0, "the repair")
        check = {"name": "up", "tcp": "127.0.0.1:9", "interval": "200ms"}
        Path("/run/db.json").write_text(json.dumps({"service": {"name": "db", "port": 9, "check": check}}))
        weft("services", "register", "/run/db.json")
        server = host.serve_tcp(None, 9)
        until(lambda: [one["status"] for one in told("--filter", "event=health")][-1:] == ["passing"], 60.0, "health")
        server.close()
        until(lambda: [one["status"] for one in told("--filter", "event=health")][-1:] == ["critical"], 60.0, "health")
        assert "HTTP API" in weft("logs").stdout
        assert agents.running() is not None

        denied = ("setpriv", "--reuid=65534", "--clear-groups", "curl", "-sS", "-X", "PUT")
        host.run(*denied, "http://127.0.0.1:8500/v1/agent/leave")
        [refused] = told("--filter", "event=refusal")
        assert (refused["by"], refused["what"]) == ("uid 65534", "PUT /v1/agent/leave") and "ms" in refused
        running = agents.running()
        assert running is not None
        killed = running.process
        os.kill(killed, signal.SIGKILL)
        until(lambda: agents.running() is None, 60.0, "the end of the agent")
        weft("up")
        [taken] = told("--filter", "event=takeover", "--filter", "what=agent")
        assert (taken["from"], taken["why"]) == (f"process {killed}", "it was killed")
    finally:
        weft("down", "--services")


def test_an_address_that_is_taken_over_is_an_event(host: Host, cni: Cni) -> None:
    conf = {**bridge(pool(SUBNET)), "isGateway": True}
    first = cni.add(conf, host.container("first"), container="c1")
    host.remove_container("first")
    second = host.container("second")
    cni.add(conf, second, container="c1")
    [taken] = told("--filter", "event=takeover", "--filter", "what=addresses", "--filter", "container=c1")
    assert str(taken["from"]).startswith(str(first["ips"][0]["address"]).partition("/")[0])
    assert taken["why"] == "its namespace is gone" and "[" in str(taken["by"]) and "ms" in taken
    cni.delete(conf, second, container="c1")
