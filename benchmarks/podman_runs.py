"""``podman run`` of a container that ends at once, from start to end: without network, with weft and with the other.

Podman 5 (the Debian 13 root of ``tests/lab/roots.py``) compares weft as netavark's driver plugin with netavark's own
bridge; podman 4 (this machine's) weft as one CNI plugin with the reference plugins of podman's default network.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from calls import OWN, REFERENCE

from lab import roots
from lab.machine import make_root
from lab.podman import Podman

Times = dict[str, list[float]]
BRIDGE = {
    "bridge": "bench0",
    "isGateway": True,
    "ipMasq": True,
    "hairpinMode": True,
    "ipam": {"type": "host-local", "ranges": [[{"subnet": "10.88.0.0/16"}]], "routes": [{"dst": "0.0.0.0/0"}]},
}
MAPPINGS = {"portMappings": True}
CHAIN = [{"type": "bridge", **BRIDGE}, {"type": "portmap", "capabilities": MAPPINGS}, {"type": "firewall"},
         {"type": "tuning"}]  # fmt: skip
SINGLE = [{"type": "weft", "driver": "bridge", **BRIDGE, "portmap": {}, "capabilities": MAPPINGS}]
# Timed inside of the machine, so that entering it is not measured.
TIMED = """
import subprocess, sys, time
started = time.perf_counter()
subprocess.run(sys.argv[1:], check=True, stdout=subprocess.DEVNULL)
print(time.perf_counter() - started)
"""


@dataclass(frozen=True, slots=True)
class Runs:
    """A way to run a container: on a machine, on a network."""

    name: str
    machine: Podman
    network: str

    def seconds(self, root: Path, options: tuple[str, ...]) -> float:
        argv = ("podman", "run", "--rm", "--network", self.network, *options, "--rootfs", str(root), "/bin/sleep", "0")
        return float(self.machine.run(self.machine.python, "-ISc", TIMED, *argv).stdout)


def cases(release: int) -> Iterator[str]:
    """The names of the cases of a release of podman; none where it is not at hand."""
    at_hand = roots.is_built("trixie") if release == 5 else shutil.which("podman") and REFERENCE.is_dir()
    if at_hand:
        yield from (f"podman {release} run", f"podman {release} run -p")
    if at_hand and release == 5:
        yield "podman 5 run, with names"


def measure(case: str, rounds: int) -> Times:
    """Seconds of each run, the contenders in turns; the first round is not counted."""
    with contextlib.ExitStack() as stack:
        folder = Path(tempfile.mkdtemp())
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        image = make_root(folder / "image")
        prepare = _podman_5 if case.startswith("podman 5") else _podman_4
        contenders = prepare(stack, folder, image, names=case.endswith("names"))
        options = ("-p", "18080:80") if case.endswith("-p") else ()
        times: Times = {one.name: [] for one in contenders}
        for one in contenders:
            one.seconds(image, options)
            if one.name == "weft":
                # Started by that first call; the next ones use it.
                assert one.machine.until("sh", "-c", "ls /run/weft/*/engine.sock").code == 0
        for turn in range(rounds):
            first = turn % len(contenders)
            for one in contenders[first:] + contenders[:first]:
                times[one.name].append(one.seconds(image, () if one.network == "none" else options))
        return times


def _podman_5(stack: contextlib.ExitStack, folder: Path, image: Path, *, names: bool) -> list[Runs]:
    """One machine with a network of each kind; with names, a container on each, so that its DNS server runs."""
    layer = folder / "layer"
    layer.mkdir()
    machine = Podman(Path(roots.PLACE) / "bin" / "cni", layers=roots.layers("trixie", layer), shared=folder)
    stack.callback(machine.close)
    for network, driver in (("reference", ()), ("weft", ("-d", "weft", "-o", "driver=bridge"))):
        machine.podman("network", "create", *driver, *(() if names else ("--disable-dns",)), network)
        if names:
            shutil.copytree(image, folder / network, symlinks=True)
            machine.up(f"on-{network}", str(folder / network), network=network)
    return [Runs(name, machine, name) for name in ("none", "reference", "weft")]


def _podman_4(stack: contextlib.ExitStack, folder: Path, image: Path, *, names: bool) -> list[Runs]:
    """Two machines, since podman asks the plugins of all networks for their version in every command."""
    plugins = folder / "plugins"
    shutil.copytree(REFERENCE, plugins)  # the machine hides that directory
    found = []
    for name, members, where in (("reference", CHAIN, plugins), ("weft", SINGLE, OWN)):
        machine = Podman(where, json.loads(json.dumps({"cniVersion": "1.0.0", "name": name, "plugins": members})))
        stack.callback(machine.close)
        found.append(Runs(name, machine, name))
    return [Runs("none", found[1].machine, "none"), *found]
