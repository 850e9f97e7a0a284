"""What is known of the rules without a look at them: that they were sound, and nobody else has changed any since."""

from __future__ import annotations

from _thread import allocate_lock
from contextlib import AbstractContextManager

Found = tuple[str, int]
"""The digest of the base that was found as it should be, and the kernel's count of transactions then."""


class Sound:
    """What the threads of one process know together (those of several: ``engine.common.SharedSound``)."""

    def __init__(self) -> None:
        self._turn: AbstractContextManager[object] = allocate_lock()
        self._found: Found | None = None

    @property
    def turn(self) -> AbstractContextManager[object]:
        """To be held from reading ``found`` until what follows from it is done: a look or a transaction."""
        return self._turn

    @property
    def found(self) -> Found | None:
        return self._found

    @found.setter
    def found(self, found: Found | None) -> None:
        self._found = found
