"""Connections must not outlive the container that they lead to, nor leave with its address."""

from __future__ import annotations

import socket
import struct
import threading
import time
from ipaddress import ip_address
from typing import Any

import pytest

from lab import abilities, seen
from lab.confs import bridge, dual, port, ptp, published
from lab.frames import _sum
from lab.host import Host, Lan
from lab.namespaces import inside
from lab.plugins import Cni
from lab.traffic import _open
from lab.waiting import PATIENTLY, until

CONFS = {"ptp": ptp(dual(), ipMasq=True), "bridge": bridge(dual(), ipMasq=True, isGateway=True)}


@pytest.fixture
def lan(host: Host) -> Lan:
    return host.lan()


class Wire:
    """Counts packets that have a container's address when they leave the host, after all translation."""

    def __init__(self, host: Host, link: str) -> None:
        self._host = host
        rules = "".join(
            f"oifname {link} {ip} {way} {subnet} counter name private\noifname {link} {ip} {way} {subnet} drop\n"
            for ip, subnet in (("ip", "10.80.0.0/24"), ("ip6", "fd80::/64"))
            for way in ("saddr", "daddr")
        )
        host.run("nft", "-f", "-", stdin=(
            "table inet watch {\ncounter private { }\nchain out {\n"
            f"type filter hook postrouting priority 300\n{rules}}}\n}}\n"
        ))  # fmt: skip

    @property
    def private(self) -> int:
        listed = self._host.run("nft", "-j", "list", "counter", "inet", "watch", "private").json["nftables"]
        return int(next(one["counter"]["packets"] for one in listed if "counter" in one))


class Stream:
    """A client that keeps sending on one connection, until it fails or is closed."""

    def __init__(self, namespace: str, address: str, number: int, protocol: str) -> None:
        with inside(namespace):
            self._socket = _open(address, protocol)
        self._socket.settimeout(PATIENTLY)
        self._socket.connect((address, number))
        self.sent = 0
        self.failed = threading.Event()
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._send, daemon=True)
        self._thread.start()
        until(lambda: self.sent > 3, what="a connection")

    def _send(self) -> None:
        while not self._ending.is_set():
            try:
                self._socket.send(b"hello")
                self.sent += 1
            except OSError:
                self.failed.set()
                return
            time.sleep(0.005)

    def close(self) -> None:
        self._ending.set()
        self._thread.join(PATIENTLY)
        self._socket.close()


class Sink:
    """A server that takes one connection and reads all that it gets."""

    def __init__(self, namespace: str, number: int, protocol: str, address: str) -> None:
        with inside(namespace):
            self._socket = _open(address, protocol)
        self._socket.bind((address, number))
        self._socket.listen()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        with self._socket:
            connection, _ = self._socket.accept()
            with connection:
                connection.settimeout(2 * PATIENTLY)
                try:
                    while connection.recv(65536):
                        pass
                except OSError:
                    pass


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("protocol", ["tcp", "sctp"])
@pytest.mark.parametrize("driver", CONFS)
def test_connections_to_a_published_port_end_with_it(
    host: Host, cni: Cni, lan: Lan, driver: str, protocol: str, version: int
) -> None:
    """Packets of a client that keeps sending go neither to the wire nor to who gets the address next."""
    if protocol == "sctp":
        abilities.require_sctp()
    conflist, runtime = published(CONFS[driver], [port(8080, 80, protocol)])
    netns = host.container()
    cni.add_list(conflist, netns, runtime)
    wire = Wire(host, lan.link)
    Sink(netns, 80, protocol, "10.80.0.2" if version == 4 else "fd80::2")
    client = Stream(f"/run/netns/{lan.name}", lan.host if version == 4 else lan.host6, 8080, protocol)
    try:
        cni.delete_list(conflist, None, netns, runtime)
        if protocol == "tcp":
            until(client.failed.is_set, what="a reset of the connection")
        seen.collect(cni, CONFS[driver])
        listed = host.run("cat", "/proc/net/nf_conntrack", check=False).stdout
        assert not [line for line in listed.splitlines() if "dport=8080 " in line and "sport=80 " in line]
    finally:
        client.close()
    assert wire.private == 0


def reset(source: str, to: str) -> bytes:
    """A TCP segment that ends a connection which conntrack does not know (any more)."""
    head = struct.pack("!HHIIBBHHH", 80, 45020, 1, 0, 5 << 4, 4, 0, 0, 0)
    first, second = ip_address(source).packed, ip_address(to).packed
    pseudo = (
        first + second + struct.pack("!II" if len(first) == 16 else "!HH", *((20, 6) if len(first) == 16 else (6, 20)))
    )
    return head[:16] + struct.pack("!H", _sum(pseudo + head)) + head[18:]


def send_reset(namespace: str, source: str, to: str) -> None:
    family = socket.AF_INET6 if ":" in to else socket.AF_INET
    with inside(namespace), socket.socket(family, socket.SOCK_RAW, socket.IPPROTO_TCP) as sender:
        sender.bind((source, 0))
        sender.sendto(reset(source, to), (to, 0))


@pytest.mark.parametrize("driver", CONFS)
def test_a_segment_of_no_connection_does_not_leave_with_the_containers_address(
    host: Host, cni: Cni, lan: Lan, driver: str
) -> None:
    """The kernel masquerades only what belongs to a connection; after a reset, late segments do not."""
    conf: Any = CONFS[driver]
    netns = host.container()
    cni.add(conf, netns)
    other = host.container("c2")
    cni.add(conf, other, container="c2")
    if driver == "bridge" and not abilities.lack("bridge_netfilter"):
        host.run("sysctl", "-qw", "net.bridge.bridge-nf-call-iptables=1", "net.bridge.bridge-nf-call-ip6tables=1")
    wire = Wire(host, lan.link)
    host.serve_tcp(lan.name, 80)
    for address, peer, own in ((lan.outside, "10.80.0.3", "10.80.0.2"), (lan.outside6, "fd80::3", "fd80::2")):
        # Neighbours are resolved, and connection tracking is on.
        assert host.fetch("c1", address, 80) is not None and host.ping("c1", peer)
        family = socket.AF_INET6 if ":" in own else socket.AF_INET
        with inside(other):
            ear = socket.socket(family, socket.SOCK_RAW, socket.IPPROTO_TCP)
        with ear:
            ear.settimeout(PATIENTLY)
            send_reset(netns, own, address)
            send_reset(netns, own, peer)
            # The container next door gets it, and so the first one has been judged, too.
            assert struct.pack("!HH", 80, 45020) in ear.recv(2048)
    assert wire.private == 0
