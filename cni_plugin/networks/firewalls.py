"""What other firewalls of this host drop of a network's packets, though weft's table lets them pass.

``ops.firewalls`` uses the mechanisms of the firewalls that have one. Here are the rest: base chains of
other programs and an administrator's own, with the rule that each of them needs.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from cni_plugin.dataplane.nat import PORTS
from cni_plugin.dataplane.packets import INTERNAL_LINKS
from cni_plugin.ops import Elements, PassedOn
from cni_plugin.plan.facts import KernelFacts
from cni_plugin.plan.interface import host_link
from cni_plugin.service.context import ServiceContext
from cni_plugin.service.executor import mismatches
from cni_plugin.service.records import Phase, Record
from weft.kernel.verdicts import BaseChain, Packet
from weft.types import Side


@dataclass(frozen=True, slots=True)
class Dropped:
    """What a base chain drops of a network's packets, in a sentence, and the command that lets it pass."""

    network: str
    sentence: str
    command: str


def dropped(context: ServiceContext, network: str = "") -> list[Dropped]:
    """What other programs' base chains certainly drop of all networks, or one; each once.

    Not of networks for which a firewall's own mechanism is to be used again first.
    """
    chains = [one for one in context.kernel.host.base_chains() if one.policy == "drop" or any(one.chains.values())]
    if not chains:
        return []
    records = [one for one in context.records.all() if one.phase is Phase.ATTACHED and one.driver]
    machine = context.machine(None)
    unrepaired = {
        one.network
        for one in context.records.networks()
        if mismatches([each for each in one.shared if isinstance(each, PassedOn)], machine)
    }
    chosen = [
        one
        for one in records
        if network in ("", one.attachment.network)
        and one.attachment.network not in unrepaired
        and host_link(one.result)
    ]
    if not chosen:
        return []
    outside = KernelFacts(context.kernel.host, None).default_link(Side.HOST)
    found = [each for record in chosen for each in _of_record(record, chains, outside)]
    return list(dict.fromkeys(found))


def _of_record(record: Record, chains: list[BaseChain], outside: str) -> Iterator[Dropped]:
    for version, packet, like, what in _packets(record, outside):
        hook = "forward" if packet.outgoing else "input"
        for chain in chains:
            if chain.hook == hook and version in chain.versions and chain.drops(packet):
                yield Dropped(record.attachment.network, f"{chain} drops {what}", chain.accepting(like))


def _packets(record: Record, outside: str) -> Iterator[tuple[int, Packet, Packet, str]]:
    """The packets that must pass: the IP version, the packet, one with what the rule should match, and
    what they are in words.
    """
    link = host_link(record.result)
    has_own = record.may_have(PassedOn.__name__, INTERNAL_LINKS, *PORTS)
    operations = (*record.shared, *(record.operations if has_own else ()))
    passed = [one for one in operations if isinstance(one, PassedOn)]
    elements = [each for one in operations if isinstance(one, Elements) for each in one.elements]
    is_internal = any(each.collection == INTERNAL_LINKS for each in elements)
    for ip in record.result.ips:
        version, address = ip.address.version, str(ip.address.ip)
        # Without a bridge, each container has a link; a rule is for all of them.
        subnet = next((str(each) for one in passed for each in one.subnets if each.version == version), "")
        links = passed[0].link if subnet else link
        for name in (name for one in passed for name in one.names if name.version == version):
            question = Packet(link, "", address, str(name), "udp", 53)
            like = replace(question, incoming=links, source=subnet)
            yield version, question, like, f"its containers' questions for names to {name}"
        if is_internal or not outside or ip.gateway is None:
            continue
        away = Packet(link, outside, address, protocol="tcp")
        yield version, away, replace(away, incoming=links, source=subnet), f"what its containers send to {outside}"
        back = Packet(outside, link, "", address, "tcp", reply=True)
        like = replace(back, outgoing=links, destination=subnet)
        yield version, back, like, f"the replies from {outside} to its containers"
        if any(each.collection in PORTS and each.data[0] == ip.address.ip for each in elements):
            to_port = Packet(outside, link, "", address, "tcp", translated=True)
            like = replace(to_port, outgoing=links, destination=subnet)
            yield version, to_port, like, f"what comes from {outside} to its published ports"
