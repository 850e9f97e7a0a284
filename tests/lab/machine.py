"""A private machine for a container runtime: its own network, mounts, processes and cgroups."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from lab import roots
from lab.commands import Outcome, run
from lab.plugins import ROOT

# The root of another release, from layers that are not changed; all that is written is in memory.
_PIVOT = """
mount -t tmpfs -o mode=0755 tmpfs /run
mkdir /run/root /run/top /run/work
mount -t overlay overlay -o "lowerdir=$1,upperdir=/run/top,workdir=/run/work" /run/root
mkdir -p "/run/root$2"
mount --bind "$2" "/run/root$2"
cd /run/root
mount -t proc proc proc
mount -t sysfs sysfs sys
mount --rbind /dev dev
mkdir old
pivot_root . old
umount -l /old
rmdir /old
shift 2
"""
_PREPARE = """
mount -t tmpfs -o mode=0755 tmpfs /run
mkdir -p /run/netns /run/lock
mount --bind /run/netns /run/netns
mount --make-shared /run/netns
for folder in /etc/cni /etc/containers /opt/cni /opt/containerd \\
    /var/lib/cni /var/lib/weft /var/log/weft /var/lib/containers /var/lib/containerd; do
    mkdir -p $folder
    mount -t tmpfs -o mode=0755 tmpfs $folder
done
mkdir -p /etc/cni/net.d
# A runtime looks here as well, and would not say whose plugin it found.
[ ! -d /usr/lib/cni ] || mount -t tmpfs tmpfs /usr/lib/cni
! mountpoint -q /sys/fs/cgroup || umount -R /sys/fs/cgroup
ip link set lo up
"""
# crun refuses a hybrid hierarchy; runc needs cgroup v1 with its controllers, if mounted.
_UNIFIED = "mount -t cgroup2 cgroup2 /sys/fs/cgroup\n"
CONTROLLERS = """
mount -t tmpfs tmpfs /sys/fs/cgroup
mounted=
for controller in devices memory pids cpu cpuacct cpuset freezer blkio; do
    mkdir /sys/fs/cgroup/$controller
    if mount -t cgroup -o $controller cgroup /sys/fs/cgroup/$controller 2>/dev/null; then mounted=1
    else rmdir /sys/fs/cgroup/$controller; fi
done
[ -n "$mounted" ] || { umount /sys/fs/cgroup; mount -t cgroup2 cgroup2 /sys/fs/cgroup; }
"""
# Process 1: reaps children as init does, and exits, with all processes, when its stdin is closed.
_FIRST = """
import signal, sys
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
print("ready", flush=True)
sys.stdin.read()
"""

_CLEAN = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/root", "LC_ALL": "C.UTF-8"}

APPLETS = ("sh", "ip", "ping", "sleep", "cat", "wget", "httpd", "nc", "nslookup", "hostname")


class Machine:
    """Runs commands until ``close``; then the kernel kills all remaining processes.

    With ``layers`` (``lab.roots``) its root is another release's, in which the files of ``shared`` are
    this machine's.
    """

    def __init__(self, *, controllers: bool = False, layers: Sequence[Path] = (), shared: Path = Path("/mnt")) -> None:
        self.python = "/usr/bin/python3" if layers else sys.executable
        self.weft_folder = Path(roots.PLACE) if layers else ROOT
        self._environment = _CLEAN if layers else None
        pivot, arguments = (_PIVOT, (":".join(map(str, layers)), str(shared))) if layers else ("", ())
        script = pivot + _PREPARE + (CONTROLLERS if controllers else _UNIFIED) + 'exec "$@"'
        flags = ("--net", "--mount", "--pid", "--propagation", "private", "--mount-proc", "--fork", "--kill-child")
        self._process = subprocess.Popen(
            ("unshare", *flags, "--", "sh", "-euc", script, "sh", *arguments, self.python, "-ISc", _FIRST),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=self._environment,
        )
        assert self._process.stdout is not None
        if self._process.stdout.readline() != b"ready\n":
            _, error = self._process.communicate(timeout=5)
            raise AssertionError(f"the private machine could not be made: {error.decode()}")
        self.first = _child(self._process.pid)

    def close(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.first, signal.SIGKILL)
        self._process.communicate(timeout=20)

    def _command(self, argv: Sequence[str]) -> tuple[str, ...]:
        return ("nsenter", f"--target={self.first}", "--net", "--mount", "--pid", "--", *argv)

    def run(
        self,
        *argv: str,
        check: bool = True,
        timeout: float = 60,
        stdin: str = "",
        environment: Mapping[str, str] | None = None,
    ) -> Outcome:
        given = self._environment if environment is None else environment
        return run(*self._command(argv), check=check, timeout=timeout, stdin=stdin, environment=given)

    def start(self, *argv: str, log: Path) -> None:
        """Start a daemon; it is killed with the machine."""
        with log.open("wb") as file:
            process = subprocess.Popen(
                self._command(argv), stdin=subprocess.DEVNULL, stdout=file, stderr=file, env=self._environment
            )
        process.returncode = 0  # not waited for: it is killed with the machine

    def weft(self, *argv: str) -> Outcome:
        """The command ``weft``, which may fail."""
        return self.run(f"{self.weft_folder}/bin/weft", *argv, check=False)

    def write(self, path: str, text: str) -> None:
        """Write a file inside the machine."""
        self.run("sh", "-c", 'mkdir -p "$(dirname "$1")" && cat >"$1"', "sh", path, stdin=text)

    def files(self, folder: str) -> list[str]:
        """All regular files under a folder, sorted; none if it is missing."""
        return sorted(self.run("sh", "-c", f"find {folder} -type f 2>/dev/null || :").stdout.split())

    def links(self) -> list[str]:
        """The names of the machine's links."""
        return sorted(link["ifname"] for link in self.run("ip", "-j", "link", "show").json)

    def until(self, *argv: str, timeout: float = 20) -> Outcome:
        """Repeat a command until it succeeds; its last outcome otherwise."""
        deadline = time.monotonic() + timeout
        while True:
            outcome = self.run(*argv, check=False)
            if outcome.code == 0 or time.monotonic() >= deadline:
                return outcome
            time.sleep(0.1)


def _child(parent: int) -> int:
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            # Field 4 is the parent; field 2 may contain any character, so search for the last
            # bracket.
            if int(path.read_text().rpartition(")")[2].split()[1]) == parent:
                return int(path.parent.name)
    raise AssertionError(f"process {parent} has no child")


def make_root(folder: Path) -> Path:
    """A container's root file system: busybox with links for its commands, and a web page."""
    for name in ("bin", "proc", "sys", "dev", "etc", "tmp", "run", "www"):
        (folder / name).mkdir(parents=True)
    busybox = shutil.which("busybox")
    assert busybox, "busybox is missing: bin/setup --test installs it"
    shutil.copy(busybox, folder / "bin" / "busybox")
    for name in APPLETS:
        (folder / "bin" / name).symlink_to("busybox")
    (folder / "www" / "index.html").write_text("weft was here\n")
    return folder
