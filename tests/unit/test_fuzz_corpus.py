"""The fuzzer's corpus as plain tests, and what fuzzing found (tests/fuzz)."""

from __future__ import annotations

import contextlib
import struct
from pathlib import Path

import pytest

from fuzz import run
from fuzz.targets import TARGETS, _Kernel, _servers, checked
from lab.calls import Weft
from lab.cases import conf
from weft.errors import KernelRefused
from weft.kernel.fake.kernel import FakeKernel
from weft.kernel.host import Host
from weft.kernel.netlink import links, neighbours
from weft.kernel.netlink.constants import RTM_NEWNEIGH
from weft.kernel.netlink.transport import pack

CORPUS = Path(run.__file__).parent / "corpus"


@pytest.mark.parametrize("name", TARGETS)
def test_every_input_of_the_corpus_is_taken_or_refused(name: str) -> None:
    inputs = sorted((CORPUS / name).iterdir())
    assert len(inputs) >= 9
    try:
        for path in inputs:
            checked(TARGETS[name], path.read_bytes())
    finally:
        while name == "http" and _servers:
            _servers.pop().close()


def test_all_targets_have_a_corpus_and_are_run() -> None:
    assert set(run.NAMES) == TARGETS.keys() == {path.name for path in CORPUS.iterdir()}


@pytest.mark.parametrize("command", ["ADD", "CHECK", "DEL"])
def test_a_name_that_is_no_plugin_is_refused(command: str, tmp_path: Path) -> None:
    """As of a link to the executable with a wrong name; it was an internal error."""
    kernel = FakeKernel()
    kernel.add("/c1")
    weft = Weft(kernel, Host(str(tmp_path / "run"), "boot", 0.0))
    request = {**conf("bridge", "red", {}), "type": "Bridge"}
    answer = weft(command, request, "/c1")
    if command == "DEL":
        assert answer.ok  # nothing is attached
    else:
        assert answer.code == 7 and "'Bridge'" in answer.text, answer


@pytest.mark.parametrize("size", [0, 3, 5, 17])
def test_an_answer_of_the_kernel_with_an_attribute_of_another_size_is_an_error_of_weft(size: int) -> None:
    row = struct.pack("=BBHiHBB", 2, 0, 0, 1, 2, 0, 0) + struct.pack("=HH", 4 + size, 1) + b"\x0a" * size
    with contextlib.closing(_Kernel(pack(RTM_NEWNEIGH, 0, 0, row))) as socket, pytest.raises(KernelRefused):
        neighbours.list_neighbours(socket, 0, 4)


def test_an_answer_without_a_message_is_an_error_of_weft() -> None:
    with contextlib.closing(_Kernel(b"")) as socket, pytest.raises(KernelRefused, match="cannot read the kernel"):
        links.get(socket, "lo")
