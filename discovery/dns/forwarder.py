"""Forwarding resolver: random ids, source ports and 0x20 case, server failover, query coalescing.

Sources: RFC 5452 (forged answers), RFC 7766 (TCP), RFC 8914 (extended errors),
draft-vixie-dnsext-dns0x20.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import secrets
import socket
from collections.abc import Callable, Collection
from dataclasses import dataclass, field

from discovery.dns import codec
from discovery.dns.cache import CachedReply, ReplyCache, parse_reply
from discovery.dns.codec import CD, FORMERR, NOTIMP, QR, RD, REFUSED, SERVFAIL, TC, Malformed
from discovery.dns.upstreams import HostServers, Upstream, parse_upstreams

MAX_INFLIGHT = 1024
"""Upstream queries in flight; each has a socket."""
MAX_WAITING_PER_CLIENT = 128
"""Waiting queries per client."""
MAX_WAITING = 8192
ATTEMPT_TIMEOUT = 2.0
TOTAL_TIMEOUT = 4.5
"""Seconds for one attempt, and in total: most stub resolvers give up after five."""
NEXT_SERVER_DELAY = 0.5
RETRY_DELAY = 1.5
"""Seconds until the next server is queried in parallel, or the same one again."""
DEMOTE_SECONDS = 10.0
"""Seconds for which an unresponsive server is tried last."""
MAX_MISMATCHED = 8
"""Datagrams that match no query before falling back to TCP: a spoofing attempt is likely."""
MAX_NO_0X20 = 1000
"""Servers remembered for not preserving 0x20 case."""
_PORT_RANGE = (32768, 60999)
_BOUND_ERRORS = (errno.EADDRINUSE, errno.EACCES)

OnReply = Callable[[bytes | None], None]


class NoReply(Exception):
    """No upstream server gave a usable reply."""


@dataclass(slots=True)
class _InflightQuery:
    """A query in flight, and the clients that wait for it."""

    asked: bytes
    flags: int
    edns: bool
    do: bool
    servers: tuple[Upstream, ...]
    waiting: list[tuple[str, OnReply]] = field(default_factory=list)


class Forwarder:
    """Queries upstream servers and caches their replies. ``own`` are weft's listeners, never
    queried.
    """

    def __init__(self, resolv_conf: HostServers, own: Callable[[], Collection[tuple[str, int]]]) -> None:
        self.cache = ReplyCache()
        self._resolv_conf = resolv_conf
        self._own = own
        self._inflight: dict[bytes, _InflightQuery] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._waiting_per_client: dict[str, int] = {}
        self._waiting = 0
        self._failed: dict[Upstream, float] = {}
        self._no_0x20: set[Upstream] = set()

    @property
    def inflight(self) -> int:
        """Queries in flight."""
        return len(self._inflight)

    async def close(self) -> None:
        """Cancel all queries; waiting clients get no reply."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def resolve(
        self, query: codec.Query, asked: bytes, upstreams: tuple[str, ...], client: str, done: OnReply
    ) -> bytes | None:
        """The cached reply; else None, and ``done`` is called later (with None if no server
        answered).

        ``asked`` is the question: name in lower case, type and class. ``upstreams`` are the servers
        to query, () for those of resolv.conf. The reply has that question and no OPT.
        """
        flags = query.flags & CD
        key = b"%b%b%d%d%b" % (asked, flags.to_bytes(2, "big"), query.edns, query.do, ",".join(upstreams).encode())
        found = self.cache.get(key, asyncio.get_running_loop().time())
        if found is not None:
            return found
        query_ = self._inflight.get(key)
        busy = self._waiting >= MAX_WAITING or self._waiting_per_client.get(client, 0) >= MAX_WAITING_PER_CLIENT
        if busy or (query_ is None and len(self._inflight) >= MAX_INFLIGHT):
            done(None)
            return None
        if query_ is None:
            servers = self._servers(upstreams)
            query_ = _InflightQuery(asked, flags, query.edns, query.do, servers)
            self._inflight[key] = query_
            task = asyncio.get_running_loop().create_task(self._resolve(key, query_))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        query_.waiting.append((client, done))
        self._waiting += 1
        self._waiting_per_client[client] = self._waiting_per_client.get(client, 0) + 1
        return None

    def _servers(self, upstreams: tuple[str, ...]) -> tuple[Upstream, ...]:
        """The servers to query in order: recently failed ones last, weft's own listeners never."""
        found = parse_upstreams(upstreams) if upstreams else self._resolv_conf.servers()
        own = self._own()
        now = asyncio.get_running_loop().time()
        self._failed = {each: since for each, since in self._failed.items() if now - since < DEMOTE_SECONDS}
        usable = (each for each in found if (each.address, each.port) not in own)
        return tuple(sorted(usable, key=lambda each: each in self._failed))

    async def _resolve(self, key: bytes, query_: _InflightQuery) -> None:
        message: bytes | None = None
        try:
            reply = await self._query_servers(query_)
            self.cache.put(key, reply, asyncio.get_running_loop().time())
            message = reply.message
        except NoReply:
            pass
        finally:
            del self._inflight[key]
            for client, done in query_.waiting:
                self._waiting -= 1
                left = self._waiting_per_client[client] - 1
                if left:
                    self._waiting_per_client[client] = left
                else:
                    del self._waiting_per_client[client]
                done(message)

    async def _query_servers(self, query_: _InflightQuery) -> CachedReply:
        """Query the servers with staggered starts; the first good reply wins, else the last error
        reply.

        Raises NoReply.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + TOTAL_TIMEOUT
        first, again = list(query_.servers), list(query_.servers)
        tasks: dict[asyncio.Task[CachedReply], Upstream] = {}
        bad: CachedReply | None = None
        try:
            while (first or again or tasks) and loop.time() < deadline:
                if first or again:
                    server = (first or again).pop(0)
                    tasks[loop.create_task(self._query_server(server, query_))] = server
                pause = NEXT_SERVER_DELAY if first else RETRY_DELAY if again else ATTEMPT_TIMEOUT * 2
                bound = min(pause, deadline - loop.time())
                done, _ = await asyncio.wait(tasks, timeout=bound, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    asked = tasks.pop(task)
                    if task.exception() is not None:
                        continue
                    reply = task.result()
                    if reply.message[3] & 15 not in (SERVFAIL, REFUSED, FORMERR, NOTIMP):
                        return reply
                    bad = reply
                    again = [each for each in again if each != asked]
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        if bad is None:
            raise NoReply
        return bad

    async def _query_server(self, server: Upstream, query_: _InflightQuery) -> CachedReply:
        """Query one server. Raises NoReply."""
        try:
            async with asyncio.timeout(ATTEMPT_TIMEOUT):
                reply = await self._query_udp(server, query_, query_.edns)
                if query_.edns and reply[3] & 15 in (FORMERR, NOTIMP):
                    reply = await self._query_udp(server, query_, False)
                return parse_reply(reply)
        except (OSError, TimeoutError, Malformed, asyncio.IncompleteReadError) as error:
            self._failed[server] = asyncio.get_running_loop().time()
            raise NoReply(str(error)) from error

    async def _query_udp(self, server: Upstream, query_: _InflightQuery, edns: bool) -> bytes:
        """Query over UDP; over TCP if the reply is truncated or not trustworthy."""
        loop = asyncio.get_running_loop()
        asked = query_.asked if server in self._no_0x20 else _randomize_case(query_.asked)
        message = _encode_query(query_, asked, edns)
        with contextlib.closing(_udp_socket(server)) as sock:
            await loop.sock_sendall(sock, message)
            for _ in range(MAX_MISMATCHED):
                reply = await loop.sock_recv(sock, 4096)
                if not _is_reply(reply, message):
                    continue
                spelled = codec.question_bytes(reply)
                if spelled == asked:
                    if reply[2] & TC >> 8:
                        break
                    return reply
                if spelled.lower() == asked.lower():
                    # The server does not preserve case, or the reply is forged: use TCP with it
                    # from now on.
                    if len(self._no_0x20) >= MAX_NO_0X20:
                        self._no_0x20.clear()
                    self._no_0x20.add(server)
                    break
        return await _query_tcp(server, _encode_query(query_, query_.asked, edns))


def _udp_socket(server: Upstream) -> socket.socket:
    """A UDP socket with a random source port, connected to the server."""
    sock = socket.socket(server.family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    try:
        for _ in range(4):
            try:
                sock.bind(("", _PORT_RANGE[0] + secrets.randbelow(_PORT_RANGE[1] - _PORT_RANGE[0])))
                break
            except OSError as error:
                if error.errno not in _BOUND_ERRORS:
                    raise
        sock.connect(server.sockaddr)
    except BaseException:
        sock.close()
        raise
    return sock


async def _query_tcp(server: Upstream, message: bytes) -> bytes:
    """Query over TCP. Raises OSError, IncompleteReadError, Malformed."""
    sock = socket.socket(server.family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    try:
        await asyncio.get_running_loop().sock_connect(sock, server.sockaddr)
        reader, writer = await asyncio.open_connection(sock=sock)
    except BaseException:
        sock.close()
        raise
    try:
        writer.write(len(message).to_bytes(2, "big") + message)
        reply = await reader.readexactly(int.from_bytes(await reader.readexactly(2), "big"))
    finally:
        writer.transport.abort()
    asked = codec.question_bytes(message)
    if not _is_reply(reply, message) or codec.question_bytes(reply).lower() != asked.lower():
        raise Malformed("reply to another question")
    return reply


def _encode_query(query_: _InflightQuery, asked: bytes, edns: bool) -> bytes:
    """A query with a random id."""
    head = codec.encode_header(secrets.randbits(16), RD | query_.flags, 1, 0, 0, int(edns))
    return head + asked + (codec.opt_record(do=query_.do) if edns else b"")


def _is_reply(reply: bytes, message: bytes) -> bool:
    """Whether header and question length of a message match the query."""
    try:
        asked = codec.question_bytes(reply)
    except Malformed:
        return False
    flags = int.from_bytes(reply[2:4], "big")
    same = reply[:2] == message[:2] and bool(flags & QR) and not flags & codec.OPCODE
    return same and len(asked) == len(codec.question_bytes(message))


def _randomize_case(asked: bytes) -> bytes:
    """The question with random case (0x20)."""
    name = bytearray(asked[:-4])
    bits = secrets.randbits(len(name))
    for at, byte in enumerate(name):
        if 97 <= byte <= 122 and bits >> at & 1:
            name[at] = byte - 32
    return bytes(name) + asked[-4:]
