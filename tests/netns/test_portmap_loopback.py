"""Processes of the host reach published ports at 127.0.0.1 and [::1], without route_localnet."""

from __future__ import annotations

import array
import contextlib
import fcntl
import socket
import struct
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from lab import namespaces, seen
from lab.confs import SUBNET, bridge, dual, pool, port, ptp, published
from lab.host import Host, Lan
from lab.plugins import Cni
from lab.waiting import BRIEFLY, PATIENTLY

CHAIN = bridge(dual(), isGateway=True)
DRIVERS = {"bridge": CHAIN, "ptp": ptp(dual())}
WAYS = (("127.0.0.1", "10.80.0.1"), ("127.8.9.10", "10.80.0.1"), ("::1", "fd80::1"))
FAMILIES = pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
MAPPINGS = (port(8080, 80), port(8080, 80, "udp"))
_LENGTH = 3_000_000


def publish(host: Host, cni: Cni, *mappings: dict[str, Any], driver: dict[str, Any] = CHAIN, **keys: Any) -> Any:
    """ADD of a container ``c1`` with published ports; returns the result."""
    conflist, runtime = published(driver, mappings, **keys)
    return cni.add_list(conflist, host.container(), runtime)


def client(address: str, kind: socket.SocketKind = socket.SOCK_STREAM, own: int = 0) -> socket.socket:
    made = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, kind)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    made.settimeout(PATIENTLY)
    made.bind(("", own))
    return made


@contextlib.contextmanager
def echo(name: str, number: int, kind: socket.SocketKind) -> Iterator[None]:
    """In a container, echoes what one client sends: a whole TCP stream, or one datagram."""
    with namespaces.inside(f"{namespaces.FOLDER}/{name}"):
        server = socket.socket(socket.AF_INET6, kind)
    server.settimeout(PATIENTLY)
    server.bind(("::", number))

    def serve() -> None:
        with contextlib.suppress(OSError):
            if kind is socket.SOCK_DGRAM:
                data, sender = server.recvfrom(65535)
                server.sendto(data, sender)
                return
            server.listen(1)
            connection, _ = server.accept()
            with connection:
                connection.settimeout(PATIENTLY)
                connection.sendall(_all(connection))

    if kind is socket.SOCK_STREAM:
        server.listen(1)
    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    yield
    thread.join(PATIENTLY)
    server.close()


def _all(connection: socket.socket) -> bytes:
    return b"".join(iter(lambda: connection.recv(1 << 20), b""))


def sum_by_software(link: str) -> None:
    """Turn checksum offload off, as ``ethtool -K LINK tx off`` does (SIOCETHTOOL)."""
    command = array.array("B", struct.pack("II", 0x17, 0))  # ETHTOOL_STXCSUM
    address, _ = command.buffer_info()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        fcntl.ioctl(any_socket, 0x8946, struct.pack("16sP16x", link.encode(), address))


@pytest.mark.parametrize("protocol", ["tcp", "udp"])
@pytest.mark.parametrize("driver", DRIVERS.values(), ids=DRIVERS)
def test_every_local_client_reaches_the_port(host: Host, cni: Cni, driver: dict[str, Any], protocol: str) -> None:
    """From any loopback address, with rp_filter=1; nothing is left after DEL."""
    host.run("sysctl", "-qw", "net.ipv4.conf.all.rp_filter=1", "net.ipv4.conf.default.rp_filter=1")
    seen.forward(host)
    before = host.snapshot()
    publish(host, cni, port(8080, 80, protocol), driver=driver)
    getattr(host, f"serve_{protocol}")("c1", 80)
    for address, known in WAYS:
        assert host.fetch(None, address, 8080, protocol) == known, address
    assert host.fetch(None, "127.0.0.1", 8080, protocol, source="127.0.0.5") == "10.80.0.1"
    settings = host.run("sysctl", "-a", "-r", "route_localnet").stdout.split("\n")
    assert [line for line in settings if line.endswith("= 1")] == []
    conflist, runtime = published(driver, [port(8080, 80, protocol)])
    cni.delete_list(conflist, None, "/run/netns/c1", runtime)
    for address, _ in WAYS:
        assert host.fetch(None, address, 8080, protocol, timeout=BRIEFLY) is None, address
    seen.collect(cni, driver)
    seen.collect(cni, {**driver, "type": "portmap"})
    assert host.changes(before) == []


