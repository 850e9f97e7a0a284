"""Where the scripts that weft 0.1 installed look for ``entry.call``."""

from cni_plugin.entry.call import main

__all__ = ["main"]
