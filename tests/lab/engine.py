"""An engine on the host of the test, for test runs with WEFT_TEST_ENGINE=require.

Usually that is the executable. A call whose steps a test watches goes to a fork of this process
instead, which is an engine as well and reports each step to the test; it serves later calls, too,
with its caches.
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
"""Seconds without calls after which an engine exits, if its tests have died."""
PATIENCE = 60.0  # seconds for an engine to start or to stop

Watch = Callable[[str, Any], None]
Reply = tuple[int, bytes]
_KEPT = ("taken", "happened")  # attributes of a watch that are returned to the test


@dataclass(slots=True)
class _Standing:
    """The engine that was started last.

    Only the process ``owner`` stops it; a fork of a test must not.
    """

    process: int
    folder: str
    report: int
    owner: int

    def alive(self) -> bool:
        """Whether it runs.

        A process that ended is not reaped, so that its status can be read later.
        """
        return os.waitid(os.P_PID, self.process, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None


_standing: _Standing | None = None


def wanted() -> bool:
    """Whether calls are to go through an engine."""
    return os.environ.get("WEFT_TEST_ENGINE") == "require"


def for_programs() -> bool:
    """Whether executables use an engine: also with WEFT_TEST_ENGINE=fork, which forks it.

    For machines on which Python starts slowly.
    """
    return wanted() or os.environ.get("WEFT_TEST_ENGINE") == "fork"


def process() -> int:
    """The process id of the running engine."""
    assert _standing is not None
    return _standing.process


def helpers(engine: int) -> list[int]:
    """The helper processes of an engine that still run."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, parent = stat.read_text().rpartition(")")[2].split()[:2]
            if int(parent) == engine and state != "Z":
                found.append(int(stat.parent.name))
    return sorted(found)


def ready() -> None:
    """Make sure that an engine runs on the host of this thread."""
    if _standing is not None and (_standing.owner != os.getpid() or _answers(_standing.folder)):
        return
    stop()
    if wanted():
        # A test that breaks something looks at how it is reported, not at how it is restored.
        environment = {**os.environ, "WEFT_FOLLOW": "off"}
        _stand(subprocess.Popen([PROGRAM, "--idle", str(IDLE)], stdin=subprocess.DEVNULL, env=environment).pid, -1)
    else:
        _fork(None)


def stop() -> None:
    """Stop the engine with SIGTERM, if there is one."""
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
    assert not alive, "the engine did not stop on SIGTERM"


def was_killed() -> bool:
    """Whether the engine was ended by SIGKILL; called after a lost reply, so it waits for the end."""
    global _standing
    assert _standing is not None
    _, status = os.waitpid(_standing.process, 0)
    if _standing.report >= 0:
        os.close(_standing.report)
    _standing = None
    return os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL


def call(plugin: str, variables: Mapping[str, str], stdin: bytes, watch: Watch | None, *, files: bool) -> Reply | None:
    """One call through the engine; ``watch`` gets its steps.

    Exit status and output, None without a reply.

    With ``files``, changes of files and messages to the kernel are steps as well.
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
    """Whether an engine accepts connections there."""
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
        assert time.monotonic() < deadline, "the engine does not accept connections"
        time.sleep(0.002)


def _fork(watch: Watch | None, *, files: bool = False) -> None:
    """Run the engine in a fork of this process; it closes all file descriptors of the test."""
    stop()
    report = os.memfd_create("watched")
    process = os.fork()
    if process:
        _stand(process, report)
        return
    status = 1
    try:
        gc.freeze()  # objects of the test must not be finalized twice
        os.closerange(3, report)
        os.closerange(report + 1, 1 << 16)
        if watch is not None:
            # Helpers would be watched, too, and outlive a kill.
            vars(server)["process_count"] = lambda: 1
            _tell(watch, report, files=files)
        os.environ["WEFT_FOLLOW"] = "off"
        status = serve(IDLE)
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def _tell(watch: Watch, report: int, *, files: bool) -> None:
    """In the fork: report steps of the first request to the watch; write the result to the memfd."""
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
    """Send a request as the client does; None if the engine ended before it replied."""
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
                assert not declined, "the engine declined the request: has its code changed?"
                errors = data[frame.REPLY.size + length :]
                sys.stderr.write(errors.decode(errors="replace"))
                return status, data[frame.REPLY.size : frame.REPLY.size + length]
    return None
