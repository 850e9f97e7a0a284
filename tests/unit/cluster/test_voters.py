"""Whatever nodes join, leave and die, etcd ends with 1 or 3 voters, and has a majority at every step."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster import voters
from cluster.nodes import Node, Role, State
from cluster.voters import Action, Member, Step


class Simulated:
    """A cluster: its records, and the members of etcd with whether they are learners."""

    def __init__(self, wanted: int) -> None:
        self.wanted = wanted
        self.nodes = {"n0": _node("n0", 0, Role.VOTER)}
        self.members = {"n0": False}
        self.alive = {"n0"}
        self._joined = 0

    def join(self) -> None:
        self._joined += 1
        name = f"n{self._joined}"
        self.nodes[name] = _node(name, self._joined, Role.CLIENT)
        self.alive.add(name)

    def remove(self, name: str) -> None:
        self.nodes[name] = replace(self.nodes[name], state=State.REMOVED)

    def seen(self) -> list[Member]:
        return [Member(name, learner, name in self.alive) for name, learner in self.members.items()]

    def check(self) -> None:
        votes = [name for name, learner in self.members.items() if not learner]
        assert sum(name in self.alive for name in votes) >= voters.majority(len(votes)), self.members
        assert sum(self.members.values()) <= 1

    def apply(self, step: Step) -> None:
        if step.action is Action.PROMOTE:
            assert self.members[step.name]
            assert step.name in self.alive
            self.members[step.name] = False
        else:
            del self.members[step.name]
        self.check()

    def settle(self) -> dict[str, Role]:
        """What agents do until nothing is left to be done."""
        roles = voters.roles(self.nodes.values(), self.alive, self.wanted)
        for name, role in roles.items():
            self.nodes[name] = replace(self.nodes[name], role=role)
        for _ in range(50):
            changed = False
            if step := voters.next_step(self.seen(), roles):
                self.apply(step)
                changed = True
            for name in roles:
                if name in self.members or name not in self.alive:
                    continue
                may = voters.may_add(self.seen(), roles, name)
                if isinstance(may, Step):
                    self.apply(may)
                    may = voters.may_add(self.seen(), roles, name)
                if may is True:
                    self.members[name] = True
                    self.check()
                    changed = True
            if not changed:
                return roles
        raise AssertionError("it does not settle")


def _node(name: str, joined: float, role: Role) -> Node:
    return Node(name, name, (), "1", joined, role)


@settings(max_examples=300, deadline=None)
@given(
    wanted=st.sampled_from((1, 3, 5)),
    events=st.lists(st.tuples(st.sampled_from(("join", "leave", "die")), st.integers(0, 9)), max_size=14),
)
def test_any_sequence_of_joins_and_leaves(wanted: int, events: list[tuple[str, int]]) -> None:
    cluster = Simulated(wanted)
    for event, which in events:
        present = [name for name, node in cluster.nodes.items() if node.state is not State.REMOVED]
        name = present[which % len(present)]
        if event == "join":
            cluster.join()
        elif len(present) > 1 and (event == "leave" or _survives_without(cluster, name)):
            if event == "die":
                cluster.alive.discard(name)
                cluster.settle()  # a death alone takes nobody's vote
            cluster.remove(name)
        roles = cluster.settle()
        votes = {name for name, learner in cluster.members.items() if not learner}
        assert len(votes) == voters.places(len(roles), wanted)[0]
        assert len(votes) in (1, 3, 5)
        assert len(votes) <= wanted
        assert votes == {name for name, role in roles.items() if role is Role.VOTER}
        assert {name for name, learner in cluster.members.items() if learner} == {
            name for name, role in roles.items() if role is Role.LEARNER
        }


def _survives_without(cluster: Simulated, name: str) -> bool:
    votes = [one for one, learner in cluster.members.items() if not learner]
    return name not in votes or len(votes) >= 3


@pytest.mark.parametrize(
    ("count", "wanted", "found"),
    [
        (0, 3, (0, 0)),
        (1, 3, (1, 0)),
        (2, 3, (1, 1)),
        (3, 3, (3, 0)),
        (4, 3, (3, 0)),
        (4, 5, (3, 1)),
        (9, 5, (5, 0)),
        (2, 1, (1, 0)),
    ],
)
def test_places(count: int, wanted: int, found: tuple[int, int]) -> None:
    assert voters.places(count, wanted) == found


def test_a_vote_is_not_taken_where_the_rest_would_have_no_majority() -> None:
    members = [Member("a", False, True), Member("b", False, False), Member("c", False, True)]
    wanted = {"a": Role.VOTER, "b": Role.CLIENT}
    assert voters.next_step(members, wanted) == Step(Action.REMOVE, "b")
    assert voters.next_step([members[0], members[1]], {"b": Role.VOTER}) is None


def test_nobody_becomes_a_member_who_is_to_be_a_client() -> None:
    assert voters.may_add([Member("a", False, True)], {"a": Role.VOTER, "b": Role.CLIENT}, "b") is False
