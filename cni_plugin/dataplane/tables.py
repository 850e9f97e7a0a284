"""Both tables of containers, which are installed and verified together."""

from __future__ import annotations

from cni_plugin.dataplane import frames, guard, packets
from weft.kernel.interface import Ruleset
from weft.kernel.schema import Tables

TABLES = Tables((packets.TABLE, frames.TABLE), beside=tuple(map(str, guard.TABLES.values())))
_DYNAMIC = frozenset(name for name, shape in TABLES.shapes.items() if "dynamic" in shape.flags)


def in_use(rules: Ruleset) -> bool:
    """Whether the tables have elements, apart from what packets have added to a dynamic set."""
    return any(rules.elements(name) for name in rules.collections() if name not in _DYNAMIC)
