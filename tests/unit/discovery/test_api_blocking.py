"""Blocking queries: the index of an answer changes if and only if the answer changes."""

from __future__ import annotations

from collections.abc import Iterator

import consul
import pytest

from lab.agent import LabAgent, Waiting, until


@pytest.fixture
def web(agent: LabAgent) -> Iterator[str]:
    """The health path of a service: one instance with a passing TTL check."""
    register(agent, "web", Check={"TTL": "1h", "Status": "passing"}, Tags=["v1"])
    yield "/v1/health/service/web"
    for name in agent.get("/v1/agent/services").json:
        agent.put(f"/v1/agent/service/deregister/{name}")


def register(agent: LabAgent, name: str, **fields: object) -> None:
    reply = agent.put("/v1/agent/service/register", {"Name": name, **fields})
    assert reply.status == 200, reply.text


def test_a_change_wakes_a_blocking_query(agent: LabAgent, web: str) -> None:
    before = agent.get(web)
    waiting = Waiting(agent, f"{web}?index={before.index}&wait=60s")
    agent.put("/v1/agent/check/fail/service:web")
    found = waiting.reply()
    assert found.index > before.index
    assert found.json[0]["Checks"][0]["Status"] == "critical"


@pytest.mark.parametrize(
    "path", ["/v1/catalog/services?filter=ServicePort==81", "/v1/catalog/services?filter=ServiceMeta.v==2"]
)
def test_a_list_of_services_follows_what_its_filter_is_about(agent: LabAgent, web: str, path: str) -> None:
    before = agent.get(path)
    assert before.json == {}
    waiting = Waiting(agent, f"{path}&index={before.index}&wait=60s")
    register(agent, "web", Tags=["v1"], Port=81, Meta={"v": "2"})
    assert waiting.reply().json == agent.get(path).json == {"web": ["v1"]}


def test_the_checks_of_a_node_that_comes_under_another_spelling(agent: LabAgent) -> None:
    path = "/v1/health/node/LATE"
    waiting = Waiting(agent, f"{path}?index={agent.get(path).index}&wait=60s")
    agent.put("/v1/catalog/register", {"Node": "late", "Address": "192.0.2.1"})
    agent.put("/v1/catalog/register", {"Node": "late", "SkipNodeUpdate": True, "Check": {"Name": "up"}})
    assert [one["CheckID"] for one in waiting.reply().json] == ["up"]
    agent.put("/v1/catalog/deregister", {"Node": "late"})


def test_a_list_of_nodes_follows_their_instances(agent: LabAgent, web: str) -> None:
    path = "/v1/internal/ui/nodes"
    assert [one["Port"] for one in agent.get(path).json[0]["Services"] if one["ID"] == "web"] == [0]
    register(agent, "web", Tags=["v1"], Port=81)
    assert [one["Port"] for one in agent.get(path).json[0]["Services"] if one["ID"] == "web"] == [81]


def test_a_query_with_an_old_index_returns_at_once(agent: LabAgent, web: str) -> None:
    before = agent.get(web)
    agent.put("/v1/agent/check/warn/service:web")
    found = agent.get(f"{web}?index={before.index}&wait=60s")
    assert found.index > before.index
    assert agent.get(f"{web}?index=1&wait=60s").index == found.index
    assert agent.get(f"{web}?index=0&wait=60s").index == found.index


def test_a_query_that_times_out_returns_the_same_answer(agent: LabAgent, web: str) -> None:
    before = agent.get(web)
    again = agent.get(f"{web}?index={before.index}&wait=20ms")
    assert (again.index, again.body) == (before.index, before.body)
    ahead = agent.get(f"{web}?index={before.index + 1000}&wait=20ms")
    assert (ahead.index, ahead.body) == (before.index, before.body)


def test_a_blocking_query_for_a_service_that_does_not_exist_yet(agent: LabAgent) -> None:
    before = agent.get("/v1/health/service/late")
    assert (before.json, before.index > 0) == ([], True)
    waiting = Waiting(agent, f"/v1/health/service/late?index={before.index}&wait=60s")
    register(agent, "late")
    assert len(waiting.reply().json) == 1
    gone = Waiting(agent, f"/v1/health/service/late?index={waiting.reply().index}&wait=60s")
    agent.put("/v1/agent/service/deregister/late")
    assert gone.reply().json == []
    assert gone.reply().index > waiting.reply().index


