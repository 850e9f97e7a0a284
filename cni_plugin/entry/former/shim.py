"""Where the scripts that weft 0.1 installed look for ``entry.shim``."""

from cni_plugin.entry.shim import main

__all__ = ["main"]
