"""Names and services end to end: attachments, the agent they start, DNS, HTTP, virtual IPs."""

from __future__ import annotations

import contextlib
import http.client
import http.server
import json
import os
import signal
import socket
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


class Topology:
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
def topology(host: Host, cni: Cni) -> Iterator[Topology]:
    made = Topology(host, cni)
    try:
        yield made
    finally:
        made.close()


def test_containers_find_each_other_by_name(topology: Topology) -> None:
    """By each of its names, directly after ADD, on its own networks only."""
    assert not topology.agent()
    misleading = ["www.example.com", "localhost", "wpad", "host.containers.internal"]
    aliases = ["Db", "db.lab.example", *misleading]
    keys = {"names": {"domain": "lab.example"}, "runtimeConfig": {"aliases": {"blue": aliases}}}
    result = topology.add("c1", "blue", 10, args="IgnoreUnknown=1;K8S_POD_NAME=shop", **keys)
    started = topology.agent()
    assert started
    assert result["dns"] == {"nameservers": ["10.10.0.1", "fd00:10::1"], "search": ["lab.example"]}
    topology.add("c2", "blue", 10, names={"domain": "lab.example"})
    topology.add("c3", "red", 11, isolation="open")
    assert topology.agent() == started
    for name in ("shop", "db", "DB", "db.lab.example", "c1", "shop.lab.example"):
        assert topology.ask("c2", name) == topology.ask_stream("c2", name) == [topology.address("c1")], name
        assert (
            topology.ask("c2", name, "AAAA") == topology.ask_stream("c2", name, "AAAA") == [topology.address("c1", 6)]
        ), name
    # Names that its siblings would take for another's are not served, and that is told.
    assert topology.ask("c2", "wpad") == ["NXDOMAIN"]
    assert topology.ask("c2", "localhost") == ["127.0.0.1"]
    assert topology.address("c1") not in topology.ask("c2", "www.example.com", timeout=BRIEFLY)
    for command in (["show", "c1", "blue"], ["doctor"]):
        shown = topology.host.run(WEFT, *command, check=False).stdout
        assert all(f"name {name} is not served: " in shown for name in misleading), shown
    assert topology.ask("c1", "c2") == [topology.address("c2")]
    assert topology.ask("c1", "2.0.10.10.in-addr.arpa", "PTR") == ["shop.lab.example."]
    for name in ("shop", "c1", "db"):
        assert topology.ask("c3", name) == topology.ask_stream("c3", name) == ["NXDOMAIN"], name
    assert topology.ask("c3", "shop", at="10.10.0.1", timeout=BRIEFLY) == ["silent"]
    topology.delete("c1")
    until(lambda: topology.ask("c2", "shop") == ["NXDOMAIN"])
    assert topology.ask("c2", "c2") == [topology.address("c2")]


def test_a_service_is_found_by_dns_by_http_and_by_its_virtual_address(topology: Topology) -> None:
    topology.add("a", "blue", 10, services=[{**CHECKED, "tags": ["v1"], "meta": {"team": "shop"}}])
    topology.add("b", "blue", 10, services=[WEB])
    topology.add("c", "red", 11, args="IgnoreUnknown=1;SERVICE_NAME=cache;SERVICE_PORT=6379;SERVICE_TAGS=hot,small")
    topology.until_healthy("a", "b")
    both = sorted((topology.address("a"), topology.address("b")))
    for client in ("a", "c"):
        assert (
            sorted(topology.ask(client, "web.service.weft"))
            == sorted(topology.ask(client, "web.service.consul"))
            == both
        )
        assert topology.ask(client, "v1.web.service.weft") == [topology.address("a")]
        assert sorted(line.split()[2] for line in topology.ask_stream(client, "web.service.weft", "SRV")) == [
            "80",
            "80",
        ]
    listed = topology.api("/v1/catalog/services")
    assert (sorted(listed["web"]), sorted(listed["cache"])) == (["v1"], ["hot", "small"])
    (cache,) = topology.api("/v1/catalog/service/cache")
    assert (cache["ServiceAddress"], cache["ServicePort"]) == (topology.address("c"), 6379)
    first = next(
        one for one in topology.api("/v1/catalog/service/web") if one["ServiceAddress"] == topology.address("a")
    )
    assert first["ServiceMeta"] == {"team": "shop", "network": "blue"}
    for version in (4, 6):
        for place in ("a", "c", None):
            until(partial(_shared, topology, place, version))
    assert picks("/run/netns/c", topology.virtual(), 81, 2) == {"refused": 2}


