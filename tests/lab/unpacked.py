"""Debian packages that are unpacked and never installed: overlays of /usr and /etc in a machine."""

from __future__ import annotations

import functools
import hashlib
import shutil
import tempfile
from pathlib import Path
from typing import Protocol

from lab.commands import Outcome, run
from lab.guest.image import alone, cache

FIREWALLS = ("docker.io", "ufw", "firewalld")


@functools.cache
def unpack(*packages: str) -> Path:
    """A directory with the files of packages, and of those that they need and this machine lacks.

    They are downloaded on first use: 40 MB for ``FIREWALLS``.
    """
    simulated = run("apt-get", "--simulate", "install", "--no-install-recommends", *packages).stdout
    needed = sorted(line.split()[1] for line in simulated.splitlines() if line.startswith("Inst "))
    # One that is installed after all is used as well: its state must not be this machine's.
    needed = sorted({*needed, *packages})
    folder = cache()
    folder.mkdir(mode=0o755, parents=True, exist_ok=True)
    kept = folder / f"unpacked-{hashlib.sha256(repr(needed).encode()).hexdigest()[:12]}"
    with alone(folder / "lock-unpacked"):
        if not kept.is_dir():
            work = Path(tempfile.mkdtemp(dir=folder, prefix="new-"))
            try:
                run("sh", "-c", 'cd "$1" && shift && exec apt-get download "$@"', "sh", str(work), *needed, timeout=600)
                root = work / "root"
                for archive in sorted(work.glob("*.deb")):
                    run("dpkg-deb", "-x", str(archive), str(root), timeout=120)
                if (root / "lib").is_dir():  # ufw's, where this machine has a link to usr/lib
                    shutil.copytree(root / "lib", root / "usr" / "lib", dirs_exist_ok=True, symlinks=True)
                root.rename(kept)
            finally:
                shutil.rmtree(work, ignore_errors=True)
    return kept


class Runs(Protocol):
    """A machine that runs commands."""

    def run(self, *argv: str) -> Outcome: ...


def overlay(machine: Runs, files: Path) -> None:
    """Lay the files over the machine's /usr and /etc; what is written to /etc is in memory."""
    script = """
mount -t overlay overlay -o "lowerdir=$1/usr:/usr" /usr
mkdir -p /run/etc && mount -t tmpfs tmpfs /run/etc && mkdir /run/etc/top /run/etc/work
mount --rbind /etc/cni /mnt
mount -t overlay overlay -o "lowerdir=$1/etc:/etc,upperdir=/run/etc/top,workdir=/run/etc/work" /etc
mount --rbind /mnt /etc/cni
umount -l /mnt
"""
    machine.run("sh", "-euc", script, "sh", str(files))