def test_changes_of_other_services_wake_no_query(agent: LabAgent, web: str) -> None:
    paths = (
        web,
        "/v1/catalog/service/web",
        "/v1/health/checks/web",
        "/v1/health/service/none",
        "/v1/catalog/nodes",
        "/v1/catalog/node/none",
    )
    before = {path: agent.get(path).index for path in paths}
    waiting = [Waiting(agent, f"{path}?index={index}&wait=60s") for path, index in before.items()]
    for number in range(5):
        register(agent, "other", ID=f"o{number}", Check={"TTL": "1h"})
        agent.put(f"/v1/agent/check/pass/service:o{number}")
    agent.put("/v1/kv/unrelated", b"x")
    assert {path: agent.get(path).index for path in paths} == before
    assert not any(one.done for one in waiting)
    agent.put("/v1/agent/service/deregister/web")
    until(lambda: all(one.done for one in waiting[:3]))
    assert not any(one.done for one in waiting[3:])
    agent.put("/v1/catalog/register", {"Node": "none", "Address": "10.0.0.1"})
    until(lambda: all(one.done for one in waiting[4:]))
    agent.put("/v1/catalog/deregister", {"Node": "none"})
    register(agent, "none")
    waiting[3].reply()
    agent.put("/v1/agent/service/deregister/none")


def test_changes_that_do_not_change_the_answer_wake_no_query(agent: LabAgent, web: str) -> None:
    """Each query watches a topic that changes, but its filter hides the change."""
    register(agent, "web", ID="web2", Tags=["v2"], Check={"TTL": "1h", "Status": "critical"})
    paths = (
        f"{web}?passing&tag=v1",
        "/v1/catalog/service/web?tag=v1",
        f"{web}?filter=Service.ID+%3D%3D+web",
        "/v1/health/state/passing?filter=ServiceID+%3D%3D+web",
        "/v1/catalog/services",
    )
    before = {path: agent.get(path).index for path in paths}
    waiting = [Waiting(agent, f"{path}{'&' if '?' in path else '?'}index={i}&wait=60s") for path, i in before.items()]
    for word in ("warn", "fail", "warn"):
        agent.put(f"/v1/agent/check/{word}/service:web2")
    register(agent, "web", ID="web2", Tags=["v2"], Port=8000)
    register(agent, "web", ID="web3", Tags=["v2"], Check={"TTL": "1h"})
    agent.put("/v1/agent/service/deregister/web3")
    assert {path: agent.get(path).index for path in paths} == before
    assert not any(one.done for one in waiting)
    register(agent, "web", Tags=["v1", "new"], Port=1)
    agent.put("/v1/agent/check/fail/service:web")
    for one, path in zip(waiting, paths, strict=True):
        assert one.reply().index > before[path]


def test_the_index_never_decreases_and_changes_with_the_answer(agent: LabAgent, web: str) -> None:
    paths = (web, web + "?passing", "/v1/catalog/services", "/v1/health/state/critical", "/v1/catalog/node/n1")
    last = {path: agent.get(path) for path in paths}
    for number in range(30):
        agent.put(f"/v1/agent/check/{('pass', 'fail', 'warn')[number % 3]}/service:web?note={number // 5}")
        if number % 7 == 0:
            register(agent, "web", ID="web9")
            agent.put("/v1/agent/service/deregister/web9")
        for path in paths:
            found = agent.get(path)
            assert found.index >= last[path].index > 0
            assert (found.index == last[path].index) == (found.body == last[path].body), path
            last[path] = found


def test_a_change_wakes_all_blocking_queries(agent: LabAgent, web: str) -> None:
    before = agent.get(web).index
    waiting = [Waiting(agent, f"{web}?index={before}&wait=60s") for _ in range(40)]
    assert agent.parked() == 40
    agent.put("/v1/agent/check/fail/service:web")
    assert {one.reply().body for one in waiting} == {waiting[0].reply().body}
    until(lambda: agent.parked() == 0)


def test_a_disconnected_client_ends_its_blocking_query(agent: LabAgent, web: str) -> None:
    connection = agent.connect()
    connection.request("GET", f"{web}?index={agent.get(web).index}&wait=10m")
    until(lambda: agent.parked() == 1)
    connection.close()
    until(lambda: agent.parked() == 0)


def test_blocking_queries_of_consuls_client(agent: LabAgent, web: str) -> None:
    client = consul.Consul(host=agent.host, port=agent.port)
    index, _ = client.health.service("web")
    assert client.health.service("web", index=index, wait="20ms")[0] == index
    waiting = Waiting(agent, f"{web}?index={index}&wait=60s")
    client.agent.check.ttl_fail("service:web")
    assert waiting.reply().index > int(index)


def test_an_identical_registration_wakes_no_query(agent: LabAgent, web: str) -> None:
    same = {"Tags": ["v1"], "Check": {"TTL": "1h", "Status": "passing"}}
    agent.put("/v1/agent/check/warn/service:web?note=so")
    before = agent.get(web)
    for _ in range(3):
        register(agent, "web", **same)
        agent.put("/v1/agent/check/warn/service:web?note=so")
    again = agent.get(web)
    assert (again.index, again.body) == (before.index, before.body)
    register(agent, "web", **same | {"Port": 8080})
    assert agent.get(web).index > before.index