def _shared(topology: Topology, place: str | None, version: int) -> bool:
    return set(topology.picks(place, 20, version)) == {"a", "b"}


def _metric(topology: Topology, name: str) -> dict[str, float]:
    """The series of a metric: labels, as Prometheus has them, and value."""
    connection = http.client.HTTPConnection("127.0.0.1", 8500, timeout=STARTS)
    with contextlib.closing(connection):
        connection.request("GET", "/v1/agent/metrics?format=prometheus")
        lines = connection.getresponse().read().decode().splitlines()
    found = (line.rpartition(" ") for line in lines if line.startswith(f"{name}{{"))
    return {labels.removeprefix(name): float(value) for labels, _, value in found}


def test_connections_are_counted(topology: Topology) -> None:
    """Of each network, each virtual address, and each container beside its limit."""
    topology.add("a", "blue", 10, services=[WEB])
    for name, network, number, bound in (("c", "red", 11, 64), ("d", "red", 11, 8192)):
        topology.add(name, network, number, limits={"connections": bound})
    topology.until_healthy("a")
    until(lambda: topology.picks("c", 1) == {"a": 1})
    until(lambda: topology.picks("c", 1, 6) == {"a": 1})
    virtual, virtual6 = topology.virtual(), topology.virtual(6)
    before = _metric(topology, "weft_service_connections")
    assert set(before) == {f'{{service="web",address="{one}"}}' for one in (virtual, virtual6)}
    held = []
    for name, address, count in (("c", virtual, 20), ("d", virtual, 5), ("d", virtual6, 3)):
        with inside(f"/run/netns/{name}"):
            held += [socket.create_connection((address, 80), timeout=PATIENTLY) for _ in range(count)]
    with contextlib.ExitStack() as opened:
        for one in held:
            opened.enter_context(one)

        def counted() -> bool:
            now = _metric(topology, "weft_service_connections")
            grown = {labels: now[labels] - before[labels] for labels in before}
            return grown == {f'{{service="web",address="{virtual}"}}': 25, f'{{service="web",address="{virtual6}"}}': 3}

        until(counted, STARTS, "28 connections")
        of_networks = _metric(topology, "weft_network_connections")
        assert of_networks['{network="red"}'] >= 28 > of_networks['{network="blue"}']
        at = {name: f'{{network="red",address="{topology.address(name)}"}}' for name in ("c", "d")}
        of_containers = _metric(topology, "weft_container_connections")
        assert of_containers[at["c"]] >= 20 and of_containers[at["d"]] >= 5
        limits = _metric(topology, "weft_container_connection_limit")
        assert (limits[at["c"]], limits[at["d"]]) == (64, 8192)


def test_failing_instance_is_removed_and_restored(topology: Topology) -> None:
    for name in ("a", "b", "client"):
        topology.add(name, "blue", 10, services=[] if name == "client" else [CHECKED])
    topology.until_healthy("a", "b")
    until(lambda: set(topology.picks("client")) == {"a", "b"})
    topology.servers["a"].close()
    topology.until_healthy("b")
    until(lambda: topology.picks("client") == {"b": 20})
    assert topology.ask("client", "web.service.weft") == [topology.address("b")]
    # It stays registered, and the HTTP API shows the output of the failed check.
    (critical,) = topology.api("/v1/health/state/critical")
    assert critical["ServiceName"] == "web"
    assert "refused" in critical["Output"]
    topology.servers["a"] = Greeters("/run/netns/a", {"a": ("::", 80)})
    topology.until_healthy("a", "b")
    until(lambda: set(topology.picks("client")) == {"a", "b"})


