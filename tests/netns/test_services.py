"""Names and services end to end: attachments, the agent that they start, DNS, HTTP, virtual
addresses."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import dns.message
import dns.rcode
import pytest

from lab import seen
from lab.confined import confined
from lab.confs import DEFAULT4, DEFAULT6, bridge, pool
from lab.dns import Upstream, ask, ask_stream, question, read, records
from lab.host import Host
from lab.namespaces import inside
from lab.plugins import ROOT, Cni
from lab.services import Greeters, Held, picks
from lab.waiting import BRIEFLY, PATIENTLY, until

WEFT = str(ROOT / "bin" / "weft")
STARTS = 60.0
"""Seconds for the agent to start or to exit on a loaded machine."""
WEB: dict[str, Any] = {"name": "web", "port": 80, "virtual": True}
CHECKED: dict[str, Any] = {**WEB, "check": {"tcp": "", "interval": "200ms", "timeout": "2s"}}


class Town:
    """Containers on networks with DNS names, and clients.

    The server in each replies with the container's id.
    """

    def __init__(self, host: Host, cni: Cni) -> None:
        self.host, self.cni = host, cni
        seen.hurry(host)
        seen.forward(host)
        self.results: dict[str, Any] = {}
        self.confs: dict[str, Any] = {}
        self.servers: dict[str, Greeters] = {}

    def close(self) -> None:
        for server in self.servers.values():
            server.close()
        if pid := self.agent():
            os.kill(pid, signal.SIGTERM)
            until(lambda: not self.agent(), STARTS, "the agent's end")

    @staticmethod
    def agent() -> int:
        """The process id of this host's agent; 0 if none runs."""
        folder = Path(f"/run/weft/{os.stat('/proc/thread-self/ns/net').st_ino}")
        with contextlib.suppress(FileNotFoundError, ValueError):
            pid = int((folder / "agent.lock").read_text())
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "XZ":
                return pid
        return 0

    def run_agent(self, *arguments: str) -> subprocess.Popen[bytes]:
        """Start an agent as a service manager does."""
        return self.host.start(WEFT, "agent", *arguments)

    def add(self, container: str, network: str, number: int, *, args: str = "", **keys: Any) -> Any:
        """ADD; returns the result. The server in the container replies with its id at port 80."""
        ipam = pool(f"10.{number}.0.0/24", f"fd00:{number}::/64", routes=[DEFAULT4, DEFAULT6])
        conf = bridge(ipam, name=network, bridge=f"b-{network}", isGateway=True, ipMasq=True)
        conf = {**conf, "type": "weft", "driver": "bridge", "names": {}, **keys}
        path = self.host.container(container)
        self.host.inside(container, "ip", "link", "set", "lo", "up")  # as each runtime does
        self.servers[container] = Greeters(path, {container: ("::", 80)})
        self.confs[container] = conf
        self.results[container] = self.cni.add(conf, path, container=container, args=args)
        return self.results[container]

    def delete(self, container: str) -> None:
        self.cni.delete(self.confs[container], f"/run/netns/{container}", container=container)
        del self.results[container]

    def address(self, container: str, version: int = 4) -> str:
        found = [str(ip["address"]).partition("/")[0] for ip in self.results[container]["ips"]]
        return next(one for one in found if (":" in one) == (version == 6))

    def ask(self, container: str, name: str, kind: str = "A", *, at: str = "", timeout: float = PATIENTLY) -> list[str]:
        """The answer by UDP of the container's name server: record data, or the response code."""
        server = at or self.results[container]["dns"]["nameservers"][0]
        with inside(f"/run/netns/{container}"):
            reply = ask(server, 53, question(name, kind), timeout=timeout)
        return ["silent"] if reply is None else _data(reply)

    def ask_stream(self, container: str, name: str, kind: str = "A") -> list[str]:
        """The same by TCP, from the container's last name server."""
        with inside(f"/run/netns/{container}"):
            (reply,) = ask_stream(self.results[container]["dns"]["nameservers"][-1], 53, question(name, kind))
        return _data(reply)

    def api(self, path: str, method: str = "GET", body: object = None) -> Any:
        """The response of the agent's HTTP API on the host."""
        connection = http.client.HTTPConnection("127.0.0.1", 8500, timeout=STARTS)
        with contextlib.closing(connection):
            connection.request(method, path, None if body is None else json.dumps(body))
            reply = connection.getresponse()
            text = reply.read()
            assert reply.status == 200, (path, reply.status, text)
            return json.loads(text) if text else None

    def healthy(self, service: str = "web") -> list[str]:
        """The addresses of the passing instances, from the HTTP API."""
        found = self.api(f"/v1/health/service/{service}?passing")
        return sorted(one["Service"]["Address"] for one in found)

    def until_healthy(self, *containers: str) -> None:
        wanted = sorted(map(self.address, containers))
        until(lambda: self.healthy() == wanted, STARTS, f"health of {containers}")

    def virtual(self, version: int = 4) -> str:
        """The virtual address of the service ``web``, from DNS."""
        (found,) = self.ask(next(iter(self.results)), "web.virtual.weft", "A" if version == 4 else "AAAA")
        return found

    def picks(self, container: str | None, count: int = 20, version: int = 4) -> Counter[str]:
        """How many of ``count`` connections to the virtual address each container answers."""
        place = self.host.path if container is None else f"/run/netns/{container}"
        return picks(place, self.virtual(version), 80, count)


