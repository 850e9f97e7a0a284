"""The routes of the page: its files, which nothing from elsewhere is mixed with, and the document that it shows."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from importlib.resources import files

from discovery.api.http_error import Problem
from discovery.api.http_request import Question
from discovery.api.router import Answer, Route
from discovery.api.schemas import FLAG, NUMBER, TEXT, WORDS, Schema, many, record
from discovery.page.overview import Overview

TYPES: Mapping[str, str] = {
    "index.html": "text/html; charset=utf-8",
    "page.css": "text/css; charset=utf-8",
    "page.js": "text/javascript; charset=utf-8",
    "parts.js": "text/javascript; charset=utf-8",
    "lists.js": "text/javascript; charset=utf-8",
    "details.js": "text/javascript; charset=utf-8",
    "model.js": "text/javascript; charset=utf-8",
    "drawing.js": "text/javascript; charset=utf-8",
    "icon.svg": "image/svg+xml",
}
"""The files of the page."""

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
        # The browser itself refuses to make elements of text: innerHTML and its kin raise an error.
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
_NODE = record("OverviewNode", Name=TEXT, Address=TEXT, Status=TEXT, Changed=SECONDS)
_NETWORK = record(
    "OverviewNetwork", Name=TEXT, Gateways=WORDS, Domains=WORDS, Internal=FLAG, Attachments=NUMBER
)  # fmt: skip
_ATTACHMENT = record(
    "OverviewAttachment",
    **dict.fromkeys(("ID", "Network", "Container", "Interface", "Domain"), TEXT),
    Addresses=WORDS,
    Names=WORDS,
    Since=SECONDS,
)
_INSTANCE = record(
    "OverviewInstance",
    **dict.fromkeys(("ID", "Node", "Protocol", "Status", "Network", "Owner"), TEXT),
    Addresses=WORDS,
    Port=NUMBER,
    Changed=SECONDS,
)
_SERVICE = record(
    "OverviewService", Name=TEXT, Tags=WORDS, Virtual=WORDS, Omitted=NUMBER, Instances=many(_INSTANCE)
)  # fmt: skip
OVERVIEW = record(
    "Overview",
    **dict.fromkeys(("Node", "Datacenter", "Version", "Domain"), TEXT),
    **dict.fromkeys(("Now", "Started"), SECONDS),
    Index=NUMBER,
    Omitted=record("OverviewOmitted", Services=NUMBER, Attachments=NUMBER, Nodes=NUMBER),
    Nodes=many(_NODE),
    Networks=many(_NETWORK),
    Attachments=many(_ATTACHMENT),
    Services=many(_SERVICE),
)


def routes(overview: Overview) -> tuple[Route, ...]:
    """What an ``Api`` serves in addition so that there is a page at ``/ui/``."""
    return (
        Route(
            "GET", "/v1/weft/overview", "All that the web page shows, in one document; Consul has no such call",
            partial(_overview, overview), ("index", "wait"), OVERVIEW, blocks=True,
        ),
        Route("GET", "/ui/:file", "The web page", _file),
        Route("GET", "/", "To the web page", _redirect),
    )  # fmt: skip


async def _overview(overview: Overview, question: Question) -> Answer:
    index, seconds = question.waiting()
    version, body = await overview.after(index, seconds)
    headers = {"X-Consul-Index": str(version), "Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}
    return Answer(body, headers={**headers, "Cross-Origin-Resource-Policy": "same-origin"})


async def _file(question: Question) -> Answer:
    name = question.name or "index.html"
    if name not in TYPES:
        raise Problem(404, "The page has no such file; it begins at /ui/")
    return Answer(files("discovery.page").joinpath(name).read_bytes(), type=TYPES[name], headers=HEADERS)


async def _redirect(question: Question) -> Answer:
    return Answer(status=302, headers={"Location": "/ui/", "Cache-Control": "no-store"})