def test_a_containers_check_reaches_nothing_but_the_container(topology: Topology) -> None:
    """Neither by a redirect nor by its target: the agent, which is root, connects for it."""
    gateway = "10.10.0.1"
    seen: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            seen.append(self.path)
            own = self.path == "/moves"
            self.send_response(302 if own else 200)
            self.send_header("Location", f"http://{gateway}:8001/secret" if own else "/")
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *arguments: object) -> None: ...

    checks = {
        "moves": {"http": "http://localhost:8001/moves"},
        "host": {"tcp": f"{gateway}:8001"},
        "datagram": {"udp": f"{gateway}:8001"},
        "loopback": {"http": "http://127.0.0.1:8001/own"},
    }
    services = [
        {"name": name, "port": 8001, "check": {**target, "interval": "200ms", "timeout": "5s"}}
        for name, target in checks.items()
    ]
    topology.add("a", "blue", 10, services=services)
    with contextlib.ExitStack() as stack:
        for place in (topology.host.path, "/run/netns/a"):
            with inside(place):
                server = stack.enter_context(http.server.ThreadingHTTPServer(("0.0.0.0", 8001), Handler))
            threading.Thread(target=server.serve_forever, daemon=True).start()
            stack.callback(server.shutdown)

        def outputs() -> dict[str, tuple[str, str]]:
            found = topology.api("/v1/agent/checks").values()
            return {one["ServiceName"]: (one["Status"], one["Output"]) for one in found}

        until(lambda: all(output for _, output in outputs().values()) and outputs()["loopback"][0] == "passing")
        for name in ("moves", "host", "datagram"):
            until(lambda name=name: "refused to" in outputs()[name][1])
            assert outputs()[name][0] == "critical"
        # From within the container the host's server can be reached: it is the agent that refuses.
        with inside("/run/netns/a"):
            socket.create_connection((gateway, 8001), PATIENTLY).close()
    assert set(seen) == {"/moves", "/own"}


def test_a_removed_container_is_withdrawn(topology: Topology) -> None:
    for name in ("a", "b", "client"):
        topology.add(name, "blue", 10, services=[] if name == "client" else [WEB])
    until(lambda: set(topology.picks("client")) == {"a", "b"})
    virtual = topology.virtual()
    held = Held("/run/netns/client", virtual, 80, 8)
    try:
        topology.delete("a")
        until(lambda: topology.picks("client") == {"b": 20})
        assert topology.ask("client", "web.service.weft") == [topology.address("b")]
        assert [one["ServiceAddress"] for one in topology.api("/v1/catalog/service/web")] == [topology.address("b")]
        assert held.alive() >= held.owners["b"]
        topology.delete("b")
        until(lambda: topology.ask("client", "web.service.weft") == ["NXDOMAIN"])
        until(lambda: picks("/run/netns/client", virtual, 80, 4) == {"refused": 4})
        assert "web" not in topology.api("/v1/catalog/services")
    finally:
        held.close()


def test_containers_and_networks_do_not_take_each_others_services(topology: Topology) -> None:
    """Two ids with the same beginning are two instances; only the first network adds instances."""
    twins = ["0123456789abcdef-1", "0123456789abcdef-2"]
    for twin in twins:
        topology.add(twin, "blue", 10, services=[WEB])
    both = sorted(map(topology.address, twins))
    assert topology.healthy() == both
    path = topology.host.container("c")
    for network, name in (("red", "web"), ("red", "Consul")):
        conf = {**topology.confs[twins[0]], "name": network, "bridge": "b-red", "services": [{**WEB, "name": name}]}
        conf["ipam"] = pool("10.11.0.0/24", routes=[DEFAULT4])
        problem = seen.problem(topology.cni, "ADD", conf, path, container="c")
        wanted = "network blue offered it first" if name == "web" else "reserved"
        assert problem["code"] == 101 and wanted in problem["msg"], problem
        assert topology.healthy() == both
    topology.add("client", "red", 11)
    until(lambda: set(topology.picks("client")) == set(twins))  # to call it is free
    topology.delete(twins[1])
    until(lambda: topology.healthy() == [topology.address(twins[0])])
    topology.delete(twins[0])
    topology.add("new", "red", 11, services=[WEB])
    topology.until_healthy("new")


