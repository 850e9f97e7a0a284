"""Random requests are answered, and never with an internal error."""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterator
from urllib.parse import quote

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from lab.agent import LabAgent, Reply

OFTEN = settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)


class Line:
    """A keep-alive connection that reconnects when it was closed."""

    def __init__(self, agent: LabAgent) -> None:
        self._connection = agent.connect(timeout=30)

    def ask(self, method: str, path: str, body: bytes | None = None) -> Reply:
        try:
            self._connection.request(method, path, body)
            return Reply(self._connection.getresponse())
        except (http.client.RemoteDisconnected, ConnectionError):
            self._connection.close()
            self._connection.request(method, path, body)
            return Reply(self._connection.getresponse())

    def close(self) -> None:
        self._connection.close()


@pytest.fixture(scope="module")
def line(agent: LabAgent) -> Iterator[Line]:
    agent.put("/v1/agent/service/register", {"Name": "web", "Tags": ["v1"], "Meta": {"a": "b"}, "Check": {"TTL": "1h"}})
    found = Line(agent)
    yield found
    found.close()


def is_told(reply: Reply) -> None:
    assert reply.status < 500, reply.text
    if reply.status >= 400 and reply.body:
        assert reply.text.strip()


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=10,
)
NAMES = st.sampled_from(
    [
        "Name",
        "ID",
        "Node",
        "Address",
        "Service",
        "Check",
        "Checks",
        "TTL",
        "HTTP",
        "Interval",
        "Status",
        "Meta",
        "Tags",
        "ServiceID",
        "CheckID",
        "Port",
        "Weights",
        "TaggedAddresses",
        "KV",
        "Verb",
        "Key",
        "Value",
        "Index",
        "Session",
        "LockDelay",
        "Behavior",
        "NodeMeta",
        "Definition",
        "Output",
        "Header",
        "Args",
        "Ports",
        "ServiceChecks",
        "Flags",
    ]
)
LIKELY = st.recursive(
    JSON | st.sampled_from(["web", "n1", "10s", "passing", "10.0.0.1", "set", "lock", "consul", "serfHealth"]),
    lambda inner: st.dictionaries(NAMES, inner, max_size=5) | st.lists(inner, max_size=2),
    max_leaves=12,
)
WRITING = st.sampled_from(
    [
        "/v1/agent/service/register",
        "/v1/agent/check/register",
        "/v1/agent/check/update/service:web",
        "/v1/catalog/register",
        "/v1/catalog/deregister",
        "/v1/session/create",
        "/v1/txn",
        "/v1/kv/x?cas=1",
    ]
)


@given(WRITING, (LIKELY | JSON).map(lambda found: json.dumps(found).encode()) | st.binary(max_size=200))
@example("/v1/txn", b'[{"KV":{"Verb":"lock","Key":"a","Session":"\\u0000"}}]')
@example("/v1/agent/service/register", b'{"Name":"\\ud800"}')
@example("/v1/catalog/register", b'{"Node":"a","Address":"b","Check":{"Name":"c","Definition":{"Interval":{"a":[1]}}}}')
@OFTEN
def test_bodies(line: Line, path: str, body: bytes) -> None:
    is_told(line.ask("PUT", path, body))
    for read in ("/v1/agent/services", "/v1/agent/checks", "/v1/health/state/any", "/v1/catalog/nodes"):
        assert line.ask("GET", read).status == 200


PATHS = st.sampled_from(
    [
        "/v1/agent/service/",
        "/v1/agent/check/pass/",
        "/v1/agent/service/deregister/",
        "/v1/catalog/service/",
        "/v1/catalog/node/",
        "/v1/health/service/",
        "/v1/health/node/",
        "/v1/health/state/",
        "/v1/kv/",
        "/v1/session/info/",
        "/v1/session/renew/",
        "/v1/session/destroy/",
        "/v1/agent/health/service/id/",
        "/v1/",
        "/",
    ]
)
WORD = st.text(max_size=12) | st.sampled_from(["", "0", "-1", "1e9", "10s", "99999999999999999999", "%00", "web", "\0"])
QUERY = st.dictionaries(
    st.sampled_from(
        [
            "cas",
            "flags",
            "acquire",
            "recurse",
            "keys",
            "separator",
            "raw",
            "near",
            "tag",
            "node-meta",
            "format",
            "passing",
            "filter",
            "pretty",
            "stale",
            "consistent",
            "cached",
            "note",
            "enable",
            "reason",
        ]
    ),
    WORD,
    max_size=4,
)


@given(
    st.sampled_from(["GET", "PUT", "DELETE", "POST", "HEAD", "OPTIONS", "PATCH"]), PATHS, st.text(max_size=20), QUERY
)
@OFTEN
def test_paths_and_parameters(line: Line, method: str, path: str, name: str, query: dict[str, str]) -> None:
    asked = "&".join(f"{quote(key)}={quote(value, errors='replace')}" for key, value in query.items())
    is_told(
        line.ask(method, f"{path}{quote(name, safe='/%', errors='replace')}?{asked}", b"x" if method == "PUT" else None)
    )


@given(st.sampled_from(["index", "wait"]), WORD)
@OFTEN
def test_waits(line: Line, name: str, value: str) -> None:
    other = "wait=1ms" if name == "index" else "index=1"
    is_told(line.ask("GET", f"/v1/catalog/nodes?{other}&{name}={quote(value, errors='replace')}"))


WORDS = [
    "Service.Tags",
    "Service.Port",
    "Service.Meta.a",
    "Node.Node",
    "Checks.Status",
    "Service",
    '"v1"',
    "80",
    "==",
    "!=",
    "in",
    "not",
    "is",
    "empty",
    "and",
    "or",
    "(",
    ")",
    "matches",
    "contains",
    '"(a+)+$"',
]
FILTERS = st.text(max_size=60) | st.lists(st.sampled_from(WORDS), max_size=12).map(" ".join)


@given(FILTERS)
@OFTEN
def test_filters(line: Line, text: str) -> None:
    is_told(line.ask("GET", f"/v1/health/service/web?filter={quote(text, errors='replace')}"))


def test_the_agent_still_works_afterwards(agent: LabAgent) -> None:
    assert agent.get("/v1/agent/self").status == 200
    assert agent.catalog.undecodable == {}
