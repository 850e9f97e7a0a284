"""Files of the embedded store: permissions, paths that are refused, and damaged databases."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import stat
import time
from pathlib import Path

import pytest
from unit.store.helpers import SOON, soon, until

from store import Invalid, LeaseGone, Store, Unavailable
from store.embedded import open_embedded


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "store" / "store.db"


async def fill(path: Path, count: int = 1) -> None:
    store = await open_embedded(path)
    await asyncio.gather(*(store.put(f"k{number}", b"v" * 2000) for number in range(count)))
    await store.close()


async def refuses(path: Path, said: str) -> None:
    """Opening raises an error with this text, and changes nothing."""
    before = sorted((str(file), os.lstat(file).st_mode, os.lstat(file).st_mtime_ns) for file in path.parent.rglob("*"))
    with pytest.raises(Unavailable, match=said) as caught:
        await open_embedded(path)
    assert caught.value.hint
    after = sorted((str(file), os.lstat(file).st_mode, os.lstat(file).st_mtime_ns) for file in path.parent.rglob("*"))
    own = (".lock", ".turn", ".db")
    assert [file for file in after if file not in before and not file[0].endswith(own)] == []


async def test_files_are_readable_by_their_owner_only(path: Path) -> None:
    mask = os.umask(0)
    try:
        store = await open_embedded(path)
        await store.put("secret", b"")
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
        modes = {file.name: stat.S_IMODE(file.stat().st_mode) for file in path.parent.iterdir()}
        await store.close()
    finally:
        os.umask(mask)
    assert set(modes.values()) == {0o600}
    assert {"store.db", "store.db-wal", "store.db-shm", "store.db.lock"} <= set(modes)


async def test_permissions_of_existing_files_are_restricted(path: Path) -> None:
    await fill(path)
    path.chmod(0o644)
    await fill(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


@pytest.mark.parametrize("suffix", ["", "-wal", "-shm", ".lock"])
async def test_links_are_refused(path: Path, tmp_path: Path, suffix: str) -> None:
    path.parent.mkdir(mode=0o700)
    target = tmp_path / "elsewhere"
    target.write_bytes(b"precious")
    Path(f"{path}{suffix}").symlink_to(target)
    await refuses(path, "is not a regular file with one link")
    assert target.read_bytes() == b"precious"
    Path(f"{path}{suffix}").unlink()
    Path(f"{path}{suffix}").hardlink_to(target)
    await refuses(path, "is not a regular file with one link")
    assert target.read_bytes() == b"precious"


async def test_a_directory_that_is_a_link_or_writable_by_others_is_refused(path: Path, tmp_path: Path) -> None:
    (tmp_path / "real").mkdir(mode=0o700)
    path.parent.symlink_to(tmp_path / "real")
    await refuses(path, "is not a directory")
    path.parent.unlink()
    path.parent.mkdir()
    path.parent.chmod(0o777)
    await refuses(path, "other users may write")


async def test_a_directory_instead_of_the_file_is_named(path: Path) -> None:
    path.mkdir(parents=True, mode=0o700)
    path.parent.chmod(0o700)
    await refuses(path, "is not a regular file")


async def test_a_foreign_database_is_not_changed(path: Path) -> None:
    path.parent.mkdir(mode=0o700)
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE theirs (id)")
    connection.close()
    await refuses(path, "another program")
    with pytest.raises(Unavailable, match="another program"):
        await open_embedded(path, recover=True)


async def test_a_database_of_a_newer_release_is_not_changed(path: Path) -> None:
    await fill(path)
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA user_version = 3")
    connection.close()
    await refuses(path, "later release of weft")


def scribble(path: Path) -> None:
    path.write_bytes(b"no database " * 1000)


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def overwrite(path: Path) -> None:
    """Random pages except the first, so that it can be opened."""
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.seek(4096)
        file.write(os.urandom(size - 4096))


def drop_a_table(path: Path) -> None:
    connection = sqlite3.connect(path)
    connection.execute("DROP TABLE changes")
    connection.close()


@pytest.mark.parametrize("damage", [scribble, truncate, overwrite, drop_a_table])
async def test_a_damaged_database_is_moved_away_only_with_recover(path: Path, damage: object, caplog: object) -> None:
    await fill(path, 200)
    assert callable(damage)
    damage(path)
    damaged = path.read_bytes()
    assert isinstance(caplog, pytest.LogCaptureFixture)
    with pytest.raises(Unavailable, match=f"{path} is damaged") as caught:
        await open_embedded(path)
    assert "restore a backup" in str(caught.value)
    assert path.read_bytes() == damaged
    for number in (1, 2):
        store = await open_embedded(path, recover=True)
        assert await store.put("new", b"") == 200 + number, "revisions go on"
        await store.close()
        aside = Path(f"{path}.damaged-{number}")
        assert aside.read_bytes() == damaged
        assert str(aside) in caplog.text
        path.write_bytes(damaged)


async def test_recover_keeps_an_intact_database(path: Path) -> None:
    await fill(path, 3)
    store = await open_embedded(path, recover=True)
    assert len((await store.range("")).entries) == 3
    await store.close()
    assert not list(path.parent.glob("*damaged*"))


async def test_damage_found_while_reading_is_reported(path: Path) -> None:
    await fill(path, 2000)
    store = await open_embedded(path)
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.seek(size // 2)
        file.write(os.urandom(size // 2))
    with pytest.raises(Unavailable, match="damaged"):
        await store.range("")
    await store.close()


async def test_after_a_boot_leases_get_their_full_ttl(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    moment = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
    monkeypatch.setattr(time, "clock_gettime_ns", lambda clock: moment)
    store = await open_embedded(path)
    lease = await store.grant(10)
    await store.put("a", b"", lease=lease)
    await store.close()
    connection = sqlite3.connect(path)
    connection.execute("UPDATE state SET boot = 'an earlier one'")
    connection.commit()
    connection.close()
    # CLOCK_BOOTTIME of the new boot may be after or before the old expiry.
    moment += 3600 * 10**9
    store = await open_embedded(path)
    await store.keep_alive(lease)
    moment += 9 * 10**9
    await store.put("b", b"", lease=lease)
    moment += 2 * 10**9

    async def ended() -> bool:
        return not (await store.range("")).entries

    await until(ended)
    with pytest.raises(LeaseGone):
        await store.keep_alive(lease)
    await store.close()


async def first(store: Store) -> object:
    return await anext(store.watch("", 1))


async def test_replacing_or_removing_the_file_is_detected(path: Path) -> None:
    for replace in (False, True):
        store = await open_embedded(path)
        await store.put("a", b"")
        assert store.lost == ""
        watching = asyncio.create_task(first(store))
        await asyncio.sleep(0.05)
        path.rename(f"{path}.old")
        if replace:
            Path(f"{path}.lock").unlink()  # it is not damaged, but another one
            await fill(path)
        assert "it was removed or replaced" in store.lost
        with pytest.raises(Unavailable, match="removed or replaced"):
            await store.put("a", b"lost if it were written")
        with pytest.raises(Unavailable, match="removed or replaced"):
            await soon(watching)
        with pytest.raises(Unavailable, match="removed or replaced"):
            await store.get("a")
        await store.close()
        for file in path.parent.iterdir():
            file.unlink()


async def test_a_history_of_0_is_refused(path: Path) -> None:
    with pytest.raises(Invalid, match="history of 0"):
        await open_embedded(path, history=0)


async def test_another_program_s_lock_is_waited_for(path: Path) -> None:
    store = await open_embedded(path)
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    writing = asyncio.create_task(store.put("a", b""))
    assert await store.get("a") is None, "reads work meanwhile"
    done, _ = await asyncio.wait([writing], timeout=0.2)
    assert not done
    other.execute("COMMIT")
    other.close()
    async with asyncio.timeout(SOON):
        assert await writing == 1
    await store.close()


async def test_many_processes_create_the_database_at_once(path: Path) -> None:
    stores = await asyncio.gather(*(open_embedded(path) for _ in range(8)))
    revisions = await asyncio.gather(*(store.put("a", b"") for store in stores))
    assert sorted(revisions) == list(range(1, 9))
    await asyncio.gather(*(store.close() for store in stores))
