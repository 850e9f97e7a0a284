"""JSON schemas of requests and responses: for OpenAPI, filters and the tests of real responses.

Source: https://developer.hashicorp.com/consul/api-docs and the structs of Consul's Go client.
"""

from __future__ import annotations

from collections.abc import Mapping

from discovery.json_schema import Schema

STRING: Schema = {"type": "string"}
INTEGER: Schema = {"type": "integer"}
BOOLEAN: Schema = {"type": "boolean"}
ANY_OBJECT: Schema = {"type": "object", "additionalProperties": True}


def list_of(items: Schema) -> Schema:
    """A list."""
    return {"type": "array", "items": items}


def map_of(values: Schema) -> Schema:
    """A map with arbitrary keys."""
    return {"type": "object", "additionalProperties": values}


def struct(title: str, optional: Mapping[str, Schema] | None = None, /, **properties: Schema) -> Schema:
    """An object: its optional fields, then the required ones by name."""
    return {
        "title": title,
        "type": "object",
        "properties": {**properties, **(optional or {})},
        "required": sorted(properties),
    }


def nullable(schema: Schema) -> Schema:
    """The schema, or null."""
    kinds = schema["type"]
    return {**schema, "type": [*([kinds] if isinstance(kinds, str) else kinds), "null"]}


