"""A DHCP server (dnsmasq) on the neighbour, and control of weft's keeper of DHCP leases."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
from pathlib import Path

import pytest

from lab.host import Host, Lan
from lab.waiting import until


class Dnsmasq:
    """A server on the neighbour's link; ``leases`` is its lease file, ``options`` are dnsmasq's."""

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
        until(lambda: "DHCP, IP range" in self.log or self._process.poll() is not None, what="a DHCP server")
        assert self._process.poll() is None, self.log

    def stop(self) -> None:
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    @property
    def log(self) -> str:
        return self._log.read_text() if self._log.exists() else ""

    @property
    def leases(self) -> list[str]:
        """The addresses that are leased."""
        text = self._leases.read_text() if self._leases.exists() else ""
        return [line.split()[2] for line in text.splitlines()]


def end_keepers() -> None:
    """Stop all keepers of leases, so that none outlives its test."""
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
