"""The names weft answers to that are no driver's or feature's: its own, and those of IPAM plugins."""

from __future__ import annotations

OWN_NAME = "weft"
"""The name under which the configuration's ``driver`` says what to do."""

IPAM = {"host-local": True, "static": True, "dhcp": False}
"""The reference IPAM plugins that weft is, and whether each reads CNI_ARGS."""

NETAVARK_DRIVERS = ("overlay", "host")
"""Drivers that podman finds by their own names, as plugins of netavark: ``podman network create -d overlay``."""
