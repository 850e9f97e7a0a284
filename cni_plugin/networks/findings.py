"""The checks of ``weft doctor``: each finding states a problem and its remedy."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum

from cni_plugin.networks import attachments, conflists, leases, podman, pools, requirements
from cni_plugin.networks.attachments import Endpoint, State
from cni_plugin.networks.conflists import NetworkList
from cni_plugin.networks.differences import LO_DOWN, differences
from cni_plugin.networks.firewalls import dropped
from cni_plugin.ops import Gateways
from cni_plugin.plan import modules
from cni_plugin.plan.traits import Parent
from cni_plugin.service import overlaps
from cni_plugin.service.context import ServiceContext
from cni_plugin.service.orphans import NO_ORPHANS, Orphans, element_text, orphans, unused_networks
from cni_plugin.service.records import NetworkRecord
from ipam import ranges
from weft import identity
from weft.errors import WeftError
from weft.kernel.linux.probe import Ability
from weft.remedies import Command, NoCommand, Remedy
from weft.section import Section
from weft.types import NamespaceId, Subnet

_WITHOUT_FILE = "podman"
"""podman keeps its default network's list in memory only."""

_FORWARDING = {4: "net/ipv4/ip_forward", 6: "net/ipv6/conf/all/forwarding"}


class FixedBy(StrEnum):
    """What fixes a finding: ``weft gc``, ``weft doctor --repair``, or the operator (``person`` in
    ``--json``).
    """

    GC = "gc"
    REPAIR = "repair"
    OPERATOR = "person"


@dataclass(frozen=True, slots=True)
class Finding:
    """A problem, and the command that mends it or the reason why none does. ``advice``: nothing is wrong, but it
    could be better.
    """

    what: str
    remedy: Remedy
    fixed_by: FixedBy = FixedBy.OPERATOR
    advice: bool = False


_GC = Command("weft gc", "to remove it")
_REPAIR = Command("weft doctor --repair", "to restore it")
_RESTART = "restart the container with its own runtime"
_BY_HAND = NoCommand(f"{_RESTART}, or detach and attach it again")
_BY_DOCKER = NoCommand("restart the container, or docker network disconnect and connect: Docker configured its link")
_TO_DECIDE = "which of the two is to be decided"
_RECREATE = "make the network again with another subnet once its containers are gone"


def of_host(abilities: Sequence[Ability], networks: Sequence[NetworkList]) -> Iterator[Finding]:
    """Kernel features that are missing and needed by weft itself or a network."""
    needed = requirements.needed(networks)
    for one in abilities:
        if one.problem and one.essential:
            yield Finding(
                f"{one.name}: {one.problem}",
                NoCommand("use another kernel, or root's rights: no container can be attached without it"),
            )
        elif one.problem and one.name in needed:
            yield Finding(
                f"{one.name}: {one.problem}",
                NoCommand(
                    f"network {needed[one.name]} requires it ({one.serves}): use another kernel, or remove the network"
                ),
            )


def of_files(found: Orphans, problems: Sequence[WeftError]) -> Iterator[Finding]:
    """Network lists and records that cannot be read."""
    for problem in problems:
        yield Finding(problem.message, NoCommand(problem.hint or "correct or remove the file"))
    for path in found.files:
        if path.endswith(".damaged"):
            yield Finding(f"{path} was damaged or no regular file, renamed", _GC, FixedBy.GC)


