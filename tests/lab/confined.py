"""Run programs with the privileges that a systemd unit leaves them."""

from __future__ import annotations

from pathlib import Path

from lab.plugins import ROOT

_CAPABILITIES = {
    "CAP_DAC_OVERRIDE": 1, "CAP_NET_BIND_SERVICE": 10, "CAP_NET_ADMIN": 12, "CAP_NET_RAW": 13, "CAP_SYS_PTRACE": 19,
    "CAP_SYS_ADMIN": 21,
}  # fmt: skip
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
    kept = ",".join(str(_CAPABILITIES[name]) for name in line.partition("=")[2].split())
    assert "NoNewPrivileges=yes" in text
    assert "MemoryDenyWriteExecute=yes" in text
    return [str(ROOT / ".venv/bin/python"), "-Ic", _PROGRAM, kept, *command]
