"""The agent's web page in a real browser: it follows the registry, and never executes its text."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import urllib.request
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from lab import browser
from lab.browser import Browser
from lab.host import Host
from lab.plugins import ROOT
from lab.waiting import until

pytestmark = pytest.mark.skipif(browser.program() is None, reason="chromium is not installed: bin/setup --test")

PAGE = "http://127.0.0.1:8500"
EXPECTED = 60.0
EVIL = "<img src=x onerror=alert(1)>"
Look = Callable[[Browser], Awaitable[None]]


class Page:
    """An agent with services and recorded attachments, and a browser that opens its page."""

    def __init__(self, host: Host, folder: Path) -> None:
        self._host = host
        self._folder = folder
        self.names = Path(f"/run/weft/{os.stat('/proc/thread-self/ns/net').st_ino}/names")
        self.names.mkdir(parents=True)
        config = folder / "weft.toml"
        config.write_text('[agent]\nnode = "host-a"\naddress = "192.0.2.10"\n[balancer]\nenabled = false\n')
        self._command = (str(ROOT / "bin/weft"), "agent", "--config", str(config))
        self.start()

    def start(self) -> None:
        self._agent = self._host.start(*self._command)
        until(self.answers, EXPECTED, "an answer of the agent")

    def stop(self) -> None:
        self._agent.send_signal(signal.SIGTERM)
        self._agent.communicate(timeout=EXPECTED)

    def answers(self) -> bool:
        assert self._agent.poll() is None, (self._agent.communicate()[1] or b"").decode()
        try:
            return urllib.request.urlopen(f"{PAGE}/v1/status/leader", timeout=EXPECTED).status == 200
        except OSError:
            return False

    def put(self, path: str, body: object = None) -> None:
        sent = b"" if body is None else json.dumps(body).encode()
        urllib.request.urlopen(urllib.request.Request(f"{PAGE}{path}", sent, method="PUT"), timeout=EXPECTED)

    def announce(self, name: str, network: str, number: int, *services: dict[str, Any], interface: str = "eth0") -> str:
        """Write the record that an ADD would, atomically; returns the container's id."""
        container = f"{name.encode().hex():0<64}"[:64]
        prefix = {"blue": "10.71.0", "green": "10.72.0"}.get(network, "10.73.0")
        document = {
            "network": network,
            "container": container,
            "interface": interface,
            "namespace": "",
            "addresses": [f"{prefix}.{number}/24"],
            "gateways": [],
            "internal": network == "green",
            "names": [name, container[:12]],
            "domain": "dns.podman",
            "services": list(services),
        }
        new = self.names / "new"
        new.write_text(json.dumps(document))
        new.rename(self.names / f"{name}-{interface}.json")
        return container

    def look(self, work: Look) -> None:
        """Run ``work`` in a browser, whose console must stay empty."""

        async def main() -> None:
            async with Browser(self._folder) as found:
                await found.size(1440, 900)
                await found.open(f"{PAGE}/")
                await found.until("document.querySelector('#live.good')")
                await work(found)
                assert found.problems == []

        asyncio.run(main())


@pytest.fixture
def page(host: Host, tmp_path: Path) -> Iterator[Page]:
    found = Page(host, tmp_path)
    yield found
    found.stop()


def shows(text: str, where: str = "#main") -> str:
    """JavaScript that is true if an element shows a text; in the drawing also as a title."""
    return f"document.querySelector({json.dumps(where)})?.textContent.includes({json.dumps(text)})"


def item(label: str) -> str:
    """JavaScript that returns the drawing's item with this label."""
    return f"[...document.querySelectorAll('.item')].find((one) => one.ariaLabel.startsWith({json.dumps(label)}))"


def event(name: str, words: str) -> str:
    """JavaScript that is true if an event is listed, by its name and the beginning of its description."""
    cells = f"one.cells[1].textContent.trim() === {json.dumps(name)} && one.cells[2].textContent"
    return f"[...document.querySelectorAll('#main tbody tr')].some((one) => {cells}.startsWith({json.dumps(words)}))"


