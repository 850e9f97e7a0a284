"""Answers encoded in advance, so that the reply to a cached question is a join of byte strings."""

from __future__ import annotations

import random
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

from discovery.dns import codec
from discovery.dns.codec import NOERROR, NXDOMAIN
from discovery.dns.rrtypes import SOA, soa_rdata

MAX_ROTATED_RECORDS = 8
ROTATIONS = 12
"""Answers of up to MAX_ROTATED_RECORDS are encoded in about ROTATIONS orders; larger ones are
shuffled per reply.
"""


@dataclass(frozen=True, slots=True)
class AnswerRecord:
    """A record of the answer section, and its additional records; a truncated reply has both or
    neither.
    """

    record: bytes
    additional: tuple[bytes, ...] = ()


@dataclass(frozen=True, slots=True)
class PreparedAnswer:
    """The answer to one question.

    ``cnames`` are the CNAME records that come first, ``target`` where they lead if that is still to
    be resolved. ``bodies`` is everything behind the question in several orders, one of which is
    sent; () if there are too many records for that. ``counts`` and ``counts_edns`` are the header's
    four counts without and with OPT.
    """

    rcode: int = NOERROR
    records: tuple[AnswerRecord, ...] = ()
    cnames: tuple[bytes, ...] = ()
    authority: bytes = b""
    target: bytes = b""
    counts: bytes = b""
    counts_edns: bytes = b""
    bodies: tuple[bytes, ...] = ()


def prepare(
    rcode: int = NOERROR,
    records: Iterable[AnswerRecord] = (),
    *,
    cnames: tuple[bytes, ...] = (),
    authority: bytes = b"",
    target: bytes = b"",
) -> PreparedAnswer:
    """Encode an answer as far as possible. Duplicate records are dropped (RFC 2181 section 5)."""
    unique = tuple(dict.fromkeys(records))
    if len(unique) > MAX_ROTATED_RECORDS or target:
        return PreparedAnswer(rcode, unique, cnames, authority, target)
    bodies = []
    additional: dict[bytes, None] = {}
    for order in _rotations(unique):
        additional = dict.fromkeys(extra for each in order for extra in each.additional)
        bodies.append(b"".join((*cnames, *(each.record for each in order), authority, *additional)))
    counts = (1, len(unique) + len(cnames), int(bool(authority)))
    return PreparedAnswer(
        rcode,
        unique,
        cnames,
        authority,
        target,
        b"".join(each.to_bytes(2, "big") for each in (*counts, len(additional))),
        b"".join(each.to_bytes(2, "big") for each in (*counts, len(additional) + 1)),
        tuple(bodies),
    )


def _rotations(records: Sequence[AnswerRecord]) -> list[list[AnswerRecord]]:
    """Random orders in which every record comes first equally often."""
    if len(records) < 2:
        return [list(records)]
    orders = []
    for _ in range(-(-ROTATIONS // len(records))):
        for first in records:
            others = [each for each in records if each is not first]
            random.shuffle(others)
            orders.append([first, *others])
    return orders


def fit(answer: PreparedAnswer, room: int, limit: int = 0) -> tuple[bytes, tuple[int, int, int], bool]:
    """As many records as fit, shuffled: their bytes, the counts of the three sections, and whether
    none was cut.

    ``room`` is in bytes, behind the question; ``limit`` is the most records wanted, 0 for all. If
    not even the first fits with its additional records, it goes without them. Source: RFC 2181
    section 9.
    """
    shuffled = list(answer.records)
    if len(shuffled) > 1:
        random.shuffle(shuffled)
    if limit:
        del shuffled[limit:]
    room -= sum(map(len, answer.cnames)) + len(answer.authority)
    records: list[bytes] = []
    additional: dict[bytes, None] = {}
    complete = room >= 0
    for each in shuffled if complete else ():
        new = [extra for extra in each.additional if extra not in additional]
        size = len(each.record) + sum(map(len, new))
        if size > room:
            if records or len(each.record) > room:
                complete = False
                break
            new, size = [], len(each.record)
        room -= size
        records.append(each.record)
        additional.update(dict.fromkeys(new))
    if not complete and not records:
        return b"", (0, 0, 0), False
    body = b"".join((*answer.cnames, *records, answer.authority, *additional))
    return body, (len(records) + len(answer.cnames), int(bool(answer.authority)), len(additional)), complete


def negative(name: bytes, zone: bytes, exists: bool) -> PreparedAnswer:
    """NODATA if the name exists, else NXDOMAIN, with the zone's SOA. Source: RFC 2308.

    The name, in lower case, must end in the zone's.
    """
    return _negative(len(name) - len(zone), exists, int(time.time()))


def soa_authority(offset: int, serial: int) -> bytes:
    """The SOA record of the zone whose name begins at this offset within the question's name."""
    pointer = (0xC000 | codec.HEADER_LENGTH + offset).to_bytes(2, "big")
    return codec.encode_record(pointer, SOA, 0, soa_rdata(b"\x02ns" + pointer, b"\x0ahostmaster" + pointer, serial))


@lru_cache(512)
def _negative(offset: int, exists: bool, serial: int) -> PreparedAnswer:
    return prepare(NOERROR if exists else NXDOMAIN, authority=soa_authority(offset, serial))
