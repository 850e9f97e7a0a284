"""Sysctls through the engine's private /proc instance: those of the calling thread's namespace."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab import namespaces
from lab.host import Host
from weft.errors import KernelRefused, Missing
from weft.kernel import proc, sysctl

KEYS = ("net/ipv4/ip_local_reserved_ports", "net/ipv6/conf/lo/hop_limit", "net/netfilter/nf_conntrack_tcp_loose")


@pytest.fixture(params=["own", "everybody's"])
def through(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    if request.param == "everybody's":
        monkeypatch.setattr(sysctl, "_private_proc", None)
        yield
        return
    own = proc.PrivateProc()
    monkeypatch.setattr(sysctl, "_private_proc", own)
    yield
    own.close()


def test_every_namespace_has_its_own(host: Host, through: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proc, "_LONGEST_CHAIN", 3)
    paths = [host.container(f"c{number}") for number in range(8)]
    before = os.listdir("/proc/self/fd")
    kept = [sysctl.Sysctls() for _ in paths]
    for number, (path, sysctls) in enumerate(zip(paths, kept, strict=True), 7):
        with namespaces.inside(path):
            for key, value in zip(KEYS, (str(number), str(number), str(number % 2)), strict=True):
                sysctls.write(key, value)
    for number, (path, sysctls) in enumerate(zip(paths, kept, strict=True), 7):
        with namespaces.inside(path):
            for key, value in zip(KEYS, (str(number), str(number), str(number % 2)), strict=True):
                assert sysctls.read(key) == value
                assert Path("/proc/sys", key).read_text().strip() == value
            assert sysctls.read("net/ipv6/conf/nothing/hop_limit") is None
            with pytest.raises(Missing):
                sysctls.write("net/ipv4/nothing", "1")
            with pytest.raises(KernelRefused):
                sysctls.read("net/ipv4/../../kernel/hostname")
        sysctls.close()
        sysctls.close()
    assert len(os.listdir("/proc/self/fd")) == len(before)


def test_private_proc_is_not_mounted(host: Host) -> None:
    mounts = Path("/proc/self/mountinfo").read_text()
    own = proc.PrivateProc()
    try:
        os.close(own.open("sys/net/ipv4", os.O_PATH))
        assert Path("/proc/self/mountinfo").read_text() == mounts
    finally:
        own.close()


def test_read_only_proc_is_respected(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """A /proc/sys that is mounted read-only is not written through the private /proc either."""
    host.run("mount", "--bind", "/proc/sys", "/proc/sys")
    try:
        host.run("mount", "-o", "remount,bind,ro", "/proc/sys")
        with pytest.raises(PermissionError, match="read-only"):
            proc.PrivateProc()
        monkeypatch.setattr(sysctl, "_private_proc", None)
        sysctl.use_private_proc()
        assert sysctl._private_proc is None
    finally:
        host.run("umount", "/proc/sys")
