"""The work of ADD and DEL does not grow with the number of attachments, as the reference's does.

Measured in system calls and in bytes received from the kernel, not in time.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from lab.calls import Weft
from lab.commands import run
from lab.confs import bridge, dual, port, ptp
from lab.host import Host
from lab.plugins import OWN_FOLDER, Cni

FEW, MANY = 5, 200
_CALL = re.compile(r"^\d+ +(?:<\.\.\. )?(\w+)(?:\(| resumed>).* = (-?\d+)")
# Numbers get longer by a few bytes. A long list of leases gets an index (as large for 65,000
# leases): a library, a few pages, and the lookups.
_SLACK, _FIXED, _PAGES, _MESSAGES = 256, 150, 300_000, 3
_PUBLISHED = {"portMappings": [port(8080, 80), port(5353, 53, "udp"), port(8081, 81, address="127.0.0.1")]}
_WHOLE = {"type": "weft", "driver": "bridge", "isGateway": True, "ipMasq": True, "portmap": {}, "bandwidth": {}}
CONFS = {
    "bridge": bridge(dual(), isGateway=True, ipMasq=True),
    "ptp": ptp(dual(), ipMasq=True),
    "published": bridge(dual(), **{**_WHOLE, "bandwidth": {"ingressRate": 10**6, "ingressBurst": 10**6}}),
}


@dataclass(frozen=True)
class Work:
    """The cost of a call: system calls, netlink messages, bytes received and read from files."""

    calls: int
    sent: int
    received: int
    read: int


def traced(cni: Cni, trace: Path, command: str, conf: dict[str, Any], netns: str) -> Work:
    """Run the plugin under strace, without an engine."""
    run(
        "strace", "-f", "-qq", "-o", str(trace), str(OWN_FOLDER / conf["type"]),
        stdin=json.dumps(conf), environment=cni.environment(command, "probe", netns) | {"WEFT_ENGINE": "off"},
        timeout=120,
    )  # fmt: skip
    calls: Counter[str] = Counter()
    got: Counter[str] = Counter()
    for line in trace.read_text().splitlines():
        if found := _CALL.match(line):
            calls[found[1]] += 1
            got[found[1]] += max(int(found[2]), 0)
    sent, received, read = ("sendmsg", "sendto"), ("recvmsg", "recvfrom", "recv"), ("read", "pread64", "getdents64")
    # Thread waits and memory allocation are the interpreter's.
    own = ("futex", "brk", "mmap", "munmap", "mprotect", "madvise", "rt_sigprocmask")
    work = Work(
        sum(count for call, count in calls.items() if call not in own),
        sum(calls[call] for call in sent), sum(got[call] for call in received), sum(got[call] for call in read),
    )  # fmt: skip
    assert calls["execve"] and work.sent and work.received, trace.read_text()[-2000:]
    return work


@pytest.mark.parametrize("name", CONFS)
def test_work_does_not_grow(host: Host, cni: Cni, tmp_path: Path, name: str) -> None:
    conf, published = CONFS[name], name == "published"
    weft, netns = Weft(), host.container("probe")
    probe = {**conf, "runtimeConfig": _PUBLISHED} if published else conf
    found: dict[int, dict[str, Work]] = {}
    for count in (FEW, MANY):
        for number in range(max(found, default=0), count):
            runtime = {"portMappings": [port(20000 + number, 80)]} if published else {}
            weft.add({**conf, "runtimeConfig": runtime}, host.container(f"c{number}"), f"c{number}")
        # The first ADD on a host creates what all share, such as the index of leases.
        for command in ("ADD", "DEL", "ADD"):
            traced(cni, tmp_path / "trace", command, probe, netns)
        traced(cni, tmp_path / "trace", "DEL", probe, netns)
        found[count] = {each: traced(cni, tmp_path / "trace", each, probe, netns) for each in ("ADD", "DEL")}
    for command in ("ADD", "DEL"):
        few, many = found[FEW][command], found[MANY][command]
        # To hand over its ports, DEL reads each record of the host: stat, open, stat, its owner, read to the
        # end, close.
        looks, size = (8 * (MANY - FEW), 17_000 * (MANY - FEW)) if published and command == "DEL" else (0, 0)
        assert many.sent <= few.sent + _MESSAGES, (command, few, many)
        assert many.received <= few.received + _SLACK, (command, few, many)
        assert many.calls <= few.calls + _FIXED + looks, (command, few, many)
        assert many.read <= few.read + _PAGES + size, (command, few, many)
