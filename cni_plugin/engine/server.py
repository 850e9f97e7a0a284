"""The server: worker threads that accept and serve connections, and a graceful stop.

Every worker accepts for itself, and the kernel wakes one for each connection. There is no dispatcher,
and a stuck client occupies one thread until its timeout. A process at full load leaves a connection to
the other processes (``helpers``) for a moment.
"""

from __future__ import annotations

import contextlib
import gc
import mmap
import os
import resource
import select
import signal
import socket
import threading
import time
from collections.abc import Iterator
from importlib import import_module

from cni_plugin.dataplane.guard import Owner
from cni_plugin.dataplane.tables import TABLES
from cni_plugin.engine import listener
from cni_plugin.engine.code import Code
from cni_plugin.engine.connection import ClientConnection
from cni_plugin.engine.helpers import ProcessGroup, process_count
from cni_plugin.engine.listener import EngineSocket
from cni_plugin.engine.shared import LeaseChangeRing, SharedVerifiedGeneration
from cni_plugin.engine.worker import FULL_LOAD, Shared, Worker
from cni_plugin.service import follower
from cni_plugin.service.log import Level
from cni_plugin.wire import frame
from ipam import cache
from weft import events, stderr
from weft.daemon_socket import AlreadyRunning
from weft.errors import WeftError
from weft.kernel import sysctl
from weft.kernel.host import boot_id
from weft.kernel.netlink.batch_deletion import BatchDeleter
from weft.kernel.nft.ruleset import Nft
from weft.releases import supersede

IDLE = 900.0
"""Seconds without a request after which an engine stops; 0: never."""

MOST_WORKERS = 128
_MOST_IDLE_WORKERS = 6
"""Idle threads that are kept: with more, each call would wake one whose caches are cold."""
_STACK_BYTES = 1 << 19  # of a thread; the deepest call needs a fraction
_GC_THRESHOLD = 50_000
"""Allocations between two runs of the cycle collector. A call leaves next to no cycles; with the
default of 700 the collector took a third of the Python time of a call with 200 ports.
"""
_SPARE_DESCRIPTORS, _SPARE_BYTES = 16, 16 << 20
"""What a process must be able to get, or calls fail: a call has a dozen descriptors open."""
_RESERVED_DESCRIPTORS = 4
"""Held open, so that without any others the backlog can still be declined."""
_FULL_LOAD_WAIT = 0.02  # seconds that a connection is left to other processes at full load
_DRAIN_SECONDS = frame.DEADLINE + 10
_PRELOADED = (
    *("cni_plugin.drivers", "cni_plugin.features", "cni_plugin.ops", "cni_plugin.plan", "cni_plugin.service"),
    *("cni_plugin.wire", "ipam", "weft", "weft.kernel", "weft.kernel.linux", "weft.kernel.netlink", "weft.kernel.nft"),
)
"""Packages of which a call may import any module."""


