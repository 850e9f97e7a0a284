"""Requests to the members of a cluster: one after the other, with deadlines, until one answers.

Every request may be sent twice, so what is sent must be idempotent.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, Protocol, TypeVar

import grpc

from store.etcd import rpc_pb2 as rpc
from store.etcd import tls
from store.etcd.errors import Answered, NoAnswer, TokenExpired, failure, store_error
from store.etcd.record import Record, WrongCluster
from store.etcd.settings import EtcdSettings
from store.interface import Invalid, Unavailable

log = logging.getLogger(__name__)

_PAUSE = (0.05, 0.3)
"""Seconds, random, after no member has answered: many hosts must not ask again at once."""
_RACED = "auth store is old"
"""In etcd's refusal of a request between which and its execution a user or a role was changed."""
_MOST_RACES = 10
_OPTIONS: list[tuple[str, int]] = [
    ("grpc.enable_http_proxy", 0),
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.max_receive_message_length", -1),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 500),
    ("grpc.max_reconnect_backoff_ms", 500),
]


class _Headed(Protocol):
    @property
    def header(self) -> rpc.ResponseHeader: ...


class Request(Protocol):
    """A message that can be sent."""

    def SerializeToString(self) -> bytes: ...


Reply = TypeVar("Reply", bound=_Headed)
Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Method(Generic[Reply]):
    """A method of etcd's API. ``linear``: its header's revision is as new as any known before; ``stream``:
    it takes and returns streams, of which one message each is used.
    """

    path: str
    parse: Callable[[bytes], Reply]
    linear: bool = False
    stream: bool = False


RANGE = Method("/etcdserverpb.KV/Range", rpc.RangeResponse.FromString, linear=True)
TXN = Method("/etcdserverpb.KV/Txn", rpc.TxnResponse.FromString, linear=True)
GRANT = Method("/etcdserverpb.Lease/LeaseGrant", rpc.LeaseGrantResponse.FromString)
REVOKE = Method("/etcdserverpb.Lease/LeaseRevoke", rpc.LeaseRevokeResponse.FromString)
KEEP_ALIVE = Method("/etcdserverpb.Lease/LeaseKeepAlive", rpc.LeaseKeepAliveResponse.FromString, stream=True)
TIME_TO_LIVE = Method("/etcdserverpb.Lease/LeaseTimeToLive", rpc.LeaseTimeToLiveResponse.FromString)
AUTHENTICATE = Method("/etcdserverpb.Auth/Authenticate", rpc.AuthenticateResponse.FromString)
WATCH = Method("/etcdserverpb.Watch/Watch", rpc.WatchResponse.FromString, stream=True)


class Member:
    """A member of the cluster: its channel, and whether what it says has been checked."""

    def __init__(self, address: str, credentials: grpc.ChannelCredentials | None) -> None:
        self.address = address
        self.credentials = credentials
        self.checked = False
        self.problem = ""
        self.lock = asyncio.Lock()
        self.channel = (
            grpc.aio.secure_channel(address, credentials, _OPTIONS)
            if credentials is not None
            else grpc.aio.insecure_channel(address, _OPTIONS)
        )