def _data(reply: bytes) -> list[str]:
    found = read(reply)
    return [line.split(" ", 4)[-1] for line in records(found.answer)] or [dns.rcode.to_text(found.rcode())]


@pytest.fixture
def town(host: Host, cni: Cni) -> Iterator[Town]:
    made = Town(host, cni)
    try:
        yield made
    finally:
        made.close()


def test_containers_find_each_other_by_name(town: Town) -> None:
    """By each of its names, directly after ADD, on its own networks only."""
    assert not town.agent()
    keys = {"names": {"domain": "lab.example"}, "runtimeConfig": {"aliases": {"blue": ["Db", "db.inner"]}}}
    result = town.add("c1", "blue", 10, args="IgnoreUnknown=1;K8S_POD_NAME=shop", **keys)
    started = town.agent()
    assert started
    assert result["dns"] == {"nameservers": ["10.10.0.1", "fd00:10::1"], "search": ["lab.example"]}
    town.add("c2", "blue", 10, names={"domain": "lab.example"})
    town.add("c3", "red", 11, isolation="open")
    assert town.agent() == started
    for name in ("shop", "db", "DB", "db.inner", "c1", "shop.lab.example"):
        assert town.ask("c2", name) == town.ask_stream("c2", name) == [town.address("c1")], name
        assert town.ask("c2", name, "AAAA") == town.ask_stream("c2", name, "AAAA") == [town.address("c1", 6)], name
    assert town.ask("c1", "c2") == [town.address("c2")]
    assert town.ask("c1", "2.0.10.10.in-addr.arpa", "PTR") == ["shop.lab.example."]
    for name in ("shop", "c1", "db"):
        assert town.ask("c3", name) == town.ask_stream("c3", name) == ["NXDOMAIN"], name
    assert town.ask("c3", "shop", at="10.10.0.1", timeout=BRIEFLY) == ["silent"]
    town.delete("c1")
    until(lambda: town.ask("c2", "shop") == ["NXDOMAIN"])
    assert town.ask("c2", "c2") == [town.address("c2")]


def test_a_service_is_found_by_dns_by_http_and_by_its_virtual_address(town: Town) -> None:
    town.add("a", "blue", 10, services=[{**CHECKED, "tags": ["v1"], "meta": {"team": "shop"}}])
    town.add("b", "blue", 10, services=[WEB])
    town.add("c", "red", 11, args="IgnoreUnknown=1;SERVICE_NAME=cache;SERVICE_PORT=6379;SERVICE_TAGS=hot,small")
    town.until_healthy("a", "b")
    both = sorted((town.address("a"), town.address("b")))
    for client in ("a", "c"):
        assert sorted(town.ask(client, "web.service.weft")) == sorted(town.ask(client, "web.service.consul")) == both
        assert town.ask(client, "v1.web.service.weft") == [town.address("a")]
        assert sorted(line.split()[2] for line in town.ask_stream(client, "web.service.weft", "SRV")) == ["80", "80"]
    listed = town.api("/v1/catalog/services")
    assert (sorted(listed["web"]), sorted(listed["cache"])) == (["v1"], ["hot", "small"])
    (cache,) = town.api("/v1/catalog/service/cache")
    assert (cache["ServiceAddress"], cache["ServicePort"]) == (town.address("c"), 6379)
    first = next(one for one in town.api("/v1/catalog/service/web") if one["ServiceAddress"] == town.address("a"))
    assert first["ServiceMeta"] == {"team": "shop", "network": "blue"}
    for version in (4, 6):
        for place in ("a", "c", None):
            until(partial(_shared, town, place, version))
    assert picks("/run/netns/c", town.virtual(), 81, 2) == {"refused": 2}


