"""What the page's endpoint runs for a packet, and what it answers."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from discovery.api.http_error import HttpError
from discovery.api.settings import HttpSettings
from discovery.page.overview import Overview
from discovery.page.pages import routes
from discovery.page.tracing import arguments
from discovery.structs import Node
from lab.agent import LabAgent
from weft.processes import Finished

HOP = {"place": "host", "what": "dropped by inet weft x", "command": "nft", "certain": True, "rules": ["x: <drop>"]}
FOUND = {"packet": "tcp 10.1.0.2 > 10.2.0.3:80", "delivered": False, "listening": None, "hops": [HOP]}


class Commands:
    """Answers as ``weft`` would; ``asked`` is what it was called with."""

    def __init__(self) -> None:
        self.asked: list[Sequence[str]] = []
        self.answer = Finished(1, json.dumps(FOUND).encode(), b"")

    async def run(self, words: Sequence[str]) -> Finished:
        self.asked.append(words)
        return self.answer


@pytest.fixture
def commands() -> Commands:
    return Commands()


@pytest.fixture
def agent(tmp_path: Path, commands: Commands) -> Iterator[LabAgent]:
    node = Node("n1", "127.0.0.1")
    made = lambda catalog: routes(Overview(catalog, node), commands.run)  # noqa: E731
    found = LabAgent(tmp_path, node, HttpSettings(listen=("127.0.0.1:0",)), made)
    yield found
    found.stop()


def test_what_weft_trace_says_is_answered(agent: LabAgent, commands: Commands) -> None:
    reply = agent.get("/v1/weft/trace?from=web&to=10.2.0.3&port=80")
    assert commands.asked == [["trace", "--json", "--port", "80", "--proto", "tcp", "--", "web", "10.2.0.3"]]
    assert b"<" not in reply.body
    assert reply.json_of_floats == {
        "Packet": FOUND["packet"], "Delivered": False, "Refused": False,
        "Hops": [{key.capitalize(): value for key, value in HOP.items()}],
    }  # fmt: skip


def test_what_cannot_be_followed_is_said(agent: LabAgent, commands: Commands) -> None:
    commands.answer = Finished(3, b"", b"weft: nobody is not attached\n")
    reply = agent.get("/v1/weft/trace?from=nobody&to=web&proto=icmp")
    assert (reply.status, reply.body) == (400, b"nobody is not attached")
    commands.answer = Finished(-9, b"", b"")
    assert agent.get("/v1/weft/trace?from=nobody&to=web&proto=icmp").status == 503


@pytest.mark.parametrize(
    ("start", "end", "port", "protocol", "named"),
    [
        ("", "web", "80", "tcp", "?from"),
        ("web", "--live", "80", "tcp", "?to"),
        ("web", "a b", "80", "tcp", "?to"),
        ("web", "x" * 300, "80", "tcp", "?to"),
        ("web", "db", "", "tcp", "?port"),
        ("web", "db", "65536", "udp", "?port"),
        ("web", "db", "-1", "tcp", "?port"),
        ("web", "db", "80", "esp", "?proto"),
    ],
)
def test_what_is_no_packet_is_refused(start: str, end: str, port: str, protocol: str, named: str) -> None:
    with pytest.raises(HttpError) as error:
        arguments(start, end, port, protocol)
    assert error.value.status == 400 and error.value.text.startswith(named)
