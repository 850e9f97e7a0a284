"""Services and checks of this host that files define: the folder ``definitions`` of the agent's configuration.

They are registered when the agent starts, and again on SIGHUP and ``weft reload``; what a file no longer
has is deregistered. Source: https://developer.hashicorp.com/consul/docs/reference/agent/configuration-file,
``-config-dir``.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace

from discovery.consul import definition_files
from discovery.consul.check_definitions import parse_check
from discovery.consul.definition_files import BadDefinitionFile, JsonObject
from discovery.consul.json_fields import BadField, Fields
from discovery.consul.registration import Registration, parse_service
from discovery.registry import NotRegistered, Registry, Taken
from discovery.structs import CONSUL_SERVICE, SERF_HEALTH, CheckDefinition
from weft import files
from weft.errors import ConfigProblem

log = logging.getLogger("weft.definitions")

_ENDS = (".hcl", ".json")
_STATE = "definitions.json"
_MOST_BYTES = 4 << 20


@dataclass(frozen=True, slots=True)
class Found:
    """What the files define."""

    services: tuple[Registration, ...] = ()
    checks: tuple[CheckDefinition, ...] = ()


class Definitions:
    """A part of the agent. ``data`` is the agent's folder: there it keeps the ids of what files have defined,
    so that what a file loses while no agent runs is deregistered, too.
    """

    def __init__(self, folder: str, data: str, registry: Registry, *, scripts: bool) -> None:
        self._folder = folder
        self._state = os.path.join(data, _STATE)
        self._registry = registry
        self._scripts = scripts
        self._lock = asyncio.Lock()

    async def start(self) -> None:
        await self.load()

    async def stop(self) -> None:
        """What is registered stays: the next agent takes it over."""

    async def load(self) -> None:
        """Register what the files define, and deregister what they no longer do.

        Raises ConfigProblem naming a file, key and value; then nothing is changed. Raises StoreError.
        """
        async with self._lock:
            found = await asyncio.to_thread(self._read)
            services = {one.instance.id for one in found.services}
            checks = {one.id for one in found.checks}
            before = self._before()
            if not (services or checks or any(before)):
                return
            # First the ids, so that an agent that is killed now leaves nothing that nobody knows of.
            self._keep(services | before[0], checks | before[1])
            await self._register(found)
            for name in before[1] - checks:
                with contextlib.suppress(NotRegistered):
                    await self._registry.deregister_check(name)
            for name in before[0] - services:
                with contextlib.suppress(NotRegistered):
                    await self._registry.deregister(name)
            self._keep(services, checks)
            log.info("%d services and %d checks of %s", len(services), len(checks), self._folder)

    async def _register(self, found: Found) -> None:
        """Raises ConfigProblem for what belongs to an attachment, StoreError."""
        try:
            for one in found.services:
                await self._registry.register(one.instance, one.checks, replace_checks=True)
            for check in found.checks:
                await self._registry.register_check(check)
        except Taken as error:
            raise ConfigProblem(f"{self._folder}: {error}", hint="give it another id") from None
        except NotRegistered as error:
            raise ConfigProblem(f"{self._folder}: a check is of an unknown service: {error}") from None

    def _read(self) -> Found:
        """Raises ConfigProblem."""
        services: list[Registration] = []
        checks: list[CheckDefinition] = []
        for path in self._paths():
            try:
                found = definition_files.read((path,))
                services += [self._service(one) for one in found.services]
                checks += [self._check(one) for one in found.checks]
            except BadDefinitionFile as error:
                raise ConfigProblem(str(error), hint="see weft validate") from None
            except BadField as error:
                raise ConfigProblem(f"{path}: {error}", hint="see weft validate") from None
            for key in found.ignored:
                log.warning("ignoring %s: not a definition of a service or check", key)
        _refuse_duplicates(self._folder, "service", [one.instance.id for one in services])
        _refuse_duplicates(self._folder, "check", [one.id for one in checks])
        return Found(tuple(services), tuple(checks))

    def _paths(self) -> list[str]:
        try:
            names = sorted(os.listdir(self._folder))
        except (FileNotFoundError, NotADirectoryError):
            return []
        except OSError as error:
            raise ConfigProblem(f"cannot read {self._folder}: {error.strerror}") from error
        return [os.path.join(self._folder, name) for name in names if name.endswith(_ENDS) and name[0] != "."]

    def _service(self, found: JsonObject) -> Registration:
        """Raises BadField."""
        registration = parse_service(found, self._registry.node.name, scripts=self._scripts)
        if CONSUL_SERVICE in (registration.instance.id, registration.instance.name.lower()):
            raise BadField(f'Invalid service name: "{CONSUL_SERVICE}" is reserved for the agent')
        return registration

    def _check(self, found: JsonObject) -> CheckDefinition:
        """Raises BadField."""
        fields = Fields(found)
        if not fields.name("Name"):
            raise BadField("Missing check name")
        check = parse_check(fields, scripts=self._scripts)
        check = replace(check, id=check.id or check.name)
        if check.id == SERF_HEALTH:
            raise BadField(f'Invalid check: "{SERF_HEALTH}" is reserved for the agent')
        return check

    def _before(self) -> tuple[set[str], set[str]]:
        """The ids of services and of checks that files defined before."""
        try:
            found = json.loads(files.read(self._state, _MOST_BYTES))
            return set(map(str, found["services"])), set(map(str, found["checks"]))
        except FileNotFoundError:
            pass
        except (OSError, ValueError, KeyError, TypeError) as error:
            log.warning("%s cannot be read, what files have lost stays registered: %s", self._state, error)
        return set(), set()

    def _keep(self, services: set[str], checks: set[str]) -> None:
        files.make_directory(os.path.dirname(self._state), "the agent's data")
        content = json.dumps({"services": sorted(services), "checks": sorted(checks)})
        files.write(self._state, content.encode(), "the ids of definitions", durable=True)


def _refuse_duplicates(folder: str, what: str, ids: Sequence[str]) -> None:
    if twice := {one for one in ids if ids.count(one) > 1}:
        raise ConfigProblem(f"{folder}: the {what} {min(twice)} is defined twice", hint="give one another id")
