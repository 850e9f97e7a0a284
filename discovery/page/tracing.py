"""``/v1/weft/trace``: what ``weft trace`` says of a packet, for the page."""

from __future__ import annotations

import json
import re
from collections.abc import Awaitable, Callable, Sequence
from functools import partial

from discovery.api.http_error import HttpError
from discovery.api.http_request import HttpRequest
from discovery.api.router import HttpResponse, Route
from discovery.api.schemas import BOOLEAN, STRING, STRINGS, list_of, struct
from weft.processes import Finished

Run = Callable[[Sequence[str]], Awaitable[Finished]]
"""Runs ``weft`` with arguments, in another process. Raises OSError, TimeoutError."""

PROTOCOLS = ("tcp", "udp", "sctp", "icmp")
_END = re.compile(r"[A-Za-z0-9_.:][A-Za-z0-9_.:/-]{0,252}").fullmatch
_REFUSED = (2, 3)  # the exit statuses of a command that is used wrongly, and of one that cannot be executed
_HOP = struct("PageHop", Place=STRING, What=STRING, Command=STRING, Certain=BOOLEAN, Rules=STRINGS)
TRACE = struct("PageTrace", Packet=STRING, Delivered=BOOLEAN, Refused=BOOLEAN, Hops=list_of(_HOP))


def route(run: Run) -> Route:
    """The route, which sends no packet."""
    return Route(
        "GET",
        "/v1/weft/trace",
        "The way of a packet through this host, hop by hop (not in Consul)",
        partial(_trace, run),
        ("from", "to", "port", "proto"),
        TRACE,
        statuses=(503,),
    )


def arguments(start: str, end: str, port: str, protocol: str) -> list[str]:
    """What ``weft`` is called with. Raises HttpError, which names the parameter."""
    for name, value in (("from", start), ("to", end)):
        if not _END(value):
            raise HttpError(400, f"?{name} must be a container, an address or host, and is {value[:80]!r}")
    if protocol not in PROTOCOLS:
        raise HttpError(400, f"?proto must be one of {', '.join(PROTOCOLS)}, and is {protocol[:80]!r}")
    if protocol == "icmp":
        return ["trace", "--json", "--", start, end]
    if not (port.isascii() and port.isdigit() and 0 < int(port[:6]) < 1 << 16):
        raise HttpError(400, f"?port must be a number from 1 to 65535 for {protocol}, and is {port[:80]!r}")
    return ["trace", "--json", "--port", port, "--proto", protocol, "--", start, end]


async def _trace(run: Run, request: HttpRequest) -> HttpResponse:
    request.acl.require("operator")
    start, end, port, protocol = (request.get(name) for name in ("from", "to", "port", "proto"))
    wanted = arguments(start, end, port, protocol or "tcp")
    try:
        done = await run(wanted)
    except (OSError, TimeoutError) as error:
        raise HttpError(503, f"weft trace: {error}") from error
    try:
        found = json.loads(done.output)
    except ValueError:
        said = done.errors.decode("utf-8", "replace").strip()[:500] or f"exit status {done.status}"
        raise HttpError(400 if done.status in _REFUSED else 503, said.removeprefix("weft: ")) from None
    body = {
        "Packet": found["packet"],
        "Delivered": found["delivered"],
        "Refused": found["listening"] is False,
        "Hops": [{key.capitalize(): value for key, value in hop.items()} for hop in found["hops"]],
    }
    headers = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}
    return HttpResponse(json.dumps(body).replace("<", "\\u003c").encode(), headers=headers)