class Server:
    """Serves a socket until it is told to stop, is outdated, unreachable, or idle for too long."""

    def __init__(
        self,
        endpoint: EngineSocket,
        shared: Shared,
        idle: float,
        group: ProcessGroup,
        follow: follower.Follower | None = None,
    ) -> None:
        self._follow = follow
        self._endpoint = endpoint
        self._group = group
        self._shared = shared
        self._idle = idle
        self._state = threading.Lock()
        self._load_dropped = threading.Condition(self._state)
        self._clients: set[ClientConnection] = set()
        self._workers = self._load = 0
        self._last_request = time.monotonic()
        self._stopping = self._draining = self._is_short = False
        self._spare = [os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC) for _ in range(_RESERVED_DESCRIPTORS)]
        self._stop, self._stop_end = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        drain, self._drain_end = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        group.prepare_to_wait(drain)

    def stop(self) -> None:
        """Stop accepting; may be called from a signal handler or any thread, more than once."""
        self._stopping = True
        with contextlib.suppress(OSError):
            os.write(self._stop_end, b"x")

    def run(self) -> None:
        """Serve until stopped. Returns when all accepted requests have been answered."""
        self._start_worker()
        if self._follow is not None and not self._group.is_helper:
            threading.Thread(target=self._follow.run, args=(self._stop,), name="follower", daemon=True).start()
        while not self._stopping:
            main_ended, _, _ = select.select([self._stop, *self._group.lifeline], [], [], frame.PROGRESS)
            self._show_progress()
            self._group.reap()
            if main_ended or (not self._group.is_helper and self._is_done()):
                self.stop()
        self._endpoint.close()  # first of all: clients that connected before are in the backlog and get served
        self._group.stop_helpers()
        self._draining = True
        os.write(self._drain_end, b"x")
        deadline = time.monotonic() + _DRAIN_SECONDS
        shown = time.monotonic()
        while self._workers and time.monotonic() < deadline:
            time.sleep(0.005)
            if time.monotonic() - shown > frame.PROGRESS:
                shown = time.monotonic()
                self._show_progress()
        self._group.wait_or_kill(deadline)

    def _is_done(self) -> bool:
        """Whether the engine is idle for too long, its socket is unlinked or replaced, or its code has
        changed.
        """
        with self._state:
            idle = not self._clients and time.monotonic() - self._last_request > self._idle
        return (bool(self._idle) and idle) or not self._endpoint.is_reachable or not self._shared.code.verify()

    def _start_worker(self) -> None:
        """Start a worker. The caller holds ``_state``, or no worker runs yet."""
        self._workers += 1
        try:
            threading.Thread(target=self._run_worker, name="worker", daemon=True).start()
        except (RuntimeError, MemoryError):  # the limit of threads
            self._workers -= 1
            self._stop_without("threads")

    def _show_progress(self) -> None:
        with self._state:
            clients = [*self._clients]
        for client in clients:
            client.show_progress()

    def _run_worker(self) -> None:
        try:
            worker = Worker(self._shared)
        except (OSError, WeftError) as error:
            with self._state:
                self._workers -= 1
            stderr.write(f"weft: no worker: {error}\n")
            self._stop_without(shortage())
            return
        counted = True
        try:
            while counted and (client := self._accept_next()) is not None:
                try:
                    if not worker.serve(client, self._loaded, is_short=self._is_short):
                        self.stop()
                    elif worker.failed:
                        self._stop_without(shortage())
                finally:
                    client.close()
                    with self._state:
                        self._clients.discard(client)
                        self._last_request = time.monotonic()
                        if self._workers - len(self._clients) > _MOST_IDLE_WORKERS:
                            self._workers -= 1
                            counted = False
        finally:
            worker.close()
            if counted:
                with self._state:
                    self._workers -= 1

    def _accept_next(self) -> ClientConnection | None:
        """Wait for the next connection; None once the server drains and the backlog is empty."""
        connection = None
        while connection is None:
            draining = self._draining  # wait() then returns at once: the drain stays readable
            self._group.wait()
            try:
                connection = self._accept()
            finally:
                self._group.pass_turn()
            if connection is None and draining:
                return None
        client = ClientConnection(connection)
        # accept(2) returns the lowest free number, so this one tells how many are in use.
        if connection.fileno() + _SPARE_DESCRIPTORS > resource.getrlimit(resource.RLIMIT_NOFILE)[0]:
            self._stop_without("descriptors")
        with self._state:
            self._clients.add(client)
            self._last_request = time.monotonic()
            if len(self._clients) == self._workers and self._workers < MOST_WORKERS:
                self._start_worker()
        return client

    def _accept(self) -> socket.socket | None:
        if not self._draining:
            self._prefer_other_processes()
        try:
            return self._endpoint.listener.accept()[0]
        except BlockingIOError:
            pass
        except OSError as error:  # EMFILE, or ECONNABORTED
            stderr.write(f"weft: accept failed: {error}\n")
            self._stop_without(shortage())
            time.sleep(0.05)
            with contextlib.suppress(OSError):
                return self._endpoint.listener.accept()[0]
        return None

    def _stop_without(self, resource: str) -> None:
        """Stop where this process has run out of a resource ("": it has not): its clients, those in the
        backlog too, then serve themselves.
        """
        if resource and not self._is_short:
            self._is_short = True
            stderr.write(f"weft: out of {resource}, stopping\n")
            for descriptor in self._spare:
                os.close(descriptor)
            self.stop()

    @contextlib.contextmanager
    def _loaded(self, load: int) -> Iterator[None]:
        """Count the load of a call while it is served."""
        with self._state:
            self._load += load
        try:
            yield
        finally:
            with self._state:
                self._load -= load
                self._load_dropped.notify()

    def _prefer_other_processes(self) -> None:
        """At full load, wake a helper and wait for the load to drop before accepting the connection
        here.
        """
        if self._load >= FULL_LOAD:
            self._group.wake_helper()
            with self._state:
                self._load_dropped.wait_for(lambda: self._load < FULL_LOAD, _FULL_LOAD_WAIT)


