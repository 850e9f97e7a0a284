"""HTTP checks: a request as Consul makes it.

aiohttp takes 0.25 s to import and 15 MB: only the process that executes such checks imports this.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Sequence

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult

from discovery.check_targets import parse_url
from discovery.health.connecting import NEXT_ADDRESS_SECONDS, Lookups, Sockets, tls_context
from discovery.health.resolver import Address
from discovery.structs import CheckDefinition, Status

_MAX_HEADER = 1024 * 1024
_MAX_HEADERS = 10_000
_TOO_MANY = 429
_REDIRECTS = 10
_HEADERS = {"User-Agent": "Consul Health Check", "Accept": "text/plain, text/*, */*"}
"""Consul's, unless the check has its own: services exclude them from logs by the first."""


Lookup = asyncio.Future[Sequence[Address]]


async def request(
    definition: CheckDefinition, lookups: Lookups, known: tuple[str, Lookup | None], sockets: Sockets
) -> tuple[Status, str]:
    """Execute a check; the host of ``known`` is looked up already. Raises OSError, ValueError."""
    try:
        return await _request(definition, _Resolver(lookups, *known), sockets)
    except aiohttp.ClientError as error:
        if isinstance(error, OSError | ValueError):
            raise
        raise ValueError(str(error) or type(error).__name__) from error


async def _request(definition: CheckDefinition, resolver: AbstractResolver, sockets: Sockets) -> tuple[Status, str]:
    connector = aiohttp.TCPConnector(
        force_close=True,
        ssl=tls_context(not definition.tls_skip_verify),
        resolver=resolver,
        use_dns_cache=False,
        socket_factory=sockets,
        happy_eyeballs_delay=NEXT_ADDRESS_SECONDS,
    )
    headers = [(name, value) for name, values in definition.headers.items() for value in values]
    named = {name.lower() for name in definition.headers}
    headers += [(name, value) for name, value in _HEADERS.items() if name.lower() not in named]
    session = aiohttp.ClientSession(
        connector=connector,
        auto_decompress=False,
        timeout=aiohttp.ClientTimeout(),
        max_line_size=_MAX_HEADER,
        max_field_size=_MAX_HEADER,
        max_headers=_MAX_HEADERS,
    )
    exchange = session.request(
        definition.method,
        parse_url(definition.target),
        headers=headers,
        data=definition.body or None,
        allow_redirects=not definition.disable_redirects,
        max_redirects=_REDIRECTS,
        server_hostname=definition.tls_server_name or None,
    )
    async with session, exchange as answer:
        body = await answer.content.read(definition.output_max_size)
        text = f"HTTP {definition.method} {definition.target}: {answer.status} {answer.reason}"
        text += f" Output: {body.decode('utf-8', 'replace')}"
        if 200 <= answer.status < 300:
            return Status.PASSING, text
        return Status.WARNING if answer.status == _TOO_MANY else Status.CRITICAL, text


class _Resolver(AbstractResolver):
    """The resolver of one HTTP probe; redirects may lead to other hosts."""

    def __init__(self, resolver: Lookups, host: str, lookup: Lookup | None) -> None:
        self._resolver = resolver
        self._host = host
        self._lookup = lookup

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        lookup = self._lookup if host == self._host else None
        found = await asyncio.shield(lookup or await self._resolver.start(host))
        return [
            {"hostname": host, "host": address, "port": port, "family": of, "proto": 0, "flags": socket.AI_NUMERICHOST}
            for of, address in found
        ]

    async def close(self) -> None:
        """Lookups in progress are others' as well."""
