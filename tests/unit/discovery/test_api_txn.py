"""Transactions on nodes, services and checks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from discovery.kv import LOCK_PREFIX
from lab.agent import LabAgent, Waiting

FAR = {"Node": "far", "Address": "192.0.2.9"}


def node(verb: str, **more: object) -> dict[str, Any]:
    return {"Node": {"Verb": verb, "Node": {**FAR, **more}}}


def service(verb: str, name: str = "web", **more: object) -> dict[str, Any]:
    return {"Service": {"Verb": verb, "Node": "FAR", "Service": {"ID": "w", "Service": name, **more}}}


def check(verb: str, **more: object) -> dict[str, Any]:
    found = {"Node": "far", "CheckID": "c", "Name": "c", "Status": "warning", "ServiceID": "w", **more}
    return {"Check": {"Verb": verb, "Check": found}}


@pytest.fixture(autouse=True)
def nothing(agent: LabAgent) -> Iterator[None]:
    yield
    agent.put("/v1/catalog/deregister", FAR)


def test_node_service_check_and_key_in_one(agent: LabAgent) -> None:
    key = {"KV": {"Verb": "set", "Key": "deployed", "Value": "MQ=="}}
    waiting = Waiting(agent, f"/v1/health/service/web?index={agent.get('/v1/health/service/web').index}")
    done = agent.put("/v1/txn", [node("set"), service("set", Port=80, Tags=["a"]), check("set"), key])
    assert (done.status, done.json["Errors"]) == (200, None)
    first, second, third, fourth = done.json["Results"]
    index = first["Node"]["ModifyIndex"]
    assert [second["Service"]["ModifyIndex"], third["Check"]["ModifyIndex"], fourth["KV"]["ModifyIndex"]] == [index] * 3
    assert (third["Check"]["ServiceName"], third["Check"]["ServiceTags"]) == ("web", ["a"])
    (found,) = waiting.reply().json
    assert (found["Node"]["Node"], found["Service"]["Port"], found["Checks"][0]["Status"]) == ("far", 80, "warning")
    read = agent.put("/v1/txn", [node("get"), service("get", ""), check("get")]).json["Results"]
    assert read == [first, second, third]


def test_what_fails_changes_nothing(agent: LabAgent) -> None:
    agent.put("/v1/txn", [node("set")])
    for wrong, said in [
        (node("get", Node="none"), 'node "none" doesn\'t exist'),
        (service("get"), 'service "w" on node "far" doesn\'t exist'),
        (node("cas", ModifyIndex=1), 'failed to set node "far", index is stale'),
        (node("delete-cas", ModifyIndex=1), 'failed to delete node "far", index is stale'),
        (service("cas", ModifyIndex=7), 'failed to set service "w" on node "far", index is stale'),
        (check("set"), 'Missing service registration: "w" is not on node "far"'),
        (check("set", Node="none", ServiceID=""), 'Missing node registration: there is no node "none"'),
    ]:
        done = agent.put("/v1/txn", [{"KV": {"Verb": "set", "Key": "n", "Value": ""}}, wrong])
        assert (done.status, done.json) == (409, {"Results": None, "Errors": [{"OpIndex": 1, "What": said}]})
        assert agent.get("/v1/kv/n").status == 404


def test_compare_and_set(agent: LabAgent) -> None:
    def index(operation: dict[str, Any]) -> int:
        (found,) = agent.put("/v1/txn", [operation]).json["Results"]
        ((_, value),) = found.items()
        return int(value["ModifyIndex"])

    agent.put("/v1/txn", [node("cas", ModifyIndex=0), service("cas", ModifyIndex=0), check("cas", ModifyIndex=0)])
    changed = index(service("cas", Port=1, ModifyIndex=index(service("get"))))
    assert changed == index(service("get")) == index(service("set", Port=1)), "an unchanged service was written"
    assert agent.put("/v1/txn", [check("delete-cas", ModifyIndex=index(check("get")))]).json["Results"] == []
    assert agent.put("/v1/txn", [check("get")]).status == 409


def test_a_deleted_node_takes_everything_with_it(agent: LabAgent) -> None:
    agent.put("/v1/txn", [node("set"), service("set"), service("set", "web", ID="v"), check("set")])
    assert agent.put("/v1/txn", [service("delete", "")]).status == 200
    assert [one["Service"]["ID"] for one in agent.get("/v1/health/service/web").json] == ["v"]
    assert agent.get("/v1/health/node/far").json == []
    assert agent.put("/v1/txn", [node("delete")]).status == 200
    assert agent.get("/v1/health/service/web").json == []
    assert agent.get("/v1/catalog/node/far").json is None


def test_a_node_with_more_services_than_the_store_takes_operations(agent: LabAgent) -> None:
    for number in range(130):
        agent.put("/v1/catalog/register", {**FAR, "Service": {"Service": f"s{number}"}})
    done = agent.put("/v1/txn", [service("set"), node("delete"), node("set")])
    assert done.status == 200, done.text
    assert agent.get("/v1/catalog/node/far").json["Services"] == {}
    assert agent.get("/v1/catalog/services").json == {"consul": []}


def test_as_many_locks_as_a_transaction_has_operations(agent: LabAgent) -> None:
    session = agent.put("/v1/session/create", {"LockDelay": "0s"}).json["ID"]
    for part in ("a", "b", "c"):
        keys = [f"locks/{part}{number}" for number in range(64)]
        locks = [{"KV": {"Verb": "lock", "Key": key, "Value": "", "Session": session}} for key in keys]
        assert agent.put("/v1/txn", locks).status == 200
    deleted = agent.request("DELETE", "/v1/kv/locks/?recurse")
    assert (deleted.status, deleted.text) == (200, "true")
    assert agent.put("/v1/kv/locks/a1", b"x").text == "true"
    agent.put(f"/v1/session/destroy/{session}")
    assert agent.call(agent.store.range(LOCK_PREFIX)).entries == ()
    assert [one["Key"] for one in agent.get("/v1/kv/locks/?recurse").json] == ["locks/a1"]
    agent.request("DELETE", "/v1/kv/locks/a1")


def test_a_service_whose_name_changes(agent: LabAgent) -> None:
    agent.put("/v1/txn", [node("set"), service("set")])
    agent.put("/v1/txn", [service("set", "other"), check("set")])
    assert agent.get("/v1/health/service/web").json == []
    (found,) = agent.get("/v1/health/checks/other").json
    assert found["ServiceName"] == "other"


@pytest.mark.parametrize(
    ("operation", "said"),
    [
        ({"Node": {"Verb": "touch", "Node": FAR}}, 'unknown node verb "touch"; known are get, set'),
        ({"Node": {"Verb": "delete", "Node": {"Node": "N1"}}}, "N1 is the local node"),
        ({"Node": {"Verb": "set"}}, "[0].Node.Node: null is missing"),
        ({"Node": {"Verb": "set", "Node": {"Node": "x"}}}, "Must provide address"),
        ({"Service": {"Verb": "set", "Service": {"Service": "x"}}}, "Must provide node"),
        ({"Service": {"Verb": "set", "Node": "far", "Service": {"ID": "x"}}}, "Must provide service name"),
        ({"Check": {"Verb": "set", "Check": {"Node": "far", "Name": "c", "Status": "odd"}}}, "Bad check status"),
        ({"Session": {"Verb": "delete"}}, "Must provide the session's ID"),
        ({"Intention": {}}, "only KV, Node, Service, Check and Session are supported"),
    ],
)
def test_bad_operations_are_refused(agent: LabAgent, operation: dict[str, Any], said: str) -> None:
    done = agent.put("/v1/txn", [operation])
    assert done.status == 400 and said in done.text, done.text
