"""Tokens, policies and roles over HTTP, and what each endpoint lets a token do."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Iterator
from ipaddress import IPv4Address
from pathlib import Path

import pytest

from discovery.acl.tokens import Tokens
from discovery.api.disabled_endpoint import routes as disabled_routes
from discovery.api.settings import AclSettings, HttpSettings
from discovery.dns.codec import encode_name
from discovery.dns.rrtypes import A
from discovery.dns.settings import DnsSettings
from discovery.dns.zone import Zone
from discovery.structs import Node
from lab.agent import LabAgent, Reply, Waiting, until

ROOT = "7e6c9d2a-1111-4111-8111-5d2f8a1b9c3e"
OPEN = re.compile(
    r"/v1/(openapi.json|status/|catalog/datacenters|coordinate/datacenters|agent/version|acl/replication|acl/token/self)|/(ui/.*)?$"
)


def settings(folder: Path, **acl: object) -> HttpSettings:
    found = {"enabled": True, "initial_management": ROOT, "data": str(folder)} | acl
    return HttpSettings(listen=("127.0.0.1:0",), writers=(), session_ttl_min=0.2, acl=AclSettings(**found))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def acl(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LabAgent]:
    """An agent with tokens, some keys, nodes and services."""
    folder = tmp_path_factory.mktemp("acl")
    agent = LabAgent(folder, Node("n1", "127.0.0.1"), settings(folder))
    for key in ("app/a", "app/b", "other/a"):
        agent.put(f"/v1/kv/{key}", b"x", **_token(ROOT))
    for name in ("web", "db"):
        agent.put(
            "/v1/agent/service/register",
            {"Name": name, "Port": 80, "Check": {"TTL": "1h", "Status": "passing"}},
            **_token(ROOT),
        )
    yield agent
    agent.stop()


def _token(secret: str) -> dict[str, str]:
    return {"X-Consul-Token": secret}


def made(agent: LabAgent, rules: str) -> dict[str, str]:
    """The header of a new token with these rules."""
    number = len(agent.get("/v1/acl/policies", **_token(ROOT)).json)
    policy = agent.put("/v1/acl/policy", {"Name": f"p{number}", "Rules": rules}, **_token(ROOT))
    assert policy.status == 200, policy.text
    token = agent.put("/v1/acl/token", {"Policies": [{"Name": f"p{number}"}]}, **_token(ROOT))
    return _token(token.json["SecretID"])


def names(reply: Reply) -> list[str]:
    return sorted(reply.json)


def test_bootstrap_once_and_again_after_a_reset(tmp_path: Path) -> None:
    agent = LabAgent(tmp_path, Node("n1", "127.0.0.1"), settings(tmp_path, initial_management=""))
    try:
        assert agent.get("/v1/acl/tokens").status == 403
        refused = agent.put("/v1/acl/bootstrap", {"BootstrapSecret": "secret"})
        assert (refused.status, refused.text) == (400, "BootstrapSecret: must be a UUID")
        first = agent.put("/v1/acl/bootstrap").json
        assert first["Policies"] == [{"ID": "00000000-0000-0000-0000-000000000001", "Name": "global-management"}]
        assert agent.put("/v1/kv/a", b"x", **_token(first["SecretID"])).status == 200
        refused = agent.put("/v1/acl/bootstrap")
        assert refused.status == 403
        index = re.search(r"reset index: (\d+)", refused.text)
        assert index is not None
        (tmp_path / "acl-bootstrap-reset").write_text("1")
        assert agent.put("/v1/acl/bootstrap").status == 403
        (tmp_path / "acl-bootstrap-reset").write_text(index[1] + "\n")
        second = agent.put("/v1/acl/bootstrap").json
        assert agent.get("/v1/kv/a", **_token(second["SecretID"])).status == 200
        assert not (tmp_path / "acl-bootstrap-reset").exists()
        assert agent.put("/v1/acl/bootstrap").status == 403
    finally:
        agent.stop()


def test_secrets_are_stored_as_digests_alone(tmp_path: Path) -> None:
    agent = LabAgent(tmp_path, Node("n1", "127.0.0.1"), settings(tmp_path))
    try:
        token = agent.put("/v1/acl/token", {"Description": "d"}, **_token(ROOT)).json
        secret = token["SecretID"]
        assert agent.get("/v1/acl/token/self", **_token(secret)).json["SecretID"] == secret
        for path in ("/v1/acl/tokens", f"/v1/acl/token/{token['AccessorID']}"):
            text = agent.get(path, **_token(ROOT)).text
            assert secret not in text and "<hidden>" in text
        until(lambda: (tmp_path / "store.db").exists())
    finally:
        agent.stop()
    stored = "\n".join(sqlite3.connect(tmp_path / "store.db").iterdump())
    files = b"".join(path.read_bytes() for path in tmp_path.iterdir() if path.is_file())
    for one in (secret, ROOT):
        assert one not in stored and one.encode() not in files
    # After a restart the configured token is the same one, and the created one is known.
    agent = LabAgent(tmp_path, Node("n1", "127.0.0.1"), settings(tmp_path))
    try:
        assert agent.get("/v1/acl/token/self", **_token(secret)).json["AccessorID"] == token["AccessorID"]
        assert len(agent.get("/v1/acl/tokens", **_token(ROOT)).json) == 3
    finally:
        agent.stop()


def test_keys(acl: LabAgent) -> None:
    token = made(acl, 'key_prefix "app/" { policy = "write" } key "app/b" { policy = "read" }')
    assert acl.put("/v1/kv/app/a", b"x", **token).json is True
    denied = acl.put("/v1/kv/app/b", b"x", **token)
    assert denied.status == 403 and "lacks permission 'key:write' on \"app/b\"" in denied.text
    assert acl.get("/v1/kv/other/a", **token).status == 403
    listed = acl.get("/v1/kv/?keys", **token)
    assert names(listed) == ["app/a", "app/b"]
    assert listed.headers["X-Consul-Results-Filtered-By-ACLs"] == "true"
    whole = acl.get("/v1/kv/app/?recurse", **token)
    assert len(whole.json) == 2 and "X-Consul-Results-Filtered-By-ACLs" not in whole.headers
    assert acl.request("DELETE", "/v1/kv/app/?recurse", headers=token).status == 403
    assert names(acl.get("/v1/kv/?keys", **_token(ROOT))) == ["app/a", "app/b", "other/a"]
    anonymous = acl.get("/v1/kv/app/a")
    assert anonymous.status == 403 and "anonymous token lacks permission" in anonymous.text
    assert acl.get("/v1/kv/app/?recurse").status == 404


def test_a_token_decides_alone_however_it_is_sent(acl: LabAgent) -> None:
    secret = made(acl, 'key "app/a" { policy = "read" }')["X-Consul-Token"]
    assert acl.get("/v1/kv/app/a", Authorization=f"Bearer {secret}").status == 200
    assert acl.get(f"/v1/kv/app/a?token={secret}").status == 200
    unknown = acl.get("/v1/kv/app/a", **_token("7e6c9d2a-2222-4111-8111-5d2f8a1b9c3e"))
    assert (unknown.status, unknown.text) == (403, "ACL not found")


def test_the_catalog_is_filtered(acl: LabAgent) -> None:
    token = made(acl, 'service "web" { policy = "read" } node_prefix "" { policy = "read" }')
    assert names(acl.get("/v1/catalog/services", **token)) == ["web"]
    assert len(acl.get("/v1/health/service/web", **token).json) == 1
    hidden = acl.get("/v1/health/service/db", **token)
    assert hidden.json == [] and hidden.headers["X-Consul-Results-Filtered-By-ACLs"] == "true"
    # Again, from the cache of answers.
    again = acl.get("/v1/health/service/db", **token)
    assert again.json == [] and again.headers["X-Consul-Results-Filtered-By-ACLs"] == "true"
    assert len(acl.get("/v1/health/service/db", **_token(ROOT)).json) == 1
    assert acl.get("/v1/health/service/db", **token).json == []
    assert names(acl.get("/v1/agent/services", **token)) == ["web"]
    assert names(acl.get("/v1/agent/checks", **token)) == ["service:web"]
    assert acl.get("/v1/agent/service/db", **token).status == 403
    assert set(acl.get("/v1/catalog/node/n1", **token).json["Services"]) == {"web"}
    assert {one["ServiceName"] for one in acl.get("/v1/health/state/any", **token).json} == {"", "web"}
    assert [one["Name"] for one in acl.get("/v1/internal/ui/services", **token).json] == ["web"]
    nodeless = made(acl, 'service_prefix "" { policy = "read" }')
    assert acl.get("/v1/health/service/web", **nodeless).json == []
    assert acl.get("/v1/catalog/nodes", **nodeless).json == [] and acl.get("/v1/agent/members", **nodeless).json == []
    assert acl.get("/v1/catalog/node/n1", **nodeless).json is None


def test_registration(acl: LabAgent) -> None:
    token = made(acl, 'service "web" { policy = "write" } node "ext" { policy = "write" }')
    register = "/v1/agent/service/register"
    assert acl.put(register, {"Name": "web", "ID": "web2"}, **token).status == 200
    assert acl.put(register, {"Name": "db", "ID": "db2"}, **token).status == 403
    # An id or a check of another service is not replaced.
    assert acl.put(register, {"Name": "web", "ID": "db"}, **token).status == 403
    check = {"CheckID": "service:db", "TTL": "1h"}
    assert acl.put(register, {"Name": "web", "ID": "web2", "Check": check}, **token).status == 403
    assert acl.put("/v1/agent/check/register", {"Name": "c", "ServiceID": "db", "TTL": "1h"}, **token).status == 403
    assert acl.put("/v1/agent/check/register", {"Name": "c", "TTL": "1h"}, **token).status == 403
    assert acl.put("/v1/agent/check/pass/service:db", **token).status == 403
    assert acl.get("/v1/agent/check/pass/service:db", **token).status == 403
    assert acl.put("/v1/agent/check/pass/service:web", **token).status == 200
    assert acl.put("/v1/agent/service/maintenance/db?enable=true", **token).status == 403
    assert acl.put("/v1/agent/maintenance?enable=true", **token).status == 403
    assert acl.put("/v1/agent/service/deregister/db", **token).status == 403
    assert acl.put("/v1/agent/service/deregister/web2", **token).status == 200
    register = "/v1/catalog/register"
    assert acl.put(register, {"Node": "ext", "Address": "192.0.2.1"}, **token).status == 200
    assert acl.put(register, {"Node": "ext2", "Address": "192.0.2.1"}, **token).status == 403
    assert acl.put(register, {"Node": "n1", "Address": "192.0.2.1"}, **token).status == 403
    service = {"Node": "n1", "SkipNodeUpdate": True, "Service": {"ID": "db", "Service": "web"}}
    assert acl.put(register, service, **token).status == 403
    check = {"Node": "n1", "SkipNodeUpdate": True, "Check": {"CheckID": "x", "Name": "x", "ServiceID": "db"}}
    assert acl.put(register, check, **token).status == 403
    assert acl.put("/v1/catalog/deregister", {"Node": "n1", "ServiceID": "db"}, **token).status == 403
    assert acl.put("/v1/catalog/deregister", {"Node": "n1", "CheckID": "serfHealth"}, **token).status == 403
    assert acl.put("/v1/catalog/deregister", {"Node": "ext"}, **token).status == 200


def test_the_agents_own_service_and_check_are_nobodys(acl: LabAgent) -> None:
    probe = {"Name": "p", "ServiceID": "consul", "HTTP": "http://127.0.0.1:1/", "Interval": "1h"}
    node_check = {"Name": "web", "ID": "web3", "Check": {"CheckID": "serfHealth", "TTL": "1h"}}
    before = acl.get("/v1/health/service/consul", **_token(ROOT)).json
    for token in ({}, made(acl, 'service "web" { policy = "write" }')):
        assert acl.put("/v1/agent/check/register", probe, **token).status == 404
        assert acl.put("/v1/agent/service/maintenance/consul?enable=true", **token).status == 404
        assert acl.put("/v1/agent/service/deregister/consul", **token).status == 404
        assert acl.put("/v1/agent/service/register", node_check, **token).status in (403, 409)
    assert acl.get("/v1/health/service/consul", **_token(ROOT)).json == before


def test_transactions(acl: LabAgent) -> None:
    token = made(acl, 'key_prefix "app/" { policy = "write" } service "web" { policy = "write" }')

    def txn(*operations: dict[str, object]) -> Reply:
        return acl.put("/v1/txn", list(operations), **token)

    good = {"KV": {"Verb": "set", "Key": "app/t", "Value": "eA=="}}
    assert txn(good, {"KV": {"Verb": "delete", "Key": "app/t"}}).status == 200
    for bad in (
        {"KV": {"Verb": "get", "Key": "other/a"}},
        {"KV": {"Verb": "delete-tree", "Key": ""}},
        {"KV": {"Verb": "check-not-exists", "Key": "other/x"}},
        {"Node": {"Verb": "set", "Node": {"Node": "n9", "Address": "192.0.2.1"}}},
        {"Node": {"Verb": "get", "Node": {"Node": "n1"}}},
        {"Service": {"Verb": "delete", "Node": "n1", "Service": {"ID": "db", "Service": "web"}}},
        {"Service": {"Verb": "get", "Node": "n1", "Service": {"ID": "db"}}},
        {"Service": {"Verb": "set", "Node": "n1", "Service": {"ID": "db", "Service": "web"}}},
        {"Check": {"Verb": "set", "Check": {"Node": "n1", "CheckID": "c", "Name": "c", "ServiceID": "db"}}},
        {"Check": {"Verb": "delete", "Check": {"Node": "n1", "CheckID": "service:db", "Name": "c"}}},
    ):
        reply = txn(good, bad)
        assert reply.status == 409 and reply.json["Errors"][0]["OpIndex"] == 1, bad
        assert "lacks permission" in reply.json["Errors"][0]["What"], bad
    assert acl.get("/v1/kv/app/t", **token).status == 404
    found = txn({"KV": {"Verb": "get-tree", "Key": ""}})
    assert [one["KV"]["Key"] for one in found.json["Results"]] == ["app/a", "app/b"]


def test_sessions_events_and_queries(acl: LabAgent) -> None:
    token = made(
        acl, 'session "n1" { policy = "read" } event "deploy" { policy = "write" } query "q" { policy = "write" }'
    )
    session = acl.put("/v1/session/create", {}, **_token(ROOT)).json["ID"]
    assert len(acl.get("/v1/session/list", **token).json) == 1 and acl.get("/v1/session/list").json == []
    assert acl.put("/v1/session/create", {}, **token).status == 403
    assert acl.put(f"/v1/session/destroy/{session}", **token).status == 403
    assert acl.put(f"/v1/session/renew/{session}", **token).status == 403
    acl.put(f"/v1/session/destroy/{session}", **_token(ROOT))
    assert acl.put("/v1/event/fire/deploy", b"", **token).status == 200
    assert acl.put("/v1/event/fire/other", b"", **token).status == 403
    assert len(acl.get("/v1/event/list", **token).json) == 1 and acl.get("/v1/event/list").json == []
    query = acl.put("/v1/query", {"Name": "q", "Service": {"Service": "web"}}, **token).json["ID"]
    assert acl.put("/v1/query", {"Name": "r", "Service": {"Service": "web"}}, **token).status == 403
    assert acl.get("/v1/query").json == [] and acl.get(f"/v1/query/{query}").status == 403
    assert acl.get("/v1/query/q/execute", **token).json["Nodes"] == []  # the token may read no service
    assert len(acl.get("/v1/query/q/execute", **_token(ROOT)).json["Nodes"]) == 1
    assert acl.request("DELETE", f"/v1/query/{query}").status == 403
    assert acl.request("DELETE", f"/v1/query/{query}", headers=token).status == 200


def test_a_blocking_query_ends_with_its_token(acl: LabAgent) -> None:
    token = acl.put("/v1/acl/token", {"ServiceIdentities": [{"ServiceName": "web"}]}, **_token(ROOT)).json
    path = f"/v1/health/service/web?token={token['SecretID']}"
    index = acl.get(path).index
    waiting = Waiting(acl, f"{path}&index={index}")
    acl.request("DELETE", f"/v1/acl/token/{token['AccessorID']}", headers=_token(ROOT))
    acl.put(
        "/v1/agent/service/register",
        {"Name": "web", "Port": 81, "Check": {"TTL": "1h", "Status": "passing"}},
        **_token(ROOT),
    )
    assert waiting.reply().status == 403


def test_changed_policies_and_roles_count_at_once(acl: LabAgent) -> None:
    policy = acl.put("/v1/acl/policy", {"Name": "late", "Rules": ""}, **_token(ROOT)).json["ID"]
    role = acl.put("/v1/acl/role", {"Name": "late", "Policies": [{"ID": policy}]}, **_token(ROOT)).json["ID"]
    token = acl.put("/v1/acl/token", {"Roles": [{"Name": "late"}]}, **_token(ROOT)).json
    mine = _token(token["SecretID"])
    assert acl.get("/v1/kv/app/a", **mine).status == 403
    rules = 'key_prefix "" { policy = "read" }'
    acl.put(f"/v1/acl/policy/{policy}", {"Name": "late", "Rules": rules}, **_token(ROOT))
    assert acl.get("/v1/kv/app/a", **mine).status == 200
    acl.request("DELETE", f"/v1/acl/role/{role}", headers=_token(ROOT))
    assert acl.get("/v1/kv/app/a", **mine).status == 403
    for refused in ({"Name": "late", "Rules": "kex {"}, {"Name": "a b"}, {"Name": "late"}):
        assert acl.put("/v1/acl/policy", refused, **_token(ROOT)).status == 400
    assert acl.put("/v1/acl/token", {"Policies": [{"Name": "none"}]}, **_token(ROOT)).status == 400
    assert (
        acl.request("DELETE", "/v1/acl/policy/00000000-0000-0000-0000-000000000001", headers=_token(ROOT)).status == 400
    )


def test_acls_are_read_and_written_by_their_own_rule(acl: LabAgent) -> None:
    reader = made(acl, 'acl = "read"')
    assert acl.get("/v1/acl/tokens", **reader).status == 200
    for method, path, body in (
        ("PUT", "/v1/acl/token", {"Policies": [{"Name": "global-management"}]}),
        ("PUT", "/v1/acl/policy", {"Name": "mine", "Rules": ""}),
        ("PUT", "/v1/acl/role", {"Name": "mine"}),
        ("DELETE", "/v1/acl/token/00000000-0000-0000-0000-000000000002", None),
        ("DELETE", "/v1/acl/policy/x", None),
        ("PUT", "/v1/agent/token/default", {"Token": ROOT}),
    ):
        assert acl.request(method, path, body, reader).status == 403, path
    assert acl.get("/v1/acl/tokens", **made(acl, 'key_prefix "" { policy = "write" }')).status == 403
    login = acl.put("/v1/acl/login", {"AuthMethod": "x", "BearerToken": "y"})
    assert login.status == 400 and "auth methods are not supported" in login.text


def test_an_expired_token_is_gone(acl: LabAgent, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("discovery.acl.json_records.MIN_TTL", 0.1)
    token = acl.put("/v1/acl/token", {"ExpirationTTL": "300ms"}, **_token(ROOT)).json
    until(lambda: acl.get("/v1/acl/token/self", **_token(token["SecretID"])).status == 403)
    until(lambda: not any(token["AccessorID"] in key for key in acl.api._tokens._records))


def test_every_endpoint_asks_for_a_permission(acl: LabAgent) -> None:
    """Without a token nothing is changed and nothing but what is open to all is read."""
    refused = {route.path for route in disabled_routes(acls=True)}
    for route in acl.api.router.routes:
        if route.path in refused or OPEN.match(route.path) or route.path == "/v1/session/destroy/:id":  # of none
            continue
        name = {"/v1/agent/service/maintenance/:id": "db?enable=1"}.get(route.path, "db")
        if route.path == "/v1/health/state/:state":
            name = "any"
        reply = acl.request(route.method, re.sub(":[a-z]+", name, route.path), {} if route.request_body else None)
        if route.writes:
            assert reply.status in (400, 403, 404), (route, reply.text)
        else:
            shown = {"[]": True, "{}": True, "null": True}.get(reply.text, False)
            assert reply.status in (403, 404) or shown, (route, reply.text)


def test_the_default_token(tmp_path: Path) -> None:
    secret = "7e6c9d2a-3333-4111-8111-5d2f8a1b9c3e"
    agent = LabAgent(tmp_path, Node("n1", "127.0.0.1"), settings(tmp_path, default=secret))
    try:
        assert agent.get("/v1/catalog/nodes").json == []
        agent.put(
            "/v1/acl/token",
            {"SecretID": secret, "NodeIdentities": [{"NodeName": "n1", "Datacenter": "dc1"}]},
            **_token(ROOT),
        )
        assert len(agent.get("/v1/catalog/nodes").json) == 1
        assert agent.put("/v1/agent/token/default", {"Token": ROOT}, **_token(ROOT)).status == 200
        assert agent.put("/v1/kv/a", b"x").status == 200
    finally:
        agent.stop()


def test_dns_has_the_permissions_of_the_default_token(tmp_path: Path) -> None:
    agent = LabAgent(tmp_path, Node("n1", "192.0.2.1"), settings(tmp_path))
    try:
        for name in ("web", "db"):
            service = {"Name": name, "Address": "192.0.2.9", "Port": 80}
            agent.put("/v1/agent/service/register", service, **_token(ROOT))
        tokens = agent.api._tokens
        zone = Zone(agent.catalog, DnsSettings(), tokens.default_reads)
        tokens.on_change = zone.permissions_changed

        def found(name: str) -> int:
            async def ask() -> int:
                return len(zone.answer(encode_name(name), A, encode_name("consul")).records)

            return agent.call(ask())

        names = ("web.service.consul", "db.service.consul", "n1.node.consul")
        assert [found(name) for name in names] == [0, 0, 0]
        rules = 'service "web" { policy = "read" } node_prefix "" { policy = "read" }'
        agent.put("/v1/acl/policy", {"Name": "dns", "Rules": rules}, **_token(ROOT))
        anonymous = "/v1/acl/token/00000000-0000-0000-0000-000000000002"
        assert agent.put(anonymous, {"Policies": [{"Name": "dns"}]}, **_token(ROOT)).status == 200
        assert [found(name) for name in names] == [1, 0, 1]
        assert zone.pointer(IPv4Address("192.0.2.9")) is not None
        agent.put(anonymous, {}, **_token(ROOT))
        assert [found(name) for name in names] == [0, 0, 0]
        assert zone.pointer(IPv4Address("192.0.2.9")) is None
        zone.close()
    finally:
        agent.stop()
    unread = Tokens(allow=True, default="", datacenter="dc1")
    assert not unread.default_reads("service", "web")  # before the store was read


def test_reports_of_others(acl: LabAgent) -> None:
    """hashicorp/consul#798: the agent's default token is not used for a request that has its own.
    hashicorp/consul#5290: whoever reaches the API registers no check that runs a program.
    hashicorp/terraform-provider-consul#239: who may only read ACLs sees no secret, and can tell so.
    """
    reader = made(acl, 'acl = "read"')
    assert acl.put("/v1/agent/token/default", {"Token": ROOT}, **_token(ROOT)).status == 200
    try:
        assert acl.get("/v1/kv/app/a").status == 200
        assert acl.get("/v1/kv/app/a", **reader).status == 403
    finally:
        acl.put("/v1/agent/token/default", {"Token": ""}, **_token(ROOT))
    script = {"Name": "s", "Args": ["/bin/true"], "Interval": "1h"}
    assert acl.put("/v1/agent/check/register", script, **_token(ROOT)).status == 400
    assert {one["SecretID"] for one in acl.get("/v1/acl/tokens", **reader).json} == {"<hidden>", "anonymous"}
    # What a token may not read is in no answer, cached, filtered or indented.
    few = made(acl, 'service "web" { policy = "read" } node "n1" { policy = "read" }')
    for path in ("/v1/catalog/services", "/v1/health/service/db", "/v1/internal/ui/nodes", "/v1/catalog/node/n1"):
        for query in ("", "?pretty", "?cached", '?filter=Node.Node != "x"' if path.endswith("/db") else "?stale"):
            whole = acl.get((path + query).replace(" ", "%20"), **_token(ROOT))
            assert '"db"' in whole.text, path
            assert '"db"' not in acl.get((path + query).replace(" ", "%20"), **few).text, (path, query)
