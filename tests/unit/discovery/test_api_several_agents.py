"""Several agents on one store, and restarts of an agent."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from discovery.api.settings import HttpSettings
from discovery.structs import Node
from lab.agent import LabAgent, Waiting, until

SETTINGS = HttpSettings(listen=("127.0.0.1:0",), session_ttl_min=0.2)


@pytest.fixture
def both(tmp_path: Path) -> Iterator[tuple[LabAgent, LabAgent]]:
    """Two agents; each opens the file of the store."""
    found = [LabAgent(tmp_path, Node(name, "127.0.0.1"), SETTINGS) for name in ("n1", "n2")]
    until(lambda: len(found[0].get("/v1/agent/members").json) == 2)
    yield found[0], found[1]
    for agent in found:
        agent.stop()


def test_a_service_registered_at_one_agent_is_listed_by_the_other(both: tuple[LabAgent, LabAgent]) -> None:
    one, other = both
    before = other.get("/v1/health/service/web")
    waiting = Waiting(other, f"/v1/health/service/web?index={before.index}&wait=60s")
    one.put("/v1/agent/service/register", {"Name": "web", "Port": 80})
    [found] = waiting.reply().json
    assert (found["Node"]["Node"], found["Service"]["Port"]) == ("n1", 80)
    assert other.get("/v1/health/service/web?consistent&near=_agent").json == [found]
    assert other.get("/v1/agent/services").json == {}
    assert other.put("/v1/agent/service/deregister/web").status == 404
    for agent in both:
        assert agent.get("/v1/catalog/service/web").index == waiting.reply().index


def test_a_blocking_query_sees_a_write_at_another_agent(both: tuple[LabAgent, LabAgent]) -> None:
    one, other = both
    waiting = Waiting(other, f"/v1/kv/shared?index={other.get('/v1/kv/shared').index}&wait=60s")
    one.put("/v1/kv/shared", b"x")
    assert waiting.reply().json[0]["Value"] == "eA=="
    assert one.get("/v1/kv/shared").index == waiting.reply().index
    assert one.put("/v1/kv/shared?cas=0", b"y").text == "false"


def test_locks_of_a_node_that_leaves_are_released_by_another_agent(both: tuple[LabAgent, LabAgent]) -> None:
    one, other = both
    session = one.put("/v1/session/create", {"LockDelay": "0s"}).json["ID"]
    assert one.put(f"/v1/kv/leader?acquire={session}", b"n1").text == "true"
    mine = other.put("/v1/session/create", {"LockDelay": "0s"}).json["ID"]
    assert other.put(f"/v1/kv/leader?acquire={mine}", b"n2").text == "false"
    assert one.put("/v1/agent/leave").status == 200
    until(lambda: other.put(f"/v1/kv/leader?acquire={mine}", b"n2").text == "true")
    assert other.get(f"/v1/session/info/{session}").json == []
    assert [member["Name"] for member in other.get("/v1/agent/members").json] == ["n2"]


def test_a_session_without_checks_outlives_its_node(both: tuple[LabAgent, LabAgent]) -> None:
    """hashicorp/consul#20424: with empty NodeChecks it ends by its TTL, or when it is destroyed."""
    one, other = both
    session = one.put("/v1/session/create", {"NodeChecks": [], "TTL": "1h", "LockDelay": "0s"}).json["ID"]
    assert one.put(f"/v1/kv/leader?acquire={session}", b"n1").text == "true"
    assert one.put("/v1/agent/leave").status == 200
    until(lambda: [member["Name"] for member in other.get("/v1/agent/members").json] == ["n2"])
    mine = other.put("/v1/session/create", {"LockDelay": "0s"}).json["ID"]
    assert other.put(f"/v1/kv/leader?acquire={mine}", b"n2").text == "false"
    assert other.put(f"/v1/session/renew/{session}").status == 200
    assert other.put(f"/v1/session/destroy/{session}").text == "true"
    assert other.put(f"/v1/kv/leader?acquire={mine}", b"n2").text == "true"


def test_indexes_do_not_decrease_across_a_restart(tmp_path: Path) -> None:
    node = Node("n1", "127.0.0.1")
    paths = ("/v1/health/service/web", "/v1/health/service/gone", "/v1/catalog/services", "/v1/kv/a", "/v1/kv/gone")
    agent = LabAgent(tmp_path, node, SETTINGS)
    try:
        for name in ("gone", "web"):
            agent.put("/v1/agent/service/register", {"Name": name, "Check": {"TTL": "1h", "Status": "passing"}})
            agent.put(f"/v1/kv/{name}", b"x")
        agent.put("/v1/agent/service/deregister/gone")
        agent.request("DELETE", "/v1/kv/gone")
        session = agent.put("/v1/session/create", {}).json["ID"]
        assert agent.put(f"/v1/kv/a?acquire={session}", b"held").text == "true"
        before = {path: agent.get(path) for path in paths}
    finally:
        agent.stop()
    agent = LabAgent(tmp_path, node, SETTINGS)
    try:
        after = {path: agent.get(path) for path in paths}
        for path in paths:
            assert after[path].index >= before[path].index, path
            assert after[path].body == before[path].body, path
        assert agent.get("/v1/kv/a").json[0]["Session"] == session, "sessions survive a restart"
        waiting = Waiting(agent, f"/v1/health/service/gone?index={after['/v1/health/service/gone'].index}&wait=60s")
        agent.put("/v1/agent/service/register", {"Name": "gone"})
        assert len(waiting.reply().json) == 1
    finally:
        agent.stop()


def test_locks_of_a_session_that_expired_without_an_agent_are_released(tmp_path: Path) -> None:
    agent = LabAgent(tmp_path, Node("n1", "127.0.0.1"), SETTINGS)
    try:
        session = agent.put("/v1/session/create", {"TTL": "250ms", "LockDelay": "0s"}).json["ID"]
        assert agent.put(f"/v1/kv/a?acquire={session}", b"x").text == "true"
        agent.call(agent.api.stop())  # as if no agent ran while the lease expires
        until(lambda: agent.call(agent.store.get(f"/weft/v2/host/n1/session/{session}")) is None)
    finally:
        agent.stop()
    agent = LabAgent(tmp_path, Node("n1", "127.0.0.1"), SETTINGS)
    try:
        until(lambda: "Session" not in agent.get("/v1/kv/a").json[0])
    finally:
        agent.stop()
