"""A real DHCP server beside the host, and weft's keeper of leases as a test sees it."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from lab.host import Host, Lan


class Dnsmasq:
    """A server on the neighbour's link; ``leases`` is its own list of who has what. ``options`` are dnsmasq's."""

    def __init__(self, host: Host, lan: Lan, folder: Path, *options: str) -> None:
        if shutil.which("dnsmasq") is None:
            pytest.skip("there is no dnsmasq (Debian: dnsmasq-base)")
        self._leases = folder / "leases"
        self._log = folder / "log"
        self._process = host.start(
            "dnsmasq", "--keep-in-foreground", "--conf-file=/dev/null", "--port=0", "--no-ping", "--user=root",
            "--bind-interfaces", "--interface=eth0", "--dhcp-authoritative", "--log-dhcp",
            f"--log-facility={self._log}", f"--dhcp-leasefile={self._leases}", f"--pid-file={folder}/pid",
            "--dhcp-range=192.0.2.100,192.0.2.120,255.255.255.0,2m",
            *(options or (f"--dhcp-option=3,{lan.outside}",)), name=lan.name,
        )  # fmt: skip
        deadline = time.monotonic() + 5
        while "DHCP, IP range" not in self.log:
            assert time.monotonic() < deadline and self._process.poll() is None, self.log
            time.sleep(0.02)

    def stop(self) -> None:
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    @property
    def log(self) -> str:
        return self._log.read_text() if self._log.exists() else ""

    @property
    def leases(self) -> list[str]:
        """The addresses that are given out."""
        text = self._leases.read_text() if self._leases.exists() else ""
        return [line.split()[2] for line in text.splitlines()]


def end_keepers() -> None:
    """End every keeper of leases: none outlives its test."""
    for path in Path("/run/weft").glob("*/dhcp/keeper.lock"):
        pid = int(path.read_text())
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
            until(lambda pid=pid: _ended(pid))  # type: ignore[misc]


def _ended(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def until(condition: Callable[[], object], seconds: float = 10) -> None:
    """Wait for it; raises AssertionError where it does not come to pass."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come to pass"
        time.sleep(0.02)
