"""All of etcd is down for WEFT_TEST_OUTAGE seconds, 600 by hand: what runs goes on, and new containers start."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Iterator

import pytest

from lab.etcd import KILL, Cluster
from lab.hosts import Machines
from lab.waiting import until

OUTAGE = float(os.environ.get("WEFT_TEST_OUTAGE", "20"))
"""Seconds."""
_SOON = 60.0
_CAUGHT_UP = 5.0 if OUTAGE >= 600 else _SOON
"""Seconds after the return of etcd; the promise is measured by hand, on a machine without other work."""
_VIRTUAL = "10.79.0.80"
_RESOLVER = "10.151.0.1"
_SERVE = """
import socketserver, sys
class Handler(socketserver.StreamRequestHandler):
    def handle(self):
        for line in self.rfile:
            self.wfile.write(sys.argv[1].encode() + b" " + line)
class Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = daemon_threads = True
Server(("", 80), Handler).serve_forever()
"""
_CALL = """
import socket, sys
with socket.create_connection((sys.argv[1], 80), 5) as connection:
    connection.sendall(b"call\\n")
    print(connection.recv(99).decode().split()[0])
"""
_HOLD = """
import socket, sys, time
longest, lines = 0.0, 0
with socket.create_connection((sys.argv[1], 80), 30) as connection:
    stream = connection.makefile("rwb")
    print("open", flush=True)
    while not sys.stdin.closed and not __import__("select").select([sys.stdin], [], [], 0.05)[0]:
        begun = time.monotonic()
        stream.write(b"line\\n"); stream.flush()
        assert stream.readline(), "the connection was closed"
        longest, lines = max(longest, time.monotonic() - begun), lines + 1
print(lines, longest)
"""


class Shop:
    """A network with names; a server on hosts 1 to 3 behind one virtual address, and clients on 1 and 3."""

    def __init__(self, hosts: Machines) -> None:
        self.hosts = hosts
        self.servers: dict[int, subprocess.Popen[bytes]] = {}
        hosts.create("shop", "--names", "--subnet", "10.151.0.0/16")
        self.at = {number: hosts[number].attach("shop", f"s{number}") for number in hosts.all}
        for number in hosts.all:
            self.serve(number)
            self.register(number, "web", f'"tagged_addresses": {{"virtual": {{"address": "{_VIRTUAL}", "port": 80}}}}')
        for number in (1, 3):
            hosts[number].attach("shop", f"k{number}")

    def serve(self, number: int) -> None:
        inside = ("ip", "netns", "exec", f"s{number}")
        self.servers[number] = self.hosts[number].start(*inside, "python3", "-c", _SERVE, f"s{number}")

    def stop(self, number: int) -> None:
        process = self.servers.pop(number)
        process.kill()
        process.wait()

    def register(self, number: int, name: str, more: str) -> None:
        check = {"tcp": f"{self.at[number]}:80", "interval": "300ms", "timeout": "2s"}
        text = json.dumps({"name": name, "id": f"{name}{number}", "address": self.at[number], "port": 80,
                           "check": check} | json.loads(f"{{{more}}}"))  # fmt: skip
        self.hosts[number].write("/run/service.json", f'{{"service": {text}}}')
        self.hosts[number].weft("services", "register", "/run/service.json")

    def resolved(self, number: int, name: str) -> set[str]:
        """By the resolver of a host's client."""
        return set(self.hosts[number].resolved(f"k{number}", name, _RESOLVER))

    def answers(self, number: int) -> str:
        """The server that answers a host's client by the virtual address, "" if none."""
        argv = ("ip", "netns", "exec", f"k{number}", "python3", "-c", _CALL, _VIRTUAL)
        return self.hosts[number].run(*argv, check=False).stdout.strip()

    def is_kept(self, number: int) -> bool:
        """Whether a host's agent has kept, for a start without etcd, that the checks of all servers pass."""
        one = self.hosts[number]
        found = one.read(f"/run/weft/{one.inode}/agent/catalog.json")["entries"]
        passing = [key for key, value, *_ in found if "/check/" in key and json.loads(value)["status"] == "passing"]
        return len([key for key in passing if "web" in key]) == len(self.at)

    def close(self) -> None:
        for number in [*self.servers]:
            self.stop(number)


@pytest.fixture
def shop(hosts: Machines) -> Iterator[Shop]:
    made = Shop(hosts)
    yield made
    made.close()


