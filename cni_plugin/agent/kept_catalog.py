"""The catalog in a file, as it was last known: read by an agent that starts while no store answers."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable

from discovery import layout
from discovery.catalog import modified
from discovery.structs import CatalogEntry
from store import Entry, Range
from weft import files
from weft.errors import StateDamaged

log = logging.getLogger(__name__)

_FORMAT = 1
_MOST_BYTES = 1 << 30


class KeptCatalog:
    """The file at ``path``; its methods block."""

    def __init__(self, path: str) -> None:
        self._path = path

    def save(self, values: Iterable[CatalogEntry], revision: int) -> None:
        """Write the entries of a revision; what prevents it is logged."""
        found = [[layout.store_key(one), layout.encode(one).decode(), one.create_index, modified(one)]
                 for one in values]  # fmt: skip
        text = json.dumps({"format": _FORMAT, "revision": revision, "entries": found}, separators=(",", ":"))
        try:
            files.write(self._path, text.encode(), "the catalog as it was last known", durable=True)
        except StateDamaged as error:
            log.warning("what is known of services is not kept: %s", error)

    def read(self) -> Range | None:
        """What was saved, None if there is nothing that can be used."""
        try:
            found = json.loads(files.read(self._path, _MOST_BYTES))
            if found["format"] != _FORMAT:
                raise ValueError(f"format {found['format']}")
            entries = (
                Entry(str(key), str(value).encode(), int(created), int(changed), 1)
                for key, value, created, changed in found["entries"]
            )
            return Range(tuple(entries), int(found["revision"]))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError) as error:
            log.error("ignored: %s: %s", self._path, error)
            return None
