"""From virtual services to set and map elements, and the changes between two states. Pure.

Keys and data are in the kernel's layout: parts in network order, padded to four bytes; slot
numbers, which the kernel computes, in host order.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from ipaddress import ip_address

from discovery.balancer import algorithms
from discovery.balancer.desired import Backend, BalancePolicy, Frontend, VirtualService
from discovery.balancer.rules import (
    COUNTERS,
    HAIRPIN_SELF,
    HASHED_SIZES,
    LOCAL_BACKENDS,
    PORT_SLOTS,
    PORTS,
    REMOTE_BACKENDS,
    ROUND_ROBIN,
    SERVICES,
    SIZES,
    SLOTS,
    SOURCE_HASH,
    STICKY_SIZES,
    STICKY_SLOTS,
    VIRTUAL_IPS,
)
from weft.service_options import Algorithm

Key = tuple[str, bytes]
Data = bytes | str

_NUMBERS = {"tcp": 6, "udp": 17}
_NAMES = {number: name for name, number in _NUMBERS.items()}
_LENGTHS = {4: 4, 6: 16}
_HASHED_SLOTS = 251  # slots of tables that hash, until there are so many instances that shares would be uneven
_MANY_INSTANCES = 100
_HASHED = {Algorithm.SOURCE: SOURCE_HASH, Algorithm.MAGLEV: "maglev"}


@dataclass(frozen=True, slots=True)
class SlotTable:
    """A frontend's verdict and slots: the algorithm's chain, and the backend of each slot."""

    chain: str
    slots: tuple[Backend, ...]


@dataclass(slots=True)
class ElementChange:
    """Elements to delete, then to add, in one transaction, and backends affected."""

    delete: list[Key] = field(default_factory=list)
    add: list[tuple[str, bytes, Data]] = field(default_factory=list)
    removed: dict[Frontend, frozenset[Backend]] = field(default_factory=dict)
    """Backends removed from frontends."""
    added: list[Frontend] = field(default_factory=list)
    """New frontends."""


class Program:
    """The desired contents of the table. Changes are computed first, and committed once written."""

    def __init__(self) -> None:
        self.tables: dict[Frontend, SlotTable] = {}
        self.services: dict[str, VirtualService] = {}
        self._owners: dict[Frontend, str] = {}
        self._address_holders: dict[Key, dict[str, Data]] = {}
        """Elements shared by services, with the services that need them."""

    def owner(self, frontend: Frontend) -> str:
        """The service that owns a frontend; "" if none."""
        return self._owners.get(frontend, "")

    def tables_for(
        self, service: VirtualService, connections: Mapping[str, int] | None = None
    ) -> tuple[dict[Frontend, SlotTable], tuple[Frontend, ...]]:
        """A service's slot tables, and frontends owned by other services. ``connections`` is by
        backend.
        """
        found: dict[Frontend, SlotTable] = {}
        conflicts: list[Frontend] = []
        for group in service.groups:
            mine = [
                frontend for frontend in group.frontends if self._owners.get(frontend, service.name) == service.name
            ]
            conflicts += [frontend for frontend in group.frontends if frontend not in mine]
            by_name = {backend.name: backend for backend, _ in group.backends}
            weights: dict[str, float] = {backend.name: weight for backend, weight in group.backends if weight}
            if not weights:
                continue
            for virtual in (True, False):
                selected = [frontend for frontend in mine if (frontend.address is not None) == virtual]
                if not selected:
                    continue
                # Published ports have no sticky map: the client's address decides instead.
                policy = service.policy
                if not virtual and policy.algorithm is Algorithm.STICKY:
                    policy = BalancePolicy(Algorithm.SOURCE, slots=policy.slots)
                held = self.tables.get(selected[0])
                chain, slots = self._assign_slots(policy, weights, held, connections or {})
                table = SlotTable(chain, tuple(by_name[name] for name in slots))
                found.update(dict.fromkeys(selected, table))
        return found, tuple(conflicts)

    def change(self, name: str, service: VirtualService | None, tables: Mapping[Frontend, SlotTable]) -> ElementChange:
        """The change from a service's current state to the desired one."""
        change = ElementChange()
        before = self.services.get(name)
        for frontend in frontends(before):
            if frontend not in tables and frontend in self.tables and self._owners.get(frontend) == name:
                _diff_tables(change, frontend, self.tables[frontend], None)
        for frontend, table in tables.items():
            _diff_tables(change, frontend, self.tables.get(frontend), table)
        old, new = dict(_address_elements(before)), dict(_address_elements(service))
        for key, data in new.items():
            kernel = self._address_holders.get(key, {})
            if data not in kernel.values():
                if kernel:
                    change.delete.append(key)
                change.add.append((*key, data))
        for key in old.keys() - new.keys():
            if len(self._address_holders.get(key, {})) == 1:
                change.delete.append(key)
        return change

    def commit(self, name: str, service: VirtualService | None, tables: Mapping[Frontend, SlotTable]) -> None:
        """Record that the change has been written."""
        before = self.services.get(name)
        for frontend in frontends(before):
            if self._owners.get(frontend) == name:
                del self._owners[frontend]
                self.tables.pop(frontend, None)
        new = dict(_address_elements(service))
        for key, _ in _address_elements(before):
            holders = self._address_holders.get(key)
            if holders is not None and key not in new:
                holders.pop(name, None)
                if not holders:
                    del self._address_holders[key]
        for key, data in new.items():
            holders = self._address_holders.setdefault(key, {})
            for other in holders:  # the latest data wins
                holders[other] = data
            holders[name] = data
        if service is None:
            self.services.pop(name, None)
            return
        self.services[name] = service
        for frontend in frontends(service):
            self._owners.setdefault(frontend, name)
        self.tables.update(tables)

    def elements(self) -> dict[Key, Data]:
        """All desired elements."""
        found: dict[Key, Data] = {key: next(iter(holders.values())) for key, holders in self._address_holders.items()}
        for frontend, table in self.tables.items():
            found.update(_table_elements(frontend, table))
        return found

    def adopt(self, kernel: Mapping[Key, Data]) -> None:
        """Adopt the kernel's tables, so that backends keep their slots."""
        self.tables = dict(decode_tables(kernel))

    # Slot assignment

    def _assign_slots(
        self, policy: BalancePolicy, weights: dict[str, float], held: SlotTable | None, connections: Mapping[str, int]
    ) -> tuple[str, tuple[str, ...]]:
        """The chain, and the backend name of each slot."""
        slots = tuple(backend.name for backend in held.slots) if held is not None else ()
        algorithm, count = policy.algorithm, len(weights)
        asked = policy.slots if policy.slots >= count else 0  # every instance has a slot at least
        if algorithm in _HASHED:
            size = asked if asked in HASHED_SIZES else _HASHED_SLOTS if count <= _MANY_INSTANCES else SIZES[-1]
            return f"{_HASHED[algorithm]}{size}", algorithms.maglev(weights, size)
        if algorithm is Algorithm.STICKY:
            size = asked if asked in STICKY_SIZES else algorithms.table_size([1.0] * count, STICKY_SIZES)
            return f"sticky{policy.sticky}_{size}", algorithms.weighted(weights, size, slots)
        if algorithm is Algorithm.RANDOM:
            weights = dict.fromkeys(weights, 1.0)
        if algorithm is Algorithm.ROUND_ROBIN:
            size = max(asked, SIZES[1]) if asked else algorithms.table_size(list(weights.values()), SIZES[1:])
            return f"{ROUND_ROBIN}{self._counter(held)}_{size}", algorithms.round_robin(weights, size)
        if algorithm is Algorithm.LEAST_CONNECTIONS:
            size = asked or (_HASHED_SLOTS if count <= _MANY_INSTANCES else SIZES[-1])
            return f"random{size}", algorithms.weighted(algorithms.least_connections(weights, connections), size, slots)
        size = asked or algorithms.table_size(list(weights.values()), SIZES)
        return f"random{size}", algorithms.weighted(weights, size, slots)

    def _counter(self, held: SlotTable | None) -> int:
        """The least used counter chain; a service keeps its own."""
        if held is not None and held.chain.startswith(ROUND_ROBIN):
            return int(held.chain[len(ROUND_ROBIN) :].partition("_")[0])
        used = [0] * COUNTERS
        for table in self.tables.values():
            if table.chain.startswith(ROUND_ROBIN):
                used[int(table.chain[len(ROUND_ROBIN) :].partition("_")[0])] += 1
        return used.index(min(used))


