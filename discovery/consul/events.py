"""Consul's user events: the last 256 are kept in the store, and every agent sees all of them.

The event with Lamport time N is at ``event/N modulo 256``. Source:
https://developer.hashicorp.com/consul/api-docs/event.
"""

from __future__ import annotations

import base64
import json
import uuid
from dataclasses import dataclass

from discovery.layout import ROOT
from store import Compare, Entry, Put, Store, Unavailable

EVENTS = ROOT + "event/"
KEPT = 256
MAX_PAYLOAD = 512
"""Bytes; Consul's gossip has the same order of limit."""
_LAST = ROOT + "eventlast"
_ATTEMPTS = 100


@dataclass(frozen=True, slots=True)
class UserEvent:
    """A user event. The three filters are kept for clients, and filter nothing (as in Consul, where
    they choose the nodes that keep the event).
    """

    id: str
    name: str
    payload: bytes
    node_filter: str = ""
    service_filter: str = ""
    tag_filter: str = ""
    time: int = 0

    def json(self, *, with_time: bool = True) -> dict[str, object]:
        """Consul's JSON."""
        return {
            "ID": self.id,
            "Name": self.name,
            "Payload": base64.b64encode(self.payload).decode() if self.payload else None,
            "NodeFilter": self.node_filter,
            "ServiceFilter": self.service_filter,
            "TagFilter": self.tag_filter,
            "Version": 1,
            "LTime": self.time if with_time else 0,
        }


def new_event(name: str, payload: bytes, node: str, service: str, tag: str) -> UserEvent:
    """An event with a new id, not fired yet."""
    return UserEvent(str(uuid.uuid4()), name, payload, node, service, tag)


async def fire(store: Store, event: UserEvent) -> None:
    """Store an event as the latest one. Raises StoreError."""
    for _ in range(_ATTEMPTS):
        last = await store.get(_LAST)
        time = int(last.value) + 1 if last is not None else 1
        value = {**event.json(), "LTime": time}
        writes = [
            Put(_LAST, str(time).encode()),
            Put(f"{EVENTS}{time % KEPT:03}", json.dumps(value, separators=(",", ":")).encode()),
        ]
        if (await store.transact([Compare(_LAST, "mod", last.mod_revision if last else 0)], writes)).succeeded:
            return
    raise Unavailable(f"event {event.name} could not be fired", hint="too many concurrent events; try again")


def listed(entries: tuple[Entry, ...], name: str) -> list[dict[str, object]]:
    """The events in the store, oldest first; with a name only those."""
    found: list[dict[str, object]] = [json.loads(entry.value) for entry in entries]
    return sorted((one for one in found if name in ("", one["Name"])), key=lambda one: str(one["LTime"]).zfill(20))
