"""``/v1/kv``: the key-value store.

Reads come from the store itself. The index of a single key is its ModifyIndex; of a list, or of a
missing key, the store's revision when the response last changed.
"""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Callable, Iterable, Sequence

from discovery.acl.rules import Access
from discovery.api import schemas
from discovery.api.blocking_query import BlockingQueries, consul_headers, encode_json
from discovery.api.http_error import HttpError
from discovery.api.http_request import HttpRequest
from discovery.api.router import HttpResponse, endpoint
from discovery.api.settings import MAX_VALUE_BYTES
from discovery.consul.kv_txn import KVOperation, TxnResult, apply
from discovery.consul.sessions import SessionManager
from discovery.key_watch import KeyWatcher
from discovery.kv import KV_PREFIX, KVPair, decode_pair
from store import Entry, Store

READ_PARAMETERS = ("recurse", "keys", "raw", "separator", "index", "wait", "stale", "consistent", "pretty", "dc")
_WRITE_VERBS = {"cas": "cas", "acquire": "lock", "release": "unlock"}
_RAW_HEADERS = {"X-Content-Type-Options": "nosniff", "Content-Security-Policy": "sandbox"}


class KvsEndpoint:
    """Handlers of keys."""

    def __init__(
        self, store: Store, changes: KeyWatcher, sessions: SessionManager, blocking_queries: BlockingQueries
    ) -> None:
        self._store = store
        self._changes = changes
        self._sessions = sessions
        self._blocking = blocking_queries

    @endpoint(
        "GET",
        "/v1/kv/:key",
        "A key, all keys under a prefix (?recurse), or their names (?keys)",
        parameters=READ_PARAMETERS,
        response=schemas.list_of(schemas.KV_PAIR),
        statuses=(404,),
        blocking=True,
    )
    async def read(self, request: HttpRequest) -> HttpResponse:
        key = request.name
        if request.has("keys"):
            separator = request.get("separator") or request.get("seperator")
            return await self._blocking_query(
                request, ("keys", key, separator), True, lambda found: _key_names(found, key, separator)
            )
        if request.has("recurse"):
            return await self._blocking_query(request, ("tree", key), True, _recurse)
        if not key:
            raise HttpError(400, "Missing key name")
        return await self._blocking_query(
            request, ("key", key), False, lambda found: _single_key(found, key), raw=request.has("raw")
        )

    async def _blocking_query(
        self,
        request: HttpRequest,
        asked: tuple[str, ...],
        prefix: bool,
        build: Callable[[Iterable[Entry]], Sequence[object] | None],
        *,
        raw: bool = False,
    ) -> HttpResponse:
        """Read until the index exceeds ``?index`` or ``?wait`` has passed."""
        index, wait = request.blocking_options()
        request.consistency_mode()
        clock = asyncio.get_running_loop().time
        end = clock() + wait
        place = KV_PREFIX + request.name
        with self._changes.subscribe(place, prefix=prefix) as changed:
            while True:
                changed.clear()
                found = await self._changes.read(place, limit=0 if prefix else 1)
                listed = build(_visible(request, found.entries, prefix=prefix))
                at = 0 if prefix or listed is None else found.entries[0].mod_revision
                body = encode_json(listed, request) if listed is not None else b""
                # A single key's response changes with its revision, however it is formatted.
                shown = body if prefix else str(at).encode()
                key = ("kv", *asked, request.has("pretty"))
                known = self._blocking.cache_response(request, key, shown, found.revision, at)
                if index == 0 or known.index > index or clock() >= end:
                    headers = consul_headers(known.index, request)
                    if listed is None:
                        return HttpResponse(b"", 404, headers=headers)
                    if raw:
                        return HttpResponse(
                            decode_pair(found.entries[0]).value, 200, "text/plain", headers | _RAW_HEADERS
                        )
                    return HttpResponse(body, headers=headers)
                await self._blocking.block(wait_event(changed, end - clock()))

    @endpoint(
        "PUT",
        "/v1/kv/:key",
        "Set a key; false if ?cas, ?acquire or ?release fails",
        parameters=("flags", "cas", "acquire", "release", "dc"),
        response=schemas.BOOLEAN,
        writes=True,
    )
    async def write(self, request: HttpRequest) -> HttpResponse:
        if not request.name:
            raise HttpError(400, "Missing key name")
        request.acl.require_write("key", request.name)
        asked = [name for name in _WRITE_VERBS if request.has(name)]
        if len(asked) > 1:
            raise HttpError(400, f"Conflicting flags: {' and '.join(asked)}")
        operation = KVOperation(
            verb=_WRITE_VERBS[asked[0]] if asked else "set",
            key=request.name,
            value=check_size(await request.read()),
            flags=request.number("flags"),
            index=request.number("cas"),
            session=request.get(asked[0]) if asked and asked[0] != "cas" else "",
        )
        return HttpResponse(b"false" if (await self._apply([operation])).errors else b"true")

    @endpoint(
        "DELETE",
        "/v1/kv/:key",
        "Delete a key, or all keys under a prefix (?recurse)",
        parameters=("recurse", "cas", "dc"),
        response=schemas.BOOLEAN,
        writes=True,
    )
    async def delete(self, request: HttpRequest) -> HttpResponse:
        if request.has("recurse") and request.has("cas"):
            raise HttpError(400, "Conflicting flags: recurse and cas")
        if request.has("recurse"):
            verb = "delete-tree"
            if not request.acl.writes_tree(request.name):
                raise request.acl.denied("key", request.name, Access.WRITE)
        elif not request.name:
            raise HttpError(400, "Missing key name")
        else:
            verb = "delete-cas" if request.has("cas") else "delete"
            request.acl.require_write("key", request.name)
        operation = KVOperation(verb, request.name, index=request.number("cas"))
        return HttpResponse(b"false" if (await self._apply([operation])).errors else b"true")

    async def _apply(self, operations: Sequence[KVOperation]) -> TxnResult:
        return await apply(self._store, operations, self._sessions.find)


