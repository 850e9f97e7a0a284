"""The local registry: services and checks of this node, persisted and published (Consul's local
state).

What is registered through the API is persisted under ``/weft/v2/host/NODE/own/`` until
it is deregistered. What is published is bound to the node's lease and expires when the host dies. What
attachments register is not persisted: the attachments' records are the source of truth.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace

from discovery import layout
from discovery.check_deadlines import CheckDeadlines
from discovery.local_checks import TTL_EXPIRED, LocalChecks
from discovery.publication import BATCH, Publication, unhurried
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
from store import Entry, LeaseGone, Operation, Store, StoreError, Unavailable

log = logging.getLogger(__name__)

PROGRESS_SECONDS = 30.0
"""How often the time that checks have been critical is persisted."""
RESTORE_SECONDS = 30.0
"""How long requests wait for the services of a starting agent."""
CHECK_UPDATE_INTERVAL = 5.0
"""Changes of a check's output alone are published at most this often (check_update_interval)."""


class NotRegistered(LookupError):
    """No such service or check is registered on this node."""

    def __init__(self, what: str, name: str) -> None:
        super().__init__(f"{what} {name!r} is not registered on this node")
        self.what = what
        self.name = name


class Taken(ValueError):
    """The id of a service or check belongs to an attachment."""


def _restored_before(entry: Entry) -> tuple[bool, int]:
    return layout.split_key(entry.key)[0] != "service", entry.create_revision


def _endpoint(instance: Instance) -> tuple[str, int, str]:
    return instance.name, instance.port, instance.protocol


