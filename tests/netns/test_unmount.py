"""After each answer the runtime can unmount the namespace with flags 0, as Nomad does: nobody of weft has it open."""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from lab import engine, namespaces
from lab.cases import CASES, Case, conf, pool
from lab.ground import prepare
from lab.host import Host
from lab.plugins import OWN_FOLDER, Cni

KINDS = (
    "ptp", "bridge-dual", "loopback", "macvlan", "tap", "ipvlan", "vlan", "dummy", "portmap-chained", "weft-features",
    "chain-tuning", "chain-sbr", "chain-bandwidth", "chain-vrf",
)  # fmt: skip
PLUGIN = """#!/bin/sh
cat >/dev/null
[ "$CNI_COMMAND" = DEL ] || echo '{"cniVersion": "1.1.0", "ips": [{"address": "10.31.0.2/24", "gateway": "10.31.0.1"}]}'
"""


@pytest.fixture
def through(host: Host, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cni]:
    """Calls that are served by an engine, and fail without one."""
    monkeypatch.setenv("WEFT_TEST_ENGINE", "require")
    engine.ready()
    yield Cni(OWN_FOLDER)


class Mount:
    """A namespace under /run/netns. The descriptor that keeps it is not of that mount, so it does not hold it."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._libc = ctypes.CDLL(None, use_errno=True)
        with namespaces.inside(path):
            self._kept = namespaces.open_namespace()

    def remake(self) -> str:
        """Unmount with flags 0 and mount again; the error's name, "" if there was none."""
        if self._libc.umount2(self.path.encode(), 0) != 0:
            return os.strerror(ctypes.get_errno())
        source = f"/proc/self/fd/{self._kept}".encode()
        assert self._libc.mount(source, self.path.encode(), b"none", namespaces.MS_BIND, None) == 0
        return ""

    def close(self) -> None:
        os.close(self._kept)


def refused(mount: Mount, call: Callable[[], Any], times: int) -> list[str]:
    """The errors of unmounting right after each of ``times`` calls."""
    found = []
    for _ in range(times):
        call()
        found.append(mount.remake())
    return [error for error in found if error]


@pytest.mark.parametrize("case", [case for case in CASES if case.name in KINDS], ids=lambda case: case.name)
def test_every_verb_of_every_kind(host: Host, through: Cni, case: Case) -> None:
    prepare(host, case)
    mount = Mount(host.container())
    conf, result = case.conf, {}
    if case.first:
        conf = {**conf, "prevResult": through.add(case.first, mount.path)}
    valid = {"cni.dev/valid-attachments": [{"containerID": "c1", "ifname": "eth0"}]}
    calls: tuple[Callable[[], Any], ...] = (
        lambda: result.update(through.add(conf, mount.path)),
        lambda: through.check(conf, result, mount.path),
        lambda: through("GC", {**case.conf, **valid}),
        lambda: through("ADD", conf, netns=mount.path),
        lambda: through.delete(conf, mount.path),
    )
    rounds = 2 if case.tables else 3
    assert [error for _ in range(rounds) for call in calls for error in refused(mount, call, 1)] == []
    mount.close()


def test_a_device_of_the_host(host: Host, through: Cni) -> None:
    host.run("ip", "link", "add", "dev0", "type", "veth", "peer", "name", "dev1")
    mount = Mount(host.container())
    device = conf("host-device", "device", {"device": "dev0"})
    for _ in range(3):
        assert refused(mount, lambda: through.add(device, mount.path), 1) == []
        assert refused(mount, lambda: through.delete(device, mount.path), 1) == []
    mount.close()


def test_sixty_removals(host: Host, through: Cni) -> None:
    mount = Mount(host.container())
    line = next(case.conf for case in CASES if case.name == "ptp")

    def once() -> None:
        through.add(line, mount.path)
        through.delete(line, mount.path)

    assert refused(mount, once, 60) == []
    mount.close()


def test_while_another_call_starts_processes(host: Host, through: Cni, tmp_path: Any) -> None:
    """A process that the engine starts has copies of its descriptors until execve."""
    plugin = tmp_path / "slow"
    plugin.write_text(PLUGIN)
    plugin.chmod(0o755)
    other = host.container("c2")
    foreign = conf("ptp", "foreign", {"ipam": {"type": "slow"}})
    line = conf("ptp", "line", {"ipam": pool("10.24.0.0/24")})
    mount = Mount(host.container())
    done = threading.Event()

    def start_processes() -> None:
        while not done.is_set():
            through.add(foreign, other, container="c2", path=str(tmp_path))
            through.delete(foreign, other, container="c2", path=str(tmp_path))

    # The thread starts in the test's host namespace, as all threads do.
    starter = threading.Thread(target=start_processes)
    starter.start()
    try:

        def once() -> None:
            through.add(line, mount.path)
            through.delete(line, mount.path)

        assert refused(mount, once, 20) == []
    finally:
        done.set()
        starter.join()
        mount.close()
