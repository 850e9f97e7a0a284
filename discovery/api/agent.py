"""``/v1/agent``: this node's own services and checks."""

from __future__ import annotations

import asyncio
import hashlib
import json
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import Any

from cni_plugin import __version__
from discovery import catalog as topics
from discovery.api import schemas, views
from discovery.api.answers import Answers, write_json
from discovery.api.lists import filtered
from discovery.api.problem import Problem
from discovery.api.question import Question, parse_bool
from discovery.api.routes import TEXT, Answer, Route
from discovery.api.settings import Settings
from discovery.catalog import Catalog
from discovery.definitions import parse_check
from discovery.fields import BadField, Fields
from discovery.layout import key_of
from discovery.metrics import Metrics
from discovery.registration import parse_service
from discovery.registry import Registry, Unknown
from discovery.values import NODE_CHECK, OWN_SERVICE, Check, Instance, Node, Status, Value, worst
from store import Delete, Store

Hook = Callable[[], Awaitable[None]]

_AGGREGATED = {"passing": 200, "warning": 429}


class AgentRoutes:
    """The handlers of ``/v1/agent``. ``reload`` and ``leave`` are what the agent does for these calls."""

    def __init__(
        self,
        catalog: Catalog,
        registry: Registry,
        store: Store,
        settings: Settings,
        metrics: Metrics,
        answers: Answers,
        *,
        reload: Hook | None = None,
        leave: Hook | None = None,
    ) -> None:
        self._catalog = catalog
        self._registry = registry
        self._store = store
        self._settings = settings
        self._metrics = metrics
        self._answers = answers
        self._reload = reload
        self._leave = leave

    def routes(self) -> tuple[Route, ...]:
        """The table of what is served."""
        return (*self._reading(), *self._service_writing(), *self._check_writing(), *self._agent_writing())

    def _reading(self) -> tuple[Route, ...]:
        health = schemas.many(schemas.AGENT_HEALTH)
        sick = (429, 503)
        return (
            Route("GET", "/v1/agent/self", "This agent's configuration and member", self.self_, answer=schemas.SELF),
            Route(
                "GET", "/v1/agent/members", "The nodes that run an agent", self.members, ("wan",),
                schemas.many(schemas.MEMBER),
            ),
            Route(
                "GET", "/v1/agent/services", "The services of this node, by id", self.services, ("filter",),
                schemas.table(schemas.AGENT_SERVICE),
            ),
            Route(
                "GET", "/v1/agent/service/:id", "One service of this node; waits for a change of ?hash", self.service,
                ("hash", "wait"), schemas.AGENT_SERVICE,
            ),
            Route(
                "GET", "/v1/agent/checks", "The checks of this node, by id", self.checks, ("filter",),
                schemas.table(schemas.CHECK),
            ),
            Route(
                "GET", "/v1/agent/health/service/name/:name", "The health of this node's instances of a service",
                self.health_by_name, ("format",), health, sick,
            ),
            Route(
                "GET", "/v1/agent/health/service/id/:id", "The health of one instance on this node", self.health_by_id,
                ("format",), schemas.AGENT_HEALTH, sick,
            ),
            Route("GET", "/v1/agent/metrics", "What this agent counts", self.metrics, ("format",), schemas.METRICS),
            Route("GET", "/v1/agent/version", "This agent's version", self.version, answer=schemas.VERSION),
        )  # fmt: skip

    def _service_writing(self) -> tuple[Route, ...]:
        return (
            Route(
                "PUT", "/v1/agent/service/register", "Register a service, or change it in place", self.register,
                ("replace-existing-checks",), body=schemas.SERVICE_SENT, writes=True,
            ),
            Route("PUT", "/v1/agent/service/deregister/:id", "End a service", self.deregister, writes=True),
            Route(
                "PUT", "/v1/agent/service/maintenance/:id", "Take a service out of service, or back",
                self.maintain_service, ("enable", "reason"), writes=True,
            ),
        )  # fmt: skip

    def _check_writing(self) -> tuple[Route, ...]:
        words = (("pass", Status.PASSING), ("warn", Status.WARNING), ("fail", Status.CRITICAL))
        return (
            Route(
                "PUT", "/v1/agent/check/register", "Register a check", self.register_check, body=schemas.CHECK_SENT,
                writes=True,
            ),
            Route("PUT", "/v1/agent/check/deregister/:id", "End a check", self.deregister_check, writes=True),
            *(
                Route(
                    "PUT", f"/v1/agent/check/{word}/:id", f"Report a TTL check as {status}", self._report(status),
                    ("note",), writes=True, old=("GET",),
                )
                for word, status in words
            ),
            Route(
                "PUT", "/v1/agent/check/update/:id", "Report a TTL check", self.update_check, body=schemas.UPDATE_SENT,
                writes=True,
            ),
        )  # fmt: skip

    def _agent_writing(self) -> tuple[Route, ...]:
        return (
            Route(
                "PUT", "/v1/agent/maintenance", "Take this node out of service, or back", self.maintain_node,
                ("enable", "reason"), writes=True,
            ),
            Route("PUT", "/v1/agent/reload", "Read the configuration again", self.reload, writes=True),
            Route("PUT", "/v1/agent/leave", "End this agent; its services vanish at once", self.leave, writes=True),
            Route("PUT", "/v1/agent/join/:address", "Refused: nodes meet in the store", self.join, writes=True),
            Route(
                "PUT", "/v1/agent/force-leave/:node", "Remove a node that is gone for good, with all on it",
                self.force_leave, ("prune", "wan"), writes=True,
            ),
        )  # fmt: skip

    # Reading

    async def self_(self, question: Question) -> Answer:
        node = self._registry.node
        config = {
            "Datacenter": node.datacenter,
            "PrimaryDatacenter": node.datacenter,
            "NodeName": node.name,
            "NodeID": node.id,
            "Server": True,
            "Revision": "",
            "Version": __version__,
        }
        found = {
            "Config": config,
            "DebugConfig": {},
            "Coord": {"Vec": [0.0] * 8, "Error": 1.5, "Adjustment": 0.0, "Height": 1e-05},
            "Member": views.member(node, (), __version__),
            "Stats": {},
            "Meta": dict(node.meta),
        }
        return Answer(write_json(found, question))

    async def members(self, question: Question) -> Answer:
        own = self._registry.node
        nodes = {node.name: node for node in self._catalog.nodes() if self._runs_agent(node)} | {own.name: own}
        found = [views.member(nodes[name], self._catalog.node_checks(name), __version__) for name in sorted(nodes)]
        return Answer(write_json(found, question))

    def _runs_agent(self, node: Node) -> bool:
        return any(check.id == NODE_CHECK for check in self._catalog.node_checks(node.name))

    async def services(self, question: Question) -> Answer:
        datacenter = self._registry.node.datacenter
        instances = self._registry.instances()
        found = {name: views.agent_service(instances[name], datacenter) for name in sorted(instances)}
        return Answer(write_json(filtered(found, question, schemas.AGENT_SERVICE), question))

    async def service(self, question: Question) -> Answer:
        node = self._registry.node
        _, seconds = question.waiting()
        clock = asyncio.get_running_loop().time
        end = clock() + seconds
        topic = topics.node(node.name)
        while True:
            seen = self._catalog.changed(topic)
            instance = self._registry.instances().get(question.name)
            if instance is None:
                raise Problem(404, f"unknown service ID: {question.name}")
            found = views.agent_service(instance, node.datacenter)
            digest = hashlib.sha256(json.dumps(found, sort_keys=True).encode()).hexdigest()[:16]
            if question.get("hash") != digest or clock() >= end:
                body = write_json({**found, "ContentHash": digest}, question)
                return Answer(body, headers={"X-Consul-ContentHash": digest})
            await self._answers.park(self._catalog.wait((topic,), seen, end - clock()))

    async def checks(self, question: Question) -> Answer:
        checks = self._registry.checks()
        found = {name: views.check(checks[name]) for name in sorted(checks)}
        return Answer(write_json(filtered(found, question, schemas.CHECK), question))

    async def health_by_name(self, question: Question) -> Answer:
        instances = [one for _, one in sorted(self._registry.instances().items()) if one.name == question.name]
        found = [self._health(one) for one in instances]
        if not found:
            text = f"ServiceName {question.name} Not Found"
            return Answer(text.encode(), 404, TEXT) if _wants_text(question) else Answer(b"[]", 404)
        status = max((one["AggregatedStatus"] for one in found), key=_severity)
        return _healthy(found, status, question)

    async def health_by_id(self, question: Question) -> Answer:
        instance = self._registry.instances().get(question.name)
        if instance is None:
            raise Problem(404, f"ServiceId {question.name} not found")
        found = self._health(instance)
        return _healthy(found, found["AggregatedStatus"], question)

    def _health(self, instance: Instance) -> dict[str, Any]:
        concerned = [
            check for _, check in sorted(self._registry.checks().items()) if check.service_id in ("", instance.id)
        ]
        return {
            "AggregatedStatus": _aggregated(concerned),
            "Service": views.agent_service(instance, self._registry.node.datacenter),
            "Checks": [views.check(check) for check in concerned],
        }

    async def metrics(self, question: Question) -> Answer:
        if question.get("format") == "prometheus":
            return Answer(self._metrics.text().encode(), type="text/plain; version=0.0.4; charset=utf-8")
        gauges, counters = [], []
        for kind, name, labels, number in self._metrics.samples():
            if kind == "gauge":
                gauges.append({"Name": name, "Value": number, "Labels": labels})
            else:
                counters.append({"Name": name, "Count": number, "Sum": number, "Labels": labels})
        found = {
            "Timestamp": time.strftime("%Y-%m-%d %H:%M:%S +0000 UTC", time.gmtime()),
            "Gauges": gauges,
            "Points": [],
            "Counters": counters,
            "Samples": [],
        }
        return Answer(write_json(found, question))

    async def version(self, question: Question) -> Answer:
        found = {"SHA": "", "BuildDate": "1970-01-01T00:00:00Z", "HumanVersion": __version__, "FIPS": ""}
        return Answer(write_json(found, question))

    # Services

    async def register(self, question: Question) -> Answer:
        try:
            registration = parse_service(
                await question.json(), self._registry.node.name, scripts=self._settings.scripts
            )
        except BadField as error:
            raise Problem(400, str(error)) from None
        instance = registration.instance
        if OWN_SERVICE in (instance.id, instance.name):
            raise Problem(400, f'Invalid service name: "{OWN_SERVICE}" is what this agent offers itself')
        asked = question.get("replace-existing-checks") in ("", "true")
        replace_checks = question.has("replace-existing-checks") and asked
        await self._registry.register(instance, registration.checks, replace_checks=replace_checks)
        await self._answers.settle()
        return Answer()

    async def deregister(self, question: Question) -> Answer:
        try:
            await self._registry.deregister(question.name)
        except Unknown:
            raise _unknown_service(question.name) from None
        await self._answers.settle()
        return Answer()

    async def maintain_service(self, question: Question) -> Answer:
        if not question.name:
            raise Problem(400, "Missing service ID")
        return await self._maintain(question, question.name)

    async def maintain_node(self, question: Question) -> Answer:
        return await self._maintain(question, "")

    async def _maintain(self, question: Question, instance_id: str) -> Answer:
        if not question.has("enable"):
            raise Problem(400, "Missing value for enable")
        enable = parse_bool(question.get("enable"), "Invalid value for enable")
        try:
            await self._registry.maintenance(enable, question.get("reason"), instance_id)
        except Unknown:
            raise _unknown_service(instance_id) from None
        await self._answers.settle()
        return Answer()

    # Checks

    async def register_check(self, question: Question) -> Answer:
        try:
            fields = Fields(await question.json())
            if not fields.name("Name"):
                raise Problem(400, "Missing check name")
            definition = parse_check(fields, scripts=self._settings.scripts)
        except BadField as error:
            raise Problem(400, str(error)) from None
        definition = replace(definition, id=definition.id or definition.name)
        if definition.id == NODE_CHECK:
            raise Problem(400, f'Invalid check: "{NODE_CHECK}" is this agent\'s own')
        try:
            await self._registry.register_check(definition)
        except Unknown:
            raise Problem(404, f'ServiceID "{definition.service_id}" does not exist') from None
        await self._answers.settle()
        return Answer()

    async def deregister_check(self, question: Question) -> Answer:
        if question.name == NODE_CHECK:
            raise _unknown_check(question.name)
        try:
            await self._registry.deregister_check(question.name)
        except Unknown:
            raise _unknown_check(question.name) from None
        await self._answers.settle()
        return Answer()

    def _report(self, status: Status) -> Callable[[Question], Awaitable[Answer]]:
        async def report(question: Question) -> Answer:
            return await self._update(question.name, status, question.get("note"))

        return report

    async def update_check(self, question: Question) -> Answer:
        try:
            fields = Fields(await question.json())
            status, output = fields.text("Status"), fields.text("Output", longest=512 * 1024)
        except BadField as error:
            raise Problem(400, f"Request decode failed: {error}") from None
        if status not in tuple(Status):
            raise Problem(400, f"Invalid check status: '{status[:40]}'")
        return await self._update(question.name, Status(status), output)

    async def _update(self, check_id: str, status: Status, output: str) -> Answer:
        definition = self._registry.definitions().get(check_id)
        if definition is None:
            raise _unknown_check(check_id)
        if definition.type != "ttl":
            raise Problem(400, f'CheckID "{check_id}" does not have associated TTL')
        try:
            await self._registry.report(check_id, status, output[: definition.output_max_size])
        except Unknown:
            raise _unknown_check(check_id) from None
        await self._answers.settle()
        return Answer()

    # The agent itself

    async def reload(self, question: Question) -> Answer:
        if self._reload is not None:
            await self._reload()
        return Answer()

    async def leave(self, question: Question) -> Answer:
        await (self._leave or self._registry.leave)()
        return Answer()

    async def join(self, question: Question) -> Answer:
        raise Problem(400, "weft's nodes meet in their store; give this agent the same store as the others have")

    async def force_leave(self, question: Question) -> Answer:
        name = question.name
        if name == self._registry.node.name:
            raise Problem(400, f"{name} is this agent's own node; use agent/leave")
        node = self._catalog.node(name)
        if node is None:
            raise Problem(400, f"agent: No node found with name '{name[:100]}'")
        await remove_node(self._store, self._catalog, node.name)
        await self._answers.settle()
        return Answer()


