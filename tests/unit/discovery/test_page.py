"""The JSON document of the web page, and how the files of the page are served."""

from __future__ import annotations

import asyncio
import json
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from discovery.api.openapi import describe
from discovery.api.settings import HttpSettings
from discovery.page import overview
from discovery.page.overview import AttachmentSummary, NetworkSummary, Overview
from discovery.page.pages import OVERVIEW, TYPES, routes
from discovery.structs import Check, Node, Status
from lab.agent import LabAgent, until
from lab.services import NODE, Book, instance, virtual
from weft import events
from weft.processes import Finished

FILES = Path(overview.__file__).parent


def attachment(number: int, **rest: Any) -> AttachmentSummary:
    made = AttachmentSummary(
        f"mark{number}", "blue", f"{number:064}", "eth0", (f"10.0.0.{number}/24",), names=(f"c{number}",)
    )
    return replace(made, **rest)


def read(found: Overview) -> Any:
    """The current document."""
    return json.loads(asyncio.run(found.wait(0, 5))[1])


@pytest.fixture
def book() -> Book:
    return Book()


@pytest.fixture
def page(book: Book) -> Overview:
    return Overview(book.catalog, NODE, domain="weft")


async def unused(words: Sequence[str]) -> Finished:
    """No command is run."""
    raise OSError(str(words))


@pytest.fixture(scope="module")
def agent(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LabAgent]:
    """An agent that also serves the page."""
    node = Node("n1", "127.0.0.1")
    settings = HttpSettings(listen=("127.0.0.1:0",))
    found = LabAgent(
        tmp_path_factory.mktemp("page"), node, settings, lambda catalog: routes(Overview(catalog, node), unused)
    )
    yield found
    found.stop()


def test_the_document_contains_everything(book: Book, page: Overview) -> None:
    web = instance("web", "10.0.0.1", meta={"network": "blue"}, tags=("v1",), owner="mark1")
    book.put(web, virtual("web", "10.79.0.1"))
    book.health(web, Status.WARNING)
    one = attachment(1, gateways=("10.0.0.254",), internal=True, domain="dns.podman", since=5.0, ports=("80->80/tcp",))
    pools = (("10.0.0.0/24", 1, 253),)
    page.set_attachments([one], [NetworkSummary("blue", "bridge", ("10.0.0.0/24",), pools, internal=True)])
    found = read(page)
    assert (found["Node"], found["Datacenter"], found["Domain"]) == ("n1", "dc1", "weft")
    [network] = found["Networks"]
    assert network == {
        "Name": "blue", "Driver": "bridge", "Subnets": ["10.0.0.0/24"],
        "Pools": [{"Ranges": "10.0.0.0/24", "Used": 1, "Size": 253}], "Gateways": ["10.0.0.254"],
        "Domains": ["dns.podman"], "Internal": True, "Attachments": 1,
    }  # fmt: skip
    [attached] = found["Attachments"]
    assert (attached["Addresses"], attached["Names"], attached["Since"]) == (["10.0.0.1/24"], ["c1"], 5.0)
    assert attached["Ports"] == ["80->80/tcp"]
    [service] = found["Services"]
    assert (service["Name"], service["Virtual"], service["Tags"]) == ("web", ["10.79.0.1"], ["v1"])
    [one] = service["Instances"]
    assert (one["Status"], one["Network"], one["Owner"], one["Node"]) == ("warning", "blue", "mark1", "n1")
    assert [node["Name"] for node in found["Nodes"]] == ["n1"]


def test_every_kind_of_change_wakes_a_waiting_client(book: Book, page: Overview) -> None:
    web = instance("web", "10.0.0.1")
    check = Check(NODE.name, "maintenance", "m", Status.CRITICAL)
    changes = [
        lambda: book.put(web),
        lambda: book.health(web, Status.CRITICAL),
        lambda: book.put(virtual("web", "10.79.0.1")),
        lambda: book.drop(virtual("web", "10.79.0.1")),
        lambda: book.put(check),
        lambda: book.put(replace(NODE, address="192.0.2.9")),
        lambda: page.set_attachments([attachment(1)]),
        lambda: page.set_attachments([]),
        lambda: page.set_attachments([], [NetworkSummary("green", "macvlan")]),
        lambda: book.drop(web),
    ]

    async def follow() -> list[tuple[int, bytes]]:
        found = [await page.wait(0, 5)]
        for change in changes:
            waiting = asyncio.create_task(page.wait(found[-1][0], 60))
            await asyncio.sleep(0.01)
            assert not waiting.done()
            change()
            found.append(await asyncio.wait_for(waiting, 10))
        return found

    found = asyncio.run(follow())
    versions = [version for version, _ in found]
    assert versions == sorted(set(versions))
    bodies = [re.sub(rb'"(Index|Now)":[\d.]+', b"", body) for _, body in found]
    assert all(one != other for one, other in pairwise(bodies))


