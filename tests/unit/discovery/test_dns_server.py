"""The server on loopback: adding and removing listeners, connections, and malicious clients."""

from __future__ import annotations

import contextlib
import random
import resource
import socket
import struct
import time
from collections.abc import Iterator

import dns.flags
import dns.message
import dns.rcode
import pytest

from discovery.dns import listeners, server, sockets, tcp
from discovery.dns.network_zones import ClientConfig, NetworkZone
from discovery.dns.settings import DnsSettings, ListenAddress
from discovery.metrics import Metrics
from discovery.structs import Instance
from lab.dns import MutableCatalog, Running, Upstream, ask, ask_stream, free_port, question, read, records, running
from lab.waiting import BRIEFLY, until


def network(name: str, *gateways: str, **more: object) -> NetworkZone:
    given: dict[str, object] = {"subnets": ("127.0.0.0/8", "::1/128"), "internal": True, **more}
    return NetworkZone(name, gateways, **given)  # type: ignore[arg-type]


BLUE = network("blue", "127.0.1.1", records={"db": ("10.9.0.5",)})
RED = network("red", "127.0.2.1", records={"db": ("10.8.0.5",)})


class Served:
    def __init__(self, stack: contextlib.ExitStack, *networks: NetworkZone, listen: tuple[str, ...] = ()) -> None:
        self.port = free_port()
        many = [Instance(f"n{n}", f"w{n}", "many", f"10.1.{n}.1", 80) for n in range(500)]
        self.world = MutableCatalog(Instance("n1", "w", "web", "10.1.0.5", 80), *many)
        for instance in many:
            self.world.put(type(self.world.catalog.nodes()[0])(instance.node, "10.0.0.2"))
        settings = DnsSettings(
            listen=tuple(ListenAddress(address, self.port) for address in listen),
            network_port=self.port,
            resolv_conf="/none",
        )
        self.running: Running = stack.enter_context(running(self.world.catalog, settings, *networks))
        self.server = self.running.server

    def address_of(self, gateway: str, name: str, *, timeout: float = 10) -> list[str] | None:
        reply = ask(gateway, self.port, question(name), timeout=timeout)
        if reply is None:
            return None
        return sorted(item.to_text() for each in read(reply).answer for item in each)

    def connect(self, gateway: str, source: str = "") -> socket.socket:
        return socket.create_connection((gateway, self.port), 10, (source, 0) if source else None)


@pytest.fixture
def stack() -> Iterator[contextlib.ExitStack]:
    with contextlib.ExitStack() as made:
        yield made


def closed(client: socket.socket) -> bool:
    """Whether the server closes the connection (waits for it)."""
    try:
        while client.recv(65536):
            pass
    except TimeoutError:
        return False
    except OSError:
        pass
    return True


def test_each_network_resolves_its_own_names(stack: contextlib.ExitStack) -> None:
    served = Served(stack, BLUE, RED, listen=("127.0.0.1", "::1"))
    assert served.address_of("127.0.1.1", "db") == ["10.9.0.5"]
    assert served.address_of("127.0.2.1", "db") == ["10.8.0.5"]
    for place in ("127.0.0.1", "::1", "127.0.1.1"):
        assert served.address_of(place, "web.service.weft") == ["10.1.0.5"]
        (reply,) = ask_stream(place, served.port, question("web.service.weft"))
        assert records(read(reply).answer) == ["web.service.weft. 0 IN A 10.1.0.5"]
    assert read(ask("127.0.0.1", served.port, question("db"))).rcode() == dns.rcode.REFUSED


@pytest.mark.parametrize("place", ["127.0.0.1", "::1"])
def test_loopback_carries_what_the_client_accepts(stack: contextlib.ExitStack, place: str) -> None:
    """HAProxy accepts 8192 bytes and takes a server that is not in the reply for dead."""
    served = Served(stack, listen=(place,))
    for size, kind, whole in ((65535, "SRV", 500), (8192, "A", 256), (4096, "A", 0)):
        raw = ask(place, served.port, question("many.service.weft", kind, edns=True, size=size))
        assert raw is not None and (not read(raw).flags & dns.flags.TC) is bool(whole)
        assert len(read(raw).answer[0]) == whole if whole else size - 40 < len(raw) <= size
    raw = ask(place, served.port, question("many.service.weft"))
    assert raw is not None and len(raw) <= 512


