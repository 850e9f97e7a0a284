"""A key-value store with etcd's semantics, and its embedded implementation."""

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
