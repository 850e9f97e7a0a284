"""The server around the service: threads that take connections in turn, and an orderly end.

Each thread waits for connections, and the kernel wakes one of them for each. So nobody hands work on, and a client that
is stuck occupies one thread until its time is up. A process that has enough to do leaves a connection to the others
(``team``) for a moment.
"""

from __future__ import annotations

import contextlib
import gc
import os
import select
import signal
import socket
import threading
import time
from collections.abc import Iterator
from importlib import import_module

from cni_plugin.engine.code import Code
from cni_plugin.engine.connection import Peer
from cni_plugin.engine.helpers import Team, processes
from cni_plugin.engine.listener import Place
from cni_plugin.engine.shared import Board, SharedSound
from cni_plugin.engine.worker import ENOUGH, Shared, Worker
from cni_plugin.wire import frame
from ipam import cache
from weft import stderr
from weft.daemon_socket import AlreadyRunning
from weft.kernel import sysctl
from weft.kernel.host import boot_id
from weft.kernel.netlink.batch_deletion import BatchDeleter
from weft.kernel.nft.ruleset import Nft

IDLE = 900.0
"""Seconds without a request after which an engine ends; 0: never."""

MOST_WORKERS = 128
_MOST_IDLE = 6
"""Threads kept waiting: with more, each call would wake one that has been cold for long."""
_STACK = 1 << 19  # bytes of a thread's stack; the deepest call needs a fraction
_COLLECTED = 50_000
"""Objects made between two looks for cycles, of which a call leaves next to none: after 700 they were a third of the
Python of a call with 200 ports."""
_MOMENT = 0.02  # seconds that a connection waits then, for another process or for what is at work to end
_LOOK = 2.0  # seconds between two looks at the clock and at the socket's name
_PATIENCE = frame.DEADLINE + 10
_OF_CALLS = (
    *("cni_plugin.drivers", "cni_plugin.features", "cni_plugin.ops", "cni_plugin.plan", "cni_plugin.service"),
    *("cni_plugin.wire", "ipam", "weft", "weft.kernel", "weft.kernel.linux", "weft.kernel.netlink", "weft.kernel.nft"),
)
"""Packages of which a call may come to need any module."""


