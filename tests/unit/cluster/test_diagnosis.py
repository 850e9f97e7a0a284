"""What weft doctor says of a cluster."""

from __future__ import annotations

from dataclasses import replace

import pytest

from cluster import diagnosis
from cluster.local import Local
from cluster.nodes import Node, Role, State

NOW = 1_000_000_000.0
DAY = 86400.0
LOCAL = Local("n1", "1f", "10.0.0.1", done=True)
NODES = {name: Node(name, name, (), "1", 0.0, Role.VOTER, expires=NOW + 300 * DAY) for name in ("n1", "n2", "n3")}


def said(*found: tuple[str, str]) -> str:
    return "; ".join(what for what, _ in found)


@pytest.mark.parametrize(
    ("days", "expected"),
    [(31, ""), (29.4, "the certificate of node n1 ends in 29 days"), (-1, "the certificate of node n1 has ended")],
)
def test_a_certificate_that_ends(days: float, expected: str) -> None:
    assert said(*diagnosis.of_files(LOCAL, NOW + days * DAY, NOW)) == expected


def test_an_interrupted_command() -> None:
    assert said(*diagnosis.of_files(replace(LOCAL, done=False), 0, NOW)) == "weft cluster join was interrupted"
    made = replace(LOCAL, done=False, made=True)
    assert said(*diagnosis.of_files(made, 0, NOW)) == "weft cluster init was interrupted"


def test_nodes() -> None:
    assert said(*diagnosis.of_nodes(NODES, NODES, NODES, NOW, 3)) == ""
    found = said(*diagnosis.of_nodes(NODES, {"n1", "n2"}, {"n1", "n3"}, NOW, 3))
    assert "the agent of node n3 gives no sign of life" in found
    assert "node n2 is to be a voter of etcd, and is no member" in found
    assert "etcd has no voter to spare: n3" in found
    removed = {**NODES, "n3": replace(NODES["n3"], state=State.REMOVED)}
    assert "n3" not in said(*diagnosis.of_nodes(removed, {"n1", "n2"}, None, NOW, 3))
    old = {**NODES, "n2": replace(NODES["n2"], expires=NOW + DAY)}
    assert said(*diagnosis.of_nodes(old, NODES, NODES, NOW, 3)) == (
        "the certificate of node n2 ends in less than 30 days"
    )


@pytest.mark.parametrize(("value", "offset"), [(b"1000000007.5", 7.5), (b"x", None), (b"nan", None), (b"1e300", None)])
def test_clocks(value: bytes, offset: float | None) -> None:
    assert diagnosis.clock_offset(value, NOW) == offset
