"""Probes: one execution of a check over HTTP, TCP or UDP, or of a script.

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
from collections.abc import Iterator

import aiohttp

from discovery.structs import CheckDefinition, Status
from weft.errors import WeftError
from weft.kernel import netns

ProbeResult = tuple[Status, str]

_UDP_SECONDS = 1.0
"""Seconds to wait for ICMP port unreachable: most UDP services ignore an empty datagram."""
_TOO_MANY = 429
_REDIRECTS = 10


async def probe(definition: CheckDefinition) -> ProbeResult:
    """Execute a check once, within its timeout."""
    probe_type = {"http": _http, "tcp": _tcp, "udp": _udp, "script": _script}[definition.type]
    try:
        async with asyncio.timeout(definition.timeout):
            status, text = await probe_type(definition)
    except TimeoutError:
        status, text = Status.CRITICAL, f"{_describe(definition)}: timeout after {definition.timeout:g} seconds"
    except (OSError, WeftError, ValueError, aiohttp.ClientError) as error:
        status, text = Status.CRITICAL, f"{_describe(definition)}: {_reason(error)}"
    return status, text[: definition.output_max_size]


def _reason(error: Exception) -> str:
    number = getattr(error, "errno", None)
    return os.strerror(number) if number else str(error) or type(error).__name__


def _describe(definition: CheckDefinition) -> str:
    return definition.target or " ".join(definition.arguments)


@contextlib.contextmanager
def _in_netns(path: str) -> Iterator[None]:
    """Enter the check's network namespace; sockets created within stay in it."""
    if not path:
        yield
        return
    descriptor, _ = netns.open_namespace(path)
    try:
        with netns.inside(descriptor):
            yield
    finally:
        os.close(descriptor)


async def _http(definition: CheckDefinition) -> ProbeResult:
    def open_socket(info: tuple[int, int, int, str, object]) -> socket.socket:
        with _in_netns(definition.netns):
            sock = socket.socket(info[0], info[1] | socket.SOCK_CLOEXEC, info[2])
        sock.setblocking(False)
        return sock

    context: ssl.SSLContext | bool = True
    if definition.tls_skip_verify:
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    connector = aiohttp.TCPConnector(force_close=True, ssl=context, socket_factory=open_socket)
    headers = [(name, value) for name, values in definition.headers.items() for value in values]
    async with (
        aiohttp.ClientSession(connector=connector, auto_decompress=False) as session,
        session.request(
            definition.method,
            definition.target,
            headers=headers,
            data=definition.body or None,
            max_redirects=_REDIRECTS,
            server_hostname=definition.tls_server_name or None,
        ) as answer,
    ):
        body = await answer.content.read(definition.output_max_size)
        text = f"HTTP {definition.method} {definition.target}: {answer.status} {answer.reason}"
        text += f" Output: {body.decode('utf-8', 'replace')}"
        if 200 <= answer.status < 300:
            return Status.PASSING, text
        return Status.WARNING if answer.status == _TOO_MANY else Status.CRITICAL, text


async def _tcp(definition: CheckDefinition) -> ProbeResult:
    sock, address = await _socket(definition, socket.SOCK_STREAM)
    with contextlib.closing(sock):
        await asyncio.get_running_loop().sock_connect(sock, address)
    return Status.PASSING, f"TCP connect {definition.target}: Success"


async def _udp(definition: CheckDefinition) -> ProbeResult:
    loop = asyncio.get_running_loop()
    sock, address = await _socket(definition, socket.SOCK_DGRAM)
    with contextlib.closing(sock):
        await loop.sock_connect(sock, address)
        await loop.sock_sendall(sock, b"\0")
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(min(_UDP_SECONDS, definition.timeout / 2)):
                await loop.sock_recv(sock, 1)
    return Status.PASSING, f"UDP send to {definition.target}: Success"


async def _socket(definition: CheckDefinition, kind: socket.SocketKind) -> tuple[socket.socket, tuple[object, ...]]:
    """A socket in the check's namespace, and the address to connect to."""
    host, _, port = definition.target.rpartition(":")
    found = await asyncio.get_running_loop().getaddrinfo(host.strip("[]"), int(port), type=kind)
    family, _, protocol, _, address = found[0]
    with _in_netns(definition.netns):
        sock = socket.socket(family, kind | socket.SOCK_CLOEXEC, protocol)
    sock.setblocking(False)
    return sock, address


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
