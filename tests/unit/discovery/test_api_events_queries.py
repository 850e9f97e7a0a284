"""Events, prepared queries, and the endpoints of what weft does not have."""

from __future__ import annotations

import base64
import logging
from collections.abc import Iterator
from typing import Any

import pytest

from discovery.api import disabled_endpoint
from discovery.consul import events
from discovery.layout import encode, store_key
from discovery.structs import PreparedQuery
from lab.agent import LabAgent, Waiting, until


def register(agent: LabAgent, service_id: str, *tags: str, status: str = "passing", **more: object) -> None:
    check = {"TTL": "1h", "Status": status}
    body = {"Name": "geo-db", "ID": service_id, "Port": 80, "Tags": tags, "Check": check, **more}
    assert agent.put("/v1/agent/service/register", body).status == 200


@pytest.fixture
def services(agent: LabAgent) -> Iterator[None]:
    register(agent, "a", "primary", Meta={"v": "1"})
    register(agent, "b", "standby", status="warning")
    register(agent, "c", "primary", status="critical")
    yield
    for one in "abc":
        agent.put(f"/v1/agent/service/deregister/{one}")
    for query in agent.get("/v1/query").json:
        agent.request("DELETE", f"/v1/query/{query['ID']}")


def create(agent: LabAgent, **query: Any) -> str:
    found = agent.request("POST", "/v1/query", query)
    assert found.status == 200, found.text
    made: str = found.json["ID"]
    return made


def ids(agent: LabAgent, query: str) -> list[str]:
    return sorted(one["Service"]["ID"] for one in agent.get(f"/v1/query/{query}/execute").json["Nodes"])


# Events


def test_an_event_wakes_those_that_wait(agent: LabAgent) -> None:
    before = agent.get("/v1/event/list?name=deploy")
    assert before.json == [] and before.index > 0
    waiting = Waiting(agent, f"/v1/event/list?name=deploy&index={before.index}")
    agent.put("/v1/event/fire/other", b"x")
    assert not waiting.done
    fired = agent.put("/v1/event/fire/deploy?service=web.*", b"1609030").json
    assert base64.b64decode(fired["Payload"]) == b"1609030" and fired["ServiceFilter"] == "web.*"
    (found,) = waiting.reply().json
    assert {**found, "LTime": 0} == fired and found["LTime"] == 2
    assert waiting.reply().index > before.index
    assert [one["Name"] for one in agent.get("/v1/event/list").json] == ["other", "deploy"]


def test_the_last_events_are_kept_in_order(agent: LabAgent) -> None:
    for number in range(events.KEPT + 3):
        assert agent.put(f"/v1/event/fire/n{number}").status == 200
    names = [one["Name"] for one in agent.get("/v1/event/list").json]
    assert names == [f"n{number}" for number in range(3, events.KEPT + 3)]


@pytest.mark.parametrize(
    ("path", "body", "said"),
    [("", b"", "Missing name"), ("a", b"x" * 513, "limit of 512 bytes"), ("a?node=(", b"", "Invalid node filter: ")],
)
def test_bad_events_are_refused(agent: LabAgent, path: str, body: bytes, said: str) -> None:
    found = agent.put(f"/v1/event/fire/{path}", body)
    assert found.status == 400 and said in found.text, found.text


# Prepared queries


@pytest.mark.parametrize(
    ("more", "found"),
    [
        ({}, ["a", "b"]),
        ({"OnlyPassing": True}, ["a"]),
        ({"Tags": ["PRIMARY"]}, ["a"]),
        ({"Tags": ["!primary"]}, ["b"]),
        ({"IgnoreCheckIDs": ["service:c"]}, ["a", "b", "c"]),
        ({"ServiceMeta": {"v": "1"}}, ["a"]),
        ({"NodeMeta": {"rack": "b"}}, []),
        ({"Failover": {"NearestN": 3, "Datacenters": ["dc1", "dc2"]}}, ["a", "b"]),
    ],
)
@pytest.mark.usefixtures("services")
def test_a_query_finds_healthy_instances(agent: LabAgent, more: dict[str, Any], found: list[str]) -> None:
    query = create(agent, Name="db", Service={"Service": "Geo-DB", **more})
    assert ids(agent, "db") == ids(agent, query) == ids(agent, "DB") == found
    kept = agent.get(f"/v1/query/{query}").json[0]["Service"]
    assert {**kept, **more} == kept


