"""Which instances other hosts can reach, and where: one on a network of its own host alone is reached by its
published port, or not at all.
"""

from __future__ import annotations

from dataclasses import replace

from discovery.structs import Health, Instance

SCOPE_META = "weft-scope"
"""The key of an instance's ``meta``; ``host``: only its own host has a route to its address."""
HOST = "host"
PUBLISHED_TAG = "published"
"""The key of ``tagged_addresses`` for the port that the instance's host publishes; without an address it is
the node's."""


def is_of_host(instance: Instance) -> bool:
    """Whether only its own host has a route to the instance's address."""
    return instance.meta.get(SCOPE_META) == HOST


def seen_from(node: str, found: Health) -> Health | None:
    """An instance as a node reaches it; None if it does not."""
    instance = found.instance
    if not node or instance.node == node or not is_of_host(instance):
        return found
    published = instance.tagged_addresses.get(PUBLISHED_TAG)
    if published is None:
        return None
    address = published.address or found.node.address
    there = replace(instance, address=address, port=published.port, ports={}, tagged_addresses={})
    return replace(found, instance=there)
