"""``/v1/agent``, with Consul's client for Python and with plain requests."""

from __future__ import annotations

import asyncio
from typing import Any

import consul
import pytest

from lab.agent import LabAgent, Waiting


@pytest.fixture
def client(agent: LabAgent) -> consul.Consul:
    return consul.Consul(host=agent.host, port=agent.port)


def test_agent_self(agent: LabAgent, client: consul.Consul) -> None:
    found = client.agent.self()
    assert (found["Config"]["NodeName"], found["Config"]["Datacenter"]) == ("n1", "dc1")
    [member] = client.agent.members()
    assert (member["Name"], member["Addr"], member["Port"], member["Status"]) == ("n1", "127.0.0.1", 8301, 1)
    assert client.status.leader() == "127.0.0.1:8300"
    assert client.status.peers() == ["127.0.0.1:8300"]
    assert agent.get("/v1/agent/version").json["HumanVersion"]


def test_a_service_is_registered_listed_updated_and_deregistered(client: consul.Consul) -> None:
    before = set(client.agent.services())
    assert client.agent.service.register(
        "redis", "r1", address="10.0.0.5", port=6379, tags=["a", "b"], meta={"k": "v"},
        weights={"Passing": 5, "Warning": 2}, tagged_addresses={"wan": {"Address": "192.0.2.1", "Port": 1}},
        enable_tag_override=True,
    )  # fmt: skip
    assert client.agent.services()["r1"] == {
        "ID": "r1",
        "Service": "redis",
        "Tags": ["a", "b"],
        "Meta": {"k": "v"},
        "Port": 6379,
        "Address": "10.0.0.5",
        "TaggedAddresses": {"wan": {"Address": "192.0.2.1", "Port": 1}},
        "Weights": {"Passing": 5, "Warning": 2},
        "EnableTagOverride": True,
        "Datacenter": "dc1",
    }
    assert client.agent.service.register("redis", "r1", port=6380)
    assert client.agent.services()["r1"]["Port"] == 6380
    assert client.agent.service_definition("r1")["ContentHash"]
    assert client.agent.services(filter_expr="Port == 6380 and Service == redis").keys() == {"r1"}
    assert client.agent.service.deregister("r1")
    assert set(client.agent.services()) == before


def test_reads_see_a_registration_once_it_was_answered(client: consul.Consul) -> None:
    for number in range(30):
        name = f"soon{number}"
        client.agent.service.register(name)
        assert len(client.catalog.service(name)[1]) == 1
        client.agent.service.deregister(name)
        assert client.health.service(name)[1] == []


def test_ttl_check_updates(client: consul.Consul) -> None:
    client.agent.service.register("api", "api1", check=consul.Check.ttl("1h"))
    found = client.agent.checks()["service:api1"]
    assert found["Name"] == "Service 'api' check"
    assert (found["Status"], found["Type"], found["ServiceName"]) == ("critical", "ttl", "api")
    for report, status in (
        (client.agent.check.ttl_pass, "passing"),
        (client.agent.check.ttl_warn, "warning"),
        (client.agent.check.ttl_fail, "critical"),
    ):
        assert report("service:api1", notes=f"it is {status}")
        found = client.agent.checks()["service:api1"]
        assert (found["Status"], found["Output"]) == (status, f"it is {status}")
        [one] = client.health.service("api")[1]
        assert one["Checks"][0]["Status"] == status
    client.agent.check.ttl_pass("service:api1")
    client.agent.service.register("api", "api1", port=81, check=consul.Check.ttl("1h"))
    assert client.agent.checks()["service:api1"]["Status"] == "passing", "a repeated registration must keep the status"
    client.agent.service.deregister("api1")
    assert "service:api1" not in client.agent.checks()