def test_the_size_of_udp_replies_can_be_set(stack: contextlib.ExitStack, monkeypatch: pytest.MonkeyPatch) -> None:
    served = Served(stack, listen=("127.0.0.1",))
    size = served.server._udp_size
    assert size("127.0.0.1", own=True) == 65507 and size("203.0.113.9", own=False) == 1232
    monkeypatch.setattr(sockets, "unfragmented_size", lambda address: 1472)
    assert (size("10.0.0.2", own=True), size("10.0.0.2", own=False)) == (1472, 1232)
    served.server._settings = DnsSettings(udp_size=600)
    assert (size("10.0.0.2", own=True), size("10.0.0.2", own=False)) == (600, 600)


def test_adding_and_removing_listeners_does_not_affect_others(stack: contextlib.ExitStack) -> None:
    served = Served(stack, BLUE)
    client = stack.enter_context(served.connect("127.0.1.1"))
    socket_of_blue = served.server._listeners["127.0.1.1", served.port].udp
    served.running.run(served.server.set_networks([BLUE, RED]))
    assert served.address_of("127.0.2.1", "db") == ["10.8.0.5"]
    changed = network("blue", "127.0.1.1", records={"db": ("10.9.0.99",)})
    served.running.call(lambda: served.running.names.put(changed))
    assert served.address_of("127.0.1.1", "db") == ["10.9.0.99"]
    served.running.call(lambda: served.running.names.remove("red"))
    until(lambda: len(served.server._listeners) == 1)
    assert served.address_of("127.0.2.1", "db", timeout=BRIEFLY) is None
    assert served.server._listeners["127.0.1.1", served.port].udp is socket_of_blue
    client.sendall(len(question("db")).to_bytes(2, "big") + question("db"))
    assert client.recv(4096)


def test_the_server_can_be_stopped_and_restarted(stack: contextlib.ExitStack) -> None:
    served = Served(stack, BLUE, listen=("127.0.0.1",))
    served.running.run(served.server.stop())
    assert served.address_of("127.0.1.1", "db", timeout=BRIEFLY) is None
    served.world.put(Instance("n1", "w2", "late", "10.1.0.6", 80))
    served.running.run(served.server.start())
    assert served.address_of("127.0.1.1", "db") == ["10.9.0.5"]
    assert served.address_of("127.0.0.1", "late.service.weft") == ["10.1.0.6"]


def test_binding_an_address_in_use_is_retried(stack: contextlib.ExitStack, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listeners, "BIND_RETRY_SECONDS", 0.05)
    served = Served(stack)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
        other.bind(("127.0.1.1", served.port))
        served.running.run(served.server.set_networks([BLUE, RED, network("odd", "no address")]))
        assert "in use" in served.server.bind_errors["127.0.1.1", served.port]
        assert "no address" in served.server.bind_errors["no address", served.port]
        assert served.address_of("127.0.2.1", "db") == ["10.8.0.5"]
    until(lambda: ("127.0.1.1", served.port) in served.server._listeners)
    assert served.address_of("127.0.1.1", "db") == ["10.9.0.5"]
    assert list(served.server.bind_errors) == [("no address", served.port)]


def test_clients_outside_the_subnets_get_no_answer(stack: contextlib.ExitStack) -> None:
    narrow = network("blue", "127.0.1.1", subnets=("127.0.1.0/24",), records={"db": ("10.9.0.5",)})
    served = Served(stack, narrow)
    message = question("db")
    assert ask("127.0.1.1", served.port, message, timeout=BRIEFLY, source="127.0.9.9") is None
    assert ask("127.0.1.1", served.port, message, source="127.0.1.9") is not None
    client = stack.enter_context(served.connect("127.0.1.1", "127.0.9.9"))
    client.sendall(len(message).to_bytes(2, "big") + message)
    assert closed(client)
    assert served.server.counters.foreign == 2


