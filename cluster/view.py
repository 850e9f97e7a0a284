"""What the store says of the cluster's overlay networks: read once, then followed; kept in a file, so that a
host starts while no store answers.
"""

from __future__ import annotations

import base64
import json
import logging
from collections.abc import Mapping
from dataclasses import replace

from cluster import records
from cluster.blocks import Blocks
from cluster.records import Ask, Block, DecodeError, Member, Network
from store import Batch, Entry, Range
from weft import files

log = logging.getLogger(__name__)

MOST_LOST = 0.2
"""Of the other hosts' records, how many may be missing in a list that is read anew."""
_FEW = 4
_FORMAT = 1
_MOST_BYTES = 1 << 30
_Value = Network | Block | Member | Ask


class View:
    """Networks, blocks and members, by key; ``revision`` is what they were read at, 0 from a file."""

    def __init__(self) -> None:
        self.revision = 0
        self.version = 0
        """Counts the changes."""
        self.damaged: dict[str, str] = {}
        """Keys that cannot be decoded, with the reason: what networks and blocks said before is kept, others are
        ignored.
        """
        self.held: dict[str, Entry | None] = {}
        """Keys that the store lacks or has in an older state, with that, and that are kept as they were."""
        self.doubted = False
        """Whether the store was older than what was known, or had lost much."""
        self.removed: set[str] = set()
        """Networks that have been removed since the store was read."""
        self._entries: dict[str, Entry] = {}
        self._values: dict[str, _Value] = {}

    # Reading

    def networks(self) -> dict[str, Network]:
        return {one.name: one for one in self._values.values() if isinstance(one, Network)}

    def network(self, name: str) -> Network | None:
        found = self._values.get(records.network_key(name))
        return found if isinstance(found, Network) else None

    def blocks(self, network: Network) -> Blocks:
        prefix = records.blocks_prefix(network.name)
        found = [one for key, one in self._values.items() if key.startswith(prefix) and isinstance(one, Block)]
        return Blocks(network, tuple(sorted(found, key=lambda one: (one.created, one.subnet.version))))

    def members(self, network: str) -> dict[str, Member]:
        found = (one for one in self._values.values() if isinstance(one, Member))
        return {one.node: one for one in found if one.network == network}

    def member(self, node: str, network: str) -> Member | None:
        found = self._values.get(records.member_key(node, network))
        return found if isinstance(found, Member) else None

    def sharing(self, network: Network) -> list[Member]:
        """Those that have blocks: the record of a node that was removed stays, its blocks do not."""
        owners, members = self.blocks(network).owners(), self.members(network.name)
        return [one for node, one in members.items() if node in owners]

    def undecoded(self, network: str) -> dict[str, str]:
        """The hosts whose record of how they take part is invalid, with the reason."""
        prefix, end = records.member_key("", "").rstrip("/") + "/", f"/{network}"
        found = {key: why for key, why in self.damaged.items() if key.startswith(prefix) and key.endswith(end)}
        return {key.removeprefix(prefix).removesuffix(end): why.partition(": ")[2] for key, why in found.items()}

    def unread(self) -> dict[str, str]:
        """The networks whose own record is invalid, with the reason."""
        prefix = records.network_key("")
        found = {key: why for key, why in self.damaged.items() if key.startswith(prefix)}
        return {key.removeprefix(prefix): why.partition(": ")[2] for key, why in found.items()}

    def wanted(self, network: str) -> dict[str, list[int]]:
        """The hosts that ask for a block, with the IP versions."""
        prefix = f"{records.ROOT}wanted/{network}/"
        found: dict[str, list[int]] = {}
        for key, entry in self._entries.items():
            if key.startswith(prefix):
                words = entry.value.decode("utf-8", "replace").split()
                found[key.removeprefix(prefix)] = [int(one) for one in words if one in ("4", "6")]
        return found

    def asks(self, network: str) -> list[Ask]:
        """What hosts ask of static addresses, the first one first."""
        prefix = records.asks_prefix(network)
        found = (one for key, one in self._values.items() if key.startswith(prefix) and isinstance(one, Ask))
        return sorted(found, key=lambda one: one.revision)

    def values_below(self, prefix: str) -> list[tuple[str, bytes]]:
        """The keys with a prefix, and their values as they are stored."""
        return [(key, entry.value) for key, entry in self._entries.items() if key.startswith(prefix)]

    def entry(self, key: str) -> Entry | None:
        return self._entries.get(key)

    # Following

    def load(self, found: Range, node: str = "") -> None:
        """Replace everything by what was read; but what is known and must not be believed to be gone is held
        (``held``): all that a store lacks which is older than what was known, or which lacks too many of the records
        of hosts other than ``node``; what such a store has in an older state; and always single blocks.

        A block that is gone may have been given back, or the store may be a restored one that has grown meanwhile: its
        host leases from it, and nobody else may claim it before that has said so again.
        """
        there = {one.key: one for one in found.entries}
        missing = [one for one in self._entries.values() if one.key not in there]
        older = [one for one in self._entries.values()
                 if one.key in there and there[one.key].mod_revision < one.mod_revision]  # fmt: skip
        newest = max((one.mod_revision for one in self._entries.values()), default=0)
        regressed = bool(older) or found.revision < newest
        others = [key for key, one in self._values.items() if isinstance(one, Block | Member) and one.node != node]
        vanished = sum(key not in there for key in others)
        self.doubted = regressed or vanished > max(MOST_LOST * len(others), _FEW)
        if not self.doubted:
            missing = [one for one in missing if self._is_block_of(one.key, there)]
        # Its owner may have written it again already, and no change will follow.
        older = [one for one in older if there[one.key].value != one.value]
        self.held = {one.key: there.get(one.key) for one in (*missing, *older)}
        entries, values = self._entries, self._values
        self._entries, self._values, self.damaged, self.removed = {}, {}, {}, set()
        for entry in (*missing, *found.entries, *older):
            self._put(entry, entries.get(entry.key), values.get(entry.key))
        self.revision = found.revision
        self.version += 1

    def _is_block_of(self, key: str, there: Mapping[str, Entry]) -> bool:
        """Whether it is the key of a block of a network that is the same in the store."""
        kind, name = key.removeprefix(records.ROOT).split("/")[:2] if key.count("/") > 4 else ("", "")
        known, now = self._entries.get(records.network_key(name)), there.get(records.network_key(name))
        return (
            kind == "block" and known is not None and now is not None and known.create_revision == now.create_revision
        )

    def drop_held(self) -> None:
        """Believe the store after all."""
        for key, entry in self.held.items():
            self._forget(key)
            if entry is not None:
                self._put(entry)
        self.held, self.doubted = {}, False
        self.version += 1

    def apply(self, batch: Batch) -> None:
        """Apply the changes of one revision."""
        for event in batch.events:
            self.held.pop(event.key, None)
            if (entry := event.entry) is not None:
                self._put(entry, self._entries.get(entry.key), self._values.get(entry.key))
            else:
                self._forget(event.key)
                kind, _, name = event.key.removeprefix(records.ROOT).partition("/")
                if kind == "network":
                    self.removed.add(name)
        self.revision = batch.revision
        self.version += 1

    def _forget(self, key: str) -> None:
        self._entries.pop(key, None)
        self._values.pop(key, None)
        self.damaged.pop(key, None)

    def _put(self, entry: Entry, before: Entry | None = None, known: _Value | None = None) -> None:
        """Note an entry. ``known`` is what it said ``before``: invalid records of a network or of its blocks change
        nothing, neither on hosts nor between them, until they are valid again or removed.
        """
        self._entries[entry.key] = entry
        self._values.pop(entry.key, None)
        self.damaged.pop(entry.key, None)
        try:
            value = records.decode(entry)
        except DecodeError as error:
            self.damaged[entry.key] = str(error)
            log.error("invalid: %s", error)
            if before is None or before.create_revision != entry.create_revision:
                return
            # With the revision of what is there, so that it can be replaced.
            value = replace(known, revision=entry.mod_revision) if isinstance(known, Network | Block) else None
        if value is not None:
            self._values[entry.key] = value

    # The file

    def save(self, path: str) -> None:
        """Write it to a file, with what is kept instead of invalid records. Raises StateDamaged. May be called in
        another thread than what changes it.
        """
        entries, values, damaged = [*self._entries.values()], [*self._values.items()], {*self.damaged}
        kept = {key: records.encode(one) for key, one in values if key in damaged}
        found = [
            [one.key, base64.b64encode(kept.get(one.key, one.value)).decode(), one.create_revision, one.mod_revision,
             one.version]
            for one in entries
        ]  # fmt: skip
        text = json.dumps({"format": _FORMAT, "revision": self.revision, "entries": found})
        files.write(path, text.encode(), "the list of the cluster's networks", durable=True)

    def restore(self, path: str) -> bool:
        """Read the file, if there is one that can be used; whether there was."""
        try:
            found = json.loads(files.read(path, _MOST_BYTES))
            if found["format"] != _FORMAT:
                raise ValueError(f"format {found['format']}")
            entries = [
                Entry(str(key), base64.b64decode(value), int(created), int(modified), int(version))
                for key, value, created, modified, version in found["entries"]
            ]
        except FileNotFoundError:
            return False
        except (OSError, ValueError, KeyError, TypeError) as error:
            log.error("ignored: %s: %s", path, error)
            return False
        self.load(Range(tuple(entries), 0))
        self.held = {}
        return True
