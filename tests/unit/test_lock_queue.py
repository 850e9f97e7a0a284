"""Threads of one process that wait for the same lock file."""

from __future__ import annotations

import time
from pathlib import Path
from threading import Thread

import pytest

from weft import locks
from weft.errors import Busy

COUNT = 12


def waiting(path: str) -> int:
    return len(locks._queues.get(path, ()))


def joined(path: str, number: int) -> None:
    """Wait until so many are in line."""
    deadline = time.monotonic() + 10
    while waiting(path) != number:
        assert time.monotonic() < deadline, waiting(path)
        time.sleep(0.001)


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "some.lock")


def in_line(path: str, order: list[int]) -> list[Thread]:
    """Threads that wait for the lock, one after the other; one before them may give up meanwhile."""

    def take(number: int) -> None:
        with locks.hold(path):
            order.append(number)

    threads = []
    for number in range(COUNT):
        threads.append(Thread(target=take, args=(number,)))
        before = {id(one) for one in locks._queues.get(path, ())}
        threads[-1].start()
        deadline = time.monotonic() + 10
        while not {id(one) for one in locks._queues.get(path, ())} - before:
            assert time.monotonic() < deadline
            time.sleep(0.001)
    return threads


def test_the_first_to_come_is_the_first_to_get_it(path: str) -> None:
    order: list[int] = []
    with locks.hold(path):
        threads = in_line(path, order)
        assert order == []
    for thread in threads:
        thread.join()
    assert order == list(range(COUNT))
    assert not locks._queues


def test_one_that_gives_up_holds_nobody_up(path: str) -> None:
    order: list[int] = []
    said: list[Exception] = []

    def give_up() -> None:
        try:
            with locks.hold(path, timeout=0.05):
                order.append(-1)
        except Busy as error:
            said.append(error)

    with locks.hold(path):
        impatient = Thread(target=give_up)
        impatient.start()
        joined(path, 1)
        threads = [*in_line(path, order), impatient]
        impatient.join()
        with pytest.raises(Busy), locks.hold(path, timeout=0):
            pass
        joined(path, COUNT)
    for thread in threads:
        thread.join()
    assert order == list(range(COUNT)) and len(said) == 1
    assert not locks._queues
