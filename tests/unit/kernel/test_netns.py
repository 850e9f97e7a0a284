"""Paths that are no network namespace are refused by name, without blocking or side effects."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lab.waiting import PATIENTLY
from weft.errors import KernelRefused, NamespaceProblem
from weft.kernel import netns


def refused(path: str) -> str:
    before = len(os.listdir("/proc/self/fd"))
    started = time.monotonic()
    with pytest.raises(NamespaceProblem) as caught:
        netns.open_namespace(path)
    assert not netns.identify(path).known and netns.identify(path).path == path
    assert time.monotonic() - started < PATIENTLY
    assert len(os.listdir("/proc/self/fd")) == before
    assert repr(path) in caught.value.message or not path
    return caught.value.message


def test_other_files_are_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "file").write_text("x")
    (tmp_path / "loop").symlink_to("loop")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "socket"))
        assert refused(str(tmp_path / "socket")).endswith("a socket")
    assert refused(str(tmp_path / "fifo")).endswith("a FIFO")
    assert refused(str(tmp_path / "file")).endswith("an ordinary file")
    assert refused(str(tmp_path)).endswith("a directory")
    assert refused("/dev/zero").endswith("a device")
    assert "No such file" in refused(str(tmp_path / "none"))
    assert "symbolic links" in refused(str(tmp_path / "loop"))
    assert "null" in refused("a\0b")
    assert "empty" in refused("")
    assert refused("/proc/self/ns/uts").endswith("a namespace of another type")


def test_a_namespace_is_opened_with_close_on_exec() -> None:
    descriptor, identity = netns.open_namespace("/proc/self/ns/net")
    try:
        found = os.stat("/proc/self/ns/net")
        assert (identity.device, identity.inode) == (found.st_dev, found.st_ino)
        assert identity.known and identity.same(netns.identify("/proc/thread-self/ns/net"))
        assert not os.get_inheritable(descriptor)
    finally:
        os.close(descriptor)


def test_other_files_cannot_be_entered(tmp_path: Path) -> None:
    descriptor = os.open(tmp_path, os.O_RDONLY)
    try:
        with pytest.raises(KernelRefused, match="cannot enter"), netns.inside(descriptor):
            raise AssertionError("entered a directory")
    finally:
        os.close(descriptor)


def test_a_process_that_cannot_return_to_its_namespace_exits() -> None:
    program = (
        "import os; from weft.kernel import netns\n"
        "calls = []\n"
        "def enter(descriptor):\n"
        "    calls.append(descriptor)\n"
        "    if len(calls) > 1: raise OSError(1, 'not back')\n"
        "netns._call = enter\n"
        "try:\n"
        "    with netns.inside(os.open('/proc/self/ns/net', os.O_RDONLY)): pass\n"
        "finally:\n"
        "    print('went on')\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 70 and done.stdout == "" and "cannot leave" in done.stderr
