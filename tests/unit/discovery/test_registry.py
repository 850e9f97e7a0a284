"""Registrations: kept across restarts, visible to all agents, removed with their node."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from discovery import catalog as topics
from discovery import layout
from discovery.catalog import Catalog
from discovery.catalog_sync import CatalogSync
from discovery.health.checker import Checker
from discovery.metrics import Metrics
from discovery.registry import NotRegistered, Registry, Taken
from discovery.structs import CheckDefinition, Instance, Node, Status
from store import Put
from store.embedded import open_embedded

NODE = Node("n1", "192.0.2.1", "5f0c1ad0-0000-4000-8000-000000000001")
WEB = Instance("", "web-1", "web", "192.0.2.10", 80, tags=("v1",))
TTL = CheckDefinition("service:web-1", "Service 'web' check", "ttl", "web-1", ttl=60.0)


@dataclass
class Parts:
    """Registry, catalog and checker of an agent, on one store file."""

    registry: Registry
    catalog: Catalog

    async def until(self, holds: Callable[[], bool], seconds: float = 10.0) -> None:
        """Wait for a condition; fails if it does not become true."""
        async with asyncio.timeout(seconds):
            while not holds():
                await asyncio.sleep(0.005)

    def health(self, name: str) -> list[tuple[str, Status]]:
        return [(one.instance.id, one.status) for one in self.catalog.health(name)]


@asynccontextmanager
async def running(path: Path, *, lease_seconds: float = 30.0, checks: bool = False) -> AsyncIterator[Parts]:
    store = await open_embedded(path / "catalog.db")
    catalog, registry = Catalog(), Registry(NODE, store, store, lease_seconds=lease_seconds)
    feed, checker = CatalogSync(catalog, store), Checker(registry, catalog, Metrics())
    await registry.start()
    await feed.start()
    if checks:
        await checker.start()
    try:
        yield Parts(registry, catalog)
    finally:
        for part in (*([checker] if checks else []), registry, feed):
            await part.stop()
        await store.close()


def run(test: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(test())  # type: ignore[arg-type]


def test_the_catalog_has_a_service_with_its_node_and_checks(tmp_path: Path) -> None:
    async def test() -> None:
        async with running(tmp_path) as parts:
            await parts.registry.register(WEB, [TTL])
            await parts.until(lambda: parts.health("web") == [("web-1", Status.CRITICAL)])
            await parts.registry.update_check("service:web-1", Status.PASSING, "fine")
            await parts.until(lambda: parts.health("web") == [("web-1", Status.PASSING)])
            (one,) = parts.catalog.health("web")
            assert (one.address, one.node.name, one.weight) == ("192.0.2.10", "n1", 1)
            assert [check.id for check in one.checks] == ["service:web-1", "serfHealth"]
            assert one.checks[0].output == "fine" and one.instance.create_index > 0
            assert parts.catalog.services() == {"consul": (), "web": ("v1",)}
            assert [found.id for found in parts.catalog.find_by_address("192.0.2.10")] == ["web-1"]
            await parts.registry.deregister("web-1")
            await parts.until(lambda: parts.catalog.services() == {"consul": ()})
            assert parts.catalog.node_checks("n1")[0].id == "serfHealth" and not parts.catalog.find_by_address(
                "192.0.2.10"
            )

    run(test)


def test_registrations_survive_a_restart(tmp_path: Path) -> None:
    async def test() -> None:
        async with running(tmp_path) as parts:
            await parts.registry.register(WEB, [TTL])
            await parts.registry.update_check("service:web-1", Status.WARNING, "slow")
            await parts.registry.maintenance(True, "moving house", "web-1")
            await parts.registry.offer("owner", [(Instance("", "db-1", "db", "192.0.2.11", 5432), [])])
            await parts.until(lambda: len(parts.health("db")) == 1)
            index = parts.catalog.changed(topics.health("web"))
        async with running(tmp_path) as parts:
            assert parts.health("web") == [("web-1", Status.CRITICAL)]
            (one,) = parts.catalog.health("web")
            assert one.maintenance and {check.status for check in one.checks[:2]} == {Status.WARNING, Status.CRITICAL}
            assert parts.registry.owners() == {"owner"} and parts.health("db") == [("db-1", Status.PASSING)]
            assert parts.catalog.changed(topics.health("web")) >= index
            await parts.registry.maintenance(False, instance_id="web-1")
            await parts.registry.offer("owner", [])
            await parts.until(lambda: parts.health("web") == [("web-1", Status.WARNING)])
            await parts.until(lambda: "db" not in parts.catalog.services())

    run(test)


def test_a_check_that_a_container_brings_is_not_replaced(tmp_path: Path) -> None:
    own = CheckDefinition("service:db-1", "own", "ttl", "db-1", ttl=60.0, netns="/run/netns/db")
    further = CheckDefinition("further", "further", "ttl", "db-1", ttl=60.0)

    async def test() -> None:
        async with running(tmp_path) as parts:
            await parts.registry.offer("owner", [(Instance("", "db-1", "db", "192.0.2.11", 5432), [own])])
            for definition in (replace(own, netns=""), replace(further, id=own.id)):
                with pytest.raises(Taken):
                    await parts.registry.register_check(definition)
            for _ in range(2):
                await parts.registry.register_check(further)
                await parts.registry.maintenance(True, instance_id="db-1")
        async with running(tmp_path) as parts:
            await parts.registry.register_check(further)
            with pytest.raises(Taken):
                await parts.registry.register_check(replace(own, netns=""))

    run(test)


def test_a_restart_writes_no_unchanged_entries(tmp_path: Path) -> None:
    async def test() -> None:
        async with running(tmp_path) as parts:
            await parts.registry.register(WEB, [TTL])
            await parts.until(lambda: "web" in parts.catalog.services())
            before = [check.modify_index for check in parts.catalog.checks()]
        async with running(tmp_path) as parts:
            assert [check.modify_index for check in parts.catalog.checks()] == before

    run(test)


def test_registrations_are_restored_after_the_lease_expired(tmp_path: Path) -> None:
    """An agent that was stopped for long registers everything again, with the last known statuses."""

    async def test() -> None:
        async with running(tmp_path, lease_seconds=0.2) as parts:
            await parts.registry.register(WEB, [TTL])
            await parts.registry.update_check("service:web-1", Status.PASSING, "fine")
        await asyncio.sleep(0.5)
        async with running(tmp_path) as parts:
            await parts.until(lambda: parts.health("web") == [("web-1", Status.PASSING)])

    run(test)


@pytest.mark.parametrize("ttl, lease_seconds, true", [(60.0, 30.0, True), (0.3, 30.0, False), (60.0, 0.2, False)])
def test_what_an_earlier_agent_published_is_served_as_long_as_it_is_true(
    tmp_path: Path, ttl: float, lease_seconds: float, true: bool
) -> None:
    """Not after a TTL or the lease has expired meanwhile."""

    async def test() -> None:
        async with running(tmp_path, lease_seconds=lease_seconds) as parts:
            await parts.registry.register(WEB, [replace(TTL, ttl=ttl, initial=Status.PASSING)])
        await asyncio.sleep(0.5)
        store = await open_embedded(tmp_path / "catalog.db")
        registry = Registry(NODE, store, store)
        try:
            assert await registry.resume() is true
            loading = asyncio.create_task(registry.restored())
            await registry.start()
            await loading
            assert set(registry.instances()) == {"web-1"}
        finally:
            await registry.stop()
            await store.close()

    run(test)


def test_a_repeated_registration_keeps_the_status(tmp_path: Path) -> None:
    async def test() -> None:
        async with running(tmp_path) as parts:
            await parts.registry.register(WEB, [TTL])
            await parts.registry.update_check("service:web-1", Status.PASSING, "fine")
            statuses: list[Status] = []
            parts.catalog.subscribe(lambda *_: statuses.extend(status for _, status in parts.health("web")))
            again = Instance("", "web-1", "web", "192.0.2.12", 81)
            await parts.registry.register(again, [TTL])
            await parts.until(lambda: parts.catalog.instances("web")[0].port == 81)
            await parts.registry.register(Instance("", "web-1", "www", "192.0.2.12", 81))
            await parts.until(lambda: not parts.catalog.instances("web"))
            assert parts.health("www") == [("web-1", Status.PASSING)]
            assert set(statuses) == {Status.PASSING}
            await parts.registry.register(Instance("", "web-1", "www"), [], replace_checks=True)
            await parts.until(lambda: [one.id for one in parts.catalog.checks()] == ["serfHealth"])

    run(test)


def test_only_changed_topics_wake_waiters(tmp_path: Path) -> None:
    async def test() -> None:
        async with running(tmp_path) as parts:
            await parts.registry.register(WEB, [TTL])
            await parts.registry.register(Instance("", "db-1", "db"))
            await parts.until(lambda: "db" in parts.catalog.services())
            seen = {topic: parts.catalog.changed(topic) for topic in (topics.SERVICES, topics.health("db"))}
            catalog_seen = parts.catalog.changed(topics.service("web"))
            waiting = asyncio.create_task(parts.catalog.wait([topics.health("web")], parts.catalog.index, 10))
            await parts.registry.update_check("service:web-1", Status.PASSING, "")
            assert await waiting
            assert {topic: parts.catalog.changed(topic) for topic in seen} == seen
            assert parts.catalog.changed(topics.service("web")) == catalog_seen
            assert not await parts.catalog.wait([topics.health("db")], parts.catalog.index, 0.05)

    run(test)


@pytest.mark.parametrize("what", ["deregister", "deregister_check", "report", "maintenance", "check"])
def test_unknown_ids_are_named(tmp_path: Path, what: str) -> None:
    async def test() -> None:
        async with running(tmp_path) as parts:
            calls: dict[str, Callable[[], Awaitable[None]]] = {
                "deregister": lambda: parts.registry.deregister("nobody"),
                "deregister_check": lambda: parts.registry.deregister_check("nobody"),
                "report": lambda: parts.registry.update_check("nobody", Status.PASSING, ""),
                "maintenance": lambda: parts.registry.maintenance(True, "", "nobody"),
                "check": lambda: parts.registry.register_check(CheckDefinition("c", "c", "ttl", "nobody")),
            }
            with pytest.raises(NotRegistered, match="'nobody' is not registered"):
                await calls[what]()

    run(test)


def test_invalid_entries_of_the_store_are_skipped(tmp_path: Path) -> None:
    async def test() -> None:
        async with running(tmp_path) as parts:
            await parts.registry.register(WEB)
            store = parts.registry._publication._shared
            bad = {
                "/weft/v2/host/n1/service/web/bad": b"{",
                "/weft/v2/host/n1/service/web/worse": b'{"name":"web","node":"n1","id":"worse","port":"x"}',
                "/weft/v2/host/n1/service/web/other": b'{"name":"web","node":"n2","id":"other"}',
                "/weft/v2/host/n9/node": b"[]",
            }
            await store.transact((), [Put(key, value) for key, value in bad.items()])
            await parts.until(lambda: set(parts.catalog.undecodable) == set(bad))
            assert [one.id for one in parts.catalog.instances("web")] == ["web-1"]
            await store.delete("/weft/v2/host/n1/service/web/bad")
            await parts.until(lambda: len(parts.catalog.undecodable) == 3)

    run(test)


def test_a_ttl_expires_and_restarts_with_an_update(tmp_path: Path) -> None:
    async def test() -> None:
        async with running(tmp_path, checks=True) as parts:
            await parts.registry.register(
                WEB, [CheckDefinition("t", "t", "ttl", "web-1", ttl=0.3, initial=Status.PASSING)]
            )
            await parts.until(lambda: parts.health("web") == [("web-1", Status.PASSING)])
            await parts.until(lambda: parts.health("web") == [("web-1", Status.CRITICAL)])
            await parts.registry.update_check("t", Status.PASSING, "again")
            await parts.until(lambda: parts.health("web") == [("web-1", Status.PASSING)])
            await parts.until(lambda: parts.health("web") == [("web-1", Status.CRITICAL)])

    run(test)


def test_tcp_http_and_alias_checks(tmp_path: Path) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError):  # a TCP check sends nothing
            await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 %s OK\r\nContent-Length: 2\r\n\r\nhi" % codes[0])
        await writer.drain()
        writer.close()

    codes = [b"200"]

    async def test() -> None:
        server = await asyncio.start_server(answer, "127.0.0.1", 0)
        place = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
        async with server, running(tmp_path, checks=True) as parts:
            web = CheckDefinition("h", "h", "http", "web-1", interval=0.05, target=f"http://{place}/")
            tcp = CheckDefinition("c", "c", "tcp", "web-1", interval=0.05, target=place)
            await parts.registry.register(WEB, [web, tcp])
            alias = CheckDefinition("a", "a", "alias", "copy", alias_service="web-1")
            await parts.registry.register(Instance("", "copy", "copy"), [alias])
            await parts.until(lambda: parts.health("web") == [("web-1", Status.PASSING)])
            await parts.until(lambda: parts.health("copy") == [("copy", Status.PASSING)])
            assert "200 OK Output: hi" in parts.registry.checks()["h"].output
            codes[0] = b"429"
            await parts.until(lambda: parts.health("web") == [("web-1", Status.WARNING)])
            await parts.until(lambda: parts.health("copy") == [("copy", Status.WARNING)])
            codes[0] = b"500"
            await parts.until(lambda: parts.health("web") == [("web-1", Status.CRITICAL)])
            server.close()
            await parts.until(lambda: "refused" in parts.registry.checks()["c"].output.lower())
            await parts.registry.deregister("web-1")
            await parts.until(lambda: parts.health("copy") == [("copy", Status.CRITICAL)])

    run(test)


def test_an_alias_follows_a_service_without_checks(tmp_path: Path) -> None:
    async def test() -> None:
        async with running(tmp_path, checks=True) as parts:
            alias = CheckDefinition("a", "a", "alias", "copy", alias_node="N1", alias_service="web-1")
            await parts.registry.register(Instance("", "copy", "copy"), [alias])
            await parts.until(lambda: "could not be found on node n1" in parts.registry.checks()["a"].output)
            await parts.registry.register(WEB)
            await parts.until(lambda: parts.health("copy") == [("copy", Status.PASSING)])
            await parts.registry.deregister("web-1")
            await parts.until(lambda: parts.health("copy") == [("copy", Status.CRITICAL)])

    run(test)


def test_scripts_run_only_where_enabled(tmp_path: Path) -> None:
    async def test() -> None:
        async with running(tmp_path, checks=True) as parts:
            mark = tmp_path / "ran"
            script = CheckDefinition("s", "s", "script", "web-1", interval=0.05, arguments=("/bin/touch", str(mark)))
            await parts.registry.register(WEB, [script])
            await parts.until(lambda: "disabled" in parts.registry.checks()["s"].output)
            assert not mark.exists()

    run(test)


def offered(owner: str, network: str, name: str = "web", **keys: object) -> tuple[Instance, list[CheckDefinition]]:
    """What the attachment ``owner`` on a network offers."""
    one = Instance("", f"{name}-{owner}", name, "192.0.2.11", 80, meta={"network": network})
    return replace(one, **keys), []


async def offer(parts: Parts, owner: str, network: str, name: str = "web", *, shared: bool = False) -> str:
    """Offer a service; why it is refused, "" if it is not."""
    refused = await parts.registry.offer(owner, [offered(owner, network, name)], shared=(name,) if shared else ())
    return "; ".join(refused)


def test_only_the_network_that_offered_a_service_first_adds_instances(tmp_path: Path) -> None:
    async def test() -> None:
        async with running(tmp_path) as parts:
            assert await offer(parts, "a", "blue") == ""
            assert await offer(parts, "b", "blue") == ""
            why = await offer(parts, "c", "red", "Web", shared=True)
            assert "network blue offered it first, and red may call it" in why
            await parts.registry.register(WEB)  # by hand: always
            await parts.until(lambda: len(parts.health("web")) == 3)
        async with running(tmp_path) as parts:  # the order after a restart is another
            assert "offered it first" in await offer(parts, "c", "red")
            assert await offer(parts, "b", "blue") == await offer(parts, "a", "blue") == ""
            for owner in ("a", "b"):
                assert "offered it first" in await offer(parts, "c", "red")
                await parts.registry.offer(owner, [])
            assert await offer(parts, "c", "red") == ""
            assert "network red offered it first" in await offer(parts, "a", "blue")

    run(test)


def test_networks_that_share_a_service_both_add_instances(tmp_path: Path) -> None:
    async def test() -> None:
        async with running(tmp_path) as parts:
            assert await offer(parts, "a", "blue", shared=True) == ""
            assert await offer(parts, "b", "red", shared=True) == ""
            assert "network blue offered it first" in await offer(parts, "c", "green")
            # The first network takes its permission back: what is there stays, nobody new comes.
            assert await offer(parts, "a", "blue") == ""
            assert await offer(parts, "b", "red", shared=True) == ""
            assert "offered it first" in await offer(parts, "d", "red", shared=True)

    run(test)


def test_two_agents_claim_a_service_in_one_transaction_each(tmp_path: Path) -> None:
    async def test() -> None:
        store = await open_embedded(tmp_path / "catalog.db")
        nodes = [Registry(Node(f"n{number}", "192.0.2.1"), store, store, lease_seconds=2.0) for number in range(4)]
        for each in nodes:
            await each.start()
        tries = [each.offer(f"o{number}", [offered(f"o{number}", f"net{number}")]) for number, each in enumerate(nodes)]
        refused = await asyncio.gather(*tries)
        assert sorted(map(bool, refused)) == [False, True, True, True]
        winner = refused.index(())
        other = (winner + 1) % 4
        await nodes[winner].leave()  # its lease ends, and its claims
        assert await nodes[other].offer("late", [offered("late", "net9")]) == ()
        for number, each in enumerate(nodes):
            if number != winner:
                await each.stop()
        await store.close()

    run(test)


def test_nobody_overwrites_another_ones_instance_or_check(tmp_path: Path) -> None:
    async def test() -> None:
        async with running(tmp_path) as parts:
            await parts.registry.register(WEB, [TTL])
            taken, mine = replace(offered("a", "blue")[0], id="web-1"), offered("a", "blue")[0]
            assert "that of a registration through the API" in (await parts.registry.offer("a", [(taken, [])]))[0]
            check = replace(TTL, service_id=mine.id)
            assert "check service:web-1 is that of web-1" in (await parts.registry.offer("a", [(mine, [check])]))[0]
            assert await parts.registry.offer("a", [(mine, [])]) == ()
            assert "that of an attachment" in (await parts.registry.offer("b", [(mine, [])]))[0]
            await parts.registry.offer("b", [])
            assert mine.id in parts.registry.instances()
            with pytest.raises(Taken, match="that of an attachment"):
                await parts.registry.register(replace(WEB, id=mine.id))
            for name in ("consul", "Consul", "n1"):
                found = offered("c", "blue", name)
                (why,) = await parts.registry.offer("c", [found], reserved={"n1"})
                assert "the name is reserved" in why

    run(test)


def test_an_upgrade_replaces_the_ids_and_keeps_the_health(tmp_path: Path) -> None:
    """Earlier releases named instances by the beginning of a container's id, and had no claims."""

    async def test() -> None:
        async with running(tmp_path) as parts:
            old = replace(offered("a", "blue")[0], id="web-0123456789ab-80")
            await parts.registry.offer("a", [(old, [replace(TTL, id="service:" + old.id, service_id=old.id)])])
            await parts.registry.update_check("service:" + old.id, Status.PASSING, "fine")
            store = parts.registry._publication._shared
            await store.delete(layout.OFFERS, prefix=True)
            red = replace(offered("b", "red")[0], id="web-abcdef012345-80")
            assert await parts.registry.offer("b", [(red, [])]) == ()
            await store.delete(layout.OFFERS, prefix=True)
        async with running(tmp_path) as parts:
            new, check = offered("a", "blue")[0], replace(TTL, id="service:web-a", service_id="web-a")
            assert await parts.registry.offer("a", [(new, [check])]) == ()
            wanted = [("web-a", Status.PASSING), ("web-abcdef012345-80", Status.PASSING)]
            await parts.until(lambda: parts.health("web") == wanted)
            # Both networks had instances before, and keep them; blue was first.
            assert await offer(parts, "b", "red") == ""
            assert "network blue offered it first" in await offer(parts, "c", "red")
            assert await offer(parts, "d", "blue") == ""

    run(test)
