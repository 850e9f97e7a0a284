"""Run programs with the privileges that a systemd unit leaves them."""

from __future__ import annotations

from pathlib import Path

from lab.plugins import ROOT
from weft.capabilities import Capability

_PROGRAM = """
import ctypes, os, sys
prctl = ctypes.CDLL(None, use_errno=True).prctl
for number in range(64):
    if str(number) not in sys.argv[1].split(","):
        prctl(24, number, 0, 0, 0)
assert prctl(38, 1, 0, 0, 0) == 0
prctl(65, 1, 0, 0, 0)
os.execv(sys.argv[2], sys.argv[2:])
"""
"""Capability bounding set, no new privileges, from Linux 6.3 on no writable executable memory."""


def confined(unit: Path, *command: str) -> list[str]:
    """Wrap a command to run as in the unit; raises AssertionError if the unit is less strict."""
    text = unit.read_text()
    (line,) = [line for line in text.splitlines() if line.startswith("CapabilityBoundingSet=")]
    kept = ",".join(str(int(Capability[name.removeprefix("CAP_")])) for name in line.partition("=")[2].split())
    assert "NoNewPrivileges=yes" in text
    assert "MemoryDenyWriteExecute=yes" in text
    return [str(ROOT / ".venv/bin/python"), "-Ic", _PROGRAM, kept, *command]
