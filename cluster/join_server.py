"""Where members serve joins: TLS, one request of one line a connection, while there is something to serve.

Every host that reaches the port may send; so a request is small, has little time, and is parsed only as JSON until
its token or its certificate is found to be good. Requests are limited in rate and number.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import ssl
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import TypeAlias

from cluster import authority
from cluster.local import JOIN_PORT, Files, Local
from cluster.membership import Joining, Membership, check_address, key_digest
from cluster.nodes import State
from cluster.tokens import Refused
from weft.errors import ConfigProblem, WeftError

log = logging.getLogger(__name__)

MOST_BYTES = 16 * 1024
_READ_SECONDS = 5.0
_SERVE_SECONDS = 30.0
_MOST_AT_ONCE = 8
_RATE, _BURST = 5.0, 20.0
"""Requests a second, and at once after a pause."""
_FIELD_BYTES = 8 * 1024

Message: TypeAlias = Mapping[str, object]


class Limit:
    """A token bucket: ``rate`` events a second, ``burst`` at once."""

    def __init__(self, rate: float, burst: float) -> None:
        self._rate, self._burst = rate, burst
        self._left, self._at = burst, time.monotonic()

    def take(self) -> bool:
        """Whether there may be one more event now."""
        now = time.monotonic()
        self._left = min(self._burst, self._left + (now - self._at) * self._rate)
        self._at = now
        if self._left < 1:
            return False
        self._left -= 1
        return True


class JoinServer:
    """Serves at the node's address while it is ``open``. ``added`` is awaited once a member was added to etcd."""

    def __init__(
        self,
        membership: Membership,
        own: Files,
        local: Local,
        port: int = JOIN_PORT,
        added: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        self._membership = membership
        self._own = own
        self._local = local
        self._port = port
        self._added = added
        self._server: asyncio.Server | None = None
        self._limit = Limit(_RATE, _BURST)
        self._busy = 0
        self._one = asyncio.Lock()

    @property
    def is_open(self) -> bool:
        return self._server is not None

    async def open(self) -> None:
        """Listen, if it does not yet. Raises OSError."""
        if self._server is None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.minimum_version = ssl.TLSVersion.TLSv1_3
            context.load_cert_chain(self._own.path("node.pem"), self._own.path("node-key.pem"))
            context.load_verify_locations(self._own.path("ca.pem"))
            context.verify_mode = ssl.CERT_OPTIONAL
            self._server = await asyncio.start_server(
                self._serve,
                self._local.address,
                self._port,
                ssl=context,
                ssl_handshake_timeout=_READ_SECONDS,
                limit=MOST_BYTES,
                backlog=16,
            )
            log.info("serving joins on %s, port %d", self._local.address, self._port)

    async def close(self) -> None:
        """Listen no more; requests that are served go on."""
        if self._server is not None:
            self._server.close()
            self._server = None
            log.info("serving no joins")

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            if self._busy >= _MOST_AT_ONCE or not self._limit.take():
                answer: Message = {"error": "too many requests to join at this moment", "again": True}
            else:
                self._busy += 1
                try:
                    answer = await self._answer(reader, writer)
                finally:
                    self._busy -= 1
            writer.write(json.dumps(answer).encode() + b"\n")
            async with asyncio.timeout(_READ_SECONDS):
                await writer.drain()
        except (OSError, TimeoutError, ssl.SSLError):
            pass
        finally:
            with contextlib.suppress(OSError):
                writer.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> Message:
        peer = writer.get_extra_info("peername")[0]
        try:
            async with asyncio.timeout(_READ_SECONDS):
                asked = _parse(await reader.readuntil(b"\n"))
            tls = writer.get_extra_info("ssl_object")
            async with asyncio.timeout(_SERVE_SECONDS), self._one:
                return await self._handle(asked, _name(tls.getpeercert()), tls.getpeercert(binary_form=True) or b"")
        except (asyncio.LimitOverrunError, asyncio.IncompleteReadError):
            return {"error": f"a request must be one line of at most {MOST_BYTES} bytes"}
        except TimeoutError:
            return {"error": "the member had no time for the request", "again": True}
        except (Refused, ConfigProblem) as error:
            log.warning("%s: join refused: %s", peer, error.message)
            return {"error": error.message, "hint": error.hint, "again": error.message.endswith("now")}
        except WeftError as error:
            log.warning("%s: join failed: %s", peer, error.message)
            return {"error": error.message, "hint": error.hint, "again": True}

    async def _handle(self, asked: Message, name: str, certificate: bytes) -> Message:
        match _text(asked, "op"):
            case "ca":
                return {"ca": self._own.read("ca.pem").decode()}
            case "join":
                return await self._join(asked)
            case "member":
                await self._check(name, certificate)
                return await self._member(name)
            case "renew":
                await self._check(name, certificate)
                public = authority.requested_key(_text(asked, "request").encode())
                return {"certificate": (await self._membership.renew(name, public, time.time())).decode()}
        raise Refused("an unknown request", hint="is that host of a newer release of weft?")

    async def _join(self, asked: Message) -> Message:
        joining = Joining(
            secret=_text(asked, "secret"),
            name=_text(asked, "name"),
            id=_text(asked, "id"),
            address=check_address(_text(asked, "address")),
            version=_text(asked, "version"),
            # Parsed by a library in C; the token is looked at before what else there is.
            public=await self._requested(asked),
        )
        found = await self._membership.admit(joining, time.time())
        log.info("node %s at %s joins as %s", joining.name, joining.address, found.role)
        return {
            "certificate": found.certificate.decode(),
            "role": found.role,
            "cluster": found.cluster,
            "endpoints": list(found.endpoints),
        }

    async def _requested(self, asked: Message) -> bytes:
        await self._membership.check_token(_text(asked, "secret"))
        return authority.requested_key(_text(asked, "request").encode())

    async def _member(self, name: str) -> Message:
        initial = await self._membership.add_member(name)
        if self._added is not None:
            await self._added()
        log.info("node %s becomes a member of etcd", name)
        names = ("ca-key", "peer-ca", "peer-ca-key")
        return {"initial": initial, **{one: self._own.read(f"{one}.pem").decode() for one in names}}

    async def _check(self, name: str, certificate: bytes) -> None:
        """Raises Refused unless it is the certificate of a node that takes part."""
        if not certificate:
            raise Refused("this needs the certificate of a node", hint="join first")
        node = (await self._membership.see()).nodes.get(name)
        if node is None or node.state is State.REMOVED or node.key != key_digest(authority.presented_key(certificate)):
            raise Refused(f"this is not the certificate of a node {name}", hint="on a member: weft node ls")


def _parse(line: bytes) -> Message:
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise Refused("the request is no JSON object")
    return found


def _text(asked: Message, key: str) -> str:
    value = asked.get(key)
    if not isinstance(value, str) or len(value) > _FIELD_BYTES:
        raise Refused(f"the request has no {key}")
    return value


def _name(certificate: Mapping[str, object] | None) -> str:
    """The CN of a certificate that TLS has verified, "" without one."""
    subject = (certificate or {}).get("subject", ())
    assert isinstance(subject, tuple)
    return next((value for ((key, value),) in subject if key == "commonName"), "")
