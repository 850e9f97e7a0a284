"""Damage of the store's file: what is restored, what is kept, and what is reported."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import sqlite3
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from unit.store.helpers import memory, state, until

from store import Unavailable, embedded, recovery
from store.database import last_revision
from store.embedded import EmbeddedStore, open_embedded

KEYS = 300
"""Of 500 bytes each: some forty pages."""


@pytest.fixture
def path() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir=memory()) as folder:
        yield Path(folder) / "store" / "store.db"


async def has_copy(path: Path, revision: int) -> None:
    async def written() -> bool:
        found = recovery.read_backup(str(path))
        return found is not None and found.revision == revision

    await until(written)


@pytest.fixture(scope="module")
def filled() -> Iterator[tuple[Path, dict[str, bytes]]]:
    """A store as an agent leaves it, and what it has. Beside it: an older one, without the last keys."""
    with tempfile.TemporaryDirectory(dir=memory()) as folder:
        path = Path(folder) / "store" / "store.db"
        yield path, asyncio.run(_fill(path))


@pytest.fixture
def before(path: Path, filled: tuple[Path, dict[str, bytes]]) -> dict[str, bytes]:
    """Puts that store at the path; what it has."""
    shutil.copytree(filled[0].parent, path.parent)
    return filled[1]


async def _fill(path: Path) -> dict[str, bytes]:
    store = await open_embedded(path, recover=True)
    lease = await store.grant(1000)
    await store.put("leased", b"session", lease=lease)
    await asyncio.gather(*(store.put(f"k{number:03}", bytes([number % 250]) * 500) for number in range(KEYS)))
    await store.close()
    for suffix in ("", ".lock", ".backup"):
        shutil.copy(f"{path}{suffix}", path.parent / f"older{suffix}")
    store = await open_embedded(path, recover=True)
    await store.put("late", b"x")
    await store.delete("k007")
    found = state(await store.range(""))
    await store.close()
    assert len(found) == KEYS + 1
    return found


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def empty(path: Path) -> None:
    os.truncate(path, 0)


def zero(path: Path) -> None:
    path.write_bytes(bytes(path.stat().st_size))


def overwrite_header(path: Path) -> None:
    with path.open("r+b") as file:
        file.write(b"\xee" * 100)


def flip_header_field(path: Path) -> None:
    """The application id."""
    with path.open("r+b") as file:
        file.seek(68)
        file.write(b"\x00")


def overwrite_page(path: Path) -> None:
    """A page of values in the middle."""
    with path.open("r+b") as file:
        file.seek((path.stat().st_size // 4096 // 2) * 4096)
        file.write(os.urandom(4096))


def replace_by_older(path: Path) -> None:
    shutil.copy(path.parent / "older", path)


def put_fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def put_directory(path: Path) -> None:
    path.unlink()
    path.mkdir()
    (path / "file").touch()


def put_symlink(path: Path) -> None:
    path.rename(path.parent / "elsewhere")
    path.symlink_to(path.parent / "elsewhere")


DAMAGES: list[Callable[[Path], None]] = [
    *(truncate, empty, zero, overwrite_header, flip_header_field, overwrite_page, replace_by_older),
    *(Path.unlink, put_fifo, put_directory, put_symlink),
]


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("copy", ["copy", "older copy", "no copy"])
async def test_what_there_is_of_a_damaged_store_is_restored(
    path: Path, before: dict[str, bytes], damage: Callable[[Path], None], copy: str, caplog: pytest.LogCaptureFixture
) -> None:
    if copy == "older copy":
        shutil.copy(path.parent / "older.backup", f"{path}.backup")
    elif copy == "no copy":
        Path(f"{path}.backup").unlink()
    damage(path)
    damaged = path.read_bytes() if path.is_file() and not path.is_symlink() else None
    is_there = os.path.lexists(path)
    store = await open_embedded(path, recover=True)
    after = state(await store.range(""))
    revision = await store.put("new", b"")
    await store.close()
    assert revision == KEYS + 4, "revisions go on"
    aside = Path(f"{path}.damaged-1")
    assert os.path.lexists(aside) == is_there
    assert damaged is None or aside.read_bytes() == damaged
    (report,) = recovery.reports(str(path))
    assert f"{path} was damaged: " in report.what and report.what in caplog.text
    assert f"{aside}.txt" in report.remedy
    if copy == "copy" or damage in (overwrite_header, flip_header_field):
        assert after == before
    elif copy == "older copy":
        assert {key: value for key, value in after.items() if key in before} == {
            key: value for key, value in before.items() if key in after
        }
        assert len(before.keys() - after.keys()) <= 1  # what was put after the copy
    elif damage is truncate or damage is overwrite_page:
        assert len(after) > KEYS // 4
        assert after.items() <= before.items()
    # The stated command ends the report, and nothing happens at the next start.
    for name in report.remedy.partition("rm -r ")[2].split():
        shutil.rmtree(name) if os.path.isdir(name) and not os.path.islink(name) else os.unlink(name)
    assert recovery.reports(str(path)) == []
    store = await open_embedded(path, recover=True)
    assert state(await store.range("")) == after | {"new": b""}
    await store.close()
    assert not list(path.parent.glob("store.db.damaged*"))


@pytest.mark.parametrize("suffix", [".lock", ".turn", ".backup", "-wal", "-shm"])
@pytest.mark.parametrize("place", [Path.mkdir, os.mkfifo, lambda path: path.symlink_to("elsewhere")])
async def test_what_is_no_file_beside_the_store_stops_nothing(
    path: Path, before: dict[str, bytes], suffix: str, place: Callable[[Path], None]
) -> None:
    other = Path(f"{path}{suffix}")
    other.unlink(missing_ok=True)
    place(other)
    for _ in range(2):
        store = await open_embedded(path, recover=True)
        assert state(await store.range("")) == before
        await store.close()


async def test_commits_that_a_damaged_wal_has_lost_are_noticed(path: Path) -> None:
    """SQLite ends at the first damaged frame without an error; the lock file has the last revision."""
    store = await open_embedded(path, recover=True)
    await store.put("a", b"")
    await store.close()
    store = await open_embedded(path, recover=True)
    await has_copy(path, 1)
    for number in range(10):
        await store.put(f"k{number}", b"")

    async def written() -> bool:
        return last_revision(str(path)) == 11

    await until(written)
    saved = path.parent / "killed"
    saved.mkdir(mode=0o700)
    for suffix in ("", "-wal", ".lock", ".backup"):
        shutil.copy(f"{path}{suffix}", saved / f"store.db{suffix}")
    await store.close()
    wal = saved / "store.db-wal"
    content = bytearray(wal.read_bytes())
    content[len(content) * 2 // 3] ^= 1
    wal.write_bytes(content)
    store = await open_embedded(saved / "store.db", recover=True)
    assert 1 < len((await store.range("")).entries) < 11
    assert await store.put("new", b"") == 12
    await store.close()
    (report,) = recovery.reports(str(saved / "store.db"))
    assert "and 11 was confirmed" in report.what and "are lost" in report.what
    assert (saved / "store.db.damaged-1-wal").exists()


async def test_a_file_that_is_deleted_while_it_is_open_is_copied_first(path: Path) -> None:
    store = await open_embedded(path, recover=True)
    await has_copy(path, 0)
    await store.put("a", b"1")
    path.unlink()
    with pytest.raises(Unavailable, match="removed or replaced"):
        await store.get("a")
    await store.close()
    store = await open_embedded(path, recover=True)
    assert state(await store.range("")) == {"a": b"1"}
    await store.close()
    (report,) = recovery.reports(str(path))
    assert "it is missing" in report.what and "none is lost" in report.what


async def test_damage_that_is_met_while_the_file_is_open_is_recovered_from(
    path: Path, before: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedded, "_COPY_SECONDS", 0.05)
    store = await open_embedded(path, recover=True)
    overwrite_page(path)
    with pytest.raises(Unavailable, match="is damaged"):
        await store.range("")
    assert store.damage
    await asyncio.sleep(0.2)  # the copy from before is not replaced
    await store.close()
    store = await open_embedded(path, recover=True, suspected=store.damage)
    assert state(await store.range("")) == before
    await store.close()


async def test_a_damaged_last_revision_is_ignored(path: Path, before: dict[str, bytes]) -> None:
    for content in (b"\x80", (1 << 62).to_bytes(8, "big"), (3).to_bytes(8, "big") + (4).to_bytes(8, "big"), b""):
        Path(f"{path}.lock").write_bytes(content)
        store = await open_embedded(path, recover=True)
        assert state(await store.range("")) == before
        await store.close()
    assert recovery.reports(str(path)) == []


async def test_copies_are_made_only_of_changes(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded, "_COPY_SECONDS", 0.01)
    copies = []
    copy = recovery.write_backup
    monkeypatch.setattr(recovery, "write_backup", lambda *of: copies.append(of[1].revision) or copy(*of))
    store = await open_embedded(path, recover=True)
    assert isinstance(store, EmbeddedStore)
    await has_copy(path, 0)
    await store.put("a", b"")
    await has_copy(path, 1)
    await asyncio.sleep(0.3)
    await store.close()
    assert copies == [0, 1]


async def test_a_damaged_copy_is_no_damage_of_the_store(path: Path, before: dict[str, bytes]) -> None:
    copy = Path(f"{path}.backup")
    with contextlib.closing(sqlite3.connect(copy, isolation_level=None)) as connection:
        connection.execute("UPDATE state SET revision = 1000000")
    overwrite_page(copy)
    store = await open_embedded(path, recover=True)
    assert state(await store.range("")) == before
    await store.close()
    assert recovery.reports(str(path)) == []
