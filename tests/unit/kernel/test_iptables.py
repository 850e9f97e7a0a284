"""Output of iptables-save is used only if it is complete: no output is no empty table."""

from __future__ import annotations

import pytest

from weft.errors import KernelRefused
from weft.kernel.linux import iptables

WHOLE = "# Generated\n*nat\n:PREROUTING ACCEPT [0:0]\n-A PREROUTING -j X\nCOMMIT\n# Completed\n"


class Nftables:
    """Answers the query whether a table exists."""

    def __init__(self, exists: bool) -> None:
        self._exists = exists

    def get(self, kind: int, questions: list[object]) -> list[dict[int, bytes] | None]:
        return [{1: b"nat\0"} if self._exists else None for _ in questions]


def saved(monkeypatch: pytest.MonkeyPatch, output: str, exists: bool) -> tuple[str, ...]:
    monkeypatch.setattr(iptables, "_run", lambda *_, **__: output)
    return iptables.save(4, "nat", Nftables(exists))  # type: ignore[arg-type]


@pytest.mark.parametrize("exists", [True, False])
def test_a_complete_table_is_parsed(monkeypatch: pytest.MonkeyPatch, exists: bool) -> None:
    assert saved(monkeypatch, WHOLE, exists) == (":PREROUTING ACCEPT [0:0]", "-A PREROUTING -j X")


@pytest.mark.parametrize(
    ("output", "words"),
    [
        ("", "which exists: nothing"),
        ("# Table `nat' is incompatible, use 'nft' tool.\n", "is incompatible, use 'nft' tool"),
        (WHOLE.replace("nat", "filter"), "the table nat"),
        (WHOLE.partition("COMMIT")[0], "the table nat"),
    ],
)
def test_an_existing_table_that_is_not_printed_is_an_error(
    monkeypatch: pytest.MonkeyPatch, output: str, words: str
) -> None:
    with pytest.raises(KernelRefused) as raised:
        saved(monkeypatch, output, True)
    assert words in str(raised.value)


def test_an_incomplete_table_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(KernelRefused):
        saved(monkeypatch, WHOLE.partition("COMMIT")[0], False)


def test_a_table_that_is_not_in_use_is_empty(monkeypatch: pytest.MonkeyPatch) -> None:
    assert saved(monkeypatch, "", False) == ()
