"""The engines under the conformance tests: ``ENGINES`` in the unit tier, etcd's in netns (``etcd_engine``)."""

from __future__ import annotations

import contextlib
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Protocol

import pytest

from store import Store
from store.embedded import open_embedded


class Engine(Protocol):
    """The path of a store, which may be open several times, also by other processes (``children``)."""

    name: str
    place: str

    def open(self, history: int = 10_000) -> contextlib.AbstractAsyncContextManager[Store]:
        """Open the store; close it at the end of the block."""

    def stop_time(self) -> None:
        """Stop the clock of leases; ``pass_time`` advances it."""

    def pass_time(self, seconds: float) -> None:
        """Advance the clock of leases."""

    def close(self) -> None:
        """Leave nothing behind."""


class Embedded:
    name = "embedded"

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.place = str(folder / "store" / "store.db")
        self._monkeypatch = monkeypatch
        self._now = 0

    @contextlib.asynccontextmanager
    async def open(self, history: int = 10_000) -> AsyncIterator[Store]:
        store = await open_embedded(Path(self.place), history=history)
        try:
            yield store
        finally:
            await store.close()

    def stop_time(self) -> None:
        self._now = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        self._monkeypatch.setattr(time, "clock_gettime_ns", lambda clock: self._now)

    def pass_time(self, seconds: float) -> None:
        self._now += int(seconds * 1e9)

    def close(self) -> None:
        """Nothing: the folder is the fixture's."""


ENGINES: dict[str, Callable[[Path, pytest.MonkeyPatch], Engine]] = {"embedded": Embedded}


async def open_place(name: str, place: str, history: int = 10_000) -> Store:
    """Open a store by the name of its engine, as other processes do."""
    if name == "etcd":
        from unit.store import etcd_engine

        return await etcd_engine.open_place(place)
    assert name == "embedded"
    return await open_embedded(Path(place), history=history)
