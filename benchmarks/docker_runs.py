"""``docker run`` on a network of weft's and on Docker's own bridge, in turns: without ports, and with three.

    PYTHONPATH=.:tests tests/private .venv/bin/python benchmarks/docker_runs.py [--rounds N] [--docker 26]

Docker is Debian 12's, unpacked (``tests/lab/unpacked.py``), or that of the Debian 13 root. The driver's log
says how long each of libnetwork's calls took.
"""

from __future__ import annotations

import argparse
import contextlib
import re
import shutil
import statistics
import tempfile
from collections.abc import Iterator
from pathlib import Path

from lab.docked import Docked
from lab.machine import make_root
from lab.roots import layers

PORTS = ("-p", "18080:80", "-p", "18081:81", "-p", "18082:82")
CASES = {"docker run": (), "docker run with 3 ports": PORTS}
NETWORKS = {"docker": "bridge", "weft": "weft"}
# Timed inside of the machine, so that entering it is not measured.
TIMED = """
import subprocess, sys, time
started = time.perf_counter()
subprocess.run(sys.argv[1:], check=True, stdout=subprocess.DEVNULL)
print(time.perf_counter() - started)
"""
_CALL = re.compile(r"weft docker: (\S+): .*, ([0-9.]+) ms")


@contextlib.contextmanager
def machine(release: str) -> Iterator[Docked]:
    """A machine with dockerd, the driver, and a network of either kind."""
    folder = Path(tempfile.mkdtemp())
    try:
        root = make_root(folder / "image")
        (folder / "layer").mkdir()
        below = layers("docker", folder / "layer") if release == "26" else ()
        made = Docked(folder, str(root), layers=below, shared=folder)
        try:
            for name, driver in NETWORKS.items():
                made.ask("network", "create", "-d", driver, f"on-{name}")
            yield made
        finally:
            made.close()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def seconds(made: Docked, network: str, options: tuple[str, ...]) -> float:
    """One ``docker run --rm`` of a container that ends at once, until it is removed."""
    argv = ("docker", "run", "--rm", f"--net=on-{network}", *options, "page", "/bin/sleep", "0")
    return float(made.run(made.python, "-ISc", TIMED, *argv, timeout=120).stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--docker", choices=("20.10", "26"), default="20.10")
    given = parser.parse_args()
    with machine(given.docker) as made:
        for case, options in CASES.items():
            found: dict[str, list[float]] = {name: [] for name in NETWORKS}
            for name in NETWORKS:  # not counted: what the first call starts
                seconds(made, name, options)
            before = len((made.folder / "driver").read_text())
            for turn in range(given.rounds):
                order = list(NETWORKS) if turn % 2 else list(NETWORKS)[::-1]
                for name in order:
                    found[name].append(seconds(made, name, options) * 1000)
            for name, times in found.items():
                print(f"{case}: {name}: median {statistics.median(times):.0f} ms, "
                      f"from {min(times):.0f} to {max(times):.0f}")  # fmt: skip
            ratio = statistics.median(found["weft"]) / statistics.median(found["docker"])
            print(f"{case}: {ratio:.2f}x of Docker's own bridge", flush=True)
            calls: dict[str, list[float]] = {}
            for name, text in _CALL.findall((made.folder / "driver").read_text()[before:]):
                calls.setdefault(name, []).append(float(text))
            for name, times in calls.items():
                print(f"    {name}: {len(times) / given.rounds:.1f} a run, median {statistics.median(times):.1f} ms")


if __name__ == "__main__":
    main()
