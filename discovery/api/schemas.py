"""The shapes of answers, as JSON schemas: for OpenAPI, for filters, and for the tests of what is really answered.

Source: https://developer.hashicorp.com/consul/api-docs and the structures of Consul's Go client.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Schema = Mapping[str, Any]

TEXT: Schema = {"type": "string"}
NUMBER: Schema = {"type": "integer"}
FLAG: Schema = {"type": "boolean"}
ANYTHING: Schema = {"type": "object", "additionalProperties": True}


def many(items: Schema) -> Schema:
    """A list."""
    return {"type": "array", "items": items}


def table(values: Schema) -> Schema:
    """An object whose keys are the user's."""
    return {"type": "object", "additionalProperties": values}


def record(title: str, *, optional: Mapping[str, Schema] | None = None, **properties: Schema) -> Schema:
    """An object that always has these fields."""
    return {
        "title": title,
        "type": "object",
        "properties": {**properties, **(optional or {})},
        "required": sorted(properties),
    }


def nullable(schema: Schema) -> Schema:
    """It, or null."""
    return {**schema, "type": [schema["type"], "null"]}


WORDS = many(TEXT)
TEXTS = table(TEXT)
INDEXES = {"CreateIndex": NUMBER, "ModifyIndex": NUMBER}
WEIGHTS = record("Weights", Passing=NUMBER, Warning=NUMBER)
PLACE = record("ServiceAddress", Address=TEXT, Port=NUMBER)
DEFINITION: Schema = {
    "title": "CheckDefinition",
    "type": "object",
    "properties": {
        **dict.fromkeys(("HTTP", "Method", "Body", "TCP", "UDP", "TLSServerName", "AliasNode", "AliasService"), TEXT),
        **dict.fromkeys(("Interval", "Timeout", "TTL", "DeregisterCriticalServiceAfter"), TEXT),
        "TLSSkipVerify": FLAG,
        "Header": table(WORDS),
        "ScriptArgs": WORDS,
    },
}
NODE = record("Node", ID=TEXT, Node=TEXT, Address=TEXT, Datacenter=TEXT, TaggedAddresses=TEXTS, Meta=TEXTS, **INDEXES)
_SERVICE: dict[str, Schema] = {
    "Kind": TEXT,
    "ID": TEXT,
    "Service": TEXT,
    "Tags": WORDS,
    "Meta": TEXTS,
    "Port": NUMBER,
    "Address": TEXT,
    "TaggedAddresses": table(PLACE),
    "Weights": WEIGHTS,
    "EnableTagOverride": FLAG,
}
PORTS = many(record("ServicePort", Name=TEXT, Port=NUMBER, Default=FLAG))
"""Named ports, there only if a service has some: clients that know them (Consul 1.22) expect a list, others nothing."""
SERVICE = record("Service", optional={"Ports": PORTS}, **_SERVICE, **INDEXES)
AGENT_SERVICE = record("AgentService", optional={"Ports": PORTS, "ContentHash": TEXT}, **_SERVICE, Datacenter=TEXT)
CHECK = record(
    "Check",
    Node=TEXT,
    CheckID=TEXT,
    Name=TEXT,
    Status=TEXT,
    Notes=TEXT,
    Output=TEXT,
    ServiceID=TEXT,
    ServiceName=TEXT,
    ServiceTags=WORDS,
    Type=TEXT,
    Interval=TEXT,
    Timeout=TEXT,
    ExposedPort=NUMBER,
    Definition=DEFINITION,
    **INDEXES,
)
CATALOG_SERVICE = record(
    "CatalogService",
    optional={"ServicePorts": PORTS},
    ID=TEXT,
    Node=TEXT,
    Address=TEXT,
    Datacenter=TEXT,
    TaggedAddresses=TEXTS,
    NodeMeta=TEXTS,
    ServiceKind=TEXT,
    ServiceID=TEXT,
    ServiceName=TEXT,
    ServiceTags=WORDS,
    ServiceAddress=TEXT,
    ServiceTaggedAddresses=table(PLACE),
    ServiceWeights=WEIGHTS,
    ServiceMeta=TEXTS,
    ServicePort=NUMBER,
    ServiceEnableTagOverride=FLAG,
    ServiceProxy=ANYTHING,
    ServiceConnect=ANYTHING,
    **INDEXES,
)
HEALTH = record("ServiceHealth", Node=NODE, Service=SERVICE, Checks=many(CHECK))
CATALOG_NODE = record("CatalogNode", Node=NODE, Services=table(SERVICE))
CATALOG_NODE_SERVICES = record("CatalogNodeServices", Node=NODE, Services=many(SERVICE))
AGENT_HEALTH = record("AgentServiceHealth", AggregatedStatus=TEXT, Service=AGENT_SERVICE, Checks=many(CHECK))
MEMBER = record(
    "Member",
    Name=TEXT,
    Addr=TEXT,
    Port=NUMBER,
    Tags=TEXTS,
    Status=NUMBER,
    **dict.fromkeys(("ProtocolMin", "ProtocolMax", "ProtocolCur", "DelegateMin", "DelegateMax", "DelegateCur"), NUMBER),
)
SELF = record(
    "Agent",
    Config=record(
        "AgentConfig",
        Datacenter=TEXT,
        PrimaryDatacenter=TEXT,
        NodeName=TEXT,
        NodeID=TEXT,
        Server=FLAG,
        Revision=TEXT,
        Version=TEXT,
    ),
    DebugConfig=ANYTHING,
    Coord=ANYTHING,
    Member=MEMBER,
    Stats=ANYTHING,
    Meta=TEXTS,
)
_ENTRY = {"LockIndex": NUMBER, "Key": TEXT, "Flags": NUMBER, "Value": nullable(TEXT), **INDEXES}
ENTRY = record("KVEntry", optional={"Session": TEXT}, **_ENTRY)
SESSION = record(
    "Session",
    ID=TEXT,
    Name=TEXT,
    Node=TEXT,
    LockDelay=NUMBER,
    Behavior=TEXT,
    TTL=TEXT,
    Checks=WORDS,
    NodeChecks=WORDS,
    ServiceChecks=many(record("SessionServiceCheck", ID=TEXT)),
    **INDEXES,
)
TRANSACTION = record(
    "Transaction",
    Results=many(record("TransactionResult", KV=ENTRY)),
    Errors=many(record("TransactionError", OpIndex=NUMBER, What=TEXT)),
)
METRICS = record(
    "Metrics",
    Timestamp=TEXT,
    Gauges=many(ANYTHING),
    Points=many(ANYTHING),
    Counters=many(ANYTHING),
    Samples=many(ANYTHING),
)
VERSION = record("Version", SHA=TEXT, BuildDate=TEXT, HumanVersion=TEXT, FIPS=TEXT)

