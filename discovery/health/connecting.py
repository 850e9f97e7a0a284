"""What all probes over the network have in common: lookups, sockets and TLS."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Protocol

from discovery.health.namespaces import AddressInfo
from discovery.health.resolver import Address

NEXT_ADDRESS_SECONDS = 0.3
"""Before the next address of a host is tried as well, as Go does (RFC 8305)."""

Sockets = Callable[[AddressInfo], socket.socket]


class Lookups(Protocol):
    """Looks hosts up, as Resolver."""

    async def start(self, host: str) -> asyncio.Future[Sequence[Address]]: ...


def load_authorities() -> None:
    """Read all certificate authorities of the host now, for a process that opens no file later."""
    folder = ssl.get_default_verify_paths().capath
    paths = sorted(path for path in Path(folder).glob("*.[0-9]")) if folder else []
    for verify in (True, False):
        context = tls_context(verify)
        for path in paths if verify else ():
            with contextlib.suppress(OSError):  # ssl.SSLError is one
                context.load_verify_locations(path)


@cache
def tls_context(verify: bool) -> ssl.SSLContext:
    context = ssl.create_default_context()
    if not verify:
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context
