"""The operation that has an address from a DHCP server, over the container's own link."""

from __future__ import annotations

import contextlib
import os
import sys
from dataclasses import dataclass, replace

from cni_plugin.errors import KernelRefused, Missing, NamespaceProblem, StateDamaged, WeftError
from cni_plugin.ops.addresses import present
from cni_plugin.ops.links import at
from cni_plugin.plan import Lease, Machine
from cni_plugin.types import Cidr, Result, Side
from ipam import dhcp, dhcp_client
from ipam.dhcp_held import Held, Leases

_SYSTEMD_RUN = "/usr/bin/systemd-run"
_ANSWER_SECONDS = 2.0
_START_SECONDS = 5.0
_KEEPER = (
    "import os, sys; os.fork() and os._exit(0); os.closerange(3, 4096); os.chdir('/'); "
    "sys.path[:] = eval(sys.argv.pop(1)); from cni_plugin.dhcp.keeper import main; sys.exit(main([]))"
)


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
        from cni_plugin.kernel.packets import PacketWire  # only this needs sockets, and only here

        container = present(machine, Side.CONTAINER, self.link)
        link = container.link(self.link)
        if link is None:
            raise Missing(
                f"the container has no link {self.link} for DHCP to be spoken on",
                hint="ipam type dhcp goes with what makes the link: macvlan, bridge, ipvlan, vlan, host-device",
            )
        if not link.up:  # a main plugin that is not weft's leaves that to DHCP
            container.change_link(self.link, up=True)
        provide = tuple((number, bytes.fromhex(data)) for number, data in self.provide)
        asking = dhcp_client.Asking(bytes.fromhex(self.client), provide, self.request)
        leases = _leases(machine)
        leases.prepare()
        with leases.locked(self.key), PacketWire(container.id, self.link) as wire:
            given = dhcp_client.acquire(wire, asking)
            try:
                leases.write(Held(self.key, self.about, container.id, self.link, asking, given))
            except StateDamaged:
                dhcp_client.release(wire, asking, given)
                raise
            wire.announce(given.message.yours)
        try:
            ensure_keeper(leases.folder)
        except WeftError:
            self.undo(machine)
            raise
        return dhcp.result(given.message, self.priority)

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

    def lacks(self, machine: Machine) -> str | None:
        leases = _leases(machine)
        held = leases.read(self.key)
        if held is None:
            return f"there is no DHCP lease of {self.about}"
        if held.lost:
            return f"the DHCP lease of {held.given.message.yours} is lost: {held.lost}"
        if any(address.ip != held.given.message.yours for address in self.addresses):
            return f"the DHCP lease is of {held.given.message.yours} instead of {self.addresses[0].ip}"
        ensure_keeper(leases.folder)
        return None

    def commands(self, namespace: str) -> tuple[str, ...]:
        return (f"{at(Side.CONTAINER, namespace)}udhcpc -i {self.link}",)


def _leases(machine: Machine) -> Leases:
    return Leases(os.path.join(os.path.dirname(machine.leases.index), "dhcp"))


def _give_back(held: Held) -> None:
    """Tell the server, where the container's link is still there; otherwise the lease runs out by itself."""
    from cni_plugin.kernel.packets import PacketWire

    with (
        contextlib.suppress(NamespaceProblem, KernelRefused),
        PacketWire(held.namespace, held.link) as wire,
    ):
        dhcp_client.release(wire, held.asking, held.given)


def ensure_keeper(folder: str) -> None:
    """Have a keeper look at the leases: the one that is there, or a new one. Raises WeftError where none starts."""
    import time

    if _looked(folder):
        return
    _start_keeper()
    deadline = time.monotonic() + _START_SECONDS
    while not _looked(folder):
        if time.monotonic() > deadline:
            raise WeftError(
                "the process that renews DHCP leases does not start",
                hint=f"weft dhcp --log says why; its socket is {folder}/keeper.sock",
            )
        time.sleep(0.02)


def _looked(folder: str) -> bool:
    """Whether a keeper of this user's is there and has looked at the leases now."""
    import socket

    with contextlib.closing(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)) as connection:
        connection.settimeout(_ANSWER_SECONDS)
        try:
            connection.connect(os.path.join(folder, "keeper.sock"))
            given = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
            user = int.from_bytes(given[4:8], sys.byteorder)
            return user in (0, os.geteuid()) and connection.recv(8) == b"looked\n"
        except OSError:
            return False


def _start_keeper() -> None:
    """Start a keeper that outlives this process, in this thread's network namespace, holding nothing of ours open."""
    argv = [sys.executable, "-IBSc", _KEEPER, repr(sys.path)]
    if os.path.exists("/run/systemd/system") and os.path.exists(_SYSTEMD_RUN):
        argv[:0] = [_SYSTEMD_RUN, "--quiet", "--scope", "--collect"]
    environment = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "MALLOC_ARENA_MAX": "2"}
    nothing = [(os.POSIX_SPAWN_OPEN, number, os.devnull, os.O_RDWR, 0) for number in (0, 1, 2)]
    try:
        child = os.posix_spawn(argv[0], argv, environment, file_actions=nothing, setsid=True)
        os.waitpid(child, 0)  # it ends at once: its own child is the keeper, and nobody's
    except OSError as error:
        raise WeftError(f"cannot start the process that renews DHCP leases: {error.strerror}") from error
