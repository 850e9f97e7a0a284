"""A worker as the agent sees it: told everything when it starts, asked every so often whether it answers,
and replaced when it ends, stops, does not answer, or sends anything but what is expected of it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
from collections.abc import Callable, Iterable

from discovery.metrics import Metrics
from weft import proc_stat
from weft.errors import WeftError
from weft.pair import Malformed, Message, Pair
from weft.spawner import Spawner

log = logging.getLogger("weft.agent")

PING_SECONDS = 0.5
"""Between two questions whether it answers."""
_LATE_SECONDS = 1.0  # without an answer: its state is looked at
_HUNG_SECONDS = 10.0  # without an answer, in which it used no processor, or as many seconds of one
_SYNC_SECONDS = 2.0  # that an attachment waits for what depends on a worker
_LEAST_LIFE = 1.0  # seconds; one that ends earlier is replaced after a pause
_MOST_PAUSE = 5.0


class Worker:
    """A worker by its name. ``most`` is the size of its largest message in bytes.

    ``tell`` sends a new process what it needs, ``answered`` takes what it says beside its answer to a
    ping, and ``received`` all other messages; both may raise Malformed.
    """

    def __init__(
        self,
        spawner: Spawner,
        name: str,
        most: int,
        *,
        tell: Callable[[], None],
        answered: Callable[[list[object]], None],
        received: Callable[[Message], None],
        metrics: Metrics,
    ) -> None:
        self._spawner = spawner
        self._name = name
        self._most = most
        self._tell = tell
        self._on_answer = answered
        self._on_message = received
        self._pair: Pair | None = None
        self._process = 0
        self._starts = 0
        self._started = 0.0
        self._pause = 0.0
        self._asked = self._answered = 0
        self._asked_at: dict[int, float] = {}
        self._progress: list[tuple[float, float]] = []
        """While it does not answer: when, and its processor seconds; at first, and when they last grew."""
        self._waiting: set[asyncio.Event] = set()
        self._replacing: asyncio.Task[None] | None = None
        self._watching: asyncio.Task[None] | None = None
        metrics.counter(
            f"weft_{name}_worker_restarts_total", "Replacements of the process.", read=lambda: max(self._starts - 1, 0)
        )

    @property
    def is_started(self) -> bool:
        """Whether it has been started, and not stopped."""
        return self._watching is not None

    @property
    def is_running(self) -> bool:
        """Whether there is a process; between two there is none for a moment."""
        return self._pair is not None and self._pair.is_open

    def start(self) -> None:
        """Start it, and replace it from now on. Raises WeftError."""
        self._start_process()
        self._watching = asyncio.create_task(self._watch())

    async def stop(self) -> None:
        """End it; returns when the process has ended."""
        for task in (self._watching, self._replacing):
            if task is not None:
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
        self._watching = self._replacing = None
        self._end_process()

    def send(self, message: Iterable[object], descriptors: Iterable[int] = (), payload: bytes = b"") -> None:
        """Send it a message, as long as there is one: a new process is told everything."""
        if self._pair is not None:
            self._pair.send(message, descriptors, payload)

    async def sync(self) -> None:
        """Wait until it has done all that it was told, if it answers in time."""
        self._ping()
        number, answered = self._asked, asyncio.Event()
        self._waiting.add(answered)
        try:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_SYNC_SECONDS):
                    while self._answered < number:
                        answered.clear()
                        await answered.wait()
        finally:
            self._waiting.discard(answered)

    def _ping(self) -> None:
        self._asked += 1
        self._asked_at[self._asked] = time.monotonic()
        self.send(["ping", self._asked])

    def _received(self, message: Message, descriptors: list[int]) -> None:
        kind, *values = message
        if kind != "pong":
            self._on_message(message)
            return
        if not values or type(number := values[0]) is not int or not self._answered < number <= self._asked:
            raise Malformed(f"an answer to nothing that was asked: {str(message)[:80]}")
        self._on_answer(values[1:])
        self._answered = number
        for asked in [one for one in self._asked_at if one <= number]:
            del self._asked_at[asked]
        for waiting in self._waiting:
            waiting.set()

    def _start_process(self) -> None:
        self._process, end = self._spawner.start(self._name)
        self._started = time.monotonic()
        self._starts += 1
        # Whoever waits for an earlier answer waits for this process's first.
        self._asked_at.clear()
        self._progress.clear()
        self._pair = Pair(end, self._most, self._received, self._ended)
        self._tell()
        self._ping()

    def _end_process(self) -> None:
        if self._pair is not None:
            self._pair.close()
            self._pair = None
        with contextlib.suppress(WeftError):
            self._spawner.kill(self._process)

    def _ended(self, why: str) -> None:
        """It has closed its end, or sent what it must not."""
        if self._replacing is None:
            log.error("replacing the worker %s (pid %d): %s", self._name, self._process, why or "it has ended")
            self._replacing = asyncio.create_task(self._replace())

    async def _replace(self) -> None:
        self._end_process()
        short = time.monotonic() - self._started < _LEAST_LIFE
        self._pause = min(max(2 * self._pause, 0.1), _MOST_PAUSE) if short else 0.0
        while True:
            await asyncio.sleep(self._pause)
            try:
                self._start_process()
                break
            except WeftError as error:
                log.error("there is no worker %s: %s", self._name, error.message)
                self._pause = _MOST_PAUSE
        self._replacing = None

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(PING_SECONDS)
            if self._replacing is not None:
                continue
            late = time.monotonic() - min(self._asked_at.values(), default=time.monotonic())
            if self._is_hung(late) or (late > _LATE_SECONDS and _is_stopped(self._process)):
                self._ended(f"it has not answered for {late:.1f} s")
            elif len(self._asked_at) < 2 * _HUNG_SECONDS / PING_SECONDS:
                self._ping()

    def _is_hung(self, late: float) -> bool:
        """Whether it does nothing, or nothing but compute, without an answer; on a loaded machine a
        process that has much to do, a large catalog to load, may take long.
        """
        if late <= _LATE_SECONDS:
            self._progress.clear()
            return False
        used, now = _processor_seconds(self._process), time.monotonic()
        if not self._progress:
            self._progress.append((now, used))
        first, last = self._progress[0], self._progress[-1]
        if used != last[1]:
            self._progress[1:] = [(now, used)]
        return now - self._progress[-1][0] > _HUNG_SECONDS or used - first[1] > _HUNG_SECONDS


def _processor_seconds(process: int) -> float:
    try:
        user, system = proc_stat.fields(process)[11:13]
    except OSError:
        return 0.0
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


def count(value: object) -> int:
    """A count that a worker has sent. Raises Malformed."""
    if type(value) is not int or not 0 <= value < 1 << 63:
        raise Malformed(f"{str(value)[:40]!r} is no count")
    return value


def nothing(values: list[object]) -> None:
    """Take the answer of a worker that has nothing to add to it. Raises Malformed."""
    if values:
        raise Malformed("more than an answer")


def _is_stopped(process: int) -> bool:
    try:
        return proc_stat.fields(process)[0] in ("T", "t", "Z", "X")
    except OSError:
        return True