class Load:
    """Connections and DNS queries in a loop while the block runs; records all outcomes."""

    def __init__(self, topology: Topology, client: str) -> None:
        self.connections: Counter[str] = Counter()
        self.answers: Counter[str] = Counter()
        self._ending = threading.Event()
        virtual = topology.virtual()

        def connect() -> None:
            while not self._ending.is_set():
                self.connections += picks(f"/run/netns/{client}", virtual, 80, 16, at_once=4)
                time.sleep(0.02)

        def question() -> None:
            while not self._ending.is_set():
                self.answers[" ".join(sorted(topology.ask(client, "web.service.weft", timeout=BRIEFLY)))] += 1
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


def test_sigkill_of_the_agent_breaks_no_connection(topology: Topology) -> None:
    """Connections work without it; its successor restores the registrations and answers."""
    first = topology.run_agent()
    until(topology.agent, STARTS, "the agent")
    for name in ("a", "b", "client"):
        topology.add(name, "blue", 10, services=[] if name == "client" else [CHECKED])
    assert topology.agent() == first.pid
    until(lambda: _serves(topology), STARTS, "HTTP")
    by_hand = {"Name": "legacy", "Address": "192.0.2.7", "Port": 99, "Check": {"TTL": "24h"}}
    topology.api("/v1/agent/service/register", "PUT", by_hand)
    topology.api("/v1/agent/check/pass/service:legacy", "PUT")
    topology.api("/v1/kv/colour", "PUT", "blue")
    topology.until_healthy("a", "b")
    until(lambda: set(topology.picks("client")) == {"a", "b"})
    both = " ".join(sorted((topology.address("a"), topology.address("b"))))
    held = Held("/run/netns/client", topology.virtual(), 80, 20)
    try:
        with Load(topology, "client") as load:
            until(lambda: load.answers[both] > 5)
            first.kill()
            first.wait()
            connections, answers = load.connections.total(), load.answers[both]
            until(lambda: load.connections.total() > connections + 100, STARTS)
            assert held.alive() == 20
            begun = time.monotonic()
            second = topology.run_agent()
            until(lambda: load.answers[both] > answers, STARTS, "DNS")
            print(f"names were answered {time.monotonic() - begun:.2f} s after the agent began")
            until(lambda: _serves(topology), STARTS, "HTTP")
            topology.until_healthy("a", "b")
        assert set(load.connections) == {"a", "b"}
        assert set(load.answers) <= {both, "silent"}
        assert held.alive() == 20
    finally:
        held.close()
    assert topology.agent() == second.pid
    (legacy,) = topology.api("/v1/health/service/legacy?passing")
    assert legacy["Service"]["Port"] == 99
    assert topology.api("/v1/kv/colour")[0]["Value"] == "ImJsdWUi"
    assert set(topology.picks("client")) == {"a", "b"}


def _serves(topology: Topology) -> bool:
    with contextlib.suppress(OSError):
        topology.api("/v1/status/leader")
        return True
    return False


def test_cni_check_restarts_the_agent(topology: Topology) -> None:
    topology.add("c1", "blue", 10)
    killed = topology.agent()
    os.kill(killed, signal.SIGKILL)
    until(lambda: not topology.agent())
    until(lambda: topology.ask("c1", "c1", timeout=BRIEFLY) == ["silent"], what="the end of its worker")
    topology.cni.check(topology.confs["c1"], topology.results["c1"], "/run/netns/c1", container="c1")
    assert topology.agent() not in (0, killed)
    assert topology.ask("c1", "c1") == [topology.address("c1")]


def test_agent_works_confined_as_by_its_unit(topology: Topology) -> None:
    """Confined as by its systemd unit, the agent serves DNS, checks and balances."""
    topology.host.start(*confined(ROOT / "conf/systemd/weft-agent.service", WEFT, "agent"))
    until(topology.agent, STARTS, "the agent")
    topology.add("a", "blue", 10, services=[CHECKED])
    topology.add("client", "red", 11)
    topology.until_healthy("a")
    until(lambda: set(topology.picks("client")) == {"a"})
    assert topology.ask("client", "web.service.weft") == [topology.address("a")]
    topology.delete("a")
    until(lambda: topology.ask("client", "web.service.weft") == ["NXDOMAIN"])


