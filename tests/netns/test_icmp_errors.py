"""ICMP errors that containers forge: about connections of others, and about none."""

from __future__ import annotations

import contextlib
import socket
import struct
from collections.abc import Iterator
from typing import Any

import pytest

from cni_plugin.dataplane import guard
from lab import frames, namespaces, seen
from lab.calls import Weft
from lab.confs import DEFAULT4, DEFAULT6, bridge, pool, port, ptp
from lab.frames import UDP
from lab.host import Host
from weft.kernel.nft.owned import OwnedTable

NETWORKS: tuple[tuple[str, int, dict[str, Any]], ...] = (
    ("one", 81, {}),
    ("two", 82, {}),
    ("routed", 83, {"isolation": "routed"}),
    ("inner", 84, {"internal": True}),
)
PUBLISHED = 8080
VERSIONS = pytest.mark.parametrize("version", [4, 6])
DRIVERS = pytest.mark.parametrize("driver", ["bridge", "ptp"])


class Topology:
    """A container on each network, and a neighbour with routes to all of them."""

    def __init__(self, host: Host, driver: str) -> None:
        seen.hurry(host)
        seen.forward(host)
        self.host, self._lan, self._open, weft = host, host.lan(default_route=True), list[socket.socket](), Weft()
        for name, number, keys in NETWORKS:
            ipam = pool(f"10.{number}.0.0/24", f"fd00:{number}::/64", routes=[DEFAULT4, DEFAULT6])
            made = ptp(ipam, name=name)
            if driver == "bridge":
                made = bridge(ipam, name=name, bridge=f"b-{name}", isGateway=True)
            publish = {"portmap": {}, "runtimeConfig": {"portMappings": [port(PUBLISHED, 80, "udp")]}}
            weft.add(
                {**made, "type": "weft", "driver": driver, **(publish if name == "two" else {}), **keys},
                host.container(name),
                name,
            )

    def address(self, place: str, version: int) -> str:
        if place == "outside":
            return self._lan.outside if version == 4 else self._lan.outside6
        if place == "host":
            return self._lan.host if version == 4 else self._lan.host6
        number = next(number for name, number, _ in NETWORKS if name == place)
        return f"10.{number}.0.2" if version == 4 else f"fd00:{number}::2"

    def gateway(self, place: str, version: int) -> str:
        return self.address(place, version).removesuffix("2") + "1"

    def sends(self, place: str, address: str, number: int) -> tuple[str, int, str, int]:
        """A datagram from there, which the host tracks: source, port, destination, port."""
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        with namespaces.inside(f"/run/netns/{place}"):
            opened = socket.socket(family, socket.SOCK_DGRAM)
        self._open.append(opened)
        opened.connect((address, number))
        opened.send(b"hello")
        source, own = opened.getsockname()[:2]
        return source, own, address, number

    def arrives(self, sender: str, receiver: str, flow: tuple[str, int, str, int]) -> bool:
        """Whether an error about a packet of the receiver's comes there."""
        source, own, address, number = flow
        version = 6 if ":" in source else 4
        ear = frames.Ear(f"/run/netns/{receiver}")
        try:
            _, about = frames.ip(source, address, UDP, frames.udp(own, number, b"<forged>"))
            self.error(sender, source, about)
            return bool(ear.heard([b"<forged>"], self._last(receiver, version)))
        finally:
            ear.close()

    def error(self, sender: str, receiver: str, about: bytes, *, mtu: int = 0) -> None:
        """Destination unreachable, or packet too big, by a raw socket."""
        v6 = ":" in receiver
        if v6:
            content = struct.pack("!BBHI", 2 if mtu else 1, 0 if mtu else 3, 0, mtu) + about
        else:
            content = struct.pack("!BBHI", 3, 4 if mtu else 3, 0, mtu) + about
        content = content[:2] + struct.pack("!H", frames._sum(content)) + content[4:]
        family, protocol = (socket.AF_INET6, frames.ICMP6) if v6 else (socket.AF_INET, frames.ICMP)
        with namespaces.inside(f"/run/netns/{sender}"), socket.socket(family, socket.SOCK_RAW, protocol) as raw:
            raw.sendto(content, (receiver, 0))

    def mtu(self, address: str) -> str:
        """The route of the host to an address, from an expiry on: with the MTU that it has learnt."""
        return self.host.run("ip", "-d", "route", "get", address).stdout.partition("expires")[2]

    def _last(self, receiver: str, version: int) -> bytes:
        """A datagram of the host's to the receiver, after the error."""
        with socket.socket(socket.AF_INET6 if version == 6 else socket.AF_INET, socket.SOCK_DGRAM) as last:
            last.sendto(b"<the last>", (self.address(receiver, version), 9))
        return b"<the last>"


