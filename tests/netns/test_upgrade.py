"""An upgrade under load: containers attached by the previous release, its code replaced between
calls.

The previous release is taken from this repository's history and installed beside this one. The
runtime's plugin directory is a symbolic link, as ``/opt/cni/bin`` may be, which the upgrade
replaces.
"""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
import sysconfig
import tarfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from lab.commands import run
from lab.confs import pool, port
from lab.ground import rest
from lab.host import Host
from lab.plugins import OWN_FOLDER, ROOT, Cni
from lab.waiting import BRIEFLY, until

PREVIOUS = "a86859cc"
"""The commit of the previous release."""

ENGINE = {"WEFT_ENGINE": "auto", "WEFT_ENGINE_IDLE": "120"}
EVERYWHERE = [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}]
LOADERS = 3
SETTLED = 3  # calls of each loader before and after the replacement

INSTALL = """
import subprocess, sys, os
root, folder, libraries, interpreter = sys.argv[1:]
sys.path.insert(0, root)
from cni_plugin import installation, shim_build
run = lambda command: subprocess.run(command, capture_output=True).returncode == 0
client = root + "/cni_plugin/client"
if not shim_build.compile_client(client, run):
    open(client, "wb").close()
scripts = os.path.join(root, "scripts")
os.makedirs(scripts)
made = installation.Installation(interpreter, root, (libraries,), scripts)
installation.make(folder, made, installation.compiled_client(), replace=True)
"""
"""What ``bin/setup`` of the previous release does, with the libraries of this checkout."""


def network(name: str, number: int, **keys: Any) -> dict[str, Any]:
    """A network of type ``weft``: closed, masqueraded, with published ports and all checks."""
    return {
        "cniVersion": "1.1.0",
        "name": name,
        "type": "weft",
        "driver": "bridge",
        "bridge": f"b-{name}",
        "isDefaultGateway": True,
        "ipMasq": True,
        "portmap": {},
        "ipam": pool(f"10.{number}.0.0/24", f"fd00:{number}::/64", routes=EVERYWHERE),
        **keys,
    }


SHOP = network("shop", 91)
DEN = network("den", 92, ipMasq=False, internal=True, hostAccess="dns", portIsolation=True)
LOAD = network("load", 93, names={})
PTP = {
    "cniVersion": "1.1.0", "name": "pairs", "type": "ptp", "ipMasq": True,
    "ipam": pool("10.94.0.0/24", routes=EVERYWHERE),
}  # fmt: skip
STANDING = {
    "web": {
        **SHOP,
        "runtimeConfig": {"portMappings": [port(8080, 80), port(8053, 53, "udp"), port(8081, 80, address="127.0.0.1")]},
    },
    "db": SHOP,
    "cell": DEN,
    "far": PTP,
}
"""The containers that the previous release attached."""


