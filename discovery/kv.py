"""Consul's key-value store: keys and encoding in the store.

``/weft/v2/kv/KEY`` is a line of JSON (flags, lock session) followed by the raw value.
``/weft/v2/hold/ID/KEY`` lists the keys that a session has locked. ``/weft/v2/delay/KEY``, bound to
a lease, is a lock delay.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

from discovery.layout import ROOT
from store import Entry

KV_PREFIX = ROOT + "kv/"
LOCK_PREFIX = ROOT + "hold/"
LOCK_DELAY_PREFIX = ROOT + "delay/"


@dataclass(frozen=True, slots=True)
class KVPair:
    """A key and its value. ``session`` holds its lock; ``delay`` (seconds) and ``behavior`` are
    those of that session.
    """

    key: str
    value: bytes = b""
    flags: int = 0
    session: str = ""
    lock_index: int = 0
    delay: float = 0.0
    behavior: str = "release"
    create_index: int = 0
    modify_index: int = 0

    @property
    def comparable(self) -> tuple[object, ...]:
        """All fields but the indexes; writing equal content is a no-op."""
        return (self.value, self.flags, self.session, self.lock_index)


def encode_pair(pair: KVPair) -> bytes:
    """Encode a pair for the store."""
    head: dict[str, object] = {}
    if pair.flags:
        head["flags"] = pair.flags
    if pair.lock_index:
        head["locks"] = pair.lock_index
    if pair.session:
        head |= {"session": pair.session, "delay": pair.delay, "behavior": pair.behavior}
    return (json.dumps(head, separators=(",", ":")).encode() if head else b"") + b"\n" + pair.value


def decode_pair(entry: Entry) -> KVPair:
    """Decode a pair. Raises ValueError."""
    head, line, value = entry.value.partition(b"\n")
    if not line:
        raise ValueError(f"{entry.key} is not a key-value pair")
    try:
        return _pair(entry, json.loads(head) if head else {}, value)
    except (AttributeError, TypeError, OverflowError, RecursionError) as error:
        raise ValueError(f"{entry.key} is not a key-value pair: {error}") from None


def _pair(entry: Entry, found: dict[str, str | int | float], value: bytes) -> KVPair:
    return KVPair(
        key=entry.key.removeprefix(KV_PREFIX),
        value=value,
        flags=int(found.get("flags", 0)),
        session=str(found.get("session", "")),
        lock_index=int(found.get("locks", 0)),
        delay=float(found.get("delay", 0.0)),
        behavior=str(found.get("behavior", "release")),
        create_index=entry.create_revision,
        modify_index=entry.mod_revision,
    )
