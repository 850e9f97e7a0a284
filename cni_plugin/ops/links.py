"""Operations on links: veth pairs, up and down; and what is common to all that make links."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from cni_plugin.ops.operation import LinkRef, Machine, Operation
from weft import stderr
from weft.errors import Conflict, Exists, KernelRefused, Missing
from weft.kernel import default_route
from weft.kernel.interface import Namespace, VethPeer
from weft.kernel.values import Link
from weft.types import Side

_PATIENCE = 2.0  # seconds
_LONGEST_WAIT, _PAUSE = 1.0, 0.002  # seconds


def nsenter(side: Side, namespace: str) -> str:
    """The prefix that runs a shell command in the network namespace of that side."""
    return "" if side is Side.HOST else f"nsenter --net={namespace} "


def has_mark(link: Link, alias: str) -> bool:
    """Whether the link has the mark that the alias starts with."""
    mark = ":".join(alias.split(":", 2)[:2])
    return link.alias == mark or link.alias.startswith(f"{mark}:")


def half_created(link: Link, mac: str) -> bool:
    """Whether the link was created, but its process killed before it set the alias: our MAC address, no
    alias.
    """
    return not link.alias and link.mac == mac


def retry_while_exists(work: Callable[[], None]) -> None:
    """Retry on EEXIST for two seconds, then raise Exists.

    A deleted namespace keeps its MAC addresses, VLANs and IP addresses on a shared parent link until
    cleanup_net has run: some milliseconds, a second under load.
    """
    deadline = time.monotonic() + _PATIENCE
    while True:
        try:
            return work()
        except Exists:
            if time.monotonic() >= deadline:
                raise
        time.sleep(0.02)


@dataclass(frozen=True, slots=True)
class Veth(Operation):
    """A veth pair: the host end is up, on ``bridge`` if given; the container end is still down.

    ``container_mtu`` is the MTU that CHECK expects of the container end if ``tuning`` has changed it.
    ``handed``: the container end is for the runtime to move, from the host's namespace; ``moved``: it has,
    and has configured it, so that it alone can make it again.
    ``follows``: nobody has set the MTU, it was that of the uplink when the pair was created.
    *Equivalent to:* ``ip link add HOST type veth peer name CONTAINER netns NETNS``.
    """

    host: str
    container: str
    alias: str
    host_mac: str
    mac: str
    mtu: int
    bridge: str = ""
    container_mtu: int = 0
    handed: bool = False
    follows: bool = False
    moved: bool = False

    @property
    def creates(self) -> tuple[LinkRef, ...]:
        return ((Side.HOST, self.host), (Side.CONTAINER, self.container))

    @property
    def needs(self) -> tuple[LinkRef, ...]:
        return ((Side.HOST, self.bridge),) if self.bridge else ()

    def handed_over(self) -> Veth:
        return replace(self, handed=True)

    def settled(self, link: str) -> Veth:
        return replace(self, container=link, handed=False, moved=True)

    def apply(self, machine: Machine) -> bool:
        if machine.container is None:
            raise Missing(f"cannot create {self.container}: the container's network namespace is gone")
        try:
            machine.host.add_link(
                self.host,
                "veth",
                mac=self.host_mac,
                mtu=self.mtu,
                alias=self.alias,
                up=True,
                master=self.bridge,
                peer=VethPeer(self.container, mac=self.mac, mtu=self.mtu, namespace=machine.container),
                addrgen_none=bool(self.bridge),
            )
        except Exists:
            if machine.container.link(self.container) is None:
                raise
            raise Conflict(
                f"link {self.container} already exists in the container",
                hint="DEL the attachment that created it first, or use another CNI_IFNAME",
            ) from None
        return True

    def undo(self, machine: Machine) -> None:
        # Name and MAC address are both derived from the attachment: a link that has both is ours
        # even without its alias.
        known = machine.host.cached_mac(self.host) == self.host_mac
        link = None if known else machine.host.link(self.host)
        if known or (link is not None and self._is_ours(link)):
            with contextlib.suppress(Missing):
                machine.host.delete_link(self.host)
        elif machine.container is not None:
            # The host end was renamed: the container must not keep an address that is about to be released.
            inner = machine.container.link(self.container)
            if inner is not None and (inner.kind, inner.mac) == ("veth", self.mac):
                with contextlib.suppress(Missing):
                    machine.container.delete_link(self.container)

    def mismatch(self, machine: Machine) -> str | None:
        inside = None if self.handed else self._container_mismatch(machine)
        return self._host_mismatch(machine) or inside or self._uplink_mismatch(machine)

    def _host_mismatch(self, machine: Machine) -> str | None:
        link = machine.host.link(self.host)
        if link is None:
            container = machine.container
            both = container is not None and not self.handed and container.link(self.container) is None
            inside = f"the container's link {self.container} ({self.host} on the host)"
            return f"{inside} is missing" if both else f"the host's link {self.host} is missing"
        if not link.up:
            return f"the host's link {self.host} is down"
        if link.master != self.bridge:
            where = f"on {link.master}" if link.master else "on no bridge"
            return f"the host's link {self.host} is {where} instead of {self.bridge or 'standing alone'}"
        return f"the MTU of {self.host} is {link.mtu} instead of {self.mtu}" if link.mtu != self.mtu else None

    def lost(self, machine: Machine) -> tuple[LinkRef, ...]:
        """Both ends unless they are there, one the other's peer; the host's where it is off its bridge."""
        host = machine.host.link(self.host)
        inner = machine.container.link(self.container) if machine.container is not None else None
        if host is None or not (self.handed or (inner is not None and _are_peers(host, inner))):
            return self.creates
        return (self.creates[0],) if host.master != self.bridge else ()

    def is_repairable(self, machine: Machine) -> bool:
        host, container = machine.host.link(self.host), machine.container
        if container is None or self.handed or (host is not None and not self._is_ours(host)):
            return False
        if self.creates[1] in self.lost(machine):
            inner = container.link(self.container)
            renamed = inner is not None and host is None and (inner.kind, inner.mac) == ("veth", self.mac)
            if self.moved or (inner is not None and not renamed):
                return False
        return self._uplink_mismatch(machine) is None

    def repair(self, machine: Machine) -> None:
        if self.creates[1] in self.lost(machine):
            self.undo(machine)  # what is left of the pair: an end that was moved or renamed
            self.apply(machine)
            return
        machine.host.change_link(self.host, up=True, mtu=self.mtu, master=self.bridge)
        if machine.container is not None:
            machine.container.change_link(self.container, mac=self.mac, mtu=self.container_mtu or self.mtu)

    def _is_ours(self, link: Link) -> bool:
        return has_mark(link, self.alias) or half_created(link, self.host_mac)

    def _container_mismatch(self, machine: Machine) -> str | None:
        if machine.container is None:
            return "the container's network namespace is gone"
        link = machine.container.link(self.container)
        if link is None or link.kind != "veth":
            return (
                f"the container's link {self.container} is missing" if link is None else f"{self.container} is no veth"
            )
        outer = machine.host.link(self.host)
        if outer is not None and not _are_peers(outer, link):
            return f"{self.container} is not the other end of {self.host}"
        if link.mac != self.mac:
            return f"{self.container} has the MAC address {link.mac} instead of {self.mac}"
        mtu = self.container_mtu or self.mtu
        return f"the MTU of {self.container} is {link.mtu} instead of {mtu}" if link.mtu != mtu else None

    def _uplink_mismatch(self, machine: Machine) -> str | None:
        mtu = self.container_mtu or self.mtu
        now = default_route.mtu(machine.host) if self.follows else 0
        return (
            f"the MTU of {self.container} is {mtu}, and that of the host's uplink is only {now} now"
            if (0 < now < mtu)
            else None
        )

    def restore(self, machine: Machine) -> bool:
        link = machine.host.link(self.host)
        if link is None or link.kind != "veth" or self._host_mismatch(machine) is None:
            return False
        if self.bridge and machine.host.link(self.bridge) is None:
            return False
        machine.host.change_link(self.host, up=True, mtu=self.mtu, master=self.bridge)
        return True

    def commands(self, namespace: str) -> tuple[str, ...]:
        master = f" master {self.bridge}" if self.bridge else ""
        peer = f"peer name {self.container} address {self.mac} mtu {self.mtu} netns {namespace}"
        return (
            f"ip link add {self.host} address {self.host_mac} mtu {self.mtu} type veth {peer}",
            f"ip link set {self.host} alias '{self.alias}'{' addrgenmode none' if self.bridge else ''}{master} up",
        )


def _are_peers(one: Link, other: Link) -> bool:
    """Whether two links are the ends of one veth pair."""
    return (one.peer_index, other.peer_index) == (other.index, one.index)


@dataclass(frozen=True, slots=True)
class Up(Operation):
    """Bring a link up; undo sets it down unless it was up (``was``). *Equivalent to:* ``ip link set
    LINK up``.
    """

    side: Side
    link: str
    was: bool = False

    @property
    def on_link(self) -> LinkRef | None:
        return (self.side, self.link)

    def apply(self, machine: Machine) -> bool:
        # Its state is not read first: that takes RTNL, and the kernel ignores IFF_UP on a link that is up.
        self._set(machine, True)
        return not self.was

    def undo(self, machine: Machine) -> None:
        if not self.was:
            with contextlib.suppress(Missing):
                self._set(machine, False)

    def _set(self, machine: Machine, up: bool) -> None:
        namespace = machine.side(self.side)
        if namespace is None:
            raise Missing(f"there is no link {self.link} in the {self.side}")
        retry_while_exists(lambda: namespace.change_link(self.link, up=up))

    def mismatch(self, machine: Machine) -> str | None:
        namespace = machine.side(self.side)
        link = namespace.link(self.link) if namespace is not None else None
        if link is None:
            return f"the {self.side}'s link {self.link} is missing"
        return None if link.up else f"the {self.side}'s link {self.link} is down"

    def commands(self, namespace: str) -> tuple[str, ...]:
        return (f"{nsenter(self.side, namespace)}ip link set {self.link} up",)


@dataclass(frozen=True, slots=True)
class Reachable(Operation):
    """Wait until the ``host`` end of the container's veth pair sends, on ``bridge`` if given, and announce the
    container's addresses.

    The kernel announces them when the link comes up (arp_notify, ndisc_notify), but only then begins to
    prepare the port: what goes through it before is lost. So would be the container's first packet, and the
    answer to it; and neighbours that remember another container with the address would send to that for a
    minute. Waits a second at most, and not for a link that the container has set down, whose addresses the
    kernel announces once it is up, nor for the spanning tree protocol. What is not in operation by then, as a
    bridge that somebody has set down, does not make ADD fail, nor does a link that was renamed meanwhile.
    Nothing is left to undo. *Equivalent to:* ``ip link set LINK address MAC`` with the MAC address that it has.
    """

    link: str
    host: str
    bridge: str = ""

    @property
    def on_link(self) -> LinkRef | None:
        return (Side.CONTAINER, self.link)

    def apply(self, machine: Machine) -> bool:
        if machine.container is None:
            raise Missing(f"there is no link {self.link} in the container")
        try:
            self._wait(machine.host, machine.container)
            machine.container.announce(self.link)
        except KernelRefused as error:
            stderr.write(f"weft: the addresses of {self.link} are not announced: {error}\n")
        return True

    def _wait(self, host: Namespace, container: Namespace) -> None:
        deadline = time.monotonic() + _LONGEST_WAIT
        while not host.is_operational(self.host, self.bridge):
            # Looked at each time: processes of the container may set it down meanwhile.
            inner = container.cached_link(self.link)
            if inner is None or not inner.up:
                return
            if time.monotonic() >= deadline:
                where = f" on {self.bridge}" if self.bridge else ""
                stderr.write(f"weft: {self.host}{where} is not in operation after {_LONGEST_WAIT:.0f} s\n")
                return
            time.sleep(_PAUSE)

    def undo(self, machine: Machine) -> None:
        return None

    def mismatch(self, machine: Machine) -> str | None:
        return None

    def commands(self, namespace: str) -> tuple[str, ...]:
        forwards = "forwards (or is in a state of the spanning tree protocol before that)"
        enter, same = nsenter(Side.CONTAINER, namespace), f"ip link show {self.link} | awk '/ether/ {{print $2}}'"
        return (
            f"# wait until {self.host} {forwards if self.bridge else 'is in operation'}, then announce the addresses",
            f"{enter}ip link set {self.link} address $({enter}{same})",
        )