def of_leftovers(context: ServiceContext, found: Orphans, networks: Sequence[NetworkList]) -> Iterator[Finding]:
    """What has weft's mark and no owner, unused networks and stale leases."""
    for name in found.links:
        yield Finding(f"link {name} has weft's mark and belongs to no attachment", _GC, FixedBy.GC)
    for element in found.elements:
        text = element_text(element)
        yield Finding(f"nftables element {text} has weft's mark and belongs to no attachment", _GC, FixedBy.GC)
    for name in found.unrecorded:
        yield Finding(f"{name} runs, but its record is lost, with /run/weft", _BY_HAND)
    for mark in found.rules:
        yield Finding(f"iptables rules with the comment {mark} belong to no network", _GC, FixedBy.GC)
    for path in found.files:
        if not path.endswith(".damaged"):
            yield Finding(f"file {path} was left by a killed call", _GC, FixedBy.GC)
    of_podman = podman.listed()
    defined = {_WITHOUT_FILE, *(network.name for network in networks), *(one.name for one in of_podman)}
    for name in sorted((set(unused_networks(context)) - defined) | set(podman.forgotten(context, of_podman))):
        yield Finding(f"network {name} is set up but neither defined nor used", _GC, FixedBy.GC)
    for lease in leases.stale(context, networks):
        what = f"address {lease.address} on {lease.network} is leased to {lease.owner}, which is gone"
        yield Finding(what, _GC, FixedBy.GC)


def of_subnets(context: ServiceContext) -> Iterator[Finding]:
    """Networks whose containers this host does not reach, since another link has their subnet, too."""
    unused = set(unused_networks(context))
    networks = list(context.records.networks())
    gateways = [(one.network, each) for one in networks for each in one.shared if isinstance(each, Gateways)]
    idle = {each.link for name, each in gateways if name in unused}
    there = [one for one in context.kernel.host.all_addresses() if not one[1].is_link_local]
    in_subnet = pools.Subnets([address.network for _, address in there])
    for name, each in gateways:
        if each.link in idle:
            continue
        for number in in_subnet.within(address.network for address in each.addresses):
            link, address = there[number]
            if link in (each.link, identity.overlay_vxlan(each.link)):
                continue
            what = f"{link} has {address}, an address of the subnet of network {name} on {each.link}"
            if link in idle:
                yield Finding(what, _GC, FixedBy.GC)
            else:
                yield Finding(what, NoCommand(f"use another subnet for {name}, or delete that address: {_TO_DECIDE}"))


def of_attachments(context: ServiceContext, found: Sequence[Endpoint] | None = None) -> Iterator[Finding]:
    """What differs from what ADD set up; what networks share is checked once. ``found`` are the endpoints, where
    they have been read already.
    """
    context = context.comparing_all()
    return _begun(context, attachments.endpoints(context) if found is None else found)()


def _begun(context: ServiceContext, found: Sequence[Endpoint]) -> Callable[[], Iterator[Finding]]:
    """Begin ``of_attachments`` in other processes; what is returned finishes it."""
    networks = list(context.records.networks())
    attached = [one for one in found if one.state is State.ATTACHED]
    for network in networks[:1]:
        differences(context, network)  # which lists what networks are compared with, for all processes
    items: list[Endpoint | NetworkRecord] = [*attached, *networks]
    finish = attachments.begun(context, items, lambda part: [differences(context, one) for one in part])
    return lambda: _differing(found, networks, finish())


def _differing(
    found: Sequence[Endpoint], networks: Sequence[NetworkRecord], differing: Sequence[list[tuple[str, bool]]]
) -> Iterator[Finding]:
    """What differs, of the attached endpoints and then of the networks."""
    attached = [one for one in found if one.state is State.ATTACHED]
    seen: set[str] = set()
    for network, sentences in zip(networks, differing[len(attached) :], strict=True):
        for sentence, _ in sentences:
            if sentence not in seen:
                seen.add(sentence)
                yield Finding(f"network {network.network}: {sentence}", _REPAIR, FixedBy.REPAIR)
    for one in found:
        if one.state is not State.ATTACHED:
            gone = f"its network namespace {one.namespace.path} no longer exists"
            why = gone if one.state is State.GONE else "it is only partially attached"
            yield Finding(f"{one}: {why}", _GC, FixedBy.GC)
    told: set[NamespaceId] = set()
    for one, sentences in zip(attached, differing, strict=False):
        for sentence, is_repairable in sentences:
            if sentence == LO_DOWN:
                if one.namespace not in told:
                    told.add(one.namespace)
                    yield Finding(
                        f"{one}: {sentence}", Command(f"nsenter --net={one.namespace.path} ip link set lo up")
                    )
            elif is_repairable:
                yield Finding(f"{one}: {sentence}", _REPAIR, FixedBy.REPAIR)
            else:
                yield Finding(f"{one}: {sentence}", remedy(one, is_repairable))