def test_without_changes_a_wait_times_out(book: Book, page: Overview) -> None:
    page.set_attachments([attachment(2), attachment(1)])

    async def twice() -> tuple[tuple[int, bytes], tuple[int, bytes]]:
        first = await page.wait(0, 5)
        page.set_attachments([attachment(1), attachment(2)])
        return first, await page.wait(first[0], 0.05)

    first, second = asyncio.run(twice())
    assert first == second


def test_a_version_of_an_earlier_agent_is_answered_at_once(page: Overview) -> None:
    for version in (1, page.version + 1000):
        found, _ = asyncio.run(asyncio.wait_for(page.wait(version, 600), 10))
        assert found == page.version


def test_many_changes_are_serialized_few_times(book: Book, page: Overview, monkeypatch: pytest.MonkeyPatch) -> None:
    written = []
    write = page._write
    monkeypatch.setattr(page, "_write", lambda version: (written.append(version), write(version))[1])

    async def storm() -> None:
        async def look() -> None:
            version = 0
            while version < page.version or not done.is_set():
                version, _ = await page.wait(version, 0.05)

        done = asyncio.Event()
        lookers = [asyncio.create_task(look()) for _ in range(5)]
        for number in range(100):
            book.put(instance("web", f"10.0.0.{number}"))
            await asyncio.sleep(0)
        done.set()
        await asyncio.gather(*lookers)

    asyncio.run(storm())
    assert len(read(page)["Services"][0]["Instances"]) == 100
    assert 1 <= len(written) < 20


