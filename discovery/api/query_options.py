"""Query options of lists: ``?filter``, ``?near``, ``?node-meta``, ``?tag``, ``?passing``."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TypeVar

from discovery.api.http_error import HttpError
from discovery.api.http_request import HttpRequest
from discovery.api.serialize import Json
from discovery.consul.filter import BadFilter, Predicate, compile_filter
from discovery.json_schema import Schema
from discovery.structs import Health, Node, Status

Found = TypeVar("Found", list[Json], dict[str, Json])
Item = TypeVar("Item")
_ENTERPRISE = (
    ("ns", "X-Consul-Namespace", "Namespaces"),
    ("partition", "X-Consul-Partition", "Partitions"),
)


def check_place(request: HttpRequest, datacenter: str) -> None:
    """Raise HttpError if a request is for another datacenter, or for a namespace or an admin
    partition other than ``default``, with Consul's text.
    """
    check_datacenter(request.get("dc"), datacenter)
    for parameter, header, what in _ENTERPRISE:
        for kind, value in (
            (f'query parameter: "{parameter}"', request.get(parameter)),
            (f'header: "{header}"', request.headers.get(header, "")),
        ):
            if value not in ("", "default"):
                raise HttpError(400, f"Invalid {kind} - {what} are a Consul Enterprise feature")


def check_datacenter(name: str, own: str) -> None:
    """Raise HttpError if a request is for another datacenter."""
    if name and name.lower() != own.lower():
        raise HttpError(500, "No path to datacenter")


def apply_filter(found: Found, request: HttpRequest, schema: Schema) -> Found:
    """Apply ``?filter`` to a list, or to the values of a map. Raises HttpError."""
    if not request.get("filter"):
        return found
    test = parse_filter(request, schema)
    try:
        if isinstance(found, dict):
            return {name: item for name, item in found.items() if test(item)}
        return [item for item in found if test(item)]
    except BadFilter as error:
        raise HttpError(400, f"Failed to evaluate filter: {error}") from None


def parse_filter(request: HttpRequest, schema: Schema) -> Predicate:
    """Compile ``?filter``. Raises HttpError."""
    try:
        return compile_filter(request.get("filter"), schema)
    except BadFilter as error:
        raise HttpError(400, f"Failed to create filter: {error}") from None


def requested_meta(request: HttpRequest) -> dict[str, str]:
    """The pairs of all ``?node-meta=KEY:VALUE``."""
    return {key: value for key, _, value in (pair.partition(":") for pair in request.all("node-meta"))}


def matches_meta(meta: Mapping[str, str], wanted: Mapping[str, str]) -> bool:
    """Whether a node has all of these metadata pairs."""
    return all(meta.get(key) == value for key, value in wanted.items())


def sort_near(found: Iterable[Item], request: HttpRequest, own: str, node_of: Callable[[Item], str]) -> list[Item]:
    """Items of the ``?near`` node first; otherwise the order is kept."""
    items = list(found)
    name = request.get("near")
    if not name:
        return items
    first = (own if name == "_agent" else name).lower()
    return sorted(items, key=lambda item: node_of(item).lower() != first)


def select_instances(instances: Sequence[Health], request: HttpRequest, own: str, *, passing: bool) -> list[Health]:
    """The instances selected by ``?tag``, ``?node-meta`` and, for health, ``?passing``, sorted by
    ``?near``.
    """
    tags = [tag.lower() for tag in request.all("tag") if tag]
    wanted = requested_meta(request)
    found = [
        one
        for one in instances
        if (not tags or {*tags} <= {tag.lower() for tag in one.instance.tags})
        and matches_meta(one.node.meta, wanted)
        and (not passing or one.status is Status.PASSING)
    ]
    return sort_near(found, request, own, lambda one: one.node.name)


def nodes_matching_meta(nodes: Iterable[Node], request: HttpRequest) -> set[str]:
    """The names of the nodes selected by ``?node-meta``."""
    wanted = requested_meta(request)
    return {node.name for node in nodes if matches_meta(node.meta, wanted)}
