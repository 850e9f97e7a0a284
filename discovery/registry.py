"""The local registry: services and checks of this node, persisted and published (Consul's local
state).

What is registered through the API is persisted under ``/weft/v2/host/NODE/own/`` until
it is deregistered. What is published is bound to the node's lease and expires when the host dies. What
attachments register is not persisted: the attachments' records are the source of truth.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

from discovery import layout
from discovery.publication import Publication
from discovery.structs import (
    CONSUL_SERVICE,
    NODE_MAINT,
    SERF_HEALTH,
    SERVICE_MAINT_PREFIX,
    CatalogEntry,
    Check,
    CheckDefinition,
    Instance,
    Node,
    Status,
)
from store import LeaseGone, Operation, Store, StoreError

log = logging.getLogger(__name__)

CHECK_UPDATE_INTERVAL = 5.0
"""Changes of a check's output alone are published at most this often (check_update_interval)."""


class NotRegistered(LookupError):
    """No such service or check is registered on this node."""

    def __init__(self, what: str, name: str) -> None:
        super().__init__(f"{what} {name!r} is not registered on this node")
        self.what = what
        self.name = name


class Registry:
    """The services and checks of one node, in a ``local`` and a ``shared`` store (one on a single
    host).

    ``lease_seconds`` is how long the node stays published after its agent last renewed the lease.
    """

    def __init__(
        self, node: Node, local: Store, shared: Store, *, port: int = 8500, lease_seconds: float = 30.0
    ) -> None:
        self.node = node
        self._port = port
        self._lease_seconds = lease_seconds
        self._publication = Publication(node.name, local, shared, lease_seconds)
        self._instances: dict[str, Instance] = {}
        self._checks: dict[str, Check] = {}
        self._definitions: dict[str, CheckDefinition] = {}
        self._listeners: list[Callable[[], None]] = []
        self._update_listeners: list[Callable[[str, Status], None]] = []
        self._lock = asyncio.Lock()
        self._deferred: dict[str, float] = {}
        self._tasks: list[asyncio.Task[None]] = []

    # Queries

    def instances(self) -> dict[str, Instance]:
        """The instances by id, without the agent's own service (``consul``)."""
        return {name: one for name, one in self._instances.items() if name != CONSUL_SERVICE}

    def checks(self) -> dict[str, Check]:
        """The checks by id with their latest output, without the agent's own (``serfHealth``)."""
        return {name: one for name, one in self._checks.items() if name != SERF_HEALTH}

    def definitions(self) -> dict[str, CheckDefinition]:
        """The check definitions by id."""
        return dict(self._definitions)

    def subscribe(self, listener: Callable[[], None]) -> None:
        """Call ``listener`` whenever the check definitions have changed."""
        self._listeners.append(listener)

    def subscribe_updates(self, listener: Callable[[str, Status], None]) -> None:
        """Call ``listener`` with check id and status after each update, including unchanged
        ones.
        """
        self._update_listeners.append(listener)

    # Registration

    async def register(
        self, instance: Instance, checks: Sequence[CheckDefinition] = (), *, replace_checks: bool = False
    ) -> None:
        """Register an instance; one of the same id is updated, and checks that remain keep their
        status.

        ``replace_checks`` deregisters the instance's checks that are not given. Raises StoreError.
        """
        async with self._lock:
            await self._register(instance, checks, replace_checks, persist=True)

    async def deregister(self, instance_id: str) -> None:
        """Deregister an instance and its checks. Raises NotRegistered, StoreError."""
        async with self._lock:
            await self._deregister(self._registered_instance(instance_id))

    async def register_check(self, definition: CheckDefinition) -> None:
        """Register a check of an instance, or without ``service_id`` of the node. Raises
        NotRegistered, StoreError.
        """
        async with self._lock:
            instance = self._registered_instance(definition.service_id) if definition.service_id else None
            check = self._check(definition, instance)
            await self._write([self._persist_check(definition)], [check])
            self._checks[check.id] = check
            self._definitions[definition.id] = definition
            self._notify()

    async def deregister_check(self, check_id: str) -> None:
        """Deregister a check. Raises NotRegistered, StoreError."""
        async with self._lock:
            check = self._registered_check(check_id)
            await self._write([self._publication.forget(kind, check_id) for kind in ("check", "status")], (), [check])
            self._drop_check(check_id)
            self._notify()

    async def update_check(self, check_id: str, status: Status, output: str) -> None:
        """Update a check's status and output; output alone is published after
        CHECK_UPDATE_INTERVAL.
        """
        async with self._lock:
            old = self._registered_check(check_id)
            new = replace(old, status=status, output=output)
            await self._update_check(old, new)
        for listener in tuple(self._update_listeners):
            listener(check_id, status)

    async def _update_check(self, old: Check, new: Check) -> None:
        if new == old:
            return
        if new.status is old.status and old.output:
            self._checks[new.id] = new
            self._deferred.setdefault(new.id, time.monotonic() + CHECK_UPDATE_INTERVAL)
            return
        persistent = new.id in self._definitions and not self._owner_of(new)
        persisted = [self._publication.persist("status", new.id, json.dumps(new.status).encode())] if persistent else []
        await self._write(persisted, [new])
        self._checks[new.id] = new
        self._deferred.pop(new.id, None)

    async def maintenance(self, enable: bool, reason: str = "", instance_id: str = "") -> None:
        """Enable or disable maintenance mode of an instance, or without an id of this node.

        Raises NotRegistered, StoreError.
        """
        instance = self._registered_instance(instance_id) if instance_id else None
        check_id = SERVICE_MAINT_PREFIX + instance_id if instance_id else NODE_MAINT
        what = "service" if instance else "node"
        if enable:
            notes = reason or f"Maintenance mode is enabled for this {what}, but no reason was provided."
            name = f"{what.capitalize()} Maintenance Mode"
            await self.register_check(CheckDefinition(check_id, name, "maintenance", instance_id, notes))
        elif check_id in self._checks:
            await self.deregister_check(check_id)

    async def offer(self, owner: str, offered: Sequence[tuple[Instance, Sequence[CheckDefinition]]]) -> None:
        """Replace what an attachment has registered; an empty sequence deregisters all. Raises
        StoreError.
        """
        async with self._lock:
            wanted = {instance.id for instance, _ in offered}
            for old in [one for one in self._instances.values() if one.owner == owner and one.id not in wanted]:
                await self._deregister(old)
            for instance, checks in offered:
                await self._register(replace(instance, owner=owner), checks, replace_checks=True, persist=False)

    def owners(self) -> set[str]:
        """The marks of the attachments that have registered instances."""
        return {one.owner for one in self._instances.values() if one.owner}

    async def _register(
        self, instance: Instance, definitions: Sequence[CheckDefinition], replace_checks: bool, *, persist: bool
    ) -> None:
        instance = replace(instance, node=self.node.name)
        old = self._instances.get(instance.id)
        checks = [self._check(definition, instance) for definition in definitions]
        ids = {check.id for check in checks}
        stale = [
            check
            for check in self._checks.values()
            if replace_checks and check.service_id == instance.id and check.id not in ids and not check.maintenance
        ]
        removed: list[CatalogEntry] = [*stale]
        if old is not None and old.name != instance.name:
            removed.append(old)
        # Clients re-register periodically; what is unchanged must not wake blocking queries.
        published: list[CatalogEntry] = [check for check in checks if check != self._checks.get(check.id)]
        persisted: list[Operation] = []
        if instance != old:
            published.insert(0, instance)
            persisted = [self._publication.persist("service", instance.id, layout.encode(instance))]
        persisted += [self._persist_check(one) for one in definitions if one != self._definitions.get(one.id)]
        persisted += [self._publication.forget(kind, check.id) for check in stale for kind in ("check", "status")]
        await self._write(persisted if persist else [], published, removed)
        self._instances[instance.id] = instance
        for check in stale:
            self._drop_check(check.id)
        self._checks |= {check.id: check for check in checks}
        self._definitions |= {definition.id: definition for definition in definitions}
        if definitions or stale:
            self._notify()

    async def _deregister(self, instance: Instance) -> None:
        checks = [check for check in self._checks.values() if check.service_id == instance.id]
        persisted = [self._publication.forget("service", instance.id)]
        persisted += [self._publication.forget(kind, check.id) for check in checks for kind in ("check", "status")]
        await self._write([] if instance.owner else persisted, (), [instance, *checks])
        del self._instances[instance.id]
        for check in checks:
            self._drop_check(check.id)
        if checks:
            self._notify()

    # Life cycle

    async def start(self) -> None:
        """Load what was persisted, acquire the lease, publish everything. Raises StoreError."""
        await self._load_persisted()
        await self._restore_published()
        await self._publication.acquire_lease()
        await self._publish_all()
        self._tasks = [asyncio.create_task(self._renew_loop()), asyncio.create_task(self._deferred_loop())]

    async def stop(self) -> None:
        """Stop. What is published stays until the lease expires, so that a restart goes
        unnoticed.
        """
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def leave(self) -> None:
        """Unpublish everything at once; what is persisted is published again on the next start."""
        await self.stop()
        await self._publication.revoke_lease()

    async def _load_persisted(self) -> None:
        statuses: dict[str, Status] = {}
        for kind, name, entry in await self._publication.persisted():
            try:
                if kind == "service":
                    self._instances[name] = layout.decode_local(entry)
                elif kind == "check":
                    self._definitions[name] = layout.decode_check_definition(entry.value)
                elif kind == "status":
                    statuses[name] = Status(json.loads(entry.value))
            except (layout.DecodeError, ValueError) as error:
                log.warning("ignoring persisted %s: %s", entry.key, error)
        for definition in self._definitions.values():
            check = self._check(definition, self._instances.get(definition.service_id))
            self._checks[check.id] = replace(check, status=statuses.get(check.id, check.status))

    async def _restore_published(self) -> None:
        """Restore attachments' instances and the last check outputs from what is published."""
        async for entry in self._publication.published():
            try:
                value = layout.decode(entry)
            except layout.DecodeError:
                continue
            if isinstance(value, Instance) and value.owner and value.id not in self._instances:
                self._instances[value.id] = replace(value, create_index=0, modify_index=0)
            elif isinstance(value, Check):
                mine = self._checks.get(value.id)
                if mine is None and self._owner_of(value):
                    self._checks[value.id] = replace(value, create_index=0, modify_index=0)
                elif mine is not None and mine.status is value.status:
                    self._checks[value.id] = replace(mine, output=value.output)

    async def _publish_all(self) -> None:
        """Publish the node and everything registered on it. Raises StoreError."""
        alive = "Agent alive and reachable"
        name = self.node.name
        self._checks[SERF_HEALTH] = Check(name, SERF_HEALTH, "Serf Health Status", Status.PASSING, output=alive)
        self._instances[CONSUL_SERVICE] = Instance(name, CONSUL_SERVICE, CONSUL_SERVICE, port=self._port)
        await self._publication.replace_all((self.node, *self._instances.values(), *self._checks.values()))

    async def _republish(self) -> None:
        """Publish everything again after the lease had expired. Raises StoreError."""
        log.warning("lease of node %s expired, registering its services again", self.node.name)
        await self._publication.acquire_lease()
        await self._publish_all()

    async def _renew_loop(self) -> None:
        """Renew the lease; if it has expired (suspend, store outage), publish everything again."""
        while True:
            await asyncio.sleep(self._lease_seconds / 3)
            try:
                await self._publication.renew_lease()
            except LeaseGone:
                async with self._lock:
                    with contextlib.suppress(StoreError):
                        await self._republish()
            except StoreError as error:
                log.warning("failed to renew lease of node %s: %s", self.node.name, error)

    async def _deferred_loop(self) -> None:
        """Publish deferred check outputs."""
        while True:
            await asyncio.sleep(1)
            due = [check_id for check_id, when in self._deferred.items() if when <= time.monotonic()]
            async with self._lock:
                checks = [self._checks[check_id] for check_id in due if check_id in self._checks]
                try:
                    await self._write((), checks)
                except StoreError as error:
                    log.warning("failed to sync check outputs: %s", error)
                    continue
                for check_id in due:
                    self._deferred.pop(check_id, None)

    # Store

    async def _write(
        self, persisted: Sequence[Operation], publish: Sequence[CatalogEntry], unpublish: Sequence[CatalogEntry] = ()
    ) -> None:
        """Persist, publish and unpublish in one go. Raises StoreError."""
        for _ in range(2):
            published = [self._publication.publish(one) for one in publish] + [
                self._publication.unpublish(one) for one in unpublish
            ]
            try:
                return await self._publication.write(persisted, published)
            except LeaseGone:
                await self._republish()
        raise LeaseGone(0)

    def _persist_check(self, definition: CheckDefinition) -> Operation:
        return self._publication.persist("check", definition.id, layout.encode_check_definition(definition))

    def _check(self, definition: CheckDefinition, instance: Instance | None) -> Check:
        """The check of a definition, with its current status and output."""
        old = self._checks.get(definition.id)
        return Check(
            node=self.node.name,
            id=definition.id,
            name=definition.name,
            status=old.status if old else definition.initial,
            service_id=definition.service_id,
            service_name=instance.name if instance else "",
            service_tags=instance.tags if instance else (),
            notes=definition.notes,
            output=old.output if old else "",
            type=definition.type,
            definition=definition.asked,
        )

    def _registered_instance(self, instance_id: str) -> Instance:
        found = self._instances.get(instance_id)
        if found is None:
            raise NotRegistered("service", instance_id)
        return found

    def _registered_check(self, check_id: str) -> Check:
        found = self._checks.get(check_id)
        if found is None:
            raise NotRegistered("check", check_id)
        return found

    def _owner_of(self, check: Check) -> str:
        instance = self._instances.get(check.service_id)
        return instance.owner if instance else ""

    def _drop_check(self, check_id: str) -> None:
        for table in (self._checks, self._definitions, self._deferred):
            table.pop(check_id, None)

    def _notify(self) -> None:
        for listener in tuple(self._listeners):
            listener()
