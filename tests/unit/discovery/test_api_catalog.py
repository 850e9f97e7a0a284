"""``/v1/catalog`` and ``/v1/health``: external services, lists and their parameters."""

from __future__ import annotations

from collections.abc import Iterator

import consul
import pytest

from lab.agent import LabAgent


@pytest.fixture
def client(agent: LabAgent) -> consul.Consul:
    return consul.Consul(host=agent.host, port=agent.port)


def register(agent: LabAgent, node: str, service_id: str, status: str = "", **fields: object) -> None:
    """A service on a node without an agent."""
    body: dict[str, object] = {
        "Node": node,
        "Address": f"10.1.0.{node[1:]}",
        "NodeMeta": {"rack": "b" if node == "x1" else "c"},
        "Service": {"Service": "web", "ID": service_id, **fields},
    }
    if status:
        body["Check"] = {"Name": "alive", "CheckID": f"c-{service_id}", "ServiceID": service_id, "Status": status}
    reply = agent.put("/v1/catalog/register", body)
    assert (reply.status, reply.text) == (200, "true"), reply.text


@pytest.fixture
def webs(agent: LabAgent) -> Iterator[None]:
    """Four instances of web: one on this node, three on two other nodes."""
    agent.put("/v1/agent/service/register", {"Name": "web", "ID": "here", "Port": 80, "Tags": ["v1"]})
    register(agent, "x2", "b", "warning", Port=82, Tags=["v2", "blue"])
    register(agent, "x1", "c", "critical", Port=83, Tags=["V2"])
    register(agent, "x1", "a", "passing", Port=81, Tags=["v1", "blue"], Address="192.0.2.9", Meta={"version": "2.1"})
    yield
    agent.put("/v1/agent/service/deregister/here")
    for node in ("x1", "x2"):
        assert agent.put("/v1/catalog/deregister", {"Node": node}).text == "true"


def ids(agent: LabAgent, path: str) -> list[str]:
    found = agent.get(path).json
    return [one["Service"]["ID"] if "Service" in one else one["ServiceID"] for one in found]


@pytest.mark.usefixtures("webs")
def test_catalog_and_health_list_instances_in_the_same_order(agent: LabAgent) -> None:
    for query in ("", "?tag=v2", "?tag=v1&tag=blue", "?near=x2", "?node-meta=rack:b", "?near=_agent"):
        assert ids(agent, "/v1/catalog/service/web" + query) == ids(agent, "/v1/health/service/web" + query)
    assert ids(agent, "/v1/catalog/service/web") == ["here", "a", "c", "b"]


@pytest.mark.usefixtures("webs")
@pytest.mark.parametrize(
    ("query", "found"),
    [
        ("passing", ["here", "a"]),
        ("passing=1", ["here", "a"]),
        ("passing=false", ["here", "a", "c", "b"]),
        ("tag=v2", ["c", "b"]),
        ("tag=v2&tag=blue", ["b"]),
        ("tag=", ["here", "a", "c", "b"]),
        ("node-meta=rack:b", ["a", "c"]),
        ("node-meta=rack:b&node-meta=none:x", []),
        ("near=x2", ["b", "here", "a", "c"]),
        ("near=X2", ["b", "here", "a", "c"]),
        ("near=_agent", ["here", "a", "c", "b"]),
        ("filter=Service.Port%20%3D%3D%2082", ["b"]),
        ('filter="blue"+in+Service.Tags+and+Checks.Status+!=+critical', ["a", "b"]),
        ('filter=Service.Meta.version+matches+"^2"', ["a"]),
        ("filter=Node.Meta.rack+%3D%3D+c", ["b"]),
        ("filter=", ["here", "a", "c", "b"]),
    ],
)
def test_parameters_of_health(agent: LabAgent, query: str, found: list[str]) -> None:
    assert ids(agent, f"/v1/health/service/web?{query.replace(' ', '%20')}") == found


@pytest.mark.usefixtures("webs")
def test_all_fields_of_an_instance(agent: LabAgent) -> None:
    [found] = agent.get("/v1/catalog/service/web?filter=ServiceID+%3D%3D+a").json
    for index in ("CreateIndex", "ModifyIndex"):
        assert found.pop(index) > 1
    assert found == {
        "ID": "",
        "Node": "x1",
        "Address": "10.1.0.1",
        "Datacenter": "dc1",
        "TaggedAddresses": {"lan": "10.1.0.1", "wan": "10.1.0.1"},
        "NodeMeta": {"rack": "b"},
        "ServiceKind": "",
        "ServiceID": "a",
        "ServiceName": "web",
        "ServiceTags": ["v1", "blue"],
        "ServiceAddress": "192.0.2.9",
        "ServiceTaggedAddresses": {},
        "ServiceWeights": {"Passing": 1, "Warning": 1},
        "ServiceMeta": {"version": "2.1"},
        "ServicePort": 81,
        "ServiceEnableTagOverride": False,
        "ServiceProxy": {},
        "ServiceConnect": {},
    }


