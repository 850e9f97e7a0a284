"""What this node offers: registered by hand, by files or by attachments, kept over restarts, published for everybody.

What is registered by hand is kept under ``/weft/v1/own/NODE/`` until it is deregistered. What others see is bound to
the node's lease: when this machine dies, it goes. What an attachment offers (``offer``) is kept nowhere else, since the
attachment's own record is the truth about it.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

from discovery import layout
from discovery.values import (
    NODE_CHECK,
    NODE_MAINTENANCE,
    OWN_SERVICE,
    SERVICE_MAINTENANCE,
    Check,
    Definition,
    Instance,
    Node,
    Status,
    Value,
)
from store import Delete, Entry, LeaseGone, Operation, Put, Store, StoreError

log = logging.getLogger(__name__)

OUTPUT_SECONDS = 5.0
"""A check whose output alone changes is written again this often at most: what it says is no news."""
BATCH = 100
"""Operations in one transaction of the store; etcd takes 128."""


class Unknown(LookupError):
    """There is no such service or check on this node."""

    def __init__(self, what: str, name: str) -> None:
        super().__init__(f"{what} {name!r} is not registered on this node")
        self.what = what
        self.name = name


class Registry:
    """The services and checks of one node. ``own`` keeps them, ``shared`` shows them; on one host they are the same.

    ``lease_seconds`` is how long after its agent's last sign of life a node's services stay visible to others.
    """

    def __init__(
        self, node: Node, own: Store, shared: Store, *, port: int = 8500, lease_seconds: float = 30.0
    ) -> None:
        self.node = node
        self._own = own
        self._shared = shared
        self._port = port
        self._lease_seconds = lease_seconds
        self._lease = 0
        self._instances: dict[str, Instance] = {}
        self._checks: dict[str, Check] = {}
        self._definitions: dict[str, Definition] = {}
        self._listeners: list[Callable[[], None]] = []
        self._lock = asyncio.Lock()
        self._late: dict[str, float] = {}
        self._tasks: list[asyncio.Task[None]] = []

    # What is registered

    def instances(self) -> dict[str, Instance]:
        """This node's instances by id, the agent's own (``consul``) left out."""
        return {name: one for name, one in self._instances.items() if name != OWN_SERVICE}

    def checks(self) -> dict[str, Check]:
        """This node's checks by id, with their latest output; that of the agent itself left out."""
        return {name: one for name, one in self._checks.items() if name != NODE_CHECK}

    def definitions(self) -> dict[str, Definition]:
        """How the checks of this node are made, by id."""
        return dict(self._definitions)

    def subscribe(self, listener: Callable[[], None]) -> None:
        """Have a function called whenever the definitions have changed."""
        self._listeners.append(listener)

    # Registering

    async def register(
        self, instance: Instance, checks: Sequence[Definition] = (), *, replace_checks: bool = False
    ) -> None:
        """Offer an instance; one of the same id is changed in place, and the checks that stay keep their state.

        ``replace_checks`` ends those of its checks that are not among the given. Raises StoreError.
        """
        async with self._lock:
            await self._register(instance, checks, replace_checks, keep=True)

    async def deregister(self, instance_id: str) -> None:
        """Offer an instance no longer; its checks go with it. Raises Unknown, StoreError."""
        async with self._lock:
            await self._deregister(self._instance(instance_id))

    async def register_check(self, definition: Definition) -> None:
        """Check an instance, or (without a ``service_id``) the whole node. Raises Unknown, StoreError."""
        async with self._lock:
            instance = self._instance(definition.service_id) if definition.service_id else None
            check = self._check(definition, instance)
            await self._write([self._kept(definition)], [self._shown(check)])
            self._checks[check.id] = check
            self._definitions[definition.id] = definition
            self._tell()

    async def deregister_check(self, check_id: str) -> None:
        """End a check. Raises Unknown, StoreError."""
        async with self._lock:
            check = self._known_check(check_id)
            await self._write([self._own_delete("check", check_id), self._own_delete("status", check_id)], [_gone(check)])
            self._forget_check(check_id)
            self._tell()

    async def report(self, check_id: str, status: Status, output: str) -> None:
        """The result of a check. A change of its output alone is shown within ``OUTPUT_SECONDS``.

        Raises Unknown, StoreError.
        """
        async with self._lock:
            old = self._known_check(check_id)
            new = replace(old, status=status, output=output)
            if new == old:
                return
            if status is old.status:
                self._checks[check_id] = new
                self._late.setdefault(check_id, time.monotonic() + OUTPUT_SECONDS)
                return
            kept = [self._own_put("status", check_id, status.value)] if check_id in self._definitions else []
            await self._write([one for one in kept if not self._owner_of(new)], [self._shown(new)])
            self._checks[check_id] = new
            self._late.pop(check_id, None)

    async def maintenance(self, enable: bool, reason: str = "", instance_id: str = "") -> None:
        """Take an instance, or (without an id) this node, out of service, or back. Raises Unknown, StoreError."""
        instance = self._instance(instance_id) if instance_id else None
        check_id = SERVICE_MAINTENANCE + instance_id if instance_id else NODE_MAINTENANCE
        what = "service" if instance else "node"
        if enable:
            notes = reason or f"Somebody took this {what} out of service and gave no reason."
            name = f"{what.capitalize()} Maintenance Mode"
            await self.register_check(Definition(check_id, name, "maintenance", instance_id, notes))
        elif check_id in self._checks:
            await self.deregister_check(check_id)

    async def offer(self, owner: str, offered: Sequence[tuple[Instance, Sequence[Definition]]]) -> None:
        """What an attachment offers now, instead of what it offered before; nothing ends it. Raises StoreError."""
        async with self._lock:
            wanted = {instance.id for instance, _ in offered}
            for old in [one for one in self._instances.values() if one.owner == owner and one.id not in wanted]:
                await self._deregister(old)
            for instance, checks in offered:
                await self._register(replace(instance, owner=owner), checks, replace_checks=True, keep=False)

    def owners(self) -> set[str]:
        """The attachments that offer something."""
        return {one.owner for one in self._instances.values() if one.owner}

    async def _register(
        self, instance: Instance, definitions: Sequence[Definition], replace_checks: bool, *, keep: bool
    ) -> None:
        instance = replace(instance, node=self.node.name)
        old = self._instances.get(instance.id)
        checks = [self._check(definition, instance) for definition in definitions]
        ids = {check.id for check in checks}
        ended = [
            check
            for check in self._checks.values()
            if replace_checks and check.service_id == instance.id and check.id not in ids and not check.maintenance
        ]
        shown: list[Operation] = [self._shown(one) for one in (instance, *checks)]
        shown += [_gone(check) for check in ended]
        if old is not None and old.name != instance.name:
            shown.append(_gone(old))
        kept: list[Operation] = []
        if keep:
            kept = [Put(self._own_key("service", instance.id), layout.encode(instance))]
            kept += [self._kept(definition) for definition in definitions]
            kept += [self._own_delete(kind, check.id) for check in ended for kind in ("check", "status")]
        await self._write(kept, shown)
        self._instances[instance.id] = instance
        for check in ended:
            self._forget_check(check.id)
        self._checks |= {check.id: check for check in checks}
        self._definitions |= {definition.id: definition for definition in definitions}
        if definitions or ended:
            self._tell()

    async def _deregister(self, instance: Instance) -> None:
        checks = [check for check in self._checks.values() if check.service_id == instance.id]
        kept = [self._own_delete("service", instance.id)]
        kept += [self._own_delete(kind, check.id) for check in checks for kind in ("check", "status")]
        await self._write([] if instance.owner else kept, [_gone(one) for one in (instance, *checks)])
        del self._instances[instance.id]
        for check in checks:
            self._forget_check(check.id)
        if checks:
            self._tell()

    # Its life

    async def start(self) -> None:
        """Read what was registered before, take up the node's lease, and show all of it. Raises StoreError."""
        await self._read_own()
        await self._take_lease()
        await self._show_all()
        self._tasks = [asyncio.create_task(self._live()), asyncio.create_task(self._catch_up())]

    async def stop(self) -> None:
        """End. What is shown stays until the lease ends, so that a restart is no event for anybody."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def leave(self) -> None:
        """Have this node's services vanish at once for everybody; what is registered by hand comes back with a start."""
        await self.stop()
        await self._shared.revoke(self._lease)

    async def _read_own(self) -> None:
        prefix = layout.own_key(self.node.name, "", "").rstrip("/") + "/"
        statuses: dict[str, Status] = {}
        for entry in (await self._own.range(prefix)).entries:
            kind, name = layout.names_in(entry.key)[1:3]
            try:
                if kind == "service":
                    self._instances[name] = layout.decode_own(entry)
                elif kind == "check":
                    self._definitions[name] = layout.decode_definition(entry.value)
                elif kind == "status":
                    statuses[name] = Status(json.loads(entry.value))
                elif kind == "lease":
                    self._lease = int(json.loads(entry.value))
            except (layout.Unreadable, ValueError) as error:
                log.warning("%s is not registered again: %s", entry.key, error)
        for definition in self._definitions.values():
            check = self._check(definition, self._instances.get(definition.service_id))
            self._checks[check.id] = replace(check, status=statuses.get(check.id, check.status))

    async def _take_lease(self) -> None:
        if self._lease:
            try:
                await self._shared.keep_alive(self._lease)
            except LeaseGone:
                self._lease = 0
        if not self._lease:
            self._lease = await self._shared.grant(self._lease_seconds)
            await self._own.transact((), [self._own_put("lease", "", self._lease)])

    async def _show_all(self) -> None:
        """Make what the store shows of this node what is registered, and write nothing that is right already."""
        for value in self._always():
            if isinstance(value, Instance):
                self._instances[value.id] = value
            else:
                self._checks[value.id] = value
        shown = await self._found()
        for entry in shown.values():
            self._adopt(entry)
        wanted = {
            layout.key_of(value): layout.encode(value)
            for value in (self.node, *self._instances.values(), *self._checks.values())
        }
        operations: list[Operation] = [
            Put(key, value, self._lease)
            for key, value in wanted.items()
            if key not in shown or shown[key].value != value or shown[key].lease != self._lease
        ]
        operations += [Delete(key) for key in shown if key not in wanted]
        await self._write([], operations)

    async def _found(self) -> dict[str, Entry]:
        """What the store shows of this node, by key."""
        mine = (self.node.name,)
        entries = (await self._shared.range(layout.SERVICES)).entries
        found = {entry.key: entry for entry in entries if layout.names_in(entry.key)[1:2] == mine}
        for prefix in (layout.CHECKS, layout.NODES):
            entries = (await self._shared.range(prefix)).entries
            found |= {entry.key: entry for entry in entries if layout.names_in(entry.key)[:1] == mine}
        return found

    def _adopt(self, entry: Entry) -> None:
        """Go on with what an attachment offered before a restart, and with the last outputs of the checks."""
        try:
            value = layout.decode(entry)
        except layout.Unreadable:
            return
        if isinstance(value, Instance) and value.owner and value.id not in self._instances:
            self._instances[value.id] = replace(value, create_index=0, modify_index=0)
        elif isinstance(value, Check):
            mine = self._checks.get(value.id)
            if mine is None and self._owner_of(value):
                self._checks[value.id] = replace(value, create_index=0, modify_index=0)
            elif mine is not None and mine.status is value.status:
                self._checks[value.id] = replace(mine, output=value.output)

    def _always(self) -> tuple[Instance, Check]:
        check = Check(self.node.name, NODE_CHECK, "Serf Health Status", Status.PASSING, output="Agent alive and reachable")
        return Instance(self.node.name, OWN_SERVICE, OWN_SERVICE, port=self._port), check

    async def _live(self) -> None:
        """Keep the lease; where it was lost (the machine slept, the store was away), show everything again."""
        while True:
            await asyncio.sleep(self._lease_seconds / 3)
            try:
                await self._shared.keep_alive(self._lease)
            except LeaseGone:
                log.warning("the lease of node %s had ended; its services are registered again", self.node.name)
                async with self._lock:
                    self._lease = 0
                    await self._take_lease()
                    await self._show_all()
            except StoreError as error:
                log.warning("the lease of node %s could not be renewed: %s", self.node.name, error)

    async def _catch_up(self) -> None:
        """Show the outputs of checks that changed without their status."""
        while True:
            await asyncio.sleep(1)
            due = [check_id for check_id, when in self._late.items() if when <= time.monotonic()]
            async with self._lock:
                checks = [self._checks[check_id] for check_id in due if check_id in self._checks]
                try:
                    await self._write([], [self._shown(check) for check in checks])
                except StoreError as error:
                    log.warning("outputs of checks could not be written: %s", error)
                    continue
                for check_id in due:
                    self._late.pop(check_id, None)

    # Writing

    async def _write(self, kept: Sequence[Operation], shown: Sequence[Operation]) -> None:
        """First what must not be lost, then what others see; both at once where both are in one store."""
        if self._own is self._shared:
            kept, shown = (), (*kept, *shown)
        for target, operations in ((self._own, kept), (self._shared, shown)):
            for start in range(0, len(operations), BATCH):
                await target.transact((), operations[start : start + BATCH])

    def _shown(self, value: Value) -> Put:
        return Put(layout.key_of(value), layout.encode(value), self._lease)

    def _kept(self, definition: Definition) -> Put:
        return Put(self._own_key("check", definition.id), layout.encode_definition(definition))

    def _own_put(self, kind: str, name: str, value: object) -> Put:
        return Put(self._own_key(kind, name), json.dumps(value).encode())

    def _own_delete(self, kind: str, name: str) -> Operation:
        return Delete(self._own_key(kind, name))

    def _own_key(self, kind: str, name: str) -> str:
        return layout.own_key(self.node.name, kind, name)

    def _check(self, definition: Definition, instance: Instance | None) -> Check:
        """The check of a definition, in the state that it is in."""
        old = self._checks.get(definition.id)
        return Check(
            node=self.node.name,
            id=definition.id,
            name=definition.name,
            status=old.status if old else definition.initial,
            service_id=instance.id if instance else "",
            service_name=instance.name if instance else "",
            service_tags=instance.tags if instance else (),
            notes=definition.notes,
            output=old.output if old else "",
            type=definition.type,
            definition=definition.asked,
        )

    def _instance(self, instance_id: str) -> Instance:
        found = self._instances.get(instance_id)
        if found is None:
            raise Unknown("service", instance_id)
        return found

    def _known_check(self, check_id: str) -> Check:
        found = self._checks.get(check_id)
        if found is None:
            raise Unknown("check", check_id)
        return found

    def _owner_of(self, check: Check) -> str:
        instance = self._instances.get(check.service_id)
        return instance.owner if instance else ""

    def _forget_check(self, check_id: str) -> None:
        for table in (self._checks, self._definitions, self._late):
            table.pop(check_id, None)  # type: ignore[attr-defined]

    def _tell(self) -> None:
        for listener in tuple(self._listeners):
            listener()


def _gone(value: Value) -> Delete:
    return Delete(layout.key_of(value))
