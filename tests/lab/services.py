"""For tests of the balancer: backends that send their name, clients, and a catalog."""

from __future__ import annotations

import asyncio
import contextlib
import selectors
import socket
import threading
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from dataclasses import replace

from discovery import layout
from discovery.balancer.balancer import Balancer
from discovery.balancer.settings import BalancerSettings
from discovery.catalog import Catalog
from discovery.metrics import Metrics
from discovery.structs import CatalogEntry, Check, Instance, Node, Status, VirtualAddress
from lab import commands
from lab.host import Host
from lab.namespaces import inside
from lab.waiting import PATIENTLY
from store import Batch, Entry, Event

NODE = Node("n1", "192.0.2.1")


class Book:
    """A catalog that tests fill; every call is one revision."""

    def __init__(self, *nodes: Node) -> None:
        self.catalog = Catalog()
        self.revision = 1
        self._created: dict[str, int] = {}
        self.put(*(nodes or (NODE,)))

    def put(self, *values: CatalogEntry) -> None:
        self._apply([(layout.store_key(value), layout.encode(value)) for value in values])

    def drop(self, *values: CatalogEntry) -> None:
        self._apply([(layout.store_key(value), None) for value in values])

    def health(self, instance: Instance, status: Status) -> None:
        self.put(
            Check(instance.node, f"service:{instance.id}", "check", status, instance.id, instance.name, type="ttl")
        )

    def _apply(self, changes: Iterable[tuple[str, bytes | None]]) -> None:
        self.revision += 1
        events = []
        for key, value in changes:
            if value is None:
                self._created.pop(key, None)
                events.append(Event(key, None, None, self.revision))
            else:
                created = self._created.setdefault(key, self.revision)
                events.append(Event(key, Entry(key, value, created, self.revision, 1), None, self.revision))
        self.catalog.apply(Batch(self.revision, tuple(events)))


def instance(name: str, address: str, port: int = 80, **rest: object) -> Instance:
    """An instance of a service on the first node; its id is the address."""
    made = Instance(NODE.name, f"{name}-{address}-{port}", name, address, port, protocol="tcp")
    return replace(made, **rest)  # type: ignore[arg-type]


def virtual(name: str, address: str) -> VirtualAddress:
    return VirtualAddress(name, address)


def run(work: Callable[[Balancer], Awaitable[None]], book: Book, **settings: object) -> None:
    """Run a coroutine with a started balancer that has programmed the catalog."""

    async def main() -> None:
        balancer = Balancer(book.catalog, config(**settings), Metrics())
        await balancer.start()
        try:
            await balancer.wait_synced()
            await work(balancer)
        finally:
            await balancer.stop()

    asyncio.run(main())


def config(**settings: object) -> BalancerSettings:
    return BalancerSettings(**{"node": NODE.name, "interval": 0.2, "outside": (), **settings})  # type: ignore[arg-type]


class Greeters:
    """Servers in one namespace, one per address; each sends its name on connect and per request."""

    def __init__(self, namespace: str, places: Mapping[str, tuple[str, int]]) -> None:
        self._selector = selectors.DefaultSelector()
        self._ending = threading.Event()
        self.clients: dict[str, list[str]] = {name: [] for name in places}
        with inside(namespace):
            for name, place in places.items():
                family = socket.AF_INET6 if ":" in place[0] else socket.AF_INET
                for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
                    listener = socket.socket(family, kind)
                    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                    listener.bind(place)
                    listener.setblocking(False)
                    if kind == socket.SOCK_STREAM:
                        listener.listen(1024)
                    self._selector.register(listener, selectors.EVENT_READ, (name, kind))
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._ending.set()
        self._thread.join(PATIENTLY)
        for key in list(self._selector.get_map().values()):
            key.fileobj.close()  # type: ignore[union-attr]
        self._selector.close()

    def _serve(self) -> None:
        while not self._ending.is_set():
            for key, _ in self._selector.select(0.1):
                self._ready(key.fileobj, *key.data)  # type: ignore[arg-type]

    def _ready(self, there: socket.socket, name: str, kind: socket.SocketKind | None) -> None:
        try:
            if kind == socket.SOCK_STREAM:
                connection, client = there.accept()
                connection.setblocking(False)
                self.clients[name].append(client[0])
                connection.sendall(name.encode())
                self._selector.register(connection, selectors.EVENT_READ, (name, None))
            elif kind == socket.SOCK_DGRAM:
                _, client = there.recvfrom(2048)
                self.clients[name].append(client[0])
                there.sendto(name.encode(), client)
            elif data := there.recv(2048):
                there.sendall(name.encode() + b" " + data)
            else:
                self._forget(there)
        except BlockingIOError:
            return
        except OSError:
            if kind is None:
                self._forget(there)

    def _forget(self, there: socket.socket) -> None:
        self._selector.unregister(there)
        there.close()


