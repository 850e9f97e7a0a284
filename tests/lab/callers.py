"""Calls of weft that start its engine and agent, and what these processes are."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import struct
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from weft import daemons

CONF: dict[str, Any] = {
    "cniVersion": "1.0.0",
    "name": "called",
    "type": "bridge",
    "bridge": "br-called",
    "isGateway": True,
    "ipam": {"type": "host-local", "ranges": [[{"subnet": "10.83.0.0/24"}]]},
}
NAMED = {**CONF, "type": "weft", "driver": "bridge", "names": {}}
AUTO = {"WEFT_ENGINE": "auto", "WEFT_ENGINE_IDLE": "60"}


@contextlib.contextmanager
def started_daemons() -> Iterator[Path]:
    """The folder of the host's state; daemons that were started there are ended."""
    found = Path(f"/run/weft/{os.stat('/proc/thread-self/ns/net').st_ino}")
    try:
        yield found
    finally:
        for name in ("engine.sock", "agent.sock"):
            with contextlib.suppress(OSError):
                process = listener(found / name)
                os.kill(process, signal.SIGCONT)
                assert daemons.end(process, 60)


def listener(path: Path) -> int:
    """The process that listens at a socket."""
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))
        return int(struct.unpack("3i", client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[0])


def call(
    client: tuple[str, ...], environment: dict[str, str], conf: Any, before: Callable[[], None] | None = None
) -> tuple[int, Any, float]:
    """A call by a client: exit status, answer, seconds."""
    started = time.monotonic()
    done = subprocess.run(
        client, input=json.dumps(conf).encode(), env=environment, capture_output=True, check=False, timeout=120,
        preexec_fn=before,
    )  # fmt: skip
    return done.returncode, json.loads(done.stdout) if done.stdout else done.stderr.decode(), time.monotonic() - started


def status(process: int) -> dict[str, str]:
    """The fields of /proc/PID/status."""
    pairs = (line.partition(":") for line in Path(f"/proc/{process}/status").read_text().splitlines())
    return {name: value.strip() for name, _, value in pairs}
