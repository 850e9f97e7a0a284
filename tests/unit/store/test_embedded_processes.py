"""Several processes on one file: notification, fair locking, and the size of the history."""

from __future__ import annotations

import asyncio
import fcntl
import time
from pathlib import Path

import pytest
from unit.store.helpers import environment, program, soon, take, until

from store import Compacted, embedded, transaction, writer
from store.database import write_lock
from store.embedded import open_embedded


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "store" / "store.db"


async def hears_another_process(path: Path) -> None:
    store = await open_embedded(path)
    watch = store.watch("", 0)
    listening = asyncio.create_task(take(watch, 20))
    child = await asyncio.create_subprocess_exec(*program("write", "embedded", str(path), "p", "20"), env=environment())
    assert [batch.revision for batch in await soon(listening)] == list(range(1, 21))
    assert await child.wait() == 0
    await store.close()


async def test_inotify_reports_writes_of_another_process(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded, "_POLL_SECONDS", 100_000.0)
    await hears_another_process(path)


async def test_without_inotify_the_file_is_polled(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none_left(path: str) -> int:
        raise OSError(24, "no instances left")

    monkeypatch.setattr(embedded, "open_inotify", none_left)
    await hears_another_process(path)


async def test_a_write_of_a_process_killed_before_the_notification_is_found(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = await open_embedded(path), await open_embedded(path)
    monkeypatch.setattr(writer, "write_revision", lambda *_: None)
    listening = asyncio.create_task(take(one.watch("", 0), 1))
    await asyncio.sleep(0.05)
    await other.put("a", b"")
    assert await soon(listening)
    await one.close()
    await other.close()


def somebody_waits(path: Path) -> bool:
    """Whether a process waits for the write lock."""
    with open(f"{path}.turn", "rb") as turn:
        try:
            fcntl.flock(turn, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


async def test_the_write_lock_is_fair(path: Path) -> None:
    store = await open_embedded(path)
    with write_lock(str(path)):
        writing = asyncio.create_task(store.put("joined", b""))

        async def waits() -> bool:
            return somebody_waits(path)

        await until(waits)
    with write_lock(str(path)):
        assert await store.get("joined"), "the first waiter writes first"
    assert await soon(writing) == 1
    await store.close()


async def test_a_keep_alive_requested_in_time_renews_the_lease(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Even if the disk blocks until after the expiry, and other requests come first."""
    moment = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
    monkeypatch.setattr(time, "clock_gettime_ns", lambda clock: moment)
    store = await open_embedded(path)
    lease = await store.grant(10)
    await store.put("a", b"", lease=lease)
    with write_lock(str(path)):
        calls = [asyncio.create_task(store.put("before", b"")), asyncio.create_task(store.keep_alive(lease))]
        await asyncio.sleep(0.05)
        moment += 60 * 10**9
    await soon(asyncio.gather(*calls))
    assert await store.get("a")
    await store.close()


async def test_the_size_of_the_history_is_limited(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (transaction, writer):
        monkeypatch.setattr(module, "HISTORY_BYTES", 1_000_000)
    store = await open_embedded(path)
    for number in range(60):
        await store.put("k", b"%d" % number * 25_000)
    with pytest.raises(Compacted) as caught:
        await take(store.watch("", 0), 1)
    assert 20 < caught.value.oldest < 59
    heard = await take(store.watch("", caught.value.oldest), 60 - caught.value.oldest)
    assert heard[-1].revision == 60
    await store.close()
