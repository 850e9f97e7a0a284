"""What lists can be asked for: ``?filter``, ``?near``, ``?node-meta``, ``?tag``, ``?passing``."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TypeVar

from discovery.api.http_error import Problem
from discovery.api.http_request import Question
from discovery.api.schemas import Schema
from discovery.api.serialize import Json
from discovery.consul.filter import BadFilter, Test, compile_filter
from discovery.structs import Health, Node, Status

Found = TypeVar("Found", list[Json], dict[str, Json])
Item = TypeVar("Item")


def filtered(found: Found, question: Question, schema: Schema) -> Found:
    """Those that ``?filter`` takes; of a table, by its values. Raises Problem."""
    if not question.get("filter"):
        return found
    test = filter_of(question, schema)
    try:
        if isinstance(found, dict):
            return {name: item for name, item in found.items() if test(item)}
        return [item for item in found if test(item)]
    except BadFilter as error:
        raise Problem(400, f"Failed to evaluate filter: {error}") from None


def filter_of(question: Question, schema: Schema) -> Test:
    """The test that ``?filter`` is. Raises Problem."""
    try:
        return compile_filter(question.get("filter"), schema)
    except BadFilter as error:
        raise Problem(400, f"Failed to create filter: {error}") from None


def wanted_meta(question: Question) -> dict[str, str]:
    """What ``?node-meta=KEY:VALUE`` asks for, all of it together."""
    return {key: value for key, _, value in (pair.partition(":") for pair in question.all("node-meta"))}


def has_meta(meta: Mapping[str, str], wanted: Mapping[str, str]) -> bool:
    """Whether a node has all of these pairs."""
    return all(meta.get(key) == value for key, value in wanted.items())


def near(found: Iterable[Item], question: Question, own: str, node_of: Callable[[Item], str]) -> list[Item]:
    """Those of the node that ``?near`` names first; the order is otherwise kept."""
    items = list(found)
    name = question.get("near")
    if not name:
        return items
    first = own if name == "_agent" else name
    return sorted(items, key=lambda item: node_of(item) != first)


def chosen(instances: Sequence[Health], question: Question, own: str, *, passing: bool) -> list[Health]:
    """The instances that ``?tag``, ``?node-meta`` and, for health, ``?passing`` leave, in the order of ``?near``."""
    tags = [tag.lower() for tag in question.all("tag") if tag]
    wanted = wanted_meta(question)
    found = [
        one
        for one in instances
        if (not tags or {*tags} <= {tag.lower() for tag in one.instance.tags})
        and has_meta(one.node.meta, wanted)
        and (not passing or one.status is Status.PASSING)
    ]
    return near(found, question, own, lambda one: one.node.name)


def nodes_with(nodes: Iterable[Node], question: Question) -> set[str]:
    """The names of the nodes that ``?node-meta`` leaves."""
    wanted = wanted_meta(question)
    return {node.name for node in nodes if has_meta(node.meta, wanted)}
