"""What can be wrong on a host, looked for: each finding says what it is and what to do about it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import combinations

from cni_plugin.networks import attachments, conflists, leases, pools
from cni_plugin.networks.attachments import Joined, State
from cni_plugin.networks.conflists import NetworkList
from cni_plugin.ops import Elements
from cni_plugin.plan import modules
from cni_plugin.plan.traits import Feature, LinkTrial, Parent
from cni_plugin.service import executor
from cni_plugin.service.context import ServiceContext
from cni_plugin.service.orphans import element_text, orphans, unused_networks
from weft.errors import WeftError
from weft.kernel.linux import probe
from weft.kernel.linux.probe import Ability
from weft.section import Section

_NEVER_LISTED = "podman"
"""podman has its default network's list in memory alone."""

_FORWARDING = {4: "net/ipv4/ip_forward", 6: "net/ipv6/conf/all/forwarding"}


class Mends(StrEnum):
    """What mends a finding: gc, putting rules back, or a person."""

    GC = "gc"
    REPAIR = "repair"
    PERSON = "person"


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that is not as it should be, and what to do."""

    what: str
    remedy: str
    mends: Mends = Mends.PERSON


_GC = "weft gc clears it up"
_REPAIR = "weft doctor --repair puts it back"


def of_host(abilities: Sequence[Ability], networks: Sequence[NetworkList]) -> Iterator[Finding]:
    """What this host lacks and something here needs."""
    needed = _needs(networks)
    for one in abilities:
        if one.problem and one.essential:
            yield Finding(f"{one.name}: {one.problem}", "without it nothing can be attached")
        elif one.problem and one.name in needed:
            yield Finding(
                f"{one.name}: {one.problem}",
                f"network {needed[one.name]} needs it ({one.serves}): use another kernel, or remove the network",
            )


def _needs(networks: Sequence[NetworkList]) -> dict[str, str]:
    """The abilities that the networks need, each with one of them."""
    found: dict[str, str] = {}
    for network in networks:
        needs = [one.name for one in modules.declared(network.driver).trials if _is_tried_for(one, network.main)]
        for feature in _features(network):
            needs += [*(one.name for one in feature.trials), *feature.abilities]
        if _forwards(network):
            needs.append("IPv4 forwarding")
        if any(subnet.version == 6 for subnet in conflists.subnets(network)):
            needs += ["IPv6"]
        for name in needs:
            found.setdefault(name, network.name)
    return found


def _forwards(network: NetworkList) -> bool:
    """Whether this host forwards the network's packets: its drivers say so, of others it is taken to be."""
    routed = network.driver not in modules.drivers() or modules.declared(network.driver).routed
    return routed and not network.internal


def _is_tried_for(trial: LinkTrial, main: Section) -> bool:
    return not trial.keys or any(main.raw(key) not in (None, 0, "") for key in trial.keys)


def _features(network: NetworkList) -> Iterator[Feature]:
    """The features that the network's plugins ask for."""
    for name in modules.features():
        feature, main = modules.feature(name).FEATURE, network.main
        asked = (feature.section and name in main) or any(main.raw(key) for key in feature.keys)
        if asked or feature.plugin in network.types:
            yield feature


def trials() -> tuple[probe.LinkTrial, ...]:
    """The kinds of links that drivers and features need, for ``weft.kernel.linux.probe`` to try."""
    declared = [(f"driver {name}", modules.declared(name).trials) for name in modules.drivers()]
    declared += [(f"feature {name}", modules.feature(name).FEATURE.trials) for name in modules.features()]
    return tuple(
        probe.LinkTrial(
            one.name,
            f"{what} with {' or '.join(one.keys)}" if one.keys else what,
            one.kind,
            one.options,
            one.on_parent,
        )
        for what, every in declared
        for one in every
    )


def of_files(context: ServiceContext, problems: Sequence[WeftError]) -> Iterator[Finding]:
    """Network lists and records that cannot be read."""
    for problem in problems:
        yield Finding(problem.message, problem.hint or "correct the file or remove it")
    for path in orphans(context).files:
        if path.endswith(".damaged"):
            yield Finding(f"the record {path} was damaged and set aside", _GC, Mends.GC)


def of_leftovers(context: ServiceContext, networks: Sequence[NetworkList]) -> Iterator[Finding]:
    """What nobody needs any more."""
    found = orphans(context)
    for name in found.links:
        yield Finding(f"the link {name} bears weft's mark and belongs to no attachment", _GC, Mends.GC)
    for element in found.elements:
        text = element_text(element)
        yield Finding(f"the rule {text} bears weft's mark and belongs to no attachment", _GC, Mends.GC)
    for path in found.files:
        if not path.endswith(".damaged"):
            yield Finding(f"the file {path} was left by a call that was killed", _GC, Mends.GC)
    for name in set(unused_networks(context)) - {network.name for network in networks} - {_NEVER_LISTED}:
        yield Finding(f"network {name} is still set up although nothing names or uses it", _GC, Mends.GC)
    for lease in leases.lost(context, networks):
        what = f"the address {lease.address} on {lease.network} is given to {lease.owner}, which is not attached"
        yield Finding(what, _GC, Mends.GC)


