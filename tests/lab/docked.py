"""A private machine with a real dockerd and weft's driver for it."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lab.commands import Outcome
from lab.firewalls import Firewalled
from lab.waiting import PATIENTLY, until

_SOCKET = "/run/docker/plugins/weft.sock"
_PID = "/run/weft-docker.pid"
_GET = ("/bin/busybox", "timeout", "2", "/bin/busybox", "wget", "-q", "-O", "-")

_ANSWERS = """
import socket, sys
server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
server.bind((sys.argv[1], 53))
while True:
    query, client = server.recvfrom(512)
    end = query.index(b"\\0", 12) + 5
    asked = query[end - 4 : end - 2] == b"\\0\\1"
    record = b"\\xc0\\x0c\\0\\1\\0\\1\\0\\0\\0\\x3c\\0\\4" + socket.inet_aton(sys.argv[2])
    counts = b"\\0\\1\\0" + bytes([asked]) + bytes(4)
    server.sendto(query[:2] + b"\\x81\\x80" + counts + query[12:end] + record * asked, client)
"""

_BOOT = """
for process in $(ps -eo pid= | grep -vw -e 1 -e $$); do kill -KILL $process 2>/dev/null || :; done
for name in $(ip -o link | cut -d: -f2 | cut -d@ -f1); do
    case $name in weft* | docker0 | own0) ip link del "$name" ;; esac
done
nft flush ruleset
for mount in $(grep -o ' /run/docker/[^ ]*' /proc/mounts); do umount -l $mount 2>/dev/null || :; done
rm -rf /run/weft /run/docker /run/docker.sock /run/docker.pid /run/containerd
"""


class Docked(Firewalled):
    """dockerd, ``weft docker``, and the neighbour ``outside`` (192.0.2.2)."""

    def __init__(self, folder: Path, root: str, *, layers: Sequence[Path] = (), shared: Path = Path("/mnt")) -> None:
        super().__init__(folder, layers=layers, shared=shared)
        self.drive()
        self.docker()
        self.image(root)

    def drive(self) -> None:
        """Start the driver, and wait until it listens."""
        self.run("rm", "-f", _SOCKET)
        script = f"echo $$ >{_PID}; exec {self.weft_folder}/bin/weft docker"
        self.start("sh", "-c", script, log=self.folder / "driver")
        ready = self.until("test", "-S", _SOCKET, timeout=60)
        assert ready.code == 0, self.log()

    def kill_driver(self) -> None:
        """Kill the driver without notice; its socket stays."""
        self.run("sh", "-c", f"kill -KILL $(cat {_PID}); while test -d /proc/$(cat {_PID}); do sleep 0.05; done")

    def kill_docker(self) -> None:
        """Kill dockerd without notice; its containers go on."""
        pid = self.run("cat", "/run/docker.pid").stdout.strip()
        self.run("sh", "-c", f"kill -KILL {pid}; while test -d /proc/{pid}; do sleep 0.05; done; rm /run/docker.pid")

    def boot(self) -> None:
        """What a boot does, with dockerd and the driver killed: processes, links, rules and /run are gone."""
        self.run("sh", "-c", _BOOT)

    def endpoints(self) -> tuple[set[str], set[str]]:
        """The endpoints that the driver keeps, and those that Docker has."""
        networks = self.ask("network", "ls", "-q", "--filter", "driver=weft").split()
        members = [one for name in networks for one in self.inspect(name)["Containers"].values()]
        kept = {Path(name).stem for name in self.kept() if "/endpoints/" in name}
        return kept, {str(one["EndpointID"]) for one in members}

    def kept_networks(self) -> set[str]:
        """The ids of the networks that the driver keeps."""
        return {Path(name).stem for name in self.kept() if "/networks/" in name}

    def log(self) -> str:
        return (self.folder / "driver").read_text()[-4000:]

    def ask(self, *argv: str, fails: bool = False) -> str:
        """The output of a docker command, which must succeed; of one that ``fails``, its error."""
        outcome: Outcome = self.run("docker", *argv, check=False, timeout=120)
        assert (outcome.code != 0) is fails, (outcome, self.log())
        return (outcome.stderr if fails else outcome.stdout).strip()

    def inspect(self, name: str) -> dict[str, Any]:
        [found] = json.loads(self.ask("inspect", name))
        return dict(found)

    def address(self, name: str, network: str) -> str:
        return str(self.inspect(name)["NetworkSettings"]["Networks"][network]["IPAddress"])

    def gets(self, name: str, place: str, *, expected: bool = True) -> bool:
        """Whether a container gets a web page of weft's tests."""
        argv = ("docker", "exec", name, *_GET, f"http://{place}/")
        outcome = self.until(*argv, timeout=10) if expected else self.run(*argv, check=False)
        return "weft was here" in outcome.stdout

    def resolves(self, name: str, query: str) -> bool:
        """Whether a container gets an answer of Docker's resolver."""
        return self.until("docker", "exec", name, "/bin/nslookup", query).code == 0

    def answers(self, address: str) -> None:
        """Start a DNS server at the neighbour, 192.0.2.2, that knows one address for every name."""
        argv = ("ip", "netns", "exec", "outside", self.python, "-ISc", _ANSWERS, "192.0.2.2", address)
        self.start(*argv, log=self.folder / "dns")

    def kept(self) -> list[str]:
        """The files of the driver's state."""
        return self.files("/var/lib/weft/docker")

    def empty(self) -> None:
        """Remove the containers and weft's networks, of which nothing must be left."""
        if names := self.ask("ps", "-aq").split():
            self.ask("rm", "-f", *names)
        if networks := self.ask("network", "ls", "-q", "--filter", "driver=weft").split():
            self.ask("network", "rm", *networks)
        # One that the driver removes by itself leaves Docker's list before Docker calls DeleteNetwork.
        with contextlib.suppress(AssertionError):
            until(lambda: self.left() == [], 2 * PATIENTLY)
        assert self.left() == [], self.log()

    def left(self) -> list[str]:
        """What is left of weft's attachments and networks."""
        found = self.files("/run/weft/*/attachments") + self.files("/run/weft/*/networks") + self.kept()
        links = [name for name in self.links() if name.startswith(("weft", "veth"))]
        return found + [name for name in links if name != "weft-services"]  # the agent's
