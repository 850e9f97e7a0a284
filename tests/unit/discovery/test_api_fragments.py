"""Cached JSON of instances is equal to JSON serialized anew."""

from __future__ import annotations

import json
from dataclasses import replace

from discovery.api import fragments, serialize
from discovery.api.fragments import JsonFragments
from discovery.structs import Check, Health, Instance, Node, Status


def instances(count: int) -> list[Health]:
    node = Node("n1", "10.0.0.1")
    found = []
    for number in range(count):
        check = Check("n1", f"c{number}", "alive", Status.PASSING, f"w{number}", "web")
        found.append(Health(node, Instance("n1", f"w{number}", "web", port=number), (check,)))
    return found


def test_only_changed_instances_are_serialized_again() -> None:
    written: list[str] = []

    def view(one: Health) -> serialize.Json:
        written.append(one.instance.id)
        return serialize.health(one)

    lists = JsonFragments(view, lambda one: (one.node, one.instance, *one.checks))
    found = instances(5)
    for _ in range(2):
        assert json.loads(lists.write("web", found, 5)) == [serialize.health(one) for one in found]
    assert written == ["w0", "w1", "w2", "w3", "w4"]
    written.clear()
    found[1] = replace(found[1], checks=(replace(found[1].checks[0], output="new"),))
    found[2] = replace(found[2], checks=())
    found[3] = replace(found[3], node=replace(found[3].node, address="10.0.0.2"))
    assert json.loads(lists.write("web", found[1:4], 5)) == [serialize.health(one) for one in found[1:4]]
    assert written == ["w1", "w2", "w3"]


def test_removed_instances_leave_the_cache() -> None:
    lists = JsonFragments(serialize.health, lambda one: (one.node, one.instance, *one.checks))
    lists.write("web", instances(fragments.MAX_STALE + 20), fragments.MAX_STALE + 20)
    lists.write("web", instances(5), 5)
    assert len(lists._known["web"]) == 5
    assert lists.write("web", [], 0) == b"[]"
    assert lists._known == {}
