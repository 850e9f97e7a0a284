"""A real etcd cluster, Debian's, whose members are in network namespaces on one bridge."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

from lab import namespaces
from lab.commands import Outcome, run
from lab.unpacked import unpack
from lab.waiting import until

BRIDGE = "br-etcd"
READY = 60.0
"""Seconds within which members must answer on a busy machine."""
CONT, STOP, KILL = signal.SIGCONT, signal.SIGSTOP, signal.SIGKILL


class Cluster:
    """Members at ``10.77.NUMBER.1`` and up, port 2379, from the namespace that the caller is in now."""

    def __init__(
        self,
        number: int,
        *,
        members: int = 3,
        options: tuple[str, ...] = (),
        tls: Mapping[str, str] | None = None,
        login: tuple[str, ...] = (),
        port: int = 2379,
    ) -> None:
        """``tls`` are the options of certificates: members then serve https; ``login`` those of etcdctl."""
        self.number = number
        self.bridge = f"{BRIDGE}{number}"
        self.addresses = [f"10.77.{number}.{one}" for one in range(1, members + 1)]
        self.endpoints = tuple(f"{address}:{port}" for address in self.addresses)
        self.folder = Path(tempfile.mkdtemp(prefix="weft-etcd-", dir="/dev/shm"))
        self.home = namespaces.open_namespace()
        self._binary = unpack("etcd-server", "etcd-client") / "usr" / "bin"
        self._scheme = "https" if tls else "http"
        self._tls = dict(tls or {})
        self._options = options
        self._port = port
        self._processes: dict[int, subprocess.Popen[bytes]] = {}
        self._login = login
        self._initial = ",".join(f"m{at}=http://{one}:2380" for at, one in enumerate(self.addresses))
        lines = [f"link add {self.bridge} type bridge", f"address add 10.77.{number}.254/24 dev {self.bridge}"]
        run("ip", "-batch", "-", stdin="\n".join([*lines, f"link set {self.bridge} up"]))
        self.paths = [self._connect(at) for at in range(members)]
        for at in range(members):
            self.start(at)
        self.wait()

    def _connect(self, member: int) -> str:
        path = namespaces.make(f"etcd{self.number}-{member}")
        link = f"etcd{self.number}-{member}"
        run("ip", "link", "add", link, "type", "veth", "peer", "name", "eth0", "netns", path)
        run("ip", "link", "set", link, "master", self.bridge, "up")
        lines = (f"address add {self.addresses[member]}/24 dev eth0", "link set eth0 up", "link set lo up")
        run("nsenter", f"--net={path}", "ip", "-batch", "-", stdin="\n".join(lines))
        return path

    def reach(self, host: str) -> str:
        """Connect another namespace, given by its path, to the cluster; the name of its link there."""
        with namespaces.inside(f"/proc/{os.getpid()}/fd/{self.home}"):
            run("ip", "link", "add", "etcd-host", "type", "veth", "peer", "name", "etcd0")
            run("ip", "link", "set", "etcd0", "netns", host)
            run("ip", "link", "set", "etcd-host", "master", self.bridge, "up")
        with namespaces.inside(host):
            run("ip", "address", "add", f"10.77.{self.number}.100/24", "dev", "etcd0")
            run("ip", "link", "set", "etcd0", "up")
        return "etcd0"

    def start(self, member: int) -> None:
        """Start a member that does not run."""
        address, folder = self.addresses[member], self.folder / f"m{member}"
        client = f"{self._scheme}://{address}:{self._port}"
        argv = [
            *("nsenter", f"--net={self.paths[member]}", "--", str(self._binary / "etcd")),
            *("--name", f"m{member}", "--data-dir", str(folder), "--logger", "zap", "--log-level", "warn"),
            *("--heartbeat-interval", "50", "--election-timeout", "500"),
            *(
                "--listen-peer-urls",
                f"http://{address}:2380",
                "--initial-advertise-peer-urls",
                f"http://{address}:2380",
            ),
            *("--listen-client-urls", client, "--advertise-client-urls", client),
            *("--initial-cluster", self._initial, "--initial-cluster-token", "weft"),
            *self._options,
            *(f"--{name}={value}" for name, value in self._tls.items()),
        ]
        with open(self.folder / f"m{member}.log", "ab") as log:
            self._processes[member] = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    def wait(self) -> None:
        """Wait until the cluster serves."""
        until(lambda: self.ctl("endpoint", "health", check=False).code == 0, READY, "the etcd cluster")

    def signal(self, member: int, number: signal.Signals) -> None:
        """Send a member a signal; one that is killed is reaped."""
        process = self._processes[member]
        process.send_signal(number)
        if number == KILL:
            process.wait()

    def restart(self, member: int) -> None:
        self.signal(member, KILL)
        self.start(member)

    def leader(self) -> int:
        """The number of the member that leads."""
        deadline = time.monotonic() + READY
        while time.monotonic() < deadline:
            found = self.ctl("endpoint", "status", "--write-out", "json", check=False)
            if found.code == 0:
                for one in found.json:
                    status = one["Status"]
                    if status["leader"] and status["leader"] == status["header"]["member_id"]:
                        return self.endpoints.index(one["Endpoint"].removeprefix(f"{self._scheme}://"))
            time.sleep(0.05)
        raise AssertionError("the etcd cluster has no leader")

    def ctl(self, *argv: str, check: bool = True, endpoint: int | None = None) -> Outcome:
        """Run etcdctl, on all members or one."""
        used = self.endpoints if endpoint is None else self.endpoints[endpoint : endpoint + 1]
        endpoints = ",".join(f"{self._scheme}://{one}" for one in used)
        command = (str(self._binary / "etcdctl"), "--endpoints", endpoints, *self._login, *argv)
        with namespaces.inside(f"/proc/{os.getpid()}/fd/{self.home}"):
            return run(*command, environment={**os.environ, "ETCDCTL_API": "3"}, check=check)

    def stop(self) -> None:
        """Kill all members; their data remains."""
        for process in self._processes.values():
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(CONT)
            process.kill()
            process.wait()

    def replace_data(self, snapshot: Path) -> None:
        """Restore all members from a snapshot, and start them."""
        self.stop()
        for at, address in enumerate(self.addresses):
            folder = self.folder / f"m{at}"
            shutil.rmtree(folder)
            self.ctl(
                *("snapshot", "restore", str(snapshot), "--name", f"m{at}", "--data-dir", str(folder)),
                *("--initial-cluster", self._initial, "--initial-cluster-token", "weft"),
                *("--initial-advertise-peer-urls", f"http://{address}:2380"),
            )
            self.start(at)
        self.wait()

    def close(self) -> None:
        self.stop()
        for path in self.paths:
            namespaces.remove(path)
        with namespaces.inside(f"/proc/{os.getpid()}/fd/{self.home}"):
            # The kernel ends a namespace later, and its links with it: the next cluster may have these names.
            for name in (*(os.path.basename(path) for path in self.paths), self.bridge):
                run("ip", "link", "delete", name, check=False)
        os.close(self.home)
        shutil.rmtree(self.folder, ignore_errors=True)
