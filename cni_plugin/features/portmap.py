"""``portmap``: ports of the host that lead to ports of the container.

Keys: ``snat`` (default true), ``masqAll``, ``backend``, ``markMasqBit``; runtimeConfig ``portMappings``, a list of
``hostPort``, ``containerPort``, ``protocol`` (tcp, udp, sctp) and ``hostIP``. Each mapping is an element of a map,
so a port that is taken is refused by the kernel and the error names who has it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import ip_address

from cni_plugin import names, rules
from cni_plugin.errors import UNSUPPORTED_FIELD, ConfigProblem
from cni_plugin.kernel import Element
from cni_plugin.ops import Setting
from cni_plugin.plan import Context, Operation, Part, Plan
from cni_plugin.types import Address, Side
from cni_plugin.wire.keys import Section
from cni_plugin.wire.request import Request

SECTION = "portmap"
PROTOCOLS = ("tcp", "udp", "sctp")
_LAST_PORT = 65535
_ANYWHERE = {4: rules.PORTS4, 6: rules.PORTS6}
_AT = {4: rules.PORTS4_AT, 6: rules.PORTS6_AT}
_HAIRPIN = {4: rules.HAIRPIN4, 6: rules.HAIRPIN6}
_SELF = {4: rules.SELF4, 6: rules.SELF6}
_MASQUERADE_ALL = {4: rules.MASQUERADE_ALL4, 6: rules.MASQUERADE_ALL6}


@dataclass(frozen=True, slots=True)
class Mapping:
    """One published port. ``host`` is None for every address of the host; ``version`` is then 0 or its family."""

    host_port: int
    container_port: int
    protocol: str
    host: Address | None = None
    version: int = 0


@dataclass(frozen=True, slots=True)
class PortMap:
    """The published ports of one attachment."""

    mappings: tuple[Mapping, ...]
    snat: bool = True
    masquerade_all: bool = False

    def plan(self, context: Context) -> Plan:
        if not self.mappings:
            return Plan(result=context.result)
        targets = _targets(context)
        mark = names.attachment_mark(context.attachment)
        link = next((one.name for one in context.result.interfaces if not one.sandbox), "")
        elements = [element for mapping in self.mappings for element in _published(mapping, targets, mark)]
        used = [target for version, target in targets.items() if any(e.collection in _of(version) for e in elements)]
        for target in used:
            elements += self._sources(target, link, mark)
        return Plan(
            operations=self._loopback(link, targets),
            elements=tuple(dict.fromkeys(elements)),
            result=context.result,
        )

    def _sources(self, target: Address, link: str, mark: str) -> Iterator[Element]:
        """The elements that give a connection the host's address where its answers would else go past the host."""
        if self.snat and target.version == 4:
            yield Element(rules.SNAT4, (target,), mark=mark)
        if self.snat:
            # Bridge netfilter shows a bridged packet without its incoming link, so the way back is named twice.
            yield Element(_SELF[target.version], (target, target), mark=mark)
        if self.snat and link:
            yield Element(_HAIRPIN[target.version], (link, target), mark=mark)
        if self.masquerade_all:
            yield Element(_MASQUERADE_ALL[target.version], (target,), mark=mark)

    def _loopback(self, link: str, targets: dict[int, Address]) -> tuple[Operation, ...]:
        """Lets connections from 127.0.0.1 leave by the link; the base rules refuse such sources from outside."""
        wanted = any(one.host is None or one.host.is_loopback for one in self.mappings if one.version != 6)
        if not (self.snat and link and 4 in targets and wanted):
            return ()
        return (Setting(Side.HOST, f"net/ipv4/conf/{link}/route_localnet", "1", link),)


def _of(version: int) -> tuple[str, str]:
    return _ANYWHERE[version], _AT[version]


def _targets(context: Context) -> dict[int, Address]:
    """The container's first address of each family, on the interface that CNI_IFNAME names."""
    interfaces = context.result.interfaces
    found: dict[int, Address] = {}
    for ip in context.result.ips:
        named = ip.interface is None or ip.interface >= len(interfaces)
        if named or interfaces[ip.interface or 0].name == context.attachment.interface:
            found.setdefault(ip.address.version, ip.address.ip)
    if not found:
        raise ConfigProblem(
            f"{context.attachment} has no address that a port could lead to", hint="publish no port, or set ipam"
        )
    return found


def _published(mapping: Mapping, targets: dict[int, Address], mark: str) -> Iterator[Element]:
    """The elements of one mapping: one for each family that it speaks of and the container has."""
    versions = [mapping.version] if mapping.version else sorted(targets)
    for version in versions:
        if version not in targets:
            raise ConfigProblem(
                f"hostIP {mapping.host or ('0.0.0.0' if version == 4 else '::')} of host port {mapping.host_port} is "
                f"IPv{version}, but the container has no IPv{version} address",
            )
        data = (targets[version], mapping.container_port)
        if mapping.host is None:
            yield Element(_ANYWHERE[version], (mapping.protocol, mapping.host_port), data, mark)
        else:
            yield Element(_AT[version], (mapping.host, mapping.protocol, mapping.host_port), data, mark)


def read(request: Request, keys: Section) -> Part | None:
    keys.text("backend", choices=("iptables", "nftables"))
    keys.integer("markMasqBit", least=0, most=31)
    for key in ("conditionsV4", "conditionsV6", "externalSetMarkChain"):
        if keys.raw(key):
            raise ConfigProblem(
                f"{keys.at(key)} is not supported: it holds text for iptables",
                hint="leave it out",
                code=UNSUPPORTED_FIELD,
            )
    mappings: dict[tuple[str, Address | None, int, int], Mapping] = {}
    for entry in request.config.runtime.sections("portMappings"):
        mapping = _mapping(entry)
        if mapping is None:
            continue
        port = (mapping.protocol, mapping.host, mapping.version, mapping.host_port)
        if mappings.setdefault(port, mapping) != mapping:
            entry.problem("hostPort", f"is mapped twice for {mapping.protocol}, to different ports of the container")
    return PortMap(tuple(mappings.values()), keys.flag("snat", True), keys.flag("masqAll"))


def _mapping(entry: Section) -> Mapping | None:
    """One entry of portMappings; None, its problems noted, if it is not valid."""
    known = len(entry.problems.found)
    host_port, container_port = (entry.integer(key, least=1, most=_LAST_PORT) for key in ("hostPort", "containerPort"))
    protocol = entry.text("protocol").lower()
    if protocol not in PROTOCOLS:
        entry.problem("protocol", f"must be one of {', '.join(PROTOCOLS)}")
    host = entry.address("hostIP")
    if len(entry.problems.found) > known:
        return None
    if host_port is None or container_port is None:
        entry.problems.add(f"{entry.path} must name a hostPort and a containerPort")
        return None
    version = host.version if host is not None else 0
    anywhere = host is None or host == ip_address("0.0.0.0" if host.version == 4 else "::")
    return Mapping(host_port, container_port, protocol, None if anywhere else host, version)
