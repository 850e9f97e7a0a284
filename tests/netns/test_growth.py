"""What an ADD and a DEL do does not grow with the attachments that are there, as the reference plugins' does.

Not by the clock: the system calls are counted, and the bytes that the kernel hands over.
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
# A few bytes more where numbers have become longer; the index that a long list of leases gets (65,000 of them cost as
# much): a library, a few pages, and what looks at them.
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
    """What a call did: system calls, messages to and bytes from the kernel's sockets, and bytes read from files."""

    calls: int
    sent: int
    received: int
    read: int


def traced(cni: Cni, trace: Path, command: str, conf: dict[str, Any], netns: str) -> Work:
    """A call in a process of its own, its system calls counted."""
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
    # Waiting for a thread, and memory, are the interpreter's own affair.
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
        # The first of all makes what the host keeps, its index of leases for one.
        for command in ("ADD", "DEL", "ADD"):
            traced(cni, tmp_path / "trace", command, probe, netns)
        traced(cni, tmp_path / "trace", "DEL", probe, netns)
        found[count] = {each: traced(cni, tmp_path / "trace", each, probe, netns) for each in ("ADD", "DEL")}
    for command in ("ADD", "DEL"):
        few, many = found[FEW][command], found[MANY][command]
        # To hand its ports over, a DEL looks at every record: opens, reads to the end, and closes it.
        looks, size = (4 * (MANY - FEW), 13_000 * (MANY - FEW)) if published and command == "DEL" else (0, 0)
        assert many.sent <= few.sent + _MESSAGES, (command, few, many)
        assert many.received <= few.received + _SLACK, (command, few, many)
        assert many.calls <= few.calls + _FIXED + looks, (command, few, many)
        assert many.read <= few.read + _PAGES + size, (command, few, many)
