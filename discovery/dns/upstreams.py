"""Upstream name servers: parsing, and those of resolv.conf, reread when it changes."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from ipaddress import IPv6Address, ip_address
from pathlib import Path
from typing import Protocol

PORT = 53
MAX_SERVERS = 3
"""Name servers used of a resolv.conf, as resolv.conf(5) has it."""
MAX_FILE_BYTES = 65536
STAT_INTERVAL = 1.0
"""Seconds between two stat(2) of the file."""


@dataclass(frozen=True, slots=True)
class Upstream:
    """A name server; ``scope`` is the interface index of a link-local address."""

    address: str
    port: int = PORT
    scope: int = 0

    @property
    def family(self) -> socket.AddressFamily:
        """AF_INET or AF_INET6."""
        return socket.AF_INET6 if ":" in self.address else socket.AF_INET

    @property
    def sockaddr(self) -> tuple[str, int] | tuple[str, int, int, int]:
        """The address for connect(2)."""
        if self.family == socket.AF_INET6:
            return (self.address, self.port, 0, self.scope)
        return (self.address, self.port)


def parse_upstream(text: str) -> Upstream:
    """Parse ``9.9.9.9:5353``, ``fe80::1%eth0``, ``[fd00::1]:5353``; default port 53. Raises
    ValueError.
    """
    host, port = text, ""
    if text.startswith("["):
        host, _, rest = text[1:].partition("]")
        port = rest.removeprefix(":")
    elif text.count(":") == 1:
        host, _, port = text.partition(":")
    address, _, link = host.partition("%")
    found = ip_address(address)
    number = int(port) if port else PORT
    if not 0 < number < 65536:
        raise ValueError(f"{text!r}: {number} is not a valid port")
    scope = 0
    if isinstance(found, IPv6Address) and link:
        try:
            scope = int(link) if link.isdecimal() else socket.if_nametoindex(link)
        except OSError:
            raise ValueError(f"{text!r}: no such interface {link!r}") from None
    return Upstream(str(found), number, scope)


def parse_upstreams(texts: Iterable[str]) -> tuple[Upstream, ...]:
    """Parse several servers; invalid ones are left out."""
    found = []
    for each in texts:
        try:
            found.append(parse_upstream(each))
        except ValueError:
            continue
    return tuple(dict.fromkeys(found))


class HostServers(Protocol):
    """The host's name servers and search domains."""

    def servers(self) -> tuple[Upstream, ...]: ...

    def search(self) -> frozenset[str]: ...


class ResolvConf:
    """Name servers and search domains of a resolv.conf, reread when changed. Source:
    resolv.conf(5).
    """

    def __init__(self, path: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._path = path
        self._clock = clock
        self._checked_at = float("-inf")
        self._stat: tuple[int, ...] | None = None
        self._servers: tuple[Upstream, ...] = ()
        self._search: frozenset[str] = frozenset()

    def servers(self) -> tuple[Upstream, ...]:
        """At most three; () if the file is missing or has none."""
        self._refresh()
        return self._servers

    def search(self) -> frozenset[str]:
        """The search domains in lower case."""
        self._refresh()
        return self._search

    def _refresh(self) -> None:
        now = self._clock()
        if now - self._checked_at < STAT_INTERVAL:
            return
        self._checked_at = now
        try:
            found = os.stat(self._path)
            seen = (found.st_dev, found.st_ino, found.st_mtime_ns, found.st_size)
            if seen == self._stat:
                return
            with Path(self._path).open("rb") as file:
                text = file.read(MAX_FILE_BYTES).decode("utf-8", "replace")
        except OSError:
            # Being replaced, or gone: keep the last contents.
            return
        self._stat = seen
        self._parse(text)

    def _parse(self, text: str) -> None:
        servers: list[str] = []
        search: list[str] = []
        for line in text.splitlines():
            words = line.split("#")[0].split(";")[0].split()
            if words[:1] == ["nameserver"] and len(words) > 1:
                servers.append(words[1])
            elif words[:1] in (["search"], ["domain"]):
                search = words[1:]
        self._servers = parse_upstreams(servers)[:MAX_SERVERS]
        self._search = frozenset(each.rstrip(".").lower() for each in search)