def test_internal_network_has_names_and_leaks_no_query(topology: Topology, tmp_path: Path) -> None:
    """Counted on the uplink, which has a name server that would answer."""
    lan = topology.host.lan()
    with inside(topology.host._place(lan.name)):
        upstream = Upstream(lambda query, _: [dns.message.make_response(query).to_wire()], lan.outside, 53)
    try:
        topology.host.run("nft", "-f", "-", stdin=(
            "table inet watch {\ncounter dns { }\nchain out {\ntype filter hook postrouting priority 300\n"
            "oifname lan0 meta l4proto { tcp, udp } th dport 53 counter name dns\n}\n}\n"
        ))  # fmt: skip
        resolv_conf, settings = tmp_path / "resolv.conf", tmp_path / "weft.toml"
        resolv_conf.write_text(f"search corp.example\nnameserver {lan.outside}\n")
        settings.write_text(f'[dns]\nresolv_conf = "{resolv_conf}"\n')
        topology.run_agent("--config", str(settings))
        until(topology.agent, STARTS, "the agent")
        for name in ("in1", "in2"):
            topology.add(name, "inner", 11, internal=True, ipMasq=False, services=[WEB])
        topology.add("c1", "blue", 10)
        for name in ("secret.example.org", "gone", "in9.corp.example", "1.2.0.192.in-addr.arpa"):
            assert topology.ask("in1", name) == topology.ask_stream("in1", name, "AAAA") == ["NXDOMAIN"], name
        assert topology.ask("in1", "in2") == [topology.address("in2")]
        assert sorted(topology.ask_stream("in1", "web.service.weft")) == sorted(map(topology.address, ("in1", "in2")))
        assert (_left(topology), upstream.queries) == (0, [])
        # The same query from another network does leave, so a leak would have been counted.
        assert topology.ask("c1", "secret.example.org") == ["NOERROR"]
        assert _left(topology) == len(upstream.queries) == 1
    finally:
        upstream.close()


def _left(topology: Topology) -> int:
    """The number of packets to port 53 that left by the uplink."""
    listed = topology.host.run("nft", "-j", "list", "counter", "inet", "watch", "dns").json["nftables"]
    return int(next(one["counter"]["packets"] for one in listed if "counter" in one))


@pytest.mark.parametrize("first", ["names", "port"])
def test_a_container_at_port_53_of_every_host_address_does_not_answer_for_the_agent(
    topology: Topology, first: str
) -> None:
    """Whichever comes first, the network's names are the agent's, and all other addresses the container's."""
    lan = topology.host.lan()
    mappings = [{"hostPort": 53, "containerPort": 53, "protocol": kind} for kind in ("udp", "tcp")]

    def publish() -> None:
        topology.add("dns", "red", 11, names={"dns": False}, portmap={}, runtimeConfig={"portMappings": mappings})
        topology.servers["dns/53"] = Greeters("/run/netns/dns", {"dns": ("::", 53)})

    def name() -> None:
        topology.add("c1", "blue", 10)
        topology.add("c2", "blue", 10)

    for step in (name, publish) if first == "names" else (publish, name):
        step()
    for kind in ("A", "AAAA"):
        assert topology.ask("c1", "c2", kind) == topology.ask_stream("c1", "c2", kind) != []
        assert topology.ask("c1", "c2", kind) == [topology.address("c2", 4 if kind == "A" else 6)]
    for address in (lan.host, lan.host6):
        assert picks(f"/run/netns/{lan.name}", address, 53, 1) == Counter({"dns": 1})
    # At the gateway itself the port is the agent's.
    mapping = {**mappings[0], "hostIP": "10.10.0.1"}
    conf = {**topology.confs["c1"], "portmap": {}, "runtimeConfig": {"portMappings": [mapping]}}
    problem = seen.problem(topology.cni, "ADD", conf, topology.host.container("c9"), container="c9")
    assert "53/udp" in problem["msg"], problem
    topology.delete("dns")
    assert topology.ask("c1", "c2") == [topology.address("c2")]
    for container in ("c1", "c2"):
        topology.delete(container)
    for conf in (topology.confs["c1"], topology.confs["dns"]):
        seen.collect(topology.cni, conf)
    tables = topology.host.run("nft", "list", "tables").stdout.split()
    assert {one for one in tables if "weft" in one} <= {"weft-services", "weft-guard-engine", "weft-guard-agent"}