def test_checks_of_nodes_and_services(agent: LabAgent, client: consul.Consul) -> None:
    client.agent.service.register("db", "db1")
    assert client.agent.check.register("alive", check=consul.Check.ttl("1h"), service_id="db1", notes="beats")
    assert client.agent.check.register("disk", check=consul.Check.ttl("1h"), check_id="d")
    found = client.agent.checks()
    assert (found["alive"]["ServiceID"], found["alive"]["Notes"], found["d"]["ServiceID"]) == ("db1", "beats", "")
    assert agent.put("/v1/agent/check/update/d", {"status": "warning", "output": "full"}).status == 200
    assert client.agent.checks(filter_expr='Status == "warning"').keys() == {"d"}
    replaced = {"name": "db", "id": "db1", "check": {"checkid": "new", "ttl": "1h"}}
    assert agent.put("/v1/agent/service/register?replace-existing-checks=true", replaced).status == 200
    assert {"new", "alive"} & client.agent.checks().keys() == {"new"}
    assert client.agent.check.deregister("d")
    client.agent.service.deregister("db1")
    assert client.agent.checks() == {}


def test_maintenance(client: consul.Consul) -> None:
    client.agent.service.register("m", "m1")
    assert client.agent.service.maintenance("m1", True, reason="new disk")
    check = client.agent.checks()["_service_maintenance:m1"]
    assert (check["Status"], "new disk" in check["Notes"] + check["Output"]) == ("critical", True)
    assert client.health.service("m", passing=True)[1] == []
    client.agent.service.maintenance("m1", False)
    assert len(client.health.service("m", passing=True)[1]) == 1
    assert client.agent.maintenance(True, "power")
    assert client.health.service("m", passing=True)[1] == []
    client.agent.maintenance(False)
    assert len(client.health.service("m", passing=True)[1]) == 1
    client.agent.service.deregister("m1")


def test_health_of_local_services(agent: LabAgent, client: consul.Consul) -> None:
    for number in (1, 2):
        check = {"TTL": "1h", "Status": "passing"}
        agent.put("/v1/agent/service/register", {"Name": "h", "ID": f"h{number}", "Check": check})
    one, all_ = "/v1/agent/health/service/id/h1", "/v1/agent/health/service/name/h"
    assert (agent.get(one).status, agent.get(all_).status) == (200, 200)
    client.agent.check.ttl_warn("service:h2")
    assert (agent.get(one).status, agent.get(all_).status) == (200, 429)
    client.agent.check.ttl_fail("service:h1")
    assert (agent.get(one).status, agent.get(all_).status) == (503, 503)
    assert agent.get(one).json["AggregatedStatus"] == "critical"
    assert agent.get(one + "?format=text").text == "critical"
    assert agent.get(all_, Accept="text/plain").text == "critical"
    client.agent.service.maintenance("h1", True)
    assert agent.get(one + "?format=text").text == "maintenance"
    assert (agent.get(one + "x").status, agent.get(all_ + "x").status) == (404, 404)
    for number in (1, 2):
        client.agent.service.deregister(f"h{number}")


def test_health_of_a_service_looks_at_its_own_checks_alone(agent: LabAgent, monkeypatch: pytest.MonkeyPatch) -> None:
    """All checks were copied and sorted for each instance: 2,000 of them took 1.7 s."""
    agent.put("/v1/agent/service/register", {"Name": "h", "ID": "h1", "Checks": [{"CheckID": "z", "TTL": "1h"}]})
    agent.put("/v1/agent/check/register", {"Name": "node", "TTL": "1h"})
    monkeypatch.delattr("discovery.registry.Registry.checks")
    found = agent.get("/v1/agent/health/service/name/h").json[0]
    assert [one["CheckID"] for one in found["Checks"]] == ["node", "z"]
    monkeypatch.undo()
    agent.put("/v1/agent/service/deregister/h1")
    agent.put("/v1/agent/check/deregister/node")


