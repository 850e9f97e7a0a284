#!/usr/bin/env python3
"""Run the test suites of Consul's clients against weft's agent: ``bin/test clients [SUITE...]``.

py-consul's and tooz's suites are the clients' own, from their source distributions on the package
index, unchanged but for the fixture that starts a server. npm consul and consulate are published
without their tests: npm_consul.cjs and consulate_methods.py call every method that they have. A
test that fails and is not in known_failures.toml is an error, and so is one that is there and
passes. ``patroni`` is failovers of two PostgreSQL nodes, ``proxies`` HAProxy and nginx. ``--sample``
runs what takes seconds. Needs root (tests/private), the package index, and ``bin/setup --clients``.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tomllib
import xml.etree.ElementTree as ET
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
BUILD = ROOT / "build" / "clients"


@dataclass(frozen=True, slots=True)
class Suite:
    """A client: the requirement whose source distribution has the tests, what they need beside it,
    the conftest.py that replaces or joins theirs, pytest's arguments, and the tests of a sample.
    """

    requirement: str
    needs: tuple[str, ...]
    conftest: str
    arguments: tuple[str, ...]
    sample: str


PATRONI = ("patroni[consul]==4.1.5", "psycopg2-binary")
SUITES = {
    "py-consul": Suite(
        "py-consul==1.8.0",
        ("pytest", "pytest-asyncio", "aiohttp"),
        "py_consul_conftest.py",
        ("tests", "-o", "addopts=", "-o", "asyncio_mode=auto"),
        "test_kv or test_session",
    ),
    "tooz": Suite(
        "tooz[consul]==6.3.0",
        ("pytest", "testtools", "fixtures", "ddt", "requests", "setuptools<81", "oslo.utils<8"),
        "tooz_conftest.py",
        ("tooz/tests/test_coordination.py",),
        "lock or leader",
    ),
}


@dataclass(frozen=True, slots=True)
class Methods:
    """A client without published tests: its requirement, and our script that calls its methods."""

    requirement: str
    script: str
    needs: tuple[str, ...] = ()


METHODS = {
    "npm-consul": Methods("consul@2.0.1", "npm_consul.cjs"),
    "consulate": Methods("consulate==0.6.0", "consulate_methods.py", ("setuptools<81",)),
}
LABS = ("patroni", "proxies")
PREVIOUS = "869076e"
"""A commit whose agent is replaced by today's while Patroni runs."""


def main(names: list[str]) -> int:
    """Run these suites, all by default; the exit status."""
    sample = names == ["--sample"]
    if sample:
        names = [*SUITES, *METHODS]
    known = tomllib.loads((HERE / "known_failures.toml").read_text())
    wrong = False
    for name in names or (*SUITES, *METHODS, *LABS):
        if name in LABS:
            wrong = (patroni() if name == "patroni" else proxies()) != 0 or wrong
            continue
        if name in METHODS:
            if name.startswith("npm") and shutil.which("npm") is None:
                print(f"{name}: not run, there is no npm")
                continue
            passed, failed, skipped = *call_methods(name, METHODS[name]), 0
        else:
            passed, failed, skipped = run(name, SUITES[name], sample=sample)
        failed -= known.get(f"{name}-busy", {}).keys()
        expected = {test: why for test, why in known.get(name, {}).items() if not sample or test in passed | failed}
        print(f"{name}: {len(passed)} of {len(passed) + len(failed)} pass, {skipped} skipped")
        for test in sorted(failed - expected.keys()):
            print(f"  fails: {test}")
        for test in sorted(expected.keys() - failed):
            print(f"  does not fail any more: {test}")
        wrong = wrong or failed != expected.keys()
    return int(wrong)


def patroni() -> int:
    """Patroni's failover; the exit status. Its environment has the system's Python, which user
    postgres can execute.
    """
    folder = BUILD / "patroni"
    python = folder / "venv" / "bin" / "python"
    if not (folder / "stamp").exists():
        shutil.rmtree(folder, ignore_errors=True)
        subprocess.run(["/usr/bin/python3", "-m", "venv", folder / "venv"], check=True)
        pip = [python, "-m", "pip", "--quiet", "--no-input", "--disable-pip-version-check", "install"]
        subprocess.run([*pip, *PATRONI], check=True)
        (folder / "stamp").touch()
    for file, name in (("agent.py", "weft_agent.py"), ("patroni_failover.py", "patroni_failover.py")):
        shutil.copy(HERE / file, folder / name)
    command = [ROOT / "tests" / "private", python, folder / "patroni_failover.py"]
    environment = {**os.environ, "WEFT": str(ROOT / "bin" / "weft"), "WEFT_PREVIOUS": previous_release()}
    return subprocess.run(command, env=environment, check=False, timeout=1800).returncode


def proxies() -> int:
    """HAProxy and nginx by SRV; the exit status. nginx is in a Debian sid root, which is built first."""
    folder = BUILD / "proxies"
    folder.mkdir(parents=True, exist_ok=True)
    for file, name in (("agent.py", "weft_agent.py"), ("proxies.py", "proxies.py")):
        shutil.copy(HERE / file, folder / name)
    libraries = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}
    build = [sys.executable, "-c", "from lab import roots; print(roots.root('sid'))"]
    root = subprocess.run(build, env=libraries, check=True, stdout=subprocess.PIPE, text=True, timeout=1800).stdout
    environment = {**libraries, "WEFT": str(ROOT / "bin" / "weft"), "NGINX_ROOT": root.strip()}
    command = [ROOT / "tests" / "private", sys.executable, folder / "proxies.py"]
    return subprocess.run(command, env=environment, check=False, timeout=600).returncode


