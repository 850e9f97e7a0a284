"""``Ruleset`` in memory, with the errors that nf_tables returns."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_network

from weft.errors import Missing
from weft.identity import mark_digest
from weft.kernel.canonical import listed, normal
from weft.kernel.fake.calls import CallLog
from weft.kernel.nft.limits import checked_limit
from weft.kernel.nft.text import checked, conflict, rendered
from weft.kernel.schema import Shape, Tables
from weft.kernel.values import Element, Scalar

Key = tuple[Scalar, ...]


class FakeRuleset(CallLog):
    """The tables as they were installed, and each set or map as a dict of elements by key."""

    def __init__(self) -> None:
        super().__init__()
        self._tables: Tables | None = None
        self._shapes: dict[str, Shape] = {}
        self._held: dict[str, dict[Key, Element]] = {}

    def dump(self) -> dict[str, dict[str, str]]:
        """All elements by set and key, as text to compare states."""
        return {
            name: {_text(key): f"{_text(element.data)} {element.mark}".strip() for key, element in _sorted_items(held)}
            for name, held in sorted(self._held.items())
        }

    def close(self) -> None: ...

    def lacks(self, tables: Tables) -> str | None:
        self.called("lacks")
        if self._tables is None:
            return "the table inet weft is missing"
        return None if self._tables.text == tables.text else "the table inet weft is not as it should be"

    def install(self, tables: Tables) -> None:
        self.called("install")
        self._held = {
            name: {
                key: replace(element, collection=name)
                for old in (*tables.sets[name].formerly, name)
                if (held := self._shapes.get(old)) is not None and replace(held, name=name) == shape
                for key, element in self._held[old].items()
            }
            for name, shape in tables.shapes.items()
        }
        self._tables, self._shapes = tables, tables.shapes

    def remove(self) -> None:
        self.called("remove")
        self._tables, self._shapes, self._held = None, {}, {}

    def add(self, elements: Iterable[Element]) -> None:
        self.called("add")
        wanted: dict[tuple[str, Key], Element] = {}
        for element in [checked(element) for element in elements]:
            if not self._fits(element):
                raise Missing(f"weft's tables have no set or map {element.collection}", hint="install the rules")
            key = normal(element.key)
            existing = self._held[element.collection].get(key) or wanted.get((element.collection, key))
            existing = existing or self._covering(element)
            if existing is not None and not _same(element, existing):
                raise conflict(element, existing)
            wanted[element.collection, key] = element
        for (collection, key), element in wanted.items():
            self._held[collection][key] = listed(element)

    def delete(self, elements: Iterable[Element]) -> None:
        self.called("delete")
        for element in [element for element in [checked(element) for element in elements] if self._fits(element)]:
            existing = self._held[element.collection].get(normal(element.key))
            if existing is not None and existing.mark == element.mark:
                del self._held[element.collection][normal(element.key)]

    def existing(self, elements: Iterable[Element]) -> tuple[Element, ...]:
        self.called("existing")
        found = ((element.key, self._held.get(element.collection, {})) for element in map(checked, elements))
        return tuple(held[key] for key, held in found if key in held)

    def at(self, collection: str, key: tuple[Scalar, ...]) -> Element | None:
        self.called("at")
        if collection not in self._held:
            raise Missing(f"weft's tables have no set or map {collection!r}")
        return self._held[collection].get(key)

    def missing(self, elements: Iterable[Element]) -> tuple[Element, ...]:
        self.called("missing")
        return tuple(element for element in [checked(element) for element in elements] if not self._has(element))

    def elements(self, collection: str) -> tuple[Element, ...]:
        self.called("elements")
        if collection not in self._held:
            raise Missing(f"weft's tables have no set or map {collection!r}")
        return tuple(self._held[collection].values())

    def mark_digests(self, collection: str) -> frozenset[str]:
        self.called("mark_digests")
        if collection not in self._held:
            raise Missing(f"weft's tables have no set or map {collection!r}")
        return frozenset(mark_digest(one.mark) for one in self._held[collection].values()) - {""}

    def exceeded(self, collection: str) -> tuple[tuple[Element, int], ...]:
        return tuple((element, 0) for element in self.elements(collection))

    def drops(self) -> dict[tuple[str, str, str], int]:
        return {}

    def collections(self) -> tuple[str, ...]:
        self.called("collections")
        return tuple(self._held)

    def once(self) -> FakeRuleset:
        return self

    def _has(self, element: Element) -> bool:
        if not self._fits(element):
            return False
        existing = self._held[element.collection].get(normal(element.key))
        return existing is not None and _same(element, existing)

    def _fits(self, element: Element) -> bool:
        """Whether the set or map exists. Raises KernelRefused for fields of the wrong type."""
        shape = self._shapes.get(element.collection)
        if shape is None:
            return False
        rendered(element.key, shape.key, shape)
        rendered(element.data, shape.data, shape)
        checked_limit(shape.limit, element.limit, shape.name)
        return True

    def _covering(self, element: Element) -> Element | None:
        """The element of an interval set that contains the start of a new one, a conflict."""
        if "interval" not in self._shapes[element.collection].flags:
            return None
        held = self._held[element.collection].values()
        return next((one for one in held if all(map(_starts_in, element.key, one.key))), None)


def _sorted_items(held: dict[Key, Element]) -> list[tuple[Key, Element]]:
    return sorted(held.items(), key=lambda item: _text(item[0]))


def _same(element: Element, existing: Element) -> bool:
    return listed(element) == listed(existing)


def _starts_in(part: Scalar, other: Scalar) -> bool:
    """Whether the first address is in the other subnet."""
    if not isinstance(part, (IPv4Address, IPv4Network, IPv6Address, IPv6Network)):
        return part == other
    return ip_network(part)[0] in ip_network(other)


def _text(parts: Key) -> str:
    return " . ".join(str(part) for part in parts)
