"""Whole hosts for tests: each a network and a mount namespace with its own /run, state and configuration, so
that real agents, engines and runtimes run beside each other as on as many machines.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
from pathlib import Path
from typing import Any

from lab import dns, namespaces
from lab.commands import Outcome, run
from lab.plugins import ROOT
from lab.waiting import until

_FOLDERS = "/etc/cni /etc/weft /etc/containers /var/lib/cni /var/lib/weft /var/log/weft"
_READY = 60.0
_SERVER = (
    "import socket,sys\n"
    "server=socket.create_server(('', 80))\n"
    "print('listens', flush=True)\n"
    "while True:\n"
    "    connection,_=server.accept(); connection.sendall(sys.argv[1].encode()); connection.close()\n"
)
_CLIENT = "import socket,sys; print(socket.create_connection((sys.argv[1], int(sys.argv[2])), 5).recv(99).decode())"
Json = dict[str, Any]


class Machine:
    """One host, ``hN`` at ``PREFIX.10N``; its container namespaces are made and entered in its own /run."""

    def __init__(self, number: int, bridge: str, prefix: str) -> None:
        self.number, self.name = number, f"h{number}"
        self.address = f"{prefix}.{100 + number}"
        self.link = f"{bridge}-h{number}"
        self.environment = {"PATH": os.environ["PATH"], "LC_ALL": "C.UTF-8", "HOME": "/root"}
        lines = [f"mount -t tmpfs -o mode=0755 tmpfs {one}" for one in ("/run", *_FOLDERS.split())]
        script = "; ".join([f"mkdir -p {_FOLDERS}", *lines, "mkdir -p /run/netns /run/lock", "echo ready",
                            "exec sleep infinity"])  # fmt: skip
        self._process = subprocess.Popen(
            ["unshare", "--net", "--mount", "--propagation", "private", "sh", "-ec", script],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
        )
        assert self._process.stdout is not None and self._process.stdout.readline() == b"ready\n"
        pid = str(self._process.pid)
        run("ip", "link", "add", self.link, "type", "veth", "peer", "name", "eth0", "netns", pid)
        run("ip", "link", "set", self.link, "master", bridge, "up")
        lines = ["link set lo up", f"address add {self.address}/24 dev eth0", "link set eth0 up"]
        self.run("ip", "-batch", "-", stdin="\n".join(lines))
        self.network = f"/proc/{pid}/ns/net"
        self.inode = os.stat(self.network).st_ino

    def argv(self, *argv: str) -> list[str]:
        return ["nsenter", "-t", str(self._process.pid), "-n", "-m", "--", *argv]

    def run(self, *argv: str, stdin: str = "", check: bool = True, timeout: float = 120) -> Outcome:
        return run(*self.argv(*argv), stdin=stdin, environment=self.environment, check=check, timeout=timeout)

    def start(self, *argv: str, **options: Any) -> subprocess.Popen[bytes]:
        return subprocess.Popen(self.argv(*argv), env=self.environment, **options)

    def weft(self, *arguments: str, check: bool = True) -> Outcome:
        return self.run(str(ROOT / "bin/weft"), *arguments, check=check)

    def write(self, path: str, text: str) -> None:
        self.run("sh", "-c", f'mkdir -p "$(dirname {path})"; cat > {path}', stdin=text)

    def path(self, path: str) -> Path:
        """A file of the host, as the test's own process sees it."""
        return Path(f"/proc/{self._process.pid}/root{path}")

    def read(self, path: str) -> Any:
        """A JSON file of the host."""
        return json.loads(self.path(path).read_text())

    # Containers

    def attach(self, network: str, container: str, *options: str) -> str:
        """Attach a new container; its IPv4 address."""
        self.run("ip", "netns", "add", container)
        found = self.weft("attach", "--json", network, container, *options).json
        return str(next(one["address"] for one in found["ips"] if "." in one["address"])).partition("/")[0]

    def detach(self, network: str, container: str) -> None:
        self.weft("detach", network, container)
        self.run("ip", "netns", "delete", container)

    def add(self, network: str, container: str, arguments: str = "", command: str = "ADD", **runtime: Any) -> str:
        """ADD as a runtime does, with CNI_ARGS and runtimeConfig; its IPv4 address. Or another command."""
        if command == "ADD":
            self.run("ip", "netns", "add", container)
        path = next(one["Weft"]["File"] for one in self.weft("network", "inspect", network).json)
        listed = self.read(path)
        config = {**listed["plugins"][0], "name": network, "cniVersion": listed["cniVersion"], "runtimeConfig": runtime}
        call = {"CNI_COMMAND": command, "CNI_CONTAINERID": container, "CNI_NETNS": f"/run/netns/{container}",
                "CNI_IFNAME": "eth0", "CNI_PATH": str(ROOT / "bin/cni"), "CNI_ARGS": arguments}  # fmt: skip
        argv = self.argv("env", *(f"{key}={value}" for key, value in call.items()), str(ROOT / "bin/cni/weft"))
        answer = run(*argv, stdin=json.dumps(config), environment=self.environment)
        if command != "ADD":
            return ""
        found = answer.json
        return str(next(one["address"] for one in found["ips"] if "." in one["address"])).partition("/")[0]

    def inside(self, container: str) -> str:
        """The path of a container's namespace, as the test's own process sees it."""
        return str(self.path(f"/run/netns/{container}"))

    def ping(self, container: str, to: str, seconds: float = 10.0, *, expected: bool = True) -> bool:
        """Whether a container gets an answer; for an expected one it tries as long as that."""
        wait = ("-i", "0.2", "-w", str(int(seconds))) if expected else ("-w", "1")
        argv = ("ip", "netns", "exec", container, "ping", "-n", "-q", "-c", "1", *wait, to)
        return self.run(*argv, check=False).code == 0

    def serve(self, container: str, text: str) -> subprocess.Popen[bytes]:
        """A server on TCP port 80 in a container, which answers with the text, and listens when this returns."""
        found = self.start("ip", "netns", "exec", container, "python3", "-c", _SERVER, text, stdout=subprocess.PIPE)
        assert found.stdout is not None and found.stdout.readline()
        return found

    def fetch(self, container: str, address: str, port: int = 80) -> str:
        """What a server answers a container, or the host itself if that is ""; "" without an answer."""
        within = ("ip", "netns", "exec", container) if container else ()
        return self.run(*within, "python3", "-c", _CLIENT, address, str(port), check=False).stdout.strip()

    def resolved(self, container: str, name: str, server: str) -> list[str]:
        """The addresses of a name, as a container is answered."""
        with namespaces.inside(self.inside(container)):
            reply = dns.ask(server, 53, dns.question(name), timeout=2)
        return [text.rpartition(" ")[2] for text in dns.records(dns.read(reply).answer)] if reply else []

    # The agent

    @property
    def agent(self) -> int:
        """The process of the agent, 0 without one."""
        found = self.weft("status", "--json", check=False).json
        return int(found["agent"]["pid"]) if found["agent"] else 0

    def up(self) -> None:
        self.weft("up", "--config", "/etc/weft/weft.toml", check=False)

    def kill_agent(self) -> None:
        os.kill(self.agent, signal.SIGKILL)

    def cut(self, on: bool = True) -> None:
        """Cut the host off from all others, or connect it again."""
        run("ip", "link", "set", self.link, "down" if on else "up")

    def close(self) -> None:
        for process in processes_within(self.inode):
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        self._process.kill()
        self._process.wait()
        self._process.stdout.close()  # type: ignore[union-attr]
        run("ip", "link", "delete", self.link, check=False)


