"""What passes between the process that speaks HTTP (``http_front``) and the one that answers (``server``)."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

from discovery.api.callers import Caller


class BrokenBody(Exception):
    """The body of a request that is no HTTP, or whose client has disconnected."""


class Headers(Mapping[str, str]):
    """Header fields by their names in any case; of a repeated one the first value, as in aiohttp."""

    def __init__(self, fields: Iterable[tuple[str, str]]) -> None:
        self.fields = tuple(fields)
        """All of them, as they were sent."""
        self._values: dict[str, str] = {}
        for name, value in self.fields:
            self._values.setdefault(name.lower(), value)

    def __getitem__(self, name: str) -> str:
        return self._values[name.lower()]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)


@dataclass(frozen=True, slots=True)
class Connection:
    """An accepted connection. ``client`` is a user of this host (``uid 0``), else its address or "unix";
    ``is_local``: on the unix socket.
    """

    caller: Caller
    client: str
    is_local: bool = False
    has_tls: bool = False


@dataclass(frozen=True, slots=True)
class HttpMessage:
    """A request as its client sent it. ``target`` is the path with the query, ``length`` that of the
    body in bytes as announced, 0 if it is not.

    ``next_chunk`` returns the next piece of the body, b"" after the last one. Raises BrokenBody.
    """

    method: str
    target: str
    headers: Headers
    length: int
    next_chunk: Callable[[], Awaitable[bytes]]

    @property
    def path(self) -> str:
        """The path, percent-encoded."""
        return self.target.partition("?")[0]

    @property
    def query(self) -> str:
        """The query string."""
        return self.target.partition("?")[2]