def remedy(one: Endpoint, is_repairable: bool) -> Remedy:
    """What mends a difference of an endpoint."""
    if one.state is not State.ATTACHED:
        return _GC
    if is_repairable:
        return _REPAIR
    return _BY_DOCKER if any(getattr(operation, "moved", False) for operation in one.operations) else _BY_HAND


def of_networks(context: ServiceContext, networks: Sequence[NetworkList]) -> Iterator[Finding]:
    """Networks that conflict with each other or with the host."""
    names: dict[str, NetworkList] = {}
    for network in networks:
        other = names.setdefault(network.name, network)
        if other is not network:
            yield Finding(
                f"{network.path} and {other.path} both define network {network.name}",
                Command(f"rm {shlex.quote(network.path)}", ": runtimes use the other, which comes first"),
            )
    yield from _conflicts(list(names.values()))
    host = [*pools.of_host(context.kernel.host), *overlaps.of_virtual_ranges()]
    in_use = pools.Subnets([use.subnet for use in host])
    for network in names.values():
        for subnet in conflists.subnets(network):
            if what := overlaps.special(subnet):
                yield Finding(f"subnet {subnet} of network {network.name} contains {what}", NoCommand(_RECREATE))
            uses = (host[number] for number in in_use.overlapping(subnet))
            use = next((each for each in uses if not _is_link_of(each.link, network)), None)
            if use is not None and not _is_other_network(use, network, names):
                yield Finding(
                    f"subnet {subnet} of network {network.name} overlaps with {use.by}",
                    NoCommand(f"containers of the network cannot reach those addresses: {_RECREATE}"),
                )


def of_pools(context: ServiceContext, networks: Sequence[NetworkList]) -> Iterator[Finding]:
    """Networks on the LAN (macvlan, ipvlan) that lease addresses of this host or of its routers."""
    shared = [one for one in networks if modules.declared(one.driver).parent is Parent.SHARED]
    if not shared:
        return
    taken = pools.taken(context.kernel.host)
    for network in shared:
        ipam = network.main.section("ipam")
        if ipam.text("type") != "host-local":
            continue
        sets = ranges.read_sets(ipam, Section({}), "")
        for each in (one for together in sets for one in together):
            for address, owner in taken.items():
                excluded = address == each.gateway or any(address in span for span in each.exclude)
                if address.version == each.subnet.version and address in each.span and not excluded:
                    yield Finding(
                        f"network {network.name} leases {address}, an address of {owner}",
                        NoCommand(f"in {network.path}, add it to ipam.exclude, or set rangeStart and rangeEnd"),
                    )


def _conflicts(networks: Sequence[NetworkList]) -> Iterator[Finding]:
    """Networks with overlapping subnets, or on one bridge, each with all that come after it."""
    owned = [(place, subnet) for place, network in enumerate(networks) for subnet in conflists.subnets(network)]
    in_use = pools.Subnets([subnet for _, subnet in owned])
    bridges: dict[tuple[str, int | None], list[int]] = {}
    for place, one in enumerate(networks):
        if one.bridge:
            bridges.setdefault((one.bridge, one.main.integer("vlan")), []).append(place)
    for place, one in enumerate(networks):
        reported: set[tuple[Subnet, int]] = set()
        for subnet in conflists.subnets(one):
            for number in in_use.overlapping(subnet):
                other, theirs = owned[number]
                if other > place and (subnet, other) not in reported:
                    reported.add((subnet, other))
                    yield Finding(
                        f"networks {one.name} and {networks[other].name} overlap: {subnet} and {theirs}",
                        NoCommand(f"use another subnet for one of them: {_TO_DECIDE}"),
                    )
        same = bridges[one.bridge, one.main.integer("vlan")] if one.bridge else ()
        for other in same:
            if other > place:
                yield Finding(
                    f"networks {one.name} and {networks[other].name} use the same bridge {one.bridge}",
                    NoCommand(
                        "their containers are not isolated from each other; use another bridge for one of them: "
                        f"{_TO_DECIDE}"
                    ),
                )


