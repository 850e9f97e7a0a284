"""``/v1/kv``, ``/v1/session`` and ``/v1/txn``."""

from __future__ import annotations

import asyncio
import base64
import threading
import time
from urllib.parse import quote

import consul
import pytest

from discovery.api.settings import MAX_VALUE_BYTES
from discovery.consul import sessions
from lab.agent import LabAgent, Waiting, until
from store import LeaseGone, Put


@pytest.fixture
def client(agent: LabAgent) -> consul.Consul:
    client = consul.Consul(host=agent.host, port=agent.port)
    client.kv.delete("", recurse=True)
    return client


def test_put_get_and_delete(agent: LabAgent, client: consul.Consul) -> None:
    index, found = client.kv.get("app/color")
    assert (int(index) > 0, found) == (True, None)
    assert client.kv.put("app/color", "blue", flags=2**64 - 1) is True
    index, found = client.kv.get("app/color")
    assert int(index) == found["ModifyIndex"] == found["CreateIndex"]
    assert (found["Key"], found["Value"], found["Flags"], found["LockIndex"]) == ("app/color", b"blue", 2**64 - 1, 0)
    raw = agent.get("/v1/kv/app/color?raw")
    assert (raw.body, raw.headers["Content-Type"]) == (b"blue", "text/plain")
    assert (raw.headers["X-Content-Type-Options"], raw.headers["Content-Security-Policy"]) == ("nosniff", "sandbox")
    assert client.kv.delete("app/color") is True
    gone = agent.get("/v1/kv/app/color")
    assert (gone.status, gone.body, gone.index > int(index)) == (404, b"", True)


@pytest.mark.parametrize("value", [b"", b"\n", b"\0\xff\n{}", b"x" * MAX_VALUE_BYTES])
def test_values_are_arbitrary_bytes(agent: LabAgent, client: consul.Consul, value: bytes) -> None:
    assert agent.put("/v1/kv/v", value).text == "true"
    assert agent.get("/v1/kv/v?raw").body == value
    shown = agent.get("/v1/kv/v").json[0]["Value"]
    assert (base64.b64decode(shown) if shown is not None else b"") == value


@pytest.mark.parametrize("key", ["a b", "ü/€", "a//b", "a/../b", "%2F", "a?b", "x" * 3000, "a/"])
def test_keys_are_unicode_text(agent: LabAgent, client: consul.Consul, key: str) -> None:
    path = f"/v1/kv/{quote(key, safe='/')}"
    assert agent.put(path, b"v").text == "true"
    assert agent.get(path).json[0]["Key"] == key
    assert client.kv.get("", keys=True)[1] == [key]


def test_recurse_and_keys(client: consul.Consul) -> None:
    for key in ("a/b/1", "a/b/2", "a/c", "ab", "b"):
        client.kv.put(key, key)
    assert [pair["Key"] for pair in client.kv.get("a/", recurse=True)[1]] == ["a/b/1", "a/b/2", "a/c"]
    assert client.kv.get("a", keys=True)[1] == ["a/b/1", "a/b/2", "a/c", "ab"]
    assert client.kv.get("a/", keys=True, separator="/")[1] == ["a/b/", "a/c"]
    assert client.kv.get("", keys=True, separator="/")[1] == ["a/", "ab", "b"]
    assert client.kv.get("none", recurse=True)[1] is None
    assert client.kv.get("none", keys=True)[1] is None
    assert client.kv.delete("a/b", recurse=True) is True
    assert client.kv.get("", keys=True)[1] == ["a/c", "ab", "b"]


def test_compare_and_set(client: consul.Consul) -> None:
    assert client.kv.put("c", "1", cas=5) is False
    assert client.kv.put("c", "1", cas=0) is True
    assert client.kv.put("c", "2", cas=0) is False
    index = client.kv.get("c")[1]["ModifyIndex"]
    assert client.kv.put("c", "2", cas=index) is True
    assert client.kv.put("c", "3", cas=index) is False
    assert client.kv.delete("c", cas=index) is False
    assert client.kv.get("c")[1]["Value"] == b"2"
    assert client.kv.delete("c", cas=client.kv.get("c")[1]["ModifyIndex"]) is True
    assert client.kv.get("c")[1] is None


