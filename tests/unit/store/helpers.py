"""Helpers of several tests of the store."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import TypeVar

from store import Batch, Event, Range

ROOT = Path(__file__).resolve().parents[3]
SOON = 30.0
"""Timeout of expected events on a busy machine, seconds."""

Answer = TypeVar("Answer")


def memory() -> str | None:
    """A directory on tmpfs, if there is one."""
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else None


async def soon(awaitable: Awaitable[Answer]) -> Answer:
    async with asyncio.timeout(SOON):
        return await awaitable


async def take(watch: AsyncIterator[Batch], count: int) -> list[Batch]:
    """The next batches of a watch."""
    return [await soon(anext(watch)) for _ in range(count)]


async def collect(watch: AsyncIterator[Batch], last: int) -> list[Batch]:
    """The batches of a watch up to the given revision."""
    found: list[Batch] = []
    while not found or found[-1].revision < last:
        found.append(await soon(anext(watch)))
    return found


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    """Wait for a condition."""

    async def wait() -> None:
        while not await condition():
            await asyncio.sleep(0.02)

    await soon(wait())


def state(found: Range) -> dict[str, bytes]:
    return {entry.key: entry.value for entry in found.entries}


def brief(event: Event) -> tuple[str, bytes | None, bytes | None]:
    """Key, current value, previous value."""
    return (
        event.key,
        None if event.entry is None else event.entry.value,
        None if event.previous is None else event.previous.value,
    )


def program(name: str, *arguments: str) -> list[str]:
    """The command that runs a function of ``children``."""
    return [sys.executable, "-m", "unit.store.children", name, *arguments]


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}