def test_the_drawing_follows_what_happens(page: Page) -> None:
    web = {"name": "web", "port": 80, "tags": ["v1"], "shared": True, "check": {"ttl": "1h", "status": "passing"}}
    container = page.announce("web-1", "blue", 2, web)
    page.announce("job-1", "green", 3)
    checked = f"service:web-{container[:12]}-web-1-eth0-80"

    async def look(browser: Browser) -> None:
        assert await browser.ask("location.pathname") == "/ui/"
        for label in ("Network blue", "Network green: internal", "Service web: 1 of 1", "job-1, 10.72.0.3"):
            await browser.until(item(label))
        await browser.until(item("web-1, 10.71.0.2:80, passing"))
        await browser.ask("window.untouched = true")

        page.put("/v1/agent/service/register", {"Name": "later", "Address": "192.0.2.7", "Port": 5})
        await browser.until(item("Service later"))
        page.announce("web-2", "green", 4, web)
        await browser.until(item("web-2, 10.72.0.4:80, passing"))
        await browser.until("document.querySelector('.thread[data-service=web]')")

        colour = f"getComputedStyle({item('web-1')}.querySelector('.mark rect')).fill"
        well = await browser.ask(colour)
        page.put(f"/v1/agent/check/fail/{checked}?note=disk+full")
        await browser.until(item("web-1, 10.71.0.2:80, critical"))
        assert await browser.ask(colour) != well
        await browser.until("document.title.startsWith('host-a (1 critical)')")

        (page.names / "job-1-eth0.json").unlink()
        await browser.until(f"!({item('job-1')})")
        page.put("/v1/agent/service/deregister/later")
        await browser.until(f"!({item('Service later')})")
        assert await browser.ask("window.untouched"), "the page was reloaded"

    page.look(look)


def test_details_search_and_keyboard(page: Page) -> None:
    web = {"name": "web", "port": 80, "meta": {"team": "a"}, "check": {"ttl": "1h", "status": "passing"}}
    container = page.announce("web-1", "blue", 2, web)
    page.announce("web-1", "green", 2, interface="eth1")
    page.announce("db-1", "green", 3, {"name": "db", "port": 5432, "check": {"ttl": "1h", "notes": "a replica"}})

    async def look(browser: Browser) -> None:
        await browser.until(item("Service web"))
        await browser.click(item("Service web"))
        for text in ("web.service.weft", "10.71.0.2:80", "team: a", "blue"):
            await browser.until(shows(text, "#detail"))
        page.put(f"/v1/agent/check/fail/service:web-{container[:12]}-web-1-eth0-80?note=disk+full")
        await browser.until(shows("disk full", "#detail"))

        await browser.press("Escape")
        await browser.until("document.querySelector('#detail').hidden")
        await browser.ask("document.querySelector('.item[tabindex=\"0\"]').focus()")
        await browser.press("ArrowDown")
        await browser.press("Enter")
        await browser.until("!document.querySelector('#detail').hidden && document.activeElement.closest('#detail')")
        await browser.press("Escape")
        await browser.until("document.activeElement.closest('.item')")

        await browser.press("/", "/")
        await browser.until("document.activeElement.id == 'query'")
        await browser.write("db")
        await browser.until(f"{item('Service db')} && !({item('Service web')})")
        await browser.ask("location.hash = '#health=critical'")
        await browser.until(f"{item('web-1, 10.71.0.2:80, critical')} && !({item('web-1, 10.72.0.2')})")
        await browser.ask("location.hash = '#network-is=green&view=containers'")
        await browser.until("document.querySelectorAll('#main tbody tr').length == 2")
        await browser.click("document.querySelector('#main tbody th button')")
        await browser.until(shows("db-1.dns.podman", "#detail"))
        await browser.ask("location.hash = '#q=nothing-like-this'")
        await browser.until(shows("Nothing matches"))
        await browser.click("document.querySelector('#main button')")
        await browser.until(item("Service web"))
        for view, text in (("services", "db"), ("networks", "no, internal"), ("nodes", "192.0.2.10")):
            await browser.click(f"document.querySelector('[data-key=\"view {view}\"]')")
            await browser.until(f"document.querySelector('#main table') && {shows(text)}")
        await browser.click("document.querySelector('#main tbody th button')")
        await browser.until(shows("host-a.node.weft", "#detail"))
        await browser.until(shows("Serf Health Status", "#detail"))

    page.look(look)


