"""The way of a packet through this host, computed from what the kernel holds: for ``weft trace``."""
