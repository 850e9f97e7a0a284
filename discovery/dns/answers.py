"""Answers as bytes, ready to be put behind any query that asks for them."""

from __future__ import annotations

import random
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

from discovery.dns import codec
from discovery.dns.codec import NOERROR, NXDOMAIN

MAX_ROTATED_RECORDS = 8
ROTATIONS = 12
"""Of answers with so many records at most, about so many orders are prepared; others are shuffled for each client."""


@dataclass(frozen=True, slots=True)
class AnswerRecord:
    """A record of an answer, and the additional records that explain it; they are sent together or not at all."""

    record: bytes
    extras: tuple[bytes, ...] = ()


@dataclass(frozen=True, slots=True)
class PreparedAnswer:
    """The answer to one question.

    ``chain``: the CNAMEs that come first, and ``target`` where they lead if that is not answered yet. ``counts`` and
    ``counts_edns`` are the header's counts, and ``rests`` all behind the question in several orders, one of which is
    sent; none if there are so many records that each answer is put together.
    """

    code: int = NOERROR
    units: tuple[AnswerRecord, ...] = ()
    chain: tuple[bytes, ...] = ()
    authority: bytes = b""
    target: bytes = b""
    counts: bytes = b""
    counts_edns: bytes = b""
    rests: tuple[bytes, ...] = ()


def prepare(
    code: int = NOERROR,
    units: Iterable[AnswerRecord] = (),
    *,
    chain: tuple[bytes, ...] = (),
    authority: bytes = b"",
    target: bytes = b"",
) -> PreparedAnswer:
    """A Prepared with all that can be made in advance. Units that are the same are one."""
    found = tuple(dict.fromkeys(units))
    if len(found) > MAX_ROTATED_RECORDS or target:
        return PreparedAnswer(code, found, chain, authority, target)
    rests = []
    extras: dict[bytes, None] = {}
    for order in _rotations(found):
        extras = dict.fromkeys(extra for unit in order for extra in unit.extras)
        rests.append(b"".join((*chain, *(unit.record for unit in order), authority, *extras)))
    numbers = (1, len(found) + len(chain), int(bool(authority)))
    return PreparedAnswer(
        code,
        found,
        chain,
        authority,
        target,
        b"".join(each.to_bytes(2, "big") for each in (*numbers, len(extras))),
        b"".join(each.to_bytes(2, "big") for each in (*numbers, len(extras) + 1)),
        tuple(rests),
    )


def _rotations(units: Sequence[AnswerRecord]) -> list[list[AnswerRecord]]:
    """The orders in which the units are sent: at random, but each comes first as often as any other."""
    if len(units) < 2:
        return [list(units)]
    orders = []
    for _ in range(-(-ROTATIONS // len(units))):
        for first in units:
            others = [unit for unit in units if unit is not first]
            random.shuffle(others)
            orders.append([first, *others])
    return orders


def fit(prepared: PreparedAnswer, room: int, limit: int = 0) -> tuple[bytes, tuple[int, int, int], bool]:
    """Records in a new order, as many as fit: their bytes, the counts of the three sections, and whether all are there.

    ``room`` is in bytes, behind the question; ``limit`` units at most are wanted, 0 for all. A first unit that does not
    fit with its additional records comes without them. Source: RFC 2181 section 9.
    """
    units = list(prepared.units)
    if len(units) > 1:
        random.shuffle(units)
    if limit:
        del units[limit:]
    room -= sum(map(len, prepared.chain)) + len(prepared.authority)
    records: list[bytes] = []
    extras: dict[bytes, None] = {}
    whole = room >= 0
    for unit in units if whole else ():
        more = [extra for extra in unit.extras if extra not in extras]
        size = len(unit.record) + sum(map(len, more))
        if size > room:
            if records or len(unit.record) > room:
                whole = False
                break
            more, size = [], len(unit.record)
        room -= size
        records.append(unit.record)
        extras.update(dict.fromkeys(more))
    if not whole and not records:
        return b"", (0, 0, 0), False
    body = b"".join((*prepared.chain, *records, prepared.authority, *extras))
    return body, (len(records) + len(prepared.chain), int(bool(prepared.authority)), len(extras)), whole


def negative(name: bytes, zone: bytes, exists: bool) -> PreparedAnswer:
    """No such name (NXDOMAIN), or no such record of it, with the zone's SOA. Source: RFC 2308.

    The zone must be the end of the name; both in lower case.
    """
    return _negative(len(name) - len(zone), exists, int(time.time()))


def soa_authority(offset: int, serial: int) -> bytes:
    """The SOA of a zone whose name begins so many bytes within the name of the question."""
    pointer = (0xC000 | codec.HEADER_LENGTH + offset).to_bytes(2, "big")
    names = (b"\x02ns" + pointer, b"\x0ahostmaster" + pointer)
    return codec.soa_record(pointer, 0, names, (serial & 0xFFFFFFFF, 3600, 600, 86400, 0))


@lru_cache(512)
def _negative(offset: int, exists: bool, serial: int) -> PreparedAnswer:
    return prepare(NOERROR if exists else NXDOMAIN, authority=soa_authority(offset, serial))
