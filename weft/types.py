"""Values shared by all packages.

Addresses are ``ipaddress`` objects: ``Address`` is one host's, ``Subnet`` a network prefix, and
``Cidr`` an address with its prefix length, as in ``ip address add``.
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
    """One of an attachment's two network namespaces."""

    HOST = "host"
    CONTAINER = "container"


@dataclass(frozen=True, slots=True)
class Attachment:
    """One interface of one container on one network, as one plugin of a conflist manages it.

    ``plugin`` is the name weft was called by (``weft``, ``bridge``, ``portmap`` …): each plugin of
    a conflist keeps a record of its own.
    """

    network: str
    container: str
    interface: str
    plugin: str

    def __str__(self) -> str:
        return f"{self.container}/{self.interface} on {self.network}"


@dataclass(frozen=True, slots=True)
class NamespaceId:
    """A network namespace: the path given for it, and the device and inode that identify it.

    Device and inode are 0 if the path was not a namespace (a DEL after the container exited).
    """

    path: str
    device: int = 0
    inode: int = 0

    @property
    def known(self) -> bool:
        """Whether the path was a namespace when it was opened."""
        return self.inode != 0

    def same(self, other: NamespaceId) -> bool:
        """Whether both are the same namespace, by device and inode."""
        return self.known and (self.device, self.inode) == (other.device, other.inode)


@dataclass(frozen=True, slots=True)
class Route:
    """A route with the keys of CNI 1.1.0.

    ``mtu`` and ``advmss`` are bytes, ``priority`` is the metric, ``table`` the routing table's id,
    ``scope`` rtm_scope (0 universe, 253 link, 254 host). ``given`` is the destination as written, where
    that has host bits set, which a result repeats; "" otherwise.
    """

    destination: Subnet
    gateway: Address | None = None
    mtu: int | None = None
    advmss: int | None = None
    priority: int | None = None
    table: int | None = None
    scope: int | None = None
    given: str = ""


@dataclass(frozen=True, slots=True)
class Dns:
    """The contents of a container's resolv.conf."""

    nameservers: tuple[str, ...] = ()
    domain: str = ""
    search: tuple[str, ...] = ()
    options: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.nameservers or self.domain or self.search or self.options)


@dataclass(frozen=True, slots=True)
class ResultInterface:
    """An interface in a CNI result. ``sandbox`` is CNI_NETNS, empty for a link of the host."""

    name: str
    mac: str = ""
    sandbox: str = ""
    mtu: int = 0
    socket_path: str = ""
    pci_id: str = ""


@dataclass(frozen=True, slots=True)
class ResultAddress:
    """An address in a CNI result; ``interface`` is an index into its interfaces."""

    address: Cidr
    gateway: Address | None = None
    interface: int | None = None


@dataclass(frozen=True, slots=True)
class Result:
    """The result of an ADD, independent of cniVersion. IPAM plugins return no interfaces."""

    interfaces: tuple[ResultInterface, ...] = ()
    ips: tuple[ResultAddress, ...] = ()
    routes: tuple[Route, ...] = ()
    dns: Dns = field(default_factory=Dns)
