"""Snapshots are restored whole or not at all; sessions in transactions and of prepared queries."""

from __future__ import annotations

import base64
import gzip
import io
import tarfile
from collections.abc import Iterator

import pytest

from discovery.consul import snapshot
from lab.agent import LabAgent, until

OUTSIDE = {
    "Node": "outside",
    "Address": "192.0.2.7",
    "Service": {"Service": "db", "Port": 5432},
    "Check": {"CheckID": "ping", "Name": "ping", "Status": "passing"},
}


@pytest.fixture
def filled(agent: LabAgent) -> Iterator[LabAgent]:
    assert agent.put("/v1/catalog/register", OUTSIDE).status == 200
    assert agent.put("/v1/agent/service/register", {"Name": "own", "Port": 1}).status == 200
    agent.request("PUT", "/v1/kv/a?flags=7", b"1")
    agent.request("PUT", "/v1/query", {"Name": "geo", "Service": {"Service": "db"}})
    agent.request("PUT", "/v1/event/fire/deploy", b"v2")
    yield agent
    agent.put("/v1/catalog/deregister", {"Node": "outside"})
    agent.put("/v1/agent/service/deregister/own")
    agent.request("DELETE", "/v1/kv/?recurse")
    for query in agent.get("/v1/query").json:
        agent.request("DELETE", f"/v1/query/{query['ID']}")


def restore(agent: LabAgent, archive: bytes) -> tuple[int, str]:
    found = agent.request("PUT", "/v1/snapshot", archive)
    return found.status, found.text


def test_a_snapshot_is_restored(filled: LabAgent) -> None:
    agent = filled
    session = agent.put("/v1/session/create", {"LockDelay": "0s"}).json["ID"]
    agent.request("PUT", f"/v1/kv/lock?acquire={session}", b"me")
    saved = agent.get("/v1/snapshot")
    assert (saved.status, saved.headers["Content-Type"]) == (200, "application/x-gzip") and saved.index
    query = agent.get("/v1/query").json[0]["ID"]
    agent.request("DELETE", f"/v1/query/{query}")
    agent.put("/v1/catalog/deregister", {"Node": "outside"})
    agent.request("PUT", "/v1/kv/a", b"2")
    agent.request("PUT", "/v1/kv/later", b"3")
    agent.put("/v1/agent/service/register", {"Name": "own", "Port": 2})
    assert restore(agent, saved.body) == (200, "")
    pair = agent.get("/v1/kv/a").json[0]
    assert (base64.b64decode(pair["Value"]), pair["Flags"]) == (b"1", 7)
    assert agent.get("/v1/kv/later").status == 404
    assert agent.get("/v1/query").json[0]["Name"] == "geo"
    found = agent.get("/v1/health/service/db").json[0]
    assert (found["Node"]["Node"], [check["CheckID"] for check in found["Checks"]]) == ("outside", ["ping"])
    # What agents register is theirs, and sessions end.
    assert agent.get("/v1/agent/services").json["own"]["Port"] == 2
    assert agent.get("/v1/session/list").json == []
    assert "Session" not in agent.get("/v1/kv/lock").json[0]
    before = agent.get("/v1/kv/?recurse").json
    assert restore(agent, saved.body)[0] == 200
    assert agent.get("/v1/kv/?recurse").json == before  # nothing to change, not even an index


def archive(sparse: str = "", **files: bytes) -> bytes:
    written = io.BytesIO()
    with tarfile.open(fileobj=written, mode="w:gz") as made:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            if name == sparse:
                member.pax_headers = {"GNU.sparse.map": "0,0", "GNU.sparse.size": str(2**20)}
            made.addfile(member, io.BytesIO(content))
    return written.getvalue()


