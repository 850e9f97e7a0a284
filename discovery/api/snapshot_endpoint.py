"""``/v1/snapshot``: save what clients have stored, and restore it."""

from __future__ import annotations

import asyncio

from discovery.acl.rules import Access
from discovery.api.blocking_query import BlockingQueries, consul_headers
from discovery.api.http_error import HttpError
from discovery.api.http_request import HttpRequest
from discovery.api.router import HttpResponse, endpoint
from discovery.consul import snapshot
from discovery.consul.sessions import SessionManager
from discovery.layout import ROOT, split_key
from store import Store

ARCHIVE = "application/x-gzip"


class SnapshotEndpoint:
    """The handlers of snapshots."""

    def __init__(self, store: Store, sessions: SessionManager, blocking_queries: BlockingQueries) -> None:
        self._store = store
        self._sessions = sessions
        self._blocking = blocking_queries

    @endpoint(
        "GET",
        "/v1/snapshot",
        "Keys, prepared queries, events, tokens and the catalog's external nodes, as an archive",
        parameters=("dc", "stale"),
    )
    async def save(self, request: HttpRequest) -> HttpResponse:
        _require_management(request, Access.READ)
        read = await self._store.range(ROOT)
        archive = await asyncio.to_thread(lambda: snapshot.pack(snapshot.selected(read.entries), read.revision))
        return HttpResponse(archive, type=ARCHIVE, headers=consul_headers(read.revision, request))

    @endpoint(
        "PUT",
        "/v1/snapshot",
        "Restore an archive: what it has not is deleted, and all sessions end",
        parameters=("dc",),
        writes=True,
        body_bytes=snapshot.ARCHIVE_BYTES,
    )
    async def restore(self, request: HttpRequest) -> HttpResponse:
        _require_management(request, Access.WRITE)
        archive = await request.read()
        try:
            state = await asyncio.to_thread(snapshot.unpack, archive)
        except snapshot.BadArchive as error:
            raise HttpError(400, f"failed to restore the snapshot, nothing was changed: {error}") from None
        for entry in (await self._sessions.all(self._store.range)).entries:
            await self._sessions.destroy(split_key(entry.key)[1][1])
        await snapshot.restore(self._store, state)
        await self._blocking.wait_for_catalog()
        return HttpResponse()


def _require_management(request: HttpRequest, access: Access) -> None:
    """Tokens and policies are in the archive: who may read or write those. Raises PermissionDenied."""
    if not request.acl.manages:
        request.acl.require("acl", "", Access.WRITE)
        request.acl.require("operator", "", access)