def processes_within(inode: int) -> list[int]:
    """The processes in a network namespace."""
    found = []
    for each in Path("/proc").iterdir():
        if each.name.isdigit():
            with contextlib.suppress(OSError):
                if os.stat(each / "ns/net").st_ino == inode:
                    found.append(int(each.name))
    return found


class Machines:
    """Hosts on one bridge, whose agents share the etcd cluster at ``endpoints``."""

    def __init__(self, bridge: str, prefix: str, endpoints: tuple[str, ...], count: int = 3, more: str = "") -> None:
        self.bridge = bridge
        self.all: dict[int, Machine] = {}
        listed = ", ".join(f'"http://{one}"' for one in endpoints)
        try:
            for number in range(1, count + 1):
                made = self.all[number] = Machine(number, bridge, prefix)
                agent = f'[agent]\nnode = "h{number}"\naddress = "{made.address}"\n'
                made.write("/etc/weft/weft.toml", f"{agent}[store]\nendpoints = [{listed}]\n{more}")
            for made in self.all.values():
                made.up()
        except BaseException:
            self.close()
            raise

    def __getitem__(self, number: int) -> Machine:
        return self.all[number]

    def create(self, network: str, *options: str, on: int = 1) -> None:
        """Create an overlay network on one host, and wait until all take part in it."""
        self.all[on].weft("network", "create", "-d", "overlay", network, *options)
        self.joined(network)

    def joined(self, network: str) -> None:
        """Wait until all hosts take part, and know each other's blocks."""
        until(lambda: all(self._knows(one, network) for one in self.all.values()), _READY, f"network {network}")

    def _knows(self, one: Machine, network: str) -> bool:
        if not one.path(f"/etc/cni/net.d/zz-{network}.conflist").exists():
            return False
        return len(self.peers(one, network)) == len(self.all) - 1

    def peers(self, one: Machine, network: str) -> list[Json]:
        """The peers that a host has in its file."""
        with contextlib.suppress(FileNotFoundError):
            return list(one.read(f"/run/weft/{one.inode}/agent/overlay/{network}.peers.json")["peers"])
        return []

    def close(self) -> None:
        for one in self.all.values():
            one.close()
