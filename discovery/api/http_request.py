"""A request as handlers see it: path name, parameters, body."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar
from urllib.parse import parse_qsl

from discovery.acl.authorizer import Authorizer
from discovery.api.http_error import HttpError
from discovery.consul.durations import parse_duration
from discovery.consul.json_fields import BadField, decode_json

MAX_PARAMETERS = 128
"""Query parameters of one request."""
DEFAULT_WAIT = 300.0
MAX_WAIT = 600.0
_NUMBER = re.compile(r"\d{1,20}", re.ASCII)
_TRUE = ("1", "t", "T", "true", "TRUE", "True")
Item = TypeVar("Item")
_FALSE = ("0", "f", "F", "false", "FALSE", "False")


@dataclass(slots=True)
class HttpRequest:
    """A request. ``name`` is the variable part of the path: a service, a node, a key."""

    method: str
    name: str
    parameters: Mapping[str, Sequence[str]]
    read: Callable[[], Awaitable[bytes]]
    authorize: Callable[[], Authorizer]
    headers: Mapping[str, str] = field(default_factory=dict)
    query: str = ""
    """The query string as it was sent."""
    filtered: bool = False
    """Whether something is missing in the answer that the caller may not see."""

    @property
    def acl(self) -> Authorizer:
        """What the caller may do now: a token may be deleted while its blocking query waits. Raises
        PermissionDenied.
        """
        return self.authorize()

    def visible(self, items: Iterable[Item], test: Callable[[Item], bool]) -> list[Item]:
        """The items that the caller may see."""
        all_ = list(items)
        found = [one for one in all_ if test(one)]
        self.filtered |= len(found) != len(all_)
        return found

    def readable(self, resource: str, items: Iterable[Item], name_of: Callable[[Item], str]) -> list[Item]:
        """The items whose names the caller may read. Raises PermissionDenied for a user of this host who
        may read none.
        """
        acl = self.acl
        acl.require_list(resource)
        self.filtered = False
        return list(items) if acl.manages else self.visible(items, lambda one: acl.allows(resource, name_of(one)))

    def has(self, name: str) -> bool:
        """Whether a parameter is present: ``?stale``."""
        return name in self.parameters

    def get(self, name: str) -> str:
        """A parameter's value; default ""."""
        return self.parameters[name][0] if name in self.parameters else ""

    def all(self, name: str) -> Sequence[str]:
        """All values of a repeatable parameter."""
        return self.parameters.get(name, ())

    def boolean(self, name: str) -> bool:
        """Whether a parameter is present and not false: ``?passing``, ``?passing=1``. Raises
        HttpError.
        """
        if not self.has(name) or not self.get(name):
            return self.has(name)
        return parse_bool(self.get(name), f"Invalid value for ?{name}")

    def number(self, name: str) -> int:
        """An unsigned 64-bit integer; default 0. Raises HttpError."""
        value = self.get(name)
        if not self.has(name):
            return 0
        if not _NUMBER.fullmatch(value) or int(value) >= 2**64:
            raise HttpError(400, f"Invalid value for ?{name}: {value[:40]!r} is not an integer")
        return int(value)

    def blocking_options(self) -> tuple[int, float]:
        """``?index``, 0 for a non-blocking query, and ``?wait`` in seconds. Raises HttpError."""
        seconds, index = 0.0, 0
        if value := self.get("wait"):
            try:
                seconds = parse_duration(value)
            except ValueError:
                raise HttpError(400, "Invalid wait time") from None
        if value := self.get("index"):
            if not _NUMBER.fullmatch(value) or int(value) >= 2**64:
                raise HttpError(400, "Invalid index")
            index = int(value)
        return index, min(seconds, MAX_WAIT) if seconds > 0 else DEFAULT_WAIT

    def consistency_mode(self) -> str:
        """The consistency mode: ``stale``, ``consistent`` or "". Raises HttpError if they
        conflict.
        """
        for other in ("stale", "cached"):
            if self.has("consistent") and self.has(other):
                raise HttpError(400, f"Cannot specify ?{other} with ?consistent, conflicting semantics.")
        return next((name for name in ("stale", "consistent") if self.has(name)), "")

    async def json(self) -> object:
        """The body as JSON. Raises HttpError."""
        try:
            return decode_json(await self.read())
        except BadField as error:
            raise HttpError(400, f"Request decode failed: {error}") from None


def parse_parameters(query: str) -> dict[str, list[str]]:
    """Parse a query string. Raises HttpError."""
    found: dict[str, list[str]] = {}
    try:
        for name, value in parse_qsl(query, keep_blank_values=True, errors="strict", max_num_fields=MAX_PARAMETERS):
            found.setdefault(name, []).append(value)
    except UnicodeDecodeError:
        raise HttpError(400, "The query string is not valid UTF-8") from None
    except ValueError:
        raise HttpError(400, f"The request has more than {MAX_PARAMETERS} parameters") from None
    return found


def parse_bool(text: str, said: str) -> bool:
    """Parse a boolean as Go's ParseBool does. Raises HttpError."""
    if text in _TRUE:
        return True
    if text in _FALSE:
        return False
    raise HttpError(400, f'{said}: "{text[:40]}"')
