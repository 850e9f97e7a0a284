"""A daemon that a call starts has nothing of its caller; a caller that cannot be left behind starts none.

And an engine or agent that is stopped, or out of descriptors, is told from a busy one.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import resource
import signal
import struct
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from cni_plugin.entry import shim
from cni_plugin.wire import frame
from lab.callers import AUTO, CONF, NAMED, call, listener, status
from lab.commands import run
from lab.host import Host
from lab.plugins import OWN_FOLDER, ROOT, Cni
from lab.waiting import until
from weft import __version__

C_CLIENT = str(OWN_FOLDER / "bridge")
PYTHON_CLIENT = (
    str(ROOT / ".venv/bin/python"), "-IBc",
    (
        "import sys; sys.path[:0] = [sys.argv.pop(1)]; sys.argv[:] = sys.argv[1:];"
        "from cni_plugin.entry.shim import main; sys.exit(main())"
    ),
    str(ROOT), "/x/bridge",
)  # fmt: skip
CLIENTS = pytest.mark.parametrize("client", [(C_CLIENT,), PYTHON_CLIENT], ids=["c", "python"])

UNFOLLOWED = 1.0
"""Seconds in which an idle machine's engine or agent restores what was flushed, three times over."""
_SIGNALS = (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGCHLD)
_LIBC = ctypes.CDLL(None, use_errno=True)


@pytest.fixture
def cni() -> Cni:
    """Always weft's own plugins: it is their clients that are tested."""
    return Cni(OWN_FOLDER)


def limits(process: int) -> dict[str, tuple[str, str]]:
    """The soft and hard limits of a process."""
    lines = Path(f"/proc/{process}/limits").read_text().splitlines()[1:]
    return {line[:25].strip(): (line[26:46].strip(), line[47:67].strip()) for line in lines}


