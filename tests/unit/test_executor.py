"""The executor alone: the order of operations, what is undone or skipped, errors and log lines."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any, cast

import pytest

from cni_plugin.ops.operation import Lease, LinkRef, Machine, Operation
from cni_plugin.service.executor import Attempt, mismatches, remove
from weft.errors import Conflict, KernelRefused, WeftError
from weft.kernel.interface import Namespace
from weft.types import Result, Side

LOG: list[str] = []
MACHINE = cast(Machine, None)


@dataclass(frozen=True, slots=True)
class Step(Operation):
    """An operation that records its calls, and fails in those that ``fails`` names."""

    name: str
    fails: dict[str, BaseException] = field(default_factory=dict, hash=False)
    made: tuple[LinkRef, ...] = ()
    on: LinkRef | None = None
    unchanged: bool = False

    @property
    def creates(self) -> tuple[LinkRef, ...]:
        return self.made

    @property
    def on_link(self) -> LinkRef | None:
        return self.on

    def _do(self, verb: str) -> None:
        LOG.append(f"{verb} {self.name}")
        if verb in self.fails:
            raise self.fails[verb]

    def apply(self, machine: Machine) -> bool:
        self._do("apply")
        return not self.unchanged

    def undo(self, machine: Machine) -> None:
        self._do("undo")

    def mismatch(self, machine: Machine) -> str | None:
        self._do("mismatch")
        return f"{self.name} is gone"

    def commands(self, namespace: str) -> tuple[str, ...]:
        return (f"ip link set {self.name}",)


class Ticket(Lease):
    """A lease whose reservation fails."""

    def reserve(self, machine: Machine) -> Result:
        raise KernelRefused("no")

    def commands(self, namespace: str) -> tuple[str, ...]:
        return ()


REFUSED = KernelRefused("the kernel said no", hint="ask again")
LINK: LinkRef = (Side.HOST, "veth0")


@pytest.fixture(autouse=True)
def empty() -> None:
    LOG.clear()


def _attempt(*steps: Step) -> Attempt:
    attempt = Attempt(MACHINE)
    with attempt:
        attempt.apply(steps)
    return attempt


def test_operations_are_applied_in_order_and_kept() -> None:
    assert _attempt(Step("a"), Step("b")).not_undone == []
    assert LOG == ["apply a", "apply b"]


def test_a_failure_undoes_all_started_operations_in_reverse() -> None:
    with pytest.raises(KernelRefused):
        _attempt(Step("a"), Step("b", {"apply": KernelRefused("no")}), Step("c"))
    assert LOG == ["apply a", "apply b", "undo b", "undo a"]


def test_an_operation_that_met_a_conflict_is_not_undone() -> None:
    with pytest.raises(Conflict):
        _attempt(Step("a"), Step("b", {"apply": Conflict("taken")}))
    assert LOG == ["apply a", "apply b", "undo a"]


def test_a_failed_undo_is_reported_and_the_others_still_run() -> None:
    with pytest.raises(KernelRefused) as caught:
        _attempt(Step("a"), Step("b", {"undo": WeftError("stuck")}), Step("c", {"apply": REFUSED}))
    assert LOG[3:] == ["undo c", "undo b", "undo a"]
    assert caught.value.hint == "ask again; not undone: stuck"


def test_an_aborted_rollback_counts_as_not_undone() -> None:
    attempt = Attempt(MACHINE)
    with pytest.raises(ZeroDivisionError), attempt:
        attempt.apply([Step("a", {"undo": ZeroDivisionError()}), Step("b", {"apply": KernelRefused("no")})])
    assert attempt.not_undone != []


def test_a_keyboard_interrupt_undoes_as_well() -> None:
    with pytest.raises(KeyboardInterrupt):
        _attempt(Step("a"), Step("b", {"apply": KeyboardInterrupt()}))
    assert LOG[2:] == ["undo b", "undo a"]


def test_a_failed_reservation_is_not_undone() -> None:
    """``reserve`` cleans up after itself; undo would free an address that was reserved before."""
    seen: list[str] = []
    attempt = Attempt(MACHINE, lambda verb, operation: seen.append(verb))
    with pytest.raises(KernelRefused), attempt:
        attempt.reserve(Ticket())
    assert seen == ["apply"]
    assert attempt.not_undone == []


def test_operations_on_a_created_link_are_not_undone_one_by_one() -> None:
    steps = [Step("link", made=(LINK,)), Step("address", on=LINK), Step("other", on=(Side.CONTAINER, "veth0"))]
    assert remove(steps, MACHINE) == []
    assert LOG == ["undo other", "undo link"]


def test_operations_on_a_link_that_stays_are_undone() -> None:
    assert remove([Step("address", on=LINK)], MACHINE) == []
    assert LOG == ["undo address"]


def test_the_watch_is_called_before_every_step() -> None:
    seen: list[tuple[str, int]] = []
    first, second = Step("a"), Step("b", {"apply": KernelRefused("no")})
    attempt = Attempt(MACHINE, lambda verb, operation: seen.append((verb, len(LOG))))
    with pytest.raises(KernelRefused), attempt:
        attempt.apply([first, second])
    assert seen == [("apply", 0), ("apply", 1), ("undo", 2), ("undo", 3)]


def test_mismatches_include_the_messages_of_errors() -> None:
    assert mismatches([Step("a"), Step("b", {"mismatch": KernelRefused("cannot look")})], MACHINE) == [
        "a is gone",
        "cannot look",
    ]


def test_each_operation_is_logged_if_there_is_a_log() -> None:
    lines: list[str] = []
    refused = KernelRefused("busy")
    machine = Machine(cast(Namespace, None), None, cast(Any, None), cast(Any, None), cast(Any, None))
    attempt = Attempt(machine, log=lines.append)
    with pytest.raises(KernelRefused), attempt:
        attempt.apply([Step("a"), Step("b", unchanged=True), Step("c", {"apply": refused, "undo": WeftError("stuck")})])
    assert [re.sub(r"[0-9.]+ ms", "0 ms", line) for line in lines] == [
        "apply Step: changed, 0 ms: ip link set a",
        "apply Step: unchanged, 0 ms: ip link set b",
        "apply Step: failed: busy, 0 ms: ip link set c",
        "undo Step: failed: stuck, 0 ms: ip link set c",
        "undo Step: undone, 0 ms: ip link set b",
        "undo Step: undone, 0 ms: ip link set a",
    ]


def test_reservations_are_logged_and_long_commands_truncated() -> None:
    lines: list[str] = []
    machine = Machine(cast(Namespace, None), None, cast(Any, None), cast(Any, None), cast(Any, None))
    attempt = Attempt(machine, log=lines.append)
    with pytest.raises(KernelRefused), attempt:
        attempt.reserve(Ticket())
    [line] = lines
    assert line.startswith("apply Ticket: failed: no, ")
    remove([Step("x" * 1000)], machine, log=lines.append)
    assert len(lines[1]) < 300
