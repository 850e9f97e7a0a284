"""Run programs with the privileges and the view of files that a systemd unit leaves them."""

from __future__ import annotations

from pathlib import Path

from lab.plugins import ROOT
from weft.capabilities import Capability

_PROGRAM = """
import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)
BIND, REMOUNT, RDONLY, REC, SLAVE, SHARED = 4096, 32, 1, 1 << 14, 1 << 19, 1 << 20
def mount(source, target, kind, flags, data=None):
    if libc.mount(source, target.encode(), kind, ctypes.c_ulong(flags), data):
        raise OSError(ctypes.get_errno(), target)
if sys.argv[2] == "mounts":
    mount(None, "/run", None, SHARED | REC)  # as all mounts of a host are by systemd
    assert libc.unshare(0x20000) == 0
    mount(None, "/", None, SLAVE | REC)
    mount(None, "/", None, SHARED | REC)
    with open("/proc/self/mountinfo") as file:
        targets = [line.split()[4] for line in file]
    for target in targets:
        if not (target + "/").startswith(("/run/", "/var/lib/weft/", "/dev/", "/proc/", "/sys/")):
            mount(None, target, None, REMOUNT | BIND | RDONLY)
    mount(b"proc", "/proc", b"proc", 0, b"hidepid=invisible")
    for path in ("/etc", "/usr", "/var/lib/cni"):
        assert os.statvfs(path).f_flag & os.ST_RDONLY, path
    assert libc.unshare(0x04000000) == 0
for number in range(64):
    if str(number) not in sys.argv[1].split(","):
        libc.prctl(24, number, 0, 0, 0)
assert libc.prctl(38, 1, 0, 0, 0) == 0
libc.prctl(65, 1, 0, 0, 0)
os.umask(int(sys.argv[3], 8))
os.execv(sys.argv[4], sys.argv[4:])
"""
"""Capability bounding set, no new privileges, from Linux 6.3 on no writable executable memory; and the mount
and UTS namespaces of ProtectSystem=strict, ProtectProc=invisible and ProtectHostname.
"""


def confined(unit: Path, *command: str) -> list[str]:
    """Wrap a command to run as in the unit; raises AssertionError if the unit is less strict."""
    lines = unit.read_text().splitlines()
    (line,) = [line for line in lines if line.startswith("CapabilityBoundingSet=")]
    kept = ",".join(str(int(Capability[name.removeprefix("CAP_")])) for name in line.partition("=")[2].split())
    assert {"NoNewPrivileges=yes", "MemoryDenyWriteExecute=yes"} <= set(lines)
    mounts = "ProtectSystem=strict" in lines
    assert not mounts or {"ReadWritePaths=/run", "StateDirectory=weft", "ProtectProc=invisible"} <= set(lines)
    (umask,) = [line.partition("=")[2] for line in lines if line.startswith("UMask=")]
    python = str(ROOT / ".venv/bin/python")
    return [python, "-Ic", _PROGRAM, kept, "mounts" if mounts else "", umask, *command]
