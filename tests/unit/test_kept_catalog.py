"""The catalog in a file, for a start while no store answers."""

from __future__ import annotations

import asyncio
from pathlib import Path

from cni_plugin.agent.kept_catalog import KeptCatalog
from discovery import layout
from discovery.catalog import Catalog
from discovery.catalog_sync import CatalogSync
from discovery.structs import CatalogEntry, Check, Instance, Node, Status, VirtualAddress
from store import Range, Unavailable
from store.embedded import open_embedded

VALUES: tuple[CatalogEntry, ...] = (
    Node("n1", "10.0.0.1"),
    Instance("n1", "wéb", "w/1", "10.0.0.5", 80, tags=("a", "b")),
    Check("n1", "c1", "tcp", Status.CRITICAL, service_id="w/1", output="refused"),
    VirtualAddress("wéb", "10.79.0.5"),
)


class Away:
    """A store that does not answer until told to."""

    def __init__(self) -> None:
        self.answers = False

    async def range(self, prefix: str, *, without: str = "") -> Range:
        if not self.answers:
            raise Unavailable("no member answers")
        return Range((), 90)

    async def watch(self, prefix: str, after: int):  # type: ignore[no-untyped-def]
        await asyncio.Event().wait()
        yield


def test_what_was_known_is_there_again(tmp_path: Path) -> None:
    asyncio.run(known_again(tmp_path))


async def known_again(tmp_path: Path) -> None:
    kept, store, first = (
        KeptCatalog(str(tmp_path / "catalog.json")),
        await open_embedded(tmp_path / "store.db"),
        Catalog(),
    )
    for value in VALUES:
        await store.put(layout.store_key(value), layout.encode(value))
    sync = CatalogSync(first, store, kept=kept)
    assert not await sync.restore()
    await sync.start()
    await sync.stop()
    await store.close()

    away, again = Away(), Catalog()
    sync = CatalogSync(again, away, kept=kept)  # type: ignore[arg-type]
    assert await sync.restore() and sync.loaded.is_set()
    assert list(again.entries()) == list(first.entries()) and again.index == first.index
    await sync.start()
    assert list(again.entries()) == list(first.entries())
    away.answers = True
    async with asyncio.timeout(20):
        assert await again.wait_for_revision(90, 20)
    assert list(again.entries()) == [], "the store is believed"
    await sync.stop()


def test_a_damaged_file_is_ignored(tmp_path: Path) -> None:
    path = tmp_path / "catalog.json"
    assert KeptCatalog(str(path)).read() is None
    for text in ("", "{}", "[1]", '{"format":2,"revision":1,"entries":[]}', '{"format":1,"revision":1,"entries":[1]}'):
        path.write_text(text)
        assert KeptCatalog(str(path)).read() is None, text
