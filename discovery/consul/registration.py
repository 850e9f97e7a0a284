"""Service registrations from clients and files, parsed to an instance and its checks.

Sources: https://developer.hashicorp.com/consul/api-docs/agent/service and
.../docs/reference/service; error messages are Consul's where it has one. Extensions: ``Ports``
(named ports: ``{"http": 80}``) and ``Protocol`` ("tcp" or "udp").
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from ipaddress import ip_address

from discovery.consul.check_definitions import parse_check
from discovery.consul.json_fields import BadField, Fields
from discovery.structs import CheckDefinition, Instance, ServiceAddress, Weights
from weft.service_options import MAX_CHECKS, MAX_WEIGHT

MAX_META_PAIRS = 64
"""Metadata pairs; keys have at most 128 characters, values 512."""
_KEY = re.compile(r"[a-zA-Z0-9_-]+")


@dataclass(frozen=True, slots=True)
class Registration:
    """An instance and the checks registered with it."""

    instance: Instance
    checks: tuple[CheckDefinition, ...]


def parse_service(found: object, node: str, *, scripts: bool = False) -> Registration:
    """Parse a service registration for a node. Raises BadField, with the response text.

    ``scripts`` allows script checks.
    """
    service = Fields(found)
    if not service.name("Name", "Service"):
        raise BadField("Missing service name")
    connect = service.get("Connect")
    if isinstance(connect, dict) and any(connect.values()):
        raise BadField("Invalid SidecarService: Connect is not supported")
    if service.text("SocketPath"):
        raise BadField("Validation failed: SocketPath is not supported")
    instance = parse_instance(service, node)
    return Registration(instance, _checks(service, instance, scripts))


def parse_instance(service: Fields, node: str) -> Instance:
    """Parse the service without its checks. Raises BadField."""
    name = service.name("Name", "Service")
    meta = service.string_map("Meta")
    check_metadata(meta, "Invalid Service Meta: ")
    protocol = service.text("Protocol").lower()
    if protocol not in ("", "tcp", "udp"):
        service.invalid("Protocol", protocol, "must be tcp or udp")
    return Instance(
        node=node,
        id=service.name("ID") or name,
        name=name,
        address=check_address(service.name("Address")),
        port=service.number("Port", high=65535),
        ports=_ports(service),
        protocol=protocol,
        tags=tuple(dict.fromkeys(service.string_list("Tags"))),
        meta=meta,
        tagged_addresses=_tagged_addresses(service),
        weights=_weights(service),
        enable_tag_override=service.boolean("EnableTagOverride"),
        kind=service.name("Kind"),
    )


def check_address(address: str) -> str:
    """Validate a service address: an IP, a host name or "". Raises BadField."""
    try:
        if ip_address(address.strip("[]")).is_unspecified:
            raise BadField("Invalid service address")
    except ValueError as error:
        if isinstance(error, BadField):
            raise
    if any(character.isspace() or character == "/" for character in address):
        raise BadField(f"Invalid service address: {address[:60]!r} is not an IP address or host name")
    return address


def check_metadata(meta: Mapping[str, str], prefix: str) -> None:
    """Validate metadata by Consul's rules; ``prefix`` begins the error. Raises BadField."""
    if len(meta) > MAX_META_PAIRS:
        raise BadField(f"{prefix}Node metadata cannot contain more than {MAX_META_PAIRS} key/value pairs")
    for key, value in meta.items():
        problem = ""
        if not key:
            problem = "Key cannot be blank"
        elif not _KEY.fullmatch(key):
            problem = "Key contains invalid characters"
        elif len(key) > 128:
            problem = "Key is too long (limit: 128 characters)"
        elif len(value) > 512:
            problem = "Value is too long (limit: 512 characters)"
        if problem:
            raise BadField(f"{prefix}Couldn't load metadata pair ('{key[:40]}', '{value[:40]}'): {problem}")


def _weights(service: Fields) -> Weights:
    found = service.object_("Weights")
    if found is None:
        return Weights()
    bounds = {"low": -(2**31), "default": 1}
    weights = Weights(found.number("Passing", **bounds), found.number("Warning", **bounds))
    problem = ""
    if weights.passing < 1:
        problem = "Passing must be greater than 0"
    elif weights.warning < 0:
        problem = "Warning must be greater or equal than 0"
    elif max(weights.passing, weights.warning) > MAX_WEIGHT:
        problem = f"DNS Weight must be between 0 and {MAX_WEIGHT}"
    if problem:
        raise BadField(f"Invalid Weights: {problem}")
    return weights


def _tagged_addresses(service: Fields) -> dict[str, ServiceAddress]:
    """Tagged addresses, each an object of address and port, or a bare address."""
    value = service.get("TaggedAddresses") or {}
    if not isinstance(value, dict):
        service.invalid("TaggedAddresses", value, "is not an object")
    found = {}
    for name, place in value.items():
        if isinstance(place, str):
            place = {"Address": place}
        fields = Fields(place, f"TaggedAddresses.{name}.")
        found[name] = ServiceAddress(check_address(fields.name("Address")), fields.number("Port", high=65535))
    return found


def _ports(service: Fields) -> dict[str, int]:
    """Named ports: a map of numbers, or a list of names and numbers."""
    value = service.get("Ports") or {}
    if isinstance(value, list):
        objects = tuple(service.objects("Ports"))
        return {part.name("Name"): part.number("Port", low=1, high=65535) for part in objects}
    if not isinstance(value, dict):
        service.invalid("Ports", value, 'is not an object, expected e.g. {"http": 80}')
    return {
        name: Fields({"Port": port}, f"Ports.{name}.").number("Port", low=1, high=65535) for name, port in value.items()
    }


def _checks(service: Fields, instance: Instance, scripts: bool) -> tuple[CheckDefinition, ...]:
    """The checks of a service; missing ids are ``service:ID``, or ``service:ID:1``, ``:2`` … for
    several.
    """
    one = service.object_("Check")
    if one is not None and not service.get("Check"):
        one = None  # Go clients send an empty object
    found = [*([one] if one is not None else []), *service.objects("Checks")]
    if len(found) > MAX_CHECKS:
        raise BadField(f"Checks: {len(found)} checks, the limit is {MAX_CHECKS}")
    checks = []
    for number, fields in enumerate(found, 1):
        status = fields.text("Status")
        if status not in ("", "passing", "warning", "critical"):
            raise BadField("Status for checks must 'passing', 'warning', 'critical'")
        check = parse_check(fields, scripts=scripts, service_id=instance.id)
        made = f"service:{instance.id}" + (f":{number}" if len(found) > 1 else "")
        checks.append(replace(check, id=check.id or made, name=check.name or f"Service '{instance.name}' check"))
    if len({check.id for check in checks}) < len(checks):
        raise BadField("Checks: duplicate CheckID")
    return tuple(checks)