@pytest.fixture(scope="module")
def previous(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The plugin directory of the previous release."""
    root = tmp_path_factory.mktemp("previous")
    archive = subprocess.run(
        ["git", "-C", str(ROOT), "archive", PREVIOUS], capture_output=True, timeout=120, check=True
    ).stdout
    with tarfile.open(fileobj=io.BytesIO(archive)) as packed:
        packed.extractall(root)  # our own archive
    folder = root / "bin" / "cni"
    interpreter = os.path.realpath(sys.executable)
    run(
        interpreter,
        "-I",
        "-c",
        INSTALL,
        str(root),
        str(folder),
        sysconfig.get_path("purelib"),
        interpreter,
        timeout=120,
    )
    return folder


@dataclass
class Loader:
    """ADD and DEL of one container after another, through the link, until it is stopped."""

    cni: Cni
    name: str
    path: str
    calls: int = 0
    failures: list[str] = field(default_factory=list)
    stopping: threading.Event = field(default_factory=threading.Event)

    def run(self) -> None:
        number = 0
        while not self.stopping.is_set():
            number += 1
            container = f"{self.name}-{number}"
            for command in ("ADD", "DEL"):
                outcome = self.cni(command, LOAD, container, self.path, extra=ENGINE)
                self.calls += 1
                if outcome.code:
                    self.failures.append(f"{command} {container}: {outcome.stdout} {outcome.stderr}")


@dataclass
class Probe:
    """Repeats one request and records each unexpected answer."""

    host: Host
    client: str | None
    address: str
    port: int
    expected: bool
    timeout: float
    asked: int = 0
    wrong: list[float] = field(default_factory=list)
    stopping: threading.Event = field(default_factory=threading.Event)

    def run(self) -> None:
        while not self.stopping.is_set():
            began = time.monotonic()
            answered = self.host.fetch(self.client, self.address, self.port, timeout=self.timeout) is not None
            self.asked += 1
            if answered is not self.expected:
                self.wrong.append(began)


def processes() -> dict[int, str]:
    """The command lines of the processes in this network namespace."""
    here = os.stat("/proc/thread-self/ns/net").st_ino
    found = {}
    for process in filter(str.isdigit, os.listdir("/proc")):
        try:
            if os.stat(f"/proc/{process}/ns/net").st_ino == here:
                found[int(process)] = Path(f"/proc/{process}/cmdline").read_bytes().replace(b"\0", b" ").decode()
        except OSError:
            continue
    return found


def running(folder: Path) -> list[int]:
    """The processes that run the release in a directory."""
    return [process for process, line in processes().items() if str(folder) in line]


def tables() -> str:
    return run("nft", "list", "ruleset").stdout


def marked(ruleset: str, marks: set[str]) -> Counter[str]:
    """The number of elements with each of the marks."""
    return Counter(mark for mark in re.findall(r'comment "(weft:[0-9a-f]{16})"', ruleset) if mark in marks)


def attached(cni: Cni, paths: dict[str, str]) -> dict[str, Any]:
    return {name: cni.add(conf, paths[name], container=name, extra=ENGINE) for name, conf in STANDING.items()}


def started(works: list[Loader | Probe]) -> list[threading.Thread]:
    threads = [threading.Thread(target=work.run, daemon=True) for work in works]
    for thread in threads:
        thread.start()
    return threads


@pytest.fixture
def link(tmp_path: Path, previous: Path) -> Iterator[Path]:
    """The plugin directory as the runtime knows it: a symbolic link to the previous release."""
    path = tmp_path / "cni"
    path.symlink_to(previous)
    yield path


def replace(link: Path, folder: Path) -> None:
    new = link.with_name("cni.new")
    new.symlink_to(folder)
    os.replace(new, link)


def test_an_upgrade_under_load(host: Host, previous: Path, link: Path) -> None:
    old_root = previous.parents[1]
    lan = host.lan()
    cni = Cni(link)
    paths = {name: host.container(name) for name in (*STANDING, *(f"load{number}" for number in range(LOADERS)))}
    results = attached(cni, paths)
    until(lambda: running(old_root), what="an engine of the previous release")
    for name in ("web", "cell"):
        host.serve_tcp(name, 80)
    before = set(STANDING)
    cell = next(ip["address"].split("/")[0] for ip in results["cell"]["ips"])
    db = next(ip["address"].split("/")[0] for ip in results["db"]["ips"])
    host.serve_tcp("db", 80)

    marks = set(re.findall(r'comment "(weft:[0-9a-f]{16})"', tables()))
    elements = marked(tables(), marks)
    assert len(marks) > len(STANDING) and sum(elements.values()) > 40
    loaders = [Loader(cni, f"load{number}", paths[f"load{number}"]) for number in range(LOADERS)]
    probes = [
        Probe(host, "outside", lan.host, 8080, True, 10.0),
        Probe(host, None, "127.0.0.1", 8081, True, 10.0),
        Probe(host, "web", db, 80, True, 10.0),
        Probe(host, "web", cell, 80, False, BRIEFLY),
        Probe(host, "far", cell, 80, False, BRIEFLY),
    ]
    threads = started([*loaders, *probes])
    until(lambda: all(one.calls >= 2 * SETTLED for one in loaders), 60, "load")
    until(lambda: all(probe.asked >= SETTLED for probe in probes), 60, "traffic")

    replaced = time.monotonic()
    replace(link, OWN_FOLDER)
    # The first call of this release: the previous engine exits, and none of its processes is left.
    first = cni("CHECK", {**STANDING["db"], "prevResult": results["db"]}, "db", paths["db"], extra=ENGINE)
    assert (first.code, first.stdout) == (0, ""), first
    until(lambda: not running(old_root), 30, "the end of the previous release's processes")
    until(lambda: any("weft-engine" in line or "engine.main" in line for line in processes().values()), 60, "an engine")

    calls = {one.name: one.calls for one in loaders}
    until(lambda: all(one.calls >= calls[one.name] + 2 * SETTLED for one in loaders), 60, "calls of this release")
    for work in (*loaders, *probes):
        work.stopping.set()
    for thread in threads:
        thread.join(60)
    assert not [failure for one in loaders for failure in one.failures]
    wrong = {
        f"{probe.client} to {probe.address}:{probe.port}": [f"{when - replaced:+.3f} s" for when in probe.wrong]
        for probe in probes
        if probe.wrong
    }
    assert wrong == {}, "unexpected answers, by seconds since the replacement"
    assert not running(old_root)

    # This release owns what the previous one made: CHECK succeeds, and no old name is in the
    # ruleset.
    for name in before:
        cni.check(STANDING[name], results[name], paths[name], container=name, extra=ENGINE)
    ruleset = tables()
    assert marked(ruleset, marks) == elements
    for former in ("chain guard", "chain lending", "set stationed", "set same ", "set self4", "chain forwarding"):
        assert former not in ruleset, former
    assert "8080" in ruleset and "8053" in ruleset and "8081" in ruleset

    # A second ADD is refused, since the first one is on record; DEL leaves nothing.
    again = cni("ADD", STANDING["web"], "web", paths["web"], extra=ENGINE)
    assert again.code == 1 and "already attached" in again.stdout, again
    for name, conf in STANDING.items():
        cni.delete({**conf, "prevResult": results[name]}, paths[name], container=name, extra=ENGINE)
    for conf in (SHOP, DEN, LOAD, PTP):
        outcome = cni("GC", {**conf, "cni.dev/valid-attachments": []}, extra=ENGINE)
        assert outcome.code == 0, outcome
    for command in (("engine", "stop"), ("down",)):
        host.run(str(ROOT / "bin" / "weft"), *command)
    assert [line for line in rest(*paths.values()) if "/agent" not in line] == []


def test_calls_by_the_scripts_of_the_previous_release_reach_this_code(tmp_path: Path) -> None:
    """With new files and before bin/setup, the old scripts import the modules that they know."""
    for module in ("app", "shim"):
        program = (
            f"import sys; sys.path.insert(0, {str(ROOT)!r}); from cni_plugin.{module} import main; sys.exit(main())"
        )
        outcome = run(
            sys.executable, "-I", "-c", program, environment={"CNI_COMMAND": "VERSION"},
            stdin=json.dumps({"cniVersion": "1.0.0"}),
        )  # fmt: skip
        assert outcome.json["cniVersion"] == "1.0.0", outcome