class Server:
    """Serves at a place until it is told to stop, is outdated, or nobody comes any more."""

    def __init__(self, place: Place, shared: Shared, idle: float, team: Team) -> None:
        self._place = place
        self._team = team
        self._shared = shared
        self._idle = idle
        self._state = threading.Lock()
        self._eased = threading.Condition(self._state)
        self._workers = self._busy = self._at_work = 0
        self._last = time.monotonic()
        self._stopping = self._draining = False
        self._stop, self._stop_end = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        drain, self._drain_end = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        team.watch(drain)

    def stop(self) -> None:
        """Take no new connections; may be called from anywhere, and twice."""
        self._stopping = True
        with contextlib.suppress(OSError):
            os.write(self._stop_end, b"x")

    def run(self) -> None:
        """Serve. Returns when all that was taken on is done."""
        self._hire()
        while not self._stopping:
            life, _, _ = select.select([self._stop, *self._team.life], [], [], _LOOK)
            self._team.miss()
            if life or (not self._team.is_helper and self._is_over()):
                self.stop()
        self._place.leave()  # before anybody stops taking: who connected until now is served
        self._team.dismiss()
        self._draining = True
        os.write(self._drain_end, b"x")
        until = time.monotonic() + _PATIENCE
        while self._workers and time.monotonic() < until:
            time.sleep(0.005)
        self._team.bury(until)

    def _is_over(self) -> bool:
        """Whether nobody comes any more, or nobody finds this engine, or it is of another version than the files."""
        with self._state:
            idle = not self._busy and time.monotonic() - self._last > self._idle
        return (bool(self._idle) and idle) or not self._place.stands or not self._shared.code.look()

    def _hire(self) -> None:
        """One more thread, the state's lock held or nobody else there yet."""
        self._workers += 1
        threading.Thread(target=self._work, name="worker", daemon=True).start()

    def _work(self) -> None:
        worker = Worker(self._shared)
        counted = True
        try:
            while counted and (peer := self._next()) is not None:
                try:
                    if not worker.serve(peer, self._work_on):
                        self.stop()
                finally:
                    peer.close()
                    with self._state:
                        self._busy -= 1
                        self._last = time.monotonic()
                        if self._workers - self._busy > _MOST_IDLE:  # counted out at once, or all might go
                            self._workers -= 1
                            counted = False
        finally:
            worker.close()
            if counted:
                with self._state:
                    self._workers -= 1

    def _next(self) -> Peer | None:
        """The next connection, None when there will be none."""
        connection = None
        while connection is None:
            draining = self._draining  # then nobody waits: the drain stays readable
            self._team.wait()
            try:
                connection = self._accept()
            finally:
                self._team.pass_on()
            if connection is None and draining:
                return None
        with self._state:
            self._busy += 1
            self._last = time.monotonic()
            if self._busy == self._workers and self._workers < MOST_WORKERS:
                self._hire()
        return Peer(connection)

    def _accept(self) -> socket.socket | None:
        if not self._draining:
            self._leave_to_others()
        try:
            return self._place.listener.accept()[0]
        except BlockingIOError:
            pass
        except OSError as error:  # no descriptor left, or the caller is gone again
            stderr.write(f"weft: cannot take a connection: {error}\n")
            time.sleep(0.05)
        return None

    @contextlib.contextmanager
    def _work_on(self, weight: int) -> Iterator[None]:
        """A call is worked on meanwhile."""
        with self._state:
            self._at_work += weight
        try:
            yield
        finally:
            with self._state:
                self._at_work -= weight
                self._eased.notify()

    def _leave_to_others(self) -> None:
        """Somebody is there. Where there is enough to do, wait a moment before taking him on."""
        if self._at_work >= ENOUGH:
            self._team.call()
            with self._state:
                self._eased.wait_for(lambda: self._at_work < ENOUGH, _MOMENT)


def serve(idle: float = IDLE, *, log: bool = False) -> int:
    """Be the engine of this network namespace; the exit status of the process.

    0 when it has served its time or another engine is there already, 1 where it cannot be one.
    """
    os.umask(0o022)
    threading.stack_size(_STACK)
    code = _prepare()
    try:
        place = Place()
    except AlreadyRunning:
        if log:
            stderr.write("weft: an engine serves this network namespace already\n")
        return 0
    except OSError as error:
        stderr.write(f"weft: the engine cannot be reached by anybody: {error}\n")
        return 1
    gc.collect()
    gc.freeze()
    gc.set_threshold(_COLLECTED)
    team, sound, board = Team(place.listener), SharedSound(), Board()

    def work() -> None:
        cache.enable(board)
        shared = Shared(Nft(sound=sound), BatchDeleter(), code, frame.view(), boot_id(), log)
        server = Server(place, shared, idle, team)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: server.stop())
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        server.run()

    def help_out() -> None:
        place.part()
        work()

    team.part(processes() - 1, help_out)
    work()
    return 0


def preload() -> None:
    """Import whatever a call may need, so that no worker of no process does it again after the fork."""
    wanted = ["sqlite3"]
    for package in _OF_CALLS:
        for folder in import_module(package).__path__:
            names = (name.removesuffix(".py") for name in sorted(os.listdir(folder)) if name.endswith(".py"))
            wanted += [f"{package}.{name}" for name in names if name != "__init__"]
    for module in wanted:
        with contextlib.suppress(ImportError):  # whoever needs it will be told
            import_module(module)


def _prepare() -> Code:
    """Everything imported and opened that the first request would otherwise wait for."""
    preload()
    sysctl.use_private_proc()
    return Code()
