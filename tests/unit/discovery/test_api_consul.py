"""What Consul's clients need of an answer beside its fields: types, versions, places, names."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from discovery.consul import API_LEVEL
from lab.agent import LabAgent, Waiting
from weft import __version__


@pytest.fixture(autouse=True)
def service(agent: LabAgent) -> Iterator[None]:
    agent.put("/v1/agent/service/register", {"Name": "Web", "ID": "w", "Port": 80, "Check": {"TTL": "1h"}})
    yield
    agent.put("/v1/agent/service/deregister/w")


# Numbers and fields


def test_counts_of_metrics_are_integers(agent: LabAgent) -> None:
    agent.get("/v1/catalog/nodes")
    found = agent.get("/v1/agent/metrics").json_of_floats
    assert {type(one["Count"]) for one in (*found["Counters"], *found["Samples"])} == {int}
    latency = next(one for one in found["Samples"] if one["Name"] == "weft_http_request_seconds")
    assert latency["Count"] >= 1 and latency["Mean"] == pytest.approx(latency["Sum"] / latency["Count"])
    assert not any("bucket" in one["Name"] for one in found["Counters"])


def test_durations_are_printed_as_go_does(agent: LabAgent) -> None:
    check = {"Name": "slow", "TCP": "127.0.0.1:1", "Interval": 3_600_000_000_000, "Timeout": "5s"}
    assert agent.put("/v1/agent/check/register", check).status == 200
    found = agent.get("/v1/agent/checks").json["slow"]
    agent.put("/v1/agent/check/deregister/slow")
    assert (found["Interval"], found["Timeout"]) == ("1h0m0s", "5s")


def test_a_transaction_has_errors_or_results_and_the_other_is_null(agent: LabAgent) -> None:
    get = {"KV": {"Verb": "get", "Key": "missing"}}
    assert agent.put("/v1/txn", [{"KV": {"Verb": "set", "Key": "t", "Value": ""}}]).json["Errors"] is None
    failed = agent.put("/v1/txn", [get])
    assert (failed.status, failed.json["Results"]) == (409, None)


def test_empty_kind_and_tagged_addresses_are_left_out(agent: LabAgent) -> None:
    assert not {"Kind", "TaggedAddresses"} & agent.get("/v1/agent/services").json["w"].keys()
    assert not {"Kind", "TaggedAddresses"} & agent.get("/v1/health/service/web").json[0]["Service"].keys()


# Versions


def test_the_version_is_that_of_the_api(agent: LabAgent) -> None:
    """Nomad compares it with >= 1.8.0 and places no job otherwise."""
    found = agent.get("/v1/agent/self").json_of_floats
    assert tuple(map(int, found["Config"]["Version"].split("."))) >= (1, 8, 0)
    assert (found["Config"]["Version"], found["Config"]["WeftVersion"]) == (API_LEVEL, __version__)
    assert found["Member"]["Tags"]["build"] == API_LEVEL and found["xDS"]["SupportedProxies"] == {}
    assert found["Stats"]["consul"]["leader_addr"] == agent.get("/v1/status/leader").json
    assert found["Member"] in agent.get("/v1/agent/members").json
    version = agent.get("/v1/agent/version").json
    assert (version["HumanVersion"], version["WeftVersion"]) == (API_LEVEL, __version__)


def test_wan_members_have_the_datacenter_in_their_name(agent: LabAgent) -> None:
    assert [one["Name"] for one in agent.get("/v1/agent/members?wan=1").json] == ["n1.dc1"]
    assert [one["Name"] for one in agent.get("/v1/agent/members?wan=0").json] == ["n1"]


# Places that are not here


@pytest.mark.parametrize("path", ["catalog/nodes", "health/service/web", "kv/a", "session/list", "status/leader"])
def test_another_datacenter_is_an_error(agent: LabAgent, path: str) -> None:
    found = agent.get(f"/v1/{path}?dc=dc2")
    assert (found.status, found.text) == (500, "No path to datacenter")
    assert agent.get(f"/v1/{path}?dc=DC1").status in (200, 404)
    assert agent.get("/v1/agent/services?dc=dc2").status == 200


def test_a_write_for_another_datacenter_changes_nothing(agent: LabAgent) -> None:
    assert agent.put("/v1/kv/there?dc=dc2", b"x").status == 500
    assert agent.get("/v1/kv/there").status == 404
    node = {"Node": "far", "Address": "192.0.2.9", "Datacenter": "dc2"}
    for what in ("register", "deregister"):
        found = agent.put(f"/v1/catalog/{what}", node)
        assert (found.status, found.text) == (500, "No path to datacenter")
    assert [one["Node"] for one in agent.get("/v1/catalog/nodes").json] == ["n1"]


@pytest.mark.parametrize(
    ("parameter", "header", "what"),
    [("ns", "X-Consul-Namespace", "Namespaces"), ("partition", "X-Consul-Partition", "Partitions")],
)
def test_other_namespaces_and_partitions_are_an_error(agent: LabAgent, parameter: str, header: str, what: str) -> None:
    found = agent.get(f"/v1/catalog/services?{parameter}=team")
    said = f"{what} are a Consul Enterprise feature"
    assert (found.status, found.text) == (400, f'Invalid query parameter: "{parameter}" - {said}')
    found = agent.get("/v1/kv/a?keys", **{header: "team"})
    assert (found.status, found.text) == (400, f'Invalid header: "{header}" - {said}')
    assert agent.get(f"/v1/catalog/services?{parameter}=default", **{header: "default"}).status == 200


def test_nothing_was_imported_from_a_peer(agent: LabAgent) -> None:
    for path, nothing in (("catalog/service/web", []), ("health/service/web", []), ("catalog/services", {})):
        found = agent.get(f"/v1/{path}?peer=other")
        assert found.json == nothing and found.index > 0
        assert agent.get(f"/v1/{path}").json


# Names


@pytest.mark.parametrize("path", ["catalog/service", "health/service", "health/checks"])
def test_service_names_are_case_insensitive(agent: LabAgent, path: str) -> None:
    assert agent.get(f"/v1/{path}/wEB").json == agent.get(f"/v1/{path}/Web").json != []


def test_a_blocking_query_wakes_for_another_spelling(agent: LabAgent) -> None:
    waiting = Waiting(agent, f"/v1/health/service/LATE?index={agent.get('/v1/health/service/LATE').index}")
    agent.put("/v1/agent/service/register", {"Name": "Late", "ID": "l"})
    assert [one["Service"]["Service"] for one in waiting.reply().json] == ["Late"]
    waiting = Waiting(agent, f"/v1/health/service/LATE?index={agent.get('/v1/health/service/LATE').index}")
    agent.put("/v1/agent/service/register", {"Name": "lATE", "ID": "m"})
    assert [one["Service"]["ID"] for one in waiting.reply().json] == ["l", "m"]
    for one in "lm":
        agent.put(f"/v1/agent/service/deregister/{one}")
    assert agent.get("/v1/health/service/late").json == []


def test_node_names_are_case_insensitive(agent: LabAgent) -> None:
    node = {"Address": "192.0.2.9", "Service": {"Service": "far"}}
    agent.put("/v1/catalog/register", {"Node": "Far", **node})
    agent.put("/v1/catalog/register", {"Node": "FAR", **node, "Check": {"Node": "far", "Name": "c"}})
    assert [one["Node"] for one in agent.get("/v1/catalog/nodes").json] == ["Far", "n1"]
    session = agent.put("/v1/session/create", {"Node": "fAR", "Checks": []}).json["ID"]
    assert [one["ID"] for one in agent.get("/v1/session/node/FAR").json] == [session]
    agent.put(f"/v1/session/destroy/{session}")
    agent.put("/v1/catalog/deregister", {"Node": "far"})
    assert [one["Node"] for one in agent.get("/v1/catalog/nodes").json] == ["n1"]


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("consul", 200),
        ("consul:8500", 200),
        ("consul.service.consul", 200),
        ("consul.service.dc1.weft:8500", 200),
        ("N1.node.consul", 200),
        ("n1.node.dc1.weft", 200),
        ("web.service.consul", 403),
        ("consul.example", 403),
        ("n2.node.consul", 403),
    ],
)
def test_the_agents_own_names_are_accepted_as_host(agent: LabAgent, host: str, status: int) -> None:
    assert agent.put("/v1/kv/host", b"x", Host=host).status == status
