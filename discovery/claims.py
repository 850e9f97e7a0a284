"""Which networks may add instances to a service: the one that offered it first, and others where all
of them share it.

A claim is a key for each network and node that has instances, bound to the node's lease, so that the
claims of a dead node end. A claim is made in a transaction that fails if another was made meanwhile.
"""

from __future__ import annotations

import json

from discovery import layout
from store import Compare, Delete, Entry, Operation, Put, Store, Unavailable

_ATTEMPTS = 20


class Claims:
    """The claims of one node in the ``shared`` store."""

    def __init__(self, node: str, shared: Store) -> None:
        self._node = node
        self._shared = shared

    async def claim(self, service: str, network: str, lease: int, *, shared: bool | None, force: bool = False) -> str:
        """Claim a service for a network; "" if it may add instances, else the network that has it.

        ``shared`` None keeps what was claimed before. ``force``: for instances that exist already.
        Raises LeaseGone, StoreError.
        """
        prefix, own = layout.offer_key(service), layout.offer_key(service, network, self._node)
        for _ in range(_ATTEMPTS):
            found = {entry.key: entry for entry in (await self._shared.range(prefix)).entries}
            last = found.pop(prefix, None)
            held = found.get(own)
            wanted = _is_shared(held) if shared is None else shared
            if not force and (other := _owner(found, service, network, shared=wanted)) is not None:
                return other
            if held is not None and held.lease == lease and _is_shared(held) == wanted:
                return ""
            unchanged = Compare(prefix, "mod", last.mod_revision if last is not None else 0)
            changes = [Put(prefix, b"{}", lease), Put(own, json.dumps({"shared": wanted}).encode(), lease)]
            if (await self._shared.transact((unchanged,), changes)).succeeded:
                return ""
        raise Unavailable(f"the claims to service {service} keep changing", hint="try again")

    def withdraw(self, service: str, network: str) -> Operation:
        """End a claim; a missing one is no error."""
        return Delete(layout.offer_key(service, network, self._node))


def _owner(found: dict[str, Entry], service: str, network: str, *, shared: bool) -> str | None:
    """The network whose claim forbids another's, None if none does."""
    claims = sorted(found.values(), key=lambda entry: entry.create_revision)
    others = [entry for entry in claims if _network(entry) != network]
    if not others or _network(claims[0]) == network or (shared and all(map(_is_shared, others))):
        return None
    return _network(claims[0])


def _network(entry: Entry) -> str:
    return layout.split_key(entry.key)[1][1]


def _is_shared(entry: Entry | None) -> bool:
    try:
        return entry is not None and json.loads(entry.value).get("shared") is True
    except (ValueError, AttributeError):
        return False
