"""Cache of upstream servers' replies, by TTL and within a bound of memory."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

from discovery.dns import codec
from discovery.dns.codec import NOERROR, NXDOMAIN, OPT
from discovery.dns.rrtypes import SOA

MAX_REPLIES = 10_000
MAX_BYTES = 16 << 20
MAX_TTL = 3600
MAX_NEGATIVE_TTL = 300
"""Upper bounds in seconds. Source: RFC 2308 section 5, RFC 8767 section 4."""
_OVERHEAD = 600


@dataclass(frozen=True, slots=True)
class CachedReply:
    """A reply without OPT. ``ttls`` are offsets and values of its TTLs, ``seconds`` its cache
    lifetime.
    """

    message: bytes
    ttls: tuple[tuple[int, int], ...]
    seconds: int

    def aged(self, seconds: int) -> bytes:
        """The reply with its TTLs reduced by ``seconds``."""
        if seconds <= 0:
            return self.message
        changed = bytearray(self.message)
        for at, ttl in self.ttls:
            changed[at : at + 4] = max(ttl - seconds, 0).to_bytes(4, "big")
        return bytes(changed)


def parse_reply(message: bytes) -> CachedReply:
    """Parse a received reply completely. Raises Malformed.

    OPT and everything behind it (TSIG) is removed, as it is hop-by-hop.
    """
    places: list[tuple[int, int]] = []
    lowest = MAX_TTL
    negative = -1
    counts = [0, 0, 0]
    answers = 0
    start = end = codec.HEADER_LENGTH + len(codec.question_bytes(message))
    code = message[3] & 15
    for one in codec.decode_records(message):
        if one.type == OPT:
            code |= (message[one.ttl_at]) << 4
            end = start
            break
        start = one.end
        counts[one.section - 1] += 1
        answers += one.section == 1
        places.append((one.ttl_at, one.ttl))
        lowest = min(lowest, one.ttl)
        if one.section == 2 and one.type == SOA:
            negative = min(one.ttl, int.from_bytes(message[one.end - 4 : one.end], "big"), MAX_NEGATIVE_TTL)
    else:
        end = len(message)
    if code == NXDOMAIN or (code == NOERROR and not answers):
        seconds = min(negative, lowest)
    else:
        seconds = lowest if code == NOERROR else 0
    head = message[:4] + b"\0\1" + b"".join(each.to_bytes(2, "big") for each in counts)
    return CachedReply(head + message[codec.HEADER_LENGTH : end], tuple(places), max(seconds, 0))


class ReplyCache:
    """An LRU cache of replies. Times in seconds of any monotonic clock."""

    def __init__(self) -> None:
        self._entries: OrderedDict[bytes, tuple[CachedReply, float]] = OrderedDict()
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: bytes, now: float) -> bytes | None:
        """The cached reply with current TTLs; None on a miss."""
        found = self._entries.get(key)
        if found is None:
            return None
        reply, since = found
        if now - since >= reply.seconds:
            self._evict(key)
            return None
        self._entries.move_to_end(key)
        return reply.aged(int(now - since))

    def put(self, key: bytes, reply: CachedReply, now: float) -> None:
        """Cache a reply, unless its lifetime is 0."""
        self._evict(key)
        if reply.seconds <= 0:
            return
        self._entries[key] = (reply, now)
        self._bytes += len(reply.message) + len(key) + _OVERHEAD
        while len(self._entries) > MAX_REPLIES or self._bytes > MAX_BYTES:
            self._evict(next(iter(self._entries)))

    def _evict(self, key: bytes) -> None:
        found = self._entries.pop(key, None)
        if found is not None:
            self._bytes -= len(found[0].message) + len(key) + _OVERHEAD