def _shared(town: Town, place: str | None, version: int) -> bool:
    return set(town.picks(place, 20, version)) == {"a", "b"}


def test_failing_instance_is_removed_and_restored(town: Town) -> None:
    for name in ("a", "b", "client"):
        town.add(name, "blue", 10, services=[] if name == "client" else [CHECKED])
    town.until_healthy("a", "b")
    until(lambda: set(town.picks("client")) == {"a", "b"})
    town.servers["a"].close()
    town.until_healthy("b")
    until(lambda: town.picks("client") == {"b": 20})
    assert town.ask("client", "web.service.weft") == [town.address("b")]
    # It stays registered, and the HTTP API shows the output of the failed check.
    (critical,) = town.api("/v1/health/state/critical")
    assert critical["ServiceName"] == "web"
    assert "refused" in critical["Output"]
    town.servers["a"] = Greeters("/run/netns/a", {"a": ("::", 80)})
    town.until_healthy("a", "b")
    until(lambda: set(town.picks("client")) == {"a", "b"})


def test_a_removed_container_is_withdrawn(town: Town) -> None:
    for name in ("a", "b", "client"):
        town.add(name, "blue", 10, services=[] if name == "client" else [WEB])
    until(lambda: set(town.picks("client")) == {"a", "b"})
    virtual = town.virtual()
    held = Held("/run/netns/client", virtual, 80, 8)
    try:
        town.delete("a")
        until(lambda: town.picks("client") == {"b": 20})
        assert town.ask("client", "web.service.weft") == [town.address("b")]
        assert [one["ServiceAddress"] for one in town.api("/v1/catalog/service/web")] == [town.address("b")]
        assert held.alive() >= held.owners["b"]
        town.delete("b")
        until(lambda: town.ask("client", "web.service.weft") == ["NXDOMAIN"])
        until(lambda: picks("/run/netns/client", virtual, 80, 4) == {"refused": 4})
        assert "web" not in town.api("/v1/catalog/services")
    finally:
        held.close()


class Load:
    """Connections and DNS queries in a loop while the block runs; records all outcomes."""

    def __init__(self, town: Town, client: str) -> None:
        self.connections: Counter[str] = Counter()
        self.answers: Counter[str] = Counter()
        self._ending = threading.Event()
        virtual = town.virtual()

        def connect() -> None:
            while not self._ending.is_set():
                self.connections += picks(f"/run/netns/{client}", virtual, 80, 16, at_once=4)
                time.sleep(0.02)

        def question() -> None:
            while not self._ending.is_set():
                self.answers[" ".join(sorted(town.ask(client, "web.service.weft", timeout=BRIEFLY)))] += 1
                time.sleep(0.02)

        self._threads = [threading.Thread(target=work, daemon=True) for work in (connect, question)]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ending.set()
        for thread in self._threads:
            thread.join(STARTS)


def test_sigkill_of_the_agent_breaks_no_connection(town: Town) -> None:
    """Established and new connections work without it; its successor restores the registrations and
    answers."""
    first = town.run_agent()
    until(town.agent, STARTS, "the agent")
    for name in ("a", "b", "client"):
        town.add(name, "blue", 10, services=[] if name == "client" else [CHECKED])
    assert town.agent() == first.pid
    until(lambda: _serves(town), STARTS, "HTTP")
    by_hand = {"Name": "legacy", "Address": "192.0.2.7", "Port": 99, "Check": {"TTL": "24h"}}
    town.api("/v1/agent/service/register", "PUT", by_hand)
    town.api("/v1/agent/check/pass/service:legacy", "PUT")
    town.api("/v1/kv/colour", "PUT", "blue")
    town.until_healthy("a", "b")
    until(lambda: set(town.picks("client")) == {"a", "b"})
    both = " ".join(sorted((town.address("a"), town.address("b"))))
    held = Held("/run/netns/client", town.virtual(), 80, 20)
    try:
        with Load(town, "client") as load:
            until(lambda: load.answers[both] > 5)
            first.kill()
            first.wait()
            connections, answers = load.connections.total(), load.answers[both]
            until(lambda: load.connections.total() > connections + 100, STARTS)
            assert held.alive() == 20
            begun = time.monotonic()
            second = town.run_agent()
            until(lambda: load.answers[both] > answers, STARTS, "DNS")
            print(f"names were answered {time.monotonic() - begun:.2f} s after the agent began")
            until(lambda: _serves(town), STARTS, "HTTP")
            town.until_healthy("a", "b")
        assert set(load.connections) == {"a", "b"}
        assert set(load.answers) <= {both, "silent"}
        assert held.alive() == 20
    finally:
        held.close()
    assert town.agent() == second.pid
    (legacy,) = town.api("/v1/health/service/legacy?passing")
    assert legacy["Service"]["Port"] == 99
    assert town.api("/v1/kv/colour")[0]["Value"] == "ImJsdWUi"
    assert set(town.picks("client")) == {"a", "b"}


