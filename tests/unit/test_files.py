"""Atomic file replacement: a SIGKILL during a write leaves the old file or the new one."""

from __future__ import annotations

import json
import os
import shutil
import signal
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from cni_plugin.agent import settings
from cni_plugin.engine import listener as engine_listener
from cni_plugin.entry import installation
from cni_plugin.networks import conflists
from cni_plugin.plan.facts import KernelFacts
from cni_plugin.wire.plugins import OWN_NAME
from lab.calls import Weft
from lab.confs import dual, network
from weft import files, uplink, virtual_ranges
from weft.daemon_socket import DaemonSocket
from weft.daemons import Daemon
from weft.errors import StateDamaged, WeftError
from weft.kernel.fake.kernel import FakeKernel
from weft.kernel.host import Host

NETNS = "/run/netns/c1"
WRITING = ("replace", "rename", "link")
"""The functions of ``os`` that give a written file its final name."""


def killed(work: Callable[[], object], at: int) -> bool:
    """Run ``work`` in a child, killed before it renames file number ``at``; False if it ended
    first.
    """
    child = os.fork()
    if not child:
        left = at
        try:

            def dying(real: Callable[..., None]) -> Callable[..., None]:
                def put(*given: object, **rest: object) -> None:
                    nonlocal left
                    if not left:
                        os.kill(os.getpid(), signal.SIGKILL)
                    left -= 1
                    real(*given, **rest)

                return put

            for name in WRITING:
                setattr(os, name, dying(getattr(os, name)))
            work()
        finally:
            os._exit(0)
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])


def _said(work: Callable[[], object]) -> object:
    try:
        return work()
    except WeftError as error:
        return error.message


@pytest.mark.parametrize(
    ("read", "said"),
    [
        (lambda path: conflists.load(path), "not a regular file"),
        (lambda path: KernelFacts(FakeKernel().host, None).lines(path), "not a regular file"),
        (lambda path: uplink.configured(), "not a regular file"),
        (lambda path: virtual_ranges.configured(), virtual_ranges.RANGES),
        (settings.read, "not a regular file"),
    ],
)
def test_no_reader_waits_for_a_fifo(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, read: Callable[[str], object], said: object
) -> None:
    """In the place of an administrator's file: an open(2) would wait for a writer, with an attachment locked."""
    path = str(tmp_path / "file.toml")
    os.mkfifo(path)
    monkeypatch.setenv("WEFT_CONFIG", path)
    found: list[object] = []
    reader = threading.Thread(target=lambda: found.append(_said(lambda: read(path))), daemon=True)
    reader.start()
    reader.join(5)
    assert found and (found[0] == said or str(said) in str(found[0])), found


def present(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if not path.is_dir()}


def test_a_file_is_replaced_atomically_with_mode_0600(tmp_path: Path) -> None:
    path = str(tmp_path / "a.json")
    for content in (b"one", b"", b"x" * 100_000):
        files.write(path, content, "the file")
        assert Path(path).read_bytes() == content
        assert os.stat(path).st_mode & 0o777 == 0o600
    assert present(tmp_path) == {"a.json"}
    for _ in range(2):
        files.remove(path, "the file")
        assert present(tmp_path) == set()


def test_temporary_files_of_a_killed_writer_are_removed(tmp_path: Path) -> None:
    path = str(tmp_path / "a.json")
    assert killed(lambda: files.write(path, b"new", "the file"), 0)
    assert present(tmp_path) == {"a.tmp"}
    files.remove(path, "the file")
    assert present(tmp_path) == set()
    files.write(path, b"old", "the file")
    assert killed(lambda: files.write(path, b"new" * 9, "the file"), 0)
    assert (Path(path).read_bytes(), present(tmp_path)) == (b"old", {"a.json", "a.tmp"})
    files.write(path, b"newer", "the file")
    assert (Path(path).read_bytes(), present(tmp_path)) == (b"newer", {"a.json"})


def test_errors_say_what_could_not_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for work, said in (
        (lambda: files.write(str(tmp_path / "no" / "a.json"), b"", "the lease"), "cannot write the lease .*No such"),
        (lambda: files.remove(str(tmp_path / "file" / "a"), "the lease"), "cannot remove the lease .*Not a dir"),
        (lambda: files.make_directory(str(tmp_path / "file" / "a"), "records"), "create the directory .*Not a dir"),
    ):
        with pytest.raises(StateDamaged, match=said):
            work()
    (tmp_path / "a.tmp").symlink_to(tmp_path / "file")
    files.write(str(tmp_path / "a.json"), b"planted", "the lease")
    assert ((tmp_path / "file").read_bytes(), (tmp_path / "a.json").read_bytes()) == (b"", b"planted")