@pytest.mark.usefixtures("services")
def test_the_life_of_a_query(agent: LabAgent) -> None:
    query = create(agent, Name="q", Service={"Service": "geo-db"}, DNS={"TTL": "10s"})
    assert agent.get("/v1/query").json == agent.get(f"/v1/query/{query}").json
    found = agent.get("/v1/query/q/execute?limit=1").json
    assert (found["Service"], found["DNS"]["TTL"], found["Datacenter"], found["Failovers"]) == (
        "geo-db",
        "10s",
        "dc1",
        0,
    )
    assert len(found["Nodes"]) == 1
    again = agent.put("/v1/query", {"Name": "Q", "Service": {"Service": "x"}})
    assert (again.status, again.text) == (400, "name 'Q' aliases an existing query name")
    assert agent.put(f"/v1/query/{query}", {"Name": "r", "Service": {"Service": "geo-db"}}).body == b""
    assert agent.get("/v1/query/r/explain").json["Query"]["Name"] == "r"
    assert agent.request("DELETE", f"/v1/query/{query}").status == 200
    for path in (f"/v1/query/{query}", "/v1/query/r/execute", "/v1/query/r/explain"):
        gone = agent.get(path)
        assert (gone.status, gone.text) == (404, "Query not found") and gone.index > 0


@pytest.mark.usefixtures("services")
def test_templates(agent: LabAgent) -> None:
    """The longest prefix wins, a query of that very name before it."""
    template = {"Type": "name_prefix_match", "RemoveEmptyTags": True}
    create(agent, Name="", Template=template, Service={"Service": "${name.full}"})
    create(
        agent, Name="geo-", Template=template, Service={"Service": "geo-${name.suffix}", "Tags": ["${agent.segment}"]}
    )
    create(agent, Name="geo-x", Service={"Service": "geo-db", "OnlyPassing": True})
    assert ids(agent, "geo-db") == ["a", "b"] and ids(agent, "geo-x") == ["a"] and ids(agent, "none") == []
    explained = agent.get("/v1/query/GEO-db/explain").json["Query"]
    assert (explained["Service"]["Service"], explained["Service"]["Tags"]) == ("geo-db", [])


@pytest.mark.usefixtures("services")
def test_the_nearest_come_first(agent: LabAgent) -> None:
    for name in ("a0", "z9"):
        far = {"Node": name, "Address": "192.0.2.9", "Service": {"Service": "geo-db"}}
        assert agent.put("/v1/catalog/register", far).status == 200
    query = create(agent, Service={"Service": "geo-db", "Near": "_agent"})
    for near, first in (("", {"n1"}), ("?near=z9", {"z9"}), ("?near=Z9", {"z9"}), ("?near=_agent", {"n1"})):
        nodes = [agent.get(f"/v1/query/{query}/execute{near}").json["Nodes"][0]["Node"]["Node"] for _ in range(10)]
        assert set(nodes) == first
    for name in ("a0", "z9"):
        agent.put("/v1/catalog/deregister", {"Node": name})


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ({}, "Must provide a Service name to query"),
        ({"Service": {"Service": "x", "Connect": True}}, "Connect: true is not supported: weft has no Connect"),
        ({"Service": {"Service": "x"}, "Session": "s"}, "invalid session 's'"),
        ({"Service": {"Service": "x"}, "Template": {"Type": "other"}}, "is not supported, only name_prefix_match"),
        (
            {"Service": {"Service": "x"}, "Template": {"Type": "name_prefix_match", "Regexp": "^a"}},
            "use ${name.prefix} and ${name.suffix}",
        ),
        (
            {"Service": {"Service": "${match(1)}"}, "Template": {"Type": "name_prefix_match"}},
            "unknown variable 'match(1)'; known are name.full",
        ),
        ({"Service": {"Service": "x"}, "DNS": {"TTL": "soon"}}, 'TTL: "soon" is not a duration'),
        ({"Service": {"Service": "x"}, "DNS": {"TTL": "-1s"}}, 'TTL: "-1s" must be 0s to 2147483647s'),
        ({"Service": {"Service": "x"}, "DNS": {"TTL": "600000h"}}, 'TTL: "600000h" must be 0s to 2147483647s'),
    ],
)
def test_bad_queries_are_refused(agent: LabAgent, query: dict[str, Any], said: str) -> None:
    found = agent.put("/v1/query", query)
    assert found.status == 400 and said in found.text, found.text


