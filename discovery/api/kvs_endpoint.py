"""``/v1/kv`` and ``/v1/txn``: the key-value store.

Its reads come from the store itself. An index is the revision of the key where one key is asked for and there; of a
list, or of a key that is not there, it is the store's revision when the answer became what it is.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
from collections.abc import Callable, Sequence
from typing import Any

from discovery.api import schemas
from discovery.api.blocking_query import BlockingQueries, consul_headers, encode_json
from discovery.api.http_error import HttpError
from discovery.api.http_request import HttpRequest
from discovery.api.router import HttpResponse, Route
from discovery.api.settings import MAX_VALUE_BYTES
from discovery.consul.json_fields import BadField, Fields
from discovery.consul.kv_txn import KVOperation, TxnResult, apply
from discovery.key_watch import KeyWatcher
from discovery.kv import KV_PREFIX, KVPair, decode_pair
from store import Entry, Range, Store

MAX_TXN_OPS = 64
"""Operations in one transaction."""
READ_PARAMETERS = ("recurse", "keys", "raw", "separator", "index", "wait", "stale", "consistent", "pretty", "dc")
_WRITING = {"cas": "cas", "acquire": "lock", "release": "unlock"}
_RAW = {"X-Content-Type-Options": "nosniff", "Content-Security-Policy": "sandbox"}


class KvsEndpoint:
    """The handlers of keys."""

    def __init__(self, store: Store, changes: KeyWatcher, answers: BlockingQueries) -> None:
        self._store = store
        self._changes = changes
        self._answers = answers

    def routes(self) -> tuple[Route, ...]:
        """The table of what is served."""
        return (
            Route(
                "GET",
                "/v1/kv/:key",
                "A key, all that begin so (?recurse), or their names (?keys)",
                self.read,
                READ_PARAMETERS,
                schemas.list_of(schemas.KV_PAIR),
                (404,),
                blocks=True,
            ),
            Route(
                "PUT",
                "/v1/kv/:key",
                "Set a key; false if ?cas, ?acquire or ?release forbid it",
                self.write,
                ("flags", "cas", "acquire", "release", "dc"),
                schemas.BOOLEAN,
                writes=True,
            ),
            Route(
                "DELETE",
                "/v1/kv/:key",
                "Delete a key, or all that begin so (?recurse)",
                self.delete,
                ("recurse", "cas", "dc"),
                schemas.BOOLEAN,
                writes=True,
            ),
            Route(
                "PUT",
                "/v1/txn",
                "Do several operations on keys, or none",
                self.transact,
                ("dc",),
                schemas.TXN_RESPONSE,
                (409,),
                schemas.TXN_REQUEST,
                writes=True,
            ),
        )

    async def read(self, question: HttpRequest) -> HttpResponse:
        key = question.name
        if question.has("keys"):
            separator = question.get("separator") or question.get("seperator")
            return await self._block(
                question, ("keys", key, separator), True, lambda found: _names(found, key, separator)
            )
        if question.has("recurse"):
            return await self._block(question, ("tree", key), True, _tree)
        if not key:
            raise HttpError(400, "Missing key name")
        return await self._block(question, ("key", key), False, lambda found: _one(found, key), raw=question.has("raw"))

    async def _block(
        self,
        question: HttpRequest,
        asked: tuple[str, ...],
        prefix: bool,
        build: Callable[[Range], list[Any] | None],
        *,
        raw: bool = False,
    ) -> HttpResponse:
        """Read until the answer is past the index asked for, or the time is over."""
        index, seconds = question.waiting()
        question.consistency()
        clock = asyncio.get_running_loop().time
        end = clock() + seconds
        place = KV_PREFIX + question.name
        with self._changes.listening(place, prefix=prefix) as changed:
            while True:
                changed.clear()
                found = await self._changes.read(place, limit=0 if prefix else 1)
                listed = build(found)
                at = 0 if prefix or listed is None else found.entries[0].mod_revision
                body = encode_json(listed, question) if listed is not None else b""
                # What one key has is told by its revision, however it is shown.
                shown = body if prefix else str(at).encode()
                known = self._answers.remember(("kv", *asked, question.has("pretty")), shown, 200, found.revision, at)
                if index == 0 or known.index > index or clock() >= end:
                    headers = consul_headers(known.index, question)
                    if listed is None:
                        return HttpResponse(b"", 404, headers=headers)
                    if raw:
                        return HttpResponse(decode_pair(found.entries[0]).value, 200, "text/plain", headers | _RAW)
                    return HttpResponse(body, headers=headers)
                await self._answers.park(wait_event(changed, end - clock()))

    async def write(self, question: HttpRequest) -> HttpResponse:
        if not question.name:
            raise HttpError(400, "Missing key name")
        asked = [name for name in _WRITING if question.has(name)]
        if len(asked) > 1:
            raise HttpError(400, f"Conflicting flags: {' and '.join(asked)}; give one of them")
        step = KVOperation(
            verb=_WRITING[asked[0]] if asked else "set",
            key=question.name,
            value=_bounded(await question.read()),
            flags=question.number("flags"),
            index=question.number("cas"),
            session=question.get(asked[0]) if asked and asked[0] != "cas" else "",
        )
        return HttpResponse(b"false" if (await self._apply([step])).failures else b"true")

    async def delete(self, question: HttpRequest) -> HttpResponse:
        if question.has("recurse") and question.has("cas"):
            raise HttpError(400, "Conflicting flags: recurse and cas; give one of them")
        if question.has("recurse"):
            verb = "delete-tree"
        elif not question.name:
            raise HttpError(400, "Missing key name")
        else:
            verb = "delete-cas" if question.has("cas") else "delete"
        step = KVOperation(verb, question.name, index=question.number("cas"))
        return HttpResponse(b"false" if (await self._apply([step])).failures else b"true")

    async def transact(self, question: HttpRequest) -> HttpResponse:
        found = await question.json()
        if not isinstance(found, list):
            raise HttpError(400, "Failed to parse body: it is no list of operations")
        if len(found) > MAX_TXN_OPS:
            raise HttpError(413, f"Transaction contains too many operations ({len(found)} > {MAX_TXN_OPS})")
        try:
            steps = [_step(Fields(part, f"[{number}].")) for number, part in enumerate(found)]
        except BadField as error:
            raise HttpError(400, f"Failed to parse body: {error}") from None
        done = await self._apply(steps)
        results = [{"KV": _entry(pair)} for pair in done.pairs]
        errors = [{"OpIndex": failure.step, "What": failure.what} for failure in done.failures]
        body = encode_json({"Results": results, "Errors": errors}, question)
        return HttpResponse(body, 409 if errors else 200)

    async def _apply(self, steps: Sequence[KVOperation]) -> TxnResult:
        try:
            return await apply(self._store, steps)
        except BadField as error:
            raise HttpError(400, str(error)) from None


async def wait_event(event: asyncio.Event, seconds: float) -> None:
    """Wait for an event, at most so many seconds."""
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        pass


def _bounded(value: bytes) -> bytes:
    if len(value) > MAX_VALUE_BYTES:
        raise HttpError(413, f"Request body({len(value)} bytes) too large, max size: {MAX_VALUE_BYTES} bytes.")
    return value


def _one(read: Range, key: str) -> list[Any] | None:
    """The key itself; it is the first of those that begin so."""
    entries = [entry for entry in read.entries if entry.key == KV_PREFIX + key]
    return [_entry(decode_pair(entry)) for entry in entries] or None


def _tree(read: Range) -> list[Any] | None:
    return [_entry(decode_pair(entry)) for entry in read.entries] or None


def _names(read: Range, prefix: str, separator: str) -> list[Any] | None:
    """The names of keys; those that have the separator behind the prefix only up to it, and once."""
    names: dict[str, None] = {}
    for entry in read.entries:
        names[_cut(entry, prefix, separator)] = None
    return list(names) if names or not prefix else None


def _cut(entry: Entry, prefix: str, separator: str) -> str:
    key = entry.key.removeprefix(KV_PREFIX)
    if not separator:
        return key
    head, found, _ = key[len(prefix) :].partition(separator)
    return prefix + head + found


def _entry(pair: KVPair) -> dict[str, Any]:
    value = base64.b64encode(pair.value).decode() if pair.value else None
    found: dict[str, Any] = {"LockIndex": pair.lock_index, "Key": pair.key, "Flags": pair.flags, "Value": value}
    if pair.session:
        found["Session"] = pair.session
    return {**found, "CreateIndex": pair.create_index, "ModifyIndex": pair.modify_index}


def _step(fields: Fields) -> KVOperation:
    found = fields.inner("KV")
    if found is None:
        raise BadField('an operation is none on keys; write {"KV": {…}}')
    verb = found.text("Verb", longest=40)
    key = found.text("Key")
    if not key and verb not in ("get-tree", "delete-tree"):
        found.fail("Key", key, "names no key")
    text = found.text("Value", longest=2**20)
    try:
        value = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        found.fail("Value", text, "is no base64")
    return KVOperation(
        verb,
        key,
        _bounded(value),
        found.number("Flags", high=2**64 - 1),
        found.number("Index", high=2**64 - 1),
        found.text("Session"),
    )
