"""A throw-away host: a network namespace with containers, neighbours and servers."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path

from lab import namespaces, traffic
from lab.commands import Outcome, run
from lab.snapshot import Snapshot, difference, settled, take
from lab.waiting import BRIEFLY, PATIENTLY

_TRIES = 30
STATE_FOLDERS = ("/run/weft", "/run/cni", "/var/lib/cni", "/var/lib/weft")
PRIVATE_FOLDERS = ("/etc/cni/net.d", "/var/log/weft")
"""Removed only below a mount of their own: the machine's are not a test's. A later host may have the inode
of an earlier one, and would list its events.
"""
CONFIGURATION = Path("/etc/weft/weft.toml")


@dataclass(frozen=True, slots=True)
class Lan:
    """A neighbour of the host: ``name`` is its namespace, ``link`` the host's end of the veth pair."""

    name: str
    link: str
    host: str
    outside: str
    host6: str
    outside6: str


class Host:
    """The current thread is in the host's namespace until ``close``, which removes everything."""

    def __init__(self) -> None:
        self._origin = namespaces.open_namespace()
        try:
            namespaces.unshare()
            self._own = namespaces.open_namespace()
        except OSError:
            os.close(self._origin)
            raise
        self.path = f"/proc/{os.getpid()}/fd/{self._own}"
        self._namespaces: dict[str, str] = {}
        self._servers: list[traffic.Server] = []
        self._processes: list[subprocess.Popen[bytes]] = []
        self._forget_state()
        run("ip", "link", "set", "lo", "up")

    def close(self) -> None:
        for process in self._processes:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
        for server in self._servers:
            server.close()
        for path in self._namespaces.values():
            namespaces.remove(path)
        namespaces.enter(self._origin)
        os.close(self._own)
        os.close(self._origin)
        self._forget_state()

    @staticmethod
    def _forget_state() -> None:
        private = [one for one in PRIVATE_FOLDERS if any(Path(each).is_mount() for each in (one, Path(one).parent))]
        for folder in (*STATE_FOLDERS, *private):
            # A daemon that was just killed may still have written; mount points are kept.
            for _ in range(_TRIES):
                shutil.rmtree(folder, ignore_errors=True)
                if not (rest := [*Path(folder).glob("*")]):
                    break
                time.sleep(0.1)
            assert not rest, f"{rest} cannot be removed between two tests"
        if CONFIGURATION.parent.is_mount():  # private
            CONFIGURATION.unlink(missing_ok=True)

    @staticmethod
    def configure(text: str) -> None:
        """Write weft.toml, which is removed with the host."""
        assert CONFIGURATION.parent.is_mount(), "/etc/weft is not private; run tests/private"
        CONFIGURATION.write_text(text)

    def _place(self, name: str | None) -> str:
        return self.path if name is None else self._namespaces[name]

    def container(self, name: str = "c1") -> str:
        """Create a container's namespace, with lo down; the path for CNI_NETNS."""
        self._namespaces[name] = namespaces.make(name)
        return self._namespaces[name]

    def remove_container(self, name: str = "c1") -> None:
        """Remove the container's namespace without a DEL, as if its runtime had died."""
        namespaces.remove(self._namespaces.pop(name))

    def run(self, *argv: str, check: bool = True, timeout: float = 60, stdin: str = "") -> Outcome:
        """Run a command on the host."""
        return run(*argv, check=check, timeout=timeout, stdin=stdin)

    def inside(self, name: str, *argv: str, check: bool = True, timeout: float = 60) -> Outcome:
        """Run a command in the namespace of a container or LAN."""
        return run("nsenter", f"--net={self._place(name)}", "--", *argv, check=check, timeout=timeout)

    def start(self, *argv: str, name: str | None = None) -> subprocess.Popen[bytes]:
        """Start a command on the host or in a namespace; ``close`` kills it."""
        command = argv if name is None else ("nsenter", f"--net={self._place(name)}", "--", *argv)
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
        )
        self._processes.append(process)
        return process

    def lan(
        self,
        name: str = "outside",
        *,
        link: str = "lan0",
        subnet: str = "192.0.2.0/24",
        subnet6: str = "2001:db8:99::/64",
        default_route: bool = False,
    ) -> Lan:
        """A machine next to the host. It has a route to containers only with ``default_route``.

        The host's default route leads to it.
        """
        path = self.container(name)
        four, six = IPv4Network(subnet), IPv6Network(subnet6)
        found = Lan(name, link, str(four[1]), str(four[2]), str(six[1]), str(six[2]))
        far = f"{link}-far"
        lines = [
            f"link add {link} type veth peer name {far}",
            f"link set {far} netns {path}",
            f"address add {found.host}/{four.prefixlen} dev {link}",
            f"address add {found.host6}/{six.prefixlen} dev {link} nodad",
            f"link set {link} up",
        ]
        far_lines = [
            f"link set {far} name eth0",
            "link set lo up",
            f"address add {found.outside}/{four.prefixlen} dev eth0",
            f"address add {found.outside6}/{six.prefixlen} dev eth0 nodad",
            "link set eth0 up",
        ]
        if default_route:
            far_lines += [f"route add default via {found.host}", f"route add ::/0 via {found.host6}"]
        run("ip", "-batch", "-", stdin="\n".join(lines))
        run("nsenter", f"--net={path}", "ip", "-batch", "-", stdin="\n".join(far_lines))
        ways = [f"route append default via {found.outside}", f"route append ::/0 via {found.outside6}"]
        run("ip", "-batch", "-", stdin="\n".join(ways))
        return found

    def serve_tcp(self, name: str | None, port: int, address: str = "::") -> traffic.Server:
        """A server in a namespace (None: the host) that replies with the client's address."""
        return self._serve(name, port, "tcp", address)

    def serve_udp(self, name: str | None, port: int, address: str = "::") -> traffic.Server:
        return self._serve(name, port, "udp", address)

    def serve_sctp(self, name: str | None, port: int, address: str) -> traffic.Server:
        return self._serve(name, port, "sctp", address)

    def _serve(self, name: str | None, port: int, protocol: str, address: str) -> traffic.Server:
        server = traffic.Server(self._place(name), port, protocol, address)
        self._servers.append(server)
        return server

    def fetch(
        self,
        name: str | None,
        address: str,
        port: int,
        protocol: str = "tcp",
        *,
        timeout: float = PATIENTLY,
        source: str = "",
    ) -> str | None:
        """Query a server from a namespace (None: the host); the client address that it saw, None
        without reply.

        Use ``timeout=BRIEFLY`` if no reply is expected.
        """
        return traffic.fetch(self._place(name), address, port, protocol, timeout=timeout, source=source)

    def ping(self, name: str | None, address: str, *, expected: bool = True, timeout: float | None = None) -> bool:
        """Whether an echo request is answered within ``timeout`` seconds; one is sent every half of
        a second.

        Without it, a reply that is ``expected`` is waited for long, and one that is not, briefly.
        """
        if timeout is None:
            timeout = PATIENTLY if expected else BRIEFLY
        bound = ("-i", "0.5", "-w", f"{timeout:.0f}") if timeout >= 1 else ("-W", str(timeout))
        argv = ("ping", "-n", "-q", "-c", "1", *bound, address)
        deadline = time.monotonic() + timeout
        while True:
            # ping exits early if there is no route yet.
            if run("nsenter", f"--net={self._place(name)}", "--", *argv, check=False).code == 0:
                return True
            if time.monotonic() >= deadline:
                return False
            time.sleep(0.1)

    def reaches(
        self, name: str | None, address: str, port: int, protocol: str = "tcp", *, expected: bool = True
    ) -> bool:
        """Whether a server (``icmp``: the address) replies; waits long if a reply is expected."""
        if protocol == "icmp":
            return self.ping(name, address, expected=expected)
        timeout = PATIENTLY if expected else BRIEFLY
        return self.fetch(name, address, port, protocol, timeout=timeout) is not None

    def snapshot(self) -> Snapshot:
        """Snapshot of the host's network for ``changes``, taken when the kernel has settled."""
        return settled()

    def changes(self, before: Snapshot, *, within: float = PATIENTLY) -> list[str]:
        """Differences to an earlier snapshot; waits up to ``within`` seconds for them to vanish.

        Use ``within=0`` if a difference is expected.
        """
        deadline = time.monotonic() + within
        while (found := difference(before, take())) and time.monotonic() < deadline:
            time.sleep(0.05)
        return found