def crossing(topology: Topology, version: int) -> dict[str, bool]:
    """Which closed boundaries errors about known connections cross."""
    outside = topology.address("outside", version)
    known = topology.sends("outside", topology.address("host", version), 5000)
    return {
        "out of an internal network": topology.arrives("inner", "outside", known),
        "into an internal network": topology.arrives(
            "outside", "inner", topology.sends("inner", topology.gateway("inner", version), 53)
        ),
        "into a closed network": topology.arrives("one", "two", topology.sends("two", outside, 9999)),
        "into a routed network": topology.arrives("one", "routed", topology.sends("routed", outside, 9999)),
    }


@contextlib.contextmanager
def without_rules(host: Host) -> Iterator[None]:
    """Only the table of constant drops is there, as after a flush of all rules."""
    table = OwnedTable(guard.TABLES[guard.Owner.ENGINE])
    try:
        if not table.claim():
            pytest.skip("this kernel has no owned tables that persist")
        host.run("nft", "delete", "table", "inet", "weft")
        yield
    finally:
        table.remove()


@VERSIONS
@DRIVERS
def test_an_error_crosses_no_closed_boundary(host: Host, driver: str, version: int) -> None:
    found = crossing(Topology(host, driver), version)
    assert not any(found.values()), found


@VERSIONS
def test_nor_while_rules_are_restored(host: Host, version: int) -> None:
    topology = Topology(host, "bridge")
    with without_rules(host):
        found = crossing(topology, version)
        assert not any(found.values()), found
        assert topology.arrives("outside", "one", topology.sends("one", topology.address("outside", version), 9999))


@VERSIONS
@DRIVERS
def test_an_error_of_a_router_or_of_a_published_port_arrives(host: Host, driver: str, version: int) -> None:
    topology = Topology(host, driver)
    outside = topology.address("outside", version)
    for name in ("one", "routed"):
        assert topology.arrives("outside", name, topology.sends(name, outside, 9999)), name
    for name in ("one", "outside"):
        flow = topology.sends(name, topology.address("host", version), PUBLISHED)
        assert topology.arrives("two", name, (*flow[:2], topology.address("two", version), 80)), name


def too_big(topology: Topology, name: str, version: int, target: str) -> None:
    """The container says that an echo reply of the host's to the target was too big."""
    gateway = topology.gateway(name, version)
    reply = struct.pack("!BBHHH", 0 if version == 4 else 129, 0, 0, 7, 1) + bytes(32)
    _, about = frames.ip(gateway, target, frames.ICMP if version == 4 else frames.ICMP6, reply)
    topology.error(name, gateway, about, mtu=1280)
    assert topology.host.ping(name, gateway)  # the error has been read


@VERSIONS
@DRIVERS
@pytest.mark.parametrize("name", ["one", "inner"])
def test_no_container_lowers_the_mtu_to_others(host: Host, name: str, driver: str, version: int) -> None:
    topology = Topology(host, driver)
    for other in ("outside", "two"):
        too_big(topology, name, version, topology.address(other, version))
        assert not topology.mtu(topology.address(other, version)), other


@VERSIONS
@DRIVERS
def test_a_container_may_lower_the_mtu_to_itself(host: Host, driver: str, version: int) -> None:
    topology = Topology(host, driver)
    own, gateway = topology.address("one", version), topology.gateway("one", version)
    assert host.ping("one", gateway)
    with socket.socket(socket.AF_INET6 if version == 6 else socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.connect((own, 9))
        sender.send(b"hello")
        _, about = frames.ip(gateway, own, UDP, frames.udp(sender.getsockname()[1], 9, b""))
        topology.error("one", gateway, about, mtu=1280)
        assert host.ping("one", gateway)
        assert "mtu 1280" in topology.mtu(own)


@VERSIONS
def test_nor_to_others_while_rules_are_restored(host: Host, version: int) -> None:
    topology = Topology(host, "bridge")
    with without_rules(host):
        too_big(topology, "inner", version, topology.address("outside", version))
        assert not topology.mtu(topology.address("outside", version))
