"""The values that pass between weft's parts: frozen, without behaviour beyond validity.

Addresses are ``ipaddress`` objects: an ``Address`` is one host's, a ``Subnet`` a network's, and a
``Cidr`` an address together with its subnet, as ``ip address add`` takes it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from ipaddress import (
    IPv4Address,
    IPv4Interface,
    IPv4Network,
    IPv6Address,
    IPv6Interface,
    IPv6Network,
)

Address = IPv4Address | IPv6Address
Subnet = IPv4Network | IPv6Network
Cidr = IPv4Interface | IPv6Interface


class Side(StrEnum):
    """Which of an attachment's two network namespaces a thing is in."""

    HOST = "host"
    CONTAINER = "container"


@dataclass(frozen=True, slots=True)
class Attachment:
    """One interface of one container on one network, as one plugin of the list made it.

    ``plugin`` is the name weft was called by (``weft``, ``bridge``, ``portmap`` …): each member of a
    conflist keeps its own record, though all share network, container and interface.
    """

    network: str
    container: str
    interface: str
    plugin: str

    def __str__(self) -> str:
        return f"{self.container}/{self.interface} on {self.network}"


@dataclass(frozen=True, slots=True)
class NamespaceId:
    """Which network namespace: the path it was named by, and the inode that tells it from others.

    Device and inode are 0 when the path led to no namespace (a DEL after the container is gone).
    """

    path: str
    device: int = 0
    inode: int = 0

    @property
    def known(self) -> bool:
        """Whether the path led to a namespace when it was looked at."""
        return self.inode != 0

    def same(self, other: NamespaceId) -> bool:
        """Whether both are one namespace, whatever their paths."""
        return self.known and (self.device, self.inode) == (other.device, other.inode)


@dataclass(frozen=True, slots=True)
class Route:
    """A route as CNI 1.1.0 has it. ``scope`` is the kernel's number (0 universe, 253 link, 254 host).

    ``advmss`` and ``mtu`` are bytes, ``priority`` is the metric, ``table`` a routing table's number.
    """

    destination: Subnet
    gateway: Address | None = None
    mtu: int | None = None
    advmss: int | None = None
    priority: int | None = None
    table: int | None = None
    scope: int | None = None


@dataclass(frozen=True, slots=True)
class Dns:
    """What a container's resolv.conf should hold."""

    nameservers: tuple[str, ...] = ()
    domain: str = ""
    search: tuple[str, ...] = ()
    options: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.nameservers or self.domain or self.search or self.options)


@dataclass(frozen=True, slots=True)
class ResultInterface:
    """One link in a CNI result. ``sandbox`` is the CNI_NETNS string, empty for a link of the host."""

    name: str
    mac: str = ""
    sandbox: str = ""
    mtu: int = 0
    socket_path: str = ""
    pci_id: str = ""


@dataclass(frozen=True, slots=True)
class ResultAddress:
    """One address in a CNI result; ``interface`` indexes the result's interfaces."""

    address: Cidr
    gateway: Address | None = None
    interface: int | None = None


@dataclass(frozen=True, slots=True)
class Result:
    """What an ADD answers, whatever the version it is printed in. IPAM fills no interfaces."""

    interfaces: tuple[ResultInterface, ...] = ()
    ips: tuple[ResultAddress, ...] = ()
    routes: tuple[Route, ...] = ()
    dns: Dns = field(default_factory=Dns)
