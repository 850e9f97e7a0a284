"""The catalog: an in-memory replica of the store, read by DNS, HTTP, checks and the balancer.

It applies the store's changes one revision at a time. For each *topic* (the instances of one
service, the health of one service, the list of services …) it remembers the last revision that
changed it, so that blocking queries wake for their own topics only.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from ipaddress import IPv6Address

from discovery import layout
from discovery.layout import DecodeError, decode
from discovery.structs import CatalogEntry, Check, Health, Instance, Node, PreparedQuery, VirtualAddress
from store import Batch, Entry, Event

Topic = tuple[str, str]
"""What can be waited for: a kind and a name."""

SERVICES: Topic = ("services", "")
"""The list of all services with their tags."""
INSTANCES: Topic = ("instances", "")
"""All instances of all services, with all that is registered of them."""
NODES: Topic = ("nodes", "")
CHECKS: Topic = ("checks", "")
VIRTUALS: Topic = ("virtuals", "")
QUERIES: Topic = ("queries", "")
"""All prepared queries."""

_STEP = 500  # entries that are loaded without a pause

Listener = Callable[[int, frozenset[Topic]], None]


def service(name: str) -> Topic:
    """The instances of one service and their nodes."""
    return ("service", name)


def health(name: str) -> Topic:
    """The instances of one service, their nodes and all their checks."""
    return ("health", name)


def node(name: str) -> Topic:
    """A node and its instances."""
    return ("node", name)


def node_checks(name: str) -> Topic:
    """All checks on a node."""
    return ("node checks", name)


def virtual(name: str) -> Topic:
    """The virtual addresses of a service."""
    return ("virtual", name)


class Catalog:
    """Nodes, instances, checks and virtual addresses, indexed. Not thread-safe."""

    def __init__(self) -> None:
        self.index = 1
        """The last revision applied; at least 1, since clients take an index of 0 for none."""
        self.undecodable: dict[str, str] = {}
        """Keys that could not be decoded, and why."""
        self._nodes: dict[str, Node] = {}
        self._by_service: dict[str, dict[tuple[str, str], Instance]] = {}
        self._spellings: dict[str, set[str]] = {}
        self._by_node: dict[str, dict[str, Instance]] = {}
        self._checks: dict[str, dict[str, Check]] = {}
        self._checks_by_target: dict[tuple[str, str], dict[str, Check]] = {}
        self._virtuals: dict[str, VirtualAddress] = {}
        self._queries: dict[str, PreparedQuery] = {}
        self._virtuals_by_service: dict[str, dict[str, VirtualAddress]] = {}
        self._by_address: dict[str, set[tuple[str, str]]] = {}
        self._initial_revision = 1
        self._changed: dict[Topic, int] = {}
        self._topic_waiters: dict[Topic, set[asyncio.Event]] = {}
        self._revision_waiters: dict[asyncio.Event, int] = {}
        self._listeners: list[Listener] = []

    # Queries

    def services(self) -> dict[str, tuple[str, ...]]:
        """Every service with the tags of all its instances, both sorted."""
        return {
            name: tuple(sorted({tag for instance in found.values() for tag in instance.tags}))
            for name, found in sorted(self._by_service.items())
        }

    def names(self) -> Iterable[str]:
        """The names of all services, unsorted."""
        return self._by_service.keys()

    def spellings(self, name: str) -> tuple[str, ...]:
        """The services with this name, case-insensitive, sorted: ``("Web", "web")``."""
        return tuple(sorted(self._spellings.get(name.lower(), ())))

    def health_of_any_case(self, name: str) -> tuple[Health, ...]:
        """The instances of all services with this name, case-insensitive, sorted by node and id."""
        names = self.spellings(name)
        if len(names) == 1:
            return self.health(names[0])
        return tuple(sorted((one for each in names for one in self.health(each)), key=lambda one: one.instance.order))

    def instances(self, name: str) -> tuple[Instance, ...]:
        """The instances of a service, sorted by node and id; () if there is none."""
        found = self._by_service.get(name, {})
        return tuple(found[key] for key in sorted(found))

    def health(self, name: str) -> tuple[Health, ...]:
        """The instances with nodes and checks; those whose node is unknown are left out."""
        found = []
        for instance in self.instances(name):
            where = self._nodes.get(instance.node)
            if where is not None:
                found.append(Health(where, instance, self.checks_of(instance)))
        return tuple(found)

    def checks_of(self, instance: Instance) -> tuple[Check, ...]:
        """The checks of an instance: its own, then those of its node, each sorted by id."""
        own = self._checks_by_target.get((instance.node, instance.id), {})
        general = self._checks_by_target.get((instance.node, ""), {}) if instance.id else {}
        return tuple(found[key] for found in (own, general) for key in sorted(found))

    def nodes(self) -> tuple[Node, ...]:
        """All nodes, sorted by name."""
        return tuple(self._nodes[name] for name in sorted(self._nodes))

    def node(self, name: str) -> Node | None:
        """A node by name, case-insensitive; None if there is none."""
        found = self._nodes.get(name)
        if found is None:
            wanted = name.lower()
            found = next((one for key, one in self._nodes.items() if key.lower() == wanted), None)
        return found

    def node_instances(self, name: str) -> tuple[Instance, ...]:
        """The instances on a node, sorted by id."""
        found = self._by_node.get(name, {})
        return tuple(found[key] for key in sorted(found))

    def instance(self, node_name: str, instance_id: str) -> Instance | None:
        """An instance by node and id; None if there is none."""
        return self._by_node.get(node_name, {}).get(instance_id)

    def checks(self) -> tuple[Check, ...]:
        """All checks, sorted by node and id."""
        return tuple(check for name in sorted(self._checks) for check in self.node_checks(name))

    def node_checks(self, name: str) -> tuple[Check, ...]:
        """All checks on a node, including those of its services, sorted by id."""
        found = self._checks.get(name, {})
        return tuple(found[key] for key in sorted(found))

    def check(self, node_name: str, check_id: str) -> Check | None:
        """A check by node and id; None if there is none."""
        return self._checks.get(node_name, {}).get(check_id)

    def virtual_addresses(self, name: str) -> tuple[VirtualAddress, ...]:
        """The virtual addresses of a service, IPv4 before IPv6."""
        found = self._virtuals_by_service.get(name, {})
        return tuple(sorted(found.values(), key=lambda one: (":" in one.address, one.address)))

    def virtual_address_service(self, address: str) -> str:
        """The service of a virtual address; "" if there is none."""
        found = self._virtuals.get(address)
        return found.service if found else ""

    def all_virtual_addresses(self) -> Mapping[str, VirtualAddress]:
        """Every virtual address."""
        return self._virtuals

    def queries(self) -> Mapping[str, PreparedQuery]:
        """The prepared queries by id."""
        return self._queries

    def find_by_address(self, address: str) -> tuple[Node | Instance, ...]:
        """Nodes, then instances, with this address, however it is written."""
        holders = self._by_address.get(_canonical(address), set())
        found: list[Node | Instance] = []
        for node_name, instance_id in sorted(holders):
            one = self.instance(node_name, instance_id) if instance_id else self._nodes.get(node_name)
            if one is not None:
                found.append(one)
        return tuple(sorted(found, key=lambda one: isinstance(one, Instance)))

    # Changes

    def changed(self, *topics: Topic) -> int:
        """The last revision that changed one of these topics.

        For topics unchanged since the start it is the revision of the start, so that indexes do not
        decrease over a restart.
        """
        return max(
            (self._changed.get(topic, self._initial_revision) for topic in topics), default=self._initial_revision
        )

    async def wait_for_revision(self, revision: int, seconds: float) -> bool:
        """Wait until this revision has been applied; False on timeout."""
        if self.index >= revision:
            return True
        event = asyncio.Event()
        self._revision_waiters[event] = revision
        try:
            async with asyncio.timeout(seconds):
                await event.wait()
        except TimeoutError:
            return False
        finally:
            del self._revision_waiters[event]
        return True

    async def wait(self, topics: Iterable[Topic], after: int, seconds: float) -> bool:
        """Wait until one of the topics changes after this revision; False on timeout."""
        wanted = tuple(topics)
        if self.changed(*wanted) > after:
            return True
        event = asyncio.Event()
        for topic in wanted:
            self._topic_waiters.setdefault(topic, set()).add(event)
        try:
            async with asyncio.timeout(seconds):
                await event.wait()
        except TimeoutError:
            return False
        finally:
            for topic in wanted:
                waiting = self._topic_waiters[topic]
                waiting.discard(event)
                if not waiting:
                    del self._topic_waiters[topic]
        return True

    def subscribe(self, listener: Listener) -> Callable[[], None]:
        """Call ``listener`` after each revision with the topics it changed; returns an unsubscribe
        function.
        """
        self._listeners.append(listener)
        return lambda: self._listeners.remove(listener)

    def load(self, entries: Iterable[Entry], revision: int) -> None:
        """Replace the contents by these entries, as of a revision."""
        for _ in self.loading(entries, revision):
            pass

    def loading(self, entries: Iterable[Entry], revision: int) -> Iterator[None]:
        """``load`` in steps of some milliseconds, if there is nothing yet."""
        if self._initial_revision == 1:
            self._initial_revision = max(1, revision)
        held = {layout.store_key(value): value for value in self.entries()}
        if not held:
            yield from self._fill(entries, revision)
            return
        found = {entry.key: entry for entry in entries}
        events = [Event(key, None, None, revision) for key in held if key not in found] + [
            Event(key, entry, None, entry.mod_revision)
            for key, entry in found.items()
            if key not in held or modified(held[key]) != entry.mod_revision
        ]
        self.apply(Batch(revision, tuple(events)))

    def _fill(self, entries: Iterable[Entry], revision: int) -> Iterator[None]:
        """Load an empty catalog: what has changed is everything, not noted for each entry."""
        for number, entry in enumerate(entries, 1):
            self._apply(entry.key, entry)
            if not number % _STEP:
                yield
        named = ((kind, name) for name in self._by_service for kind in ("service", "health"))
        nodes = ((kind, name) for name in self._nodes for kind in ("node", "node checks"))
        virtuals = map(virtual, self._virtuals_by_service)
        self._note(revision, {SERVICES, INSTANCES, NODES, CHECKS, VIRTUALS, QUERIES, *named, *nodes, *virtuals})

    def apply(self, batch: Batch) -> None:
        """Apply the changes of one revision, then wake waiters and call listeners."""
        touched: set[Topic] = set()
        for event in batch.events:
            touched.update(self._apply(event.key, event.entry))
        self._note(batch.revision, touched)

    def _note(self, changed: int, touched: set[Topic]) -> None:
        """Wake waiters and call listeners: a revision has changed these topics."""
        # Whoever waits for a service by another spelling waits for its name in lower case.
        touched |= {(kind, name.lower()) for kind, name in touched if kind in ("service", "health")}
        self.index = max(self.index, changed)
        for arriving, revision in self._revision_waiters.items():
            if revision <= self.index:
                arriving.set()
        for topic in touched:
            self._changed[topic] = changed
            for waiting in self._topic_waiters.get(topic, ()):
                waiting.set()
        if touched:
            topics = frozenset(touched)
            for listener in tuple(self._listeners):
                listener(changed, topics)

    def _apply(self, key: str, entry: Entry | None) -> Sequence[Topic]:
        """Apply one change; returns the topics it changes."""
        kind, names = layout.split_key(key)
        change = _HANDLERS.get(kind)
        if change is None:
            return ()
        self.undecodable.pop(key, None)
        value: CatalogEntry | None = None
        if entry is not None:
            try:
                value = decode(entry, kind)
            except DecodeError as error:
                # Treated as missing: one malformed entry must not block the others.
                self.undecodable[key] = str(error)
        return tuple(change(self, names, value))

    def _put_node(self, names: tuple[str, ...], value: CatalogEntry | None) -> Iterator[Topic]:
        (name,) = names
        old = self._nodes.pop(name, None)
        if isinstance(value, Node):
            self._nodes[name] = value
        self._reindex_address((name, ""), old.address if old else "", value.address if isinstance(value, Node) else "")
        yield from (NODES, node(name))
        for instance in self._by_node.get(name, {}).values():
            yield from (service(instance.name), health(instance.name))

    def _put_instance(self, names: tuple[str, ...], value: CatalogEntry | None) -> Iterator[Topic]:
        node_name, name, instance_id = names
        instance_key = (node_name, instance_id)
        siblings = self._by_service.setdefault(name, {})
        old = siblings.pop(instance_key, None)
        here = self._by_node.setdefault(node_name, {})
        before = here.get(instance_id)  # under another name, if the id now belongs to another service
        if before is not None and before.name == name:
            del here[instance_id]
        new = value if isinstance(value, Instance) else None
        if new is not None:
            siblings[instance_key] = here[instance_id] = new
        if siblings:
            self._spellings.setdefault(name.lower(), set()).add(name)
        else:
            del self._by_service[name]
            spellings = self._spellings.get(name.lower(), set())
            spellings.discard(name)
            if not spellings:
                self._spellings.pop(name.lower(), None)
        if not here:
            del self._by_node[node_name]
        after = here.get(instance_id)
        self._reindex_address(instance_key, before.address if before else "", after.address if after else "")
        yield from (service(name), health(name), node(node_name), INSTANCES)
        if (old.tags if old else None) != (new.tags if new else None):
            yield SERVICES

    def _put_check(self, names: tuple[str, ...], value: CatalogEntry | None) -> Iterator[Topic]:
        node_name, check_id = names
        here = self._checks.setdefault(node_name, {})
        old = here.pop(check_id, None)
        new = value if isinstance(value, Check) else None
        if new is not None:
            here[check_id] = new
        if not here:
            del self._checks[node_name]
        yield from (CHECKS, node_checks(node_name))
        node_instances = self._by_node.get(node_name, {})
        for check in (old, new):
            if check is None:
                continue
            self._index_check(check, check is new)
            for instance_id in (check.service_id,) if check.service_id else tuple(node_instances):
                if instance_id in node_instances:
                    yield health(node_instances[instance_id].name)

    def _index_check(self, check: Check, present: bool) -> None:
        """Add or remove a check in the index by instance (or node)."""
        about = (check.node, check.service_id)
        found = self._checks_by_target.setdefault(about, {})
        found.pop(check.id, None)
        if present:
            found[check.id] = check
        if not found:
            del self._checks_by_target[about]

    def _put_virtual(self, names: tuple[str, ...], value: CatalogEntry | None) -> Iterator[Topic]:
        (address,) = names
        old = self._virtuals.pop(address, None)
        if old is not None:
            mine = self._virtuals_by_service[old.service]
            del mine[address]
            if not mine:
                del self._virtuals_by_service[old.service]
            yield virtual(old.service)
        if isinstance(value, VirtualAddress):
            self._virtuals[address] = value
            self._virtuals_by_service.setdefault(value.service, {})[address] = value
            yield virtual(value.service)
        yield VIRTUALS

    def _put_query(self, names: tuple[str, ...], value: CatalogEntry | None) -> Iterator[Topic]:
        (query_id,) = names
        self._queries.pop(query_id, None)
        if isinstance(value, PreparedQuery):
            self._queries[query_id] = value
        yield QUERIES

    def _reindex_address(self, holder: tuple[str, str], old: str, new: str) -> None:
        """Update the index by address."""
        if old == new:
            return
        old, new = _canonical(old), _canonical(new)
        if old and old in self._by_address:
            self._by_address[old].discard(holder)
            if not self._by_address[old]:
                del self._by_address[old]
        if new:
            self._by_address.setdefault(new, set()).add(holder)

    def entries(self) -> Iterator[CatalogEntry]:
        """Everything that it has."""
        yield from self._nodes.values()
        for instances in self._by_node.values():
            yield from instances.values()
        for checks in self._checks.values():
            yield from checks.values()
        yield from self._virtuals.values()
        yield from self._queries.values()


def _canonical(address: str) -> str:
    """An IPv6 address in the one form that it has by RFC 5952; other texts as they are."""
    if ":" not in address:
        return address
    try:
        return str(IPv6Address(address))
    except ValueError:
        return address


def modified(value: CatalogEntry) -> int:
    """The revision of an entry's last change."""
    return value.create_index if isinstance(value, VirtualAddress) else value.modify_index


_HANDLERS: dict[str, Callable[[Catalog, tuple[str, ...], CatalogEntry | None], Iterator[Topic]]] = {
    "node": Catalog._put_node,
    "service": Catalog._put_instance,
    "check": Catalog._put_check,
    "virtual": Catalog._put_virtual,
    "query": Catalog._put_query,
}
