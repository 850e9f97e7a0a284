"""Which nodes may be members of etcd: ``/weft/cluster/member/NAME`` with the node's id, which only members write.

A node writes its own record, and so could give itself a role: with it come the keys of the cluster's authorities. So
a role other than that of a client counts only with such a grant. A cluster of an earlier release has none until its
members have made them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from urllib.parse import quote, unquote

from cluster import nodes
from cluster.nodes import Node, Role
from store.interface import Delete, Operation, Put, Store

ROOT = nodes.CLUSTER + "member/"


def key(node: Node) -> str:
    return ROOT + quote(node.name, safe="")


def change(node: Node, role: Role) -> Operation:
    """What goes with a change of the node's role."""
    return Put(key(node), node.id.encode()) if role is not Role.CLIENT else Delete(key(node))


async def read(store: Store) -> dict[str, str]:
    """The ids of the nodes with a grant, by their names. Raises StoreError."""
    found = (await store.range(ROOT)).entries
    return {unquote(one.key.removeprefix(ROOT)): one.value.decode("utf-8", "replace") for one in found}


def granted(known: Mapping[str, Node], grants: Mapping[str, str]) -> dict[str, Node]:
    """The nodes in the roles that they have been granted."""
    if not grants:
        return dict(known)
    return {
        name: one if one.role is Role.CLIENT or grants.get(name) == one.id else replace(one, role=Role.CLIENT)
        for name, one in known.items()
    }
