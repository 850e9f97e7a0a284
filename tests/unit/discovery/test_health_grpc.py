"""gRPC checks against a real server of grpc.health.v1."""

from __future__ import annotations

import asyncio

import pytest

from discovery.consul.check_definitions import parse_check
from discovery.consul.json_fields import Fields
from discovery.health.probes import Prober
from discovery.structs import CheckDefinition, Status

grpc = pytest.importorskip("grpc", reason="grpcio is optional; the extra test installs it")


def check(**fields: object) -> CheckDefinition:
    return parse_check(Fields({"Interval": "1s", "Timeout": "20s", **fields}))


class Health(grpc.GenericRpcHandler):  # type: ignore[misc]
    """grpc.health.v1: "web" is serving, "db" is not, others are unknown."""

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler | None:
        if details.method != "/grpc.health.v1.Health/Check":
            return None

        async def answer(request: bytes, context: grpc.aio.ServicerContext) -> bytes:
            known = {b"": b"\x08\x01", b"\x0a\x03web": b"\x08\x01", b"\x0a\x02db": b"\x08\x02"}
            if request not in known:
                await context.abort(grpc.StatusCode.NOT_FOUND, "unknown service")
            return known[request]

        return grpc.unary_unary_rpc_method_handler(answer)


def test_grpc() -> None:
    async def run() -> None:
        server = grpc.aio.server()
        server.add_generic_rpc_handlers((Health(),))
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        try:
            found = [
                await Prober(64).probe(check(GRPC=f"127.0.0.1:{port}{name}")) for name in ("", "/web", "/db", "/no")
            ]
        finally:
            await server.stop(0)
        found.append(await Prober(64).probe(check(GRPC=f"127.0.0.1:{port}", Timeout="2s")))
        assert [status for status, _ in found] == [Status.PASSING, Status.PASSING, *[Status.CRITICAL] * 3]
        assert [text.rpartition(": ")[2] for _, text in found[:4]] == [
            "SERVING",
            "SERVING",
            "NOT_SERVING",
            "unknown service",
        ]

    asyncio.run(run())
