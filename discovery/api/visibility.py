"""What a caller sees of lists: what it may read, as Consul filters them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TypeVar

from discovery.api.http_request import HttpRequest
from discovery.structs import Check, Health, Instance, Node

Value = TypeVar("Value")


def visible_names(request: HttpRequest, resource: str, found: Mapping[str, Value]) -> dict[str, Value]:
    """The values whose name the caller may read."""
    acl = request.acl
    names = request.visible(found, lambda name: acl.allows(resource, name))
    return {name: found[name] for name in names}


def visible_nodes(request: HttpRequest, nodes: Iterable[Node]) -> list[Node]:
    """The nodes that the caller may read."""
    acl = request.acl
    return request.visible(nodes, lambda node: acl.allows("node", node.name))


def visible_health(request: HttpRequest, instances: Sequence[Health]) -> Sequence[Health]:
    """The instances whose node and service the caller may read."""
    acl = request.acl
    if acl.manages:
        return instances
    return request.visible(
        instances, lambda one: acl.allows("node", one.node.name) and acl.allows("service", one.instance.name)
    )


def visible_instances(request: HttpRequest, instances: Iterable[Instance]) -> list[Instance]:
    """A node's instances, without those whose service the caller may not read."""
    acl = request.acl
    return request.visible(instances, lambda one: acl.allows("service", one.name))


def visible_checks(request: HttpRequest, checks: Iterable[Check]) -> list[Check]:
    """The checks whose node, and service if they are of one, the caller may read."""
    acl = request.acl
    return request.visible(
        checks,
        lambda one: acl.allows("node", one.node) and (not one.service_name or acl.allows("service", one.service_name)),
    )
