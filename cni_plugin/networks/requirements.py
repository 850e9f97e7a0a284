"""What networks and drivers require of this host: kernel features, and for some drivers a cluster."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from cni_plugin.networks import conflists
from cni_plugin.networks.conflists import NetworkList
from cni_plugin.plan import modules
from cni_plugin.plan.traits import Feature, LinkTrial
from weft.kernel.linux import probe
from weft.kernel.linux.probe import Ability
from weft.section import Section


@dataclass(frozen=True, slots=True)
class Usable:
    """A driver, and why it cannot be used on this host ("" if it can)."""

    driver: str
    problem: str


def drivers(abilities: Sequence[Ability], joined: bool) -> list[Usable]:
    """All drivers. ``joined``: the host is in a cluster, which an overlay is between the hosts of."""
    problems = {one.name: one.problem for one in abilities}
    essential = [f"{one.name}: {one.problem}" for one in abilities if one.essential and one.problem]
    found = []
    for name in modules.drivers():
        driver = modules.declared(name)
        lacking = [*essential]
        # What was not probed is not known to be there: without privileges nothing is.
        for one in driver.trials:
            problem = problems.get(one.name, "not probed")
            lacking += [f"{one.name}: {problem}"] if problem and not one.keys else []
        if driver.clustered and not joined:
            lacking.append("this host is in no cluster: weft cluster init makes one, weft cluster join TOKEN joins one")
        found.append(Usable(name, next(iter(lacking), "")))
    return found


def needed(networks: Sequence[NetworkList]) -> dict[str, str]:
    """The kernel features that the networks need, each with one of the networks."""
    found: dict[str, str] = {}
    for network in networks:
        needs = [one.name for one in modules.declared(network.driver).trials if _is_tried_for(one, network.main)]
        for feature in _features(network):
            needs += [*(one.name for one in feature.trials), *feature.abilities]
        if forwards(network):
            needs.append("IPv4 forwarding")
        if any(subnet.version == 6 for subnet in conflists.subnets(network)):
            needs += ["IPv6"]
        for name in needs:
            found.setdefault(name, network.name)
    return found


def forwards(network: NetworkList) -> bool:
    """Whether this host forwards the network's packets: its drivers say so, of others it is taken to
    be.
    """
    routed = network.driver not in modules.drivers() or modules.declared(network.driver).routed
    return routed and not network.internal


def _is_tried_for(trial: LinkTrial, main: Section) -> bool:
    return not trial.keys or any(main.raw(key) not in (None, 0, "") for key in trial.keys)


def _features(network: NetworkList) -> Iterator[Feature]:
    """The features that the network's plugins use."""
    for name in modules.features():
        feature, main = modules.feature(name).FEATURE, network.main
        asked = (feature.section and name in main) or any(main.raw(key) for key in feature.keys)
        if asked or feature.plugin in network.types:
            yield feature


def trials() -> tuple[probe.LinkTrial, ...]:
    """The kinds of links that drivers and features need, which ``weft.kernel.linux.probe`` tries to
    create.
    """
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