class Connection:
    """The members, of which one is used until it does not answer."""

    def __init__(self, settings: EtcdSettings, record: Record, marker: bytes) -> None:
        """``marker`` is the key of the operation token by which ``record`` knows the cluster. Raises
        Invalid.
        """
        self.settings = settings
        self.record = record
        self._marker = marker
        self._files = tls.state(settings)
        self._credentials = tls.credentials(settings) if settings.tls else None
        self._members = [Member(address, self._credentials) for address in settings.endpoints]
        self._former: list[Member] = []
        self._current = random.randrange(len(self._members))
        self._failures = 0
        self._token = ""
        self._login = asyncio.Lock()
        self._refused: WrongCluster | None = None
        self._reported = False

    def follow(self, endpoints: Sequence[str]) -> None:
        """Use these members (``HOST:PORT``) from now on; channels to others stay open until ``close``, as requests may
        use them.
        """
        if not endpoints or set(endpoints) == {one.address for one in self._members}:
            return
        used, every = self._members[self._current], [*self._former, *self._members]
        known = {one.address: one for one in every if one.credentials is self._credentials}
        members = [known.get(one) or Member(one, self._credentials) for one in dict.fromkeys(endpoints)]
        self._members, self._former = members, [one for one in every if one not in members]
        self._current = members.index(used) if used in members else random.randrange(len(members))
        self._failures = 0

    def _read_files_again(self) -> None:
        """Connect anew where the certificates were replaced; half of a new pair is not used. Former channels stay open
        as in ``follow``.
        """
        found = tls.state(self.settings)
        if not self.settings.tls or found == self._files:
            return
        with contextlib.suppress(Invalid, OSError):
            self._credentials, self._files = tls.credentials(self.settings), found
            log.info("the certificates for the etcd cluster were replaced, and are read again")
            self._former += self._members
            self._members = [Member(one.address, self._credentials) for one in self._members]
            self._failures = 0

    def deadline(self) -> float:
        """When a call that starts now must end."""
        return asyncio.get_running_loop().time() + self.settings.call_seconds

    async def close(self) -> None:
        for member in (*self._members, *self._former):
            await member.channel.close()

    async def call(self, method: Method[Reply], request: Request, what: str, end: float) -> Reply:
        """Send a request until it is answered; ``end`` is the loop's time at which to give up.

        Raises Answered, Unavailable (it may have been executed).
        """
        return await self.run(lambda member: self._attempt(member, method, request, end), what, end)

    async def run(self, work: Callable[[Member], Awaitable[Result]], what: str, end: float) -> Result:
        """Work with a member that has been checked; with another one where that raises NoAnswer."""
        loop = asyncio.get_running_loop()
        logins = 0
        while True:
            if self._refused is not None:
                raise self._refused
            if self._failures >= len(self._members):
                self._read_files_again()
                await asyncio.sleep(min(random.uniform(*_PAUSE), max(end - loop.time(), 0)))
            if loop.time() >= end:
                raise await self._unavailable(what)
            member, token = self._members[self._current], self._token
            try:
                async with asyncio.timeout_at(end if end < math.inf else None):
                    await self._prepare(member, end)
                    token = self._token
                    result = await work(member)
                self._answered(member)
                return result
            except NoAnswer as error:
                self.lost(member, str(error))
            except TimeoutError:
                self.lost(member, "no answer in time")
            except TokenExpired as error:
                logins += 1
                if _RACED in str(error) and logins <= _MOST_RACES:
                    continue
                if logins > 2 or not self.settings.user:
                    if "permission denied" in str(error):
                        raise Answered("PERMISSION_DENIED", str(error)) from None
                    raise Unavailable(
                        f"{what}: etcd does not accept this host's login: {error}",
                        hint="see store.user, store.password_file and store.cert",
                    ) from None
                if token == self._token:
                    self._token = ""
            except WrongCluster as error:
                self.refuse(error)

    def refuse(self, error: WrongCluster) -> None:
        """Let all further calls fail with this error."""
        if self._refused is None:
            log.error("%s", error)
            self._refused = error

    def lost(self, member: Member, why: str) -> None:
        """Use another member than this one, which has failed."""
        member.checked, member.problem = False, why
        if member not in self._members:
            return
        self._failures += 1
        if self._members[self._current] is member:
            self._current = (self._current + 1) % len(self._members)
            log.debug("etcd at %s: %s; using %s", member.address, why, self._members[self._current].address)
        if self._failures == len(self._members) and not self._reported:
            self._reported = True
            log.warning("no member of the etcd cluster answers: %s", self._problems())

    def _answered(self, member: Member) -> None:
        self._failures = 0
        member.problem = ""
        if self._reported:
            self._reported = False
            log.info("etcd at %s answers again", member.address)

    def error(self, answered: Answered, what: str) -> Exception:
        """The store's error for a refused request."""
        return store_error(answered, what, self.settings.user)

    # Before a request

    async def _prepare(self, member: Member, end: float) -> None:
        """Log in, and check that it is the cluster that it was."""
        if self.settings.user and not self._token:
            async with self._login:
                if not self._token:
                    await self._authenticate(member, end)
        if not member.checked:
            async with member.lock:
                if not member.checked:
                    await self._check(member, end)

    async def _authenticate(self, member: Member, end: float) -> None:
        path = self.settings.password_file
        try:
            password = Path(path).read_text(encoding="utf-8").strip("\r\n")
        except (OSError, UnicodeDecodeError) as error:
            raise Unavailable(f"cannot read store.password_file {path}: {error}") from None
        request = rpc.AuthenticateRequest(name=self.settings.user, password=password)
        try:
            self._token = (await self._attempt(member, AUTHENTICATE, request, end)).token
        except Answered as answered:
            if "not enabled" in answered.details:
                self._token = "-"  # a cluster without users does not look at it
                return
            raise Unavailable(
                f"etcd refuses user {self.settings.user}: {answered.details.removeprefix('etcdserver: ')}",
                hint=f"see store.user and the password in {path}",
            ) from None

    async def _check(self, member: Member, end: float) -> None:
        """A linearizable read, before anything is written."""
        request, least = rpc.RangeRequest(key=self._marker), self.record.marker
        try:
            found = await self._attempt(member, RANGE, request, end)
        except Answered as answered:
            raise store_error(answered, f"read {self._marker.decode()}", self.settings.user) from None
        self.record.check_marker(member.address, found.kvs[0].mod_revision if found.kvs else 0, least)
        # In a file before the first write: a cluster that is another one at the next start must be noticed.
        await asyncio.to_thread(self.record.save)
        member.checked = True

    # One request

    async def _attempt(self, member: Member, method: Method[Reply], request: Request, end: float) -> Reply:
        """Send a request to one member. Raises NoAnswer, TokenExpired, Answered, WrongCluster."""
        remaining = end - asyncio.get_running_loop().time()
        seconds = max(min(self.settings.attempt_seconds, remaining), 0.01)
        least = self.record.revision if method.linear else 0
        try:
            # Not gRPC's own timeout, which Python's part computes by the wall clock.
            async with asyncio.timeout(seconds):
                reply = await self._exchange(member, method, request)
        except TimeoutError:
            raise NoAnswer(f"no answer within {seconds:.1f} s") from None
        except grpc.aio.AioRpcError as error:
            raise rpc_failure(error) from None
        self.record.check(member.address, reply.header.cluster_id, reply.header.revision, least)
        return reply

    async def _exchange(self, member: Member, method: Method[Reply], request: Request) -> Reply:
        if not method.stream:
            send = member.channel.unary_unary(method.path, _serialize, method.parse)
            answer: Reply = await send(request, metadata=self.metadata())
            return answer
        call = member.channel.stream_stream(method.path, _serialize, method.parse)(
            _one(request), metadata=self.metadata()
        )
        try:
            answer = await call.read()
        finally:
            call.cancel()
        if answer is grpc.aio.EOF:
            raise NoAnswer("the stream ended")
        return answer

    def metadata(self) -> tuple[tuple[str, str], ...]:
        """What goes with every request: a member without a leader must refuse it."""
        return (("hasleader", "true"), *((("token", self._token),) if self._token else ()))

    # Errors

    def _problems(self) -> str:
        return "; ".join(f"{one.address}: {one.problem}" for one in self._members if one.problem)

    async def _unavailable(self, what: str) -> Unavailable:
        if self.settings.tls:
            unclear = [one for one in self._members if one.problem and one.problem != "connection refused"]
            found = await asyncio.gather(*(tls.problem(one.address, self.settings) for one in unclear))
            for member, problem in zip(unclear, found, strict=True):
                member.problem = problem or member.problem
        return Unavailable(
            f"{what}: no member of the etcd cluster answered within {self.settings.call_seconds:g} s: "
            f"{self._problems() or 'not asked'}",
            hint="see store.endpoints; it may have had its effect",
        )


def rpc_failure(error: grpc.aio.AioRpcError) -> NoAnswer | TokenExpired | Answered:
    return failure(error.code().name, error.details() or "")


def _serialize(request: Request) -> bytes:
    return request.SerializeToString()


async def _one(request: Request) -> AsyncIterator[Request]:
    yield request
