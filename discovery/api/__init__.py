"""Consul's HTTP API over the catalog, the registry and the store."""

from __future__ import annotations

from discovery.api.server import Api
from discovery.api.settings import Settings

__all__ = ["Api", "Settings"]
