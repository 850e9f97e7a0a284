"""The records of nodes: what is written is read again, what is invalid is named and left out."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address

import pytest

from cluster import nodes
from cluster.nodes import Config, DecodeError, Node, Role, State
from store.interface import Entry

NODE = Node("n1", "1f", (ip_address("10.0.0.1"), ip_address("fd00::1")), "1.0", 1000.5, Role.VOTER, expires=2000.0)


def entry(key: str, value: bytes) -> Entry:
    return Entry(key, value, 1, 1, 1)


@pytest.mark.parametrize(
    "node",
    [
        NODE,
        replace(NODE, state=State.DRAINED, role=Role.CLIENT),
        replace(NODE, state=State.REMOVED, removed=3000.0, powered_off=True),
        replace(NODE, name="a/b %"),
    ],
)
def test_a_record_is_read_as_it_was_written(node: Node) -> None:
    assert nodes.decode(entry(nodes.record_key(node.name), nodes.encode(node))) == node


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (b"{", "is not valid JSON"),
        (b"[]", "must be an object"),
        (b'{"name": "n2"}', 'name "n2" is not the n1 of its key'),
        (b'{"name": "n1", "role": "king"}', "role \"king\" must be one of 'voter', 'learner', 'client'"),
        (b'{"name": "n1", "addresses": ["x"]}', "holds 'x', which is no address"),
        (b'{"name": "n1", "joined": -1}', "joined -1 must be a time in seconds"),
        (b'{"name": "n1", "expires": 1e400}', "must be a time in seconds"),
    ],
)
def test_an_invalid_record_is_refused(value: bytes, said: str) -> None:
    with pytest.raises(DecodeError, match="/weft/nodes/n1") as caught:
        nodes.decode(entry("/weft/nodes/n1", value))
    assert said in str(caught.value)


def test_the_keys_are_told_apart() -> None:
    found, alive, problems = nodes.split(
        [
            entry("/weft/nodes/n1", nodes.encode(NODE)),
            entry("/weft/nodes/n1/alive", b"x"),
            entry("/weft/nodes/n1/wireguard", b"x"),
            entry("/weft/nodes/n2", b"?"),
            entry("/weft/nodes/a%2Fb/alive", b""),
        ]
    )
    assert (found, alive) == ({"n1": NODE}, {"n1", "a/b"})
    assert problems == ("/weft/nodes/n2 is not valid JSON",)


def test_the_configuration_of_a_cluster() -> None:
    config = Config("c1", 3, 12.0)
    assert nodes.decode_config(entry(nodes.CONFIG, nodes.encode_config(config))) == config
    with pytest.raises(DecodeError, match="voters 2 must be 1, 3 or 5"):
        nodes.decode_config(entry(nodes.CONFIG, b'{"voters": 2}'))
