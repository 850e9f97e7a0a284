"""What mends a problem that weft reports: the one command that does, or why none does."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Command:
    """A shell command that mends the problem as it stands; ``note`` follows it, such as ``to remove it``."""

    command: str
    note: str = ""

    def __str__(self) -> str:
        return f"run {self.command}{' ' if self.note and self.note[0] not in ':;,' else ''}{self.note}"


@dataclass(frozen=True, slots=True)
class NoCommand:
    """What there is to decide or to do that no command does, such as which of two subnets is to change."""

    reason: str

    @property
    def command(self) -> None:
        """None, for ``--json``."""
        return

    def __str__(self) -> str:
        return self.reason


Remedy = Command | NoCommand