def test_networks_with_one_gateway_and_containers_on_several_networks(stack: contextlib.ExitStack) -> None:
    first = network("first", "127.0.1.1", records={"db": ("10.1.1.1",)}, reverse={"127.0.3.1": "x"})
    second = network(
        "second",
        "127.0.1.1",
        records={"db": ("10.2.2.2",)},
        reverse={"127.0.3.2": "y"},
        clients={"127.0.3.3": ClientConfig(("first", "nix"))},
    )
    served = Served(stack, first, second)
    expected = {"127.0.3.1": ["10.1.1.1"], "127.0.3.2": ["10.2.2.2"], "127.0.3.3": ["10.1.1.1", "10.2.2.2"]}
    for source, addresses in expected.items():
        reply = read(ask("127.0.1.1", served.port, question("db"), source=source))
        assert sorted(item.to_text() for each in reply.answer for item in each) == addresses


def test_a_wildcard_listener_replies_from_the_queried_address(stack: contextlib.ExitStack) -> None:
    upstream = Upstream(lambda query, _: [dns.message.make_response(query).to_wire()])
    stack.callback(upstream.close)
    port = free_port()
    settings = DnsSettings(
        listen=(ListenAddress("0.0.0.0", port), ListenAddress("::", port)), recursors=(upstream.address,)
    )
    stack.enter_context(running(MutableCatalog().catalog, settings))
    for address in ("127.0.0.1", "127.0.0.7", "127.1.2.3", "::1"):
        for name in ("weft", "example.com"):
            assert ask(address, port, question(name, "SOA")) is not None, address


def test_many_queries_on_one_connection(stack: contextlib.ExitStack) -> None:
    served = Served(stack, BLUE)
    messages = [question("db" if n % 2 else "web.service.weft") for n in range(200)]
    replies = ask_stream("127.0.1.1", served.port, *messages)
    assert [reply[:2] for reply in replies] == [message[:2] for message in messages]


def test_a_query_in_several_segments_and_an_early_shutdown(stack: contextlib.ExitStack) -> None:
    served = Served(stack, BLUE)
    message = question("db")
    client = stack.enter_context(served.connect("127.0.1.1"))
    for byte in len(message).to_bytes(2, "big") + message:
        client.sendall(bytes((byte,)))
    client.shutdown(socket.SHUT_WR)
    data = client.makefile("rb").read()
    assert records(read(data[2:]).answer) == ["db. 0 IN A 10.9.0.5"]


def test_forwarded_replies_arrive_in_any_order_on_a_connection(stack: contextlib.ExitStack) -> None:
    upstream = Upstream(lambda query, _: [dns.message.make_response(query).to_wire()])
    stack.callback(upstream.close)
    served = Served(stack, network("blue", "127.0.1.1", internal=False, upstreams=(upstream.address,)))
    messages = [question(f"www{n}.example.com") if n % 3 else question("web.service.weft") for n in range(90)]
    replies = ask_stream("127.0.1.1", served.port, *messages)
    assert {reply[:2] for reply in replies} == {message[:2] for message in messages}


@pytest.mark.parametrize("length", [0, 1, 11, 4097, 65535])
def test_messages_with_invalid_lengths_close_the_connection(stack: contextlib.ExitStack, length: int) -> None:
    served = Served(stack, BLUE)
    client = stack.enter_context(served.connect("127.0.1.1"))
    client.sendall(length.to_bytes(2, "big") + b"\0" * 12)
    assert closed(client)


