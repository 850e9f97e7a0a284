"""Debian's package in roots of Debian 12 and 13: installed, upgraded under running containers, removed, purged."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from cni_plugin.cli import manual
from lab import roots
from lab.machine import Machine

FOLDERS = ("etc", "opt", "run", "usr", "var")
LOGS = ("/var/lib/dpkg/", "/var/log/", "/var/cache/")
# Calls of a runtime, one after the other, while packages are exchanged; stops when the file is removed.
CALLS = """
while [ -e /run/go ]; do
    if weft attach blue c3 >/dev/null 2>>/run/errors && weft detach blue c3 >/dev/null 2>>/run/errors; then echo good
    else echo bad; fi
done >/run/calls
echo end >>/run/calls
"""
PINGS = """
ip netns exec c1 ping -q -i0.05 -W1 $0 >/run/pings &
while [ -e /run/go ]; do sleep 0.1; done
kill -INT $!
"""
RUNNING = "cat /proc/[0-9]*/cmdline | tr '\\0' '\\n' | grep /usr/lib/weft/releases || :"


LATER = pytest.param("bare-trixie", marks=pytest.mark.long(sampled=False))


@pytest.fixture(scope="module", params=["bare-bookworm", LATER])
def release(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def packages(release: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The package, and one of the next revision."""
    first, second = roots.build_package(release, tmp_path_factory.mktemp("packages"), "1", "2")
    return first, second


@pytest.fixture
def machine(release: str, packages: tuple[Path, Path]) -> Iterator[Machine]:
    made = Machine(layers=(roots.root(release),), shared=packages[0].parent)
    try:
        yield made
    finally:
        made.close()


def state(machine: Machine) -> set[str]:
    """All files but dpkg's own and logs, the links, and the rules."""
    found = machine.run("find", *(f"/{folder}" for folder in FOLDERS), "-xdev").stdout.splitlines()
    files = {line for line in found if not line.startswith(LOGS) and "__pycache__" not in line}
    return files | set(machine.links()) | set(machine.run("nft", "list", "ruleset").stdout.splitlines())


def address(machine: Machine, name: str) -> str:
    found = machine.run("ip", "-n", name, "-j", "-4", "address", "show", "eth0").json
    return str(found[0]["addr_info"][0]["local"])


def reaches(machine: Machine, name: str, other: str) -> bool:
    return machine.until("ip", "netns", "exec", name, "ping", "-qc1", "-W1", other).code == 0


def test_installed_upgraded_removed_and_purged(machine: Machine, packages: tuple[Path, Path]) -> None:
    first, second = (str(package) for package in packages)
    before = state(machine)
    machine.run("dpkg", "-i", first, timeout=120)
    assert machine.run("weft", "--version").stdout.startswith("weft ")
    assert machine.run("weft", "version", "--json").json["parts"][0]["part"] == "weft"
    for page in ("weft", "weft-network", "weft-kv"):
        assert ".SH NAME" in machine.run("zcat", f"/usr/share/man/man1/{page}.1.gz").stdout
    assert machine.run("ls", "/usr/share/doc/weft/examples/weft.toml", "/usr/share/doc/weft/README.md")
    for path in manual.COMPLETIONS.values():
        assert "_WEFT_COMPLETE" in machine.run("cat", f"/usr/share/{path}").stdout
    machine.run("weft", "network", "create", "blue", "--subnet", "10.88.0.0/24", "--names")
    for name in ("c1", "c2", "c3"):
        machine.run("ip", "netns", "add", name)
    for name in ("c1", "c2"):
        machine.run("weft", "attach", "blue", name)
    peer = address(machine, "c2")
    assert reaches(machine, "c1", peer)
    assert machine.run("weft", "status", check=False).code == 0

    # An upgrade: no call fails, no ping is lost, and all parts are the new release's afterwards.
    machine.run("touch", "/run/go")
    machine.start("sh", "-c", CALLS, log=Path("/dev/null"))
    machine.start("sh", "-c", PINGS, peer, log=Path("/dev/null"))
    machine.run("sh", "-c", "until [ -s /run/calls ]; do sleep 0.1; done")
    machine.run("dpkg", "-i", second, timeout=120)
    machine.run("sh", "-c", "n=$(wc -l </run/calls); until [ $(wc -l </run/calls) -gt $((n + 2)) ]; do sleep 0.1; done")
    machine.run("rm", "/run/go")
    machine.run("sh", "-c", "until grep -q end /run/calls; do sleep 0.1; done")
    lost = machine.until("grep", "-o", "[0-9]* packets transmitted.*", "/run/pings").stdout
    assert " 0% packet loss" in lost, lost
    calls = machine.run("cat", "/run/calls", "/run/errors").stdout
    assert "bad" not in calls and calls.count("good") >= 3, calls
    assert machine.run("weft", "check", check=False).code == 0
    running = machine.run("sh", "-c", RUNNING).stdout
    assert "-2/" in running and "-1/" not in running, running
    # What was called before the upgrade may still run.
    assert machine.run("ls", "/usr/lib/weft/releases").stdout.split() == [
        package.name.split("_")[1] for package in packages
    ]

    # Without weft containers keep their networks, and another installation takes them over.
    said = machine.run("dpkg", "--remove", "weft", timeout=120).stdout
    assert said.count("left attachment") == 2 and "apt purge" not in said
    assert machine.run("sh", "-c", "command -v weft", check=False).code
    assert reaches(machine, "c1", peer)
    machine.run("dpkg", "-i", second, timeout=120)
    assert machine.run("weft", "check", check=False).code == 0
    for name in ("c1", "c2"):
        machine.run("weft", "detach", "blue", name)
    machine.run("weft", "network", "rm", "blue")
    for name in ("c1", "c2", "c3"):
        machine.run("ip", "netns", "del", name)
    machine.run("rm", "-f", "/run/calls", "/run/errors", "/run/pings")
    machine.run("dpkg", "--purge", "weft", timeout=120)
    assert sorted(state(machine) - before) == []