def picks(
    namespace: str,
    address: str,
    port: int,
    count: int,
    *,
    at_once: int = 64,
    source: str = "",
    port_from: int = 0,
) -> Counter[str]:
    """Open ``count`` connections: the number per backend; "refused" and "silent" count failures.

    The kernel chooses the source address and port, unless ``source`` and ``port_from`` are given.
    """
    found: Counter[str] = Counter()
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    selector = selectors.DefaultSelector()
    begun = 0
    with inside(namespace):
        while begun < count or selector.get_map():
            while begun < count and len(selector.get_map()) < at_once:
                begun += 1
                client = socket.socket(family, socket.SOCK_STREAM)
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
                client.setblocking(False)
                if source:
                    client.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                    client.bind((source, port_from))
                client.connect_ex((address, port))
                selector.register(client, selectors.EVENT_READ)
            ready = selector.select(PATIENTLY)
            for key, _ in ready or [(one, 0) for one in list(selector.get_map().values())]:
                there: socket.socket = key.fileobj  # type: ignore[assignment]
                try:
                    found[there.recv(64).decode() if ready else "silent"] += 1
                except ConnectionRefusedError:
                    found["refused"] += 1
                except OSError as error:
                    found[error.strerror or "error"] += 1
                selector.unregister(there)
                there.close()
    selector.close()
    return found


def talk(namespace: str, address: str, port: int) -> str:
    """The backend that replies to a datagram, "refused" (ICMP error) or "silent"."""
    with Datagrams(namespace, address, port) as ask:
        return ask()


class Datagrams:
    """One UDP socket for several requests. As a context manager it returns the request function."""

    def __init__(self, namespace: str, address: str, port: int) -> None:
        with inside(namespace):
            self._socket = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM)
            self._socket.connect((address, port))

    def __enter__(self) -> Callable[[], str]:
        return self._ask

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def send(self) -> None:
        """Send a request without waiting for the reply."""
        self._socket.send(b"hello")

    def _ask(self) -> str:
        self._socket.setblocking(False)
        with contextlib.suppress(OSError):
            while self._socket.recv(64):  # a late second reply to the previous request
                pass
        for _ in range(int(PATIENTLY)):  # the first may be lost while the neighbour is resolved
            self._socket.settimeout(1)
            try:
                self._socket.send(b"hello")
                return self._socket.recv(64).decode()
            except TimeoutError:
                continue
            # EPERM is the error for a process of the host itself.
            except (ConnectionRefusedError, PermissionError):
                return "refused"
        return "silent"


class Held:
    """Connections that stay open; as a context manager it returns the number per backend."""

    def __init__(self, namespace: str, address: str, port: int, count: int) -> None:
        self.connections: list[socket.socket] = []
        self.owners: Counter[str] = Counter()
        with inside(namespace):
            for _ in range(count):
                one = socket.create_connection((address, port), PATIENTLY)
                self.connections.append(one)
                self.owners[one.recv(64).decode()] += 1

    def alive(self) -> int:
        """The number of connections that still get a reply."""
        found = 0
        for one in self.connections:
            try:
                one.sendall(b"ping")
                found += one.recv(64).endswith(b"ping")
            except OSError:
                continue
        return found

    def close(self) -> None:
        for one in self.connections:
            one.close()


class Wire:
    """A host between a namespace with servers, one per address, and a client with many addresses."""

    def __init__(self, host: Host, count: int) -> None:
        self.host = host.path
        self.client = host.container("client")
        place = host.container("servers")
        self.servers = {
            4: [f"10.90.1.{n}" for n in range(10, 10 + count)],
            6: [f"fd90:1::{n}" for n in range(10, 10 + count)],
        }
        self.sources = {4: [f"10.90.2.{n}" for n in range(10, 50)], 6: [f"fd90:2::{n}" for n in range(10, 50)]}
        for number, (link, path, found) in enumerate(
            (("servers0", place, self.servers), ("client0", self.client, self.sources)), 1
        ):
            near = [
                f"link add {link} type veth peer name {link}-far",
                f"link set {link}-far netns {path}",
                f"address add 10.90.{number}.1/24 dev {link}",
                f"address add fd90:{number}::1/64 dev {link} nodad",
                f"link set {link} up",
            ]
            far = [f"link set {link}-far name eth0", "link set lo up"]
            far += [f"address add {one}/24 dev eth0" for one in found[4]]
            far += [f"address add {one}/64 dev eth0 nodad" for one in found[6]]
            far += [
                "link set eth0 up",
                f"route add default via 10.90.{number}.1",
                f"route add ::/0 via fd90:{number}::1",
            ]
            host.run("ip", "-batch", "-", stdin="\n".join(near))
            commands.run("nsenter", f"--net={path}", "ip", "-batch", "-", stdin="\n".join(far))
        host.run("sysctl", "-qw", "net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1")
        places = {f"{one}": (one, 80) for version in (4, 6) for one in self.servers[version]}
        self._greeters = Greeters(place, places)
        self._held: Held | None = None

    def close(self) -> None:
        self._greeters.close()

    def names(self, version: int) -> list[str]:
        """The names of the servers: their addresses."""
        return self.servers[version]

    @contextlib.contextmanager
    def hold(self, address: str, port: int, count: int) -> Iterator[Counter[str]]:
        """Open connections from the client, and keep them open."""
        self._held = Held(self.client, address, port, count)
        try:
            yield self._held.owners
        finally:
            self._held.close()
            self._held = None

    def alive(self) -> int:
        """The number of these that still get a reply."""
        assert self._held is not None
        return self._held.alive()

    def datagrams(self, address: str, port: int) -> Datagrams:
        return Datagrams(self.client, address, port)


def wire(host: Host, count: int) -> Wire:
    return Wire(host, count)
