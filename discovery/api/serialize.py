"""Consul's JSON of nodes, services and checks. Lists are never null."""

from __future__ import annotations

from collections.abc import Iterable

from discovery.consul.durations import format_duration
from discovery.structs import SERF_HEALTH, Check, Health, Instance, Node, Status

Json = dict[str, object]
"""A JSON object of a response."""
COORDINATE: Json = {"Vec": [0.0] * 8, "Error": 1.5, "Adjustment": 0.0, "Height": 1e-05}
"""The coordinate of a node without measured round trips, as Consul has it."""


def node(found: Node) -> Json:
    """A node, in catalog and health responses."""
    return {
        "ID": found.id,
        "Node": found.name,
        "Address": found.address,
        "Datacenter": found.datacenter,
        "TaggedAddresses": _tagged_addresses(found),
        "Meta": dict(found.meta),
        "CreateIndex": found.create_index,
        "ModifyIndex": found.modify_index,
    }


def _tagged_addresses(found: Node) -> dict[str, str]:
    return dict(found.tagged_addresses) or {"lan": found.address, "wan": found.address}


def _service(found: Instance) -> Json:
    return {
        **({"Kind": found.kind} if found.kind else {}),
        "ID": found.id,
        "Service": found.name,
        "Tags": list(found.tags),
        "Meta": dict(found.meta),
        "Port": found.port,
        **_ports("Ports", found),
        "Address": found.address,
        **({"TaggedAddresses": _tagged_service_addresses(found)} if found.tagged_addresses else {}),
        "Weights": _weights(found),
        "EnableTagOverride": found.enable_tag_override,
    }


def _ports(name: str, found: Instance) -> Json:
    """Named ports; no field without any."""
    ports = [{"Name": port, "Port": number, "Default": number == found.port} for port, number in found.ports.items()]
    return {name: ports} if ports else {}


def _tagged_service_addresses(found: Instance) -> Json:
    return {name: {"Address": place.address, "Port": place.port} for name, place in found.tagged_addresses.items()}


def _weights(found: Instance) -> Json:
    return {"Passing": found.weights.passing, "Warning": found.weights.warning}


def service(found: Instance) -> Json:
    """An instance, in health and catalog/node responses."""
    return {**_service(found), "CreateIndex": found.create_index, "ModifyIndex": found.modify_index}


def agent_service(found: Instance, datacenter: str) -> Json:
    """An instance, in agent responses."""
    return {**_service(found), "Datacenter": datacenter}


def check(found: Check) -> Json:
    """A check."""
    return {
        "Node": found.node,
        "CheckID": found.id,
        "Name": found.name,
        "Status": found.status.value,
        "Notes": found.notes,
        "Output": found.output,
        "ServiceID": found.service_id,
        "ServiceName": found.service_name,
        "ServiceTags": list(found.service_tags),
        "Type": found.type,
        "Interval": _duration(found.definition.get("Interval")),
        "Timeout": _duration(found.definition.get("Timeout")),
        "ExposedPort": 0,
        "Definition": dict(found.definition),
        "CreateIndex": found.create_index,
        "ModifyIndex": found.modify_index,
    }


def _duration(written: object) -> str:
    """A duration as Go prints it; clients may write nanoseconds, as many as a duration has."""
    if isinstance(written, int | float) and 0 < abs(written) < 2**63:
        return format_duration(written / 1e9)
    return str(written or "")


def catalog_service(found: Health) -> Json:
    """An instance with its node, in catalog/service responses."""
    where, instance = found.node, found.instance
    return {
        "ID": where.id,
        "Node": where.name,
        "Address": where.address,
        "Datacenter": where.datacenter,
        "TaggedAddresses": _tagged_addresses(where),
        "NodeMeta": dict(where.meta),
        "ServiceKind": instance.kind,
        "ServiceID": instance.id,
        "ServiceName": instance.name,
        "ServiceTags": list(instance.tags),
        "ServiceAddress": instance.address,
        "ServiceTaggedAddresses": _tagged_service_addresses(instance),
        "ServiceWeights": _weights(instance),
        "ServiceMeta": dict(instance.meta),
        "ServicePort": instance.port,
        **_ports("ServicePorts", instance),
        "ServiceEnableTagOverride": instance.enable_tag_override,
        "ServiceProxy": {},
        "ServiceConnect": {},
        "CreateIndex": instance.create_index,
        "ModifyIndex": instance.modify_index,
    }


def health(found: Health) -> Json:
    """An instance with its node and checks, in health/service responses."""
    return {
        "Node": node(found.node),
        "Service": service(found.instance),
        "Checks": [check(one) for one in found.checks],
    }


def server_address(node: Node) -> str:
    """The address that a Consul server on this node would have: HOST:8300."""
    host = f"[{node.address}]" if ":" in node.address else node.address
    return f"{host}:8300"


def member(found: Node, checks: Iterable[Check], version: str, *, wan: bool = False) -> Json:
    """A member, in agent/members: status 1 is alive, 4 failed."""
    alive = all(one.status is Status.PASSING for one in checks if one.id == SERF_HEALTH)
    return {
        "Name": f"{found.name}.{found.datacenter}" if wan else found.name,
        "Addr": found.address,
        "Port": 8302 if wan else 8301,
        "Tags": {
            "acls": "0",
            "build": version,
            "dc": found.datacenter,
            "id": found.id,
            "port": "8300",
            "role": "consul",
            "vsn": "2",
        },
        "Status": 1 if alive else 4,
        "ProtocolMin": 1,
        "ProtocolMax": 5,
        "ProtocolCur": 2,
        "DelegateMin": 2,
        "DelegateMax": 5,
        "DelegateCur": 4,
    }
