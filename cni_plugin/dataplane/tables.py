"""Both tables of containers, which are installed and verified together."""

from __future__ import annotations

from cni_plugin.dataplane import frames, guard, packets
from weft.kernel.schema import Tables

TABLES = Tables((packets.TABLE, frames.TABLE), beside=(str(guard.TABLE),))