def test_a_stored_query_whose_ttl_dns_cannot_have_is_none(agent: LabAgent) -> None:
    for ttl in (-1.0, 2.0**31):
        query = PreparedQuery("odd", "odd", "geo-db", ttl=ttl)
        agent.call(agent.store.put(store_key(query), encode(query)))
        until(lambda query=query: store_key(query) in agent.catalog.undecodable)
        assert agent.get("/v1/query").json == []
        agent.request("DELETE", "/v1/query/odd")


# What is not there


def test_the_summary_of_services(agent: LabAgent, services: None) -> None:
    found = {one["Name"]: one for one in agent.get("/v1/internal/ui/services").json}
    db = found["geo-db"]
    assert (db["InstanceCount"], db["ChecksPassing"], db["ChecksWarning"], db["ChecksCritical"]) == (3, 1, 1, 1)
    assert (db["Nodes"], db["Tags"]) == (["n1"], ["primary", "standby"])
    usage = agent.get("/v1/operator/usage").json["Usage"]["dc1"]
    assert (usage["Nodes"], usage["Services"], usage["ServiceInstances"]) == (1, 2, 4)


def test_the_host(agent: LabAgent) -> None:
    found = agent.get("/v1/agent/host").json
    assert found["Memory"]["total"] > found["Memory"]["available"] > 0 and found["Host"]["os"] == "linux"


def test_what_is_off_answers_as_in_consul(agent: LabAgent) -> None:
    for path, status, text in (
        ("/v1/acl/tokens", 401, "ACL support disabled"),
        ("/v1/connect/ca/roots", 500, "Connect must be enabled in order to use this endpoint"),
        ("/v1/agent/connect/ca/leaf/web", 500, "Connect must be enabled in order to use this endpoint"),
        ("/v1/config/service-defaults/web", 404, 'Config entry not found for "service-defaults" / "web"'),
        ("/v1/coordinate/node/n1", 404, ""),
    ):
        found = agent.get(path)
        assert (found.status, found.text) == (status, text)
        assert status != 404 or found.index == 1
    for path in ("config/service-defaults", "connect/intentions", "health/connect/web", "coordinate/nodes"):
        found = agent.get(f"/v1/{path}")
        assert (found.json, found.index) == ([], 1)
        assert agent.get(f"/v1/{path}?index=1&wait=10ms").json == []


def test_no_refusal_is_without_a_reason() -> None:
    for route in disabled_endpoint.routes():
        assert route.path.startswith("/v1/") and (
            route.writes or route.method == "GET" or "discovery-chain" in route.path
        )


def test_the_log_is_followed(agent: LabAgent) -> None:
    assert agent.get("/v1/agent/monitor?loglevel=loud").text == "Unknown log level: loud"
    log = logging.getLogger("weft.test")
    for query, expected in (
        ("loglevel=warn", b"[WARN]  weft.test: two\n"),
        ("logjson&loglevel=WARN", b'"@message": "two", "@module": "weft.test"'),
    ):
        before = len(logging.getLogger().handlers)
        client = agent.connect()
        client.request("GET", f"/v1/agent/monitor?{query}")
        until(lambda before=before: len(logging.getLogger().handlers) == before + 1)
        log.info("one")
        log.warning("two")
        assert expected in client.getresponse().readline()
        client.close()
        log.warning("nobody reads")
        until(lambda before=before: len(logging.getLogger().handlers) == before)
