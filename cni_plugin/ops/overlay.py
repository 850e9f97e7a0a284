"""Operations of overlay networks: the VXLAN link, and what this host's and its peers' blocks need.

What a network's files say may change while it has containers, so these operations keep the path and
read the files whenever they are applied or compared; what they make belongs to the network.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from cni_plugin.dataplane import packets
from cni_plugin.dataplane.overlay import (
    OVERLAY_ENCRYPTED_VNIS,
    OVERLAY_IPSEC_VNIS,
    OVERLAY_LINKS,
    OVERLAY_PEERS4,
    OVERLAY_PEERS6,
    OVERLAY_VNIS,
)
from cni_plugin.ops import overlay_l2
from cni_plugin.ops.links import half_created, has_mark
from cni_plugin.ops.operation import LinkRef, Machine, Operation, reapply
from cni_plugin.ops.overlay_rows import (
    DIRECT,
    Changes,
    Rows,
    actual,
    actual_direct,
    changes,
    collection_paused,
    desired,
    direct,
    segments,
    undoing,
)
from weft import identity, overlay
from weft.errors import Busy, Conflict, Exists, Missing, WeftError
from weft.kernel.canonical import listed
from weft.kernel.interface import Namespace
from weft.kernel.values import Element, Link
from weft.overlay import OverlayNetwork, Peer
from weft.overlay_modes import L2
from weft.types import Side, Subnet

_TTL, _DF_SET = 64, 1
_PEERS = {4: OVERLAY_PEERS4, 6: OVERLAY_PEERS6}
_CHANGEABLE = frozenset({"vxlan_local", "vxlan_local6"})
"""Options of a VXLAN link that can be changed while it is in use; the others need a new link."""


def peers_of(network: OverlayNetwork, path: str) -> tuple[Peer, ...] | None:
    """The peers in the file beside ``path``; None without that file, and then what is set up stays."""
    try:
        return overlay.read_peers(network, path)
    except Busy:
        return None


@dataclass(frozen=True, slots=True)
class VxlanLink(Operation):
    """The VXLAN link of an overlay network, with this host's underlay address, without learning.

    *Equivalent to:* ``ip link add NAME type vxlan id VNI local ADDRESS dstport PORT nolearning df set``.
    Source: ``ip-link(8)``, ``drivers/net/vxlan/vxlan_core.c``. Raises Conflict where the VNI or the
    name is in use.
    """

    name: str
    alias: str
    network: str
    path: str

    @property
    def creates(self) -> tuple[LinkRef, ...]:
        return ((Side.HOST, self.name),)

    @property
    def marks(self) -> frozenset[str]:
        return frozenset({":".join(self.alias.split(":", 2)[:2])})

    def _read(self) -> OverlayNetwork:
        return overlay.read_network(self.path, self.network)

    def _lacks(self, link: Link, found: OverlayNetwork) -> dict[str, int | str]:
        """The options that differ, with the values that they should have."""
        wanted, other = _options(found), "vxlan_local" if found.vtep.version == 6 else "vxlan_local6"
        differing = {key: value for key, value in wanted.items() if str(link.options.get(key, value)) != str(value)}
        lost = {key: value for key, value in wanted.items() if key in _CHANGEABLE and key not in link.options}
        family = {"vxlan_id": found.vni} if other in link.options else {}
        return {**differing, **lost, **family}

    def apply(self, machine: Machine) -> bool:
        found, link = self._read(), machine.host.link(self.name)
        if link is not None:
            own = has_mark(link, self.alias) or half_created(link, found.mac)
            if link.kind != "vxlan" or not own:
                raise Conflict(f"{self.name} is a link of another program", hint=f"ip link delete {self.name}")
            lacking = self._lacks(link, found)
            if not lacking.keys() <= _CHANGEABLE:
                # Rows first: with the link, the kernel deletes its routes in quadratic time.
                undoing(machine.host, self.name, self.name, ()).make(machine.host, self.name)
                machine.host.delete_link(self.name)
                link = None
            else:
                return self._change(machine.host, link, found, lacking)
        try:
            machine.host.add_link(
                self.name, "vxlan", mac=found.mac, mtu=found.mtu, alias=self.alias, up=True, options=_options(found)
            )
        except Exists as error:
            raise Conflict(
                f"VNI {found.vni} on UDP port {found.port} is in use by another VXLAN link of this host",
                hint="ip -d link show type vxlan lists it",
            ) from error
        return True

    def _change(self, host: Namespace, link: Link, found: OverlayNetwork, lacking: dict[str, int | str]) -> bool:
        alias = None if has_mark(link, self.alias) else self.alias
        mac = found.mac if link.mac != found.mac else None
        mtu = found.mtu if link.mtu != found.mtu else None
        if link.up and alias is None and mac is None and mtu is None and not lacking:
            return False
        # The VNI goes with each change of options (vxlan_changelink).
        options = {"vxlan_id": found.vni, **lacking} if lacking else None
        host.change_link(self.name, up=True, alias=alias, mac=mac, mtu=mtu, options=options)
        return True

    def undo(self, machine: Machine) -> None:
        link = machine.host.link(self.name)
        if link is None or link.kind != "vxlan":
            return
        mac = ""
        with contextlib.suppress(WeftError):
            mac = self._read().mac
        if has_mark(link, self.alias) or (mac and half_created(link, mac)):
            with contextlib.suppress(Missing):
                machine.host.delete_link(self.name)

    def mismatch(self, machine: Machine) -> str | None:
        found, link = self._read(), machine.host.link(self.name)
        if link is None:
            return f"the VXLAN link {self.name} is missing"
        if link.kind != "vxlan" or not (has_mark(link, self.alias) or half_created(link, found.mac)):
            return f"{self.name} is a link of another program"
        if not has_mark(link, self.alias):
            return f"the VXLAN link {self.name} lacks its alias"
        if not link.up:
            return f"the VXLAN link {self.name} is down"
        for what, there, wanted in (("MAC address", link.mac, found.mac), ("MTU", link.mtu, found.mtu)):
            if there != wanted:
                return f"the {what} of {self.name} is {there} instead of {wanted}"
        for key, value in self._lacks(link, found).items():
            return f"{key.removeprefix('vxlan_')} of {self.name} is {link.options.get(key)} instead of {value}"
        return None

    def commands(self, namespace: str) -> tuple[str, ...]:
        found = self._read()
        checksum = " noudpcsum" if found.vtep.version == 4 else ""
        kind = f"vxlan id {found.vni} local {found.vtep} dstport {found.port} nolearning ttl {_TTL} df set"
        return (
            f"ip link add {self.name} address {found.mac} mtu {found.mtu} type {kind}{checksum}",
            f"ip link set {self.name} alias '{self.alias}' up",
        )


def _options(found: OverlayNetwork) -> dict[str, int | str]:
    options: dict[str, int | str] = {
        "vxlan_id": found.vni,
        "vxlan_port": found.port,
        "vxlan_learning": 0,
        "vxlan_ttl": _TTL,
        "vxlan_df": _DF_SET,
    }
    if found.vtep.version == 6:
        return {**options, "vxlan_local6": str(found.vtep)}
    return {**options, "vxlan_local": str(found.vtep), "vxlan_udp_csum": 0}


@dataclass(frozen=True, slots=True)
class OverlayRows(Operation):
    """This host's own address of an overlay network, the routes to its blocks, and for each peer a
    neighbour, an FDB row, a nexthop and the routes to the peer's blocks; the rest of the network's
    subnets is unreachable.

    The alias of the VXLAN link says which files were applied last, so that an ADD does not compare
    50,000 peers; CHECK does. ``mode`` is "l2" where all is on the bridge (``overlay_l2``), "direct" where peers
    on a segment of this host are reached without VXLAN.
    *Equivalent to:* ``ip route replace BLOCK nhid ID`` … for each.
    """

    bridge: str
    link: str
    mark: str
    network: str
    path: str
    subnets: tuple[Subnet, ...]
    mode: str = ""

    def pending(self, machine: Machine) -> Changes:
        """What differs from the files: the changes that ``apply`` makes. Raises Busy, StateDamaged."""
        host = machine.host
        found = overlay.read_network(self.path, self.network)
        peers = peers_of(found, self.path)
        if found.is_l2:
            wanted = overlay_l2.desired(found, peers or (), self.bridge, overlay_l2.taken(host, found, self.link))
            there = overlay_l2.actual(host, found, self.bridge, self.link)
            return changes(wanted, there, keep=peers is None)
        nexthops = host.nexthops()
        there = actual(host, self.bridge, self.link, self.subnets, nexthops)
        wanted = desired(found, peers or (), self.bridge, self.link, nexthops)
        if self.mode == DIRECT:
            wanted |= direct(found, peers or (), segments(host, found, peers or ()))
            there |= actual_direct(host, self.subnets)
        return changes(wanted, there, keep=peers is None)

    def apply(self, machine: Machine) -> bool:
        stamp = _stamp(self.path)
        with collection_paused():
            pending = self.pending(machine)
            pending.make(machine.host, self.link, self._at)
        alias = identity.alias(self.mark, f"{stamp} overlay {self.network}")
        link = machine.host.link(self.link)
        if link is not None and link.alias != alias:
            machine.host.change_link(self.link, alias=alias)
        return bool(pending)

    def undo(self, machine: Machine) -> None:
        if self.mode == DIRECT:
            changes({}, actual_direct(machine.host, self.subnets)).make(machine.host, self.link)
        if self.mode != L2:
            undoing(machine.host, self.bridge, self.link, self.subnets).make(machine.host, self.link)
            return
        # Without the network's file, it goes with the links.
        with contextlib.suppress(WeftError):
            found = overlay.read_network(self.path, self.network)
            there = overlay_l2.actual(machine.host, found, self.bridge, self.link)
            changes({}, there).make(machine.host, self.link, self.bridge)

    @property
    def _at(self) -> str:
        return self.bridge if self.mode == L2 else self.link

    def is_missing(self, machine: Machine) -> bool:
        return not applied(machine, self.link, self.mark, self.path)

    def mismatch(self, machine: Machine) -> str | None:
        if machine.host.link(self.link) is None or machine.host.link(self.bridge) is None:
            return f"the links of overlay network {self.network} are missing"
        with collection_paused():
            return self.pending(machine).first

    def commands(self, namespace: str) -> tuple[str, ...]:
        found = overlay.read_network(self.path, self.network)
        peers = peers_of(found, self.path) or ()
        l2 = found.is_l2
        rows = (
            overlay_l2.desired(found, peers, self.bridge) if l2 else desired(found, peers, self.bridge, self.link, ())
        )
        return tuple(changes(rows, Rows()).commands(self.link))


def vni_elements(mark: str, network: OverlayNetwork) -> tuple[Element, ...]:
    """The elements by which VXLAN packets of the network are known, and that they must be encrypted."""
    every = OVERLAY_VNIS, OVERLAY_ENCRYPTED_VNIS, OVERLAY_IPSEC_VNIS
    names = every[: {"": 1, overlay.WIREGUARD: 2, overlay.IPSEC: 3}[network.encryption]]
    return tuple(Element(name, (network.port, network.vni), mark=mark) for name in names)


def tunnel_elements(mark: str, link: str, bridge: str) -> tuple[Element, ...]:
    """The elements that let packets from the VXLAN link to the network's own bridge alone."""
    names = ((OVERLAY_LINKS, (link,)), (packets.INTRA_NETWORK_LINKS, (link, bridge)))
    return tuple(Element(name, key, mark=mark) for name, key in names)