def frontends(service: VirtualService | None) -> tuple[Frontend, ...]:
    """The frontends of a service."""
    return tuple(frontend for group in service.groups for frontend in group.frontends) if service else ()


def dispatch_key(frontend: Frontend) -> tuple[str, bytes]:
    """The verdict map of a frontend, and its key there."""
    ending = bytes([_NUMBERS[frontend.protocol], 0, 0, 0]) + frontend.port.to_bytes(2, "big") + b"\0\0"
    if frontend.address is None:
        return PORTS[frontend.version], ending
    return SERVICES[frontend.version], frontend.address.packed + ending


def slot_map(frontend: Frontend, chain: str) -> str:
    """The slot map of a frontend."""
    if frontend.address is None:
        return PORT_SLOTS[frontend.version]
    return (STICKY_SLOTS if chain.startswith("sticky") else SLOTS)[frontend.version]


def decode_tables(kernel: Mapping[Key, Data]) -> Iterator[tuple[Frontend, SlotTable]]:
    """The slot tables in elements; incomplete ones are left out."""
    chains = {(name, key): data for (name, key), data in kernel.items() if isinstance(data, str)}
    slots: dict[tuple[str, bytes], dict[int, Backend]] = {}
    for (name, key), data in kernel.items():
        version = int(name[-1]) if name[-1] in "46" else 0
        if name in (SLOTS.get(version), STICKY_SLOTS.get(version), PORT_SLOTS.get(version)) and isinstance(data, bytes):
            length = _LENGTHS[version]
            backend = Backend(ip_address(data[:length]), int.from_bytes(data[length : length + 2], "big"))
            slots.setdefault((name, key[:-4]), {})[int.from_bytes(key[-4:], sys.byteorder)] = backend
    for version in (4, 6):
        for name in (SERVICES[version], PORTS[version]):
            for (_, key), chain in ((place, chain) for place, chain in chains.items() if place[0] == name):
                length = len(key) - 8
                if key[length] not in _NAMES:
                    continue
                address = ip_address(key[:length]) if length else None
                port = int.from_bytes(key[length + 4 : length + 6], "big")
                frontend = Frontend(address, version, _NAMES[key[length]], port)
                found = slots.get((slot_map(frontend, str(chain)), key), {})
                if found and sorted(found) == list(range(len(found))):
                    yield frontend, SlotTable(str(chain), tuple(found[number] for number in range(len(found))))


