"""Where the agent's configuration is."""

from __future__ import annotations

import os

PATH = "/etc/weft/weft.toml"


def named() -> str:
    """The file that ``WEFT_CONFIG`` names, "" if it names none."""
    return os.environ.get("WEFT_CONFIG", "")


def path() -> str:
    """The file that is read: the one that is ``named``, else ``PATH``."""
    return named() or PATH