def _continued(checks: Sequence[CheckDefinition], earlier: Sequence[Check]) -> list[CheckDefinition]:
    """The definitions, with the status of the one check that they continue under another id."""
    if len(checks) != 1 or len(earlier) != 1:
        return list(checks)
    return [replace(checks[0], initial=earlier[0].status)]


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
        self.changed = asyncio.Event()
        """Is set, and replaced by another, when an instance has been registered or deregistered."""
        self._instances: dict[str, Instance] = {}
        self._local = LocalChecks()
        self._unsaved: dict[str, None] = {}
        self._lock = asyncio.Lock()
        self._deferred: dict[str, float] = {}
        self._tasks: list[asyncio.Task[None]] = []
        self._restored = asyncio.Event()

    # Queries

    def instances(self) -> dict[str, Instance]:
        """The instances by id, without the agent's own service (``consul``)."""
        return {name: one for name, one in self._instances.items() if name != CONSUL_SERVICE}

    def checks(self) -> dict[str, Check]:
        """The checks by id with their latest output, without the agent's own (``serfHealth``)."""
        return {name: one for name, one in self._local.checks.items() if name != SERF_HEALTH}

    def checks_of(self, instance_id: str) -> list[Check]:
        """The checks of an instance and those of the node, sorted by id, without the agent's own."""
        found = [*self._local.of(instance_id), *self._local.of("")]
        return sorted((one for one in found if one.id != SERF_HEALTH), key=lambda one: one.id)

    def definitions(self) -> dict[str, CheckDefinition]:
        """The check definitions by id."""
        return dict(self._local.definitions)

    def definition(self, check_id: str) -> CheckDefinition | None:
        """The definition of a check."""
        return self._local.definitions.get(check_id)

    @property
    def deadlines(self) -> CheckDeadlines:
        """When TTL checks expire, and how long checks have been critical."""
        return self._local.deadlines

    def subscribe(self, listener: Callable[[str], None]) -> None:
        """Call ``listener`` with the id of each check that is registered, changed, removed, or whose
        TTL starts again.
        """
        self._local.subscribe(listener)

    # Registration

    async def publish_node(self, node: Node) -> None:
        """Publish this node with other properties, under the name that it has. Raises StoreError."""
        async with self._lock:
            self.node = node
            await self._publish_all()

    async def register(
        self, instance: Instance, checks: Sequence[CheckDefinition] = (), *, replace_checks: bool = False
    ) -> None:
        """Register an instance; one of the same id is updated, and checks that remain keep their
        status.

        ``replace_checks`` deregisters the instance's checks that are not given. Raises Taken for an id
        that belongs to an attachment, or a check's to the agent, StoreError.
        """
        async with self._lock:
            if why := self._taken(instance, checks):
                raise Taken(why)
            await self._register(instance, checks, replace_checks, persist=True)

    async def deregister(self, instance_id: str) -> None:
        """Deregister an instance and its checks. Raises NotRegistered, StoreError."""
        async with self._lock:
            await self._deregister(self._registered_instance(instance_id))

    async def register_check(self, definition: CheckDefinition) -> None:
        """Register a check of an instance, or without ``service_id`` of the node. Raises
        NotRegistered, Taken for an id that belongs to an attachment, StoreError.
        """
        async with self._lock:
            instance = self._registered_instance(definition.service_id) if definition.service_id else None
            there = self._local.checks.get(definition.id)
            if there is not None and self._owner_of(there) and not self._is_clients(there, definition.service_id):
                raise Taken(f"check {definition.id} is that of {there.service_id}, a service of an attachment")
            check = self._check(definition, instance)
            await self._write([self._persist_check(definition)], [check])
            self._add_checks([check], [definition])

    async def deregister_check(self, check_id: str) -> None:
        """Deregister a check. Raises NotRegistered, StoreError."""
        async with self._lock:
            check = self._registered_check(check_id)
            await self._write(self._forget_check(check_id), (), [check])
            self._drop_check(check_id)

    async def update_check(self, check_id: str, status: Status, output: str) -> bool:
        """Update a check's status and output; output alone is published after
        CHECK_UPDATE_INTERVAL. The TTL of a TTL check starts again.

        Returns whether anything was published. Raises NotRegistered, StoreError.
        """
        async with self._lock:
            old = self._registered_check(check_id)
            definition = self._local.definitions.get(check_id)
            if definition is not None and definition.ttl:
                self._local.renew(definition)
                self._unsaved[check_id] = None
            return await self._update_check(old, replace(old, status=status, output=output))

    async def expire_check(self, check_id: str) -> None:
        """Make a TTL check critical, if it was not reported meanwhile. Raises StoreError."""
        async with self._lock:
            remaining = self.deadlines.remaining(check_id)
            if remaining is not None and remaining <= 0:
                old = self._registered_check(check_id)
                await self._update_check(old, replace(old, status=Status.CRITICAL, output=TTL_EXPIRED))

    async def _update_check(self, old: Check, new: Check) -> bool:
        self.deadlines.track(new.id, new.status)
        if new == old:
            return False
        if new.status is old.status and old.output:
            self._local.checks[new.id] = new
            self._deferred.setdefault(new.id, time.monotonic() + CHECK_UPDATE_INTERVAL)
            return False
        await self._write([self._persist_state(new)] if new.id in self._local.definitions else [], [new])
        self._local.checks[new.id] = new
        self._deferred.pop(new.id, None)
        self._unsaved.pop(new.id, None)
        if new.status is not old.status:
            event = {"service": new.service_id, "check": new.id, "before": old.status.value, "status": new.status.value}
            fields = {**event, "output": new.output}
            log.info("check %s is %s", new.id, new.status.value, extra={"event": "health", "fields": fields})
        return True

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
        elif check_id in self._local.checks:
            await self.deregister_check(check_id)

    async def offer(
        self,
        owner: str,
        offered: Sequence[tuple[Instance, Sequence[CheckDefinition]]],
        *,
        shared: Collection[str] = (),
        reserved: Collection[str] = (),
    ) -> tuple[str, ...]:
        """Replace what an attachment has registered; an empty sequence deregisters all. Returns why some
        instances are not registered, a sentence each.

        ``shared`` are the names of services that other networks may add instances to, ``reserved``
        those that no attachment may offer. What the attachment has registered already stays. Raises
        StoreError.
        """
        async with self._lock:
            before = [one for one in self._instances.values() if one.owner == owner]
            held = {one.name.lower() for one in before}
            refused: list[str] = []
            kept: set[str] = set()
            for given, checks in offered:
                instance = replace(given, owner=owner)
                existing = instance.name.lower() in held
                why = self._taken(instance, checks)
                if not why and not existing and instance.name.lower() in (CONSUL_SERVICE, *reserved):
                    why = f"service {instance.name} is not registered: the name is reserved"
                if why := why or await self._claim(instance, shared=instance.name in shared, force=existing):
                    refused.append(why)
                    continue
                definitions = _continued(checks, self._predecessors(instance, before))
                await self._register(instance, definitions, replace_checks=True, persist=False)
                kept.add(instance.id)
            for old in [one for one in before if one.id not in kept]:
                await self._deregister(old)
            return tuple(refused)

    async def drop_orphans(self) -> None:
        """Deregister what clients have registered of attachments' instances (checks, maintenance) that are gone:
        those that ended while no agent ran. Call it after all attachments have offered theirs. Raises StoreError.
        """
        if not self._restored.is_set():
            return
        async with self._lock:
            for check in self._local.orphans(self._instances):
                await self._write(self._forget_check(check.id), (), [check])
                self._drop_check(check.id)

    def _taken(self, instance: Instance, checks: Sequence[CheckDefinition]) -> str:
        """Why an instance would overwrite what somebody else has registered, "" if it would not."""
        there = self._instances.get(instance.id)
        if there is not None and there.owner != instance.owner:
            whose = "an attachment" if there.owner else "a registration through the API"
            return f"service {instance.name} is not registered: its id {instance.id} is that of {whose}"
        for one in checks:
            if one.id == SERF_HEALTH:
                return f"service {instance.name} is not registered: check {SERF_HEALTH} is the agent's own"
            check = self._local.checks.get(one.id)
            if check is not None and check.service_id != instance.id and (instance.owner or self._owner_of(check)):
                return f"service {instance.name} is not registered: check {one.id} is that of {check.service_id}"
        return ""

    async def _claim(self, instance: Instance, *, shared: bool, force: bool) -> str:
        """Why the instance's network may not offer its service, "" if it may. Raises StoreError."""
        for _ in range(2):
            try:
                other = await self._publication.claim(instance.name, instance.network, shared=shared, force=force)
                break
            except LeaseGone:
                await self._republish()
        else:
            raise LeaseGone(0)
        if not other:
            return ""
        return (
            f"service {instance.name} is not registered: network {other} offered it first, and {instance.network} may "
            f'call it, but not add instances unless both set "shared": true for it'
        )

    def _predecessors(self, instance: Instance, before: Sequence[Instance]) -> list[Check]:
        """The checks of what the attachment had registered as another id for the same service and port:
        earlier releases formed the ids differently.
        """
        if instance.id in self._instances:
            return []
        same = [one for one in before if (one.name, one.port, one.protocol) == _endpoint(instance)]
        return [check for one in same for check in self._local.of(one.id) if not check.maintenance]

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
            for check in (self._local.of(instance.id) if replace_checks else ())
            if check.id not in ids and not check.maintenance
        ]
        removed: list[CatalogEntry] = [*stale]
        if old is not None and old.name != instance.name:
            removed.append(old)
        # Clients re-register periodically; what is unchanged must not wake blocking queries.
        published: list[CatalogEntry] = [check for check in checks if check != self._local.checks.get(check.id)]
        persisted: list[Operation] = []
        if instance != old:
            published.insert(0, instance)
            persisted = [self._publication.persist("service", instance.id, layout.encode(instance))]
        persisted += [self._persist_check(one) for one in definitions if one != self._local.definitions.get(one.id)]
        if not persist:
            persisted = []
        persisted += [operation for check in stale for operation in self._forget_check(check.id)]
        await self._write(persisted, published, removed)
        self._instances[instance.id] = instance
        self._notify()
        for check in stale:
            self._drop_check(check.id)
        self._add_checks(checks, definitions)

    async def _deregister(self, instance: Instance) -> None:
        checks = self._local.of(instance.id)
        siblings = (one for one in self._instances.values() if one.id != instance.id)
        last = not any((one.name.lower(), one.network) == (instance.name.lower(), instance.network) for one in siblings)
        persisted = [] if instance.owner else [self._publication.forget("service", instance.id)]
        persisted += [operation for check in checks for operation in self._forget_check(check.id)]
        await self._write(persisted, (), [instance, *checks])
        if instance.owner and last:
            await self._publication.write((), [self._publication.withdraw(instance.name, instance.network)])
        del self._instances[instance.id]
        self._notify()
        for check in checks:
            self._drop_check(check.id)

    def _notify(self) -> None:
        self.changed.set()
        self.changed = asyncio.Event()

    # Life cycle

    async def resume(self) -> bool:
        """Resume the lease of an agent that ended a short time ago. Whether what that has published is
        still true, so that it may be served before ``start`` has loaded everything: not if there is no
        lease any more, or a TTL has expired meanwhile. Raises StoreError.
        """
        return await self._publication.resume_lease() and not await self._publication.has_expired_checks()

    async def restored(self) -> None:
        """Wait until ``start`` has loaded everything. Raises Unavailable."""
        try:
            async with asyncio.timeout(RESTORE_SECONDS):
                await self._restored.wait()
        except TimeoutError:
            raise Unavailable("the agent has not loaded its services yet", hint="try again") from None

    async def start(self) -> None:
        """Load what was persisted, acquire the lease, publish everything. Raises StoreError."""
        await self._load_persisted()
        await self._restore_published()
        await self._publication.acquire_lease()
        await self._claim_all()
        await self._publish_all()
        loops = (self._renew_loop(), self._deferred_loop(), self._progress_loop())
        self._tasks = [asyncio.create_task(each) for each in loops]
        self._restored.set()

    async def stop(self) -> None:
        """Stop. What is published stays until the lease expires, so that a restart goes
        unnoticed.
        """
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._tasks:
            self._note_progress()
            with contextlib.suppress(StoreError):
                await self._save_states()
        self._tasks = []

    async def leave(self) -> None:
        """Unpublish everything at once; what is persisted is published again on the next start."""
        await self.stop()
        await self._publication.revoke_lease()

    async def _load_persisted(self) -> None:
        found = await self._publication.persisted()
        self._instances |= found.instances
        self._local.states = found.states
        async for one in unhurried(found.definitions):
            self._add_checks([self._check(one, self._instances.get(one.service_id))], [one])

    async def _restore_published(self) -> None:
        """Restore attachments' instances and the last check outputs from what is published.

        The states of other checks are forgotten: their attachments ended while no agent ran.
        """
        entries = [entry async for entry in self._publication.published()]
        # Services first, as they are, but the oldest instances before others: their network offered first.
        async for entry in unhurried(sorted(entries, key=_restored_before)):
            try:
                value = layout.decode(entry)
            except layout.DecodeError:
                continue
            if isinstance(value, Instance) and value.owner and value.id not in self._instances:
                self._instances[value.id] = replace(value, create_index=0, modify_index=0)
            elif isinstance(value, Check):
                mine = self._local.checks.get(value.id)
                if mine is None and self._owner_of(value):
                    self._add_checks([replace(value, create_index=0, modify_index=0)], ())
                elif mine is not None and mine.status is value.status and not mine.output:
                    self._local.checks[value.id] = replace(mine, output=value.output)
        gone = [name for name in self._local.states if name not in self._local.checks]
        await self._publication.write([self._publication.forget("status", name) for name in gone], ())
        self._local.states = {name: state for name, state in self._local.states.items() if name not in gone}

    async def _publish_all(self) -> None:
        """Publish the node and everything registered on it. Raises StoreError."""
        alive = "Agent alive and reachable"
        name = self.node.name
        self._local.checks[SERF_HEALTH] = Check(name, SERF_HEALTH, "Serf Health Status", Status.PASSING, output=alive)
        self._instances[CONSUL_SERVICE] = Instance(name, CONSUL_SERVICE, CONSUL_SERVICE, port=self._port)
        await self._publication.replace_all((self.node, *self._instances.values(), *self._local.checks.values()))

    async def _republish(self) -> None:
        """Publish everything again after the lease had expired. Raises StoreError."""
        log.warning("lease of node %s expired, registering its services again", self.node.name)
        await self._publication.acquire_lease()
        await self._claim_all()
        await self._publish_all()

    async def _claim_all(self) -> None:
        """Claim the services of attachments that were registered before. Raises StoreError."""
        found = {(one.name, one.network): None for one in self._instances.values() if one.owner}
        for name, network in found:
            await self._publication.claim(name, network, force=True)

    async def _renew_loop(self) -> None:
        """Renew the lease; if it has expired (suspend, store outage), publish everything again, as soon as the
        store answers.
        """
        failing = False
        while True:
            await asyncio.sleep(random.uniform(0.5, 1.5) if failing else self._lease_seconds / 3)
            try:
                await self._publication.renew_lease()
                failing = False
            except LeaseGone:
                async with self._lock:
                    try:
                        await self._republish()
                        failing = False
                    except StoreError:
                        failing = True
            except StoreError as error:
                if not failing:
                    log.warning("failed to renew lease of node %s, retrying: %s", self.node.name, error)
                failing = True

    async def _deferred_loop(self) -> None:
        """Publish deferred check outputs, and persist deadlines."""
        while True:
            await asyncio.sleep(1)
            try:
                await self._save_states()
            except StoreError as error:
                log.warning("failed to persist the deadlines of checks: %s", error)
            due = [check_id for check_id, when in self._deferred.items() if when <= time.monotonic()]
            async with self._lock:
                checks = [self._local.checks[check_id] for check_id in due if check_id in self._local.checks]
                try:
                    await self._write((), checks)
                except StoreError as error:
                    log.warning("failed to sync check outputs: %s", error)
                    continue
                for check_id in due:
                    self._deferred.pop(check_id, None)

    async def _progress_loop(self) -> None:
        while True:
            await asyncio.sleep(PROGRESS_SECONDS)
            self._note_progress()

    def _note_progress(self) -> None:
        """Have the time persisted that checks have been critical, where it leads to
        deregistration.
        """
        for check_id in self.deadlines.critical():
            definition = self._local.definitions.get(check_id)
            if definition is not None and definition.deregister_after:
                self._unsaved[check_id] = None

    async def _save_states(self) -> None:
        """Persist the states of checks whose deadlines have changed. Raises StoreError."""
        while names := list(self._unsaved)[:BATCH]:
            async with self._lock:
                for name in names:
                    self._unsaved.pop(name, None)
                checks = [self._local.checks[name] for name in names if name in self._local.definitions]
                try:
                    await self._publication.write([self._persist_state(check) for check in checks], ())
                except StoreError:
                    self._unsaved |= dict.fromkeys(names)
                    raise

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

    def _persist_state(self, check: Check) -> Operation:
        return self._publication.persist("status", check.id, self.deadlines.encode(check.id, check.status))

    def _forget_check(self, check_id: str) -> list[Operation]:
        return [self._publication.forget(kind, check_id) for kind in ("check", "status")]

    def _check(self, definition: CheckDefinition, instance: Instance | None) -> Check:
        return self._local.check(self.node.name, definition, instance)

    def _registered_instance(self, instance_id: str) -> Instance:
        """An instance; the agent's own is not its clients'. Raises NotRegistered."""
        found = self._instances.get(instance_id)
        if found is None or instance_id == CONSUL_SERVICE:
            raise NotRegistered("service", instance_id)
        return found

    def _registered_check(self, check_id: str) -> Check:
        """A check; the agent's own is not its clients'. Raises NotRegistered."""
        found = self._local.checks.get(check_id)
        if found is None or check_id == SERF_HEALTH:
            raise NotRegistered("check", check_id)
        return found

    def _is_clients(self, check: Check, service_id: str) -> bool:
        """Whether a check of an attachment's instance was registered by a client, for this instance."""
        known = self._local.definitions.get(check.id)
        return check.service_id == service_id and known is not None and not known.netns

    def _owner_of(self, check: Check) -> str:
        instance = self._instances.get(check.service_id)
        return instance.owner if instance else ""

    def _add_checks(self, checks: Sequence[Check], definitions: Sequence[CheckDefinition]) -> None:
        for check in checks:
            self._local.put(check)
        self._unsaved |= dict.fromkeys(self._local.define(definitions))

    def _drop_check(self, check_id: str) -> None:
        self._local.drop(check_id)
        for table in (self._deferred, self._unsaved):
            table.pop(check_id, None)