class Traffic:
    """From host 1's client: a connection to each server by its own address, and a ping each 0.1 s to host 2's."""

    def __init__(self, shop: Shop) -> None:
        inside = ("ip", "netns", "exec", "k1")
        one = shop.hosts[1]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        # Host 3's server is stopped in the outage.
        self._held = [one.start(*inside, "python3", "-c", _HOLD, shop.at[number], **pipes) for number in (1, 2)]
        self._held.append(one.start(*inside, "python3", "-c", _HOLD, _VIRTUAL, **pipes))
        for process in self._held:
            assert process.stdout is not None and process.stdout.readline() == b"open\n"
        self._ping = one.start(*inside, "ping", "-n", "-q", "-i", "0.1", shop.at[2], **pipes)

    def ended(self) -> tuple[list[tuple[int, float]], str]:
        """Lines and the longest wait for one of each connection, and what ping says."""
        self._ping.send_signal(2)
        said = self._ping.communicate()[0].decode()
        found = []
        for process in self._held:
            words = process.communicate(b"\n")[0].split()
            assert process.returncode == 0, "a connection was broken"
            found.append((int(words[0]), float(words[1])))
        return found, said


def started(shop: Shop, number: int, container: str) -> str:
    """A container that starts now is reached from the other hosts, and has its name on its own."""
    address = shop.hosts[number].attach("shop", container)
    assert shop.hosts[1].ping("k1", address) and shop.hosts[3].ping("k3", address)
    return address


def serving(shop: Shop) -> None:
    """What hosts 1 and 3 answer as before."""
    for number in (1, 3):
        until(lambda number=number: shop.at[2] in shop.resolved(number, "web.service.weft"), _SOON, "the service")  # type: ignore[misc]
        until(lambda number=number: shop.resolved(number, "weft-s2") == {shop.at[2]}, _SOON, "a name")  # type: ignore[misc]
        until(lambda number=number: shop.answers(number), _SOON, "an answer of the virtual address")  # type: ignore[misc]


@pytest.mark.long
def test_all_of_etcd_is_down(hosts: Machines, etcd: Cluster, shop: Shop) -> None:
    """Traffic untouched, ADD from the host's blocks, names and virtual addresses answer, also after an agent was
    killed; and when etcd is back, what has changed meanwhile is known everywhere within seconds.
    """
    for number in (1, 3):
        until(lambda number=number: shop.resolved(number, "web.service.weft") == {*shop.at.values()}, _SOON, "web")  # type: ignore[misc]
        until(lambda number=number: shop.is_kept(number), _SOON, "what is kept")  # type: ignore[misc]
    serving(shop)
    traffic = Traffic(shop)
    for member in range(3):
        etcd.signal(member, KILL)
    begun, turns = time.monotonic(), 0
    added: dict[str, str] = {}
    while turns < 3 or time.monotonic() < begun + OUTAGE:
        serving(shop)
        container = f"new{turns % 4}"
        if container in added:
            hosts[2].detach("shop", container)
        added[container] = started(shop, 2, container)
        turns += 1
        print(f"{time.monotonic() - begun:.1f} s: {turns}", flush=True)
        if turns == 1:
            hosts[1].kill_agent()
            hosts[1].up()
            print(f"{time.monotonic() - begun:.1f} s: up", flush=True)
            serving(shop)
            print(f"{time.monotonic() - begun:.1f} s: the agent of h1 was killed, and serves again", flush=True)
        elif turns == 2:
            shop.stop(3)
        time.sleep(min(0.2, OUTAGE / 60))
    lasted = time.monotonic() - begun
    for member in range(3):
        etcd.start(member)
    etcd.wait()
    back = time.monotonic()
    seen = {}
    left = {"web.service.weft": {shop.at[1], shop.at[2]}} | {f"weft-{one}": {at} for one, at in added.items()}
    for name, addresses in left.items():
        for number in (1, 3):
            until(lambda name=name, number=number, wanted=addresses: shop.resolved(number, name) == wanted,  # type: ignore[misc]
                  _CAUGHT_UP, f"{name} on h{number}")  # fmt: skip
            seen[f"{name} on h{number}"] = round(time.monotonic() - back, 2)
    found, said = traffic.ended()
    print(f"{turns} containers in {lasted:.0f} s without etcd; caught up after {seen}; connections {found}; {said}")
    assert time.monotonic() - back < _CAUGHT_UP + 10
    assert " 0% packet loss" in said
