"""The OpenAPI 3.1 description, generated from the declared endpoints."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from discovery.api.router import Route
from discovery.api.serialize import Json
from discovery.json_schema import Schema
from weft import __version__

_FLAG = "its presence counts, or a boolean"
PARAMETERS: Mapping[str, str] = {
    "acquire": "lock the key for this session",
    "cached": "accepted and ignored: every answer comes from memory",
    "cas": "only if the key's ModifyIndex is this; 0: only if it does not exist",
    "consistent": "everything that was written before is in the answer",
    "dc": "this agent's datacenter; any other is an error",
    "enable": "a boolean, required",
    "filter": 'an expression over the fields of an item: Port == 80 and "v1" in Tags',
    "flags": "an unsigned number of 64 bits that is kept with the value",
    "format": "text: the status alone; prometheus: as Prometheus reads it",
    "from": "the container, address or host that sends",
    "hash": "the ContentHash that the answer must differ from",
    "index": "the X-Consul-Index that the answer must be past",
    "keys": f"names only; {_FLAG}",
    "limit": "the most instances wanted",
    "logjson": f"the log as JSON; {_FLAG}",
    "loglevel": "the lowest level wanted: trace, debug, info, warn or err; info if not given",
    "name": "only events of this name",
    "near": "the node whose items come first; _agent is this one",
    "node": "a regular expression that is kept with the event",
    "node-meta": "KEY:VALUE that the node must have; may be repeated",
    "note": "what the check says",
    "peer": "the cluster that instances were imported from; none is, so nothing is found",
    "passing": f"only instances of which every check passes; {_FLAG}",
    "port": "the destination port, from 1 to 65535",
    "pretty": "indent the JSON",
    "proto": "tcp (if not given), udp, sctp or icmp",
    "prune": "accepted and ignored: what is removed is gone",
    "raw": "the value itself",
    "reason": "why, for people",
    "recurse": f"all keys that begin so; {_FLAG}",
    "release": "unlock the key, which this session holds",
    "replace-existing-checks": f"end the service's checks that are not named; {_FLAG}",
    "service": "a regular expression that is kept with the event",
    "policy": "the id of a policy that the token must have",
    "role": "the id of a role that the token must have",
    "separator": "names are cut behind the first of these after the prefix",
    "servicename": "the name of a service whose identity the token must have",
    "stale": "accepted: every answer comes from this agent's memory",
    "tag": "a tag that the instance must have; may be repeated",
    "to": "the container, address or host that receives",
    "wait": "how long to wait at most, as Go writes times; 5m if not given, 10m at most",
    "wan": "accepted and ignored",
}
"""What each parameter means."""

_ERRORS = {
    "400": "What is wrong with the request, in a sentence",
    "401": "There are no ACLs",
    "403": "The caller may not do this, or the request comes from another site's page",
    "404": "There is no such thing",
    "405": "The path is not served for this method",
    "413": "The body is too large",
    "500": "The store cannot serve",
}
_INDEX = {"X-Consul-Index": {"schema": {"type": "integer"}, "description": "Give it as ?index to wait for a change"}}


def describe(routes: Sequence[Route]) -> Json:
    """The description of all routes under ``/v1/``."""
    components: Json = {}
    paths: dict[str, Json] = {}
    for route in routes:
        if not route.path.startswith("/v1/"):
            continue
        place = paths.setdefault(template(route), {})
        for method in route.methods:
            place[method.lower()] = _operation(route, method, components)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "weft agent",
            "version": __version__,
            "description": "Service discovery, compatible with Consul's HTTP API. Names of fields that are sent may be"
            " written in any case, with or without underscores.",
        },
        "servers": [{"url": "http://127.0.0.1:8500"}],
        "paths": paths,
        "components": {"schemas": components},
    }


def template(route: Route) -> str:
    """The path in OpenAPI's notation: ``/v1/kv/{key}``."""
    start, name, rest = route.parts
    return f"{start}{{{name}}}{rest}" if name else start


def _operation(route: Route, method: str, components: Json) -> Json:
    parameters: list[Json] = [
        {
            "name": name,
            "in": "query",
            "description": PARAMETERS[name],
            "schema": {"type": "string"},
            "allowEmptyValue": True,
        }
        for name in route.parameters
    ]
    if name := route.parts[1]:
        parameters.insert(0, {"name": name, "in": "path", "required": True, "schema": {"type": "string"}})
    answer: Json = {"description": "Done" if route.response is None else "The answer"}
    if route.response is not None:
        answer["content"] = {"application/json": {"schema": _component_ref(route.response, components)}}
    if route.blocking:
        answer["headers"] = _INDEX
    responses: dict[str, Json] = {
        "200": answer,
        **{str(status): {**answer, "description": "As it is"} for status in route.statuses},
    }
    for status, description in _ERRORS.items():
        text: Json = {"description": description, "content": {"text/plain": {"schema": {"type": "string"}}}}
        responses.setdefault(status, text)
    found: Json = {"summary": route.summary, "responses": responses}
    if parameters:
        found["parameters"] = parameters
    if route.request_body is not None:
        found["requestBody"] = {
            "content": {"application/json": {"schema": _component_ref(route.request_body, components)}}
        }
    if method != route.method:
        found["deprecated"] = True
    return found


def _component_ref(schema: Schema, components: Json) -> Json:
    """The schema, with titled ones moved to components and referenced."""
    plain: Json = {**schema}
    if "items" in schema:
        plain["items"] = _component_ref(schema["items"], components)
    if "properties" in schema:
        plain["properties"] = {name: _component_ref(part, components) for name, part in schema["properties"].items()}
    values = schema.get("additionalProperties", True)
    if not isinstance(values, bool):
        plain["additionalProperties"] = _component_ref(values, components)
    title = schema.get("title")
    if title is None or isinstance(schema["type"], list):
        return plain
    components[title] = plain
    return {"$ref": f"#/components/schemas/{title}"}
