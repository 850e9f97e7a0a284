"""Measures the time until what happens on one host of a cluster works on another: a service that is registered,
and a container that is started. Three hosts are namespaces with real agents and a real etcd cluster of three.

Run by ``benchmarks/hosts`` in private namespaces. Wall-clock milliseconds; other load on the machine affects them.
"""

from __future__ import annotations

import argparse
import os
import socket
import sys
import time
from collections.abc import Callable

from services_visible import Client, format_times, service

from lab import namespaces
from lab.dns import question
from lab.etcd import Cluster
from lab.hosts import Machine, Machines

_TIMEOUT = 60.0
_SETTLE = 0.3
"""Seconds until a deregistration is complete."""


def _on(host: Machine) -> Client:
    with namespaces.inside(host.network):
        return Client()


def _listener(host: Machine, container: str) -> socket.socket:
    with namespaces.inside(host.inside(container)):
        return socket.create_server(("", 80), backlog=4096)


def _answers(client: str, address: str, expected: tuple[int, ...]) -> bool:
    """Whether a connection from a container, by its namespace's path, has one of these errors; 0: is accepted."""
    with namespaces.inside(client), socket.socket(socket.AF_INET, socket.SOCK_STREAM) as one:
        one.settimeout(0.005)
        return one.connect_ex((address, 80)) in expected


def _poll(condition: Callable[[], bool]) -> float:
    """Poll a few thousand times a second; when it held."""
    end = time.perf_counter() + _TIMEOUT
    while not condition():
        if time.perf_counter() > end:
            sys.exit("benchmarks/hosts: it did not become visible on the other host")
        time.sleep(0.0002)
    return time.perf_counter()


def services(hosts: Machines, rounds: int) -> dict[str, list[float]]:
    """From the response to a registration on host 2 until host 1 answers with it."""
    there, here = _on(hosts[2]), _on(hosts[1])
    address, client = hosts[2].attach("blue", "server"), hosts[1].inside("blue1")
    found: dict[str, list[float]] = {"in DNS": [], "in HTTP": [], "at its virtual IP": []}
    with _listener(hosts[2], "server"):
        for number in range(rounds):
            for place, (what, times) in enumerate(found.items()):
                name, virtual = f"s{number}-{place}", f"10.79.{1 + number // 200}.{1 + number % 200}"
                message = question(f"{name}.service.weft")
                waited: dict[str, Callable[[], bool]] = {
                    "in DNS": lambda message=message: here.in_dns(message),  # type: ignore[misc]
                    "in HTTP": lambda name=name: here.in_http(name),  # type: ignore[misc]
                    "at its virtual IP": lambda virtual=virtual: _answers(client, virtual, (0,)),  # type: ignore[misc]
                }
                with_virtual = virtual if what == "at its virtual IP" else ""
                there.call("PUT", "/v1/agent/service/register", service(name, with_virtual) | {"Address": address})
                registered = time.perf_counter()
                times.append(1000 * (_poll(waited[what]) - registered))
                there.call("PUT", f"/v1/agent/service/deregister/{name}")
                time.sleep(_SETTLE)
    return found


def containers(hosts: Machines, rounds: int, network: str, static: str = "") -> list[float]:
    """From the result of an ADD on host 2 until containers on hosts 1 and 3 get an answer of the new one.

    ``static``: with an address of its own in each round, whose last number follows this text.
    """
    times = []
    for number in range(rounds):
        container = f"new{number}"
        address = hosts[2].add(network, container, f"IP={static}{number + 1}" if static else "")
        added = time.perf_counter()
        reached = (
            _poll(lambda one=one, address=address: _answers(hosts[one].inside(f"{network}{one}"), address, (111,)))  # type: ignore[misc]
            for one in (1, 3)
        )
        times.append(1000 * (max(reached) - added))
        hosts[2].add(network, container, command="DEL")
        hosts[2].run("ip", "netns", "delete", container)
    return times


def main() -> None:
    parser = argparse.ArgumentParser(prog="benchmarks/hosts", description=__doc__)
    parser.add_argument("--rounds", type=int, default=50, help="of each kind, up to 250")
    options = parser.parse_args()
    etcd = Cluster(1)
    try:
        hosts = Machines(etcd.bridge, f"10.77.{etcd.number}", etcd.endpoints)
        try:
            for network, subnet, more in (("blue", 60, ()), ("flat", 61, ("-o", "mode=l2"))):
                hosts.create(network, "--subnet", f"10.{subnet}.0.0/16", *more)
                for number in (1, 3):
                    hosts[number].attach(network, f"{network}{number}")
            found = services(hosts, options.rounds)
            found["a container"] = containers(hosts, options.rounds, "blue")
            found["with a static address"] = containers(hosts, options.rounds, "blue", "10.60.240.")
            found["in mode l2"] = containers(hosts, options.rounds, "flat")
            found["both"] = containers(hosts, options.rounds, "flat", "10.61.240.")
        finally:
            hosts.close()
    finally:
        etcd.close()
    print(f"{options.rounds} rounds, load {os.getloadavg()[0]:.0f}; milliseconds on another host")
    for what, times in found.items():
        print(f"{what:24} {format_times(times):>24}")