def _backend_data(backend: Backend) -> bytes:
    return backend.address.packed + backend.port.to_bytes(2, "big") + b"\0\0"


def _table_elements(frontend: Frontend, table: SlotTable) -> Iterator[tuple[Key, Data]]:
    where, key = dispatch_key(frontend)
    yield (where, key), table.chain
    name = slot_map(frontend, table.chain)
    data = {backend: _backend_data(backend) for backend in set(table.slots)}
    for number, backend in enumerate(table.slots):
        yield (name, key + number.to_bytes(4, sys.byteorder)), data[backend]


def _diff_tables(change: ElementChange, frontend: Frontend, old: SlotTable | None, new: SlotTable | None) -> None:
    """The elements that differ between two tables of a frontend."""
    where, key = dispatch_key(frontend)
    if old is None:
        change.added.append(frontend)
    gone = (frozenset(old.slots) if old else frozenset()) - (frozenset(new.slots) if new else frozenset())
    if gone:
        change.removed[frontend] = gone
    if old == new:
        return
    same_map = old is not None and new is not None and slot_map(frontend, old.chain) == slot_map(frontend, new.chain)
    if old is not None and (new is None or old.chain != new.chain):
        change.delete.append((where, key))
    if new is not None and (old is None or old.chain != new.chain):
        change.add.append((where, key, new.chain))
    before = old.slots if old else ()
    after = new.slots if new else ()
    data = {backend: _backend_data(backend) for backend in set(after)}
    for number in range(max(len(before), len(after))):
        was = before[number] if number < len(before) else None
        is_ = after[number] if number < len(after) else None
        if same_map and was is not None and is_ is not None and (was.address, was.port) == (is_.address, is_.port):
            continue
        slot = key + number.to_bytes(4, sys.byteorder)
        if was is not None and old is not None:
            change.delete.append((slot_map(frontend, old.chain), slot))
        if is_ is not None and new is not None:
            change.add.append((slot_map(frontend, new.chain), slot, data[is_]))


def _address_elements(service: VirtualService | None) -> Iterable[tuple[Key, Data]]:
    """Elements by address: virtual addresses, and backends with connections."""
    if service is None:
        return
    for address in service.addresses:
        yield (VIRTUAL_IPS[address.version], address.packed), b""
    for group in service.groups:
        for backend, _ in group.backends:
            protocol = bytes([_NUMBERS[group.frontends[0].protocol], 0, 0, 0])
            version, packed = backend.address.version, backend.address.packed
            key = packed + protocol + backend.port.to_bytes(2, "big") + b"\0\0"
            yield ((LOCAL_BACKENDS if backend.local else REMOTE_BACKENDS)[version], key), b""
            yield (HAIRPIN_SELF[version], packed + packed), b""
