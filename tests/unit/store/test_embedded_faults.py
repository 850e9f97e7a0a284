"""Kills, a full disk, I/O errors, exceptions: confirmed writes persist, others are not affected."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from unit.store.helpers import ROOT, environment, program, soon, state

from store import Put, Unavailable, writer
from store.database import write_lock
from store.embedded import EmbeddedStore, open_embedded
from store.transaction import Transaction


def test_confirmed_writes_survive_fifty_kills(tmp_path: Path) -> None:
    place = str(tmp_path / "store" / "store.db")
    done = subprocess.run(
        program("crash", "embedded", place, "50", "1"),
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "told and kept" in done.stdout


FULL_DISK = """
import asyncio, os, sys, time
from pathlib import Path
from store import Put, Unavailable
from store.embedded import open_embedded

truth, passed = time.clock_gettime_ns, 0
time.clock_gettime_ns = lambda clock: truth(clock) + passed

def fill(ballast):
    free = os.statvfs(ballast.parent)
    with ballast.open("wb") as file:
        file.write(bytes(max(free.f_bavail * free.f_bsize - 300_000, 0)))

async def overwrite(folder):
    "What needs no more space than there is goes on for ever."
    for full in (False, True):
        store = await open_embedded(folder / "steady" / "store.db", history=20)
        if full:
            fill(folder / "ballast")
        for number in range(190 if full else 60):
            await store.put("k", bytes(2000))
        await store.close()
    (folder / "ballast").unlink()

async def main(folder):
    global passed
    await overwrite(folder)
    store = await open_embedded(folder / "store" / "store.db")
    lease = await store.grant(1000)
    watch = store.watch("", 0)
    kept = [await store.put("leased", b"", lease=lease)]
    ballast = folder / "ballast"
    for turn in range(2):
        fill(ballast)
        refused = 0
        for number in range(100):
            operations = [Put(f"{turn}/{number}/{half}", bytes(10_000)) for half in "ab"]
            try:
                kept.append((await store.transact([], operations)).revision)
            except Unavailable as error:
                assert "the disk is full" in str(error) and "store.db" in str(error) and error.hint, error
                refused += 1
        assert refused > 10, refused
        calls = [store.put(f"{turn}/t/{n}", bytes(30_000)) for n in range(40)]
        together = await asyncio.gather(*calls, return_exceptions=True)
        assert any(isinstance(answer, Unavailable) for answer in together), together
        kept += [answer for answer in together if isinstance(answer, int)]
        try:
            for _ in range(5000):
                await store.keep_alive(lease)
            raise AssertionError("the disk is not full")
        except Unavailable:
            passed += 3600 * 10**9
        found = await store.range("")
        halves = {entry.key for entry in found.entries if entry.key[-1] in "ab"}
        assert halves == {key[:-1] + half for key in halves for half in "ab"}
        assert found.revision == len(kept)
        await asyncio.sleep(1.2)
        ballast.unlink()
        await store.keep_alive(lease)
        assert await store.get("leased")
        kept.append(await store.put("after", b"%d" % turn))
        assert await store.delete(f"{turn}/", prefix=True) > 0
        kept.append((await store.range("")).revision)
    assert kept == list(range(1, len(kept) + 1)), kept
    for revision in kept:
        assert (await anext(watch)).revision == revision
    await store.close()

sys.path.insert(0, os.getcwd())
asyncio.run(main(Path(sys.argv[1])))
print("served on")
"""


def test_on_a_full_disk_writes_fail_whole_and_reads_work(tmp_path: Path) -> None:
    unshare = [shutil.which("unshare") or "unshare", "--mount", *(["--map-root-user"] if os.geteuid() else [])]
    mount = 'mount -t tmpfs -o size=3m,mode=700 none "$1" && exec "$2" -c "$3" "$1"'
    probe = subprocess.run(
        [*unshare, "sh", "-c", "mount -t tmpfs none /mnt"], capture_output=True, text=True, check=False
    )
    if probe.returncode:
        pytest.skip(f"no file system of one's own can be mounted here: {probe.stderr.strip()}")
    done = subprocess.run(
        [*unshare, "sh", "-c", mount, "sh", str(tmp_path), sys.executable, FULL_DISK],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "served on" in done.stdout


FAILING_DISK = """
import asyncio, os, resource, sys
from pathlib import Path
from store import Unavailable
from store.embedded import open_embedded

async def main(path):
    store = await open_embedded(path)
    for number in range(20):
        await store.put(f"kept/{number}", b"")
    statements = []
    store._writer._connection.set_trace_callback(statements.append)
    _, most = resource.getrlimit(resource.RLIMIT_FSIZE)
    for turn in range(3):
        # A write beyond this fails with EFBIG, which to SQLite is an error of the disk.
        resource.setrlimit(resource.RLIMIT_FSIZE, (os.path.getsize(f"{path}-wal") + 100, most))
        for number in range(3):
            try:
                await store.put(f"refused/{number}", bytes(500_000))
            except Unavailable as error:
                assert "disk I/O error" in str(error) and "dmesg" in error.hint, error
            else:
                raise AssertionError("served beyond the limit")
        assert len((await store.range("")).entries) == 20 + turn
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
        statements.clear()
        assert await store.put(f"again/{turn}", b"") == 21 + turn
        # What the kernel may have forgotten is written anew, before anything is added to it.
        assert statements.index("PRAGMA wal_checkpoint(RESTART)") < statements.index("BEGIN IMMEDIATE")
    await store.close()
    store = await open_embedded(path, recover=True)
    assert len((await store.range("")).entries) == 23
    await store.close()

