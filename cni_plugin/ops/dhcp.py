"""The operation that gets an address from a DHCP server, on the container's link."""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass, replace

from cni_plugin.ops.addresses import namespace_of
from cni_plugin.ops.links import nsenter
from cni_plugin.ops.operation import Lease, Machine
from ipam import dhcp, dhcp_client
from ipam.dhcp_leases import LeaseFiles, StoredLease
from weft.daemons import Daemon
from weft.errors import KernelRefused, Missing, NamespaceProblem, StateDamaged, WeftError
from weft.types import Cidr, Result, Side

_KEEPER = Daemon("cni_plugin.dhcp.keeper", "renews DHCP leases", "weft dhcp --log")


@dataclass(frozen=True, slots=True)
class DhcpLease(Lease):
    """A lease from a DHCP server, acquired on the container's link; weft's DHCP daemon renews it, undo
    releases it.

    ``provide`` holds options to send, as numbers and hexadecimal bytes, ``client`` the identifier
    likewise. *Equivalent to:* ``udhcpc -i LINK``. Source: RFC 2131.
    """

    key: str
    about: str
    link: str
    client: str
    provide: tuple[tuple[int, str], ...] = ()
    request: tuple[int, ...] = ()
    priority: int | None = None
    addresses: tuple[Cidr, ...] = ()

    @property
    def needs_link(self) -> bool:
        return True

    def reserve(self, machine: Machine) -> Result:
        from weft.kernel.linux.packet_socket import PacketSocket  # only this needs sockets, and only here

        container = namespace_of(machine, Side.CONTAINER, self.link)
        link = container.link(self.link)
        if link is None:
            raise Missing(
                f"link {self.link} not found in the container: DHCP needs it",
                hint="use ipam type dhcp with the plugin that creates the link, like macvlan or bridge",
            )
        if not link.up:  # the reference plugins leave that to DHCP
            container.change_link(self.link, up=True)
        provide = tuple((number, bytes.fromhex(data)) for number, data in self.provide)
        asking = dhcp_client.ClientOptions(bytes.fromhex(self.client), provide, self.request)
        leases = _leases(machine)
        leases.prepare()
        with leases.locked(self.key), PacketSocket(container.id, self.link) as transport:
            lease = dhcp_client.acquire(transport, asking)
            try:
                leases.write(StoredLease(self.key, self.about, container.id, self.link, asking, lease))
            except StateDamaged:
                dhcp_client.release(transport, asking, lease)
                raise
            transport.send_gratuitous_arp(lease.message.yours)
        try:
            _KEEPER.ensure(os.path.join(leases.folder, "keeper.sock"))
        except WeftError:
            self.undo(machine)
            raise
        return dhcp.result(lease.message, self.priority)

    def preview(self, machine: Machine) -> Result:
        raise WeftError(
            "cannot tell which address the DHCP server would offer",
            hint="weft plan supports ipam types host-local and static",
        )

    def available(self, machine: Machine) -> None:
        """A DHCP server can only be found from a container's link."""

    def holding(self, answer: Result) -> Lease:
        return replace(self, addresses=tuple(ip.address for ip in answer.ips))

    def undo(self, machine: Machine) -> None:
        leases = _leases(machine)
        if not os.path.isdir(leases.folder):
            return
        with leases.locked(self.key):
            held = leases.read(self.key)
            if held is not None and not held.lost:
                _release(held)
            leases.remove(self.key)

    def mismatch(self, machine: Machine) -> str | None:
        leases = _leases(machine)
        held = leases.read(self.key)
        if held is None:
            return f"no DHCP lease for {self.about}"
        if held.lost:
            return f"the DHCP lease of {held.lease.message.yours} is lost: {held.lost}"
        if any(address.ip != held.lease.message.yours for address in self.addresses):
            return f"the DHCP lease is of {held.lease.message.yours} instead of {self.addresses[0].ip}"
        _KEEPER.ensure(os.path.join(leases.folder, "keeper.sock"))
        return None

    def commands(self, namespace: str) -> tuple[str, ...]:
        return (f"{nsenter(Side.CONTAINER, namespace)}udhcpc -i {self.link}",)


def _leases(machine: Machine) -> LeaseFiles:
    return LeaseFiles(os.path.join(os.path.dirname(machine.leases.index), "dhcp"))


def _release(held: StoredLease) -> None:
    """Send DHCPRELEASE if the container's link still exists; otherwise the lease expires by itself."""
    from weft.kernel.linux.packet_socket import PacketSocket

    with (
        contextlib.suppress(NamespaceProblem, KernelRefused),
        PacketSocket(held.namespace, held.link) as transport,
    ):
        dhcp_client.release(transport, held.options, held.lease)