def burden() -> None:
    """All that a process can inherit, other than what it needs to start Python."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    os.dup2(2, 4500)
    os.set_inheritable(4500, True)
    resource.setrlimit(resource.RLIMIT_NOFILE, (24, hard))
    resource.setrlimit(resource.RLIMIT_CORE, (1 << 20, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
    os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
    os.nice(10)
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    os.umask(0)
    _LIBC.personality(0x0040000)  # ADDR_NO_RANDOMIZE
    _LIBC.prctl(29, 5_000_000, 0, 0, 0)  # PR_SET_TIMERSLACK
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    os.chdir("/proc")
    Path("/proc/self/oom_score_adj").write_text("700")


@CLIENTS
def test_an_engine_inherits_nothing(host: Host, folder: Path, cni: Cni, client: tuple[str, ...]) -> None:
    before = sorted(os.sched_getaffinity(0))
    environment = cni.environment("ADD", netns=host.container()) | AUTO | {"LD_DEBUG_OUTPUT": "/x", "HOME": "/x"}
    code, answer, _ = call(client, environment, CONF, burden)
    assert code == 0, answer
    until((folder / "engine.sock").exists, 60, "an engine")
    process = listener(folder / "engine.sock")
    found = status(process)
    assert limits(process)["Max open files"][0] == str(min(65536, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    assert limits(process)["Max file size"] == limits(os.getpid())["Max file size"]
    assert limits(process)["Max core file size"][0] == "0"
    assert (os.getpriority(os.PRIO_PROCESS, process), os.sched_getscheduler(process)) == (0, os.SCHED_OTHER)
    assert sorted(os.sched_getaffinity(process)) == before
    assert (found["Umask"], found["SigBlk"]) == ("0022", "0" * 16)
    ignored = int(found["SigIgn"], 16)
    assert [number for number in _SIGNALS if ignored >> (number - 1) & 1] in ([], [signal.SIGHUP])  # its own choice
    assert Path(f"/proc/{process}/personality").read_text().strip() == "00000000"
    assert Path(f"/proc/{process}/timerslack_ns").read_text().strip() == "50000"
    assert Path(f"/proc/{process}/oom_score_adj").read_text() == Path("/proc/self/oom_score_adj").read_text()
    assert os.readlink(f"/proc/{process}/cwd") == "/"
    assert os.getsid(process) != os.getsid(0)
    assert {os.readlink(f"/proc/{process}/fd/{number}") for number in range(3)} == {"/dev/null"}
    assert max(int(name) for name in os.listdir(f"/proc/{process}/fd")) < 100
    names = [word.partition(b"=")[0] for word in Path(f"/proc/{process}/environ").read_bytes().split(b"\0")]
    assert set(names) <= {b"", b"PATH", b"MALLOC_ARENA_MAX", b"WEFT_ENGINE_IDLE"}
    assert not [path for path in folder.rglob("*") if not path.is_symlink() and path.stat().st_mode & 0o002]


@pytest.mark.parametrize("client", [(str(OWN_FOLDER / "weft"),), (*PYTHON_CLIENT[:-1], "/x/weft")], ids=["c", "python"])
def test_what_a_call_starts_follows_nothing_where_it_says_so(
    host: Host, folder: Path, cni: Cni, client: tuple[str, ...]
) -> None:
    environment = cni.environment("ADD", netns=host.container()) | AUTO | {"WEFT_FOLLOW": "off"}
    code, answer, _ = call(client, environment, NAMED)
    assert code == 0, answer
    until((folder / "engine.sock").exists, 60, "an engine")
    for name in ("engine.sock", "agent.sock"):
        process = listener(folder / name)
        assert b"WEFT_FOLLOW=off" in Path(f"/proc/{process}/environ").read_bytes().split(b"\0"), name
    host.run("nft", "flush", "ruleset")
    time.sleep(UNFOLLOWED)
    assert "table inet weft" not in host.run("nft", "list", "tables").stdout.splitlines()


def seccomp() -> None:
    """A filter that permits everything: BPF_RET of SECCOMP_RET_ALLOW."""
    program = struct.pack("HBBI", 0x06, 0, 0, 0x7FFF0000)
    code = ctypes.create_string_buffer(program)
    assert _LIBC.prctl(38, 1, 0, 0, 0) == 0
    assert _LIBC.prctl(22, 2, ctypes.create_string_buffer(struct.pack("HxxxxxxP", 1, ctypes.addressof(code)))) == 0


def bounded() -> None:
    _LIBC.prctl(24, 19, 0, 0, 0)  # PR_CAPBSET_DROP, CAP_SYS_PTRACE


def few_descriptors() -> None:
    _LIBC.prctl(24, 24, 0, 0, 0)  # CAP_SYS_RESOURCE would raise it
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))


RESTRICTED = pytest.mark.parametrize(
    ("before", "said"),
    [(seccomp, "seccomp filter"), (bounded, "CAP_SYS_PTRACE"), (few_descriptors, "RLIMIT_NOFILE of 256")],
    ids=["seccomp", "bounding-set", "hard-limit"],
)  # fmt: skip


@RESTRICTED
def test_a_restricted_caller_serves_itself(
    host: Host, folder: Path, cni: Cni, before: Callable[[], None], said: str
) -> None:
    environment = cni.environment("ADD", netns=host.container()) | AUTO
    assert call((C_CLIENT,), environment, CONF, before)[0] == 0
    attempt = folder / "engine.start"
    until(lambda: said in attempt.read_text(), 60, "the engine's refusal")
    assert not (folder / "engine.sock").exists()
    if before is seccomp:
        assert said in run(str(ROOT / "bin/weft"), "engine", "status", check=False).stdout
    assert call((C_CLIENT,), environment | {"CNI_COMMAND": "DEL"}, CONF, before)[0] == 0


def test_a_restricted_caller_starts_no_agent(host: Host, folder: Path, cni: Cni) -> None:
    environment = cni.environment("ADD", netns=host.container()) | {"WEFT_ENGINE": "off"}
    code, answer, _ = call((str(OWN_FOLDER / "weft"),), environment, NAMED, seccomp)
    assert (code, answer["code"]) == (1, 11), answer
    assert "cannot start it, because that would inherit a seccomp filter" in answer["msg"]
    assert not (folder / "agent.sock").exists()
    assert not list((folder / "names").glob("*"))


@CLIENTS
def test_a_stopped_engine_is_given_up(host: Host, folder: Path, cni: Cni, client: tuple[str, ...]) -> None:
    path = host.container()
    assert call(client, cni.environment("ADD", netns=path) | AUTO, CONF)[0] == 0
    until((folder / "engine.sock").exists, 60, "an engine")
    process = listener(folder / "engine.sock")
    os.kill(process, signal.SIGSTOP)
    code, answer, seconds = call(client, cni.environment("DEL", netns=path) | AUTO, CONF)
    assert (code, answer["code"]) == (1, 11)
    assert answer["msg"].startswith(f"the engine (pid {process}) is stopped or hung")
    assert seconds < 30
    os.kill(process, signal.SIGCONT)
    assert call(client, cni.environment("DEL", netns=path) | AUTO, CONF)[0] == 0


def test_a_busy_engine_shows_progress(host: Host, folder: Path, cni: Cni, tmp_path: Path) -> None:
    """A foreign IPAM plugin takes longer than two messages are apart."""
    plugin = tmp_path / "slow"
    answer = json.dumps({"cniVersion": "1.0.0", "ips": [{"address": "10.83.0.9/24"}]})
    plugin.write_text(f"#!/bin/sh\nsleep {2.5 * frame.PROGRESS}\necho '{answer}'\n")
    plugin.chmod(0o755)
    path = host.container()
    assert call((C_CLIENT,), cni.environment("ADD", netns=path) | AUTO, CONF)[0] == 0
    until((folder / "engine.sock").exists, 60, "an engine")
    environment = cni.environment("ADD", "other", host.container("c2"))
    environment["CNI_PATH"] = f"{tmp_path}:{OWN_FOLDER}"
    variables = {name: value for name, value in environment.items() if name.startswith("CNI_")}
    stdin = json.dumps({**CONF, "ipam": {**CONF["ipam"], "type": "slow"}}).encode()
    with contextlib.closing(shim._connect()) as connection:  # type: ignore[arg-type]
        assert connection is not None
        asked = frame.RequestFrame(__version__, str(ROOT), frame.view(), "bridge", variables, stdin)
        connection.settimeout(60)
        connection.sendall(frame.request(asked, progress=True))
        heads = [connection.recv(frame.REPLY.size) for _ in range(2)]
        assert heads == [frame.WORKING] * 2
        while (head := connection.recv(frame.REPLY.size)) == frame.WORKING:
            pass
        assert frame.REPLY.unpack(head)[2:4] == (0, 0)


def test_an_engine_without_descriptors_leaves(host: Host, folder: Path, cni: Cni) -> None:
    path = host.container()
    assert call((C_CLIENT,), cni.environment("ADD", netns=path) | AUTO, CONF)[0] == 0
    until((folder / "engine.sock").exists, 60, "an engine")
    require = cni.environment("DEL", netns=path) | {"WEFT_ENGINE": "require"}
    assert call((C_CLIENT,), require, CONF)[0] == 0  # it has opened what it needs
    process = listener(folder / "engine.sock")
    used = len(os.listdir(f"/proc/{process}/fd"))
    resource.prlimit(process, resource.RLIMIT_NOFILE, (used, resource.prlimit(process, resource.RLIMIT_NOFILE)[1]))
    code, answer, seconds = call((C_CLIENT,), cni.environment("ADD", "c2", host.container("c2")) | AUTO, CONF)
    assert (code, seconds < 20) == (0, True), answer  # declined, and served by the caller
    until(lambda: not Path(f"/proc/{process}").exists(), 60, "the engine's end")
    code, answer, _ = call((C_CLIENT,), cni.environment("ADD", "c3", host.container("c3")) | AUTO, CONF)
    assert code == 0, answer


def test_a_stopped_agent_is_given_up(host: Host, folder: Path, cni: Cni) -> None:
    path = host.container()
    client = (str(OWN_FOLDER / "weft"),)
    assert call(client, cni.environment("ADD", netns=path) | {"WEFT_ENGINE": "off"}, NAMED)[0] == 0
    process = listener(folder / "agent.sock")
    os.kill(process, signal.SIGSTOP)
    environment = cni.environment("ADD", "c2", host.container("c2")) | {"WEFT_ENGINE": "off"}
    code, answer, seconds = call(client, environment, NAMED)
    assert (code, answer["code"], seconds < 10) == (1, 11, True), (answer, seconds)
    assert f"is stopped (pid {process})" in answer["msg"]
    os.kill(process, signal.SIGCONT)
    assert call(client, environment, NAMED)[0] == 0
