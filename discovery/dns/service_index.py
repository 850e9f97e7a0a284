"""Services and nodes by lower-case name, and healthy instances by tag.

Everything whose cost grows with the instances of a service is computed once per change, not per
query.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

from discovery import catalog as topics
from discovery.catalog import Catalog, Topic
from discovery.dns.naming import ACE_PREFIX, unicode_label
from discovery.reach import seen_from
from discovery.structs import Health, Node, Status

Visible = Callable[[str, str], bool]
"""Whether queries may see a node or service, by ``node`` or ``service`` and its name."""


@dataclass(frozen=True, slots=True)
class IndexedService:
    """A service: its registered names (differing in case only) and its healthy instances.

    ``by_tag`` are the instances by lower-case tag; ``empty_non_terminals`` the names with only tags
    below.
    """

    names: tuple[str, ...]
    instances: tuple[Health, ...]
    by_tag: Mapping[bytes, tuple[Health, ...]]
    empty_non_terminals: frozenset[bytes]


class ServiceIndex:
    """Looks up services and nodes. ``only_passing`` excludes instances in warning state, ``visible``
    what queries may not see; instances are at the addresses that ``node`` reaches them at.
    """

    def __init__(self, catalog: Catalog, only_passing: bool, visible: Visible, node: str = "") -> None:
        self._node = node
        self._catalog = catalog
        self._visible = visible
        self._worst_rank = (Status.PASSING if only_passing else Status.WARNING).rank
        self._names: dict[bytes, set[str]] = {}
        self._services: dict[bytes, IndexedService] = {}
        self._nodes: dict[bytes, str] = {}
        self._empty_non_terminals: Counter[bytes] = Counter()
        self.update(topics.service(name) for name in catalog.names())
        self.update(topics.node(one.name) for one in catalog.nodes())

    def service(self, name: bytes) -> IndexedService | None:
        """A service by lower-case name; None if there is none."""
        if name not in self._names and name.startswith(ACE_PREFIX):
            name = unicode_label(name)
        found = self._services.get(name)
        if found is None:
            names = sorted(each for each in self._names.get(name, ()) if self._visible("service", each))
            if not names:
                return None
            found = self._services[name] = self._service(tuple(names))
        return found

    def node(self, name: bytes) -> Node | None:
        """A node by lower-case name; None if there is none."""
        found = self._nodes.get(name)
        if found is None and ACE_PREFIX in name:
            found = self._nodes.get(b".".join(map(unicode_label, name.split(b"."))))
        return self._catalog.node(found) if found is not None and self._visible("node", found) else None

    def is_empty_non_terminal(self, name: bytes) -> bool:
        """Whether node names end in this name: ``rack1`` for ``n2.rack1``."""
        return self._empty_non_terminals[name] > 0

    def update(self, changed: Iterable[Topic]) -> None:
        """Apply changes of the catalog."""
        for what, name in changed:
            lower = _fold(name)
            if what == "service":
                self._update_service(name, lower)
            elif what == "health":
                self._services.pop(lower, None)
            elif what == "node":
                self._update_node(name, lower)

    def _update_service(self, name: str, lower: bytes) -> None:
        self._services.pop(lower, None)
        names = self._names.setdefault(lower, set())
        if self._catalog.instances(name):
            names.add(name)
        else:
            names.discard(name)
        if not names:
            del self._names[lower]

    def _update_node(self, name: str, lower: bytes) -> None:
        node = self._catalog.node(name)
        if node is None:
            if self._nodes.pop(lower, None) is not None:
                self._empty_non_terminals.subtract(_parent_names(lower))
                self._empty_non_terminals += Counter()
        elif lower not in self._nodes:
            self._empty_non_terminals.update(_parent_names(lower))
            self._nodes[lower] = node.name
        else:
            self._nodes[lower] = node.name

    def _service(self, names: tuple[str, ...]) -> IndexedService:
        found = [
            one
            for name in names
            for one in (seen_from(self._node, each) for each in self._catalog.health(name))
            if one is not None and one.status.rank <= self._worst_rank and self._visible("node", one.node.name)
        ]
        by_tag: dict[bytes, list[Health]] = {}
        for one in found:
            for tag in dict.fromkeys(map(_fold, one.instance.tags)):
                by_tag.setdefault(tag, []).append(one)
        empty_non_terminals = frozenset(end for tag in by_tag for end in _parent_names(tag))
        return IndexedService(
            names, tuple(found), {tag: tuple(each) for tag, each in by_tag.items()}, empty_non_terminals
        )


def _fold(name: str) -> bytes:
    """Lower-case bytes as in DNS: ASCII letters only."""
    return name.encode("utf-8", "surrogateescape").lower()


def _parent_names(name: bytes) -> Iterator[bytes]:
    """The parent names: what follows each dot."""
    while b"." in name:
        name = name.partition(b".")[2]
        yield name