# What is sent

CHECK_SENT: Schema = {
    "title": "CheckRegistration",
    "type": "object",
    "description": "TTL, or Interval and one of HTTP, TCP, UDP, Args; or AliasService. Times as Go writes them: 10s.",
    "properties": {
        **dict.fromkeys(("ID", "CheckID", "Name", "ServiceID", "Notes", "Status"), TEXT),
        **DEFINITION["properties"],
        "Args": WORDS,
        **dict.fromkeys(("OutputMaxSize", "SuccessBeforePassing", "FailuresBeforeWarning"), NUMBER),
        "FailuresBeforeCritical": NUMBER,
    },
}
SERVICE_SENT: Schema = {
    "title": "ServiceRegistration",
    "type": "object",
    "required": ["Name"],
    "properties": {
        "Name": TEXT,
        **{name: schema for name, schema in _SERVICE.items() if name != "Service"},
        "Ports": table(NUMBER),
        "Check": CHECK_SENT,
        "Checks": many(CHECK_SENT),
    },
}
REGISTRATION_SENT: Schema = {
    "title": "CatalogRegistration",
    "type": "object",
    "required": ["Node"],
    "properties": {
        **dict.fromkeys(("Node", "Address", "ID", "Datacenter"), TEXT),
        "TaggedAddresses": TEXTS,
        "NodeMeta": TEXTS,
        "SkipNodeUpdate": FLAG,
        "Service": {"type": "object", "properties": _SERVICE},
        "Check": {"type": "object", "properties": CHECK["properties"]},
        "Checks": many({"type": "object", "properties": CHECK["properties"]}),
    },
}
DEREGISTRATION_SENT: Schema = {
    "title": "CatalogDeregistration",
    "type": "object",
    "required": ["Node"],
    "properties": {"Node": TEXT, "ServiceID": TEXT, "CheckID": TEXT},
}
UPDATE_SENT: Schema = {"title": "CheckUpdate", "type": "object", "properties": {"Status": TEXT, "Output": TEXT}}
SESSION_SENT: Schema = {
    "title": "SessionRequest",
    "type": "object",
    "properties": {
        **dict.fromkeys(("Name", "Node", "TTL", "LockDelay", "Behavior"), TEXT),
        "Checks": WORDS,
        "NodeChecks": WORDS,
        "ServiceChecks": many({"type": "object", "properties": {"ID": TEXT}}),
    },
}
OPERATIONS_SENT = many(
    {
        "title": "Operation",
        "type": "object",
        "properties": {
            "KV": {
                "type": "object",
                "required": ["Verb"],
                "properties": {
                    **dict.fromkeys(("Verb", "Key", "Value", "Session"), TEXT),
                    "Flags": NUMBER,
                    "Index": NUMBER,
                },
            }
        },
    }
)
