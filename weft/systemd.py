"""systemd: whether it runs on this host, and systemctl."""

from __future__ import annotations

import os

from weft import inherited, processes
from weft.errors import WeftError

UNITS = "/etc/systemd/system"
"""The administrator's units, and weft's where no package has them."""
_ENVIRONMENT = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
_SECONDS = 90.0  # a unit's stop may take its TimeoutStopSec


def is_running() -> bool:
    """Whether systemd is this host's service manager. Source: sd_booted(3)."""
    return os.path.isdir(inherited.SYSTEMD)


def control(*words: str) -> str:
    """Run ``systemctl`` with these arguments; what it prints. Raises WeftError, with what it says."""
    command = f"systemctl {' '.join(words)}"
    try:
        done = processes.run(["systemctl", *words], b"", environment=_ENVIRONMENT, timeout=_SECONDS)
    except (OSError, TimeoutError) as error:
        raise WeftError(f"cannot run {command}: {error}") from None
    if done.status:
        said = done.errors.decode("utf-8", "replace").strip()
        raise WeftError(f"{command} failed: {said or f'exit status {done.status}'}", hint=f"journalctl -u {words[-1]}")
    return done.output.decode("utf-8", "replace").strip()
