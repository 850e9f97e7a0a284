"""Seconds that the tools take on a host with many networks and attachments: part of ``scale``."""

from __future__ import annotations

import os
import resource
import subprocess
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from itertools import chain
from pathlib import Path
from typing import Any

from calls import ENGINE, ROOT, Call, run_concurrently
from compare import start_engine

from cni_plugin.dataplane.tables import TABLES
from cni_plugin.networks import conflists
from lab import namespaces
from weft.kernel.linux.kernel import LinuxKernel

WEFT = ROOT / "bin" / "weft"
VERSION = "1.0.0"
CONFIGURATION = "/etc/cni/net.d"
_CONCURRENT = 32
TOOLS = ("ps", "check", "doctor", "status", "gc")


def plugin(number: int) -> dict[str, Any]:
    """The plugin of a network of its own /24."""
    subnet = f"10.{64 + number // 256}.{number % 256}.0/24"
    ipam = {"type": "host-local", "ranges": [[{"subnet": subnet}]], "routes": [{"dst": "0.0.0.0/0"}]}
    return {
        "type": "weft", "driver": "bridge", "bridge": f"scale{number}", "isGateway": True, "ipMasq": True, "ipam": ipam,
    }  # fmt: skip


class Filled:
    """A host with so many networks and attachments to each, made by its engine."""

    def __init__(self, networks: int, each: int) -> None:
        self.paths: dict[int, list[str]] = {}
        calls: list[Call] = []
        Path(CONFIGURATION).mkdir(exist_ok=True)
        for number in range(networks):
            name, keys = f"scale{number}", plugin(number)
            conflists.write(CONFIGURATION, name, {"cniVersion": VERSION, "name": name, "plugins": [keys]})
            conf = {"cniVersion": VERSION, "name": name, **keys}
            self.paths[number] = [namespaces.make(f"c{number}-{one}") for one in range(each)]
            calls += [
                Call(ENGINE, "weft", conf, f"c{number}-{one}", path) for one, path in enumerate(self.paths[number])
            ]
        for first in range(0, len(calls), _CONCURRENT):
            run_concurrently(calls[first : first + _CONCURRENT], "ADD")
        with closing(LinuxKernel(TABLES)) as kernel:
            for place in chain.from_iterable(self.paths.values()):
                with closing(kernel.open(place)) as container:
                    container.change_link("lo", up=True)  # as every runtime does
        for path in Path("/var/lib/cni").rglob("10.*"):
            os.utime(path, (time.time() - 600,) * 2)  # older than those that are held whoever has them

    def end(self, networks: int) -> None:
        """The containers of the first networks are gone, without a DEL."""
        for number in range(networks):
            for path in self.paths.pop(number):
                namespaces.remove(path)


@contextmanager
def seconds(what: str) -> Iterator[None]:
    """Print the wall-clock seconds of the block, and the CPU seconds of the processes that it waits for."""
    started, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    yield
    elapsed, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    print(f"{what:50} {elapsed:8.2f} s, {used:7.2f} s of CPU time", flush=True)


def tool(*words: str, title: str = "", expected: int = 0) -> None:
    """Run ``weft`` and print how long it takes."""
    with seconds(title or f"weft {' '.join(words)}"):
        done = subprocess.run([WEFT, *words], capture_output=True, text=True, check=False)
    if done.returncode != expected:
        print(f"  exit status {done.returncode}: {(done.stdout + done.stderr).strip()[-300:]}")


def measure(networks: int, each: int) -> None:
    """Every tool, then the removal of half of the networks, whose containers are gone."""
    print(f"\n{networks} networks, {networks * each} attachments; load average {os.getloadavg()[0]:.1f}")
    engine = start_engine()
    try:
        with seconds("filling"):
            filled = Filled(networks, each)
        for name in TOOLS:
            tool(name)
        tool("trace", "c0-0", "c0-1", title="weft trace, within a network")
        tool("trace", "c0-0", "host", "--port", "22", "--proto", "udp", title="weft trace, to the host")
        tool("trace", "c0-0", f"c{networks - 1}-0", title="weft trace, to a closed network", expected=1)
        half = networks // 2
        filled.end(half)
        tool("ps", title=f"weft ps, {half * each} namespaces gone")
        tool("gc", title=f"weft gc, {half * each} attachments, {half} networks")
        tool("gc", title="weft gc, once more")
    finally:
        engine.terminate()
        engine.wait()