STRINGS = list_of(STRING)
STRING_MAP = map_of(STRING)
INDEXES = {"CreateIndex": INTEGER, "ModifyIndex": INTEGER}
WEIGHTS = struct("Weights", Passing=INTEGER, Warning=INTEGER)
SERVICE_ADDRESS = struct("ServiceAddress", Address=STRING, Port=INTEGER)
CHECK_DEFINITION: Schema = {
    "title": "CheckDefinition",
    "type": "object",
    "properties": {
        **dict.fromkeys(
            ("HTTP", "Method", "Body", "TCP", "UDP", "GRPC", "TLSServerName", "AliasNode", "AliasService"), STRING
        ),
        **dict.fromkeys(("Interval", "Timeout", "TTL", "DeregisterCriticalServiceAfter"), STRING),
        **dict.fromkeys(("TLSSkipVerify", "DisableRedirects", "TCPUseTLS", "GRPCUseTLS"), BOOLEAN),
        "Header": map_of(STRINGS),
        "ScriptArgs": STRINGS,
    },
}
NODE = struct(
    "Node",
    ID=STRING,
    Node=STRING,
    Address=STRING,
    Datacenter=STRING,
    TaggedAddresses=STRING_MAP,
    Meta=STRING_MAP,
    **INDEXES,
)
_SERVICE: dict[str, Schema] = {
    "ID": STRING,
    "Service": STRING,
    "Tags": STRINGS,
    "Meta": STRING_MAP,
    "Port": INTEGER,
    "Address": STRING,
    "Weights": WEIGHTS,
    "EnableTagOverride": BOOLEAN,
}
PORTS = list_of(struct("ServicePort", Name=STRING, Port=INTEGER, Default=BOOLEAN))
"""Named ports, present only if a service has any: new clients (Consul 1.22) expect a list, old ones
none.
"""
_IF_ANY: dict[str, Schema] = {"Kind": STRING, "TaggedAddresses": map_of(SERVICE_ADDRESS)}
"""Present if not empty, as in Consul."""
SERVICE = struct("Service", {"Ports": PORTS, **_IF_ANY}, **_SERVICE, **INDEXES)
AGENT_SERVICE = struct(
    "AgentService", {"Ports": PORTS, "ContentHash": STRING, **_IF_ANY}, **_SERVICE, Datacenter=STRING
)
CHECK = struct(
    "Check",
    Node=STRING,
    CheckID=STRING,
    Name=STRING,
    Status=STRING,
    Notes=STRING,
    Output=STRING,
    ServiceID=STRING,
    ServiceName=STRING,
    ServiceTags=STRINGS,
    Type=STRING,
    Interval=STRING,
    Timeout=STRING,
    ExposedPort=INTEGER,
    Definition=CHECK_DEFINITION,
    **INDEXES,
)
CATALOG_SERVICE = struct(
    "CatalogService",
    {"ServicePorts": PORTS},
    ID=STRING,
    Node=STRING,
    Address=STRING,
    Datacenter=STRING,
    TaggedAddresses=STRING_MAP,
    NodeMeta=STRING_MAP,
    ServiceKind=STRING,
    ServiceID=STRING,
    ServiceName=STRING,
    ServiceTags=STRINGS,
    ServiceAddress=STRING,
    ServiceTaggedAddresses=map_of(SERVICE_ADDRESS),
    ServiceWeights=WEIGHTS,
    ServiceMeta=STRING_MAP,
    ServicePort=INTEGER,
    ServiceEnableTagOverride=BOOLEAN,
    ServiceProxy=ANY_OBJECT,
    ServiceConnect=ANY_OBJECT,
    **INDEXES,
)
HEALTH = struct("ServiceHealth", Node=NODE, Service=SERVICE, Checks=list_of(CHECK))
CATALOG_NODE = struct("CatalogNode", Node=NODE, Services=map_of(SERVICE))
CATALOG_NODE_SERVICES = struct("CatalogNodeServices", Node=NODE, Services=list_of(SERVICE))
AGENT_HEALTH = struct("AgentServiceHealth", AggregatedStatus=STRING, Service=AGENT_SERVICE, Checks=list_of(CHECK))
MEMBER = struct(
    "Member",
    Name=STRING,
    Addr=STRING,
    Port=INTEGER,
    Tags=STRING_MAP,
    Status=INTEGER,
    **dict.fromkeys(
        ("ProtocolMin", "ProtocolMax", "ProtocolCur", "DelegateMin", "DelegateMax", "DelegateCur"), INTEGER
    ),
)
SELF = struct(
    "Agent",
    Config=struct(
        "AgentConfig",
        Datacenter=STRING,
        PrimaryDatacenter=STRING,
        NodeName=STRING,
        NodeID=STRING,
        Server=BOOLEAN,
        Revision=STRING,
        Version=STRING,
        WeftVersion=STRING,
    ),
    DebugConfig=ANY_OBJECT,
    Coord=ANY_OBJECT,
    Member=MEMBER,
    Stats=ANY_OBJECT,
    Meta=STRING_MAP,
    xDS=ANY_OBJECT,
)
_ENTRY = {"LockIndex": INTEGER, "Key": STRING, "Flags": INTEGER, "Value": nullable(STRING), **INDEXES}
KV_PAIR = struct("KVEntry", {"Session": STRING}, **_ENTRY)
SESSION = struct(
    "Session",
    ID=STRING,
    Name=STRING,
    Node=STRING,
    LockDelay=INTEGER,
    Behavior=STRING,
    TTL=STRING,
    Checks=STRINGS,
    NodeChecks=STRINGS,
    ServiceChecks=list_of(struct("SessionServiceCheck", ID=STRING)),
    **INDEXES,
)
TXN_RESPONSE = struct(
    "Transaction",
    Results=nullable(
        list_of(struct("TransactionResult", {"KV": KV_PAIR, "Node": NODE, "Service": SERVICE, "Check": CHECK}))
    ),
    Errors=nullable(list_of(struct("TransactionError", OpIndex=INTEGER, What=STRING))),
)
METRICS = struct(
    "Metrics",
    Timestamp=STRING,
    Gauges=list_of(ANY_OBJECT),
    Points=list_of(ANY_OBJECT),
    Counters=list_of(ANY_OBJECT),
    Samples=list_of(ANY_OBJECT),
)
EVENT = struct(
    "Event",
    ID=STRING,
    Name=STRING,
    Payload=nullable(STRING),
    NodeFilter=STRING,
    ServiceFilter=STRING,
    TagFilter=STRING,
    Version=INTEGER,
    LTime=INTEGER,
)
QUERY = struct(
    "PreparedQuery",
    ID=STRING,
    Name=STRING,
    Session=STRING,
    Token=STRING,
    Template=struct("QueryTemplate", Type=STRING, Regexp=STRING, RemoveEmptyTags=BOOLEAN),
    Service=struct(
        "QueryService",
        Service=STRING,
        Failover=ANY_OBJECT,
        OnlyPassing=BOOLEAN,
        IgnoreCheckIDs=STRINGS,
        Near=STRING,
        Tags=STRINGS,
        NodeMeta=STRING_MAP,
        ServiceMeta=STRING_MAP,
        Connect=BOOLEAN,
    ),
    DNS=struct("QueryDNS", TTL=STRING),
    **INDEXES,
)
QUERY_RESULT = struct(
    "QueryResult",
    Service=STRING,
    Nodes=list_of(HEALTH),
    DNS=struct("QueryDNS", TTL=STRING),
    Datacenter=STRING,
    Failovers=INTEGER,
)
VERSION = struct("Version", SHA=STRING, BuildDate=STRING, HumanVersion=STRING, FIPS=STRING, WeftVersion=STRING)