@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_DGRAM], ids=["tcp", "udp"])
@FAMILIES
def test_connection_refused_is_reported_at_once(host: Host, cni: Cni, address: str, kind: socket.SocketKind) -> None:
    """The container's kernel refuses: RST for TCP, ICMP port unreachable for UDP."""
    publish(host, cni, *MAPPINGS)
    assert host.ping(None, "fd80::2")
    with client(address, kind) as asking, pytest.raises(ConnectionRefusedError):
        asking.connect((address, 8080))
        asking.send(b"anybody?")
        asking.recv(100)


@pytest.mark.parametrize("software", [False, True], ids=["", "checksums by software"])
@FAMILIES
def test_bulk_data_in_both_directions(host: Host, cni: Cni, address: str, software: bool) -> None:
    result = publish(host, cni, *MAPPINGS)
    if software:
        for link in ("br0", result["interfaces"][1]["name"]):
            sum_by_software(link)
        with namespaces.inside("/run/netns/c1"):
            sum_by_software("eth0")
    sent = bytes(range(256)) * (_LENGTH // 256)
    with echo("c1", 80, socket.SOCK_STREAM), client(address) as stream:
        stream.connect((address, 8080))
        stream.sendall(sent)
        stream.shutdown(socket.SHUT_WR)
        assert _all(stream) == sent
    with echo("c1", 80, socket.SOCK_DGRAM), client(address, socket.SOCK_DGRAM) as datagrams:
        datagrams.connect((address, 8080))
        datagrams.send(sent[:40_000])  # in fragments
        assert datagrams.recv(65535) == sent[:40_000]


@pytest.mark.parametrize("protocol", ["tcp", "udp"])
@pytest.mark.parametrize(("address", "inner"), [("127.0.0.1", "10.80.0.2"), ("::1", "fd80::2")])
def test_direct_client_may_use_the_same_source_port(
    host: Host, cni: Cni, address: str, inner: str, protocol: str
) -> None:
    """SNAT to the gateway makes both tuples equal, so conntrack picks another port for one."""
    publish(host, cni, port(8080, 80, protocol), driver=DRIVERS["ptp"])
    getattr(host, f"serve_{protocol}")("c1", 80)
    kind = socket.SOCK_STREAM if protocol == "tcp" else socket.SOCK_DGRAM
    with client(inner, kind, 45678) as direct, client(address, kind, 45678) as within:
        direct.connect((inner, 80))
        within.connect((address, 8080))
        for one, words in ((direct, b"direct"), (within, b"within")):
            one.send(words)
            assert one.recv(100).endswith(b" " + words)


@FAMILIES
def test_local_services_are_unaffected(host: Host, cni: Cni, address: str) -> None:
    """Also if their client's source port is published, and for earlier connections."""
    publish(host, cni, port(7000, 70))
    listener = socket.create_server((address, 8080), family=socket.AF_INET6 if ":" in address else socket.AF_INET)
    older = socket.create_connection((address, 8080), timeout=PATIENTLY)
    served, _ = listener.accept()
    listener.close()
    conflist, runtime = published(CHAIN, [port(8080, 80), port(45678, 80)])
    cni.add_list(conflist, host.container("c2"), runtime, container="c2")
    host.serve_tcp("c2", 80)
    host.serve_tcp(None, 9999, address)
    assert host.fetch(None, address, 8080) in ("10.80.0.1", "fd80::1")
    with client(address, own=45678) as own:
        own.connect((address, 9999))
        own.sendall(b"own")
        assert own.recv(100) == f"{address} own".encode()
    with older, served:
        served.settimeout(PATIENTLY)
        older.sendall(b"still here")
        assert served.recv(100) == b"still here"
        served.sendall(b"so am I")
        assert older.recv(100) == b"so am I"


@FAMILIES
def test_a_port_of_one_loopback_address(host: Host, cni: Cni, address: str) -> None:
    """Closed at other loopback addresses and outside."""
    lan = host.lan()
    publish(host, cni, port(8080, 80, address=address))
    cni.add(CHAIN, host.container("c2"), container="c2")
    cni.add(bridge(pool("10.81.0.0/24", "fd81::/64"), bridge="br1", isGateway=True, name="other"),
            host.container("c3"), container="c3")  # fmt: skip
    server = host.serve_tcp("c1", 80)
    gateway = "fd80::1" if ":" in address else "10.80.0.1"
    assert host.fetch(None, address, 8080) == gateway
    for other in ("127.0.0.1", "127.0.0.2", "::1", gateway, lan.host, lan.host6):
        if other != address:
            assert host.fetch(None, other, 8080, timeout=BRIEFLY) is None, other
    for name in (lan.name, "c2", "c3"):
        for other in (lan.host, lan.host6, "10.80.0.1", "fd80::1", "10.81.0.1", "fd81::1"):
            assert host.fetch(name, other, 8080, timeout=0.1) is None, (name, other)
    assert server.clients == [gateway]


def test_check_reports_each_missing_element(host: Host, cni: Cni) -> None:
    mappings = (*MAPPINGS, port(8081, 81, address="127.0.0.1"), port(8081, 81, address="::1"))
    conflist, runtime = published(CHAIN, mappings)
    result = cni.add_list(conflist, host.container(), runtime)
    member = Cni._members(conflist, runtime)[1] | {"prevResult": result}
    for name, key in (
        ("loopback_ports4", "tcp . 8080"), ("loopback_ports4", "udp . 8080"), ("loopback_ports6", "tcp . 8080"),
        ("loopback_ports4_at", "127.0.0.1 . tcp . 8081"), ("loopback_ports6_at", "::1 . tcp . 8081"),
        ("hairpin4", '"br0" . 10.80.0.2'), ("hairpin6", '"br0" . fd80::2'),
    ):  # fmt: skip
        line = host.run("nft", "get", "element", "inet", "weft", name, f"{{ {key} }}").stdout
        whole = line[line.index("elements = {") + 12 : line.index("}")]
        host.run("nft", "delete", "element", "inet", "weft", name, f"{{ {key} }}")
        problem = seen.problem(cni, "CHECK", member, "/run/netns/c1")
        assert problem["code"] == 104 and name in problem["msg"], problem
        host.run("nft", "add", "element", "inet", "weft", name, f"{{ {whole} }}")
        cni.check(member, result, "/run/netns/c1")


def test_the_same_ports_in_two_networks_of_a_container(host: Host, cni: Cni) -> None:
    """As podman passes them: the first network has the ports until its DEL, then the second one."""
    publish(host, cni, *MAPPINGS)
    other = bridge(pool("10.81.0.0/24"), bridge="br1", isGateway=True, name="other")
    conflist, runtime = published(other, MAPPINGS)
    result = cni.add_list(conflist, "/run/netns/c1", runtime, ifname="eth1")
    cni.check_list(conflist, result, "/run/netns/c1", runtime, ifname="eth1")
    host.serve_tcp("c1", 80)
    assert host.fetch(None, "127.0.0.1", 8080) == "10.80.0.1"
    first, runtime = published(CHAIN, MAPPINGS)
    cni.delete_list(first, None, "/run/netns/c1", runtime)
    assert host.fetch(None, "127.0.0.1", 8080) == "10.81.0.1"


def test_packets_are_never_routed_outside(host: Host, cni: Cni) -> None:
    """The bridge has no address of the host; its subnet is behind the default route."""
    lan: Lan = host.lan(default_route=True)
    conflist, runtime = published(bridge(pool(SUBNET)), [port(8080, 80)])
    cni.add_list(conflist, host.container(), runtime)
    host.inside(lan.name, "ip", "address", "add", "10.80.0.2/32", "dev", "lo")
    host.run("ip", "route", "add", "10.80.0.2/32", "via", lan.outside)
    stranger = host.serve_tcp(lan.name, 80)
    assert host.fetch(None, lan.host, 8080) is not None
    assert host.fetch(None, "127.0.0.1", 8080, timeout=BRIEFLY) is None
    assert len(stranger.clients) == 1


def test_masqall_and_no_snat(host: Host, cni: Cni) -> None:
    publish(host, cni, port(8080, 80), masqAll=True)
    host.serve_tcp("c1", 80)
    for address, known in WAYS:
        assert host.fetch(None, address, 8080) == known
