"""Measurements that take long: large address pools, and the engine after many calls."""

from __future__ import annotations

import os
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from calls import ENGINE, REFERENCE_PLUGINS, Call, Contender, run_concurrently
from cases import VERSION, Case
from growth import with_children

from lab import namespaces

Row = dict[str, Any]
_CONCURRENT = 8


def pools(leases: Sequence[int], rounds: int, contenders: Sequence[Contender]) -> list[Row]:
    """ADD and DEL of the host-local plugin alone, in a /16 with so many leases. Milliseconds."""
    found = []
    netns = namespaces.make("pooled")
    for number, count in enumerate(leases):
        medians: dict[str, dict[str, float]] = {"ADD": {}, "DEL": {}}
        for contender in contenders:
            name = f"pool-{number}-{contender.name.replace(' ', '-')}"
            _fill(Path("/var/lib/cni/networks") / name, count)
            conf = {
                "cniVersion": VERSION,
                "name": name,
                "type": "bridge",
                "ipam": {"type": "host-local", "ranges": [[{"subnet": "10.100.0.0/16"}]]},
            }
            call = Call(contender, "host-local", conf, "pooled", netns)
            times: dict[str, list[float]] = {"ADD": [], "DEL": []}
            for turn in range(rounds + 2):
                for command in times:
                    elapsed, _ = call.timed(command)
                    if turn > 1:
                        times[command].append(elapsed)
            for command, values in times.items():
                medians[command][contender.name] = statistics.median(values) * 1000
        row: Row = {"case": f"IPAM, {count} leases"}
        for command, each in medians.items():
            row[command] = {"ms": each}
            if REFERENCE_PLUGINS.name in each:
                own = [who for who in each if who != REFERENCE_PLUGINS.name]
                row[command]["ratio"] = {who: each[who] / each[REFERENCE_PLUGINS.name] for who in own}
            print(f"{row['case']:32} {command}  {row[command]}", flush=True)
        found.append(row)
    return found


def _fill(folder: Path, count: int) -> None:
    folder.mkdir(parents=True)
    for number in range(2, count + 2):
        address = f"10.100.{number >> 8}.{number & 255}"
        (folder / address).write_bytes(b"other-%d\r\neth0" % number)
    (folder / "last_reserved_ip.0").write_text(f"10.100.{(count + 1) >> 8}.{(count + 1) & 255}")


def endurance(pairs: int, process: int) -> list[Row]:
    """Memory, threads and descriptors of the engine and its children during ADD and DEL of eight
    containers.
    """
    (conf,) = Case("endurance", masquerade=True).members(ENGINE, 241)
    names = [f"endurance-{number}" for number in range(_CONCURRENT)]
    calls = [Call(ENGINE, "bridge", conf, name, namespaces.make(name)) for name in names]
    found: list[Row] = []
    for done in range(0, pairs + 1, _CONCURRENT):
        if done * 8 // pairs > len(found) - 1:
            found.append({"case": "endurance", "pairs": done, **_used(process)})
            print(f"after {done:6} pairs: {found[-1]}", flush=True)
        for command in ("ADD", "DEL"):
            run_concurrently(calls, command)
    return found


def _used(process: int) -> dict[str, int]:
    found = {"resident_kib": 0, "threads": 0, "descriptors": 0}
    for each in with_children(process):
        status = Path(f"/proc/{each}/status").read_text() + Path(f"/proc/{each}/smaps_rollup").read_text()
        fields = dict(line.split(":", 1) for line in status.splitlines())
        found["resident_kib"] += int(fields["Pss"].split()[0])  # counts shared memory once
        found["threads"] += int(fields["Threads"])
        found["descriptors"] += len(os.listdir(f"/proc/{each}/fd"))
    return found