async def wait_event(event: asyncio.Event, wait: float) -> None:
    """Wait for an event, at most ``wait`` seconds."""
    try:
        async with asyncio.timeout(wait):
            await event.wait()
    except TimeoutError:
        pass


def check_size(value: bytes) -> bytes:
    """The value, if it is not too large. Raises HttpError."""
    if len(value) > MAX_VALUE_BYTES:
        raise HttpError(413, f"Request body({len(value)} bytes) too large, max size: {MAX_VALUE_BYTES} bytes.")
    return value


def _visible(request: HttpRequest, entries: Sequence[Entry], *, prefix: bool) -> Iterable[Entry]:
    """The keys that the caller may read. Raises PermissionDenied for a single key, and for a user of
    this host who may read none.
    """
    if prefix:
        return request.readable("key", entries, lambda entry: entry.key.removeprefix(KV_PREFIX))
    request.acl.require("key", request.name)
    return entries


def _single_key(read: Iterable[Entry], key: str) -> Sequence[object] | None:
    """The key itself, the first one of its prefix."""
    entries = [entry for entry in read if entry.key == KV_PREFIX + key]
    return [kv_pair_json(decode_pair(entry)) for entry in entries] or None


def _recurse(read: Iterable[Entry]) -> Sequence[object] | None:
    return [kv_pair_json(decode_pair(entry)) for entry in read] or None


def _key_names(read: Iterable[Entry], prefix: str, separator: str) -> Sequence[object] | None:
    """The key names, truncated behind the separator and deduplicated."""
    names: dict[str, None] = {}
    for entry in read:
        names[_truncate_at_separator(entry, prefix, separator)] = None
    return list(names) if names or not prefix else None


def _truncate_at_separator(entry: Entry, prefix: str, separator: str) -> str:
    key = entry.key.removeprefix(KV_PREFIX)
    if not separator:
        return key
    head, found, _ = key[len(prefix) :].partition(separator)
    return prefix + head + found


def kv_pair_json(pair: KVPair) -> dict[str, object]:
    """A key as Consul's JSON."""
    value = base64.b64encode(pair.value).decode() if pair.value else None
    found: dict[str, object] = {"LockIndex": pair.lock_index, "Key": pair.key, "Flags": pair.flags, "Value": value}
    if pair.session:
        found["Session"] = pair.session
    return {**found, "CreateIndex": pair.create_index, "ModifyIndex": pair.modify_index}
