"""A role permits a node its own keys and what belongs to no node."""

from __future__ import annotations

import pytest

from cluster import permissions
from discovery import layout


def may_write(node: str, key: str) -> bool:
    return any(one.writes and one.start <= key < one.end for one in permissions.permissions(node))


@pytest.mark.parametrize(
    ("key", "allowed"),
    [
        ("/weft/nodes/n1", True),
        ("/weft/nodes/n1/alive", True),
        (layout.host_prefix("n1") + "node", True),
        ("/weft/v2/overlay/member/n1/blue", True),
        ("/weft/v2/overlay/block/blue/10.0.0.0-24", True),
        ("/weft/v2/kv/a", True),
        ("/weft/operation/x/0", True),
        ("/weft/nodes/n10", False),
        ("/weft/nodes/n", False),
        ("/weft/nodes/n10/alive", False),
        (layout.host_prefix("n2") + "node", False),
        ("/weft/v2/overlay/member/n2/blue", False),
        ("/weft/cluster/config", False),
        ("/weft", False),
        ("/weft0", False),
        ("/a", False),
    ],
)
def test_what_a_node_may_write(key: str, allowed: bool) -> None:
    assert may_write("n1", key) is allowed
