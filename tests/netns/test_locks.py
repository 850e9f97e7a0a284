"""The holder of a lock file is identified by inode and file system."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab.commands import run
from weft import locks


@pytest.fixture
def alike(tmp_path: Path) -> Iterator[tuple[Path, Path]]:
    """Two files with the same inode number on different file systems."""
    folders = (tmp_path / "one", tmp_path / "two")
    for folder in folders:
        folder.mkdir()
        run("mount", "-t", "tmpfs", "tmpfs", str(folder))
    try:
        files = (folders[0] / "lock", folders[1] / "lock")
        for file in files:
            file.touch()
        assert files[0].stat().st_ino == files[1].stat().st_ino
        yield files
    finally:
        for folder in folders:
            run("umount", "--lazy", str(folder))


def test_lock_on_another_file_system_is_not_ours(alike: tuple[Path, Path]) -> None:
    """Otherwise ``weft down`` would send SIGTERM to an unrelated process."""
    held, free = alike
    with held.open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert locks.holder(str(held)) == os.getpid()
        assert locks.holder(str(free)) == 0