@pytest.mark.usefixtures("webs")
def test_lists_of_services_nodes_and_checks(agent: LabAgent, client: consul.Consul) -> None:
    assert client.catalog.services()[1] == {"consul": [], "web": ["V2", "blue", "v1", "v2"]}
    assert client.catalog.services(node_meta={"rack": "c"})[1] == {"web": ["blue", "v2"]}
    assert [node["Node"] for node in client.catalog.nodes()[1]] == ["n1", "x1", "x2"]
    assert [node["Node"] for node in client.catalog.nodes(node_meta={"rack": "a"})[1]] == ["n1"]
    assert [node["Node"] for node in client.catalog.nodes(near="x2")[1]] == ["x2", "n1", "x1"]
    assert client.catalog.node("x1")[1]["Services"].keys() == {"a", "c"}
    assert client.catalog.node("X1")[1]["Node"]["Node"] == "x1"
    assert client.catalog.node("none")[1] is None
    assert [one["ID"] for one in agent.get("/v1/catalog/node-services/x1").json["Services"]] == ["a", "c"]
    assert [one["CheckID"] for one in client.health.node("x1")[1]] == ["c-a", "c-c"]
    assert [one["CheckID"] for one in client.health.checks("web")[1]] == ["c-a", "c-c", "c-b"]
    assert [one["CheckID"] for one in client.health.state("critical")[1]] == ["c-c"]
    assert [one["CheckID"] for one in client.health.state("any")[1]] == ["serfHealth", "c-a", "c-c", "c-b"]
    assert client.catalog.datacenters() == ["dc1"]
    assert client.catalog.service("none")[1] == client.health.service("none")[1] == []


@pytest.mark.usefixtures("webs")
def test_an_identical_registration_changes_nothing(agent: LabAgent) -> None:
    before = agent.get("/v1/catalog/service/web").json
    register(agent, "x2", "b", "warning", Port=82, Tags=["v2", "blue"])
    assert agent.get("/v1/catalog/service/web").json == before
    register(agent, "x2", "b", Port=84)
    assert agent.get("/v1/catalog/service/web").json != before


def test_a_service_id_can_be_registered_under_another_name(agent: LabAgent) -> None:
    node = {"Node": "y", "Address": "10.1.0.9"}
    for name in ("first", "second"):
        agent.put("/v1/catalog/register", {**node, "Service": {"Service": name, "ID": "one"}})
    assert agent.get("/v1/catalog/service/first").json == []
    assert ids(agent, "/v1/catalog/service/second") == ["one"]
    agent.put("/v1/catalog/register", {"Node": "y", "SkipNodeUpdate": True, "Check": {"Name": "up"}})
    assert [one["Status"] for one in agent.get("/v1/health/node/y").json] == ["critical"]
    agent.put("/v1/catalog/deregister", {"Node": "y", "CheckID": "up"})
    agent.put("/v1/catalog/deregister", {"Node": "y", "ServiceID": "one"})
    assert agent.get("/v1/catalog/node/y").json["Services"] == {}
    assert agent.put("/v1/agent/force-leave/y").status == 200
    assert agent.get("/v1/catalog/node/y").json is None


def test_catalog_entries_for_a_node_with_an_agent_are_bound_to_its_lease(agent: LabAgent) -> None:
    body = {"Node": "n1", "Address": "10.9.9.9", "Service": {"Service": "beside", "ID": "b1"}}
    assert agent.put("/v1/catalog/register", body).text == "true"
    assert agent.get("/v1/catalog/node/n1").json["Node"]["Address"] == "127.0.0.1"
    entries = agent.call(agent.store.range("/weft/v2/host/n1/service/beside/")).entries
    assert [entry.lease > 0 for entry in entries] == [True]
    assert agent.put("/v1/catalog/deregister", {"Node": "n1", "ServiceID": "b1"}).text == "true"
    assert agent.get("/v1/catalog/service/beside").json == []
    agent.put("/v1/agent/service/register", {"Name": "mine"})
    agent.put("/v1/catalog/deregister", {"Node": "n1", "ServiceID": "mine"})
    assert "mine" not in agent.get("/v1/agent/services").json