def applied(machine: Machine, link: str, mark: str, path: str) -> bool:
    """Whether a network's files are those that were applied last, by the alias of its VXLAN link."""
    found = machine.host.link(link)
    return found is not None and found.alias.startswith(f"{mark}:{_stamp(path)} ")


def _stamp(path: str) -> str:
    """What tells whether a network's files were replaced."""
    found = []
    for each in (path, overlay.peers_path(path)):
        try:
            status = os.stat(each)
            found.append(f"{status.st_dev} {status.st_ino} {status.st_size} {status.st_mtime_ns}")
        except OSError:
            found.append("")
    return identity.digest(*found)


@dataclass(frozen=True, slots=True)
class PeerElements(Operation):
    """The elements of a network's peers: those with its mark are to be what ``wanted`` returns."""

    SETS: ClassVar[tuple[str, ...]] = ()
    SHOWN: ClassVar[int] = 0
    """The part of an element's key that identifies the peer in a message."""

    mark: str
    network: str
    path: str

    def wanted(self, machine: Machine, network: OverlayNetwork, peers: tuple[Peer, ...]) -> set[Element]:
        """The elements of these peers."""
        raise NotImplementedError

    def _differing(self, machine: Machine) -> tuple[list[Element], list[Element]]:
        """The elements that are missing, and those that should not be."""
        found = overlay.read_network(self.path, self.network)
        peers = peers_of(found, self.path)
        if peers is None:
            return [], []
        there, wanted = set(self._there(machine)), set(map(listed, self.wanted(machine, found, peers)))
        return [*(wanted - there)], [*(there - wanted)]

    def _there(self, machine: Machine) -> Iterator[Element]:
        rules = machine.rules()
        for name in self.SETS:
            with contextlib.suppress(Missing):
                yield from (one for one in rules.elements(name) if one.mark == self.mark)

    def apply(self, machine: Machine) -> bool:
        missing, stray = self._differing(machine)
        if stray:  # first: intervals of one set must not overlap
            machine.rules().delete(stray)
        if missing:
            machine.rules().add(missing)
        return bool(missing or stray)

    def undo(self, machine: Machine) -> None:
        if found := list(self._there(machine)):
            machine.rules().delete(found)

    def mismatch(self, machine: Machine) -> str | None:
        missing, stray = self._differing(machine)
        if missing:
            return f"nftables lacks {missing[0].key[self.SHOWN]} in {missing[0].collection}"
        return (
            f"nftables has {stray[0].key[self.SHOWN]} in {stray[0].collection}, which is no peer's" if stray else None
        )

    def is_missing(self, machine: Machine) -> bool:
        return False  # OverlayRows, which is applied after it, tells whether the files have changed

    def restore(self, machine: Machine) -> bool:
        return reapply(self, machine)