def test_registry_text_is_never_executed(page: Page) -> None:
    where = {"Name": EVIL, "ID": EVIL, "Tags": [EVIL], "Meta": {"m": EVIL}, "Address": "192.0.2.7", "Port": 1}
    check = {"Name": EVIL, "Notes": EVIL, "TTL": "1h", "CheckID": "evil"}
    page.put("/v1/agent/service/register", where | {"Check": check})
    page.put("/v1/agent/check/fail/evil?note=%3Cscript%3Ealert(2)%3C/script%3E")
    page.announce(EVIL.replace("/", ""), EVIL, 2, {"name": EVIL, "port": 2})

    async def look(browser: Browser) -> None:
        await browser.until(item(f"Service {EVIL}"))
        await browser.until(item(f"Network {EVIL}"))
        for view in ("map", "services", "containers", "networks", "nodes"):
            for kind in ("service", "network"):
                await browser.ask(f"location.hash = 'view={view}&{kind}=' + encodeURIComponent({json.dumps(EVIL)})")
                await browser.until(shows(EVIL, "#detail h2"))
                await browser.until("document.querySelector('#main').firstChild")
        await browser.ask(f"location.hash = 'service=' + encodeURIComponent({json.dumps(EVIL)})")
        await browser.until(shows("<script>alert(2)</script>", "#detail pre"))
        assert (
            await browser.ask("document.querySelectorAll('main img, aside img, main script, aside script').length") == 0
        )
        # The browser itself (Trusted Types) refuses to parse a string as HTML.
        made = (
            "(() => { try { document.body.innerHTML = '<p>'; return 'made'; } catch (error) { return error.name; } })()"
        )
        assert await browser.ask(made) == "TypeError"
        refused = [text for text in browser.problems if "TrustedHTML" in text or "require-trusted-types-for" in text]
        assert browser.problems == refused
        browser.problems.clear()

    page.look(look)