@pytest.mark.parametrize(
    ("path", "body", "said"),
    [
        ("register", {}, "Must provide node"),
        ("register", {"Node": "a"}, "Must provide address if SkipNodeUpdate is not set"),
        ("register", {"Node": "nobody", "SkipNodeUpdate": True, "Check": {"Name": "a"}}, "Missing node registration"),
        ("register", {"Node": "a", "Address": "::"}, "Invalid service address"),
        ("register", {"Node": "a", "Address": "h", "Service": {"ID": "x"}}, "Must provide service name"),
        (
            "register",
            {"Node": "a", "Address": "h", "Check": {"Name": "c", "ServiceID": "x"}},
            "Missing service registration",
        ),
        ("register", {"Node": "a", "Address": "h", "Check": {"Name": "c", "Status": "odd"}}, "Bad check status"),
        ("register", {"Node": "a", "Address": "h", "Check": {"Name": "c", "Node": "b"}}, "does not match"),
        ("register", {"Node": "a", "Address": "h", "Check": {"CheckID": ""}}, "Missing check name"),
        ("register", {"Node": "a", "Address": "h", "NodeMeta": {"a b": "c"}}, "Invalid Node Meta"),
        ("register", [], "is not an object"),
        ("deregister", {}, "Must provide node"),
        ("deregister", {"Node": "n1"}, "is the local node"),
        ("deregister", {"Node": "N1", "ServiceID": "consul"}, "is the agent's own"),
        ("deregister", {"Node": "n1", "CheckID": "serfHealth"}, "is the agent's own"),
    ],
)
def test_invalid_writes_are_refused_with_the_reason(agent: LabAgent, path: str, body: object, said: str) -> None:
    before = agent.get("/v1/catalog/nodes").text
    reply = agent.put(f"/v1/catalog/{path}", body)
    assert (reply.status, said in reply.text) == (400, True), reply.text
    assert agent.get("/v1/catalog/nodes").text == before


@pytest.mark.parametrize(
    "interval", ["1e999", "1" + "0" * 400, "[" * 976 + "]" * 976, "[" * 978 + "]" * 978, "1e300", "9" * 20]
)
def test_no_definition_of_a_check_can_break_the_lists_that_it_is_in(agent: LabAgent, interval: str) -> None:
    text = '{"Node": "odd", "Address": "192.0.2.1", "Check": {"Name": "odd", "Definition": {"Interval": %s}}}'
    agent.put("/v1/catalog/register", (text % interval).encode())
    for path in ("state/any", "node/odd"):
        assert agent.get(f"/v1/health/{path}").status == 200
    agent.put("/v1/catalog/deregister", {"Node": "odd"})


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("/v1/health/service/", "Missing service name"),
        ("/v1/health/service/web?passing=maybe", "Invalid value for ?passing"),
        ("/v1/health/service/web?filter=Nope+%3D%3D+1", 'Failed to create filter: Selector "Nope" is not valid'),
        ("/v1/health/service/web?index=x", "Invalid index"),
        ("/v1/health/service/web?index=-1", "Invalid index"),
        ("/v1/health/service/web?index=1&wait=soon", "Invalid wait time"),
        ("/v1/health/service/web?stale&consistent", "Cannot specify ?stale with ?consistent, conflicting semantics."),
        ("/v1/health/service/web?cached&consistent", "Cannot specify ?cached with ?consistent"),
        ("/v1/health/state/odd", "Invalid check state"),
        ("/v1/health/node/", "Missing node name"),
        ("/v1/catalog/nodes?" + "a&" * 200, "more than 128 parameters"),
        ("/v1/catalog/nodes?filter=%ff", "not valid UTF-8"),
    ],
)
def test_invalid_queries_are_refused_with_the_reason(agent: LabAgent, path: str, said: str) -> None:
    reply = agent.get(path)
    assert (reply.status, said in reply.text) == (400, True), reply.text


def test_headers_of_reads(agent: LabAgent) -> None:
    reply = agent.get("/v1/catalog/nodes?stale&dc=dc1&cached&token=x")
    assert reply.headers["X-Consul-KnownLeader"] == "true"
    assert reply.headers["X-Consul-LastContact"] == "0"
    assert reply.headers["X-Consul-Effective-Consistency"] == "stale"
    assert reply.headers["Content-Type"] == "application/json"
    assert reply.index > 0
    assert b"\n    " in agent.get("/v1/catalog/nodes?pretty").body
    assert agent.get("/v1/catalog/nodes?consistent").json == reply.json
