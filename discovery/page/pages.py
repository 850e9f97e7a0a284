"""The routes of the page: its static files, and the document that it shows."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Mapping
from functools import partial
from importlib.resources import files

from discovery.acl.rules import Access
from discovery.api.http_error import HttpError
from discovery.api.http_request import HttpRequest
from discovery.api.router import HttpResponse, Route
from discovery.api.schemas import BOOLEAN, INTEGER, STRING, STRINGS, list_of, struct
from discovery.json_schema import Schema
from discovery.page.overview import Overview
from discovery.page.tracing import Run, route
from weft import events

TYPES: Mapping[str, str] = {
    "index.html": "text/html; charset=utf-8",
    "page.css": "text/css; charset=utf-8",
    "page.js": "text/javascript; charset=utf-8",
    "parts.js": "text/javascript; charset=utf-8",
    "lists.js": "text/javascript; charset=utf-8",
    "details.js": "text/javascript; charset=utf-8",
    "model.js": "text/javascript; charset=utf-8",
    "tracing.js": "text/javascript; charset=utf-8",
    "drawing.js": "text/javascript; charset=utf-8",
    "icon.svg": "image/svg+xml",
}
"""The files of the page, with their media types."""

POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self'",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        # Trusted Types: innerHTML and other sinks raise an error.
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    )
)
"""Source: https://www.w3.org/TR/CSP3/, https://www.w3.org/TR/trusted-types/."""

HEADERS: Mapping[str, str] = {
    "Content-Security-Policy": POLICY,
    "X-Frame-Options": "DENY",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-cache",
}

SECONDS: Schema = {"type": "number"}
_NODE = struct("OverviewNode", Name=STRING, Address=STRING, Status=STRING, Changed=SECONDS)
_POOL = struct("OverviewPool", Ranges=STRING, Used=INTEGER, Size=INTEGER)
_NETWORK = struct(
    "OverviewNetwork",
    **dict.fromkeys(("Name", "Driver"), STRING),
    **dict.fromkeys(("Subnets", "Gateways", "Domains"), STRINGS),
    Pools=list_of(_POOL),
    Internal=BOOLEAN,
    Attachments=INTEGER,
)
_ATTACHMENT = struct(
    "OverviewAttachment",
    **dict.fromkeys(("ID", "Network", "Container", "Interface", "Domain"), STRING),
    Addresses=STRINGS,
    Names=STRINGS,
    Ports=STRINGS,
    Since=SECONDS,
)
_INSTANCE = struct(
    "OverviewInstance",
    **dict.fromkeys(("ID", "Node", "Protocol", "Status", "Network", "Owner"), STRING),
    Addresses=STRINGS,
    Port=INTEGER,
    Checked=BOOLEAN,
    Changed=SECONDS,
)
_SERVICE = struct(
    "OverviewService", Name=STRING, Tags=STRINGS, Virtual=STRINGS, Omitted=INTEGER, Instances=list_of(_INSTANCE)
)
OVERVIEW = struct(
    "Overview",
    **dict.fromkeys(("Node", "Datacenter", "Version", "Domain"), STRING),
    **dict.fromkeys(("Now", "Started"), SECONDS),
    Index=INTEGER,
    Omitted=struct("OverviewOmitted", Services=INTEGER, Attachments=INTEGER, Nodes=INTEGER),
    Nodes=list_of(_NODE),
    Networks=list_of(_NETWORK),
    Attachments=list_of(_ATTACHMENT),
    Services=list_of(_SERVICE),
)


EVENTS = list_of(struct("PageEvent", Time=SECONDS, Event=STRING, Text=STRING, Failed=BOOLEAN))


def routes(overview: Overview, run: Run) -> tuple[Route, ...]:
    """The routes that ``ApiServer`` serves in addition, for the page at ``/ui/``. ``run`` runs ``weft``."""
    return (
        Route(
            "GET",
            "/v1/weft/overview",
            "The web page's data in one document (not in Consul)",
            partial(_overview, overview),
            ("index", "wait"),
            OVERVIEW,
            blocking=True,
        ),
        Route("GET", "/v1/weft/events", "The last events of this host (not in Consul)", _events, response=EVENTS),
        route(run),
        Route("GET", "/ui/:file", "The web page", _file),
        Route("GET", "/", "To the web page", _redirect),
    )


def _require_all(request: HttpRequest) -> None:
    for resource in ("node", "service"):
        if not request.acl.allows_all(resource):
            raise request.acl.denied(resource, "", Access.READ)


async def _events(request: HttpRequest) -> HttpResponse:
    """What ``weft events`` lists, newest first; not what the agent logs."""
    _require_all(request)
    netns = os.stat("/proc/self/ns/net").st_ino
    found = [one for one in await asyncio.to_thread(events.tail, netns) if "message" not in one]
    shown = [
        {
            "Time": one["time"],
            "Event": str(one.get("event", "")),
            "Text": events.sentence(one),
            "Failed": "error" in one or one.get("status") == "critical",
        }
        for one in found
    ]
    body = json.dumps(shown).replace("<", "\\u003c").encode()
    return HttpResponse(body, headers={"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"})


async def _overview(overview: Overview, request: HttpRequest) -> HttpResponse:
    _require_all(request)
    index, seconds = request.blocking_options()
    version, body = await overview.wait(index, seconds)
    headers = {"X-Consul-Index": str(version), "Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}
    return HttpResponse(body, headers={**headers, "Cross-Origin-Resource-Policy": "same-origin"})


async def _file(request: HttpRequest) -> HttpResponse:
    name = request.name or "index.html"
    if name not in TYPES:
        raise HttpError(404, "Not found; the page is at /ui/")
    return HttpResponse(files("discovery.page").joinpath(name).read_bytes(), type=TYPES[name], headers=HEADERS)


async def _redirect(request: HttpRequest) -> HttpResponse:
    return HttpResponse(status=302, headers={"Location": "/ui/", "Cache-Control": "no-store"})
