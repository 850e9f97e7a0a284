"""Routing: an endpoint is declared by a decorator on its handler, which serves it, documents it and
has it tested.

@endpoint("GET", "/v1/agent/version", "This agent's version", response=schemas.VERSION)
async def version(self, request: HttpRequest) -> HttpResponse: ...
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TypedDict, TypeVar, Unpack
from urllib.parse import unquote_to_bytes

from discovery.api.http_error import HttpError
from discovery.api.http_request import HttpRequest
from discovery.json_schema import Schema

JSON = "application/json"
TEXT = "text/plain; charset=utf-8"


@dataclass(frozen=True, slots=True)
class HttpResponse:
    """A response: an encoded body, and headers beside the common ones.

    With ``stream`` its items are the body, until it ends or the client disconnects. ``close``: no other
    request is taken on the connection.
    """

    body: bytes = b""
    status: int = 200
    type: str = JSON
    headers: Mapping[str, str] = field(default_factory=dict)
    stream: AsyncIterator[bytes] | None = None
    close: bool = False


Handler = Callable[[HttpRequest], Awaitable[HttpResponse]]
Method = TypeVar("Method", bound=Callable[..., Awaitable[HttpResponse]])


@dataclass(frozen=True, slots=True)
class Route:
    """One method of one path. A path with ``:name`` matches the rest of the request's, slashes
    included, up to what follows the name.

    ``response`` is the schema of a successful body, None if it is empty; ``statuses`` are those
    beside 200 and errors. ``blocking``: supports blocking queries (``?index``). ``writes``: changes
    state, so links of other sites are refused, too. ``deprecated_methods`` are served as well, for old
    clients. ``body_bytes``: the longest body where it is not the setting's.
    """

    method: str
    path: str
    summary: str
    handler: Handler
    parameters: tuple[str, ...] = ()
    response: Schema | None = None
    statuses: tuple[int, ...] = ()
    request_body: Schema | None = None
    blocking: bool = False
    writes: bool = False
    deprecated_methods: tuple[str, ...] = ()
    body_bytes: int = 0

    @property
    def parts(self) -> tuple[str, str, str]:
        """What is before the variable part, its name, and what is after it: ``("/v1/query/",
        "query", "/execute")``.
        """
        prefix, _, rest = self.path.partition(":")
        name, slash, suffix = rest.partition("/")
        return prefix, name, slash + suffix

    @property
    def methods(self) -> tuple[str, ...]:
        """All methods that it is served under."""
        return (self.method, *self.deprecated_methods)


class RouteOptions(TypedDict, total=False):
    """The optional fields of Route, as ``endpoint`` takes them."""

    parameters: tuple[str, ...]
    response: Schema | None
    statuses: tuple[int, ...]
    request_body: Schema | None
    blocking: bool
    writes: bool
    deprecated_methods: tuple[str, ...]
    body_bytes: int


@dataclass(frozen=True, slots=True)
class _Declaration:
    method: str
    path: str
    summary: str
    options: RouteOptions


def endpoint(method: str, path: str, summary: str, **options: Unpack[RouteOptions]) -> Callable[[Method], Method]:
    """Declare a handler method an endpoint; ``options`` are the other fields of Route."""

    def declare(handler: Method) -> Method:
        handler.__dict__["endpoint"] = _Declaration(method, path, summary, options)
        return handler

    return declare


def routes_of(handlers: object) -> tuple[Route, ...]:
    """The routes of all methods of an object that are declared endpoints, in the order of their
    definition.
    """
    found = []
    for name, function in vars(type(handlers)).items():
        declared = getattr(function, "endpoint", None)
        if isinstance(declared, _Declaration):
            handler: Handler = getattr(handlers, name)
            found.append(Route(declared.method, declared.path, declared.summary, handler, **declared.options))
    return tuple(found)


class Router:
    """Finds the route of a request."""

    def __init__(self, routes: Iterable[Route]) -> None:
        self.routes = tuple(routes)
        self._exact: dict[str, dict[str, Route]] = {}
        self._prefixes: dict[str, dict[str, dict[str, Route]]] = {}
        for route in self.routes:
            prefix, name, suffix = route.parts
            methods = (
                self._prefixes.setdefault(prefix, {}).setdefault(suffix, {})
                if name
                else self._exact.setdefault(prefix, {})
            )
            for method in route.methods:
                methods[method] = route

    def find(self, method: str, path: str) -> tuple[Route, str]:
        """The route of a request, and the decoded ``:name`` of its path. Raises HttpError: 404,
        405.
        """
        methods, name = self._find(path)
        if method == "HEAD":
            method = "GET"
        if method not in methods:
            allowed = ",".join(sorted(methods))
            status = 200 if method == "OPTIONS" else 405
            raise HttpError(
                status, f"method {method[:20]} not allowed" if status == 405 else "", headers={"Allow": allowed}
            )
        try:
            return methods[method], unquote_to_bytes(name).decode()
        except UnicodeDecodeError:
            raise HttpError(400, "Invalid URL path: not valid UTF-8") from None

    def _find(self, path: str) -> tuple[dict[str, Route], str]:
        exact = self._exact.get(path) or self._exact.get(path.rstrip("/"))
        if exact is not None:
            return exact, ""
        if found := self._prefixes.get(path + "/", {}).get(""):
            return found, ""
        end = len(path)
        while (end := path.rfind("/", 0, end)) > 0:
            name = path[end + 1 :]
            for suffix, methods in self._prefixes.get(path[: end + 1], {}).items():
                if suffix and name.endswith(suffix):
                    return methods, name.removesuffix(suffix)
            if found := self._prefixes.get(path[: end + 1], {}).get(""):
                return found, name
        raise HttpError(404, f"Invalid URL path: not a recognized HTTP API endpoint: {path[:100]}")