def shortage() -> str:
    """What this process cannot get more of: "descriptors", "memory"; "" if nothing is short."""
    opened: list[int] = []
    try:
        while len(opened) < _SPARE_DESCRIPTORS:
            opened.append(os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC))
    except OSError:
        return "descriptors"
    finally:
        for descriptor in opened:
            os.close(descriptor)
    try:
        mmap.mmap(-1, _SPARE_BYTES).close()
    except (OSError, MemoryError):
        return "memory"
    return ""


def serve(idle: float = IDLE, level: Level = Level.OFF) -> int:
    """Run the engine of this network namespace in this process; the exit status.

    0 after a graceful stop, or where another engine runs already; 1 where the socket cannot be created.
    """
    os.umask(0o022)
    threading.stack_size(_STACK_BYTES)
    code = _prepare()
    supersede(listener.folder())
    try:
        endpoint = EngineSocket()
    except AlreadyRunning:
        if level:
            stderr.write("weft: an engine is already running in this network namespace\n")
        return 0
    except OSError as error:
        stderr.write(f"weft: cannot create the engine's socket: {error}\n")
        return 1
    gc.collect()
    gc.freeze()
    gc.set_threshold(_GC_THRESHOLD)
    group, verified, lease_changes = ProcessGroup(endpoint.listener), SharedVerifiedGeneration(), LeaseChangeRing()

    def run() -> None:
        cache.enable(lease_changes)
        shared = Shared(Nft(TABLES, verified=verified), BatchDeleter(), code, frame.view(), boot_id(), level)
        follow = follower.Follower(Owner.ENGINE, lambda line: stderr.write(f"weft: {line}\n"))
        server = Server(endpoint, shared, idle, group, follow if follower.is_wanted() else None)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: server.stop())
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        server.run()

    def run_helper() -> None:
        endpoint.drop_lock()
        run()

    started = {"source": "engine", "level": "INFO", "message": f"started, process {os.getpid()}"}
    events.record(listener.folder(), "engine", started)
    if endpoint.predecessor:
        events.record(listener.folder(), "takeover", events.after_kill("engine", endpoint.predecessor))
    group.fork_helpers(process_count() - 1, run_helper)
    run()
    return 0


def preloaded() -> list[str]:
    """The modules that are imported before the fork: all that a call may need."""
    wanted = ["sqlite3"]
    for package in _PRELOADED:
        for folder in import_module(package).__path__:
            names = (name.removesuffix(".py") for name in sorted(os.listdir(folder)) if name.endswith(".py"))
            wanted += [f"{package}.{name}" for name in names if name != "__init__"]
    return wanted


def preload() -> None:
    """Import them, so that the helpers share them and no call waits for an import."""
    for module in preloaded():
        with contextlib.suppress(ImportError):  # reported by the call that needs it
            import_module(module)


def _prepare() -> Code:
    """Import and open what the first request would otherwise wait for."""
    preload()
    sysctl.use_private_proc()
    return Code()