def _serves(town: Town) -> bool:
    with contextlib.suppress(OSError):
        town.api("/v1/status/leader")
        return True
    return False


def test_cni_check_restarts_the_agent(town: Town) -> None:
    town.add("c1", "blue", 10)
    killed = town.agent()
    os.kill(killed, signal.SIGKILL)
    until(lambda: not town.agent())
    assert town.ask("c1", "c1", timeout=BRIEFLY) == ["silent"]
    town.cni.check(town.confs["c1"], town.results["c1"], "/run/netns/c1", container="c1")
    assert town.agent() not in (0, killed)
    assert town.ask("c1", "c1") == [town.address("c1")]


def test_the_rights_of_the_unit_suffice(town: Town) -> None:
    """With the capabilities and sandbox of its systemd unit the agent serves DNS, checks and
    balances."""
    town.host.start(*confined(ROOT / "conf/systemd/weft-agent.service", WEFT, "agent"))
    until(town.agent, STARTS, "the agent")
    town.add("a", "blue", 10, services=[CHECKED])
    town.add("client", "red", 11)
    town.until_healthy("a")
    until(lambda: set(town.picks("client")) == {"a"})
    assert town.ask("client", "web.service.weft") == [town.address("a")]
    town.delete("a")
    until(lambda: town.ask("client", "web.service.weft") == ["NXDOMAIN"])


def test_internal_network_has_names_and_leaks_no_query(town: Town, tmp_path: Path) -> None:
    """Counted on the uplink, which has a name server that would answer."""
    lan = town.host.lan()
    with inside(town.host._place(lan.name)):
        upstream = Upstream(lambda query, _: [dns.message.make_response(query).to_wire()], lan.outside, 53)
    try:
        town.host.run("nft", "-f", "-", stdin=(
            "table inet watch {\ncounter dns { }\nchain out {\ntype filter hook postrouting priority 300\n"
            "oifname lan0 meta l4proto { tcp, udp } th dport 53 counter name dns\n}\n}\n"
        ))  # fmt: skip
        resolv_conf, settings = tmp_path / "resolv.conf", tmp_path / "weft.toml"
        resolv_conf.write_text(f"search corp.example\nnameserver {lan.outside}\n")
        settings.write_text(f'[dns]\nresolv_conf = "{resolv_conf}"\n')
        town.run_agent("--config", str(settings))
        until(town.agent, STARTS, "the agent")
        for name in ("in1", "in2"):
            town.add(name, "inner", 11, internal=True, ipMasq=False, services=[WEB])
        town.add("c1", "blue", 10)
        for name in ("secret.example.org", "gone", "in9.corp.example", "1.2.0.192.in-addr.arpa"):
            assert town.ask("in1", name) == town.ask_stream("in1", name, "AAAA") == ["NXDOMAIN"], name
        assert town.ask("in1", "in2") == [town.address("in2")]
        assert sorted(town.ask_stream("in1", "web.service.weft")) == sorted(map(town.address, ("in1", "in2")))
        assert (_left(town), upstream.queries) == (0, [])
        # The same query from another network does leave, so a leak would have been counted.
        assert town.ask("c1", "secret.example.org") == ["NOERROR"]
        assert _left(town) == len(upstream.queries) == 1
    finally:
        upstream.close()


def _left(town: Town) -> int:
    """The number of packets to port 53 that left by the uplink."""
    listed = town.host.run("nft", "-j", "list", "counter", "inet", "watch", "dns").json["nftables"]
    return int(next(one["counter"]["packets"] for one in listed if "counter" in one))