def test_idle_and_slow_connections_are_closed(stack: contextlib.ExitStack, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tcp, "IDLE_TIMEOUT", 0.3)
    monkeypatch.setattr(tcp, "WRITE_TIMEOUT", 0.3)
    served = Served(stack, BLUE)
    idle, slow, deaf = (stack.enter_context(served.connect("127.0.1.1")) for _ in range(3))
    message = len(question("many.service.weft", "SRV")).to_bytes(2, "big") + question("many.service.weft", "SRV")
    deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    deaf.settimeout(0.2)
    # Replies of 40 KB, which the client does not read.
    with contextlib.suppress(OSError):
        for _ in range(100_000):
            deaf.sendall(message)
    slow.settimeout(0.05)
    with contextlib.suppress(OSError):
        for _ in range(200):
            slow.sendall(b"\0")
            with contextlib.suppress(TimeoutError):
                if not slow.recv(1):
                    break
        else:
            raise AssertionError("a byte from time to time kept the connection")
    assert closed(idle)
    until(lambda: not len(served.server._connections))


def test_connections_are_limited_and_other_clients_are_served(stack: contextlib.ExitStack) -> None:
    """A thousand silent connections, from one client and then from many."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 4096), hard))
    stack.callback(resource.setrlimit, resource.RLIMIT_NOFILE, (soft, hard))
    served = Served(stack, BLUE)
    for number in range(1000):
        stack.enter_context(served.connect("127.0.1.1", f"127.0.7.{1 + number % 40 if number >= 300 else 1}"))
    until(lambda: len(served.server._connections) <= tcp.MAX_CONNECTIONS)
    assert served.address_of("127.0.1.1", "db") == ["10.9.0.5"]
    (reply,) = ask_stream("127.0.1.1", served.port, question("db"))
    assert records(read(reply).answer) == ["db. 0 IN A 10.9.0.5"]
    connections = served.server._connections
    held, many = served.running.call(lambda: (dict(connections._per_client), len(connections)))
    assert max(held.values()) <= tcp.MAX_CONNECTIONS_PER_CLIENT
    assert sum(held.values()) == many <= tcp.MAX_CONNECTIONS


def test_reset_connections_leave_nothing(stack: contextlib.ExitStack) -> None:
    """The server is idle after a thousand resets within a query (CVE-2024-8418, CVE-2026-35406)."""
    served = Served(stack, BLUE)
    whole = len(question("db")).to_bytes(2, "big") + question("db")
    for number in range(1000):
        client = served.connect("127.0.1.1")
        with contextlib.suppress(ConnectionError):
            client.sendall(whole[: number % len(whole)])
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client.close()
    until(lambda: not len(served.server._connections))
    assert served.address_of("127.0.1.1", "db") == ["10.9.0.5"]
    assert idle(served)


def idle(served: Served) -> bool:
    """Whether the server is idle: almost no processor time is used during a pause."""
    for _ in range(20):
        before = time.process_time()
        time.sleep(0.5)
        if time.process_time() - before < 0.1:
            return True
    return False


def test_random_bytes(stack: contextlib.ExitStack) -> None:
    served = Served(stack, BLUE)
    noise = random.Random(7)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.connect(("127.0.1.1", served.port))
        for number in range(2000):
            size = noise.choice((0, 1, 11, 12, 13, 40, 512, 4095, 9000, 60_000 if number % 50 == 0 else 100))
            with contextlib.suppress(OSError):
                client.send(noise.randbytes(size))
        for body in (b"\xc0\x0c", b"\x01a\xc0\x0c", b"\xc0\x0e\xc0\x0c"):
            client.send(b"ab\1\0\0\1\0\0\0\0\0\0" + body + b"\0\1\0\1")
    assert served.address_of("127.0.1.1", "db") == ["10.9.0.5"]


def test_counters_are_published() -> None:
    metrics = Metrics()
    with running(MutableCatalog().catalog, DnsSettings(listen=())) as made:
        made.call(lambda: server.export(metrics, made.server))
        made.call(lambda: made.server._responder.respond(question("weft"), made.server._view_for((), None, 1232)))
        text = metrics.text()
    assert "weft_dns_queries_total 1\n" in text
    assert "# TYPE weft_dns_queries_total counter" in text
    assert "weft_dns_connections 0\n" in text


def test_listen_addresses_are_not_resolved_as_names() -> None:
    with pytest.raises(ValueError, match="does not appear to be"):
        sockets.udp_socket("localhost", 0)
