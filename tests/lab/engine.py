"""An engine of the test's host, for suites that are to go through it: where WEFT_TEST_ENGINE=require says so.

Usually that is the executable's. A call whose steps a test watches goes to a fork of this process instead, which is an
engine as well and tells the test of each step; it then stays for the calls that follow, with all that it remembers.
"""

from __future__ import annotations

import array
import contextlib
import gc
import os
import pickle
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cni_plugin.engine import code, listener, server, worker
from cni_plugin.engine.server import serve
from cni_plugin.entry import shim
from cni_plugin.ops.operation import Operation
from cni_plugin.service.verbs import Service
from cni_plugin.wire import frame
from cni_plugin.wire.request import Request
from weft import __version__
from weft.kernel.host import Host
from weft.kernel.interface import Kernel
from weft.types import Result

PROGRAM = Path(__file__).resolve().parents[2] / ".venv" / "bin" / "weft-engine"
IDLE = 120
"""Seconds after which an engine ends whose tests have died."""
PATIENCE = 60.0  # seconds for an engine to come or to go

Watch = Callable[[str, Any], None]
Reply = tuple[int, bytes]
_KEPT = ("taken", "happened")  # what a watch learns, and tests look at


@dataclass(slots=True)
class _Standing:
    """The engine that was started last. ``owner`` is who has to end it: a fork of a test must not."""

    process: int
    folder: str
    report: int
    owner: int

    def alive(self) -> bool:
        """Whether it runs; what has ended stays to be asked for its end."""
        return os.waitid(os.P_PID, self.process, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None


_standing: _Standing | None = None


def wanted() -> bool:
    """Whether calls are to go through an engine."""
    return os.environ.get("WEFT_TEST_ENGINE") == "require"


def for_programs() -> bool:
    """Whether the executables are to go through an engine: with WEFT_TEST_ENGINE=fork they alone, and a fork's.

    For machines on which starting Python takes long.
    """
    return wanted() or os.environ.get("WEFT_TEST_ENGINE") == "fork"


def process() -> int:
    """The process number of the engine that stands."""
    assert _standing is not None
    return _standing.process


def helpers(engine: int) -> list[int]:
    """The living processes that help an engine."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, parent = stat.read_text().rpartition(")")[2].split()[:2]
            if int(parent) == engine and state != "Z":
                found.append(int(stat.parent.name))
    return sorted(found)


def ready() -> None:
    """An engine answers on this thread's host: the one that does, or a new one."""
    if _standing is not None and (_standing.owner != os.getpid() or _answers(_standing.folder)):
        return
    stop()
    if wanted():
        _stand(subprocess.Popen([PROGRAM, "--idle", str(IDLE)], stdin=subprocess.DEVNULL).pid, -1)
    else:
        _fork(None)


def stop() -> None:
    """End the engine in order, if there is one."""
    global _standing
    if _standing is None or _standing.owner != os.getpid():
        return
    ended, _standing = _standing, None
    if ended.report >= 0:
        os.close(ended.report)
    os.kill(ended.process, signal.SIGTERM)
    deadline = time.monotonic() + PATIENCE
    while alive := ended.alive():
        if time.monotonic() > deadline:
            os.kill(ended.process, signal.SIGKILL)
            break
        time.sleep(0.002)
    os.waitpid(ended.process, 0)
    assert not alive, "the engine did not end when it was told to"


def was_killed() -> bool:
    """Whether the engine ended by SIGKILL; asked where an answer was lost, so its end is waited for."""
    global _standing
    assert _standing is not None
    _, status = os.waitpid(_standing.process, 0)
    if _standing.report >= 0:
        os.close(_standing.report)
    _standing = None
    return os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL


def call(plugin: str, variables: Mapping[str, str], stdin: bytes, watch: Watch | None, *, files: bool) -> Reply | None:
    """One call through the engine, its steps told to ``watch``; the exit status and the output, None if none came.

    With ``files`` the watch is also told of every change of a file and every message to the kernel.
    """
    if watch is None:
        ready()
    else:
        _fork(watch, files=files)
    reply = _exchange(frame.RequestFrame(__version__, code.ROOT, frame.view(), plugin, dict(variables), stdin))
    if watch is not None and reply is not None and _standing is not None:
        for name, value in pickle.loads(os.pread(_standing.report, 1 << 24, 0)).items():
            setattr(watch, name, value)
    return reply


def _answers(folder: str) -> bool:
    """Whether an engine takes connections there."""
    assert _standing is not None
    if folder != listener.folder() or not _standing.alive():
        return False
    with socket.socket(socket.AF_UNIX) as client:
        return client.connect_ex(f"{folder}/engine.sock") == 0


def _stand(process: int, report: int) -> None:
    global _standing
    _standing = _Standing(process, listener.folder(), report, os.getpid())
    deadline = time.monotonic() + PATIENCE
    while not _answers(_standing.folder):
        assert time.monotonic() < deadline, "the engine does not take connections"
        time.sleep(0.002)


def _fork(watch: Watch | None, *, files: bool = False) -> None:
    """Have a fork of this process be the engine; it keeps nothing open that is the test's."""
    stop()
    report = os.memfd_create("watched")
    process = os.fork()
    if process:
        _stand(process, report)
        return
    status = 1
    try:
        gc.freeze()  # what the test made is not to be closed a second time
        os.closerange(3, report)
        os.closerange(report + 1, 1 << 16)
        if watch is not None:
            vars(server)["process_count"] = lambda: 1  # a helper would be watched, too, and outlive a kill
            _tell(watch, report, files=files)
        status = serve(IDLE)
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def _tell(watch: Watch, report: int, *, files: bool) -> None:
    """In the fork: the first request's steps are told to the watch, and what that has learnt is written down."""
    thread = 0

    class Watched(Service):
        def __init__(self, kernel: Kernel, host: Host, *, watch: Watch, **rest: Any) -> None:
            self._engines = watch
            super().__init__(kernel, host, watch=self._both, **rest)

        def _both(self, verb: str, operation: Operation) -> None:
            self._engines(verb, operation)
            tell(verb, operation)

        def handle(self, request: Request) -> Result | None:
            nonlocal thread
            vars(worker)["Service"] = Service
            thread = threading.get_ident()
            try:
                return super().handle(request)
            finally:
                thread = 0
                os.pwrite(report, pickle.dumps({name: getattr(tell, name) for name in _KEPT if hasattr(tell, name)}), 0)

    tell = watch
    vars(worker)["Service"] = Watched
    if files:
        from lab.calls import noted

        sys.addaudithook(lambda event, given: noted(watch, event, given) if thread == threading.get_ident() else None)


def _exchange(sent: frame.RequestFrame) -> Reply | None:
    """Send a request as the client does; None where the engine ended before it answered."""
    assert _standing is not None
    descriptors = array.array("i")
    with contextlib.suppress(OSError), contextlib.ExitStack() as stack:
        if (descriptor := shim._open_namespace(sent.environment["CNI_NETNS"])) >= 0:
            stack.callback(os.close, descriptor)
            descriptors.append(descriptor)
        client = stack.enter_context(socket.socket(socket.AF_UNIX))
        client.connect(f"{_standing.folder}/engine.sock")
        client.sendmsg([frame.request(sent)], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, descriptors)])
        data = b""
        while piece := client.recv(1 << 18):
            data += piece
            if len(data) >= frame.REPLY.size and len(data) == frame.REPLY.size + sum(frame.REPLY.unpack_from(data)[4:]):
                _, _, declined, status, length, _ = frame.REPLY.unpack_from(data)
                assert not declined, "the engine declined: has its code changed?"
                errors = data[frame.REPLY.size + length :]
                sys.stderr.write(errors.decode(errors="replace"))
                return status, data[frame.REPLY.size : frame.REPLY.size + length]
    return None
