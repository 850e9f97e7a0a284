"""Seconds of the first ADD after a boot in a network whose /16 is full of earlier leases: part of ``scale``."""

from __future__ import annotations

import os
from ipaddress import ip_address
from pathlib import Path

from calls import ENGINE, IN_PROCESS, Call, Contender
from compare import start_engine
from scale_tools import VERSION

from lab import namespaces

CASES = ("unchanged since", "host-local has added one")


def measure(leases: int) -> None:
    """By the engine and by a process of its own; the lease directory is on a tmpfs."""
    print(f"\nfirst ADD after a boot, {leases} leases of the earlier one; load average {os.getloadavg()[0]:.1f}")
    engine = start_engine()
    try:
        for number, (contender, case) in enumerate((who, case) for case in CASES for who in (ENGINE, IN_PROCESS)):
            warm = f"warm{number}"  # modules and caches are loaded, by another network
            _call(contender, 10 + number, warm).timed("ADD")
            call = _call(contender, 30 + number, f"pool{number}")
            _fill(call, leases, added=case != CASES[0])
            elapsed, _ = call.timed("ADD")
            print(f"{contender.name:12} {case:28} {elapsed * 1000:8.1f} ms", flush=True)
    finally:
        engine.terminate()
        engine.wait()


def _call(contender: Contender, number: int, container: str) -> Call:
    ipam = {"type": "host-local", "ranges": [[{"subnet": f"10.{number}.0.0/16"}]]}
    conf = {
        "cniVersion": VERSION, "name": f"pool{number}", "type": "bridge", "bridge": f"pool{number}", "ipam": ipam,
    }  # fmt: skip
    return Call(contender, "bridge", conf, container, namespaces.make(container))


def _fill(call: Call, leases: int, *, added: bool) -> None:
    """Fill the network's directory as of long before the boot; with ``added`` host-local has used it since."""
    folder = Path("/var/lib/cni/networks") / call.conf["name"]
    folder.mkdir(parents=True)
    (folder / "lock").touch()
    first = ip_address(call.conf["ipam"]["ranges"][0][0]["subnet"].split("/")[0])
    for number in range(leases):
        path = folder / str(first + 2 + number)
        path.write_bytes(f"{number:064x}\r\neth0".encode())
        os.utime(path, (1, 1))
    os.utime(folder, (1, 1))
    if added:
        path.unlink()
        path.write_bytes(b"theirs\r\neth0")
