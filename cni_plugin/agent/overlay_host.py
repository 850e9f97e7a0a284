"""Overlay networks on this host, as the agent makes them: files for ADD and for runtimes, and the kernel.

Everything here blocks, and is called in one thread.
"""

from __future__ import annotations

import contextlib
import glob
import json
import os
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from ipaddress import ip_address, ip_network

from cluster import tunnels
from cluster.host_files import Host, Json, inner_mtu, network_file, text
from cluster.records import Network
from cni_plugin.dataplane import frames
from cni_plugin.dataplane.tables import TABLES
from cni_plugin.networks import clustered, conflists, leases, pools
from cni_plugin.networks.clustered import Folders
from cni_plugin.ops import overlay_gateway
from cni_plugin.service import overlaps
from cni_plugin.service import overlay as overlays
from cni_plugin.service.removal import remove_network
from cni_plugin.service.verbs import Service
from ipam.directory import as_address
from ipam.host_local_config import DATA_DIRECTORY
from weft import claims, files, identity, overlay, wireguard
from weft.claims import Claim
from weft.errors import Busy, Missing, WeftError
from weft.kernel import default_route
from weft.kernel.host import Host as ThisHost
from weft.kernel.interface import Kernel
from weft.kernel.linux.kernel import LinuxKernel
from weft.kernel.values import Element
from weft.overlay_modes import L2, ContainerPort
from weft.types import Address, Result, Subnet

_PODMAN = "/etc/containers"
_ADD_SECONDS = 120.0
"""An ADD that has not leased what it claims after so long never will."""
_ETHERNET = 1500
"""The MTU where that of the uplink is not known."""
_SOMEWHERE = ip_address("192.0.2.1")
"""An underlay address (RFC 5737) to try a configuration with."""


