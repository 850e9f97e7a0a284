"""What a caller may do: the rules of its token, or of its user; the most specific rule decides."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass

from discovery.acl.rules import PLAIN, Access, Rules, parse_rules

NOT_FOUND = "ACL not found"


class PermissionDenied(Exception):
    """The caller may not do this; the message says what it lacks and what to do."""


@dataclass(frozen=True, slots=True)
class _Names:
    """The rules of one resource."""

    exact: Mapping[str, Access]
    prefixes: Mapping[str, Access]
    lengths: tuple[int, ...]  # of the prefixes, longest first

    def find(self, name: str) -> Access | None:
        access = self.exact.get(name)
        if access is not None:
            return access
        for length in self.lengths:
            if length <= len(name) and (access := self.prefixes.get(name[:length])) is not None:
                return access
        return None


_NO_NAMES = _Names({}, {}, ())


class Authorizer:
    """Decides by rules, and by ``default`` where none matches.

    ``key`` is equal for callers that see the same: responses are cached by it. ``explain`` returns
    why something is denied, from the permission (``key:write``) and the name. ``manages``: may do
    everything, ACLs included. ``local_user``: the rules are those of a user of this host, who is told by an
    error what a token is told by an empty list; ``level`` is how much they may do.
    """

    def __init__(
        self,
        key: Hashable,
        rules: Rules,
        explain: Callable[[str, str], str],
        *,
        default: bool = False,
        manages: bool = False,
        local_user: bool = False,
        level: int = 0,
    ) -> None:
        self.key = key
        self.manages = manages
        self.local_user = local_user
        self.level = level
        self._default = default
        self._plain = rules.plain
        self._explain = explain
        self._names = {
            resource: _Names(
                rules.exact.get(resource, {}),
                prefixes := rules.prefixes.get(resource, {}),
                tuple(sorted({len(prefix) for prefix in prefixes}, reverse=True)),
            )
            for resource in rules.exact.keys() | rules.prefixes.keys()
        }

    def allows(self, resource: str, name: str = "", access: Access = Access.READ) -> bool:
        """Whether the caller has this access to a name (``node``, ``key`` …), or to ``acl`` and
        ``operator``, which have none.
        """
        if self.manages:
            return True
        if resource in PLAIN:
            found = self._plain.get(resource)
            default = self._default and resource != "acl"  # as in Consul: never by default
        else:
            found = self._names.get(resource, _NO_NAMES).find(name)
            default = self._default
        return default if found is None else found >= access

    def writes(self, resource: str, name: str = "") -> bool:
        """Whether the caller may write this."""
        return self.allows(resource, name, Access.WRITE)

    def allows_all(self, resource: str, prefix: str = "", access: Access = Access.READ) -> bool:
        """Whether the caller has this access to all names under a prefix: no rule below it says
        otherwise.
        """
        if self.manages:
            return True
        names = self._names.get(resource, _NO_NAMES)
        lengths = (n for n in names.lengths if n <= len(prefix))
        whole = next((names.prefixes[prefix[:n]] for n in lengths if prefix[:n] in names.prefixes), None)
        below = [
            found for rules in (names.exact, names.prefixes) for name, found in rules.items() if name.startswith(prefix)
        ]
        allowed = self._default if whole is None else whole >= access
        return allowed and all(found >= access for found in below)

    def writes_tree(self, prefix: str) -> bool:
        """Whether the caller may write all keys under a prefix."""
        return self.allows_all("key", prefix, Access.WRITE)

    def require(self, resource: str, name: str = "", access: Access = Access.READ) -> None:
        """Raise PermissionDenied unless the caller has this access."""
        if not self.allows(resource, name, access):
            raise self.denied(resource, name, access)

    def require_write(self, resource: str, name: str = "") -> None:
        """Raise PermissionDenied unless the caller may write this."""
        self.require(resource, name, Access.WRITE)

    def require_list(self, resource: str) -> None:
        """Raise PermissionDenied for a user of this host who may see none of these; a token's list
        is filtered instead.
        """
        if self.local_user:
            self.require(resource)

    def denied(self, resource: str, name: str, access: Access) -> PermissionDenied:
        """The error for this."""
        return PermissionDenied(self._explain(f"{resource}:{access.name.lower()}", name))


def _never(permission: str, name: str) -> str:
    raise AssertionError(f"{permission} on {name} was denied to a caller who may do everything")


MANAGEMENT = Authorizer("management", Rules(), _never, manages=True)
"""May do everything."""

_CATALOG = (
    'node_prefix "" { policy = "read" } service_prefix "" { policy = "read" } agent_prefix "" { policy = "read" }'
)
USER_RULES = parse_rules(_CATALOG)
"""What every user of this host may read: the catalog, and the agent's own data."""
READER_RULES = parse_rules(
    f"{_CATALOG} "
    'key_prefix "" { policy = "list" } session_prefix "" { policy = "read" } event_prefix "" { policy = "read" } '
    'query_prefix "" { policy = "read" } operator = "read"'
)
"""What those in ``http.readers`` may read: everything but ACLs."""


def explain_token(accessor: str) -> Callable[[str, str], str]:
    """The explanation for a token, with Consul's text."""
    anonymous = not accessor
    who = "anonymous token" if anonymous else f"token with AccessorID '{accessor}'"

    def explain(permission: str, name: str) -> str:
        text = f"Permission denied: {who} lacks permission '{permission}'" + (f' on "{name[:200]}"' if name else "")
        end = ". The anonymous token is used implicitly when a request does not specify a token."
        return text + end if anonymous else text

    return explain
