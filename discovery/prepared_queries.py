"""Consul's prepared queries: which one a name means, and the instances that it finds.

Source: https://developer.hashicorp.com/consul/api-docs/query.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterable, Mapping
from dataclasses import replace

from discovery.catalog import Catalog
from discovery.structs import Check, Health, PreparedQuery, Status, worst_status

PREFIX_MATCH = "name_prefix_match"
"""The only type of template: the query whose name is the longest prefix of the name asked for."""
VARIABLE = re.compile(r"\$\{([^}]*)\}")
"""A variable in a template: ``${name.suffix}``."""
VARIABLES = ("name.full", "name.prefix", "name.suffix", "agent.segment")


def find_query(queries: Mapping[str, PreparedQuery], name: str) -> PreparedQuery | None:
    """The query with this id or name, else the template with the longest matching prefix, its
    variables replaced. Names are case-insensitive.
    """
    if name in queries:
        return queries[name]
    wanted = name.lower()
    templates = []
    for one in queries.values():
        if not one.template and one.name and one.name.lower() == wanted:
            return one
        if one.template and wanted.startswith(one.name.lower()):
            templates.append(one)
    best = max(templates, key=lambda one: len(one.name), default=None)
    return _render(best, name) if best is not None else None


def _render(query: PreparedQuery, name: str) -> PreparedQuery:
    values = {"name.full": name, "name.prefix": query.name, "name.suffix": name[len(query.name) :]}

    def rendered(text: str) -> str:
        return VARIABLE.sub(lambda found: values.get(found[1].strip(), ""), text)

    tags = tuple(map(rendered, query.tags))
    return replace(
        query,
        service=rendered(query.service),
        tags=tuple(filter(None, tags)) if query.remove_empty_tags else tags,
        node_meta={key: rendered(value) for key, value in query.node_meta.items()},
    )


def execute(catalog: Catalog, query: PreparedQuery, near: str = "") -> list[Health]:
    """The healthy instances that a query finds, in random order, those of the node ``near`` first."""
    found = [one for one in catalog.health_of_any_case(query.service) if _matches(query, one)]
    random.shuffle(found)
    return sorted(found, key=lambda one: one.node.name.lower() != near.lower()) if near else found


def _matches(query: PreparedQuery, one: Health) -> bool:
    worst = worst_status(_counted(query, one.checks))
    if worst is Status.CRITICAL or (query.only_passing and worst is not Status.PASSING):
        return False
    tags = {tag.lower() for tag in one.instance.tags}
    for tag in query.tags:
        if (tag.removeprefix("!").lower() in tags) is tag.startswith("!"):
            return False
    return query.node_meta.items() <= one.node.meta.items() and query.service_meta.items() <= one.instance.meta.items()


def _counted(query: PreparedQuery, checks: Iterable[Check]) -> list[Check]:
    return [check for check in checks if check.id not in query.ignore_checks]
