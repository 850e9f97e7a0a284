"""Typed, case-insensitive access to a JSON object, which collects all problems before it fails.

Runtimes differ in the case of keys (containerd sends ``HostPort``), and Go's decoder, which the
reference plugins use, ignores it. ``null`` means absent. A problem is recorded with its path and
value instead of raised, so that one error reports them all.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from ipaddress import ip_address, ip_interface, ip_network

from weft.errors import ConfigProblem
from weft.types import Address, Cidr, Subnet

_MAX_QUOTED = 80  # characters of a value in a message
_MAX_PROBLEMS = 20  # a hostile configuration could cause 100,000
_FROM_RUNTIME = ("runtimeConfig", "CNI_ARGS")
"""How problems of values begin that the runtime adds to the configuration of an administrator."""


class Problems:
    """The problems found while reading one configuration."""

    def __init__(self) -> None:
        self.found: list[str] = []
        self.asked: set[str] | None = None
        """The paths of the keys that a reader has asked for, in its own spelling, once this is a set."""

    def add(self, sentence: str) -> None:
        if len(self.found) < _MAX_PROBLEMS and sentence not in self.found:
            self.found.append(sentence)

    def raise_any(self) -> None:
        """Raise ConfigProblem with all problems, if there are any; the hint says who gave the values."""
        if self.found:
            from_runtime = [sentence.startswith(_FROM_RUNTIME) for sentence in self.found]
            places = [] if all(from_runtime) else ["the network configuration"]
            if any(from_runtime):
                places.append("what the container runtime passes (runtimeConfig, CNI_ARGS)")
            raise ConfigProblem("; ".join(self.found), hint=f"correct {' and '.join(places)}")


def quoted(value: object) -> str:
    """A value as messages quote it: JSON, truncated."""
    try:
        text = json.dumps(value)
    except (TypeError, ValueError):
        text = repr(value)
    return text if len(text) <= _MAX_QUOTED else text[: _MAX_QUOTED - 1] + "…"


def similar(name: str, known: Iterable[str]) -> str:
    """``; did you mean NAME?`` with the most similar of the known names, compared without case and
    underscores; "" if none is.
    """
    from difflib import get_close_matches

    folded = {one.casefold().replace("_", ""): one for one in known}
    found = get_close_matches(name.casefold().replace("_", ""), folded, 1)
    return f"; did you mean {folded[found[0]]}?" if found else ""


class Section:
    """A JSON object in a configuration, with its path (``ipam.ranges[0][1]``) for messages."""

    __slots__ = ("_keys", "path", "problems")

    def __init__(self, value: object, path: str = "", problems: Problems | None = None) -> None:
        self.path = path
        self.problems = problems if problems is not None else Problems()
        self._keys: dict[str, object] = {}
        if value is None:
            return
        if not isinstance(value, dict):
            self.problems.add(f"{path or 'the configuration'} must be an object, not {quoted(value)}")
            return
        for key, item in value.items():
            folded = key.casefold()
            if folded in self._keys:
                self.problems.add(f"{self.at(key)} is given twice (keys are compared without case)")
            elif item is not None:
                self._keys[folded] = item

    def __contains__(self, key: str) -> bool:
        """Whether the key is given: ``in`` tells an absent key from an empty value."""
        if self.problems.asked is not None:
            self.problems.asked.add(self.at(key))
        return key.casefold() in self._keys

    def __bool__(self) -> bool:
        return bool(self._keys)

    def unknown(self, known: Iterable[str]) -> tuple[str, ...]:
        """The keys that are given and not known, in lower case."""
        return tuple(sorted(self._keys.keys() - {key.casefold() for key in known}))

    def refuse_unknown(self, known: Iterable[str]) -> None:
        """Record a problem with every key that is not known, for objects that are weft's own."""
        keys = tuple(known)
        for key in self.unknown(keys):
            self.problem(key, f"is unknown{similar(key, keys)}; the keys are {', '.join(keys)}")

    def at(self, key: str) -> str:
        """The path of a key, for messages."""
        return f"{self.path}.{key}" if self.path else key

    def raw(self, key: str) -> object:
        """The value as decoded, None if absent."""
        if self.problems.asked is not None:
            self.problems.asked.add(self.at(key))
        return self._keys.get(key.casefold())

    def problem(self, key: str, sentence: str) -> None:
        """Record a problem with the value of ``key``: "KEY VALUE sentence"."""
        self.problems.add(f"{self.at(key)} {quoted(self.raw(key))} {sentence}")

    def text(self, key: str, default: str = "", *, choices: Iterable[str] = ()) -> str:
        value = self.raw(key)
        if value is None:
            return default
        allowed = tuple(choices)
        if not isinstance(value, str):
            self.problem(key, "must be a string")
            return default
        if allowed and value not in allowed:
            self.problem(key, f"must be one of {', '.join(repr(str(word)) for word in allowed)}")
            return default
        return value

    def flag(self, key: str, default: bool = False) -> bool:
        value = self.raw(key)
        if value is None:
            return default
        if not isinstance(value, bool):
            self.problem(key, "must be true or false")
            return default
        return value

    def integer(self, key: str, *, least: int | None = None, most: int | None = None) -> int | None:
        """An integer; 1400.0 is not one, as in Go."""
        value = self.raw(key)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int):
            self.problem(key, "must be a whole number")
            return None
        if (least is not None and value < least) or (most is not None and value > most):
            low, high = "any" if least is None else least, "any" if most is None else most
            self.problem(key, f"must be between {low} and {high}")
            return None
        return value

    def section(self, key: str) -> Section:
        """The object under ``key``, empty if absent."""
        return Section(self.raw(key), self.at(key), self.problems)

    def items(self, key: str) -> list[object]:
        """The list under ``key``, empty if absent."""
        value = self.raw(key)
        if value is None:
            return []
        if not isinstance(value, list):
            self.problem(key, "must be a list")
            return []
        return value

    def sections(self, key: str) -> list[Section]:
        """The list of objects under ``key``."""
        return [
            Section({} if item is None else item, f"{self.at(key)}[{index}]", self.problems)
            for index, item in enumerate(self.items(key))
        ]

    def texts(self, key: str, *, choices: Iterable[str] = ()) -> tuple[str, ...]:
        """The list of strings under ``key``; () if it is empty or absent, which ``in`` tells apart."""
        values = self.items(key)
        texts = tuple(item for item in values if isinstance(item, str))
        if len(texts) < len(values):
            self.problem(key, "must be a list of strings")
            return ()
        allowed = tuple(choices)
        if allowed and not set(texts) <= set(allowed):
            self.problem(key, f"must be a list of {', '.join(repr(word) for word in allowed)}")
            return ()
        return texts

    def address(self, key: str) -> Address | None:
        text = self.text(key)
        return self.parse_address(key, text) if text else None

    def parse_address(self, key: str, text: str) -> Address | None:
        """Parse an IP address found under ``key``."""
        try:
            value = ip_address(text)
        except ValueError:
            self.problems.add(f"{self.at(key)} {quoted(text)} is not an IP address")
            return None
        if getattr(value, "scope_id", None):
            self.problems.add(f"{self.at(key)} {quoted(text)} must not have a zone index")
            return None
        return value

    def subnet(self, key: str) -> Subnet | None:
        """An IP network without host bits."""
        text = self.text(key)
        if not text:
            return None
        try:
            if "/" not in text:
                raise ValueError("no prefix length")
            return ip_network(text)
        except ValueError as error:
            network = _without_host_bits(text)
            better = f"; did you mean {network}?" if network else ""
            self.problem(key, f"is not a subnet ({str(error).split(': ')[-1]}){better}")
            return None

    def cidr(self, key: str) -> Cidr | None:
        text = self.text(key)
        return self.parse_cidr(key, text) if text else None

    def parse_cidr(self, key: str, text: str) -> Cidr | None:
        """Parse an address with a prefix length found under ``key``."""
        try:
            if "/" not in text or "%" in text:
                raise ValueError("no prefix length")
            return ip_interface(text)
        except ValueError:
            self.problems.add(f"{self.at(key)} {quoted(text)} is not an address with a prefix length, like 10.1.0.5/24")
            return None


def _without_host_bits(text: str) -> str:
    """The network that an address with a prefix length is in, "" if the text is neither."""
    try:
        return str(ip_network(text, strict=False)) if "/" in text else ""
    except ValueError:
        return ""
