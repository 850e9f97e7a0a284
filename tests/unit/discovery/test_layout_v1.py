"""The catalog's file of the first layout (``/weft/v1/``): taken over, copied, and not opened by older
code.

``catalog_v1.sql`` is such a file, dumped: it was written by that code, through its HTTP API.
"""

from __future__ import annotations

import asyncio
import sqlite3
from pathlib import Path

import pytest

from discovery import layout_v1
from discovery.api.settings import HttpSettings
from discovery.structs import Node
from lab.agent import LabAgent
from store import Unavailable, database
from store.embedded import open_embedded

NODE = Node("n 1/a", "127.0.0.1", id="8f2d6c5e-0000-4000-8000-000000000001")
SESSION = "58d90a85-928c-482e-9098-ffb847c02f1e"
SETTINGS = HttpSettings(listen=("127.0.0.1:0",), session_ttl_min=0.2)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A file of the first layout."""
    path = tmp_path / "store.db"
    connection = sqlite3.connect(path)
    connection.executescript(Path(__file__).with_name("catalog_v1.sql").read_text(encoding="utf-8"))
    connection.close()
    return path


def keys(path: Path) -> set[str]:
    connection = sqlite3.connect(path)
    found = {key.decode() for (key,) in connection.execute("SELECT key FROM entries")}
    connection.close()
    return found


def test_everything_in_it_is_served(file: Path) -> None:
    agent = LabAgent(file.parent, NODE, SETTINGS)
    try:
        [web] = agent.get("/v1/health/service/web").json
        assert (web["Service"]["ID"], web["Node"]["Node"]) == ("web/1", "n 1/a")
        ttl = {"CheckID": "service:web/1", "Status": "passing", "Output": "fine"}
        assert ttl.items() <= web["Checks"][0].items()
        assert agent.get("/v1/agent/services").json.keys() == {"web/1"}
        [db] = agent.get("/v1/health/service/db").json
        assert (db["Node"]["Node"], db["Checks"][0]["Status"]) == ("other", "warning")
        plain = agent.get("/v1/kv/plain")
        assert {"Flags": 7, "CreateIndex": 8, "ModifyIndex": 8}.items() <= plain.json[0].items()
        assert plain.index >= 8
        assert agent.get("/v1/kv/service/leader/x").json[0]["Session"] == SESSION
        assert agent.catalog.virtual_address_service("10.79.0.1") == "web"
        assert agent.get("/v1/session/node/n%201%2Fa").json[0]["ID"] == SESSION
        assert agent.put(f"/v1/session/destroy/{SESSION}").text == "true"
        assert "Session" not in agent.get("/v1/kv/service/leader/x").json[0]
    finally:
        agent.stop()
    host = "/weft/v2/host/n 1%2Fa/"
    assert {host + "node", host + "check/service:web%2F1", host + "own/service/web%2F1"} <= keys(file)
    assert not [key for key in keys(file) if key.startswith("/weft/v1/")]


def test_a_session_gets_twice_its_ttl_when_it_is_renewed(file: Path) -> None:
    agent = LabAgent(file.parent, NODE, SETTINGS)
    try:
        assert agent.put(f"/v1/session/renew/{SESSION}").status == 200
    finally:
        agent.stop()
    connection = sqlite3.connect(file)
    key = f"/weft/v2/host/n 1%2Fa/session/{SESSION}".encode()
    query = "SELECT seconds FROM leases WHERE id = (SELECT lease FROM entries WHERE key = ?)"
    assert connection.execute(query, (key,)).fetchone() == (2 * 86400.0,)
    connection.close()


def test_it_is_copied_once(file: Path) -> None:
    before = keys(file)
    for _ in range(2):
        asyncio.run(opened(file))
    copy = file.with_name("store.db.v1")
    assert keys(copy) == before and copy.stat().st_mode & 0o777 == 0o600
    assert not list(file.parent.glob("store.db.v1?*"))


def test_a_failed_copy_changes_nothing(file: Path) -> None:
    before = keys(file)
    file.with_name("store.db.v1.new").mkdir()
    with pytest.raises(Unavailable, match=r"store\.db"):
        asyncio.run(opened(file))
    assert keys(file) == before


def test_code_of_the_first_layout_refuses_it(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the schema in its header; the sentence is this release's, as it will refuse a later one."""
    asyncio.run(opened(file))
    monkeypatch.setattr(database, "SCHEMA", 1)
    with pytest.raises(
        Unavailable, match=r"written by a later release of weft \(schema 2, this one reads up to 1\)"
    ) as no:
        asyncio.run(opened(file))
    assert str(file) + ".v1" in no.value.hint


async def opened(path: Path) -> None:
    store = await open_embedded(path, rename=layout_v1.renamed)
    await store.close()


@pytest.mark.parametrize(
    ("key", "value", "new"),
    [
        ("/weft/v1/session/x", b"{", "/weft/v1/session/x"),
        ("/weft/v1/service/odd", b"", "/weft/v1/service/odd"),
        ("/weft/v1/kv/node/a", b"", "/weft/v2/kv/node/a"),
        ("/weft/v1/kv/", b"", "/weft/v2/kv/"),
        ("/other/v1/node/a", b"", "/other/v1/node/a"),
    ],
)
def test_keys_of_no_known_form_are_kept(key: str, value: bytes, new: str) -> None:
    assert layout_v1.renamed(key, value) == new
