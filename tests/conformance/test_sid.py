"""The newest nftables, iptables and iproute2: what weft does with them, in a Debian sid root.

Run by hand before a release: ``bin/test conformance --sid``. The tests are those of the netns tier.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator

import pytest

from lab.machine import Machine
from lab.plugins import ROOT
from lab.roots import PLACE, layers

pytestmark = pytest.mark.sid
FILES = (
    "rules", "kernel", "test_bridge.py", "test_delete.py", "test_firewall.py", "test_firewalls.py", "test_iptables.py",
    "test_isolation.py", "test_masquerade.py", "test_portmap.py", "test_ptp.py", "test_spoofing.py",
)  # fmt: skip


@pytest.fixture(scope="module")
def sid(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    """A machine with this checkout and its tests in a sid root."""
    folder = tmp_path_factory.mktemp("sid")
    found = layers("sid", folder)
    place = folder / "top" / PLACE[1:]
    shutil.copytree(ROOT / "tests", place / "tests", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", place)
    made = Machine(layers=found)
    yield made
    made.close()


@pytest.mark.parametrize("file", FILES)
def test_netns(sid: Machine, file: str) -> None:
    libraries = sid.run("sh", "-c", f"echo {PLACE}/.venv/lib/python3*/site-packages").stdout.strip()
    pytest_of_root = f"tests/private python3 -m pytest -q -p no:cacheprovider tests/netns/{file}"
    command = f"cd {PLACE} && PYTHONPATH={libraries} exec {pytest_of_root}"
    done = sid.run("sh", "-c", command, check=False, timeout=1500)
    assert done.code == 0, done.stdout[-8000:] + done.stderr[-2000:]


def test_versions(sid: Machine) -> None:
    """The versions that were tested, for the record: nftables 1.1.7 was the first to need it."""
    major, minor, patch = map(int, sid.run("nft", "--version").stdout.split()[1].lstrip("v").split(".")[:3])
    assert (major, minor, patch) >= (1, 1, 7)
