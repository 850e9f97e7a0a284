"""What a service may ask for: how it is balanced and checked, and the limits on its registration.

Values alone, below both of those that read them: ``discovery`` from its clients' registrations, and the
feature ``names`` from network configurations.
"""

from __future__ import annotations

from enum import StrEnum


class Algorithm(StrEnum):
    """How a connection finds its instance; the value of the metadata key ``weft-balance``."""

    WEIGHTED = "weighted"
    RANDOM = "random"
    ROUND_ROBIN = "round-robin"
    SOURCE = "source"
    MAGLEV = "maglev"
    STICKY = "sticky"
    LEAST_CONNECTIONS = "least-connections"


NETWORK_CHECKS = ("http", "tcp", "udp")
"""The types of checks that are made at an interval, over the network."""

TTL_CHECK = "ttl"
"""The type of checks whose status the service itself reports, in time."""

MAX_CHECKS = 64
"""Checks in one request."""

MAX_WEIGHT = 65535
"""As in SRV records (RFC 2782)."""