@dataclass(frozen=True, slots=True)
class KnownPeers(PeerElements):
    """The peers from which VXLAN packets with the network's VNI are accepted, as elements of a set.

    *Equivalent to:* ``nft add element inet weft overlay_peers4 { ADDRESS . PORT . VNI }`` for each.
    """

    SETS: ClassVar[tuple[str, ...]] = tuple(_PEERS.values())

    def wanted(self, machine: Machine, network: OverlayNetwork, peers: tuple[Peer, ...]) -> set[Element]:
        name = _PEERS[network.vtep.version]
        return {Element(name, (network.vtep_of(peer), network.port, network.vni), mark=self.mark) for peer in peers}

    def commands(self, namespace: str) -> tuple[str, ...]:
        found = overlay.read_network(self.path, self.network)
        name = _PEERS[found.vtep.version]
        return tuple(
            f"nft add element inet weft {name} '{{ {found.vtep_of(peer)} . {found.port} . {found.vni:#x} "
            f'comment "{self.mark}" }}\''
            for peer in peers_of(found, self.path) or ()
        )


@dataclass(frozen=True, slots=True)
class Encryption(Operation):
    """What encrypts a network's VXLAN packets, in force before the VXLAN link: ``repairs`` does all of it.

    ``mark`` is that of this kind of encryption and the network.
    """

    mark: str
    network: str
    path: str
    vni: int

    @property
    def marks(self) -> frozenset[str]:
        return frozenset({self.mark})

    def repairs(self, host: Namespace, *, only_tell: bool = False) -> Iterator[str]:
        """What differs from the files, in sentences, and each is repaired as it is told, unless ``only_tell``."""
        raise NotImplementedError

    def apply(self, machine: Machine) -> bool:
        return bool(list(self.repairs(machine.host)))

    def mismatch(self, machine: Machine) -> str | None:
        return next(self.repairs(machine.host, only_tell=True), None)

    def is_missing(self, machine: Machine) -> bool:
        vxlan = identity.overlay_vxlan(identity.overlay_bridge(self.network))
        return not applied(machine, vxlan, identity.mark("overlay", self.network), self.path)

    def restore(self, machine: Machine) -> bool:
        return reapply(self, machine)
