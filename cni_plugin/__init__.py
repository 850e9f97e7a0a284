"""Attach containers to networks: the CNI engine of weft."""

__version__ = "0.1.0"
