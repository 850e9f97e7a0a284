"""Health checks as the agent sees them: the workers that execute them (``probe_worker``), and what those
may ask for.

A worker reads what hostile services answer. The agent opens sockets in containers' namespaces, as the
check is registered here, and takes a status and a text. gRPC checks, whose library needs threads, have
a worker of their own, and so have lookups (``lookup_front``). Scripts run in the agent.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import socket
from collections.abc import Sequence
from dataclasses import dataclass, field
from ipaddress import ip_address

from cni_plugin.agent.lookup_front import LookupFront
from cni_plugin.agent.workers import Worker, count, nothing
from discovery import layout
from discovery.health import namespaces
from discovery.health.checker import concurrent_checks
from discovery.health.probes import Prober, ProbeResult, target_host
from discovery.health.resolver import Address, literal
from discovery.metrics import Metrics
from discovery.structs import CheckDefinition, Status, cut_output
from weft.errors import WeftError
from weft.pair import Malformed, Message
from weft.spawner import Spawner

NAME = "probes"
"""The worker's name."""
GRPC = "grpc"
"""The name of the worker for gRPC checks, and their type."""
_MOST_BYTES = 8 << 20  # of its messages: a check's output_max_size is its owner's to choose
_MOST_REQUEST = 1024  # bytes, for a socket
_MOST_LOOKUPS = 32  # of one probe: ten redirects
_MOST_HOST = 1024  # characters
_KINDS = {"tcp": socket.SOCK_STREAM, "http": socket.SOCK_STREAM, "udp": socket.SOCK_DGRAM}


@dataclass(slots=True, eq=False)
class _Probe:
    """A probe in progress."""

    definition: CheckDefinition
    result: asyncio.Future[ProbeResult]
    target: set[str] | None = None
    """The addresses of the target, of an HTTP check within a container."""
    lookups: set[asyncio.Task[None]] = field(default_factory=set)
    looked_up: int = 0


class Probers:
    """Executes checks, each where its type belongs: a part of the agent, and the Checker's prober."""

    def __init__(self, spawner: Spawner, metrics: Metrics) -> None:
        self._lookups = LookupFront(spawner, metrics)
        self._network = ProbeFront(spawner, metrics, self._lookups)
        self._grpc = ProbeFront(spawner, metrics, self._lookups, GRPC)
        self._local = Prober(concurrent_checks())

    async def start(self) -> None:
        """Nothing is started before the first check: a process takes some 25 MB."""

    async def stop(self) -> None:
        """End the workers."""
        for one in (self._network, self._grpc, self._lookups):
            await one.stop()

    async def probe(self, definition: CheckDefinition) -> ProbeResult:
        """Execute a check once; see Prober."""
        match definition.type:
            case "script":
                return await self._local.probe(definition)
            case "grpc":
                return await self._grpc.probe(definition)
        return await self._network.probe(definition)


