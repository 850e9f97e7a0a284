"""The operation that has an address from a DHCP server, over the container's own link."""

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
    """A lease from a DHCP server, asked for on the container's link; the keeper renews it, undo gives it back.

    ``provide`` holds options to send, as numbers and hexadecimal bytes, ``client`` the identifier likewise.
    *Equivalent to:* ``udhcpc -i LINK``. Source: RFC 2131.
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
                f"the container has no link {self.link} for DHCP to be spoken on",
                hint="ipam type dhcp goes with what makes the link: macvlan, bridge, ipvlan, vlan, host-device",
            )
        if not link.up:  # a main plugin that is not weft's leaves that to DHCP
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
            "only the DHCP server knows which address it would give",
            hint="weft plan works with ipam types host-local and static",
        )

    def available(self, machine: Machine) -> None:
        """Whether a server answers shows only on a container's link."""

    def holding(self, answer: Result) -> Lease:
        return replace(self, addresses=tuple(ip.address for ip in answer.ips))

    def undo(self, machine: Machine) -> None:
        leases = _leases(machine)
        if not os.path.isdir(leases.folder):
            return
        with leases.locked(self.key):
            held = leases.read(self.key)
            if held is not None and not held.lost:
                _give_back(held)
            leases.remove(self.key)

    def mismatch(self, machine: Machine) -> str | None:
        leases = _leases(machine)
        held = leases.read(self.key)
        if held is None:
            return f"there is no DHCP lease of {self.about}"
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


def _give_back(held: StoredLease) -> None:
    """Tell the server, where the container's link is still there; otherwise the lease runs out by itself."""
    from weft.kernel.linux.packet_socket import PacketSocket

    with (
        contextlib.suppress(NamespaceProblem, KernelRefused),
        PacketSocket(held.namespace, held.link) as transport,
    ):
        dhcp_client.release(transport, held.options, held.lease)
