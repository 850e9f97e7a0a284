"""How the executable starts: one execve, no influence of the environment, no bytecode, no hang."""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lab.commands import run
from lab.host import Host
from lab.plugins import OWN_FOLDER, ROOT, Cni

CONF: dict[str, Any] = {
    "cniVersion": "1.0.0",
    "name": "launched",
    "type": "bridge",
    "bridge": "br-launched",
    "isGateway": True,
    "ipMasq": True,
    "ipam": {"type": "host-local", "ranges": [[{"subnet": "10.71.0.0/24"}]]},
}
TRAPS = ("json", "re", "ipaddress", "dataclasses", "cni_plugin", "ipam", "sitecustomize", "usercustomize", "encodings")


@pytest.fixture
def cni() -> Cni:
    """Always weft's own plugins, since the launcher in bin/cni is tested."""
    return Cni(OWN_FOLDER)


@pytest.fixture
def container(host: Host) -> Iterator[str]:
    yield host.container("c1")


@pytest.mark.parametrize("command", ["ADD", "DEL"])
def test_a_call_starts_no_other_process(cni: Cni, container: str, tmp_path: Path, command: str) -> None:
    if command == "DEL":
        cni.add(CONF, container)
    trace = tmp_path / "trace"
    calls = "trace=execve,execveat,fork,vfork,clone,clone3"
    outcome = run(
        "strace", "-f", "-qq", "-o", str(trace), "-e", calls, str(OWN_FOLDER / "bridge"),
        stdin=json.dumps(CONF), environment=cni.environment(command, netns=container), check=False, timeout=60,
    )  # fmt: skip
    assert outcome.code == 0, outcome
    lines = [line for line in trace.read_text().splitlines() if "exited" not in line and "+++" not in line]
    started = [line for line in lines if re.match(r"\d+ +execve", line)]
    # The client is Python, or execs it; no other process is started.
    assert 1 <= len(started) <= 2, lines
    assert len({line.split()[0] for line in started}) == 1, lines
    # Threads do not count: they share the address space.
    forked = [line for line in lines if re.match(r"\d+ +(v?fork|clone3?)\(", line) and "CLONE_THREAD" not in line]
    assert forked == []


def test_callers_environment_loads_no_module(cni: Cni, container: str, tmp_path: Path) -> None:
    """Modules in the working directory, PYTHONPATH, user site-packages, and PYTHONSTARTUP."""
    sprung = tmp_path / "sprung"
    home = tmp_path / "home"
    traps = f"open({str(sprung)!r}, 'a').write(__name__ + '\\n')\nraise SystemExit(77)\n"
    version = run(str(ROOT / ".venv/bin/python"), "-Ic", "import sys; print('python%d.%d' % sys.version_info[:2])")
    user = home / ".local" / "lib" / version.stdout.strip() / "site-packages"
    folders = [tmp_path / "cwd", tmp_path / "pythonpath", user]
    for folder in folders:
        folder.mkdir(parents=True)
        for name in TRAPS:
            (folder / f"{name}.py").write_text(traps)
    (user / "trap.pth").write_text(f"import os; open({str(sprung)!r}, 'a').write('pth')\n")
    (home / "startup.py").write_text(traps)
    extra = {
        "HOME": str(home),
        "PYTHONPATH": str(tmp_path / "pythonpath"),
        "PYTHONSTARTUP": str(home / "startup.py"),
        "PYTHONHOME": str(tmp_path / "pythonpath"),
        "PYTHONUSERBASE": str(home / ".local"),
        "PYTHONINSPECT": "1",
        "PYTHONWARNINGS": "error",
        "PYTHONBREAKPOINT": "json.trap",
        "PYTHONPYCACHEPREFIX": str(tmp_path / "cache"),
        "VIRTUAL_ENV": str(tmp_path),
        "LANG": "C",
    }
    for command in ("VERSION", "ADD", "DEL"):
        outcome = cni(command, CONF, netns=container, extra=extra, folder=str(tmp_path / "cwd"))
        assert outcome.code == 0, outcome
        assert outcome.stderr == ""
    assert not sprung.exists(), sprung.read_text()
    assert not (tmp_path / "cache").exists()


def test_python_without_isolation_loads_the_modules(tmp_path: Path) -> None:
    """Proves that the test above can fail: without -I, Python imports them."""
    (tmp_path / "json.py").write_text("raise SystemExit(77)\n")
    python = str(ROOT / ".venv/bin/python")
    assert run(python, "-c", "import json", environment={"PYTHONPATH": str(tmp_path)}, check=False).code == 77
    assert run(python, "-Ic", "import json", environment={"PYTHONPATH": str(tmp_path)}, check=False).code == 0


def test_no_bytecode_is_written(cni: Cni, container: str) -> None:
    def caches() -> dict[str, int]:
        folders = (ROOT / name for name in ("bin", "cni_plugin", "ipam"))
        return {str(path): path.stat().st_mtime_ns for folder in folders for path in folder.rglob("*.pyc")}

    before = caches()
    assert before, "bin/setup compiles the sources"
    cni.add(CONF, container)
    cni.delete(CONF, container)
    assert caches() == before


@pytest.mark.parametrize("kind", ["fifo", "file", "folder", "missing", "socket", "device"])
@pytest.mark.parametrize("command", ["ADD", "CHECK", "DEL"])
def test_netns_path_that_is_no_namespace_does_not_hang(
    host: Host, cni: Cni, tmp_path: Path, kind: str, command: str
) -> None:
    path = tmp_path / "netns"
    match kind:
        case "fifo":
            os.mkfifo(path)
        case "file":
            path.write_text("")
        case "folder":
            path.mkdir()
        case "socket":
            os.mknod(path, 0o140600)
        case "device":
            path = Path("/dev/tty")
    before = host.snapshot()
    started = time.monotonic()
    outcome = cni(command, {**CONF, "prevResult": {"cniVersion": "1.0.0", "ips": []}}, netns=str(path), timeout=20)
    assert time.monotonic() - started < 10
    if command == "DEL":
        assert (outcome.code, outcome.stdout) == (0, ""), outcome
    else:
        assert outcome.code == 1
        assert outcome.json["code"] == (8 if command == "ADD" else outcome.json["code"])
    assert host.changes(before, within=0.5) == []


def test_bin_cni_is_a_plugin_directory(cni: Cni) -> None:
    """Each name in bin/cni answers VERSION under its own name, also through a symlink elsewhere."""
    names = {path.name for path in OWN_FOLDER.iterdir()}
    assert {"weft", "bridge", "ptp", "loopback", "portmap", "host-local", "static"} <= names
    for name in sorted(names):
        outcome = cni("VERSION", {"cniVersion": "1.0.0"}, plugin=name)
        assert outcome.code == 0, outcome
        assert "1.1.0" in outcome.json["supportedVersions"]
        bare = run(str(OWN_FOLDER / name), environment={}, check=False)
        assert (bare.code, bare.stdout) == (0, "")
        assert bare.stderr.startswith(f"CNI {name} plugin v"), bare