def of_attachments(context: ServiceContext) -> Iterator[Finding]:
    """What is not as it was made; what networks share is looked at once."""
    seen: set[str] = set()
    machine = context.machine(None)
    for network in context.records.networks():
        for sentence in executor.mismatches(network.shared, machine):
            if sentence not in seen:
                seen.add(sentence)
                yield Finding(f"network {network.network}: {sentence}", _REPAIR, Mends.REPAIR)
    for one in attachments.every(context):
        if one.state is not State.ATTACHED:
            gone = f"its namespace {one.namespace.path} is gone"
            why = gone if one.state is State.GONE else "it is only half attached"
            yield Finding(f"{one}: {why}", _GC, Mends.GC)
            continue
        rules = _lacking_rules(context, one)
        for sentence in attachments.lacking(context, one, shared=False):
            if sentence in rules:
                yield Finding(f"{one}: {sentence}", _REPAIR, Mends.REPAIR)
            else:
                yield Finding(f"{one}: {sentence}", "restart the container, or detach it and attach it again")


def _lacking_rules(context: ServiceContext, one: Joined) -> set[str]:
    """What is lacking of an attachment's nftables elements: that can be put back while its container runs."""
    elements = [each for each in one.operations if isinstance(each, Elements)]
    return set(executor.mismatches(elements, context.machine(None)))


def of_networks(context: ServiceContext, networks: Sequence[NetworkList]) -> Iterator[Finding]:
    """Networks that get into each other's way, or the host's."""
    names: dict[str, NetworkList] = {}
    for network in networks:
        other = names.setdefault(network.name, network)
        if other is not network:
            yield Finding(
                f"{network.path} and {other.path} both name the network {network.name}", "remove one; the first counts"
            )
    for one, other in combinations(names.values(), 2):
        yield from _between(one, other)
    host = pools.of_host(context.kernel.host)
    for network in names.values():
        foreign = [use for use in host if not _own_link(use.link, network)]
        for subnet in conflists.subnets(network):
            use = pools.first_overlap(subnet, foreign)
            if use is not None and not _is_networks(use, network, names):
                yield Finding(
                    f"network {network.name}'s subnet {subnet} overlaps with {use.by}",
                    "give the network another subnet, or its containers will not reach what is there",
                )


def _between(one: NetworkList, other: NetworkList) -> Iterator[Finding]:
    for subnet in conflists.subnets(one):
        use = pools.first_overlap(subnet, pools.of_networks([other]))
        if use is not None:
            yield Finding(
                f"networks {one.name} and {other.name} overlap: {subnet} and {use.subnet}",
                "give one of them another subnet",
            )
    same = one.bridge and one.bridge == other.bridge and one.main.integer("vlan") == other.main.integer("vlan")
    if same:
        yield Finding(
            f"networks {one.name} and {other.name} are both on the bridge {one.bridge}",
            "give one of them another bridge, or their containers see each other",
        )


def _own_link(link: str, network: NetworkList) -> bool:
    """Whether the host's link belongs to the network: its bridge, its VLAN's gateway, a container's link."""
    driver = modules.declared(network.driver)
    if driver.parent is Parent.SHARED:
        # What is on the wire beside the host has the host's own subnet there, as a rule.
        return link == network.main.text(driver.parent_key, link)
    if not network.bridge:
        return link.startswith("veth")
    return link == network.bridge or link.startswith(f"{network.bridge}.")


def _is_networks(use: pools.Use, network: NetworkList, names: dict[str, NetworkList]) -> bool:
    """Whether another network is behind it, which is said once, of the two networks."""
    return any(_own_link(use.link, other) for other in names.values() if other is not network)


def of_forwarding(context: ServiceContext, networks: Sequence[NetworkList]) -> Iterator[Finding]:
    """Forwarding that is off although something is attached that needs it."""
    used = {record.attachment.network for record in context.records.all()}
    needed = {
        subnet.version
        for network in networks
        if network.name in used and _forwards(network)
        for subnet in conflists.subnets(network)
    }
    for version in sorted(needed):
        if context.kernel.host.sysctl(_FORWARDING[version]) == "0":
            yield Finding(
                f"this host does not forward IPv{version} packets ({_FORWARDING[version]} is 0)", _REPAIR, Mends.REPAIR
            )


def every(
    context: ServiceContext,
    abilities: Sequence[Ability],
    networks: Sequence[NetworkList],
    problems: Sequence[WeftError],
) -> list[Finding]:
    """All that is wrong, the host's own troubles first."""
    forwarding = list(of_forwarding(context, networks))
    said = [key for key in _FORWARDING.values() if any(key in one.what for one in forwarding)]
    found = [
        *of_host(abilities, networks),
        *of_files(context, problems),
        *of_networks(context, networks),
        *forwarding,
        *(one for one in of_attachments(context) if not any(f"{key} is " in one.what for key in said)),
        *of_leftovers(context, networks),
    ]
    return list(dict.fromkeys(found))