def test_a_blocking_query_by_hash(agent: LabAgent, client: consul.Consul) -> None:
    client.agent.service.register("w", "w1", port=1)
    first = agent.get("/v1/agent/service/w1")
    digest = first.headers["X-Consul-ContentHash"]
    assert first.json["ContentHash"] == digest
    assert agent.get(f"/v1/agent/service/w1?hash={digest}&wait=10ms").json == first.json
    waiting = Waiting(agent, f"/v1/agent/service/w1?hash={digest}&wait=60s")
    client.agent.service.register("other", "o1")
    assert not waiting.done
    client.agent.service.register("w", "w1", port=2)
    assert waiting.reply().json["Port"] == 2
    digest = agent.get("/v1/agent/service/w1").headers["X-Consul-ContentHash"]
    gone = Waiting(agent, f"/v1/agent/service/w1?hash={digest}&wait=60s")
    client.agent.service.deregister("w1")
    client.agent.service.deregister("o1")
    assert (gone.reply().status, gone.reply().text) == (404, "unknown service ID: w1")


def test_a_blocking_query_by_hash_where_the_catalog_is_ahead(
    agent: LabAgent, client: consul.Consul, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a store on another host a change may be seen before its transaction is answered."""
    client.agent.service.register("w", "w1", port=1)
    digest = agent.get("/v1/agent/service/w1").headers["X-Consul-ContentHash"]
    write = agent.registry._write

    async def written_slowly(*values: Any) -> None:
        await write(*values)
        await asyncio.sleep(0.2)

    monkeypatch.setattr(agent.registry, "_write", written_slowly)
    waiting = Waiting(agent, f"/v1/agent/service/w1?hash={digest}&wait=60s")
    client.agent.service.register("w", "w1", port=2)
    assert waiting.reply().json["Port"] == 2
    client.agent.service.deregister("w1")


TTL = {"TTL": "1h"}


@pytest.mark.parametrize(
    ("path", "body", "status", "said"),
    [
        ("service/register", {}, 400, "Missing service name"),
        ("service/register", b"{", 400, "Request decode failed: "),
        ("service/register", None, 400, "is not an object"),
        ("service/register", {"Name": "a", "Address": "0.0.0.0"}, 400, "Invalid service address"),
        ("service/register", {"Name": "consul"}, 400, "is reserved for the agent"),
        ("service/register", {"Name": "Consul"}, 400, "is reserved for the agent"),
        ("service/register", {"Name": "a", "Check": {"Args": ["x"], "Interval": "1s"}}, 400, "Scripts are disabled"),
        ("service/deregister/none", None, 404, 'Unknown service ID "none". Ensure that the service ID is passed, not'),
        ("service/maintenance/none?enable=true", None, 404, 'Unknown service ID "none"'),
        ("service/maintenance/?enable=true", None, 400, "Missing service ID"),
        ("service/maintenance/x", None, 400, "Missing value for enable"),
        ("maintenance?enable=maybe", None, 400, 'Invalid value for enable: "maybe"'),
        ("check/register", {}, 400, "Missing check name"),
        ("check/register", {"Name": "a"}, 400, "Must provide TTL or Script/DockerContainerID/HTTP/TCP and Interval"),
        ("check/register", {"Name": "a", "Status": "x", **TTL}, 400, "Bad check status"),
        ("check/register", {"Name": "a", "ServiceID": "none", **TTL}, 404, 'ServiceID "none" does not exist'),
        ("check/register", {"ID": "serfHealth", "Name": "a", **TTL}, 400, "is reserved for the agent"),
        ("check/register", {"Name": "a", "ServiceID": "consul", **TTL}, 404, 'ServiceID "consul" does not exist'),
        ("service/register", {"Name": "a", "Check": {"CheckID": "serfHealth", **TTL}}, 409, "is the agent's own"),
        ("service/deregister/consul", None, 404, 'Unknown service ID "consul"'),
        ("service/maintenance/consul?enable=true", None, 404, 'Unknown service ID "consul"'),
        ("check/deregister/none", None, 404, 'Unknown check ID "none"'),
        ("check/deregister/serfHealth", None, 404, 'Unknown check ID "serfHealth"'),
        ("check/pass/none", None, 404, 'Unknown check ID "none"'),
        ("check/update/none", {"Status": "odd"}, 400, "Invalid check status: 'odd'"),
        ("check/update/none", {"Status": "passing"}, 404, 'Unknown check ID "none"'),
        ("force-leave/none", None, 400, "No node found with name 'none'"),
        ("force-leave/n1", None, 400, "is the local node"),
        ("force-leave/N1", None, 400, "is the local node"),
        ("join/10.0.0.1", None, 400, "join is not supported"),
    ],
)
def test_invalid_requests_are_refused_with_the_reason(
    agent: LabAgent, path: str, body: object, status: int, said: str
) -> None:
    before = (
        agent.get("/v1/catalog/nodes").text,
        agent.get("/v1/agent/services").text,
        agent.get("/v1/agent/checks").text,
    )
    reply = agent.put(f"/v1/agent/{path}", body)
    assert (reply.status, said in reply.text) == (status, True), reply.text
    assert reply.headers["Content-Type"] == "text/plain; charset=utf-8"
    after = (
        agent.get("/v1/catalog/nodes").text,
        agent.get("/v1/agent/services").text,
        agent.get("/v1/agent/checks").text,
    )
    assert after == before


def test_only_ttl_checks_take_updates(agent: LabAgent) -> None:
    agent.put("/v1/agent/check/register", {"Name": "t", "TCP": "127.0.0.1:1", "Interval": "1h"})
    reply = agent.put("/v1/agent/check/pass/t")
    assert (reply.status, reply.text) == (400, 'CheckID "t" does not have associated TTL')
    [definition] = [check["Definition"] for check in agent.get("/v1/health/state/any").json if check["CheckID"] == "t"]
    assert definition == {"TCP": "127.0.0.1:1", "Interval": "1h0m0s"}
    agent.put("/v1/agent/check/deregister/t")


def test_check_updates_by_get_as_in_old_clients(agent: LabAgent) -> None:
    agent.put("/v1/agent/check/register", {"Name": "old", "TTL": "1h"})
    assert agent.get("/v1/agent/check/pass/old?note=fine").status == 200
    assert agent.get("/v1/agent/checks").json["old"]["Output"] == "fine"
    agent.put("/v1/agent/check/deregister/old")


def test_unknown_methods_and_paths(agent: LabAgent) -> None:
    reply = agent.request("POST", "/v1/agent/service/register", {"Name": "a"})
    assert (reply.status, reply.headers["Allow"], reply.text) == (405, "PUT", "method POST not allowed")
    assert agent.request("OPTIONS", "/v1/kv/a").headers["Allow"] == "DELETE,GET,PUT"
    assert agent.get("/v1/nothing").status == 404
    assert agent.get("/").status == 404
    assert agent.request("HEAD", "/v1/catalog/nodes").body == b""


def test_names_may_contain_any_printable_character(agent: LabAgent, client: consul.Consul) -> None:
    name = "a/b c%41ü"
    agent.put("/v1/agent/service/register", {"Name": name, "ID": name})
    assert agent.get("/v1/agent/service/a%2Fb%20c%2541%C3%BC").json["ID"] == name
    assert agent.get("/v1/catalog/service/a/b%20c%2541%C3%BC").json[0]["ServiceID"] == name
    assert agent.put("/v1/agent/service/deregister/a%2Fb%20c%2541%C3%BC").status == 200
    assert agent.get("/v1/agent/service/%ff").status == 400


def test_metrics(agent: LabAgent, client: consul.Consul) -> None:
    agent.get("/v1/agent/self")
    text = agent.get("/v1/agent/metrics?format=prometheus").text
    assert "# TYPE weft_http_requests_total counter" in text
    assert 'path="/v1/agent/self",code="200"' in text
    assert "weft_http_request_seconds_bucket" in text
    assert {gauge["Name"] for gauge in client.agent.metrics()["Gauges"]} >= {"weft_http_connections"}
