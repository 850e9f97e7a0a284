"""A private machine with podman, and a neighbour."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lab.commands import Outcome
from lab.machine import Machine
from lab.waiting import PATIENTLY

_LEASES = "/var/lib/cni/networks"
# Without cgroups: crun then needs no privileges that may be missing, also for infra containers.
_CONTAINERS_CONF = """
[containers]
cgroups = "disabled"
default_ulimits = ["nofile=1024:1024", "nproc=1024:1024"]
[engine]
cgroup_manager = "cgroupfs"
events_logger = "none"
runtime = "crun"
[network]
network_backend = "{backend}"
{backend}_plugin_dirs = ["{folder}"]
"""
_STORAGE_CONF = """
[storage]
driver = "vfs"
runroot = "/run/containers/storage"
graphroot = "/var/lib/containers/storage"
"""
_GET = """
import http.client, sys
client = http.client.HTTPConnection(sys.argv[1], int(sys.argv[2]), timeout=3)
client.request("GET", "/")
print(client.getresponse().read().decode())
"""
_OF_CONTAINERS = (
    "ports",
    "masquerade4",
    "masquerade6",
    "masquerade_all",
    "hairpin",
    "loopback_ports",
    "port_mac",
    "ingress_policy4",
    "ingress_policy6",
    "ingress_isolated",
    "snat",
)
_SLEEP = ("/bin/sleep", "600")


class Podman(Machine):
    """A machine with podman, networks of the given conflists, and the neighbour 192.0.2.2 on lan0.

    This machine's own podman uses CNI; that of a root of another release (``layers``) uses netavark.
    """

    def __init__(
        self, plugins: Path, *conflists: Mapping[str, Any], layers: Sequence[Path] = (), shared: Path = Path("/mnt")
    ) -> None:
        super().__init__(layers=layers, shared=shared)
        self.network = str(conflists[0]["name"]) if conflists else "podman"
        for number, conflist in enumerate(conflists, 10):
            self.write(f"/etc/cni/net.d/{number}-{conflist['name']}.conflist", json.dumps(conflist))
        backend = "netavark" if layers else "cni"
        self.write("/etc/containers/containers.conf", _CONTAINERS_CONF.format(folder=plugins, backend=backend))
        self.write("/etc/containers/storage.conf", _STORAGE_CONF)
        self.write("/etc/containers/policy.json", '{"default": [{"type": "insecureAcceptAnything"}]}')
        for line in (
            "netns add outside",
            "link add lan0 type veth peer name eth0 netns outside",
            "address add 192.0.2.1/24 dev lan0",
            "link set lan0 up",
            "-n outside address add 192.0.2.2/24 dev eth0",
            "-n outside link set eth0 up",
        ):
            self.run("ip", *line.split())

    # Podman

    def podman(self, *argv: str) -> str:
        """The output of a command that must succeed."""
        return self.run("podman", *argv).stdout.strip()

    def start_one(
        self, name: str, root: str, *options: str, network: str = "", command: tuple[str, ...] = _SLEEP
    ) -> Outcome:
        """``podman run``, which may fail. With the ``network`` "-" there is no option --network."""
        where = () if network == "-" else ("--network", network or self.network)
        flags = ("--cap-add=NET_RAW", *where, "--name", name, *options)
        return self.run("podman", "run", "-d", *flags, "--rootfs", root, *command, check=False)

    def up(self, name: str, root: str, *options: str, network: str = "", command: tuple[str, ...] = _SLEEP) -> str:
        """Start a container; its address."""
        outcome = self.start_one(name, root, *options, network=network, command=command)
        assert outcome.code == 0, outcome
        return str(self.inspect(name, "podman" if network == "-" else network)["IPAddress"])

    def serve(self, name: str, root: str, *options: str, network: str = "") -> str:
        """Start a container with a web page on port 80; its address."""
        return self.up(name, root, *options, network=network, command=("/bin/httpd", "-f", "-p", "80", "-h", "/www"))

    def inspect(self, name: str, network: str = "") -> dict[str, Any]:
        """The network settings of a container in ``podman inspect``."""
        return dict(self.state(name)["NetworkSettings"]["Networks"][network or self.network])

    def defined(self, network: str) -> dict[str, Any]:
        """The output of ``podman network inspect`` for a network."""
        [found] = json.loads(self.podman("network", "inspect", network))
        return dict(found)

    def state(self, name: str) -> dict[str, Any]:
        """The output of ``podman inspect`` for a container."""
        [found] = json.loads(self.podman("inspect", name))
        return dict(found)

    def show(self, name: str, *argv: str) -> str:
        """The output of busybox's ``ip`` in a container."""
        return self.podman("exec", name, "/bin/ip", *argv)

    def ping(self, name: str, address: str, *, expected: bool = True) -> bool:
        """Whether an echo request is answered; repeated if a reply is expected, else sent once."""
        argv = ("podman", "exec", name, "/bin/ping", "-c", "1", "-W", "1", address)
        return self.until(*argv, timeout=PATIENTLY if expected else 0).code == 0

    def get(self, address: str, port: int, *, namespace: str = "", patience: float = PATIENTLY) -> str:
        """The page of a server, fetched on the machine or in a namespace; "" if that fails in time."""
        where = ("ip", "netns", "exec", namespace) if namespace else ()
        return self.until(*where, self.python, "-ISc", _GET, address, str(port), timeout=patience).stdout

    # Without engine and agent

    @property
    def unfollowed(self) -> dict[str, str]:
        """The environment of a command that starts neither engine nor agent."""
        return {**(self._environment or os.environ), "WEFT_ENGINE": "off", "WEFT_FOLLOW": "off"}

    def flush_unfollowed(self) -> None:
        """Flush all rules once engine and agent, which would restore them, are stopped."""
        stopped = self.weft("down")
        assert stopped.code == 0, stopped
        self.run("nft", "flush", "ruleset")

    # State of the machine

    def findings(self) -> list[str]:
        """What ``weft doctor`` finds."""
        return [one["what"] for one in self.weft("doctor", "--json").json["findings"]]

    def leases(self, network: str = "") -> list[str]:
        """The leased addresses on disk; of all networks with "*"."""
        folder = _LEASES if network == "*" else f"{_LEASES}/{network or self.network}"
        names = [Path(path).name for path in self.files(folder)]
        return [name for name in names if not name.startswith(("last_reserved_ip", "lock"))]

    def left(self) -> list[str]:
        """Leftovers of removed containers: leases, results, links, rules."""
        found = self.leases("*") + self.files("/var/lib/cni/results")
        found += [link for link in self.links() if link.startswith("veth")]
        for each in self.run("nft", "-j", "list", "ruleset").json["nftables"]:
            one = each.get("set") or each.get("map") or {}
            if one.get("name", "").startswith(_OF_CONTAINERS):
                elements = [element for element in one.get("elem", ()) if not _is_name_server(element)]
                found += [f"{one['name']} {elements}"] if elements else []
        return found


def _is_name_server(element: Any) -> bool:
    """Whether an element keeps port 53 of a gateway for the agent: it is the network's, not a container's."""
    match element:
        case [{"elem": {"val": {"concat": [address, _, 53]}}}, {"concat": [target, 53]}]:
            return bool(address == target)
    return False
