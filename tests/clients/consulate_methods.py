"""Calls every method of the package consulate against weft's agent; run by run.py.

Prints "ok NAME" or "failed NAME: why" for each. consulate 0.6.0, the last one on the package index,
passes json.loads an argument that Python 3.9 removed, and so decodes nothing; that is put right here.
"""

from __future__ import annotations

import json
import types
import urllib.request
import uuid
from collections.abc import Callable

import consulate
from consulate.api import base

base.json = types.SimpleNamespace(loads=lambda text, encoding="": json.loads(text))

consul = consulate.Consul("127.0.0.1", 8500)
agent, catalog, health, kv, session = consul.agent, consul.catalog, consul.health, consul.kv, consul.session
NODE = "client-tests"
OUTSIDE = {
    "Node": "outside",
    "Address": "192.0.2.7",
    "Service": {"ID": "db-1", "Service": "db", "Port": 5432, "Tags": ["primary"]},
    "Check": {"CheckID": "ping", "Name": "ping", "ServiceID": "db-1", "Status": "passing"},
}
CASES: list[tuple[str, Callable[[], object]]] = []


def listed(found: object) -> list:
    """consulate returns the only item of a list in its place."""
    return found if isinstance(found, list) else [found]


def put(path: str, value: object) -> None:
    address = f"http://127.0.0.1:8500/v1/{path}"
    with urllib.request.urlopen(urllib.request.Request(address, json.dumps(value).encode(), method="PUT")):
        pass


def method(name: str) -> Callable[[Callable[[], object]], None]:
    def add(call: Callable[[], object]) -> None:
        CASES.append((name, call))

    return add


@method("agent.service.register")
def _() -> None:
    assert agent.service.register("web", "web-1", address="127.0.0.1", port=80, tags=["v1"], ttl="30s")
    found = {key: value for part in agent.services() for key, value in part.items()}
    assert found["web-1"]["Tags"] == ["v1"], found


@method("agent.service.register with an HTTP check")
def _() -> None:
    assert agent.service.register("http", httpcheck="http://127.0.0.1:8500/v1/status/leader", interval="10s")
    found = {key: value for part in agent.checks() for key, value in part.items()}
    assert "service:http" in found, found


@method("agent.service.register with a script")
def _() -> None:
    assert agent.service.register("script", check="/bin/true", interval="10s")


@method("agent.service.deregister")
def _() -> None:
    assert agent.service.deregister("http")


@method("agent.check.register")
def _() -> None:
    assert agent.check.register("beat", check_id="beat", ttl="30s")


@method("agent.check.register with an HTTP check")
def _() -> None:
    assert agent.check.register("page", http="http://127.0.0.1:8500/v1/status/leader", interval="10s")


@method("agent.check.register with a script")
def _() -> None:
    assert agent.check.register("old", script="/bin/true", interval="10s")


@method("agent.check.ttl_pass")
def _() -> None:
    assert agent.check.ttl_pass("beat")


@method("agent.check.ttl_warn")
def _() -> None:
    assert agent.check.ttl_warn("beat")


@method("agent.check.ttl_fail")
def _() -> None:
    assert agent.check.ttl_fail("beat")


@method("agent.check.deregister")
def _() -> None:
    assert agent.check.deregister("beat")


@method("agent.checks")
def _() -> None:
    assert any("service:web-1" in part for part in agent.checks())


@method("agent.services")
def _() -> None:
    assert any("web-1" in part for part in agent.services())


@method("agent.members")
def _() -> None:
    assert [one["Name"] for one in agent.members()] == [NODE]


@method("agent.join")
def _() -> None:
    assert agent.join("127.0.0.1")


@method("agent.force_leave")
def _() -> None:
    assert agent.force_leave("gone")


@method("catalog.register")
def _() -> None:
    assert catalog.register("outside", "192.0.2.7", service=OUTSIDE["Service"], check=OUTSIDE["Check"])


@method("catalog.datacenters")
def _() -> None:
    assert listed(catalog.datacenters()) == ["dc1"]


@method("catalog.node")
def _() -> None:
    assert catalog.node("outside")["Services"]["db-1"]["Port"] == 5432


@method("catalog.nodes")
def _() -> None:
    assert sorted(one["Node"] for one in catalog.nodes()) == [NODE, "outside"]


@method("catalog.service")
def _() -> None:
    assert listed(catalog.service("db"))[0]["Address"] == "192.0.2.7"


