"""What this host knows of its cluster: files in ``/etc/weft/etcd``, which only root can read.

``cluster.json`` (``Local``); ``ca.pem``, ``node.pem`` and ``node-key.pem`` on every node. On members of etcd also
``ca-key.pem``, ``peer-ca.pem`` and ``peer-ca-key.pem`` (a member can be lost and the cluster goes on), ``peer.pem``
and ``peer-key.pem``, ``root.pem`` and ``root-key.pem`` (etcd's user root), and etcd's own configuration
``etcd.conf``.
"""

from __future__ import annotations

import json
import shutil
import socket
from dataclasses import asdict, dataclass, replace
from ipaddress import ip_address
from pathlib import Path

from cluster.nodes import Role
from store.etcd.settings import EtcdSettings
from weft import files
from weft.errors import StateDamaged
from weft.section import Section
from weft.types import Address

FOLDER = "/etc/weft/etcd"
STATE = "/var/lib/weft/etcd"
"""Where commands keep what they know of the cluster (``store.etcd.record``), as the agent by default."""
JOIN_PORT, CLIENT_PORT, PEER_PORT = 2378, 2379, 2380
_FORMAT = 1
_FILE = "cluster.json"
_MEMBERS = ("root.pem", "root-key.pem", "ca-key.pem", "peer-ca.pem", "peer-ca-key.pem", "peer.pem", "peer-key.pem")
"""What only members of etcd have; first what says that a host is one."""


@dataclass(frozen=True, slots=True)
class Local:
    """``fingerprint`` is of the cluster's authority, ``cluster`` its id ("" until the host has joined), ``id`` the
    node's, ``endpoints`` are ``HOST:PORT`` of etcd. ``made``: by init, not by join; ``done``: that has come to its
    end.
    """

    node: str
    id: str
    address: str
    fingerprint: str = ""
    cluster: str = ""
    role: Role = Role.CLIENT
    endpoints: tuple[str, ...] = ()
    made: bool = False
    done: bool = False

    @property
    def is_member(self) -> bool:
        return self.role is not Role.CLIENT

    @property
    def join_addresses(self) -> tuple[str, ...]:
        """Where members serve joins, ``HOST:PORT``."""
        return tuple(f"{one.rpartition(':')[0]}:{JOIN_PORT}" for one in self.endpoints)

    @property
    def underlay(self) -> Address:
        return ip_address(self.address)


class Files:
    """The files of one host; ``folder`` is absolute."""

    def __init__(self, folder: str = FOLDER) -> None:
        self.folder = folder

    def path(self, name: str) -> str:
        return f"{self.folder}/{name}"

    def prepare(self) -> None:
        """Make the folder. Raises StateDamaged."""
        files.make_directory(str(Path(self.folder).parent), "weft's configuration", mode=0o755)
        files.make_directory(self.folder, "certificates of the cluster")

    def has(self, name: str) -> bool:
        return Path(self.path(name)).exists()

    def read(self, name: str) -> bytes:
        """Raises StateDamaged."""
        try:
            return files.read(self.path(name), most=1 << 20)
        except OSError as error:
            raise StateDamaged(
                f"cannot read {self.path(name)}: {error.strerror}", hint="weft cluster join makes it"
            ) from None

    def write(self, name: str, content: bytes) -> None:
        """Replace a file, of mode 0600. Raises StateDamaged."""
        files.write(self.path(name), content, "a file of the cluster:", durable=True)

    def remove(self) -> None:
        """Remove the folder: certificates, keys and all."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def remove_members(self) -> None:
        """Remove what only members of etcd have. Raises StateDamaged."""
        for name in _MEMBERS:
            files.remove(self.path(name), "a file of the cluster:")

    def load(self) -> Local | None:
        """What ``cluster.json`` says, None without one. Raises StateDamaged."""
        if not self.has(_FILE):
            return None
        section = Section(_json(self.read(_FILE), self.path(_FILE)))
        found = Local(
            node=section.text("node"),
            id=section.text("id"),
            address=section.text("address"),
            fingerprint=section.text("fingerprint"),
            cluster=section.text("cluster"),
            role=Role(section.text("role", Role.CLIENT, choices=tuple(Role))),
            endpoints=section.texts("endpoints"),
            made=section.flag("made"),
            done=section.flag("done"),
        )
        section.address("address")
        if section.problems.found or not (found.node and found.id and found.address):
            raise StateDamaged(
                f"{self.path(_FILE)}: {'; '.join(section.problems.found) or 'node, id or address is missing'}",
                hint="restore it from a backup, or remove the folder and join again",
            )
        return found

    def save(self, local: Local) -> Local:
        """Write ``cluster.json``. Raises StateDamaged."""
        self.write(_FILE, json.dumps({"format": _FORMAT, **asdict(local)}, indent=1).encode() + b"\n")
        return local

    def settings(self, local: Local, state: str = STATE) -> EtcdSettings:
        """How this node uses etcd: a member also its own, of which the others' list may not know yet."""
        own = (endpoint(local.address, CLIENT_PORT),) if local.is_member else ()
        return EtcdSettings(
            tuple(dict.fromkeys((*local.endpoints, *own))),
            state,
            tls=True,
            ca=self.path("ca.pem"),
            cert=self.path("node.pem"),
            key=self.path("node-key.pem"),
        )

    def root_settings(self, local: Local, state: str = STATE) -> EtcdSettings:
        """How a member administrates etcd, which takes longer than other requests."""
        own = self.settings(local, state)
        return replace(
            own, cert=self.path("root.pem"), key=self.path("root-key.pem"), attempt_seconds=3.0, call_seconds=10.0
        )


def endpoint(address: Address | str, port: int) -> str:
    """``HOST:PORT``, with brackets around an IPv6 address."""
    return f"[{address}]:{port}" if ":" in str(address) else f"{address}:{port}"


def is_own(address: str) -> bool:
    """Whether this host has an address."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as probe:
        try:
            probe.bind((address, 0))
        except OSError:
            return False
    return True


def peer_url(address: Address | str) -> str:
    """The URL by which other members reach a member."""
    return f"https://{endpoint(address, PEER_PORT)}"


def _json(content: bytes, path: str) -> object:
    try:
        return json.loads(content)
    except ValueError as error:
        raise StateDamaged(f"{path} is not valid JSON: {error}", hint="restore it from a backup") from None