def previous_release() -> str:
    """The executable of the commit PREVIOUS, unpacked; "" in a checkout without it."""
    folder = BUILD / PREVIOUS
    if not (folder / "bin/weft").exists():
        folder.mkdir(parents=True, exist_ok=True)
        archive = subprocess.run(["git", "-C", ROOT, "archive", PREVIOUS], stdout=subprocess.PIPE, check=False)
        if archive.returncode:
            print(f"patroni: not upgraded from {PREVIOUS}, which is not in this checkout")
            return ""
        subprocess.run(["tar", "-x", "-C", folder], input=archive.stdout, check=True)
        (folder / ".venv").symlink_to(ROOT / ".venv")
    return str(folder / "bin" / "weft")


def run(name: str, suite: Suite, *, sample: bool) -> tuple[set[str], set[str], int]:
    """The tests that pass, those that fail, and how many were skipped."""
    arguments = [*suite.arguments, *(("-k", suite.sample) if sample else ())]
    python, source = prepared(name, suite)
    shutil.copy(HERE / suite.conftest, source / "conftest.py")
    shutil.copy(HERE / "agent.py", source / "weft_agent.py")
    report = BUILD / f"{name}.xml"
    command = [ROOT / "tests" / "private", python, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    environment = {**os.environ, "WEFT": str(ROOT / "bin" / "weft")}
    with open(BUILD / f"{name}.log", "wb") as log:
        subprocess.run(
            [*command, f"--junitxml={report}", *arguments],
            cwd=source, env=environment, stdout=log, stderr=log, check=False, timeout=3600,
        )  # fmt: skip
    passed: set[str] = set()
    failed: set[str] = set()
    skipped = 0
    for case in ET.parse(report).iter("testcase"):
        test = ".".join([*case.get("classname", "").split(".")[-2:], case.get("name", "")])
        kinds = {child.tag for child in case}
        skipped += "skipped" in kinds
        if "skipped" not in kinds:
            (failed if kinds & {"failure", "error"} else passed).add(test)
    return passed - failed, failed, skipped


def call_methods(name: str, client: Methods) -> tuple[set[str], set[str]]:
    """The methods that do what they should, and those that do not."""
    folder = BUILD / name
    script = folder / client.script
    stamp = folder / "stamp"
    wanted = repr(client)
    if not stamp.exists() or stamp.read_text() != wanted:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        if name.startswith("npm"):
            (folder / "package.json").write_text("{}")
            command = ["npm", "install", "--silent", "--no-audit", "--no-fund", client.requirement]
            subprocess.run(command, cwd=folder, check=True, timeout=600)
        else:
            subprocess.run([sys.executable, "-m", "venv", folder / "venv"], check=True)
            pip = [folder / "venv/bin/python", "-m", "pip", "--quiet", "--no-input", "--disable-pip-version-check"]
            subprocess.run([*pip, "install", client.requirement, *client.needs], check=True, timeout=600)
        stamp.write_text(wanted)
    shutil.copy(HERE / client.script, script)
    shutil.copy(HERE / "agent.py", folder / "weft_agent.py")
    python = folder / "venv/bin/python"
    command = [ROOT / "tests/private", sys.executable, folder / "weft_agent.py", "node", script]
    if not name.startswith("npm"):
        command = [ROOT / "tests/private", python, folder / "weft_agent.py", python, script]
    environment = {**os.environ, "WEFT": str(ROOT / "bin" / "weft")}
    done = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True, timeout=600)
    (BUILD / f"{name}.log").write_text(done.stdout)
    lines = [line for line in done.stdout.splitlines() if line.startswith(("ok ", "failed "))]
    passed = {line.removeprefix("ok ") for line in lines if line.startswith("ok ")}
    failed = {line.removeprefix("failed ").partition(": ")[0] for line in lines if line.startswith("failed ")}
    if not passed:
        failed.add("the script itself")
    return passed, failed


def prepared(name: str, suite: Suite) -> tuple[Path, Path]:
    """The interpreter of a virtual environment with the client, and the client's sources."""
    folder = BUILD / name
    stamp = folder / "stamp"
    wanted = repr((suite.requirement, suite.needs))
    python = folder / "venv" / "bin" / "python"
    if not stamp.exists() or stamp.read_text() != wanted:
        shutil.rmtree(folder, ignore_errors=True)
        subprocess.run([sys.executable, "-m", "venv", folder / "venv"], check=True)
        pip = [python, "-m", "pip", "--quiet", "--no-input", "--disable-pip-version-check"]
        subprocess.run([*pip, "install", suite.requirement, *suite.needs], check=True)
        project = suite.requirement.partition("[")[0].partition("==")[0]
        version = suite.requirement.partition("==")[2]
        download = [*pip, "download", "--no-deps", "--no-binary", project, "--dest", folder, f"{project}=={version}"]
        subprocess.run(download, check=True)
        (archive,) = folder.glob("*.tar.gz")
        (folder / "source").mkdir()
        subprocess.run(["tar", "-xzf", archive, "-C", folder / "source"], check=True)
        stamp.write_text(wanted)
    (source,) = (folder / "source").iterdir()
    return python, source


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