@method("catalog.services")
def _() -> None:
    found = {key: value for part in catalog.services() for key, value in part.items()}
    assert found["db"] == ["primary"], found


@method("health.checks")
def _() -> None:
    assert [one["CheckID"] for one in listed(health.checks("db"))] == ["ping"]


@method("health.node")
def _() -> None:
    assert [one["CheckID"] for one in listed(health.node("outside"))] == ["ping"]


@method("health.service")
def _() -> None:
    assert [one["Service"]["ID"] for one in listed(health.service("db", tag="primary", passing=True))] == ["db-1"]


@method("health.state")
def _() -> None:
    assert any(one["CheckID"] == "ping" for one in health.state("passing"))


@method("catalog.deregister")
def _() -> None:
    assert catalog.deregister("outside")


@method("status.leader")
def _() -> None:
    assert consul.status.leader().startswith("127.0.0.1")


@method("status.peers")
def _() -> None:
    assert len(consul.status.peers()) == 1


@method("event.fire")
def _() -> None:
    assert consul.event.fire("deploy", "v2")


@method("event.list")
def _() -> None:
    assert listed(consul.event.list("deploy"))[0]["Name"] == "deploy"


@method("kv as a dictionary")
def _() -> None:
    kv["a/one"], kv["a/two"] = "1", "2"
    assert kv["a/one"] == "1" and "a/two" in kv and len(kv) == 2 and sorted(kv) == ["a/one", "a/two"]
    del kv["a/one"]
    assert "a/one" not in kv


@method("kv.get of a missing key")
def _() -> None:
    assert kv.get("missing", "nothing") == "nothing"
    try:
        raise AssertionError(kv["missing"])
    except (AttributeError, KeyError):
        return


@method("kv.get_record")
def _() -> None:
    kv.set_record("a/one", 7, "1")
    assert (kv.get_record("a/one")["Flags"], kv.get_record("a/one")["Value"]) == (7, "1")


@method("kv.set of text beyond ASCII")
def _() -> None:
    kv.set("a/text", "grüße")
    assert kv.get("a/text") == "grüße"


@method("kv.set of bytes")
def _() -> None:
    kv.set("a/bytes", b"\x01\x02")
    assert kv.get("a/bytes", raw=True) in (b"\x01\x02", "\x01\x02")


@method("kv.find")
def _() -> None:
    assert set(kv.find("a/")) == {"a/one", "a/two", "a/text", "a/bytes"}


@method("kv.find with a separator")
def _() -> None:
    assert listed(kv.find("a", "/")) == ["a/"], kv.find("a", "/")


@method("kv.items, keys, values, records")
def _() -> None:
    assert kv.keys() == ["a/bytes", "a/one", "a/text", "a/two"]
    assert len(kv.items()) == len(kv.values()) == len(kv.records()) == len(list(kv.iteritems())) == 4


@method("session.create")
def _() -> None:
    found = session.create(name="lock", behavior="delete", ttl="30s", delay="0s")
    assert uuid.UUID(found)


@method("session.list")
def _() -> None:
    assert [one["Name"] for one in listed(session.list())] == ["lock"]


@method("session.node")
def _() -> None:
    assert [one["Name"] for one in listed(session.node(NODE))] == ["lock"]


@method("session.info")
def _() -> None:
    (found,) = listed(session.info(listed(session.list())[0]["ID"]))
    assert found["TTL"] == "30s"


@method("session.renew")
def _() -> None:
    assert session.renew(listed(session.list())[0]["ID"])


@method("kv.acquire_lock and release_lock")
def _() -> None:
    held = listed(session.list())[0]["ID"]
    assert kv.acquire_lock("lock", held)
    assert kv.release_lock("lock", held)


@method("session.destroy")
def _() -> None:
    assert session.destroy(listed(session.list())[0]["ID"])
    assert session.list() == []


@method("kv.delete recurse")
def _() -> None:
    kv.delete("a/", recurse=True)
    assert "a/two" not in kv


@method("acl.list while there are no ACLs")
def _() -> None:
    assert not consul.acl.list()


def main() -> None:
    put("catalog/register", OUTSIDE)
    for name, call in CASES:
        try:
            call()
            print(f"ok {name}")
        except Exception as error:
            print(f"failed {name}: {type(error).__name__} {' '.join(str(error).split())[:300]}")


if __name__ == "__main__":
    main()
