"""Work shared out to forked processes."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from weft import parallel
from weft.errors import WeftError


@pytest.fixture(autouse=True)
def three(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three processors, for two items each at least."""
    monkeypatch.setattr(parallel, "LEAST", 2)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 1, 2})


def nothing() -> None: ...


def shared_out(
    items: Sequence[int], work: Callable[[Sequence[int]], list[Any]], forked: Callable[[], None]
) -> list[Any]:
    """Begun, and finished at once."""
    return parallel.begun(items, work, forked)()


@pytest.mark.parametrize(("count", "processes"), [(0, 1), (1, 1), (3, 1), (4, 2), (6, 3), (7, 3), (100, 3)])
def test_answers_are_in_order_and_of_as_many_processes_as_are_worth_it(count: int, processes: int) -> None:
    def work(part: Sequence[int]) -> list[tuple[int, int]]:
        return [(one * one, os.getpid()) for one in part]

    found = shared_out(range(count), work, nothing)
    assert [square for square, _ in found] == [one * one for one in range(count)]
    assert len({process for _, process in found} | {os.getpid()}) == processes
    with pytest.raises(ChildProcessError):  # none is left
        os.waitpid(-1, os.WNOHANG)


def test_what_concerns_the_process_is_called_in_each_new_one() -> None:
    called: list[int] = []
    found = shared_out(range(6), lambda part: [len(called)] * len(part), lambda: called.append(os.getpid()))
    assert found[:3] == [0, 1, 1] and set(found[3:]) <= {0, 1}  # whoever takes these
    assert called == []


def test_none_waits_for_one_that_is_slow(tmp_path: Path) -> None:
    """The second process keeps its first part until all others are done, by this process and the third."""
    here, done = os.getpid(), tmp_path / "done"
    done.touch()

    def work(part: Sequence[int]) -> list[tuple[int, int]]:
        while part[0] == 1 and done.stat().st_size < 23:
            os.sched_yield()
        with done.open("ab") as file:
            file.write(b"." * len(part))
        return [(one, os.getpid()) for one in part]

    found = shared_out(range(24), work, nothing)
    assert [one for one, _ in found] == list(range(24))
    slow = found[1][1]
    assert slow != here and [process for _, process in found].count(slow) == 1


def test_this_process_may_do_something_else_meanwhile(tmp_path: Path) -> None:
    """The others begin at once, and do all but its first part if that takes long."""
    here, done = os.getpid(), tmp_path / "done"
    done.touch()

    def work(part: Sequence[int]) -> list[int]:
        with done.open("ab") as file:
            file.write(b"." * len(part))
        return [os.getpid()] * len(part)

    finish = parallel.begun(range(24), work, nothing)
    while done.stat().st_size < 23:
        os.sched_yield()
    found = finish()
    assert found[0] == here and here not in found[1:] and len(found) == 24
    with pytest.raises(ChildProcessError):  # none is left
        os.waitpid(-1, os.WNOHANG)


def test_an_answer_may_be_larger_than_a_pipe() -> None:
    found = shared_out(range(6), lambda part: [[str(one) * 100_000] for one in part], nothing)
    assert found == [[str(one) * 100_000] for one in range(6)]


def test_an_error_is_raised_in_the_caller() -> None:
    def work(part: Sequence[int]) -> list[int]:
        if 5 in part:
            raise WeftError("five")
        return list(part)

    with pytest.raises(WeftError, match="five"):
        shared_out(range(6), work, nothing)
    assert shared_out(range(5), work, nothing) == list(range(5))
    with pytest.raises(ChildProcessError):  # none is left
        os.waitpid(-1, os.WNOHANG)


def test_what_a_killed_process_had_to_do_is_done_here() -> None:
    here = os.getpid()

    def work(part: Sequence[int]) -> list[int]:
        if os.getpid() != here and 4 in part:
            os.kill(os.getpid(), signal.SIGKILL)
        return [one + 1 for one in part]

    assert shared_out(range(6), work, nothing) == [1, 2, 3, 4, 5, 6]
