"""Modes of weft's files whatever the umask is, and planted files: no call hangs or fails on them."""

from __future__ import annotations

import errno
import os
import socket
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cni_plugin.agent import attachments, report
from cni_plugin.service.gc import collect_stale
from cni_plugin.service.orphans import orphans
from ipam.dhcp_leases import LeaseFiles
from lab.calls import Weft
from lab.cases import conf, pool
from weft import files, locks
from weft.errors import StateDamaged
from weft.kernel.fake.kernel import FakeKernel
from weft.kernel.host import Host

NETNS = "/run/netns/c1"


@pytest.fixture(params=(0, 0o077), ids=("umask 0", "umask 077"))
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


class Called:
    """weft on the fake kernel, with its state below a folder."""

    def __init__(self, folder: Path) -> None:
        self.kernel = FakeKernel()
        self.kernel.add(NETNS)
        self.run = folder / "weft" / "17"
        self.data = folder / "lib" / "cni" / "networks"
        self.weft = Weft(self.kernel, Host(str(self.run), "boot", 0.0))
        ipam = pool("10.1.0.0/24", dataDir=str(self.data))
        self.conf = conf("weft", "blue", {"driver": "bridge", "isGateway": True, "ipMasq": True, "ipam": ipam})

    @property
    def record(self) -> Path:
        (found,) = (self.run / "attachments").glob("*.json")
        return found

    @property
    def network(self) -> Path:
        (found,) = (self.run / "networks").glob("*.json")
        return found


@pytest.fixture
def called(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Called:
    monkeypatch.setattr(files, "ROOT", str(tmp_path / "weft"))
    return Called(tmp_path)


def writable_by_others(folder: Path) -> list[str]:
    return [str(path) for path in folder.rglob("*") if path.lstat().st_mode & 0o022]


def test_modes_do_not_depend_on_the_umask(umask: int, called: Called, tmp_path: Path) -> None:
    called.weft.add(called.conf, NETNS)
    assert writable_by_others(tmp_path) == []
    assert stat.S_IMODE(called.run.parent.stat().st_mode) == 0o755
    for path in (called.run, *called.run.rglob("*")):
        assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0, path
    # As host-local has them.
    assert stat.S_IMODE((called.data / "blue").stat().st_mode) == 0o755
    assert stat.S_IMODE((called.data / "blue" / "10.1.0.2").stat().st_mode) == 0o600
    called.weft.delete(called.conf, NETNS)


def test_directories_that_others_could_write_to_are_tightened(
    called: Called, capfd: pytest.CaptureFixture[str]
) -> None:
    called.weft.add(called.conf, NETNS)
    for path in (called.run.parent, called.run, called.run / "attachments", called.run / "networks"):
        path.chmod(0o777)
    called.weft.delete(called.conf, NETNS)
    assert writable_by_others(called.run.parent) == []
    assert f"others could write to {called.run}: mode 777 changed" in capfd.readouterr().err


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a directory to another user")
def test_a_directory_of_another_user_is_refused(called: Called) -> None:
    called.run.mkdir(parents=True)
    os.chown(called.run, 65534, 65534)
    answer = called.weft("ADD", called.conf, NETNS)
    assert answer.code == 105 and "belongs to uid 65534" in answer.text, answer


def _fifo(path: Path) -> None:
    os.mkfifo(path)


def _directory(path: Path) -> None:
    path.mkdir()


def _full_directory(path: Path) -> None:
    (path / "inner").mkdir(parents=True)


def _dangling(path: Path) -> None:
    path.symlink_to("/nowhere/at/all")


def _symlink(path: Path) -> None:
    victim = path.parent.parent / "victim"
    victim.write_text("precious")
    path.symlink_to(victim)


def _hard_link(path: Path) -> None:
    victim = path.parent.parent / "victim"
    victim.write_text("precious")
    path.hardlink_to(victim)


def _socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(path))


Plant = Callable[[Path], None]
PLANTS: tuple[Plant, ...] = (_fifo, _directory, _full_directory, _dangling, _symlink, _hard_link, _socket)
PLACES: dict[str, Callable[[Called], Path]] = {
    "record": lambda called: called.record,
    "unfinished record": lambda called: called.record.with_suffix(files.TEMPORARY_SUFFIX),
    "lock": lambda called: called.record.with_suffix(".lock"),
    "network": lambda called: called.network,
    "unfinished network": lambda called: called.network.with_suffix(files.TEMPORARY_SUFFIX),
    "network's lock": lambda called: called.network.with_suffix(".lock"),
    "shared lock": lambda called: called.network.with_name("shared.lock"),
    "lease": lambda called: called.data / "blue" / "10.1.0.2",
    "lock of the leases": lambda called: called.data / "blue" / "lock",
    "last lease": lambda called: called.data / "blue" / "last_reserved_ip.0",
    "stamp of the leases": lambda called: next((called.run / "ipam").glob("*.seen")),
}


@pytest.mark.parametrize("plant", PLANTS, ids=lambda plant: plant.__name__.strip("_"))
@pytest.mark.parametrize("place", PLACES)
def test_a_planted_file_stops_no_del(called: Called, place: str, plant: Plant) -> None:
    """DEL succeeds, the next ADD and DEL too, GC removes the rest, and nothing is written through it."""
    called.weft.add(called.conf, NETNS)
    path = PLACES[place](called)
    path.unlink(missing_ok=True)
    plant(path)
    called.weft.delete(called.conf, NETNS)
    assert not [link for link in called.kernel.host.links() if link.alias.startswith("weft:") and link.kind == "veth"]
    called.weft.add(called.conf, NETNS)
    called.weft.delete(called.conf, NETNS)
    service = called.weft.service(called.kernel)
    for _ in range(2):  # what GC itself renames, the next one removes
        collect_stale(service)
    left = [each for each in orphans(service).files if each.endswith(files.DAMAGED_SUFFIX)]
    assert left == [] or plant is _full_directory
    victim = path.parent.parent / "victim"
    assert not victim.exists() or victim.read_text() == "precious"


@pytest.mark.parametrize("plant", PLANTS, ids=lambda plant: plant.__name__.strip("_"))
def test_other_state_is_read_without_blocking(tmp_path: Path, plant: Plant) -> None:
    folder = tmp_path / "state"
    folder.mkdir()
    path = folder / "x.json"
    plant(path)
    assert attachments._announcement(str(path)) is None
    assert LeaseFiles(str(folder)).all() == []
    path.rename(folder / report.NAME)
    assert report.read(str(folder)) is None


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file to another user")
def test_a_file_of_another_user_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_text("x")
    os.chown(path, 65534, 65534)
    with pytest.raises(OSError, match="belongs to uid 65534"):
        files.read(str(path))


def test_a_lock_at_a_planted_path_excludes(tmp_path: Path) -> None:
    path = tmp_path / "a.lock"
    _fifo(path)
    with locks.hold(str(path)):
        assert stat.S_ISREG(path.stat().st_mode)
        child = os.fork()
        if child == 0:
            try:
                with locks.hold(str(path), timeout=0.01):
                    os._exit(0)
            except StateDamaged:
                os._exit(2)
            except BaseException:
                os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 1


def test_a_lock_on_a_read_only_file_system_is_not_to_be_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> int:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    with monkeypatch.context() as patched, pytest.raises(StateDamaged, match="Read-only") as raised:
        patched.setattr(os, "open", refuse)
        with locks.hold(str(tmp_path / "lock")):
            pass
    assert raised.value.hint == "mount the file system read-write, and try again"