def test_entries_beyond_the_limit_are_counted(book: Book, page: Overview, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MAX_INSTANCES", "MAX_INSTANCES_PER_SERVICE", "MAX_ATTACHMENTS", "MAX_NODES"):
        monkeypatch.setattr(overview, name, 3)
    book.put(*(instance("a", f"10.0.0.{number}") for number in range(5)), instance("b", "10.0.1.1"))
    book.put(*(Node(f"n{number}", "192.0.2.1") for number in range(6)))
    page.set_attachments(attachment(number, names=("n",) * 100) for number in range(1, 8))
    found = read(page)
    assert found["Omitted"] == {"Services": 1, "Attachments": 4, "Nodes": 3}
    assert [len(found[kind]) for kind in ("Services", "Attachments", "Nodes")] == [1, 3, 3]
    assert (len(found["Services"][0]["Instances"]), found["Services"][0]["Omitted"]) == (3, 2)
    assert len(found["Attachments"][0]["Names"]) == overview.MAX_NAMES


def test_the_time_of_a_change_is_when_the_agent_saw_it(book: Book, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1000.0]
    monkeypatch.setattr(overview.time, "time", lambda: now[0])
    book.put(instance("old", "10.0.0.1"))
    page = Overview(book.catalog, NODE)
    for number in range(2 * overview._MAX_REVISION_TIMES):
        now[0] += 2
        book.put(instance("new", f"10.0.0.{number % 50}", tags=(str(number),)))
    found = {one["Name"]: one for one in read(page)["Services"]}
    assert found["old"]["Instances"][0]["Changed"] == 0
    newest = max(one["Changed"] for one in found["new"]["Instances"])
    assert newest == now[0]
    assert len(page._revision_times) <= overview._MAX_REVISION_TIMES
    earliest = page._time_of(book.revision - 2 * overview._MAX_REVISION_TIMES + 1)
    assert 1000.0 < earliest < 1000.0 + overview._MAX_REVISION_TIMES


def test_the_document_matches_its_schema(agent: LabAgent) -> None:
    agent.put("/v1/agent/service/register", {"Name": "web", "Port": 80, "Check": {"TTL": "1h"}})
    until(lambda: "web" in agent.get("/v1/catalog/services").json)
    reply = agent.get("/v1/weft/overview")
    assert reply.headers["Content-Type"] == "application/json" and reply.index == reply.json_of_floats["Index"]
    description = describe(agent.api.router.routes)
    assert "/v1/weft/overview" in description["paths"]
    assert not [path for path in description["paths"] if path.startswith("/ui")]
    assert reply.json_of_floats.keys() == OVERVIEW["properties"].keys()
    service = next(one for one in reply.json_of_floats["Services"] if one["Name"] == "web")
    described = OVERVIEW["properties"]["Services"]["items"]["properties"]
    assert service.keys() == described.keys()
    assert service["Instances"][0].keys() == described["Instances"]["items"]["properties"].keys()
    assert agent.put("/v1/agent/service/deregister/web").status == 200
    changed = agent.get(f"/v1/weft/overview?index={reply.index}&wait=60s")
    assert changed.index > reply.index and "web" not in [one["Name"] for one in changed.json_of_floats["Services"]]
    assert agent.get(f"/v1/weft/overview?index={changed.index}&wait=50ms").body == changed.body
    assert agent.get("/v1/weft/overview?index=x").status == 400


def test_events_are_those_of_this_host(agent: LabAgent, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "FOLDER", str(tmp_path))
    own = f"/run/weft/{os.stat('/proc/self/ns/net').st_ino}"
    assert agent.get("/v1/weft/events").json == []
    events.record(own, "add", {"network": "<blue>", "container": "web", "interface": "eth0", "ms": 4.1})
    events.record("/run/weft/1", "add", {"network": "blue", "container": "foreign", "interface": "eth0"})
    events.record(own, "log", {"source": "agent", "level": "INFO", "message": "not an event"})
    events.record(own, "del", {"network": "blue", "container": "web", "interface": "eth0", "error": "no"})
    reply = agent.get("/v1/weft/events")
    assert b"<" not in reply.body
    assert [(one["Event"], one["Text"], one["Failed"]) for one in reply.json_of_floats] == [
        ("del", "del web/eth0 on blue: no", True),
        ("add", "add web/eth0 on <blue>: 4.1 ms", False),
    ]
    # Of a file of megabytes the end is read.
    with (tmp_path / events.NAME).open("a") as file:
        file.write('{"time": 1, "netns": 1}\n' * 40_000)
    events.record(own, "gc", {"ms": 1.0})
    assert [one["Event"] for one in agent.get("/v1/weft/events").json_of_floats] == ["gc"]


def test_html_in_names_is_escaped_in_the_json(agent: LabAgent) -> None:
    name = "<img src=x onerror=alert(1)>"
    agent.put("/v1/agent/service/register", {"Name": name})
    reply = agent.get("/v1/weft/overview")
    assert b"<" not in reply.body and name in [one["Name"] for one in reply.json_of_floats["Services"]]
    assert reply.headers["X-Content-Type-Options"] == "nosniff"


def test_every_file_is_served_with_a_strict_policy(agent: LabAgent) -> None:
    assert {path.name for path in FILES.iterdir() if path.suffix in (".html", ".css", ".js", ".svg")} == TYPES.keys()
    for name, kind in {**TYPES, "": TYPES["index.html"]}.items():
        reply = agent.get(f"/ui/{name}")
        assert (reply.status, reply.headers["Content-Type"]) == (200, kind)
        policy = reply.headers["Content-Security-Policy"]
        assert "default-src 'none'" in policy and "script-src 'self';" in policy and "unsafe" not in policy
        assert "frame-ancestors 'none'" in policy and reply.headers["X-Frame-Options"] == "DENY"
        assert reply.headers["X-Content-Type-Options"] == "nosniff"
    redirected = agent.get("/")
    assert (redirected.status, redirected.headers["Location"]) == (302, "/ui/")
    assert agent.get("/ui").body == agent.get("/ui/").body
    for name in ("nothing", "overview.py", "..%2fapi%2fserver.py", "../pages.py", "%00", "index.html/"):
        assert agent.get(f"/ui/{name}").status == 404
    assert agent.put("/ui/index.html", b"x").status == 405


def test_the_page_has_no_inline_code_and_no_external_resources() -> None:
    html = (FILES / "index.html").read_text()
    assert not re.search(r"<style|\son\w+=|\sstyle=|<script(?![^>]*\ssrc=)", html)
    for name in TYPES:
        text = (FILES / name).read_text()
        addresses = set(re.findall(r"https?://[^\s\"'`]+", text))
        assert addresses <= {"http://www.w3.org/2000/svg"}, name
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b|new Function", text), (
            name
        )