def test_no_cas_update_is_lost(agent: LabAgent, client: consul.Consul) -> None:
    client.kv.put("n", "0")

    def count() -> None:
        mine = consul.Consul(host=agent.host, port=agent.port)
        for _ in range(5):
            while True:
                pair = mine.kv.get("n")[1]
                if mine.kv.put("n", str(int(pair["Value"]) + 1), cas=pair["ModifyIndex"]):
                    break

    threads = [threading.Thread(target=count) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert client.kv.get("n")[1]["Value"] == b"20"


def test_a_blocking_query_for_a_key(agent: LabAgent, client: consul.Consul) -> None:
    client.kv.put("w", "1")
    before = agent.get("/v1/kv/w").index
    waiting = Waiting(agent, f"/v1/kv/w?index={before}&wait=60s")
    raw = Waiting(agent, f"/v1/kv/w?raw&index={before}&wait=60s")
    client.kv.put("wider", "x")
    client.kv.put("w", "1")
    assert agent.get("/v1/kv/w").index == before
    assert not waiting.done and not raw.done
    client.kv.put("w", "2")
    assert waiting.reply().json[0]["Value"] == base64.b64encode(b"2").decode()
    assert raw.reply().body == b"2"
    after = waiting.reply().index
    assert after > before
    gone = Waiting(agent, f"/v1/kv/w?index={after}&wait=60s")
    client.kv.delete("w")
    assert (gone.reply().status, gone.reply().index > after) == (404, True)
    back = Waiting(agent, f"/v1/kv/w?index={gone.reply().index}&wait=60s")
    client.kv.put("w", "3")
    assert back.reply().index > gone.reply().index


def test_many_blocking_queries_for_one_key(agent: LabAgent, client: consul.Consul) -> None:
    client.kv.put("m", "1")
    index = agent.get("/v1/kv/m").index
    waiting = [Waiting(agent, f"/v1/kv/m?index={index}&wait=60s") for _ in range(20)]
    for number in range(2, 10):
        client.kv.put("m", str(number))
    found = {one.reply().index: one.reply().json[0]["Value"] for one in waiting}
    assert all(after > index and value != base64.b64encode(b"1").decode() for after, value in found.items())


def test_a_blocking_query_for_a_prefix(agent: LabAgent, client: consul.Consul) -> None:
    client.kv.put("t/a", "1")
    tree, names = agent.get("/v1/kv/t/?recurse").index, agent.get("/v1/kv/t/?keys").index
    for _ in range(3):
        client.kv.put("elsewhere", "x")
        client.kv.delete("elsewhere")
    assert agent.get("/v1/kv/t/?recurse").index == tree
    whole = Waiting(agent, f"/v1/kv/t/?recurse&index={tree}&wait=60s")
    listed = Waiting(agent, f"/v1/kv/t/?keys&index={names}&wait=60s")
    client.kv.put("t/a", "2")
    assert whole.reply().index > tree
    assert not listed.done, "an update does not change the list of keys"
    client.kv.put("t/b", "1")
    assert listed.reply().json == ["t/a", "t/b"]
    index = agent.get("/v1/kv/t/?recurse").index
    client.kv.delete("t/b")
    assert agent.get(f"/v1/kv/t/?recurse&index={index}&wait=60s").index > index


def test_a_lock_is_held_by_one_session(client: consul.Consul) -> None:
    first, second = client.session.create("one", lock_delay=0), client.session.create("two", lock_delay=0)
    assert client.kv.put("lock", "1", acquire=first) is True
    assert client.kv.put("lock", "2", acquire=second) is False
    assert client.kv.put("lock", "3", acquire=first) is True
    found = client.kv.get("lock")[1]
    assert (found["Session"], found["LockIndex"], found["Value"]) == (first, 1, b"3")
    client.kv.put("lock", "4")
    assert client.kv.get("lock")[1]["Session"] == first, "a plain write keeps the lock"
    assert client.kv.put("lock", "5", release=second) is False
    assert client.kv.put("lock", "5", release=first) is True
    found = client.kv.get("lock")[1]
    assert ("Session" in found, found["LockIndex"], found["Value"]) == (False, 1, b"5")
    assert client.kv.put("lock", "6", acquire=second) is True
    assert client.kv.get("lock")[1]["LockIndex"] == 2
    assert client.session.destroy(second)
    assert "Session" not in client.kv.get("lock")[1]
    client.session.destroy(first)


def test_locks_when_their_session_ends(agent: LabAgent, client: consul.Consul) -> None:
    deleting = client.session.create(behavior="delete", lock_delay=0)
    for number in range(35):
        client.kv.put(f"held/{number}", "x", acquire=deleting)
    client.session.destroy(deleting)
    assert client.kv.get("held/", recurse=True)[1] is None
    assert agent.call(agent.store.range("/weft/v2/hold/")).entries == ()
    delaying = client.session.create(lock_delay=60)
    client.kv.put("slow", "x", acquire=delaying)
    client.session.destroy(delaying)
    next_ = client.session.create()
    assert client.kv.put("slow", "y", acquire=next_) is False, "within the lock-delay"
    assert client.kv.put("slow", "y") is True
    client.session.destroy(next_)


def test_a_session_that_is_not_renewed_expires(agent: LabAgent, client: consul.Consul) -> None:
    """After two TTLs, as in Consul: Patroni and libkv ask for half the TTL that they mean."""
    session = agent.put("/v1/session/create", {"TTL": "300ms", "LockDelay": "0s", "Behavior": "delete"}).json["ID"]
    assert client.kv.put("short", "x", acquire=session) is True
    index = agent.get(f"/v1/session/info/{session}").index
    renewed_at = time.monotonic()
    [renewed] = agent.put(f"/v1/session/renew/{session}").json
    assert (renewed["ID"], renewed["TTL"], renewed["Behavior"]) == (session, "300ms", "delete")
    gone = Waiting(agent, f"/v1/session/info/{session}?index={index}&wait=60s")
    assert gone.reply().json == []
    assert time.monotonic() - renewed_at >= 2 * 0.3
    until(lambda: agent.get("/v1/kv/short").status == 404)
    reply = agent.put(f"/v1/session/renew/{session}")
    assert (reply.status, reply.text) == (404, f"Session id '{session}' not found")


def test_a_session_ends_with_its_check(agent: LabAgent, client: consul.Consul) -> None:
    client.agent.check.register("job", check=consul.Check.ttl("1h"))
    reply = agent.put("/v1/session/create", {"Checks": ["job"]})
    assert (reply.status, reply.text) == (400, "Check 'job' is in critical state")
    client.agent.check.ttl_pass("job")
    session = client.session.create(checks=["serfHealth", "job"], lock_delay=0)
    client.kv.put("job", "x", acquire=session)
    client.agent.check.ttl_fail("job")
    until(lambda: client.session.info(session)[1] is None)
    until(lambda: "Session" not in client.kv.get("job")[1])
    client.agent.check.deregister("job")


def test_sessions_look_at_their_own_checks_alone(
    agent: LabAgent, client: consul.Consul, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each change of a check had all checks sorted for each session: 200 and 1,000 of them took 34 ms."""
    client.agent.check.register("job", check=consul.Check.ttl("1h"))
    client.agent.check.ttl_pass("job")
    monkeypatch.delattr("discovery.catalog.Catalog.node_checks")
    session = client.session.create(checks=["serfHealth", "job"])
    client.agent.check.ttl_fail("job")
    until(lambda: client.session.info(session)[1] is None)
    monkeypatch.undo()
    client.agent.check.deregister("job")


def test_a_session_with_more_locks_than_attempts_releases_all(
    agent: LabAgent, client: consul.Consul, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sessions, "RELEASE_BATCH", 2)
    monkeypatch.setattr(sessions, "MAX_ATTEMPTS", 3)
    session = client.session.create(lock_delay=0)
    for number in range(40):
        assert client.kv.put(f"many/{number}", "x", acquire=session)
    assert client.session.destroy(session)
    assert not any("Session" in one for one in client.kv.get("many/", recurse=True)[1])


def test_a_session_of_a_node_without_an_agent(agent: LabAgent, client: consul.Consul) -> None:
    agent.put("/v1/catalog/register", {"Node": "ext", "Address": "192.0.2.1"})
    reply = agent.put("/v1/session/create", {"Node": "ext"})
    assert (reply.status, reply.text) == (400, "Missing check 'serfHealth' registration")
    session = agent.put("/v1/session/create", {"Node": "ext", "NodeChecks": []}).json["ID"]
    agent.put("/v1/agent/check/register", {"Name": "c", "TTL": "1h"})
    assert agent.get(f"/v1/session/info/{session}").json[0]["Node"] == "ext"
    agent.put(f"/v1/session/destroy/{session}")
    agent.put("/v1/agent/check/deregister/c")
    agent.put("/v1/catalog/deregister", {"Node": "ext"})


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("catalog/deregister", {"Node": "ext"}),
        ("agent/force-leave/ext", None),
        ("txn", [{"Node": {"Verb": "delete", "Node": {"Node": "ext"}}}]),
    ],
)
def test_the_sessions_of_a_node_end_with_it(agent: LabAgent, client: consul.Consul, path: str, body: object) -> None:
    agent.put("/v1/catalog/register", {"Node": "ext", "Address": "192.0.2.1"})
    session = agent.put("/v1/session/create", {"Node": "ext", "NodeChecks": [], "LockDelay": "0s"}).json["ID"]
    assert client.kv.put("lock", "x", acquire=session)
    assert agent.put(f"/v1/{path}", body).status == 200
    until(lambda: client.session.info(session)[1] is None)
    until(lambda: "Session" not in client.kv.get("lock")[1])


def test_sessions_are_listed(agent: LabAgent, client: consul.Consul) -> None:
    session = client.session.create("mine", ttl=3600, lock_delay=30)
    found = client.session.info(session)[1]
    assert (found["Name"], found["Node"], found["LockDelay"]) == ("mine", "n1", 30_000_000_000)
    assert (found["TTL"], found["Behavior"], found["Checks"]) == ("1h0m0s", "release", ["serfHealth"])
    assert [one["ID"] for one in client.session.list()[1]] == [session]
    assert [one["ID"] for one in client.session.node("n1")[1]] == [session]
    assert client.session.node("none")[1] == []
    assert client.session.renew(session)["ID"] == session
    assert client.session.destroy(session) is True
    assert client.session.destroy(session) is True
    assert client.session.list()[1] == []
    assert agent.put("/v1/session/create", {"LockDelay": 5}).status == 200
    [found] = client.session.list()[1]
    assert found["LockDelay"] == 5_000_000_000
    client.session.destroy(found["ID"])


def operation(verb: str, key: str, value: str = "", **fields: object) -> dict[str, object]:
    return {"KV": {"Verb": verb, "Key": key, "Value": base64.b64encode(value.encode()).decode(), **fields}}


def test_a_transaction_is_atomic(client: consul.Consul) -> None:
    done = client.txn.put(
        [operation("set", "x/a", "1"), operation("set", "x/b", "2", Flags=7), operation("get", "x/a")]
    )
    assert [(one["KV"]["Key"], one["KV"]["Value"], one["KV"]["Flags"]) for one in done["Results"]] == [
        ("x/a", None, 0),
        ("x/b", None, 7),
        ("x/a", "MQ==", 0),
    ]
    assert len({one["KV"]["ModifyIndex"] for one in done["Results"]}) == 1
    index = done["Results"][0]["KV"]["ModifyIndex"]
    done = client.txn.put(
        [
            operation("check-index", "x/a", Index=index),
            operation("check-not-exists", "x/c"),
            operation("cas", "x/a", "3", Index=index),
            operation("delete-tree", "x/"),
            operation("set", "x/d", "4"),
            operation("get-tree", "x/"),
            operation("get-or-empty", "x/none"),
            operation("delete", "x/none"),
        ]
    )
    assert [one["KV"]["Key"] for one in done["Results"]] == ["x/a", "x/a", "x/d", "x/d", "x/none"]
    assert client.kv.get("x/", keys=True)[1] == ["x/d"]


def test_a_transaction_that_fails_changes_nothing(agent: LabAgent, client: consul.Consul) -> None:
    client.kv.put("y", "1")
    session = client.session.create()
    failing = [
        (operation("cas", "y", Index=1), 'failed to set key "y", index is stale'),
        (operation("delete-cas", "y", Index=1), 'failed to delete key "y", index is stale'),
        (operation("get", "none"), 'key "none" doesn\'t exist'),
        (operation("check-not-exists", "y"), 'key "y" exists'),
        (operation("check-index", "none", Index=1), 'failed to check index for key "none", key doesn\'t exist'),
        (operation("check-session", "y", Session=session), 'failed session check for key "y", current session "" != '),
        (operation("unlock", "y", Session=session), "lock isn't held, or is held by another session"),
    ]
    for wrong, said in failing:
        reply = agent.put("/v1/txn", [operation("set", "y", "2"), wrong])
        assert reply.status == 409
        assert reply.json["Results"] is None
        [error] = reply.json["Errors"]
        assert (error["OpIndex"], said in error["What"]) == (1, True), error
    assert client.kv.get("y")[1]["Value"] == b"1"
    locked = agent.put(
        "/v1/txn", [operation("lock", "y", "3", Session=session), operation("check-session", "y", Session=session)]
    )
    assert (locked.status, client.kv.get("y")[1]["Session"]) == (200, session)
    client.session.destroy(session)


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "said"),
    [
        ("GET", "kv/", None, 400, "Missing key name"),
        ("PUT", "kv/", b"x", 400, "Missing key name"),
        ("DELETE", "kv/", None, 400, "Missing key name"),
        ("PUT", "kv/a?cas=1&acquire=x", b"x", 400, "Conflicting flags"),
        ("DELETE", "kv/a?recurse&cas=1", None, 400, "Conflicting flags"),
        ("PUT", "kv/a?cas=x", b"x", 400, "Invalid value for ?cas"),
        ("PUT", "kv/a?flags=-1", b"x", 400, "Invalid value for ?flags"),
        ("PUT", f"kv/a?flags={2**64}", b"x", 400, "Invalid value for ?flags"),
        ("PUT", "kv/a?acquire=nobody", b"x", 400, 'invalid session "nobody"'),
        ("PUT", "kv/a?acquire=", b"x", 400, "missing session"),
        ("PUT", "kv/" + "k" * 5000, b"x", 400, "the limit is 4096"),
        ("PUT", "kv/a", b"x" * (MAX_VALUE_BYTES + 1), 413, "too large, max size"),
        ("PUT", "txn", b"{}", 400, "Failed to parse body"),
        ("PUT", "txn", b'[{"Node": {}}]', 400, "Node.Node: null is missing"),
        ("PUT", "txn", b'[{"KV": {"Verb": "dance", "Key": "a"}}]', 400, 'unknown KV verb "dance"'),
        ("PUT", "txn", b'[{"KV": {"Verb": "set", "Key": "a", "Value": "*"}}]', 400, "is not valid base64"),
        ("PUT", "txn", b'[{"KV": {"Verb": "set"}}]', 400, "must not be empty"),
        ("PUT", "txn", b"[" + b",".join([b'{"KV":{"Verb":"get","Key":"a"}}'] * 65) + b"]", 413, "(65 > 64)"),
        ("PUT", "session/create", b'{"TTL": "1ms"}', 400, "must be between [200ms=24h0m0s]"),
        ("PUT", "session/create", b'{"TTL": "25h"}', 400, "must be between"),
        ("PUT", "session/create", b'{"Behavior": "dance"}', 400, "Invalid Behavior setting 'dance'"),
        ("PUT", "session/create", b'{"Node": "none"}', 400, "Missing node registration"),
        ("PUT", "session/create", b'{"Checks": ["none"]}', 400, "Missing check 'none' registration"),
        ("PUT", "session/destroy/", None, 400, "Missing session"),
        ("GET", "session/node/", None, 400, "Missing node name"),
    ],
)  # fmt: skip
def test_invalid_requests_are_refused_with_the_reason(
    agent: LabAgent, client: consul.Consul, method: str, path: str, body: bytes | None, status: int, said: str
) -> None:
    reply = agent.request(method, f"/v1/{path}", body)
    assert (reply.status, said in reply.text) == (status, True), reply.text
    assert agent.get("/v1/kv/?keys").json == []


def test_a_lock_delay_shorter_than_its_writing_has_passed(
    agent: LabAgent, client: consul.Consul, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Patroni's is 1 ms. On a loaded machine the lease of the delay expired before the transaction
    that releases the key, which failed until the machine was idle: no failover.
    """
    session = agent.put("/v1/session/create", {"LockDelay": "1ms", "Behavior": "delete"}).json["ID"]
    assert client.kv.put("leader", "n1", acquire=session)
    grant = agent.store.grant

    async def loaded(seconds: float) -> int:
        lease = await grant(seconds)
        while True:
            try:
                await agent.store.transact((), (Put("late", b"", lease),))
            except LeaseGone:
                return lease
            await asyncio.sleep(0.01)

    monkeypatch.setattr(agent.store, "grant", loaded)
    assert agent.put(f"/v1/session/destroy/{session}").body == b"true"
    assert agent.get("/v1/kv/leader").status == 404
