"""Operation tokens: a transaction whose reply was lost is sent again, and applied once.

A transaction in flight has a slot, a key that only it writes, and that it sets with everything else.
It requires the slot to have the revision known from the one before. If it was applied, that is no
longer so, and the slot has its token; if another token is there, an abandoned transaction was applied
late, and this one was not. The keys remain, for the next transactions of this host: there are as many
of them as it ever had transactions in flight at a time.
"""

from __future__ import annotations

import asyncio
import secrets
from dataclasses import dataclass

MOST = 64
"""Transactions in flight; etcd is not faster with more."""


@dataclass(slots=True)
class Slot:
    """A key for tokens, and its revision as last seen."""

    key: bytes
    revision: int = 0


class Slots:
    """The slots of one open store."""

    def __init__(self, prefix: str) -> None:
        self._prefix = prefix
        self._free: list[Slot] = []
        self._made = 0
        self._available = asyncio.Semaphore(MOST)
        self._run = secrets.token_bytes(8)
        self._tokens = 0

    def key(self, number: int) -> bytes:
        return f"{self._prefix}{number}".encode()

    def token(self) -> bytes:
        """A value that no other transaction has."""
        self._tokens += 1
        return self._run + self._tokens.to_bytes(8, "big")

    async def take(self) -> Slot:
        """A slot for one transaction; waits until there is one."""
        await self._available.acquire()
        if not self._free:
            self._free.append(Slot(self.key(self._made)))
            self._made += 1
        return self._free.pop()

    def give_back(self, slot: Slot) -> None:
        """The transaction has ended, or is abandoned."""
        self._free.append(slot)
        self._available.release()
