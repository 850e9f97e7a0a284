"""The daemons confine themselves as their systemd units do; what is denied fails with EPERM."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from weft.capabilities import AGENT, ENGINE, SPAWNER, Capability

ROOT = Path(__file__).resolve().parents[2]
UNITS = {"engine": (ENGINE, 5.0), "docker": (ENGINE, 5.0), "agent": ((*AGENT, *SPAWNER), 3.5)}
"""Capabilities, and the exposure level of ``systemd-analyze security``, which docs/internals.md explains."""

PROGRAM = """
import ctypes, errno, os, socket, subprocess, sys, threading
sys.path.insert(0, sys.argv[1])
from weft import confinement
from weft.capabilities import AGENT
ctypes.CDLL(confinement._LIBRARY)
confinement.confine(AGENT)
libc = ctypes.CDLL(None, use_errno=True)
for call in (("mount", b"x", b"/mnt", b"tmpfs", 0, None), ("unshare", 0x20000), ("ptrace", 16, 1, None, None),
             ("personality", 0x40000), ("chmod", sys.executable.encode(), 0o4755), ("setns", 0, 0),
             ("sched_setscheduler", 0, 1, ctypes.byref(ctypes.c_int(1))), ("swapoff", b"/x")):
    assert libc[call[0]](*call[1:]) == -1 and ctypes.get_errno() == errno.EPERM, call
for family in (socket.AF_PACKET, 38, 40):
    try:
        socket.socket(family, socket.SOCK_RAW)
    except OSError as error:
        assert error.errno == errno.EPERM, (family, error)
    else:
        raise AssertionError(family)
for family in (socket.AF_UNIX, socket.AF_INET, socket.AF_INET6):
    socket.socket(family, socket.SOCK_STREAM).close()
thread = threading.Thread(target=os.getpid)
thread.start()
thread.join()
with open("/proc/self/status") as file:
    wanted = ("CapEff", "CapInh", "NoNewPrivs", "Seccomp:")
    lines = dict(line.split(None, 1) for line in file if line.startswith(wanted))
assert not int(lines["CapEff:"], 16) & ~sum(1 << one for one in AGENT), lines
assert (int(lines["CapInh:"], 16), int(lines["NoNewPrivs:"]), int(lines["Seccomp:"])) == (0, 1, 2), lines
assert subprocess.run(["true"]).returncode == 0
"""


def test_a_confined_process_works_and_cannot_do_more() -> None:
    done = subprocess.run([sys.executable, "-Ic", PROGRAM, str(ROOT)], capture_output=True, text=True, check=False)
    if "cannot open shared object" in done.stderr:
        pytest.skip("no libseccomp here: a daemon then has only its capabilities and no_new_privs")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", UNITS)
def test_the_units_have_the_same_capabilities(name: str) -> None:
    text = (ROOT / "conf/systemd" / f"weft-{name}.service").read_text()
    (line,) = [line for line in text.splitlines() if line.startswith("CapabilityBoundingSet=")]
    found = {Capability[word.removeprefix("CAP_")] for word in line.partition("=")[2].split()}
    assert found == set(UNITS[name][0])


@pytest.mark.parametrize("name", UNITS)
def test_the_units_exposure(name: str) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("no systemd-analyze here")
    threshold = f"--threshold={round(UNITS[name][1] * 10)}"
    argv = ["systemd-analyze", "security", "--offline=true", "--no-pager", threshold]
    done = subprocess.run(
        [*argv, str(ROOT / "conf/systemd" / f"weft-{name}.service")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-400:] + done.stderr
