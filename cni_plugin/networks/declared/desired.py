"""From what is declared to the operations that a host lacks: what ``weft diff`` prints and ``weft apply``
applies.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, closing
from dataclasses import dataclass, field, replace
from ipaddress import ip_address, ip_network

from cni_plugin.networks import attachments, conflists
from cni_plugin.networks import create as creating
from cni_plugin.networks.attachments import State
from cni_plugin.networks.chain import Target
from cni_plugin.networks.conflists import OWN_KEY, Json, NetworkList
from cni_plugin.networks.create import CreateOptions
from cni_plugin.networks.declared import document
from cni_plugin.networks.declared.attaching import Attached, NetworkFile
from cni_plugin.networks.declared.document import Document, Hop, Interface, Network, Router, Switch
from cni_plugin.networks.declared.operations import (
    Declared,
    NamedNamespace,
    Registered,
    Removed,
    SourceNat,
    SwitchBridge,
    SwitchPort,
    Within,
    masqueraded,
)
from cni_plugin.networks.owners import container_of
from cni_plugin.ops import Setting
from cni_plugin.ops.operation import Machine
from cni_plugin.service import executor
from cni_plugin.service.verbs import Service
from cni_plugin.wire.plugins import OWN_NAME
from discovery.consul.client import ApiClient
from weft import files, identity
from weft.errors import ConfigProblem, InUse, NamespaceProblem
from weft.kernel.values import BridgeVlan
from weft.types import Side

NETNS = "/run/netns"
_FORWARDING = {4: "net/ipv4/ip_forward", 6: "net/ipv6/conf/all/forwarding"}
_OPTIONAL = (6,)  # a kernel without IPv6


@dataclass(frozen=True, slots=True)
class Ground:
    """What declarations are applied to. ``folder`` is that of the network lists, ``path`` CNI_PATH;
    ``empty`` gives an empty namespace to plan in, and ``client`` the agent's.
    """

    service: Service
    folder: str
    path: tuple[str, ...]
    empty: Callable[[], AbstractContextManager[str]]
    client: ApiClient


@dataclass(frozen=True, slots=True)
class Change:
    """One operation to apply, and why."""

    operation: Declared
    why: str


@dataclass(frozen=True, slots=True)
class Changes:
    """What to do, in order; ``machine`` is what it is done to."""

    found: tuple[Change, ...]
    machine: Machine = field(repr=False)

    def apply(self, service: Service) -> None:
        """Apply all, or undo what was applied and raise WeftError."""
        with executor.Attempt(self.machine, service.watch, service.log) as attempt:
            attempt.apply([one.operation for one in self.found])


def changes(ground: Ground, wanted: Document, kept: Document, *, prune: bool) -> Changes:
    """What the host lacks of what is declared, and, to ``prune``, what it has of what was ``kept`` and is
    not. Raises WeftError where a part of it would fail or take something from somebody; nothing has
    changed then.
    """
    machine = ground.service.machine(None)
    before = {one.about: one for one in operations(ground, kept, wanted)}
    found: list[Change] = []
    after = operations(ground, wanted, kept)
    if prune:
        declared = {each.about for each in after}
        for one in reversed([one for about, one in before.items() if about not in declared]):
            found.append(Change(Removed(_alone(one)), "it is no longer declared"))
    _refuse_removal(ground, found)
    for one in after:
        if (why := one.mismatch(machine)) is None:
            continue
        earlier = before.get(one.about, one)
        if isinstance(earlier, Attached) and earlier.is_attached():
            found.append(Change(Removed(earlier), why))
        found.append(Change(one, why))
    ended = {each.target for each in map(_detached, found) if each is not None}
    for change in found:
        change.operation.refuse(machine)
        if isinstance(change.operation, Attached) and change.operation.target not in ended:
            change.operation.refuse_link()
    return Changes(tuple(found), machine)


def _alone(one: Declared) -> Declared:
    """The operation without what was there before it: undo removes what it has made."""
    if isinstance(one, SwitchBridge | NetworkFile | Registered):
        return replace(one, before=None)
    if isinstance(one, Within) and isinstance(one.made, SourceNat):
        return replace(one, made=replace(one.made, before=()))
    return one


def _detached(change: Change) -> Attached | None:
    made = change.operation.made if isinstance(change.operation, Removed) else None
    return made if isinstance(made, Attached) else None


def _refuse_removal(ground: Ground, removals: Sequence[Change]) -> None:
    """Raises InUse where something is attached to what is to be removed, that is not removed itself."""
    gone = [one.operation.made for one in removals if isinstance(one.operation, Removed)]
    ends = {(one.network.name, one.target) for one in gone if isinstance(one, Attached)}
    networks = {one.name for one in gone if isinstance(one, NetworkFile)}
    switches = {one.name for one in gone if isinstance(one, SwitchBridge)}
    namespaces = {one.path: one.name for one in gone if isinstance(one, NamedNamespace)}
    for each in attachments.endpoints(ground.service):
        target = Target(each.container, each.namespace.path, each.interface)
        if each.state is State.GONE or (each.network, target) in ends:
            continue
        if each.network in networks | switches or each.namespace.path in namespaces:
            what = namespaces.get(each.namespace.path, each.network)
            raise InUse(f"{what} is in use by {each}", hint="detach it first, or keep declaring it")
    for one in conflists.listed(ground.folder)[0]:
        if one.bridge in switches and one.name not in networks:
            raise InUse(f"the switch {one.bridge} is in use by the network {one.name}", hint="remove that one first")


def operations(ground: Ground, found: Document, other: Document) -> list[Declared]:
    """Everything that a document declares, in the order in which it is made; ``other`` is the document
    that the host was made of, or will be.
    """
    switches = {one.name: one for one in (*other.switches, *found.switches)}
    made: list[Declared] = []
    for switch in found.switches:
        made += _switch(ground, switch)
    networks = {one.name: _network(ground, one, found) for one in found.networks}
    made += networks.values()
    names = dict.fromkeys([*(one.name for one in found.routers), *(one.namespace for one in found.interfaces)])
    made += [NamedNamespace(one, f"{NETNS}/{one}", ground.service.kernel) for one in names if "/" not in one]
    for interface in found.every_interface:
        made.append(_attached(ground, interface, networks, switches))
    for router in found.routers:
        made += _forwarding(ground, router)
    for service in found.services:
        digest = identity.digest("service", json.dumps(service.definition, sort_keys=True))
        kept = next((one.definition for one in other.services if one.name == service.name), None)
        made.append(Registered(service.name, service.definition, digest, ground.client, kept))
    return made


def _switch(ground: Ground, switch: Switch) -> Iterator[Declared]:
    host = ground.service.kernel.host
    mac = switch.mac or identity.mac(_machine(), "switch", switch.name)
    ports = tuple(one.link for one in switch.ports)
    yield SwitchBridge(switch.name, mac, switch.mtu, switch.vlans, ports, host.link(switch.name))
    for port in switch.ports:
        there = host.link(port.link)
        access = (BridgeVlan(port.vlan, pvid=True, untagged=True),) if port.vlan else ()
        trunk = port.trunk or (() if port.vlan else switch.vlans)
        tagged = tuple(BridgeVlan(vid) for vid in trunk if vid != port.vlan)
        yield SwitchPort(port.link, switch.name, access + tagged, there is not None and there.up)


def _machine() -> str:
    """What tells this machine from others, also after a boot. Source: machine-id(5)."""
    try:
        return files.read("/etc/machine-id", 64).decode("ascii", "replace").strip()
    except OSError:
        return os.uname().nodename


def _forwarding(ground: Ground, router: Router) -> Iterator[Declared]:
    path, kernel = f"{NETNS}/{router.name}", ground.service.kernel
    nat: tuple[str, ...] = ()
    try:
        with closing(kernel.open(path)) as there:
            nat = masqueraded(there)
    except NamespaceProblem:
        pass
    for version, key in _FORWARDING.items():
        setting = Setting(
            Side.CONTAINER, key, "1" if router.forwarding else "0", before="0", optional=version in _OPTIONAL
        )
        yield Within(f"IPv{version} forwarding of router {router.name}", path, setting, kernel)
    if router.nat or nat:
        yield Within(f"source NAT of router {router.name}", path, SourceNat(router.nat, nat), kernel)


def _network(ground: Ground, network: Network, found: Document) -> NetworkFile:
    """The network's file, with the subnets and the bridge that it has already, where none are declared."""
    every = conflists.listed(ground.folder)[0]
    before = next((one for one in every if one.name == network.name), None)
    asked = network.requested
    if before is not None:
        subnets = asked.subnets or tuple(str(one) for one in conflists.subnets(before))
        bridge = {"bridge": before.bridge} if before.bridge and "bridge" not in asked.options else {}
        asked = replace(asked, subnets=subnets, options={**asked.options, **bridge})
    content = creating.build(
        network.name, asked, [one for one in every if one is not before], ground.service.kernel.host
    )
    notes = content[OWN_KEY]
    assert isinstance(notes, dict)
    notes["options"] = dict(network.requested.options)
    if before is not None:
        notes["created"] = before.notes.text("created")
    _add(content, network, _taken(found, network.requested))
    return NetworkFile(network.name, content, ground.folder, ground.service, before)


