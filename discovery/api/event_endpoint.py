"""``/v1/event``: user events."""

from __future__ import annotations

import asyncio

from discovery.api import schemas
from discovery.api.blocking_query import BlockingQueries, consul_headers, encode_json
from discovery.api.http_error import HttpError
from discovery.api.http_request import HttpRequest
from discovery.api.kvs_endpoint import wait_event
from discovery.api.router import HttpResponse, endpoint
from discovery.consul import events
from discovery.consul.regex import Regex
from discovery.consul.regex_parser import BadRegex
from discovery.key_watch import KeyWatcher
from store import Store

_FILTERS = ("node", "service", "tag")


class EventEndpoint:
    """Handlers of user events."""

    def __init__(self, store: Store, changes: KeyWatcher, blocking_queries: BlockingQueries) -> None:
        self._store = store
        self._changes = changes
        self._blocking = blocking_queries

    @endpoint(
        "PUT",
        "/v1/event/fire/:name",
        "Fire an event; the body is its payload",
        parameters=(*_FILTERS, "dc"),
        response=schemas.EVENT,
        writes=True,
    )
    async def fire(self, request: HttpRequest) -> HttpResponse:
        if not request.name:
            raise HttpError(400, "Missing name")
        request.acl.require_write("event", request.name)
        payload = await request.read()
        if len(payload) > events.MAX_PAYLOAD:
            most = events.MAX_PAYLOAD
            raise HttpError(400, f"user event exceeds sane limit of {most} bytes before encoding; use a key for more")
        filters = [request.get(name) for name in _FILTERS]
        for name, pattern in zip(_FILTERS, filters, strict=True):
            try:
                Regex(pattern)
            except BadRegex as error:
                raise HttpError(400, f"Invalid {name} filter: {error}") from None
        event = events.new_event(request.name, payload, *filters)
        await events.fire(self._store, event)
        return HttpResponse(encode_json(event.json(), request))

    @endpoint(
        "GET",
        "/v1/event/list",
        "The last 256 events, or those of a name",
        parameters=("name", *_FILTERS, "index", "wait", "pretty"),
        response=schemas.list_of(schemas.EVENT),
        blocking=True,
    )
    async def list_(self, request: HttpRequest) -> HttpResponse:
        index, wait = request.blocking_options()
        clock = asyncio.get_running_loop().time
        end = clock() + wait
        key = ("event", request.get("name"), request.has("pretty"))
        with self._changes.subscribe(events.EVENTS, prefix=True) as changed:
            while True:
                changed.clear()
                read = await self._changes.read(events.EVENTS)
                listed = events.listed(read.entries, request.get("name"))
                listed = request.readable("event", listed, lambda one: str(one["Name"]))
                known = self._blocking.cache_response(request, key, encode_json(listed, request), read.revision)
                if index == 0 or known.index != index or clock() >= end:
                    return HttpResponse(known.body, headers=consul_headers(known.index, request))
                await self._blocking.block(wait_event(changed, end - clock()))
