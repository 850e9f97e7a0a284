"""bin/setup names the packages of the system's package manager. Not run on those systems: only Debian is here."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

SETUP = Path(__file__).parents[2] / "bin" / "setup"


@pytest.mark.parametrize(
    ("manager", "expected"),
    [
        # Sources: Debian's packages; nftables.spec of Fedora and of openSUSE; main/nftables/APKBUILD of Alpine.
        ("apt-get", "libnftables1 nftables netbase iproute2 iputils-ping python3-venv"),
        ("dnf", "nftables iproute iputils python3"),
        ("zypper", "libnftables1 nftables iproute2 iputils python3"),
        ("apk", "nftables iproute2 iputils python3"),
    ],
)
def test_the_packages_of_each_package_manager(tmp_path: Path, manager: str, expected: str) -> None:
    for name in ("sh", "readlink"):
        (tmp_path / name).symlink_to(str(shutil.which(name)))
    (tmp_path / manager).write_text("#!/bin/sh\n")
    (tmp_path / manager).chmod(0o755)
    done = subprocess.run(
        [SETUP, "--packages"], env={"PATH": str(tmp_path)}, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == expected.split()
