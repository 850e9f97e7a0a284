"""The requests of Prometheus, Traefik and Fabio, in their order and with their parameters."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from lab.agent import LabAgent, Waiting


@pytest.fixture(autouse=True)
def services(agent: LabAgent) -> Iterator[None]:
    """web on this node and on another one; db on this node."""
    for service_id, tags in (("web1", ["traefik.enable=true", "urlprefix-/a"]), ("web2", ["canary"])):
        check = {"TTL": "1h", "Status": "passing"}
        agent.put(
            "/v1/agent/service/register", {"Name": "web", "ID": service_id, "Port": 80, "Tags": tags, "Check": check}
        )
    agent.put("/v1/agent/service/register", {"Name": "db", "Address": "10.0.0.9", "Port": 5432})
    outside = {"Node": "a0", "Address": "10.7.0.1", "Service": {"Service": "web", "ID": "out", "Port": 8080}}
    agent.put("/v1/catalog/register", outside)
    yield
    for name in ("web1", "web2", "db", "late"):
        agent.put(f"/v1/agent/service/deregister/{name}")
    agent.put("/v1/catalog/deregister", {"Node": "a0"})


def test_prometheus(agent: LabAgent) -> None:
    """It ignores answers with an unchanged index, and writes ``wait`` as Go prints durations."""
    assert agent.get("/v1/agent/self").json_of_floats["Config"]["Datacenter"] == "dc1"
    listed = agent.get("/v1/catalog/services?dc=dc1&stale=&wait=120000ms")
    assert listed.json.keys() == {"consul", "web", "db"}
    targets = {}
    for name in listed.json:
        found = agent.get(f"/v1/health/service/{name}?dc=dc1&stale=&index=0&wait=120000ms")
        assert found.index > 0
        targets[name] = sorted(
            f"{one['Service']['Address'] or one['Node']['Address']}:{one['Service']['Port']}" for one in found.json
        )
    assert targets["web"] == ["10.7.0.1:8080", "127.0.0.1:80", "127.0.0.1:80"]
    assert targets["db"] == ["10.0.0.9:5432"]
    index = agent.get("/v1/health/service/web?stale=").index
    names = Waiting(agent, f"/v1/catalog/services?dc=dc1&index={listed.index}&stale=&wait=120000ms")
    web = Waiting(agent, f"/v1/health/service/web?dc=dc1&index={index}&stale=&wait=120000ms")
    agent.put("/v1/agent/service/register", {"Name": "late"})
    assert "late" in names.reply().json
    assert names.reply().index > listed.index
    assert not web.done
    agent.put("/v1/agent/check/fail/service:web1")
    assert web.reply().index > index


def test_traefik(agent: LabAgent) -> None:
    """It matches catalog and health by position, in each of the three consistency modes."""
    for consistency in ("stale", "consistent", "cached", "nothing"):
        names = agent.get(f"/v1/catalog/services?{consistency}=")
        for name in names.json:
            catalog = agent.get(f"/v1/catalog/service/{name}?{consistency}=").json
            health = agent.get(f"/v1/health/service/{name}?{consistency}=").json
            assert [(one["Node"], one["ServiceID"]) for one in catalog] == [
                (one["Node"]["Node"], one["Service"]["ID"]) for one in health
            ]
            assert all(check["Status"] for one in health for check in one["Checks"])


def test_fabio(agent: LabAgent) -> None:
    """It keys instances by node and id, looks up services of passing checks, and registers itself."""
    self_ = agent.get("/v1/agent/self").json_of_floats
    assert self_["Config"]["NodeName"] == "n1"
    fabio = {
        "ID": "fabio-n1-9998", "Name": "fabio", "Address": "127.0.0.1", "Port": 9998, "Tags": ["fabio"],
        "Check": {"HTTP": "http://127.0.0.1:9998/health", "Interval": "1s", "Timeout": "3s",
                  "DeregisterCriticalServiceAfter": "90m"},
    }  # fmt: skip
    assert "fabio-n1-9998" not in agent.get("/v1/agent/services").json
    assert agent.put("/v1/agent/service/register", fabio).status == 200
    assert agent.get("/v1/agent/services").json["fabio-n1-9998"]["Port"] == 9998
    checks = agent.get("/v1/health/state/any?consistent=&index=0")
    passing = {
        f"{check['Node']}.{check['ServiceID']}"
        for check in checks.json
        if check["Status"] == "passing" and check["ServiceID"]
    }
    assert passing == {"n1.web1", "n1.web2"}
    found = agent.get("/v1/catalog/service/web?consistent=").json
    assert passing <= {f"{one['Node']}.{one['ServiceID']}" for one in found}
    assert [one["ServiceTags"] for one in found if one["ServiceID"] == "web1"] == [
        ["traefik.enable=true", "urlprefix-/a"]
    ]
    waiting = Waiting(agent, f"/v1/health/state/any?consistent=&index={checks.index}")
    agent.put("/v1/agent/service/deregister/fabio-n1-9998")
    assert waiting.reply().index > checks.index
    assert "fabio-n1-9998" not in agent.get("/v1/agent/services").json
