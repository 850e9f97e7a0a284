#!/usr/bin/env python3
"""Run the test suites of Consul's clients against weft's agent: ``bin/test clients [SUITE...]``.

Each suite is the client's own, from its source distribution on the package index, unchanged but for
the fixture that starts a server. A test that fails and is not in known_failures.toml is an error,
and so is one that is there and passes. ``patroni`` is a failover of two PostgreSQL nodes instead.
Needs root (tests/private), the package index, and for patroni Debian's package postgresql.
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
    the conftest.py that replaces or joins theirs, and pytest's arguments.
    """

    requirement: str
    needs: tuple[str, ...]
    conftest: str
    arguments: tuple[str, ...]


PATRONI = ("patroni[consul]==4.1.5", "psycopg2-binary")
SUITES = {
    "py-consul": Suite(
        "py-consul==1.8.0",
        ("pytest", "pytest-asyncio", "aiohttp"),
        "py_consul_conftest.py",
        ("tests", "-o", "addopts=", "-o", "asyncio_mode=auto"),
    ),
    "tooz": Suite(
        "tooz[consul]==6.3.0",
        ("pytest", "testtools", "fixtures", "ddt", "requests", "setuptools<81", "oslo.utils<8"),
        "tooz_conftest.py",
        ("tooz/tests/test_coordination.py",),
    ),
}


def main(names: list[str]) -> int:
    """Run these suites, all by default; the exit status."""
    known = tomllib.loads((HERE / "known_failures.toml").read_text())
    wrong = False
    for name in names or (*SUITES, "patroni"):
        if name == "patroni":
            wrong = patroni() != 0 or wrong
            continue
        passed, failed, skipped = run(name, SUITES[name])
        failed -= known.get(f"{name}-busy", {}).keys()
        expected = known.get(name, {})
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
    environment = {**os.environ, "WEFT": str(ROOT / "bin" / "weft")}
    return subprocess.run(command, env=environment, check=False, timeout=1200).returncode


def run(name: str, suite: Suite) -> tuple[set[str], set[str], int]:
    """The tests that pass, those that fail, and how many were skipped."""
    python, source = prepared(name, suite)
    shutil.copy(HERE / suite.conftest, source / "conftest.py")
    shutil.copy(HERE / "agent.py", source / "weft_agent.py")
    report = BUILD / f"{name}.xml"
    command = [ROOT / "tests" / "private", python, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    environment = {**os.environ, "WEFT": str(ROOT / "bin" / "weft")}
    with open(BUILD / f"{name}.log", "wb") as log:
        subprocess.run(
            [*command, f"--junitxml={report}", *suite.arguments],
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


def prepared(name: str, suite: Suite) -> tuple[Path, Path]:
    """The interpreter of a virtual environment with the client, and the client's sources."""
    folder = BUILD / name
    stamp = folder / "stamp"
    wanted = repr(suite)
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