class ProbeFront:
    """Executes the checks of one worker."""

    def __init__(self, spawner: Spawner, metrics: Metrics, lookups: LookupFront, name: str = NAME) -> None:
        self._worker = Worker(
            spawner, name, _MOST_BYTES, tell=self._tell, answered=nothing, received=self._received, metrics=metrics
        )
        self._lookups = lookups
        self._slots = asyncio.Semaphore(concurrent_checks())
        self._numbers = itertools.count(1)
        self._last = 0
        self._running: dict[int, _Probe] = {}
        self._control: socket.socket | None = None

    async def stop(self) -> None:
        """End the worker."""
        if self._worker.is_started:
            await self._worker.stop()
            self._close_control()

    async def probe(self, definition: CheckDefinition) -> ProbeResult:
        """Execute a check once; see Prober."""
        async with self._slots:
            number = self._last = next(self._numbers)
            one = _Probe(definition, asyncio.get_running_loop().create_future())
            if definition.netns and definition.type == "http":
                # Redirects to other hosts are refused: only where the target itself is, is connected to.
                one.target = {address for _, address in _literal(definition)}
            self._running[number] = one
            try:
                if self._worker.is_started:
                    self._send(number, one)
                else:
                    self._worker.start()
                return await one.result
            except WeftError as error:
                return Status.CRITICAL, error.message
            finally:
                del self._running[number]
                for task in one.lookups:
                    task.cancel()
                if not one.result.done() or one.result.cancelled():
                    self._worker.send(["cancel", number])

    # What the worker is told

    def _tell(self) -> None:
        """A new one executes all that the last one has not."""
        self._close_control()
        self._control, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._control.setblocking(False)
        asyncio.get_running_loop().add_reader(self._control.fileno(), self._on_request)
        with other:
            self._worker.send(["control"], [other.fileno()])
        for number, one in self._running.items():
            one.looked_up = 0
            self._send(number, one)

    def _send(self, number: int, one: _Probe) -> None:
        self._worker.send(["probe", number, layout.encode_check_definition(one.definition).decode()])

    def _close_control(self) -> None:
        if self._control is not None:
            asyncio.get_running_loop().remove_reader(self._control.fileno())
            self._control.close()
            self._control = None

    # What it says

    def _received(self, message: Message) -> None:
        """Take a result, or a host to look up. Raises Malformed."""
        match message:
            case ["result", number, str(status), str(text)]:
                if (one := self._probe(number)) is not None and not one.result.done():
                    if status not in list(Status):
                        raise Malformed(f"no status: {status[:40]!r}")
                    one.result.set_result((Status(status), cut_output(text, one.definition.output_max_size)))
            case ["lookup", number, asked, str(host)]:
                if (one := self._probe(number)) is None:
                    return
                one.looked_up += 1
                own = host == target_host(one.definition)
                if one.looked_up > _MOST_LOOKUPS or len(host) > _MOST_HOST or not (own or not one.definition.netns):
                    raise Malformed(f"a lookup that the check has no use for: {host[:80]!r}")
                task = asyncio.create_task(self._look_up(count(number), count(asked), host, one))
                one.lookups.add(task)
                task.add_done_callback(one.lookups.discard)
            case _:
                raise Malformed(f"an unexpected message: {str(message)[:80]}")

    def _probe(self, number: object) -> _Probe | None:
        """The probe with this number, None if it is over. Raises Malformed."""
        if not 0 < count(number) <= self._last:
            raise Malformed(f"probe {number}, which there was not")
        return self._running.get(count(number))

    async def _look_up(self, number: int, asked: int, host: str, one: _Probe) -> None:
        try:
            lookup = await self._lookups.start(host)
            self._worker.send(["started", number, asked])
            found: Sequence[Address] = await asyncio.shield(lookup)
            if one.target is not None:
                one.target |= {address for _, address in found}
            self._worker.send(["found", number, asked, found])
        except (OSError, ValueError) as error:
            self._worker.send(["failed", number, asked, getattr(error, "errno", None) or 0, _text(error)])

    def _on_request(self) -> None:
        """Open the socket that the worker waits for, as its check permits it."""
        if self._control is None:
            return
        try:
            request = self._control.recv(_MOST_REQUEST)
            if not request:
                asyncio.get_running_loop().remove_reader(self._control.fileno())
                return
            with self._opened(request) as sock:
                socket.send_fds(self._control, [b"[]"], [sock.fileno()], socket.MSG_NOSIGNAL)
        except BlockingIOError:
            return
        except (WeftError, OSError, ValueError, TypeError) as error:
            refusal = [getattr(error, "errno", None) or 0, _text(error)]
            with contextlib.suppress(OSError):
                self._control.send(json.dumps(refusal).encode()[:_MOST_REQUEST], socket.MSG_NOSIGNAL)

    def _opened(self, request: bytes) -> socket.socket:
        """Raises WeftError, OSError, ValueError, TypeError."""
        number, family, address, port = json.loads(request)
        one = self._running.get(number)
        if one is None or not one.definition.netns or family not in (socket.AF_INET, socket.AF_INET6):
            raise ValueError("no such check")
        if type(port) is not int or ip_address(str(address)).version != (6 if family == socket.AF_INET6 else 4):
            raise ValueError("no such address")
        info = (int(family), int(_KINDS[one.definition.type]), 0, "", (str(address), port))
        return namespaces.open_socket(one.definition, info, one.target)


def _literal(definition: CheckDefinition) -> Sequence[Address]:
    with contextlib.suppress(ValueError):
        return literal(target_host(definition))
    return ()


def _text(error: Exception) -> str:
    if isinstance(error, WeftError):
        return error.message
    return getattr(error, "strerror", None) or str(error)
