"""Operations of transactions on nodes, services and checks.

Source: https://developer.hashicorp.com/consul/api-docs/txn; error messages are Consul's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from discovery.catalog import Catalog
from discovery.consul.json_fields import BadField
from discovery.consul.kv_txn import OperationFailed, Txn
from discovery.layout import decode, encode, host_prefix, store_key
from discovery.structs import CatalogEntry, Check, Instance, Node
from store import Delete, Put

VERBS = ("get", "set", "cas", "delete", "delete-cas")


@dataclass(frozen=True, slots=True)
class CatalogOperation:
    """One operation. ``value`` is what to write, or what names the entry to read or delete; cas and
    delete-cas compare ``index`` with its ModifyIndex.
    """

    verb: str
    value: Node | Instance | Check
    catalog: Catalog
    index: int = 0

    def subjects(self) -> Sequence[CatalogEntry]:
        """What it reads or writes, for the caller's permissions: the value, and what it replaces. A check
        is its service's.
        """
        value, catalog = self.value, self.catalog
        old: CatalogEntry | None
        match value:
            case Node():
                old = catalog.node(value.name)
            case Instance():
                old = catalog.instance(value.node, value.id)
            case Check():
                service = catalog.instance(value.node, value.service_id) if value.service_id else None
                value = replace(value, service_name=service.name) if service is not None else value
                old = catalog.check(value.node, value.id)
        if old is not None and self.verb in ("get", "delete", "delete-cas"):
            return (old,)
        return (value, old) if old is not None else (value,)

    async def run(self, txn: Txn) -> Sequence[CatalogEntry]:
        """Evaluate it in a transaction. Raises OperationFailed, BadField, StoreError."""
        if self.verb not in VERBS:
            raise BadField(f'unknown {_kind(self.value)} verb "{self.verb[:40]}"; known are {", ".join(VERBS)}')
        old = await self._old(txn)
        if self.verb == "get":
            if old is None:
                raise OperationFailed(f"{_described(self.value)} doesn't exist")
            return [old]
        delete = self.verb.startswith("delete")
        if self.verb.endswith("cas") and (old.modify_index if old is not None else 0) != self.index:
            raise OperationFailed(f"failed to {'delete' if delete else 'set'} {_described(self.value)}, index is stale")
        if delete:
            self._delete(txn, old)
            return []
        return [await self._set(txn, old)]

    async def _old(self, txn: Txn) -> Node | Instance | Check | None:
        """The entry as it is. An instance's key has its service's name, which only the catalog
        knows.
        """
        value = self.value
        if isinstance(value, Instance):
            pending = [one for one in txn.entries.values() if isinstance(one, Instance)]
            named = next((one for one in pending if (one.node, one.id) == (value.node, value.id)), None)
            value = named or self.catalog.instance(value.node, value.id) or value
        found = await _read(txn, value)
        return found if isinstance(found, Node | Instance | Check) else None

    def _delete(self, txn: Txn, old: Node | Instance | Check | None) -> None:
        if old is None:
            return
        removed: list[CatalogEntry] = [old]
        if isinstance(old, Node):
            removed += [*self.catalog.node_instances(old.name), *self.catalog.node_checks(old.name)]
        elif isinstance(old, Instance):
            removed += [one for one in self.catalog.node_checks(old.node) if one.service_id == old.id]
        keys = {store_key(one) for one in removed}
        if isinstance(old, Node):
            below = [host_prefix(old.name) + kind for kind in ("service/", "check/", "session/")]
            keys |= {key for key in txn.writes if key.startswith(tuple(below))}
            txn.deleted_prefixes += below
        for key in keys:
            txn.writes[key] = Delete(key)
            txn.entries[key] = None

    async def _set(self, txn: Txn, old: Node | Instance | Check | None) -> CatalogEntry:
        value = self.value
        lease = 0
        if not isinstance(value, Node):
            lease = await self._lease(txn, value.node)
        if isinstance(value, Check) and value.service_id:
            value = await self._with_service(txn, value)
        if isinstance(value, Node) and old is not None and await self._lease(txn, value.name):
            return old  # its agent says what the node is
        if isinstance(old, Instance) and isinstance(value, Instance) and old.name != value.name:
            txn.writes[store_key(old)] = Delete(store_key(old))
            txn.entries[store_key(old)] = None
            old = None
        indexes = (old.create_index, old.modify_index) if old is not None else (0, 0)
        value = replace(value, create_index=indexes[0], modify_index=indexes[1])
        key = store_key(value)
        if old is None or encode(value) != encode(old):
            txn.writes[key] = Put(key, encode(value), lease)
            txn.changed.add(key)
        txn.entries[key] = value
        return value

    async def _lease(self, txn: Txn, node: str) -> int:
        """The lease of a node, which must exist; 0 of one without an agent."""
        key = store_key(Node(node, ""))
        if await _read(txn, Node(node, "")) is None:
            raise OperationFailed(f'Missing node registration: there is no node "{node}"')
        entry = await txn.store.get(key)
        return entry.lease if entry is not None else 0

    async def _with_service(self, txn: Txn, check: Check) -> Check:
        operation = replace(self, value=Instance(check.node, check.service_id, ""))
        service = await operation._old(txn)
        if not isinstance(service, Instance):
            raise OperationFailed(f'Missing service registration: "{check.service_id}" is not on node "{check.node}"')
        return replace(check, service_name=service.name, service_tags=service.tags)


async def _read(txn: Txn, value: CatalogEntry) -> CatalogEntry | None:
    """An entry as read or written by this transaction, else from the store."""
    key = store_key(value)
    if key not in txn.entries:
        entry = await txn.store.get(key)
        txn.entries[key] = decode(entry) if entry is not None else None
        txn.expect(key, entry.mod_revision if entry is not None else 0)
    found: CatalogEntry | None = txn.entries[key]
    return found


def _kind(value: Node | Instance | Check) -> str:
    return {Node: "node", Instance: "service", Check: "check"}[type(value)]


def _described(value: Node | Instance | Check) -> str:
    if isinstance(value, Node):
        return f'node "{value.name}"'
    return f'{_kind(value)} "{value.id}" on node "{value.node}"'
