"""The pairs of Consul's key-value store, as they lie in ours.

``/weft/v1/kv/KEY`` holds a line of JSON (flags, the session that holds the lock) and then the value as it came.
``/weft/v1/session/ID`` is a session, bound to a lease if it has a TTL; ``/weft/v1/hold/ID/KEY`` names the keys that it
holds, and ``/weft/v1/delay/KEY``, bound to a lease, keeps a key from being locked for a while.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

from discovery.layout import ROOT
from store import Entry

KV_PREFIX = ROOT + "kv/"
SESSION_PREFIX = ROOT + "session/"
LOCK_PREFIX = ROOT + "hold/"
LOCK_DELAY_PREFIX = ROOT + "delay/"


@dataclass(frozen=True, slots=True)
class KVPair:
    """A key and its value. ``session`` holds its lock; ``delay`` (seconds) and ``behavior`` are that session's."""

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
        """All but the indexes: writing the same again is no change."""
        return (self.value, self.flags, self.session, self.lock_index)


def encode_pair(pair: KVPair) -> bytes:
    """A pair as it is stored."""
    head: dict[str, object] = {}
    if pair.flags:
        head["flags"] = pair.flags
    if pair.lock_index:
        head["locks"] = pair.lock_index
    if pair.session:
        head |= {"session": pair.session, "delay": pair.delay, "behavior": pair.behavior}
    return (json.dumps(head, separators=(",", ":")).encode() if head else b"") + b"\n" + pair.value


def decode_pair(entry: Entry) -> KVPair:
    """The reverse. Raises ValueError for what is no pair of weft's."""
    head, line, value = entry.value.partition(b"\n")
    if not line:
        raise ValueError(f"{entry.key} holds no pair")
    found = json.loads(head) if head else {}
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