def test_del_removes_the_files_of_an_add_that_was_killed_while_writing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed at each file that an ADD writes: records of attachment and network, names, lease."""
    monkeypatch.setattr(Daemon, "ensure", lambda self, path: None)
    run, pool = tmp_path / "run", {"dataDir": str(tmp_path / "leases")}
    conf = network("weft", dual(**pool), driver="bridge", bridge="br0", isGateway=True, names={})

    def host() -> Weft:
        kernel = FakeKernel()
        kernel.add(NETNS)
        return Weft(kernel, Host(str(run), "boot", 0.0))

    killings = 0
    while killed(lambda: host().add(conf, NETNS), killings):
        unfinished = {path for path in present(run) if path.endswith(files.TEMPORARY_SUFFIX)}
        assert len(unfinished) <= 1, killings
        host().delete(conf, NETNS)
        left = {path for path in present(run) if not path.startswith(("ipam/", "networks/"))}
        assert left == set(), killings
        killings += 1
        networks = {path.suffix for path in (run / "networks").glob("*")}
        assert ".json" in networks or files.TEMPORARY_SUFFIX not in networks, killings
    assert killings > 5


def test_a_network_whose_file_was_not_completed_does_not_exist(tmp_path: Path) -> None:
    """Also if the final name was linked, and only the temporary name was not yet unlinked."""
    content = {"name": "blue", "plugins": []}
    assert killed(lambda: conflists.write(str(tmp_path), "blue", content), 0)
    assert present(tmp_path) == {".weft-new"} and conflists.listed(str(tmp_path))[0] == []
    os.rename(tmp_path / ".weft-new", tmp_path / "red.conflist")
    os.link(tmp_path / "red.conflist", tmp_path / ".weft-new")
    path = Path(conflists.write(str(tmp_path), "blue", {"name": "other"}))
    assert present(tmp_path) == {"blue.conflist", "red.conflist"}
    assert json.loads((tmp_path / "red.conflist").read_text()) == content
    assert json.loads(path.read_text()) == {"name": "other"}


def test_a_killed_installation_is_completed_by_the_next(tmp_path: Path) -> None:
    """Killed before each rename: the next installation completes it, and leaves no temporary file."""
    scripts, folder = tmp_path / "scripts", tmp_path / "cni"
    scripts.mkdir()
    one = installation.Installation("/usr/bin/python3", "/nowhere", (), str(scripts))
    wanted = {OWN_NAME, *installation.links()}
    for at in range(len(wanted) + 2):  # the executables and two scripts
        assert killed(lambda: installation.make(str(folder), one, None, replace=False), at)
        installation.make(str(folder), one, None, replace=False)
        assert present(folder) == wanted, at
        assert not [name for name in present(scripts) if name.endswith(".new")], at
        shutil.rmtree(folder)
        for path in scripts.iterdir():
            path.unlink()


def test_a_daemon_killed_before_renaming_its_socket_leaves_no_socket(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_listener, "folder", lambda: str(tmp_path / "engine"))
    for make in (lambda: DaemonSocket(str(tmp_path), "daemon"), engine_listener.EngineSocket):
        assert killed(make, 0)
        there = make()
        assert not [name for name in present(tmp_path) if name.endswith(".new")]
        there.close()
        there.listener.close()


def test_a_daemon_knows_whether_the_one_before_it_was_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_listener, "folder", lambda: str(tmp_path / "engine"))
    for make in (lambda: DaemonSocket(str(tmp_path), "daemon"), engine_listener.EngineSocket):
        process = os.fork()
        if not process:
            make()
            os._exit(0)
        os.waitpid(process, 0)
        for expected in (process, 0):
            there = make()
            assert there.predecessor == expected
            there.close()
            there.listener.close()
            if isinstance(there, DaemonSocket):
                there.listen()  # it has kept the lock, and may be killed from here on
                assert (tmp_path / "daemon.lock").read_text() == f"{os.getpid()}\n"
                there.close()
                os.close(there._lock)
