"""Watches that survive members: continued on another one after the last revision, nothing lost or doubled."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Iterable
from typing import TypeVar

import grpc

from store.etcd import rpc_pb2 as rpc
from store.etcd.connection import WATCH, Connection, Member, rpc_failure
from store.etcd.errors import Answered, NoAnswer, TokenExpired
from store.etcd.messages import Keys
from store.interface import Batch, Compacted, Event

_Result = TypeVar("_Result")

_WAITING = 16
"""Responses read ahead; then etcd has to wait."""
_MOST_PATIENCE = 60.0
"""Seconds of silence."""


class Watches:
    """All watches of one store; ``close`` ends them."""

    def __init__(self, connection: Connection, keys: Keys) -> None:
        self._connection = connection
        self._keys = keys
        self._closed = asyncio.Event()
        self._streams: set[_Stream] = set()

    def close(self) -> None:
        self._closed.set()
        for stream in self._streams:
            stream.end()

    async def watch(self, prefix: str, after: int) -> AsyncIterator[Batch]:
        """See ``Store.watch``. Raises WrongCluster, Unavailable without permission."""
        what = f"watch {prefix!r}"
        cursor, patience = after, self._connection.settings.silent_seconds
        while not self._closed.is_set():
            opening = asyncio.ensure_future(
                self._connection.run(lambda member: self._open(member, prefix, cursor, patience), what, math.inf)  # noqa: B023
            )
            try:
                stream = await self._unless_closed(opening)
            except Answered as answered:
                raise self._connection.error(answered, what) from None
            if stream is None:
                return
            self._streams.add(stream)
            try:
                while (response := await stream.next()) is not None:
                    patience = self._connection.settings.silent_seconds
                    for batch in stream.batches(response, cursor):
                        cursor = batch.revision
                        yield batch
            except (NoAnswer, TokenExpired) as error:
                # A busy member is silent while it reads a long history: starting again and again would never end.
                patience = min(patience * 2, _MOST_PATIENCE)
                self._connection.lost(stream.member, str(error))
            except Answered as answered:
                raise self._connection.error(answered, what) from None
            finally:
                self._streams.discard(stream)
                stream.close()

    async def _open(self, member: Member, prefix: str, after: int, silent: float) -> _Stream:
        """Start a watch; raises as ``Connection.call``, and Compacted."""
        start, end = self._keys.all(prefix)
        stream = _Stream(self._connection, member, self._keys, silent)
        try:
            # From the last revision on, which is left out: etcd says that it is compacted where an event after it
            # may be gone. Revision 1 has no events, and 0 would be "now".
            request = rpc.WatchCreateRequest(
                key=start, range_end=end, start_revision=max(after, 1), prev_kv=True, fragment=True
            )
            await stream.start(request)
        except BaseException:
            stream.close()
            raise
        return stream

    async def _unless_closed(self, work: asyncio.Future[_Result]) -> _Result | None:
        """What the work returns, None if the store is closed before."""
        closed = asyncio.ensure_future(self._closed.wait())
        try:
            await asyncio.wait((work, closed), return_when=asyncio.FIRST_COMPLETED)
            return None if closed.done() else work.result()
        finally:
            for task in (work, closed):
                task.cancel()


class _Stream:
    """A stream of one watch. etcd says nothing while nothing changes: it is asked for a sign of life."""

    def __init__(self, connection: Connection, member: Member, keys: Keys, silent: float) -> None:
        self.member = member
        self._connection = connection
        self._keys = keys
        self._silent = silent
        method = member.channel.stream_stream(WATCH.path, lambda request: request.SerializeToString(), WATCH.parse)
        self._call = method(metadata=connection.metadata())
        self._responses: asyncio.Queue[rpc.WatchResponse | Exception | None] = asyncio.Queue(_WAITING)
        self._reading = asyncio.create_task(self._read(), name="etcd-watch")
        self._part: list[Event] = []

    async def start(self, request: rpc.WatchCreateRequest) -> None:
        try:
            async with asyncio.timeout(self._silent):
                await self._write(rpc.WatchRequest(create_request=request))
                response = await self._get()
        except TimeoutError:
            raise NoAnswer("no watch in time") from None
        if response is not None:
            self._check(response)

    async def next(self) -> rpc.WatchResponse | None:
        """The next response, None after ``end``. Raises NoAnswer where the member is silent, Compacted."""
        asked = False
        while True:
            try:
                async with asyncio.timeout(self._silent / 2):
                    response = await self._get()
                break
            except TimeoutError:
                if asked:
                    raise NoAnswer(f"silent for {self._silent:g} s") from None
            asked = True
            try:
                async with asyncio.timeout(self._silent / 2):
                    await self._write(rpc.WatchRequest(progress_request=rpc.WatchProgressRequest()))
            except TimeoutError:
                raise NoAnswer(f"silent for {self._silent:g} s") from None
        if response is not None:
            self._check(response)
        return response

    def batches(self, response: rpc.WatchResponse, after: int) -> Iterable[Batch]:
        """The revisions that a response completes; the last one of a fragment may be continued."""
        for found in response.events:
            if found.kv.mod_revision <= after:
                continue
            event = self._keys.event(found)
            if event is None:
                raise Compacted(found.kv.mod_revision)
            if self._part and self._part[-1].revision != event.revision:
                yield self._batch()
            self._part.append(event)
        if self._part and not response.fragment:
            yield self._batch()

    def _batch(self) -> Batch:
        made = Batch(self._part[0].revision, tuple(self._part))
        self._part = []
        return made

    def end(self) -> None:
        """Let ``next`` return None."""
        self._reading.cancel()
        while not self._responses.empty():
            self._responses.get_nowait()
        self._responses.put_nowait(None)

    def close(self) -> None:
        self._reading.cancel()
        self._call.cancel()

    def _check(self, response: rpc.WatchResponse) -> None:
        self._connection.record.check(self.member.address, response.header.cluster_id, response.header.revision, 0)
        if response.compact_revision:
            raise Compacted(response.compact_revision)
        if response.canceled:
            if "permission denied" in response.cancel_reason:
                # etcd says so of an expired token, too.
                raise TokenExpired(response.cancel_reason)
            raise NoAnswer(response.cancel_reason or "the watch was cancelled")

    async def _get(self) -> rpc.WatchResponse | None:
        found = await self._responses.get()
        if isinstance(found, Exception):
            raise found
        return found

    async def _write(self, request: rpc.WatchRequest) -> None:
        try:
            await self._call.write(request)
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
            # What ended the stream is what the reader finds.
            await asyncio.sleep(0)

    async def _read(self) -> None:
        try:
            while (response := await self._call.read()) is not grpc.aio.EOF:
                await self._responses.put(response)
            error: Exception = NoAnswer("the watch ended")
        except grpc.aio.AioRpcError as failed:
            error = rpc_failure(failed)
        await self._responses.put(error)
