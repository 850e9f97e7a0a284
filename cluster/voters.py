"""Which nodes run etcd: pure decisions from the nodes and etcd's members to the next step.

With n nodes, as many vote as the largest odd number that is at most n and at most the cluster's ``voters`` (3, or 1
or 5). Where more could vote if another node came, one more node is a learner: it has the data, and costs no
majority. All others are clients. etcd has one learner at a time.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum

from cluster.nodes import Node, Role, State

_ORDER = (Role.VOTER, Role.LEARNER, Role.CLIENT)


@dataclass(frozen=True, slots=True)
class Member:
    """A member of etcd, by the name of its node; ``running``: its node gives signs of life."""

    name: str
    is_learner: bool
    running: bool


class Action(StrEnum):
    PROMOTE = "promote"
    REMOVE = "remove"


@dataclass(frozen=True, slots=True)
class Step:
    """One change of etcd's members, made by any of them."""

    action: Action
    name: str


def places(count: int, wanted: int) -> tuple[int, int]:
    """How many of ``count`` nodes vote, and how many are learners."""
    voters = min(count, wanted)
    voters -= voters > 0 and voters % 2 == 0
    return voters, int(voters < min(count, wanted))


def roles(nodes: Iterable[Node], alive: Collection[str], wanted: int) -> dict[str, Role]:
    """The role of each node of the cluster: who has one keeps it, before those who came first, before those who do
    not run. A removed node has none.
    """
    present = [one for one in nodes if one.state is not State.REMOVED]
    present.sort(key=lambda one: (_ORDER.index(one.role), one.name not in alive, one.joined, one.name))
    voters, learners = places(len(present), wanted)
    found = [Role.VOTER] * voters + [Role.LEARNER] * learners
    found += [Role.CLIENT] * (len(present) - len(found))
    return {node.name: role for node, role in zip(present, found, strict=True)}


def majority(voters: int) -> int:
    return voters // 2 + 1


def next_step(members: Collection[Member], wanted: Mapping[str, Role]) -> Step | None:
    """The next change that leads to the wanted roles, None if there is none now.

    Members are added by their own nodes (``may_add``). What is removed leaves a majority that runs, and a learner
    becomes a voter where that makes their number odd, or one that leaves has to be replaced.
    """
    voters = [one for one in members if not one.is_learner]
    learners = [one for one in members if one.is_learner]
    for one in learners:
        if wanted.get(one.name, Role.CLIENT) is Role.CLIENT:
            return Step(Action.REMOVE, one.name)
    leaving = [one for one in voters if wanted.get(one.name) is not Role.VOTER]
    for one in learners:
        if wanted[one.name] is Role.VOTER and one.running and (len(voters) % 2 == 0 or leaving):
            return Step(Action.PROMOTE, one.name)
    # Those that do not run first: each removal must leave more than enough.
    for one in sorted(leaving, key=lambda one: (one.running, one.name in wanted, one.name)):
        rest = [other for other in voters if other != one]
        if rest and sum(other.running for other in rest) >= majority(len(rest)):
            return Step(Action.REMOVE, one.name)
    return None


def may_add(members: Collection[Member], wanted: Mapping[str, Role], name: str) -> Step | bool:
    """Whether a node may be added as a learner now; a step that has to be made before, if one can be."""
    if wanted.get(name, Role.CLIENT) is Role.CLIENT:
        return False
    learner = next((one for one in members if one.is_learner), None)
    if learner is None:
        return True
    if wanted.get(learner.name) is Role.VOTER and learner.running:
        return Step(Action.PROMOTE, learner.name)
    return False