async def remove_node(store: Store, catalog: Catalog, name: str) -> None:
    """Delete a node from the catalog, with all that is on it; the node itself last. Raises StoreError."""
    gone: list[Value] = [*catalog.on_node(name), *catalog.node_checks(name)]
    operations = [Delete(key_of(one)) for one in gone] + [Delete(key_of(Node(name, "")))]
    for start in range(0, len(operations), 100):
        await store.transact((), operations[start : start + 100])


def _unknown_service(name: str) -> Problem:
    return Problem(404, f'Unknown service ID "{name}". Ensure that the service ID is passed, not the service name.')


def _unknown_check(name: str) -> Problem:
    return Problem(404, f'Unknown check ID "{name}". Ensure that the check ID is passed, not the check name.')


def _aggregated(checks: Sequence[Check]) -> str:
    return "maintenance" if any(check.maintenance for check in checks) else worst(checks).value


def _severity(status: str) -> int:
    return ("passing", "warning", "critical", "maintenance").index(status)


def _wants_text(question: Question) -> bool:
    if question.headers.get("Accept", "").startswith("text/plain"):
        return True
    return question.get("format") == "text"


def _healthy(found: object, status: str, question: Question) -> Answer:
    code = _AGGREGATED.get(status, 503)
    if _wants_text(question):
        return Answer(status.encode(), code, TEXT)
    return Answer(write_json(found, question), code)
