"""The processes that execute checks of the network: no capability, no user of this host.

They connect to services, containers' among them, and read what they answer. That of gRPC checks, whose
library looks hosts up and needs threads, may start some and read what everybody may read; the other one
opens no file: sockets in containers' namespaces come from the agent (``probe_front``), hosts from
another worker (``lookup_worker``).
"""

from __future__ import annotations

import asyncio
import contextlib
import encodings.idna  # noqa: F401  (codecs are looked up by name: no file can be opened later)
import json
import socket
from collections.abc import Collection, Sequence
from functools import partial
from typing import cast

from cni_plugin.agent import confined
from discovery import layout
from discovery.health.connecting import load_authorities
from discovery.health.grpc_probe import load_grpc
from discovery.health.namespaces import AddressInfo
from discovery.health.probes import Prober
from discovery.health.resolver import Address, literal
from discovery.structs import CheckDefinition
from weft.pair import Message, Pair
from weft.spawner import Work

_MOST_ANSWER = 1024
_SOCKET_SECONDS = 5.0  # until the agent has opened a socket


def prepare() -> Work:
    """Read what needs files: the HTTP library, the certificate authorities."""
    from discovery.health import http_probe  # noqa: F401

    load_authorities()
    return run


def prepare_grpc() -> Work:
    """Import grpcio, if there is one, which may be installed where user nobody cannot read it."""
    with contextlib.suppress(OSError):
        load_grpc()
    return run_grpc


def run(end: socket.socket) -> None:
    """Execute checks until the agent closes its end."""
    confined.serve(_Worker(end).serve)


def run_grpc(end: socket.socket) -> None:
    """As ``run``, gRPC checks."""
    confined.serve(_Worker(end).serve, threads=True)


class _Worker:
    def __init__(self, end: socket.socket) -> None:
        self._end = end
        self._control = end
        self._probes: dict[int, asyncio.Task[None]] = {}
        self._lookups: dict[tuple[int, int], tuple[asyncio.Event, asyncio.Future[Sequence[Address]]]] = {}
        self._asked = 0

    async def serve(self) -> None:
        self._pair = Pair(self._end, confined.AGENTS_BYTES, self._received, confined.end, descriptors=1)
        await asyncio.Event().wait()

    def _received(self, message: Message, descriptors: list[int]) -> None:
        match message:
            case ["probe", int(number), str(definition)]:
                work = self._probe(number, layout.decode_check_definition(definition.encode()))
                task = self._probes[number] = asyncio.create_task(work)
                task.add_done_callback(partial(self._done, number))
            case ["cancel", int(number)]:
                if number in self._probes:
                    self._probes[number].cancel()
            case [kind, int(number), int(asked), *values]:
                self._looked_up(str(kind), (number, asked), values)
            case ["control"]:
                self._control = socket.socket(fileno=descriptors[0])
                self._control.settimeout(_SOCKET_SECONDS)
            case ["ping", number]:
                self._pair.send(["pong", number])

    def _done(self, number: int, task: asyncio.Task[None]) -> None:
        self._probes.pop(number, None)

    async def _probe(self, number: int, definition: CheckDefinition) -> None:
        def open_socket(
            definition: CheckDefinition, info: AddressInfo, target: Collection[str] | None
        ) -> socket.socket:
            if definition.netns:
                return self._ask_for_socket(number, info)
            return socket.socket(info[0], info[1] | socket.SOCK_CLOEXEC, info[2])

        prober = Prober(1, _Lookups(self, number), open_socket)
        status, text = await prober.probe(definition)
        self._pair.send(["result", number, status.value, text])

    def _ask_for_socket(self, number: int, info: AddressInfo) -> socket.socket:
        """A socket in the check's namespace. The agent opens it within a millisecond. Raises OSError."""
        self._control.send(json.dumps([number, info[0], info[4][0], info[4][1]]).encode())
        answer, descriptors, _, _ = socket.recv_fds(self._control, _MOST_ANSWER, 1)
        if descriptors:
            return socket.socket(fileno=descriptors[0])
        error, text = json.loads(answer)
        raise OSError(error, text)

    async def look_up(self, number: int, host: str) -> asyncio.Future[Sequence[Address]]:
        """Ask the agent; returns when its lookup has a thread."""
        future: asyncio.Future[Sequence[Address]] = asyncio.get_running_loop().create_future()
        if found := literal(host):
            future.set_result(found)
            return future
        future.add_done_callback(lambda done: done.cancelled() or done.exception())
        self._asked += 1
        key, started = (number, self._asked), asyncio.Event()
        self._lookups[key] = started, future
        try:
            self._pair.send(["lookup", *key, host])
            await started.wait()
        except asyncio.CancelledError:
            del self._lookups[key]
            raise
        return future

    def _looked_up(self, kind: str, key: tuple[int, int], values: list[object]) -> None:
        if key not in self._lookups:
            return
        started, future = self._lookups[key]
        started.set()
        if kind == "started":
            return
        del self._lookups[key]
        if future.done():
            return
        if kind == "found":
            future.set_result(tuple((int(family), str(address)) for family, address in cast(list[Address], values[0])))
        else:
            number, text = values
            future.set_exception(OSError(int(str(number)), str(text)))


class _Lookups:
    """The lookups of one probe."""

    def __init__(self, worker: _Worker, number: int) -> None:
        self._worker = worker
        self._number = number

    async def start(self, host: str) -> asyncio.Future[Sequence[Address]]:
        """See Resolver.start."""
        return await self._worker.look_up(self._number, host)