@dataclass(frozen=True, slots=True)
class Look:
    """What was found on this host: the networks with a file of the agent's (``joined``), those with
    containers, the leases of each, why it cannot take part in one that it has not joined, and its public keys of
    each encrypted one, by generation, and what containers
    claim of static addresses, and the containers of each network of mode l2.
    """

    host: Host | None
    joined: frozenset[str] = frozenset()
    attached: Mapping[str, int] = field(default_factory=dict)
    leased: Mapping[str, frozenset[Address]] = field(default_factory=dict)
    conflicts: Mapping[str, str] = field(default_factory=dict)
    keys: Mapping[str, Mapping[int, str]] = field(default_factory=dict)
    claims: Mapping[str, tuple[Claim, ...]] = field(default_factory=dict)
    ports: Mapping[str, tuple[ContainerPort, ...]] = field(default_factory=dict)
    leasing: Mapping[str, tuple[Subnet, ...]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Stamp:
    """What changes when a container or a machine on a VLAN comes or goes, or claims an address; and when a
    network's record, this host's address or a key does, and the kernel may differ from what it was.
    """

    containers: tuple[object, ...] = ()
    host: tuple[object, ...] = ()


class OverlayHost:
    """``node`` is this host's name; ``address`` the configured one of the underlay, "" for the uplink's."""

    def __init__(self, node: str, address: str, folder: str) -> None:
        self._node = node
        self._address = address
        self._at_vlan = False  # whether this host is the VLAN gateway of a network
        cni = os.environ.get("WEFT_CNI_CONFIG") or conflists.FOLDER
        self.folders = Folders(cni, os.path.join(_PODMAN, "networks"), folder)

    @contextlib.contextmanager
    def _service(self) -> Iterator[Service]:
        kernel = LinuxKernel(TABLES)
        try:
            service = Service(kernel, ThisHost.current(kernel))
            service.records.prepare()
            yield service
        finally:
            kernel.close()

    def look(self, networks: Iterable[Network], keys: Mapping[str, tuple[int, ...]]) -> Look:
        """Look at everything; ``keys`` are the generations of keys that are to be made. Raises WeftError."""
        with self._service() as service:
            attached: dict[str, int] = {}
            ports: dict[str, tuple[ContainerPort, ...]] = {}
            known = list(networks)
            l2 = {one.name for one in known if one.mode == L2}
            for record in service.records.all():
                name = record.attachment.network
                attached[name] = attached.get(name, 0) + 1
                if name in l2 and (port := _port(record.result)) is not None:
                    ports[name] = (*ports.get(name, ()), port)
            gateways = [one.vlan_gateway for one in known]
            self._at_vlan = any(one is not None and one.host == self._node for one in gateways)
            for one in known:
                if found := self._machines(service, one):
                    ports[one.name] = (*ports.get(one.name, ()), *found)
            joined = frozenset(self.folders.joined())
            names = joined | {one.name for one in known}
            leased = {name: frozenset(_leased(name)) for name in names}
            new = [one for one in known if not service.recorded_shared(one.name)]
            conflicts = self._conflicts(service, new) if new else {}
            public = {name: self._public_keys(name, generations) for name, generations in keys.items()}
            asked = _claims(service.host.run, leased)
            leasing = {name: blocks for name in joined if (blocks := self._leasing(name)) is not None}
            there = self._underlay(service, joined)
            return Look(there, joined, attached, leased, conflicts, public, asked, ports, leasing)

    def _machines(self, service: Service, network: Network) -> tuple[ContainerPort, ...]:
        """The machines on a VLAN that this host is the gateway of."""
        gateway = network.vlan_gateway
        if gateway is None or gateway.host != self._node:
            return ()
        port = overlay_gateway.port_name(gateway, identity.overlay_bridge(network.name))
        return overlay_gateway.machines(_seen(service.kernel), service.kernel.host.all_ports_fdb(), port)

    def _leasing(self, name: str) -> tuple[Subnet, ...] | None:
        """What a network's file says that is leased from, None if there is none."""
        try:
            return overlay.read_network(self.folders.network_file(name), name).blocks
        except WeftError:
            return None

    def _public_keys(self, name: str, generations: tuple[int, ...]) -> dict[int, str]:
        """The public keys of an encrypted network, whose private ones are made where there are none."""
        files.make_directory(self.folders.overlay, "the files of overlay networks")
        path = self.folders.network_file(name)
        before = wireguard.key_path(path, min(generations) - 1)
        if os.path.lexists(before):
            files.remove(before, "a private key that was replaced")
        return {one: wireguard.make_key(path, one) for one in generations}

    def _underlay(self, service: Service, joined: Iterable[str]) -> Host | None:
        """Where VXLAN packets of this host come from: the configured address, or the uplink's. While there is no
        default route it stays what the networks have, since the peers may be reached by other routes.
        """
        host = service.kernel.host
        found = ip_address(self._address) if self._address else default_route.address(host)
        wanted = [found] if found is not None else list(filter(None, map(self._underlay_of, joined)))
        for name, there in host.all_addresses():
            if there.ip in wanted and (link := host.link(name)) is not None:
                # Packets from an address of lo leave by other links.
                mtu = link.mtu if name != "lo" else default_route.mtu(host) or _ETHERNET
                return Host(self._node, there.ip, mtu)
        return None

    def _underlay_of(self, name: str) -> Address | None:
        with contextlib.suppress(WeftError):
            return overlay.read_network(self.folders.network_file(name), name).underlay
        return None

    def _conflicts(self, service: Service, networks: Iterable[Network]) -> dict[str, str]:
        """What on this host has a network's subnet already: an address, a route, or another network."""
        host = service.kernel.host
        uses = [*overlaps.of_addresses(host), *overlaps.of_routes(host), *overlaps.of_virtual_ranges()]
        found = {}
        for network in networks:
            others = [one for one in conflists.listed(self.folders.cni)[0] if one.name != network.name]
            bridge = identity.overlay_bridge(network.name)
            own = {bridge, identity.overlay_vxlan(bridge)}
            every = [*(use for use in uses if use.link not in own), *pools.of_networks(others)]
            for subnet in network.subnets:
                use = pools.first_overlap(subnet, every)
                if use is not None:
                    found[network.name] = f"its subnet {subnet} overlaps with {use.subnet}: {use.by}"
                    break
        return found

    def stamp(self) -> Stamp:
        """Raises WeftError."""
        with contextlib.closing(LinuxKernel(TABLES)) as kernel:
            run = ThisHost.current(kernel).run
            address = self._address or str(default_route.address(kernel.host))
            seen = frozenset(_seen(kernel)) if self._at_vlan else frozenset()
        joined = self.folders.joined()
        leased = tuple(_changed(os.path.join(DATA_DIRECTORY, name)) for name in joined)
        # One that must not be used again was removed (weft.esp).
        keys = sorted(glob.glob(os.path.join(glob.escape(self.folders.overlay), "*.key")))
        return Stamp(
            (*leased, _changed(os.path.join(run, claims.FOLDER)), seen),
            (*joined, _changed(os.path.join(run, "networks")), address, *keys),
        )

    def join(self, network: Network, own: Json, peers: Json, full: bool) -> list[str]:
        """Write the network's files, set it up, and offer it to runtimes; what differed. Without ``full`` the
        kernel is compared only where a file has changed. Raises WeftError.
        """
        path = self.folders.network_file(network.name)
        files.make_directory(self.folders.overlay, "the files of overlay networks")
        changed = _replace(self.folders.peers_file(network.name), text(peers))
        changed |= _replace(path, text(own))
        content = clustered.conflist(network, self.folders)
        config = conflists.parse(path, content).plugin_config(0, {}, None)
        found: list[str] = []
        with self._service() as service:
            if full or changed:
                with contextlib.suppress(Missing):  # it is not set up yet
                    found = overlays.reconcile(service, network.name)
            if full or changed or not service.recorded_shared(network.name):
                overlays.set_up(service, json.dumps(config).encode())
        clustered.offer(network, self.folders, podman=os.path.isdir(_PODMAN))
        return found

    def answer(self, claim: Claim, refused: str) -> None:
        """Tell a container's ADD what came of its claim of addresses. Raises StateDamaged."""
        with contextlib.closing(LinuxKernel()) as kernel:
            claims.answer(ThisHost.current(kernel).run, claim, refused)

    def withhold(self, network: str, own: Json) -> frozenset[Address]:
        """Lease from these blocks alone from now on; the leases that there are then."""
        _replace(self.folders.network_file(network), text(own))
        return frozenset(_leased(network))

    def leave(self, name: str) -> str:
        """Remove a network that the cluster has no more; why it is still there, "" if it is not. Raises
        WeftError.
        """
        clustered.withdraw(name, self.folders)
        path = self.folders.network_file(name)
        with self._service() as service:
            containers = sorted(str(one.attachment) for one in service.records.all() if one.attachment.network == name)
            if containers:
                return f"removed from the cluster, and still used here by {', '.join(containers[:3])}"
            files.remove(path, "the file of an overlay network")
            try:
                remove_network(service, name)
            except Busy as error:
                return error.message
        files.remove(self.folders.peers_file(name), "the file of peers")
        stem = f"{path.removesuffix('.json')}."
        for each in glob.glob(f"{glob.escape(stem)}*.key"):
            if each.removeprefix(stem).removesuffix(".key").isdecimal():  # not a key of a network NAME.1
                files.remove(each, "a private key")
        with contextlib.suppress(WeftError):
            leases.remove_unused(os.path.join(DATA_DIRECTORY, name))
        return ""

    def validate(self, network: Network) -> None:
        """Raises ConfigProblem where a container could not be attached to such a network, WeftError."""
        with tempfile.TemporaryDirectory(prefix="weft-") as folder:
            there = replace(self.folders, overlay=folder)
            lengths = zip(network.subnets, network.blocks, strict=True)
            own = tuple(ip_network((one.network_address, length)) for one, length in lengths)
            path = there.network_file(network.name)
            host = Host(self._node, _SOMEWHERE, 1500)
            keys: Json = {}
            if generation := tunnels.wanted(network):
                keys = {tunnels.KEYS: [{tunnels.GENERATION: generation, "key": wireguard.make_key(path, generation)}]}
            found = network_file(
                replace(network, vni=network.vni or 1), host, own, (), inner_mtu(network, host, ()), keys
            )
            files.write(path, text(found), "a file to try")
            config = conflists.parse(path, clustered.conflist(network, there)).plugin_config(0, {}, None)
            overlays.validate(json.dumps(config).encode())


def _seen(kernel: Kernel) -> tuple[Element, ...]:
    """What machines on VLANs have sent, as the rules have noted it."""
    with contextlib.suppress(WeftError):
        return kernel.rules.elements(frames.VLAN_MACHINES4)
    return ()


def _changed(folder: str) -> int:
    """When something came into a folder or went, in nanoseconds; 0 if it is missing."""
    try:
        return os.stat(folder).st_mtime_ns
    except OSError:
        return 0


def _leased(network: str) -> Iterator[Address]:
    """The leased addresses, by the names of their files."""
    try:
        names = os.listdir(os.path.join(DATA_DIRECTORY, network))
    except OSError:
        return
    for name in names:
        if (found := as_address(name)) is not None:
            yield found


def _claims(run: str, leased: Mapping[str, frozenset[Address]]) -> dict[str, tuple[Claim, ...]]:
    """The claims of each network; those that an ADD has left which was killed are removed."""
    found: dict[str, tuple[Claim, ...]] = {}
    for one in claims.listed(run):
        if time.time() - one.written > _ADD_SECONDS and not leased.get(one.network, frozenset()) & {*one.addresses}:
            claims.remove(run, one.network, one.container, one.interface)
        else:
            found[one.network] = (*found.get(one.network, ()), one)
    return found


def _port(result: Result) -> ContainerPort | None:
    """What the bridge of another host must know of a container; None of one that has no addresses yet."""
    mac = next((one.mac for one in result.interfaces if one.sandbox and one.mac), "")
    addresses = tuple(one.address.ip for one in result.ips)
    return ContainerPort(mac, addresses) if mac and addresses else None


def _replace(path: str, content: bytes) -> bool:
    """Replace a file, if it differs: its readers take a new one for a change. Whether it did."""
    with contextlib.suppress(OSError):
        if files.read(path) == content:
            return False
    files.write(path, content, "the file of an overlay network", durable=True)
    return True
