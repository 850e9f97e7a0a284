"""The rules of a policy, in HCL or JSON: which access to which names.

Source: https://developer.hashicorp.com/consul/docs/reference/acl/rule.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import IntEnum

from discovery.consul import hcl
from discovery.consul.json_fields import format_value

LABELED = ("agent", "event", "key", "node", "query", "service", "session")
"""Resources whose rules name what they are for, exactly or (``key_prefix``) by its beginning."""
PLAIN = ("acl", "keyring", "mesh", "operator", "peering")
"""Resources without names. weft has no keyring, mesh and peering: their rules are accepted."""
_PREFIX = "_prefix"
MAX_RULES_BYTES = 64 * 1024


class BadRules(ValueError):
    """The rules are invalid; the message names the rule."""


class Access(IntEnum):
    """What a rule grants; each includes those before it."""

    DENY = 0
    READ = 1
    LIST = 2
    WRITE = 3


@dataclass(slots=True)
class Rules:
    """The rules of one or several policies. ``exact`` and ``prefixes`` are by resource and name."""

    exact: dict[str, dict[str, Access]] = field(default_factory=dict)
    prefixes: dict[str, dict[str, Access]] = field(default_factory=dict)
    plain: dict[str, Access] = field(default_factory=dict)

    def add(self, other: Rules) -> None:
        """Add the rules of another policy. Of two rules for one name DENY wins, then the wider."""
        for mine, theirs in ((self.exact, other.exact), (self.prefixes, other.prefixes)):
            for resource, names in theirs.items():
                for name, access in names.items():
                    _merge(mine.setdefault(resource, {}), name, access)
        for resource, access in other.plain.items():
            _merge(self.plain, resource, access)


def _merge(found: dict[str, Access], name: str, access: Access) -> None:
    old = found.get(name, access)
    found[name] = Access.DENY if Access.DENY in (old, access) else max(old, access)


def merged(all_: Iterable[Rules]) -> Rules:
    """The rules of several policies as one."""
    found = Rules()
    for each in all_:
        found.add(each)
    return found


def parse_rules(text: str) -> Rules:
    """Parse the rules of a policy. Raises BadRules."""
    if len(text.encode("utf-8", "replace")) > MAX_RULES_BYTES:
        raise BadRules(f"the rules are longer than {MAX_RULES_BYTES >> 10} KiB")
    rules = Rules()
    for resource, value in _document(text).items():
        base = resource.removesuffix(_PREFIX)
        if resource in PLAIN:
            _merge(rules.plain, resource, _access(resource, value))
        elif base in LABELED:
            where = (rules.prefixes if resource.endswith(_PREFIX) else rules.exact).setdefault(base, {})
            for name, block in _blocks(resource, value):
                _merge(where, name, _block_access(f'{resource} "{name[:60]}"', base, block))
        else:
            known = ", ".join((*PLAIN, *LABELED, *(name + _PREFIX for name in LABELED)))
            raise BadRules(f"unknown rule {resource[:60]!r}; known are {known}")
    return rules


def _document(text: str) -> Mapping[str, object]:
    try:
        if text.lstrip().startswith("{"):
            found = json.loads(text)
            if not isinstance(found, dict):
                raise BadRules("the rules are not an object")
            return found
        return hcl.parse(text)
    except (ValueError, RecursionError) as error:
        raise BadRules(f"the rules cannot be parsed: {str(error)[:200]}") from None


def _blocks(resource: str, value: object) -> Iterator[tuple[str, object]]:
    """The names and blocks of a resource, which may be repeated."""
    for part in value if isinstance(value, list) else [value]:
        if not isinstance(part, dict):
            raise BadRules(f'{resource}: {format_value(part)} is no block like {resource} "name" {{ policy = "read" }}')
        yield from part.items()


def _block_access(place: str, base: str, block: object) -> Access:
    blocks = block if isinstance(block, list) else [block]
    found: dict[str, Access] = {}
    for one in blocks:
        if not isinstance(one, dict) or not one.get("policy"):
            raise BadRules(f'{place}: {format_value(one)} has no policy = "read", "write" or "deny"')
        for key in one.keys() - {"policy", "intentions"}:
            raise BadRules(f"{place}: unknown key {str(key)[:60]!r}; known are policy and intentions")
        if one.get("intentions"):
            _access(f"{place}.intentions", one["intentions"])
        _merge(found, "", _access(place, one["policy"], lists=base == "key"))
    return found[""]


def _access(place: str, value: object, *, lists: bool = False) -> Access:
    words = {"deny": Access.DENY, "read": Access.READ, "write": Access.WRITE} | ({"list": Access.LIST} if lists else {})
    if not isinstance(value, str) or value not in words:
        raise BadRules(f"{place}: invalid policy {format_value(value)}, must be {', '.join(words)}")
    return words[value]
