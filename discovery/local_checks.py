"""The checks of this node in memory: status, definition and deadlines of each."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence

from discovery.check_deadlines import CheckDeadlines, State
from discovery.structs import Check, CheckDefinition, Instance, Status

TTL_EXPIRED = "TTL expired"
"""The output of a TTL check that was not reported in time."""


class LocalChecks:
    """Checks and definitions by id. What is stored of them is up to the registry."""

    def __init__(self) -> None:
        self.checks: dict[str, Check] = {}
        self.definitions: dict[str, CheckDefinition] = {}
        self.deadlines = CheckDeadlines()
        self.states: dict[str, State] = {}
        """What is persisted of checks that are not registered yet: attachments register theirs
        after the start.
        """
        self._by_service: dict[str, dict[str, None]] = {}
        self._listeners: list[Callable[[str], None]] = []

    def subscribe(self, listener: Callable[[str], None]) -> None:
        """Call ``listener`` with the id of each check that is registered, changed, removed, or whose
        TTL starts again.
        """
        self._listeners.append(listener)

    def of(self, instance_id: str) -> list[Check]:
        """The checks of an instance."""
        return [self.checks[name] for name in self._by_service.get(instance_id, ())]

    def orphans(self, instances: Mapping[str, Instance]) -> list[Check]:
        """The checks of instances that are not among these."""
        return [check for name in self._by_service.keys() - instances.keys() - {""} for check in self.of(name)]

    def check(self, node: str, definition: CheckDefinition, instance: Instance | None) -> Check:
        """The check of a definition, with its current, else its persisted status and output."""
        old = self.checks.get(definition.id)
        status, output = (old.status, old.output) if old else (definition.initial, "")
        if (state := self.states.get(definition.id)) is not None:
            status = state[0]
            if definition.ttl and state[1] is not None and state[1] <= time.time() and status is not Status.CRITICAL:
                status, output = Status.CRITICAL, TTL_EXPIRED
        return Check(
            node=node,
            id=definition.id,
            name=definition.name,
            status=status,
            service_id=definition.service_id,
            service_name=instance.name if instance else "",
            service_tags=instance.tags if instance else (),
            notes=definition.notes,
            output=output,
            type=definition.type,
            definition=definition.asked,
        )

    def put(self, check: Check) -> None:
        """Add or replace a check."""
        old = self.checks.get(check.id)
        if old is not None and old.service_id != check.service_id:
            self._unlink(old)
        self.checks[check.id] = check
        self._by_service.setdefault(check.service_id, {})[check.id] = None
        self.deadlines.track(check.id, check.status)

    def define(self, definitions: Sequence[CheckDefinition]) -> list[str]:
        """Add or replace definitions of checks; the ids of those whose TTL begins now, or ends with them.

        The deadlines of the others go on, or are those that were persisted.
        """
        changed = []
        for definition in definitions:
            old = self.definitions.get(definition.id)
            self.definitions[definition.id] = definition
            if (state := self.states.pop(definition.id, None)) is not None:
                self.deadlines.restore(definition, state)
            elif definition.ttl and (old is None or old.ttl != definition.ttl):
                self.deadlines.renew(definition.id, definition.ttl)
                changed.append(definition.id)
            elif not definition.ttl and old is not None and old.ttl:
                self.deadlines.end_ttl(definition.id)
                changed.append(definition.id)
            self._notify(definition.id)
        return changed

    def renew(self, definition: CheckDefinition) -> None:
        """Start the TTL of a check again."""
        self.deadlines.renew(definition.id, definition.ttl)
        self._notify(definition.id)

    def drop(self, check_id: str) -> None:
        """Remove a check."""
        self._unlink(self.checks.pop(check_id))
        self.definitions.pop(check_id, None)
        self.deadlines.forget(check_id)
        self._notify(check_id)

    def _unlink(self, check: Check) -> None:
        mine = self._by_service.get(check.service_id, {})
        mine.pop(check.id, None)
        if not mine:
            self._by_service.pop(check.service_id, None)

    def _notify(self, check_id: str) -> None:
        for listener in tuple(self._listeners):
            listener(check_id)