def damaged(good: bytes) -> Iterator[tuple[str, bytes, str]]:
    with tarfile.open(fileobj=io.BytesIO(good)) as opened:
        files = {one.name: opened.extractfile(one).read() for one in opened}  # type: ignore[union-attr]
    yield "empty", b"", "truncated"
    yield "not gzip", b"hello", "not a gzipped archive"
    yield "truncated", good[:-20], "truncated"
    yield "not tar", gzip.compress(b"x" * 2000), "not a tar archive"
    yield "a file is missing", archive(**{"meta.json": b"{}"}), "has no"
    yield "sparse", archive("state.bin", **files), "unexpected file 'state.bin'"
    yield "another file", archive(**files, passwd=b""), "unexpected file"
    yield "state changed", archive(**{**files, "state.bin": files["state.bin"] + b"\n"}), "does not match its digest"
    for name, key in (
        ("own", "/weft/v2/host/n1/own/x/y"),
        ("foreign", "/other"),
        ("session", "/weft/v2/host/n/session/s"),
    ):
        yield name, snapshot.pack({key: b"{}"}, 1), "not part of a snapshot"
    yield "a value", snapshot.pack({"/weft/v2/host/n/node": b"[]"}, 1), "line 1 of state.bin"
    yield "another's key", snapshot.pack({"/weft/v2/host/n/node": b'{"name":"m","address":"1.2.3.4"}'}, 1), "belongs to"
    yield "locked", snapshot.pack({"/weft/v2/kv/a": b'{"session":"s"}\n'}, 1), "is locked"
    bomb = gzip.compress(bytes(snapshot.STATE_BYTES + 1), 9)
    assert len(bomb) < 200_000
    yield "bomb", bomb, "once decompressed"


def test_nothing_is_changed_by_an_archive_that_is_damaged(filled: LabAgent) -> None:
    agent = filled
    session = agent.put("/v1/session/create", {}).json["ID"]
    good = agent.get("/v1/snapshot").body
    before = agent.get("/v1/kv/?recurse").json
    for name, bad, why in damaged(good):
        status, text = restore(agent, bad)
        assert status == 400 and why in text and "nothing was changed" in text, (name, status, text)
    assert agent.get("/v1/kv/?recurse").json == before
    assert [one["ID"] for one in agent.get("/v1/session/list").json] == [session]
    agent.put(f"/v1/session/destroy/{session}")


def test_only_a_snapshot_may_be_larger_than_other_bodies(agent: LabAgent) -> None:
    assert restore(agent, bytes(600_000))[0] == 400
    for path, size in (("/v1/kv/a", 600_000), ("/v1/snapshot", snapshot.ARCHIVE_BYTES + 1)):
        connection = agent.connect()
        connection.putrequest("PUT", path)
        connection.putheader("Content-Length", str(size))
        connection.endheaders()
        assert connection.getresponse().status == 413  # before it is read
        connection.close()


@pytest.mark.parametrize("behavior", ["release", "delete"])
def test_a_transaction_destroys_a_session_and_takes_its_lock(agent: LabAgent, behavior: str) -> None:
    made = {"LockDelay": "0s", "Behavior": behavior}
    old, new = (agent.put("/v1/session/create", made).json["ID"] for _ in range(2))
    agent.request("PUT", f"/v1/kv/txn-lock?acquire={old}", b"old")
    lock = {"KV": {"Verb": "lock", "Key": "txn-lock", "Value": "bmV3", "Session": new}}
    assert agent.put("/v1/txn", [lock]).status == 409
    found = agent.put("/v1/txn", [{"Session": {"Verb": "delete", "Session": {"ID": old}}}, lock])
    assert found.status == 200, found.text
    assert agent.get("/v1/kv/txn-lock").json[0]["Session"] == new
    assert [one["ID"] for one in agent.get("/v1/session/list").json] == [new]
    assert agent.put("/v1/txn", [{"Session": {"Verb": "delete", "Session": {"ID": old}}}]).status == 200
    assert agent.put("/v1/txn", [{"Session": {"Verb": "get", "Session": {"ID": new}}}]).status == 400
    agent.put(f"/v1/session/destroy/{new}")
    agent.request("DELETE", "/v1/kv/txn-lock")


def test_a_prepared_query_ends_with_its_session(agent: LabAgent) -> None:
    session = agent.put("/v1/session/create", {}).json["ID"]
    body = {"Name": "mine", "Session": session, "Service": {"Service": "db"}}
    assert agent.request("PUT", "/v1/query", {**body, "Session": "none"}).status == 400
    query = agent.request("PUT", "/v1/query", body).json["ID"]
    assert agent.get(f"/v1/query/{query}").json[0]["Session"] == session
    agent.put(f"/v1/session/destroy/{session}")
    until(lambda: agent.get(f"/v1/query/{query}").status == 404)