def test_networks_and_published_ports_of_containers(host: Host, page: Page, tmp_path: Path) -> None:
    """Also networks without names, one that nobody is on, and a container on two."""
    weft = str(ROOT / "bin/weft")
    host.run(weft, "network", "create", "blue", "--subnet", "10.71.0.0/28", "--names")
    host.run(weft, "network", "create", "green", "--subnet", "10.72.0.0/24", "--subnet", "fd00:72::/64", "--internal")
    host.run(weft, "network", "create", "empty", "--subnet", "10.73.0.0/24")
    for name, network, options in (
        ("web", "blue", ("-p", "8080:80", "-p", "5300:53/udp")),
        ("web", "green", ("--ifname", "eth1")),
        ("db", "green", ()),
    ):
        if not Path(f"/run/netns/{name}").exists():
            host.container(name)
        host.run(weft, "attach", network, name, *options)

    async def look(browser: Browser) -> None:
        await browser.until(item("Network empty: bridge · 10.73.0.0/24 · 0 of 253 addresses · 0 endpoints"))
        await browser.until(item("Network blue: bridge · 10.71.0.0/28 · 1 of 13 addresses · 1 endpoint"))
        await browser.until(item("Network green: bridge · internal · 10.72.0.0/24"))
        await browser.until(item("weft-web, 10.71.0.2, published 8080→80, 5300→53/udp"))
        await browser.until("document.querySelectorAll('.thread.home[data-container=weft-web]').length == 1")
        # Filters change what is shown, not the counts.
        await browser.ask("location.hash = '#q=weft-db'")
        await browser.until(f"!({item('weft-web')}) && {item('Network green: bridge · internal · 10.72.0.0/24')}")
        assert "2 endpoints" in await browser.ask(f"{item('Network green')}.ariaLabel")
        await browser.ask("location.hash = ''")
        for number, (width, dark) in enumerate(((1440, False), (900, True), (390, False))):
            await browser.size(width, 844, dark=dark)
            for view in ("map", "containers", "networks"):
                await browser.click(f"document.querySelector('[data-key=\"view {view}\"]')")
                await browser.until(f"innerWidth == {width} && document.documentElement.scrollWidth <= {width}")
                await browser.picture(tmp_path / f"{number}-{view}.png", whole=True)
        await browser.size(1440, 900)
        await browser.click("document.querySelector('[data-key=\"view networks\"]')")
        await browser.until(shows("10.73.0.0/24"))
        await browser.click("document.querySelector('#main tbody th button')")
        await browser.until(shows("1 of 13 addresses of 10.71.0.1-10.71.0.14", "#detail"))
        await browser.click("document.querySelector('#detail [data-kind=container]')")
        await browser.until(shows("8080→80", "#detail"))
        # An instance that is registered by hand at a container's address is that container's.
        page.put("/v1/agent/service/register", {"Name": "by-hand", "Address": "10.72.0.3", "Port": 81})
        await browser.click("document.querySelector('[data-key=\"view map\"]')")
        place = """document.querySelector('[data-key^="instance"][data-key*="by-hand"]')"""
        await browser.until(f"!!{place}")
        assert "weft-db" in await browser.ask(f"{place}.ariaLabel")
        page.put("/v1/agent/service/deregister/by-hand", {})
        await browser.click("document.querySelector('[data-key=\"view events\"]')")
        await browser.until(event("add", "weft-web/eth0 on blue: 10.71.0.2/28"))
        await browser.picture(tmp_path / "events.png")
        for words in (("web", "green", "--ifname", "eth1"), ("web", "blue"), ("db", "green")):
            await asyncio.to_thread(host.run, weft, "detach", words[1], words[0], *words[2:])
        await asyncio.to_thread(host.run, weft, "network", "rm", "blue", "green", "empty")
        for verb in ("add", "del"):
            for where in ("weft-web/eth1 on green", "weft-web/eth0 on blue", "weft-db/eth0 on green"):
                await browser.until(event(verb, where))
        await browser.click("document.querySelector('[data-key=\"view map\"]')")
        await browser.until(shows("Nothing is registered yet"))

    page.look(look)


def test_a_packet_is_followed_from_a_click(host: Host, page: Page, tmp_path: Path) -> None:
    weft = str(ROOT / "bin/weft")
    for network, number in (("blue", 71), ("green", 72)):
        host.run(weft, "network", "create", network, "--subnet", f"10.{number}.0.0/24", "--names")
    for name, network in (("web", "blue"), ("next", "blue"), ("db", "green")):
        host.container(name)
        host.run(weft, "attach", network, name)
    host.serve_tcp("next", 80)
    page.put("/v1/agent/service/register", {"Name": "shop", "Address": "10.71.0.3", "Port": 80})
    result, field = "#main .hops", "document.querySelector('[data-key=\"trace {}\"]')"

    async def look(browser: Browser) -> None:
        await browser.until(item("weft-web"))
        await browser.click(item("weft-web"))
        await browser.click(f"{field.format('from this')}")
        # From here on by keyboard: the select that the focus is in, the protocol, the port.
        await browser.until(f"document.activeElement === {field.format('to')}")
        await browser.ask(f"{field.format('to')}.value = 'container weft-db'")
        await browser.ask(f"{field.format('to')}.dispatchEvent(new Event('change'))")
        await browser.until("location.hash.includes('to=container+weft-db')")
        await browser.press("Tab")
        await browser.press("Tab")
        await browser.until(f"document.activeElement === {field.format('port')}")
        await browser.write("5432")
        await browser.press("Enter")
        await browser.until(shows("Not delivered: dropped by inet weft", f"{result} h2"))
        await browser.until(shows("intra_network: drop", f"{result} .lost pre"))
        for number, (width, dark) in enumerate(((1440, False), (900, True), (390, False), (390, True))):
            await browser.size(width, 844, dark=dark)
            await browser.until(f"innerWidth == {width} && document.documentElement.scrollWidth <= {width}")
            await browser.picture(tmp_path / f"trace-{number}.png", whole=True)
        await browser.ask("location.hash = '#service=shop'")
        await browser.until(shows("Trace to here", "#detail"))
        await browser.picture(tmp_path / "service.png")
        await browser.click(f"{field.format('to this')}")
        await browser.until(f"{field.format('to')}.value === 'service shop'")
        assert await browser.ask(f"{field.format('from')}.value") == "container weft-web"
        await browser.ask(f"{field.format('port')}.value = '80'")
        await browser.click("document.querySelector('.trace button')")
        await browser.until(f"document.querySelector('{result} h2')?.textContent === 'Delivered'")
        await browser.ask(f"{field.format('to')}.value = 'other'")
        await browser.ask(f"{field.format('to')}.dispatchEvent(new Event('change'))")
        await browser.ask(f"{field.format('address')}.value = '--config'")
        await browser.click("document.querySelector('.trace button')")
        await browser.until(shows("must be a container, an address or host", f"{result} h2"))
        browser.problems[:] = [one for one in browser.problems if "400" not in one]

    page.look(look)


