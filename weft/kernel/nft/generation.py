"""The ruleset digest and the nf_tables generation that were verified last."""

from __future__ import annotations

from _thread import allocate_lock
from contextlib import AbstractContextManager

Found = tuple[str, int]
"""The digest of the tables that were verified, and the kernel's nf_tables generation then."""


class VerifiedGeneration:
    """What the threads of one process share (those of several: ``engine.shared``)."""

    def __init__(self) -> None:
        self._lock: AbstractContextManager[object] = allocate_lock()
        self._found: Found | None = None

    @property
    def lock(self) -> AbstractContextManager[object]:
        """Held from reading ``found`` to the end of the survey or transaction that follows."""
        return self._lock

    @property
    def found(self) -> Found | None:
        return self._found

    @found.setter
    def found(self, found: Found | None) -> None:
        self._found = found
