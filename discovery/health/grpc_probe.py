"""gRPC checks, by grpcio, which is optional (the extra ``grpc``).

Source: https://github.com/grpc/grpc/blob/master/doc/health-checking.md. The two messages are
encoded here: one string, one enumeration.
"""

from __future__ import annotations

import asyncio
import ssl

from discovery.check_targets import split_host_port
from discovery.structs import CheckDefinition, Status

_METHOD = "/grpc.health.v1.Health/Check"
_SERVING = b"\x08\x01"
_STATUSES = {b"": "UNKNOWN", b"\x08\x00": "UNKNOWN", _SERVING: "SERVING", b"\x08\x02": "NOT_SERVING"}


def grpc_target(target: str) -> tuple[str, str]:
    """``HOST:PORT/SERVICE`` as ``HOST:PORT`` and the service, "" for the server. Raises ValueError."""
    address, _, service = target.partition("/")
    host, port = split_host_port(address, "tcp")
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}", service


async def serving_status(definition: CheckDefinition) -> tuple[Status, str]:
    """Passing if the server says SERVING. Raises OSError where grpcio is missing."""
    await asyncio.to_thread(load_grpc)
    import grpc

    address, service = grpc_target(definition.target)
    options: list[tuple[str, int | str]] = [("grpc.enable_http_proxy", 0)]
    if definition.tls_server_name:
        options.append(("grpc.ssl_target_name_override", definition.tls_server_name))
    if definition.tls:
        channel = grpc.aio.secure_channel(address, grpc.ssl_channel_credentials(_roots()), options)
    else:
        channel = grpc.aio.insecure_channel(address, options)
    name = service.encode()
    request = b"\x0a" + _varint(len(name)) + name if name else b""
    async with channel:
        check = channel.unary_unary(_METHOD)
        try:
            answer = await check(request, timeout=definition.timeout)
        except grpc.aio.AioRpcError as error:
            return Status.CRITICAL, f"gRPC check {definition.target}: {error.code().name}: {error.details()}"
    state = _STATUSES.get(bytes(answer), "UNKNOWN")
    status = Status.PASSING if state == "SERVING" else Status.CRITICAL
    return status, f"gRPC check {definition.target}: {state}"


def load_grpc() -> None:
    """Import grpcio, which takes a third of a second. Raises OSError where it is missing."""
    try:
        import grpc  # noqa: F401
    except ImportError as error:
        raise OSError("gRPC checks need grpcio: pip install grpcio beside weft") from error


def _roots() -> bytes | None:
    """The host's certificate authorities, as the other checks trust them; grpcio has its own."""
    path = ssl.get_default_verify_paths().cafile or ""
    if not path:
        return None
    with open(path, "rb") as file:
        return file.read()


def _varint(number: int) -> bytes:
    found = bytearray()
    while number > 0x7F:
        found.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes((*found, number))
