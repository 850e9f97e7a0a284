"""Probes: one execution of a check over HTTP, TCP, UDP or gRPC, or of a script.

Each returns a status and an output, and raises nothing: errors are critical, with the reason as
output.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import ssl
from collections.abc import Callable, Collection, Sequence
from urllib.parse import urlsplit

from aiohappyeyeballs import start_connection

from discovery.check_targets import parse_url, split_host_port
from discovery.health import namespaces
from discovery.health.connecting import NEXT_ADDRESS_SECONDS, Lookups, Sockets, tls_context
from discovery.health.grpc_probe import serving_status
from discovery.health.namespaces import AddressInfo
from discovery.health.resolver import Address, Resolver
from discovery.structs import CheckDefinition, Status, cut_output
from weft.errors import WeftError

ProbeResult = tuple[Status, str]
OpenSocket = Callable[[CheckDefinition, AddressInfo, Collection[str] | None], socket.socket]
"""As ``namespaces.open_socket``, which it is where the prober is in the agent."""

STALL_SECONDS = 0.5
"""A timeout that is noticed this late is this process's doing: it was stopped, or busy."""
_UDP_SECONDS = 1.0
"""Seconds to wait for ICMP port unreachable: most UDP services ignore an empty datagram."""


class Prober:
    """Executes checks; at most ``concurrent`` at a time."""

    def __init__(
        self, concurrent: int, resolver: Lookups | None = None, open_socket: OpenSocket = namespaces.open_socket
    ) -> None:
        self._resolver = resolver or Resolver()
        self._open_socket = open_socket
        self._slots = asyncio.Semaphore(concurrent)

    async def probe(self, definition: CheckDefinition) -> ProbeResult:
        """Execute a check once. Its timeout starts when it has a slot and its lookup a thread.

        A timeout that this process is late to notice counts only the second time in a row.
        """
        result = await self._attempt(definition)
        return result or await self._attempt(definition) or (Status.CRITICAL, _timed_out(definition))

    async def _attempt(self, definition: CheckDefinition) -> ProbeResult | None:
        """One attempt; None if the timeout was noticed late."""
        host = target_host(definition)
        try:
            lookup = await self._resolver.start(host) if host else None
            async with self._slots, asyncio.timeout(definition.timeout) as limit:
                status, text = await self._execute(definition, host, lookup)
        except TimeoutError:
            if asyncio.get_running_loop().time() - (limit.when() or 0.0) > STALL_SECONDS:
                return None
            status, text = Status.CRITICAL, _timed_out(definition)
        except (OSError, WeftError, ValueError) as error:
            status, text = Status.CRITICAL, f"{_describe(definition)}: {_reason(error)}"
        return status, cut_output(text, definition.output_max_size)

    async def _execute(
        self, definition: CheckDefinition, host: str, lookup: asyncio.Future[Sequence[Address]] | None
    ) -> ProbeResult:
        match definition.type:
            case "script":
                return await _script(definition)
            case "grpc":
                return await serving_status(definition)
            case "http":
                from discovery.health.http_probe import request

                sockets = self._sockets(definition)
                if definition.netns and lookup is not None:
                    # Redirects to other hosts are refused: only where the target itself is, is connected to.
                    sockets = self._sockets(definition, {address for _, address in await asyncio.shield(lookup)})
                return await request(definition, self._resolver, (host, lookup), sockets)
        assert lookup is not None
        found = await asyncio.shield(lookup)
        return await (_tcp if definition.type == "tcp" else _udp)(definition, found, self._sockets(definition))

    def _sockets(self, definition: CheckDefinition, target: Collection[str] | None = None) -> Sockets:
        """Creates the sockets of a check."""

        def open_socket(info: AddressInfo) -> socket.socket:
            try:
                sock = self._open_socket(definition, info, target)
            except WeftError as error:
                # aiohappyeyeballs tries the next address after an OSError, and loses any other error.
                raise OSError(0, error.message) from error
            sock.setblocking(False)
            return sock

        return open_socket


def target_host(definition: CheckDefinition) -> str:
    """The host that a check looks up, "" if there is none."""
    if definition.type in ("tcp", "udp"):
        return split_host_port(definition.target, definition.type)[0]
    return urlsplit(parse_url(definition.target)).hostname or "" if definition.type == "http" else ""


def _timed_out(definition: CheckDefinition) -> str:
    return f"{_describe(definition)}: timeout after {definition.timeout:g} seconds"


def _reason(error: Exception) -> str:
    number = getattr(error, "errno", None)
    if number == 0 and isinstance(error, OSError):
        return (error.strerror or str(error)).replace("[Errno 0] ", "")  # of _sockets
    known = isinstance(number, int) and number > 0 and not isinstance(error, ssl.SSLError)
    return os.strerror(number) if known and number is not None else str(error) or type(error).__name__


def _describe(definition: CheckDefinition) -> str:
    return definition.target or " ".join(definition.arguments)


async def _tcp(definition: CheckDefinition, found: Sequence[Address], sockets: Sockets) -> ProbeResult:
    loop = asyncio.get_running_loop()
    host, port = split_host_port(definition.target, "tcp")
    infos = [_info(address, socket.SOCK_STREAM, port) for address in found]
    sock = await start_connection(
        infos, happy_eyeballs_delay=NEXT_ADDRESS_SECONDS, interleave=1, socket_factory=sockets
    )
    with contextlib.closing(sock):
        if definition.tls:
            transport, _ = await loop.create_connection(
                asyncio.Protocol,
                sock=sock,
                ssl=tls_context(not definition.tls_skip_verify),
                server_hostname=definition.tls_server_name or host,
            )
            transport.abort()
    return Status.PASSING, f"TCP connect {definition.target}: Success"


async def _udp(definition: CheckDefinition, found: Sequence[Address], sockets: Sockets) -> ProbeResult:
    """An address that does not answer "port unreachable" is enough."""
    port = split_host_port(definition.target, "udp")[1]
    for last, address in enumerate(found, 1):
        try:
            await _send(definition, _info(address, socket.SOCK_DGRAM, port), sockets)
            break
        except OSError:
            if last == len(found):
                raise
    return Status.PASSING, f"UDP send to {definition.target}: Success"


async def _send(definition: CheckDefinition, info: AddressInfo, sockets: Sockets) -> None:
    loop = asyncio.get_running_loop()
    with contextlib.closing(sockets(info)) as sock:
        await loop.sock_connect(sock, info[4])
        await loop.sock_sendall(sock, b"\0")
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(min(_UDP_SECONDS, definition.timeout / 2)):
                await loop.sock_recv(sock, 1)


def _info(address: Address, kind: socket.SocketKind, port: int) -> AddressInfo:
    ((family, _, protocol, name, place), *_) = socket.getaddrinfo(
        address[1], port, type=kind, flags=socket.AI_NUMERICHOST
    )
    return int(family), int(kind), protocol, name, place


async def _script(definition: CheckDefinition) -> ProbeResult:
    """Run a script: exit status 0 is passing, 1 warning, else critical. Its process group is killed
    on timeout.
    """
    process = await asyncio.create_subprocess_exec(
        *definition.arguments,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        start_new_session=True,
        cwd="/",
    )
    try:
        assert process.stdout is not None
        text = b""
        while piece := await process.stdout.read(4096):
            text = (text + piece)[: definition.output_max_size]
        code = await process.wait()
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            await process.wait()
    status = {0: Status.PASSING, 1: Status.WARNING}.get(code, Status.CRITICAL)
    return status, text.decode("utf-8", "replace")