def _taken(found: Document, requested: CreateOptions) -> list[str]:
    """The addresses of declared interfaces on the network's switch, which no container must get."""
    switch = requested.options.get("bridge", "")
    return [str(each.ip) for one in found.every_interface if one.switch == switch for each in one.addresses if switch]


def _add(content: Json, network: Network, taken: Sequence[str]) -> None:
    """Add what ``weft network create`` has no options for: routes, services, addresses to leave out."""
    plugins = content["plugins"]
    assert isinstance(plugins, list)
    plugin = plugins[0]
    if network.services:
        plugin["services"] = list(network.services)
    ipam = plugin.get("ipam")
    if not isinstance(ipam, dict):
        return
    if network.routes:
        ipam["routes"] = [_route(one) for one in network.routes]
    for ranges in ipam.get("ranges", []):
        for one in ranges:
            inside = [text for text in taken if _inside(text, str(one["subnet"])) and text != one.get("gateway")]
            if inside:
                one["exclude"] = inside


def _inside(text: str, subnet: str) -> bool:
    return ip_address(text) in ip_network(subnet)


def _route(hop: Hop) -> Json:
    return {"dst": str(hop.destination), "gw": str(hop.via)}


def _attached(
    ground: Ground, one: Interface, networks: Mapping[str, NetworkFile], switches: Mapping[str, Switch]
) -> Attached:
    path = one.namespace if "/" in one.namespace else f"{NETNS}/{one.namespace}"
    target = Target(container_of(one.namespace), path, one.ifname)
    if one.switch:
        network = conflists.parse("", _on_switch(one, switches[one.switch]))
    elif one.network in networks:
        network = conflists.parse("", networks[one.network].content)
    else:
        network = conflists.find(ground.folder, one.network)
    if one.network and one.forwards:
        network = _for_router(network)
    return Attached(one, network, target, ground.service, ground.path, empty=ground.empty)