# Request bodies

CHECK_REQUEST: Schema = {
    "title": "CheckRegistration",
    "type": "object",
    "description": "TTL, or Interval and one of HTTP, TCP, UDP, GRPC, Args; or AliasService. Times are Go's: 10s.",
    "properties": {
        **dict.fromkeys(("ID", "CheckID", "Name", "ServiceID", "Notes", "Status"), STRING),
        **CHECK_DEFINITION["properties"],
        "Args": STRINGS,
        **dict.fromkeys(("OutputMaxSize", "SuccessBeforePassing", "FailuresBeforeWarning"), INTEGER),
        "FailuresBeforeCritical": INTEGER,
    },
}
SERVICE_REQUEST: Schema = {
    "title": "ServiceRegistration",
    "type": "object",
    "required": ["Name"],
    "properties": {
        "Name": STRING,
        **{name: schema for name, schema in {**_SERVICE, **_IF_ANY}.items() if name != "Service"},
        "Ports": map_of(INTEGER),
        "Check": CHECK_REQUEST,
        "Checks": list_of(CHECK_REQUEST),
    },
}
CATALOG_REGISTER_REQUEST: Schema = {
    "title": "CatalogRegistration",
    "type": "object",
    "required": ["Node"],
    "properties": {
        **dict.fromkeys(("Node", "Address", "ID", "Datacenter"), STRING),
        "TaggedAddresses": STRING_MAP,
        "NodeMeta": STRING_MAP,
        "SkipNodeUpdate": BOOLEAN,
        "Service": {"type": "object", "properties": {**_SERVICE, **_IF_ANY}},
        "Check": {"type": "object", "properties": CHECK["properties"]},
        "Checks": list_of({"type": "object", "properties": CHECK["properties"]}),
    },
}
CATALOG_DEREGISTER_REQUEST: Schema = {
    "title": "CatalogDeregistration",
    "type": "object",
    "required": ["Node"],
    "properties": {"Node": STRING, "ServiceID": STRING, "CheckID": STRING},
}
CHECK_UPDATE_REQUEST: Schema = {
    "title": "CheckUpdate",
    "type": "object",
    "properties": {"Status": STRING, "Output": STRING},
}
SESSION_REQUEST: Schema = {
    "title": "SessionRequest",
    "type": "object",
    "properties": {
        **dict.fromkeys(("Name", "Node", "TTL", "LockDelay", "Behavior"), STRING),
        "Checks": STRINGS,
        "NodeChecks": STRINGS,
        "ServiceChecks": list_of({"type": "object", "properties": {"ID": STRING}}),
    },
}
QUERY_REQUEST: Schema = {
    "title": "QueryRequest",
    "type": "object",
    "properties": {**{name: QUERY["properties"][name] for name in ("Name", "Session", "Template", "Service", "DNS")}},
}
TXN_REQUEST = list_of(
    {
        "title": "Operation",
        "type": "object",
        "properties": {
            "KV": {
                "type": "object",
                "required": ["Verb"],
                "properties": {
                    **dict.fromkeys(("Verb", "Key", "Value", "Session"), STRING),
                    "Flags": INTEGER,
                    "Index": INTEGER,
                },
            },
            "Node": {"type": "object", "properties": {"Verb": STRING, "Node": ANY_OBJECT}},
            "Service": {"type": "object", "properties": {"Verb": STRING, "Node": STRING, "Service": ANY_OBJECT}},
            "Check": {"type": "object", "properties": {"Verb": STRING, "Check": ANY_OBJECT}},
            "Session": {"type": "object", "properties": {"Verb": STRING, "Session": ANY_OBJECT}},
        },
    }
)
