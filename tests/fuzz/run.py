#!/usr/bin/env python3
"""Fuzz weft's parsers, guided by coverage: ``bin/test fuzz [--seconds N] [TARGET...]``.

Each target gets an equal share of the time, starting from its corpus; two run at once. A finding (an
exception that the parser does not document, more than a second of processor time for one input, more
than 1 GiB of memory) is written to build/fuzz/TARGET and fails the run. New inputs that reach new code
are kept in build/fuzz/TARGET/corpus; ``--merge`` adds the smallest of them to tests/fuzz/corpus. Where
atheris is not available (it has wheels for CPython 3.11 on x86-64 only), the corpus alone is run.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
BUILD = ROOT / "build" / "fuzz"
CORPUS = HERE / "corpus"
NAMES = ("dns", "http", "consul_text", "cni", "dhcp", "netlink", "state")
MEMORY_MIB = 1024
INPUT_BYTES = 4096
AT_ONCE = 2


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=int, default=90)
    parser.add_argument("--merge", action="store_true")
    parser.add_argument("--repeat", metavar="FILE")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("targets", nargs="*", default=NAMES)
    found = parser.parse_args()
    if found.child:
        fuzz(found.targets[0], found.seconds)
    if found.repeat:
        sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
        from fuzz.targets import TARGETS, checked

        checked(TARGETS[found.targets[0]], Path(found.repeat).read_bytes())
        return 0
    if not has_atheris():
        sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
        return plain(found.targets)
    share = max(found.seconds * AT_ONCE // len(found.targets), 1)
    waiting, running, wrong = list(found.targets), {}, 0
    while waiting or running:
        while waiting and len(running) < AT_ONCE:
            name = waiting.pop(0)
            running[name] = start(name, share)
        name = next(iter(running))
        running.pop(name).wait()
        wrong |= report(name)
        if found.merge:
            merge(name)
    return wrong


def has_atheris() -> bool:
    """Whether atheris can be imported; it is installed where the package index has a wheel."""
    if subprocess.run([sys.executable, "-c", "import atheris"], capture_output=True, check=False).returncode == 0:
        return True
    (wanted,) = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]["fuzz"]
    pip = [sys.executable, "-m", "pip", "--quiet", "--no-input", "--disable-pip-version-check", "install"]
    done = subprocess.run([*pip, "--only-binary", ":all:", wanted], capture_output=True, check=False)
    return done.returncode == 0


def plain(names: list[str]) -> int:
    """Run the corpus as plain inputs; the exit status."""
    print(f"not fuzzed: atheris has no wheel for this Python {sys.version.split()[0]}; the corpus alone is run")
    from fuzz.targets import TARGETS, checked

    for name in names:
        inputs = sorted((CORPUS / name).iterdir())
        for path in inputs:
            checked(TARGETS[name], path.read_bytes())
        print(f"{name}: {len(inputs)} inputs")
    return 0


def start(name: str, seconds: int) -> subprocess.Popen[bytes]:
    """One target, in a process and a private /run of its own."""
    folder = BUILD / name
    for old in folder.glob("crash-*"):
        old.unlink()
    (folder / "corpus").mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}
    command = [sys.executable, __file__, "--child", "--seconds", str(seconds), name]
    with open(folder / "log", "wb") as log:
        return subprocess.Popen(command, stdout=log, stderr=log, env=environment, cwd=folder)


def fuzz(name: str, seconds: int) -> None:
    """Does not return."""
    import atheris  # type: ignore[import-not-found,unused-ignore]

    with atheris.instrument_imports(include=["weft", "ipam", "store", "discovery", "cni_plugin"]):
        from fuzz.targets import TARGETS, checked

    target = TARGETS[name]
    options = (f"-max_total_time={seconds}", f"-rss_limit_mb={MEMORY_MIB}", f"-max_len={INPUT_BYTES}", "-timeout=30")
    folders = (str(BUILD / name / "corpus"), str(CORPUS / name))
    atheris.Setup(
        [name, *options, "-print_final_stats=1", "-verbosity=0", *folders], lambda data: checked(target, data)
    )
    atheris.Fuzz()


def report(name: str) -> int:
    """Print what a target did; 1 if it found something."""
    log = (BUILD / name / "log").read_text(errors="replace")
    figures = dict(re.findall(r"^stat::(\w+): *(\d+)", log, re.M))
    crashes = [*(BUILD / name).glob("crash-*"), *(BUILD / name).glob("timeout-*"), *(BUILD / name).glob("oom-*")]
    runs, memory = figures.get("number_of_executed_units", "0"), figures.get("peak_rss_mb", "?")
    print(f"{name}: {runs} inputs, {figures.get('average_exec_per_sec', '?')} a second, at most {memory} MiB")
    if not crashes and figures:
        return 0
    print(log[-3000:])
    print(f"{name}: found {[str(path) for path in crashes]}")
    return 1


def merge(name: str) -> None:
    """Minimise the corpus: of the inputs that reach the same code, the smallest."""
    folder = BUILD / name / "merged"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}", "FUZZ_MERGE": str(folder)}
    code = (
        "import sys, os, atheris\n"
        "with atheris.instrument_imports(include=['weft', 'ipam', 'store', 'discovery', 'cni_plugin']):\n"
        "    from fuzz.targets import TARGETS\n"
        "atheris.Setup(['merge', '-merge=1', '-max_len=1024', *sys.argv[2:]], TARGETS[sys.argv[1]])\n"
        "atheris.Fuzz()\n"
    )
    command = [sys.executable, "-c", code, name, folder, CORPUS / name, BUILD / name / "corpus"]
    subprocess.run(command, env=environment, check=False, capture_output=True, cwd=BUILD / name, timeout=600)
    if any(folder.iterdir()):
        shutil.rmtree(CORPUS / name)
        shutil.copytree(folder, CORPUS / name)


if __name__ == "__main__":
    sys.exit(main())
