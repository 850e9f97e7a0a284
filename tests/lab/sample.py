"""Which part of the long tests a run takes, chosen by the commit.

A CI run takes a sample of what would need hours; ``bin/test long`` takes all of it. The sample of a
commit is always the same, so a failure can be repeated, and other commits take other parts.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SEED = "WEFT_TEST_SEED"
"""Environment variable: the seed of the sample instead of the commit."""


@cache
def seed() -> str:
    """WEFT_TEST_SEED, or the checked out commit, or ``weft`` outside a git checkout."""
    if chosen := os.environ.get(SEED):
        return chosen
    command = ("git", "-c", f"safe.directory={ROOT}", "-C", str(ROOT), "rev-parse", "HEAD")
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return "weft"
    return done.stdout.strip() or "weft"


def offset(name: str, every: int) -> int:
    """A number below ``every`` that depends on the name and the seed."""
    digest = hashlib.sha256(f"{seed()} {name}".encode()).digest()
    return int.from_bytes(digest[:8], "big") % every


def taken(name: str, every: int) -> bool:
    """Whether this run takes the test: one of ``every``."""
    return offset(name, every) == 0
