"""The OpenAPI description is compared with the routes, and real replies with its schemas."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import pytest

from discovery.api import disabled_endpoint
from discovery.api.openapi import PARAMETERS, template
from discovery.page import tracing
from lab.agent import LabAgent
from weft.processes import Finished


@pytest.fixture(scope="module")
def description(agent: LabAgent) -> dict[str, Any]:
    found = agent.get("/v1/openapi.json")
    assert found.status == 200
    described: dict[str, Any] = found.json
    return described


def test_exactly_the_routes_are_described(agent: LabAgent, description: dict[str, Any]) -> None:
    assert description["openapi"] == "3.1.0"
    routes = [route for route in agent.api.router.routes if route.path != "/metrics"]  # no document of JSON
    served = {(template(route), method.lower()) for route in routes for method in route.methods}
    assert {(path, method) for path, methods in description["paths"].items() for method in methods} == served


def test_every_parameter_is_described_and_used(agent: LabAgent) -> None:
    async def unused(arguments: Sequence[str]) -> Finished:
        raise NotImplementedError

    routes = (*agent.api.router.routes, tracing.route(unused))  # the page's, which is served beside the API
    assert {name for route in routes for name in route.parameters} == PARAMETERS.keys()


def test_every_reference_has_a_target(description: dict[str, Any]) -> None:
    found = set()

    def walk(part: Any) -> None:
        if isinstance(part, dict):
            if "$ref" in part:
                found.add(part["$ref"].rpartition("/")[2])
            for inner in part.values():
                walk(inner)
        elif isinstance(part, list):
            for inner in part:
                walk(inner)

    walk(description)
    assert found == description["components"]["schemas"].keys()


def faults(value: Any, schema: dict[str, Any], known: dict[str, Any], place: str = "$") -> list[str]:
    """Differences between a value and a schema; a field that is not in the schema is one, too."""
    if "$ref" in schema:
        schema = known[schema["$ref"].rpartition("/")[2]]
    kinds = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
    real = {str: "string", bool: "boolean", int: "integer", float: "number", list: "array", dict: "object"}
    kind = "null" if value is None else real[type(value)]
    if kind not in kinds:
        return [f"{place} is {kind}, not {kinds}"]
    found = []
    if kind == "array":
        for number, item in enumerate(value):
            found += faults(item, schema["items"], known, f"{place}[{number}]")
    if kind == "object":
        found += [f"{place}.{name} is missing" for name in schema.get("required", ()) if name not in value]
        more = schema.get("additionalProperties", False)
        for name, item in value.items():
            if name in schema.get("properties", {}):
                found += faults(item, schema["properties"][name], known, f"{place}.{name}")
            elif more is False:
                found.append(f"{place}.{name} is not described")
            elif more is not True:
                found += faults(item, more, known, f"{place}.{name}")
    return found


SERVICE = {
    "Name": "web",
    "Port": 80,
    "Ports": {"admin": 81},
    "Tags": ["v1"],
    "Meta": {"a": "b"},
    "TaggedAddresses": {"wan": {"Address": "192.0.2.1", "Port": 80}},
    "Checks": [
        {"TTL": "1h", "Status": "passing"},
        {"HTTP": "http://127.0.0.1:1/", "Interval": "1h", "Header": {"Host": ["a"]}, "TLSSkipVerify": True},
    ],
}


TXN = [
    {"Node": {"Verb": "set", "Node": {"Node": "t", "Address": "192.0.2.7"}}},
    {"Service": {"Verb": "set", "Node": "t", "Service": {"Service": "s"}}},
    {"Check": {"Verb": "set", "Check": {"Node": "t", "CheckID": "c", "ServiceID": "s", "Status": "passing"}}},
    {"Node": {"Verb": "delete", "Node": {"Node": "t"}}},
]


def test_answers_are_as_described(agent: LabAgent, description: dict[str, Any]) -> None:
    known = description["components"]["schemas"]
    session = agent.put("/v1/session/create", {"ServiceChecks": [{"ID": "serfHealth"}], "TTL": "1h"}).json["ID"]
    query = agent.put("/v1/query", {"Service": {"Service": "web"}}).json["ID"]
    calls: list[tuple[str, str, str, object]] = [
        ("put", "/v1/agent/service/register", "/v1/agent/service/register", SERVICE),
        ("put", "/v1/agent/check/register", "/v1/agent/check/register", {"Name": "c", "TTL": "1h"}),
        ("put", "/v1/agent/check/pass/{id}", "/v1/agent/check/pass/c", None),
        ("get", "/v1/agent/check/warn/{id}", "/v1/agent/check/warn/c", None),
        ("put", "/v1/agent/check/fail/{id}", "/v1/agent/check/fail/c", None),
        ("put", "/v1/agent/check/update/{id}", "/v1/agent/check/update/c", {"Status": "passing"}),
        (
            "put",
            "/v1/catalog/register",
            "/v1/catalog/register",
            {"Node": "x", "Address": "h", "Service": {"Service": "web"}},
        ),
        ("put", "/v1/kv/{key}", f"/v1/kv/a?acquire={session}", b"1"),
        ("get", "/v1/agent/self", "/v1/agent/self", None),
        ("get", "/v1/agent/members", "/v1/agent/members", None),
        ("get", "/v1/agent/services", "/v1/agent/services", None),
        ("get", "/v1/agent/service/{id}", "/v1/agent/service/web", None),
        ("get", "/v1/agent/checks", "/v1/agent/checks", None),
        ("get", "/v1/agent/health/service/name/{name}", "/v1/agent/health/service/name/web", None),
        ("get", "/v1/agent/health/service/id/{id}", "/v1/agent/health/service/id/web", None),
        ("get", "/v1/agent/metrics", "/v1/agent/metrics", None),
        ("get", "/v1/agent/version", "/v1/agent/version", None),
        ("get", "/v1/catalog/datacenters", "/v1/catalog/datacenters", None),
        ("get", "/v1/catalog/nodes", "/v1/catalog/nodes", None),
        ("get", "/v1/catalog/services", "/v1/catalog/services", None),
        ("get", "/v1/catalog/service/{service}", "/v1/catalog/service/web", None),
        ("get", "/v1/catalog/node/{node}", "/v1/catalog/node/n1", None),
        ("get", "/v1/catalog/node/{node}", "/v1/catalog/node/none", None),
        ("get", "/v1/catalog/node-services/{node}", "/v1/catalog/node-services/n1", None),
        ("get", "/v1/health/service/{service}", "/v1/health/service/web", None),
        ("get", "/v1/health/node/{node}", "/v1/health/node/n1", None),
        ("get", "/v1/health/checks/{service}", "/v1/health/checks/web", None),
        ("get", "/v1/health/state/{state}", "/v1/health/state/any", None),
        ("get", "/v1/weft/virtual-addresses", "/v1/weft/virtual-addresses", None),
        ("get", "/v1/status/leader", "/v1/status/leader", None),
        ("get", "/v1/status/peers", "/v1/status/peers", None),
        ("get", "/v1/kv/{key}", "/v1/kv/?recurse", None),
        ("put", "/v1/txn", "/v1/txn", [{"KV": {"Verb": "get", "Key": "a"}}, {"KV": {"Verb": "set", "Key": "b"}}]),
        ("put", "/v1/txn", "/v1/txn", [{"KV": {"Verb": "get", "Key": "none"}}]),
        ("put", "/v1/txn", "/v1/txn", TXN),
        ("put", "/v1/event/fire/{name}", "/v1/event/fire/e", b"x"),
        ("get", "/v1/event/list", "/v1/event/list", None),
        ("put", "/v1/query", "/v1/query", {"Name": "q", "Service": {"Service": "web"}, "DNS": {"TTL": "10s"}}),
        ("get", "/v1/query", "/v1/query", None),
        ("get", "/v1/query/{query}", f"/v1/query/{query}", None),
        ("put", "/v1/query/{query}", f"/v1/query/{query}", {"Service": {"Service": "web"}}),
        ("get", "/v1/query/{query}/execute", f"/v1/query/{query}/execute", None),
        ("get", "/v1/query/{query}/explain", f"/v1/query/{query}/explain", None),
        ("delete", "/v1/query/{query}", f"/v1/query/{query}", None),
        ("get", "/v1/internal/ui/services", "/v1/internal/ui/services", None),
        ("get", "/v1/internal/ui/nodes", "/v1/internal/ui/nodes", None),
        ("get", "/v1/operator/usage", "/v1/operator/usage", None),
        ("get", "/v1/coordinate/datacenters", "/v1/coordinate/datacenters", None),
        ("get", "/v1/agent/host", "/v1/agent/host", None),
        ("get", "/v1/session/list", "/v1/session/list", None),
        ("get", "/v1/session/info/{id}", f"/v1/session/info/{session}", None),
        ("get", "/v1/session/node/{node}", "/v1/session/node/n1", None),
        ("put", "/v1/session/renew/{id}", f"/v1/session/renew/{session}", None),
        ("put", "/v1/session/create", "/v1/session/create", {}),
        ("put", "/v1/agent/service/maintenance/{id}", "/v1/agent/service/maintenance/web?enable=true&reason=r", None),
        ("put", "/v1/agent/maintenance", "/v1/agent/maintenance?enable=false", None),
        ("put", "/v1/agent/reload", "/v1/agent/reload", None),
        ("put", "/v1/agent/join/{address}", "/v1/agent/join/10.0.0.1", None),
        ("get", "/v1/openapi.json", "/v1/openapi.json", None),
        ("delete", "/v1/kv/{key}", "/v1/kv/?recurse", None),
        ("put", "/v1/session/destroy/{id}", f"/v1/session/destroy/{session}", None),
        ("put", "/v1/agent/check/deregister/{id}", "/v1/agent/check/deregister/c", None),
        ("put", "/v1/agent/service/deregister/{id}", "/v1/agent/service/deregister/web", None),
        ("put", "/v1/catalog/deregister", "/v1/catalog/deregister", {"Node": "x"}),
        ("put", "/v1/agent/force-leave/{node}", "/v1/agent/force-leave/x", None),
        ("put", "/v1/agent/leave", "", None),
        ("get", "/v1/agent/monitor", "", None),
        ("get", "/v1/snapshot", "", None),  # an archive: test_api_snapshot
        ("put", "/v1/snapshot", "", None),
    ]
    off = [(route.method.lower(), template(route)) for route in disabled_endpoint.routes(acls=False)]
    off += [  # without tokens
        (method, path)
        for path, methods in description["paths"].items()
        for method in methods
        if path.startswith(("/v1/acl/", "/v1/agent/token/")) and (method, path) not in off
    ]
    calls += [(method, path, re.sub(r"{.*?}", "x", path), {} if method != "get" else None) for method, path in off]
    described = {(method, path) for path, methods in description["paths"].items() for method in methods}
    other_ways = {("get", "/v1/agent/check/pass/{id}"), ("get", "/v1/agent/check/fail/{id}")}
    other_ways |= {("put", "/v1/agent/check/warn/{id}"), ("post", "/v1/query")}
    assert {(method, path) for method, path, _, _ in calls} == described - other_ways
    for method, path, url, body in calls:
        if not url:
            continue  # it would stop the agent of the other tests, or never end
        reply = agent.request(method.upper(), url, body)
        answer = description["paths"][path][method]["responses"].get(str(reply.status))
        assert answer is not None, f"{method} {url}: {reply.status} {reply.text}"
        content = answer.get("content")
        if content is None:
            assert reply.body == b"", url
            continue
        [(kind, found)] = content.items()
        assert reply.headers["Content-Type"].startswith(kind), url
        value = reply.json_of_floats if kind == "application/json" else reply.text
        assert faults(value, found["schema"], known) == [], url
        if kind == "application/json":
            assert ("headers" in answer) == ("X-Consul-Index" in reply.headers), url


def test_the_comparison_sees_differences() -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
    assert faults({"a": 1}, schema, {}) == []
    for value in ({}, {"a": "1"}, {"a": 1, "b": 2}, [], None, {"a": True}):
        assert faults(value, schema, {})
