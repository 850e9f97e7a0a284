"""The table of routes: what is served under which path, told once for serving, for OpenAPI and for their test."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from urllib.parse import unquote_to_bytes

from discovery.api.http_error import HttpError
from discovery.api.http_request import HttpRequest
from discovery.api.schemas import Schema

JSON = "application/json"
TEXT = "text/plain; charset=utf-8"


@dataclass(frozen=True, slots=True)
class HttpResponse:
    """What is sent back: a body that is written already, and headers beside the usual ones."""

    body: bytes = b""
    status: int = 200
    type: str = JSON
    headers: Mapping[str, str] = field(default_factory=dict)


Handler = Callable[[HttpRequest], Awaitable[HttpResponse]]


@dataclass(frozen=True, slots=True)
class Route:
    """One method of one path. A path that ends in ``:name`` takes the rest of the request's, slashes too.

    ``answer`` is the shape of a successful body, None if it is empty; ``statuses`` are those beside 200 and errors.
    ``blocks``: it can wait for a change (``?index``). ``old`` are other methods that clients still use for it.
    """

    method: str
    path: str
    summary: str
    handler: Handler
    parameters: tuple[str, ...] = ()
    answer: Schema | None = None
    statuses: tuple[int, ...] = ()
    body: Schema | None = None
    blocks: bool = False
    writes: bool = False
    old: tuple[str, ...] = ()

    @property
    def methods(self) -> tuple[str, ...]:
        """All methods that it is served under."""
        return (self.method, *self.old)


class Router:
    """All routes, found by path."""

    def __init__(self, routes: Iterable[Route]) -> None:
        self.routes = tuple(routes)
        self._exact: dict[str, dict[str, Route]] = {}
        self._prefixes: dict[str, dict[str, Route]] = {}
        for route in self.routes:
            start, colon, _ = route.path.partition(":")
            places = (self._prefixes if colon else self._exact).setdefault(start, {})
            for method in route.methods:
                places[method] = route

    def find(self, method: str, path: str) -> tuple[Route, str]:
        """The route of a request, and the name in its path, decoded. Raises Problem: 404, 405."""
        found, name = self._find(path)
        if method == "HEAD":
            method = "GET"
        if method not in found:
            allowed = ",".join(sorted(found))
            status = 200 if method == "OPTIONS" else 405
            raise HttpError(
                status, f"method {method[:20]} not allowed" if status == 405 else "", headers={"Allow": allowed}
            )
        try:
            return found[method], unquote_to_bytes(name).decode()
        except UnicodeDecodeError:
            raise HttpError(400, "The path is no UTF-8") from None

    def _find(self, path: str) -> tuple[dict[str, Route], str]:
        exact = self._exact.get(path) or self._exact.get(path.rstrip("/"))
        if exact is not None:
            return exact, ""
        if found := self._prefixes.get(path + "/"):
            return found, ""
        end = len(path)
        while (end := path.rfind("/", 0, end)) > 0:
            if found := self._prefixes.get(path[: end + 1]):
                return found, path[end + 1 :]
        raise HttpError(404, f"Invalid URL path: not a recognized HTTP API endpoint: {path[:100]}")