def _is_link_of(link: str, network: NetworkList) -> bool:
    """Whether a link of the host is the network's: its bridge, its VLAN gateway, or a veth of a
    container.
    """
    driver = modules.declared(network.driver)
    if driver.parent is Parent.SHARED:
        # Containers on a shared parent usually have addresses of the host's own subnet there.
        return link == network.main.text(driver.parent_key, link)
    if not network.bridge:
        return link.startswith("veth")
    if driver.clustered and link == identity.overlay_vxlan(network.bridge):
        return True
    return link == network.bridge or link.startswith(f"{network.bridge}.")


def _is_other_network(use: overlaps.Use, network: NetworkList, names: dict[str, NetworkList]) -> bool:
    """Whether the link is another network's: that overlap is reported once, as one of two networks."""
    return any(_is_link_of(use.link, other) for other in names.values() if other is not network)


def of_forwarding(context: ServiceContext, networks: Sequence[NetworkList]) -> Iterator[Finding]:
    """Forwarding that is disabled although an attached container needs it."""
    used = {record.attachment.network for record in context.records.all()}
    needed = {
        subnet.version
        for network in networks
        if network.name in used and requirements.forwards(network)
        for subnet in conflists.subnets(network)
    }
    for version in sorted(needed):
        if context.kernel.host.sysctl(_FORWARDING[version]) == "0":
            yield Finding(f"IPv{version} forwarding is disabled ({_FORWARDING[version]} is 0)", _REPAIR, FixedBy.REPAIR)


def of_names(context: ServiceContext, found: Sequence[Endpoint]) -> Iterator[Finding]:
    """Names that the agent does not serve, and services that it does not register."""
    for one in found:
        for sentence in attachments.remarks(context, one):
            yield Finding(f"{one}: {sentence}", NoCommand("give it another name, or permit this one"))


def of_firewalls(context: ServiceContext) -> Iterator[Finding]:
    """What other firewalls drop of networks' packets, and have no mechanism of their own for."""
    for one in dropped(context):
        yield Finding(f"network {one.network}: {one.sentence}", Command(one.command))


def begun(
    context: ServiceContext, networks: Sequence[NetworkList], problems: Sequence[WeftError]
) -> Callable[[Sequence[Ability]], list[Finding]]:
    """Begin to look for all findings, in other processes; what is returned finishes it, given the kernel's
    features, and has the findings of the host first.
    """
    context = context.comparing_all()
    endpoints = attachments.endpoints(context)
    finish = _begun(context, endpoints)

    def finished(abilities: Sequence[Ability]) -> list[Finding]:
        """What one process does, and its share of what all do."""
        left = _leftovers(context)
        around = [*of_networks(context, networks), *of_pools(context, networks), *of_subnets(context)]
        forwarding = list(of_forwarding(context, networks))
        reported = [key for key in _FORWARDING.values() if any(key in one.what for one in forwarding)]
        behind = [*of_firewalls(context), *of_names(context, endpoints), *of_leftovers(context, left, networks)]
        found = [
            *of_host(abilities, networks),
            *of_files(left, problems),
            *around,
            *forwarding,
            *(one for one in finish() if not any(f"{key} is " in one.what for key in reported)),
            *behind,
        ]
        return list(dict.fromkeys(found))

    return finished


def _leftovers(context: ServiceContext) -> Orphans:
    """What belongs to no attachment: where there is anything by the lists, by what is there now."""
    left = orphans(context)
    return left if left == NO_ORPHANS or context.current is None else orphans(context.current)