def _for_router(network: NetworkList) -> NetworkList:
    """The network without the check of source addresses: a router forwards those of others."""
    if not network.weft:
        raise ConfigProblem(f"a router needs a network of weft's, and {network.name} is of {network.types[0]}")
    [first, *rest] = network.plugins
    return replace(network, plugins=({**first, "ipspoofchk": False}, *rest))


def _on_switch(one: Interface, switch: Switch) -> Json:
    """The configuration of an attachment to a switch; there is no file of it."""
    mtu = one.mtu or switch.mtu
    plugin: Json = {
        "type": OWN_NAME,
        "driver": "bridge",
        "bridge": switch.name,
        "capabilities": {"mac": True},
        **({"mtu": mtu} if mtu else {}),
        **({"vlan": one.vlan} if one.vlan else {}),
        **({"vlanTrunk": [{"id": vid} for vid in one.trunk]} if one.trunk else {}),
        **({"ipspoofchk": False} if one.forwards else {}),
    }
    if one.addresses:
        addresses = [{"address": str(each)} for each in one.addresses]
        plugin["ipam"] = {"type": "static", "addresses": addresses, "routes": [_route(hop) for hop in one.routes]}
    return {"cniVersion": creating.VERSION, "name": switch.name, "plugins": [plugin]}


def empty() -> Document:
    """What declares nothing."""
    return document.read({})
