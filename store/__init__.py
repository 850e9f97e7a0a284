"""A small key-value interface, and the engines behind it: a file of this host (``embedded``)."""

from __future__ import annotations

from store.interface import (
    Batch,
    Compacted,
    Compare,
    Delete,
    Entry,
    Event,
    Invalid,
    LeaseGone,
    Operation,
    Outcome,
    Put,
    Range,
    Store,
    StoreError,
    Unavailable,
)

__all__ = [
    "Batch",
    "Compacted",
    "Compare",
    "Delete",
    "Entry",
    "Event",
    "Invalid",
    "LeaseGone",
    "Operation",
    "Outcome",
    "Put",
    "Range",
    "Store",
    "StoreError",
    "Unavailable",
]
