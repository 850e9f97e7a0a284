"""Hosts of a cluster for tests: namespaces on one underlay bridge, each with its files of overlay networks.

Nothing here claims blocks: the tests write the files as the cluster's side would.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cni_plugin.dataplane.tables import TABLES
from cni_plugin.service import overlay, shared
from lab import namespaces
from lab.calls import Answer, Weft
from lab.host import Host
from lab.snapshot import Snapshot, difference, take
from weft import wireguard
from weft.kernel.linux.kernel import LinuxKernel

FOLDER = Path("/var/lib/weft/cluster")
VNIS = {"a": 100, "b": 101}
ESP_PORT = 20680
"""The UDP port of networks with IPsec, which no other network has."""
_HEADERS = {("", 4): 50, ("", 6): 70, ("wireguard", 4): 130, ("wireguard", 6): 150, ("ipsec", 4): 84, ("ipsec", 6): 104}
Json = dict[str, Any]


@dataclass
class Member:
    """A host of the cluster: its number gives its underlay address and its blocks."""

    number: int
    path: str
    underlay: str = ""
    networks: dict[str, Json] = field(default_factory=dict)
    generations: list[int] = field(default_factory=lambda: [1])
    ports: Json = field(default_factory=dict)
    """What the others know of its containers on network a, in mode l2: addresses by MAC address."""
    vlan: list[str] = field(default_factory=list)
    """The addresses of machines on the VLAN that it is the gateway of."""

    @property
    def name(self) -> str:
        return f"h{self.number}"

    def file(self, network: str) -> Path:
        return FOLDER / self.name / f"{network}.json"


class Cluster:
    """Hosts with overlay networks a (10.60.0.0/16) and b (10.61.0.0/16), each host with a /24 and a /64."""

    def __init__(
        self,
        host: Host,
        count: int = 3,
        *,
        ipv6: bool = True,
        encrypted: tuple[str, ...] = (),
        encryption: str = "wireguard",
        underlay: str = "192.0.2.{}/24",
    ) -> None:
        self.host, self.weft, self.ipv6, self.encrypted, self.encryption = host, Weft(), ipv6, encrypted, encryption
        host.container("fab")
        lines = ["link set lo up", "link add f0 type bridge", "link set f0 up"]
        self.members: dict[int, Member] = {}
        for number in range(1, count + 1):
            self.members[number] = Member(
                number, host.container(f"h{number}"), underlay.format(number).partition("/")[0]
            )
        for number, member in self.members.items():
            lines.append(f"link add p{number} type veth peer name eth0 netns h{number}")
            lines.append(f"link set p{number} master f0 up")
            (FOLDER / member.name).mkdir(parents=True, exist_ok=True)
        self._ip("fab", lines)
        self.mtu = inner_mtu(encryption if encrypted else "", 6 if ":" in underlay else 4)
        nodad = " nodad" if ":" in underlay else ""
        for member in self.members.values():
            self._ip(
                member.name,
                ["link set lo up", f"address add {underlay.format(member.number)} dev eth0{nodad}", "link set eth0 up"],
            )
        self.blocks: dict[str, dict[int, list[str]]] = {
            name: {number: self._blocks(name, number) for number in self.members} for name in VNIS
        }
        self.mtus: dict[int, int] = {}
        self.absent = 0
        """So many peers more, which have files' rows and no host."""
        for name in VNIS:
            self.write(name)

    def _ip(self, name: str, lines: list[str]) -> None:
        with namespaces.inside(f"/run/netns/{name}"):
            self.host.run("ip", "-batch", "-", stdin="\n".join(lines))

    def _blocks(self, name: str, number: int) -> list[str]:
        net = 60 if name == "a" else 61
        return [f"10.{net}.{number}.0/24", *([f"fd00:{net}:0:{number}::/64"] if self.ipv6 else [])]

    def network(self, name: str, member: Member) -> Json:
        net = 60 if name == "a" else 61
        return {
            "format": 1,
            "network": name,
            "vni": VNIS[name],
            "mac": f"02:77:00:00:{net}:{member.number:02x}",
            "underlay": member.underlay,
            "mtu": self.mtu if name in self.encrypted else 1450,
            "subnets": [f"10.{net}.0.0/16", *([f"fd00:{net}::/48"] if self.ipv6 else [])],
            "blocks": self.blocks[name][member.number],
            **(self._encryption(name, member) if name in self.encrypted else {}),
            **member.networks.get(name, {}),
        }

    def peers(self, name: str, member: Member) -> list[Json]:
        return [
            {
                "name": one.name,
                "underlay": self.network(name, one)["underlay"],
                "mac": self.network(name, one)["mac"],
                "blocks": [*self.blocks[name][one.number], *(one.vlan if name == "a" else ())],
                **({"ports": one.ports} if name == "a" else {}),
                "mtu": self.mtus.get(one.number, 0),
                **({"keys": self._keys(name, one)} if name in self.encrypted else {}),
            }
            for one in self.members.values()
            if one is not member and one.number in self.blocks[name]
        ] + [
            {
                "name": f"s{number}",
                "underlay": f"198.51.100.{number}",
                "mac": f"02:77:00:00:ff:{number:02x}",
                "blocks": [f"10.{60 if name == 'a' else 61}.{number}.128/25"],
            }
            for number in range(20, 20 + self.absent)
        ]

    def _encryption(self, name: str, member: Member) -> Json:
        port = {"port": ESP_PORT} if self.encryption == "ipsec" else {}
        return {"encryption": self.encryption, "keys": self._keys(name, member), **port}

    def _keys(self, name: str, member: Member) -> list[Json]:
        path = str(member.file(name))
        return [{"generation": one, "key": wireguard.make_key(path, one)} for one in member.generations]

    def write(self, name: str) -> None:
        """The files of one network on all hosts that take part in it, replaced by rename."""
        for member in self.members.values():
            if member.number not in self.blocks[name]:
                continue
            path = member.file(name)
            replace_file(path, self.network(name, member))
            peers = {"format": 1, "network": name, "peers": self.peers(name, member)}
            replace_file(path.with_name(f"{name}.peers.json"), peers)

    def conf(self, name: str, member: int, **keys: Any) -> Json:
        ipam = {"type": "blocks", "file": str(self.members[member].file(name)), "dataDir": f"/var/lib/cni/h{member}"}
        return {"cniVersion": "1.1.0", "name": name, "type": "weft", "driver": "overlay", "ipam": ipam, **keys}

    def add(self, name: str, member: int, container: str, **keys: Any) -> Json:
        """A container on a network and a host; the result of the ADD."""
        path = f"/run/netns/{container}"
        if not Path(path).exists():
            self.host.container(container)
        with namespaces.inside(self.members[member].path):
            return self.weft.add(self.conf(name, member, **keys), path, container)

    def call(self, command: str, name: str, member: int, container: str, **keys: Any) -> Answer:
        with namespaces.inside(self.members[member].path):
            return self.weft(command, self.conf(name, member, **keys), f"/run/netns/{container}", container)

    def delete(self, name: str, member: int, container: str) -> None:
        answer = self.call("DEL", name, member, container)
        assert answer.ok, answer

    def collect(self, name: str, member: int) -> None:
        with namespaces.inside(self.members[member].path):
            self.weft.collect(self.conf(name, member))

    def reconcile(self, name: str, *members: int, everything: bool = False) -> list[str]:
        """What the cluster's agent calls once it has replaced a network's files; with ``everything``,
        what engine and agent call to restore what other programs have changed.
        """
        found: list[str] = []
        for member in members or tuple(self.members):
            with namespaces.inside(self.members[member].path):
                kernel = LinuxKernel(TABLES)
                try:
                    service = self.weft.service(kernel)
                    if everything:
                        shared.repair(service)
                    else:
                        found += overlay.reconcile(service, name)
                finally:
                    kernel.close()
        return found

    def snapshots(self) -> dict[int, Snapshot]:
        """The hosts' state before anything is attached, with forwarding as weft sets it."""
        found = {}
        for number, member in self.members.items():
            self.run(number, "sysctl", "-qw", "net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1")
            with namespaces.inside(member.path):
                found[number] = take()
        return found

    def left(self, before: dict[int, Snapshot]) -> list[str]:
        """What is not as it was."""
        found = []
        for number, member in self.members.items():
            with namespaces.inside(member.path):
                found += difference(before[number], take())
        return found

    def run(self, member: int, *argv: str, check: bool = True) -> str:
        return str(self.host.inside(f"h{member}", *argv, check=check).stdout)


def inner_mtu(encryption: str, version: int) -> int:
    """The MTU of a network on an underlay of 1500 bytes."""
    return 1500 - _HEADERS[encryption, version]


def replace_file(path: Path, document: Json) -> None:
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(document))
    temporary.rename(path)


def address(result: Json, version: int = 4) -> str:
    """The container's address in a result."""
    found = (str(one["address"]).partition("/")[0] for one in result["ips"])
    return next(one for one in found if (":" in one) == (version == 6))