sys.path.insert(0, os.getcwd())
asyncio.run(main(Path(sys.argv[1])))
print("served on")
"""


def test_the_store_recovers_from_io_errors(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", FAILING_DISK, str(tmp_path / "store" / "store.db")],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "served on" in done.stdout


async def test_an_exception_in_one_request_does_not_affect_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put = Transaction._put

    def broken(self: Transaction, operation: Put) -> None:
        put(self, operation)
        if operation.key.startswith("bad"):
            raise ZeroDivisionError("half-way")

    monkeypatch.setattr(Transaction, "_put", broken)
    store = await open_embedded(tmp_path / "store" / "store.db")
    calls = [
        store.transact([], [Put(f"{kind}{n}", b""), Put(f"x{kind}{n}", b"")])
        for n in range(30)
        for kind in ("good", "bad")
    ]
    answers = await asyncio.gather(*calls, return_exceptions=True)
    assert all(isinstance(answer, ZeroDivisionError) for answer in answers[1::2])
    found = await store.range("")
    assert set(state(found)) == {f"{x}good{n}" for n in range(30) for x in ("", "x")}
    assert found.revision == 30
    await store.close()


async def test_a_blocked_disk_does_not_block_the_event_loop(tmp_path: Path) -> None:
    """The held write lock simulates a hanging disk: reads and watches continue."""
    path = tmp_path / "store" / "store.db"
    store = await open_embedded(path)
    await store.put("a", b"")
    with write_lock(str(path)):
        writing = [asyncio.create_task(store.put(f"k{number}", b"")) for number in range(10)]
        for _ in range(20):
            assert await soon(store.get("a"))
            await asyncio.sleep(0)
        assert not any(task.done() for task in writing)
    assert sorted(await soon(asyncio.gather(*writing))) == list(range(2, 12))
    await store.close()


async def test_pending_writes_share_a_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "store" / "store.db"
    store = await open_embedded(path)
    assert isinstance(store, EmbeddedStore)
    commits = []
    commit = store._writer._try_commit
    monkeypatch.setattr(store._writer, "_try_commit", lambda group: commits.append(len(group)) or commit(group))
    await asyncio.gather(*(store.put(f"k{number}", b"") for number in range(200)))
    assert sum(commits) == 200
    assert len(commits) < 20
    await store.close()


async def test_keep_alive_does_not_fsync(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is written without fsync; the next change is committed with one."""
    path = tmp_path / "store" / "store.db"
    store = await open_embedded(path)
    assert isinstance(store, EmbeddedStore)
    levels = []
    connection = store._writer._connection
    commit = store._writer._try_commit

    def look(group: list[object]) -> object:
        answer = commit(group)  # type: ignore[arg-type]
        levels.append(connection.execute("PRAGMA synchronous").fetchone()[0])
        return answer

    monkeypatch.setattr(store._writer, "_try_commit", look)
    lease = await store.grant(1000)
    await store.keep_alive(lease)
    await store.put("a", b"", lease=lease)
    await store.keep_alive(lease)
    assert levels == [1, 1, 2, 1]
    await store.close()


async def test_too_many_pending_writes_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "_QUEUE_BYTES", 1_000_000)
    path = tmp_path / "store" / "store.db"
    store = await open_embedded(path)
    with write_lock(str(path)):
        calls = [asyncio.create_task(store.put(f"k{number}", bytes(50_000))) for number in range(60)]
        done, waiting = await asyncio.wait(calls, timeout=0.5)
        assert 10 < len(done) < 50
        for task in done:
            with pytest.raises(Unavailable, match="writes are pending"):
                await task
    assert len(await soon(asyncio.gather(*waiting))) == len(waiting)
    await store.close()


async def test_the_size_of_the_file_is_bounded(tmp_path: Path) -> None:
    path = tmp_path / "store" / "store.db"
    store = await open_embedded(path, history=100)
    for _ in range(40):
        await asyncio.gather(*(store.put(f"k{number}", bytes(4000)) for number in range(50)))
    assert Path(f"{path}-wal").stat().st_size < 30_000_000
    await store.close()
    assert path.stat().st_size < 4_000_000


async def test_a_process_that_exits_without_close(tmp_path: Path) -> None:
    script = (
        "import asyncio, sys, os; sys.path.insert(0, os.getcwd())\n"
        "from pathlib import Path\n"
        "from store.embedded import open_embedded\n"
        "async def main():\n"
        "    store = await open_embedded(Path(sys.argv[1]))\n"
        "    print(await store.put('a', b''))\n"
        "asyncio.run(main())\n"
    )
    path = tmp_path / "store" / "store.db"
    command = [sys.executable, "-c", script, str(path)]
    child = await asyncio.create_subprocess_exec(*command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    out, err = await soon(child.communicate())
    assert (out, err, child.returncode) == (b"1\n", b"", 0)
    store = await open_embedded(path)
    assert await store.get("a")
    await store.close()