def test_agent_restart_is_noticed(page: Page) -> None:
    page.put("/v1/agent/service/register", {"Name": "kept", "Address": "192.0.2.7", "Port": 5})

    async def look(browser: Browser) -> None:
        await browser.until(item("Service kept"))
        page.stop()
        await browser.until("document.querySelector('#live.away')")
        assert await browser.ask(f"Boolean({item('Service kept')})"), "the last known state is gone"
        page.start()
        await browser.until("document.querySelector('#live.good')")
        page.put("/v1/agent/service/register", {"Name": "new", "Address": "192.0.2.7", "Port": 6})
        await browser.until(item("Service new"))
        # The browser logs connections that were refused in the meantime.
        assert all("Failed to load resource" in text for text in browser.problems), browser.problems
        browser.problems.clear()

    page.look(look)


def test_empty_registry_shows_instructions(page: Page, tmp_path: Path) -> None:
    async def look(browser: Browser) -> None:
        await browser.until(shows("Nothing is registered yet"))
        assert "weft network create blue --names" in await browser.text("#main")
        assert "weft services register" in await browser.text("#main")
        for width, dark in ((1440, False), (390, False), (1440, True)):
            await browser.size(width, 844, dark=dark)
            await browser.until(f"innerWidth == {width} && document.documentElement.scrollWidth <= {width}")
            await browser.picture(tmp_path / "picture.png")
        ground = "getComputedStyle(document.body).backgroundColor"
        dark_ground = await browser.ask(ground)
        await browser.size(1440, 844)
        await browser.until(f"{ground} != {json.dumps(dark_ground)}")

    page.look(look)


def test_three_hundred_containers_are_drawn_within_the_window(page: Page) -> None:
    for number in range(300):
        service = {"name": f"s{number % 12}", "port": 80, "check": {"ttl": "1h", "status": "passing"}}
        page.announce(f"c{number}", ("blue", "green", "grey")[number % 3], number % 250 + 2, service)

    async def look(browser: Browser) -> None:
        await browser.until("document.querySelectorAll('.item[data-kind=instance]').length == 300")
        for width in (1440, 390):
            await browser.size(width, 900)
            drawing = "document.querySelector('.drawing').getBoundingClientRect()"
            await browser.until(f"innerWidth == {width} && {drawing}.right <= {width}")
            inside = (
                "(() => { const all = document.querySelector('.drawing').getBoundingClientRect();"
                " const within = (one) => one.left > all.left - 1 && one.right < all.right + 1"
                " && one.bottom < all.bottom + 1; const items = [...document.querySelectorAll('.item')];"
                " return items.every((one) => within(one.getBoundingClientRect())); })()"
            )
            assert await browser.ask(inside)
        await browser.ask("location.hash = '#q=c17'")
        await browser.until("document.querySelectorAll('.item[data-kind=instance]').length == 11")

    page.look(look)
