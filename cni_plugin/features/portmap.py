"""``portmap``: publishes ports of the container on the host.

Keys: ``snat`` (default true), ``masqAll``, ``backend``, ``conditionsV4``, ``conditionsV6``;
runtimeConfig ``portMappings``, a list of ``hostPort``, ``containerPort``, ``protocol`` (tcp, udp, sctp)
and ``hostIP``. Each mapping is an element of a map, so the kernel refuses a port that is published
already, and the error names the attachment that has it; a port on which a process of the host listens
is refused as well. With the backend ``iptables``, which conditions in iptables' syntax imply, mappings
are rules in the chain WEFT-PORTS. Connections are recognised by their conntrack status DNAT, so
``markMasqBit`` and ``externalSetMarkChain`` (not with nftables) are accepted and no mark is set.

A port of all addresses, of 127.0.0.1 or of ::1 is reached by the host's own processes from there, too,
as elements of ``nat.LOOPBACK_PORTS4`` and its like say: where a link of the host's leads to the
container (not with macvlan), and unless ``snat`` is false, since the container must see an address that
it can answer.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import ip_address, ip_network
from typing import TYPE_CHECKING

from cni_plugin.dataplane import nat
from cni_plugin.ops.firewalls import commented
from cni_plugin.ops.operation import Operation
from cni_plugin.plan.interface import hairpin
from cni_plugin.plan.plan import Context, Plan, PlanPart
from cni_plugin.plan.traits import Feature, Stage
from cni_plugin.wire.request import Request
from weft import identity
from weft.errors import UNSUPPORTED_FIELD, ConfigProblem
from weft.identity import link_name_problem
from weft.kernel.values import Element
from weft.section import Section, quoted
from weft.types import Address

if TYPE_CHECKING:
    from cni_plugin.ops.ports import PublishedPort

FEATURE = Feature(Stage.PORTS, plugin="portmap", abilities=("nftables nat", "nftables fib", "weft's rules"))
PROTOCOLS = ("tcp", "udp", "sctp")
_LAST_PORT = 65535
_CHAIN = "WEFT-PORTS"
_JUMP = f"-m addrtype --dst-type LOCAL -j {_CHAIN}"
_CONDITIONS = {
    "-s": "-s", "--source": "-s", "--src": "-s", "-d": "-d", "--destination": "-d", "--dst": "-d",
    "-i": "-i", "--in-interface": "-i",
}  # fmt: skip
_ORDER = ("-s", "-d", "-i")
_LINK_LOCAL = (
    "is link-local, and the kernel forwards no packets of link-local clients: use another address of the host, or "
    "leave out hostIP to publish the port at all of them"
)
_NAMES = {4: "conditionsV4", 6: "conditionsV6"}
_ANYWHERE = {4: nat.PORTS4, 6: nat.PORTS6}
_AT = {4: nat.PORTS4_AT, 6: nat.PORTS6_AT}
_LOOPBACK = {4: nat.LOOPBACK_PORTS4, 6: nat.LOOPBACK_PORTS6}
_LOOPBACK_AT = {4: nat.LOOPBACK_PORTS4_AT, 6: nat.LOOPBACK_PORTS6_AT}
_LOCALHOST = {4: ip_address("127.0.0.1"), 6: ip_address("::1")}
_STAND_IN = {4: nat.LOOPBACK_SOURCE4, 6: nat.LOOPBACK_SOURCE6}
_HAIRPIN = {4: nat.HAIRPIN4, 6: nat.HAIRPIN6}
_SELF = {4: nat.HAIRPIN_SELF4, 6: nat.HAIRPIN_SELF6}
_MASQUERADE_ALL = {4: nat.MASQUERADE_ALL4, 6: nat.MASQUERADE_ALL6}


@dataclass(frozen=True, slots=True)
class PortMapping:
    """One published port. ``host`` is None for every address of the host; ``version`` is then 0 or its
    family.
    """

    host_port: int
    container_port: int
    protocol: str
    host: Address | None = None
    version: int = 0


@dataclass(frozen=True, slots=True)
class PortMap:
    """The published ports of one attachment."""

    mappings: tuple[PortMapping, ...]
    snat: bool = True
    masquerade_all: bool = False
    tables: bool = False
    conditions: tuple[tuple[int, tuple[tuple[str, str], ...]], ...] = ()

    def plan(self, context: Context) -> Plan:
        if not self.mappings:
            return Plan(result=context.result)
        from cni_plugin.ops.ports import ConntrackFlush, ConntrackFlushOnUndo, PortsFree

        targets = _targets(context)
        mark = identity.attachment_mark(context.attachment)
        links = _links(context)
        ports = _published(self.mappings, targets)
        elements = [] if self.tables else [_element(port, mark) for port in ports]
        for target in targets.values():
            if any(port.target == target for port in ports):
                elements += self._sources(target, links, mark)
        if self.snat and links:
            elements += [_loopback(port, mark) for port in ports if self._reached_within(port)]
        datagrams = tuple(port for port in ports if port.protocol == "udp")
        chains, lines = self._tables(ports, mark) if self.tables else ((), ())
        return Plan(
            shared=chains,
            operations=(
                PortsFree(ports),
                ConntrackFlushOnUndo(ports),
                *lines,
                *(hairpin(context) if self.snat else ()),
            ),
            elements=tuple(dict.fromkeys(elements)),
            after=(ConntrackFlush(datagrams),) if datagrams else (),
            result=context.result,
        )

    def _tables(
        self, ports: tuple[PublishedPort, ...], mark: str
    ) -> tuple[tuple[Operation, ...], tuple[Operation, ...]]:
        """The chains and rules of the backend iptables; masquerading of the source stays in weft's
        sets.
        """
        from cni_plugin.ops.iptables import TableChain, TableRules

        conditions = dict(self.conditions)
        jumps = (("PREROUTING", _JUMP), ("OUTPUT", _JUMP))
        chains: list[Operation] = []
        rules_: list[Operation] = []
        for version in sorted({port.target.version for port in ports}):
            own = dict(conditions.get(version, ()))
            mine = [port for port in ports if port.target.version == version]
            lines = [_line(port, own, mark) for port in mine]
            if "-s" in own:
                within = {**own, "-s": f"-s {_STAND_IN[version]}/{ip_address(_STAND_IN[version]).max_prefixlen}"}
                lines += [_line(port, within, mark) for port in mine if self._reached_within(port)]
            chains.append(TableChain(version, "nat", _CHAIN, jumps))
            rules_.append(TableRules(version, "nat", _CHAIN, mark, tuple(lines)))
        return tuple(chains), tuple(rules_)

    def _sources(self, target: Address, links: tuple[str, ...], mark: str) -> Iterator[Element]:
        """The elements that masquerade connections whose replies would otherwise bypass the host."""
        if self.snat:
            # br_netfilter hides the incoming link, so both the hairpin link and the address are matched.
            yield Element(_SELF[target.version], (target, target), mark=mark)
            for link in links:
                yield Element(_HAIRPIN[target.version], (link, target), mark=mark)
        if self.masquerade_all:
            yield Element(_MASQUERADE_ALL[target.version], (target,), mark=mark)

    def _reached_within(self, port: PublishedPort) -> bool:
        """Whether the port is published on the host's loopback address, too."""
        version = port.target.version
        if port.host is not None and not port.host.is_loopback:
            return False
        places = {"-s": _LOCALHOST[version], "-d": port.host or _LOCALHOST[version]}
        for option, words in dict(self.conditions).get(version, ()):
            value = words.split()[-1]
            inside = option in places and places[option] in ip_network(value)  # outgoing packets have no incoming link
            if inside == words.startswith("!"):
                return False
        return True


def _links(context: Context) -> tuple[str, ...]:
    """The host's link to the container, and on a VLAN of a bridge the VLAN gateway link, too."""
    first, *others = [one.name for one in context.result.interfaces if not one.sandbox] or [""]
    return tuple(name for name in (first, *others) if name and (name == first or name.startswith(f"{first}.")))


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
            f"cannot publish ports of {context.attachment}: it has no address", hint="set ipam, or publish no ports"
        )
    return found


def _published(mappings: tuple[PortMapping, ...], targets: dict[int, Address]) -> tuple[PublishedPort, ...]:
    """The published ports of all mappings: of each, one for each family of hostIP that the container
    has an address of.

    0.0.0.0 is every address for a container without IPv4, and :: for one without IPv6, unless another
    mapping has that port: runtimes give one of them (nerdctl 0.0.0.0) where their user gave none.
    """
    from cni_plugin.ops.ports import PublishedPort

    found: dict[PublishedPort, None] = {}
    for mapping in sorted(mappings, key=lambda one: one.version not in (0, *targets)):
        versions = [mapping.version] if mapping.version in targets else sorted(targets)
        if mapping.version not in (0, *targets):
            if mapping.host is not None:
                raise ConfigProblem(
                    f"hostIP {mapping.host} of host port {mapping.host_port} is IPv{mapping.version}, but the "
                    f"container has no IPv{mapping.version} address",
                    hint=f"leave out hostIP to publish the port at every IPv{versions[0]} address of the host",
                )
            if any((one.protocol, one.port, one.host) == (mapping.protocol, mapping.host_port, None) for one in found):
                continue
        for version in versions:
            target = targets[version], mapping.container_port
            found[PublishedPort(mapping.protocol, mapping.host_port, *target, mapping.host)] = None
    return tuple(found)


def _element(port: PublishedPort, mark: str) -> Element:
    version = port.target.version
    data = (port.target, port.target_port)
    if port.host is None:
        return Element(_ANYWHERE[version], (port.protocol, port.port), data, mark)
    return Element(_AT[version], (port.host, port.protocol, port.port), data, mark)


def _loopback(port: PublishedPort, mark: str) -> Element:
    version = port.target.version
    if port.host is None:
        return Element(_LOOPBACK[version], (port.protocol, port.port), mark=mark)
    return Element(_LOOPBACK_AT[version], (port.host, port.protocol, port.port), mark=mark)


def _line(port: PublishedPort, conditions: dict[str, str], mark: str) -> str:
    """The port's iptables rule, in the order of iptables-save."""
    conditions = dict(conditions)
    if port.host is not None:
        if "-d" in conditions:
            raise ConfigProblem(
                f"hostIP {port.host} conflicts with the condition {conditions['-d']}",
                hint="remove one of them",
            )
        conditions["-d"] = f"-d {port.host}/{port.host.max_prefixlen}"
    words = [conditions[option] for option in _ORDER if option in conditions]
    words.append(f"-p {port.protocol} -m {port.protocol} --dport {port.port} {commented(mark)}")
    target = f"[{port.target}]" if port.target.version == 6 else str(port.target)
    return " ".join((*words, f"-j DNAT --to-destination {target}:{port.target_port}"))


def read(request: Request, keys: Section) -> PlanPart | None:
    backend = keys.text("backend", choices=("", "iptables", "nftables"))
    bit = keys.integer("markMasqBit", least=0, most=31)
    conditions = tuple((version, found) for version in _NAMES if (found := _conditions(keys, version)))
    if conditions and backend == "nftables":
        keys.problem("backend", "must be iptables with conditionsV4 or conditionsV6")
    if keys.text("externalSetMarkChain"):
        if bit is not None:
            keys.problem("externalSetMarkChain", "cannot be given together with markMasqBit")
        if backend == "nftables":
            keys.problem("externalSetMarkChain", "cannot be given together with the backend nftables")
    mappings: dict[tuple[str, Address | None, int, int], PortMapping] = {}
    for entry in request.config.runtime.sections("portMappings"):
        mapping = _mapping(entry)
        if mapping is None:
            continue
        port = (mapping.protocol, mapping.host, mapping.version, mapping.host_port)
        if mappings.setdefault(port, mapping) != mapping:
            entry.problem("hostPort", f"is mapped twice for {mapping.protocol}, to different ports of the container")
    return PortMap(
        tuple(mappings.values()),
        keys.flag("snat", True),
        keys.flag("masqAll"),
        backend == "iptables" or bool(conditions),
        conditions,
    )


def _conditions(keys: Section, version: int) -> tuple[tuple[str, str], ...]:
    """The conditions of one family: iptables options, each with its part of the rule.

    Source, destination and incoming link are supported, each once. Raises ConfigProblem for any other
    option: passing options through would let a configuration run arbitrary rules.
    """
    key = _NAMES[version]
    words = list(keys.texts(key))
    found: dict[str, str] = {}
    while words:
        negation = "! " if words[0] == "!" else ""
        option, *rest = words[1:] if negation else words
        if option not in _CONDITIONS or not rest:
            raise ConfigProblem(
                f"{keys.at(key)} {quoted(option)} is not supported",
                hint="supported are -s, -d and -i with a value, optionally negated by '!'",
                code=UNSUPPORTED_FIELD,
            )
        value, *words = rest
        name = _CONDITIONS[option]
        if name in found:
            keys.problem(key, f"gives {name} twice")
        found[name] = f"{negation}{name} {_value(keys, key, name, value, version)}"
    return tuple(one for one in found.items() if not one[1].endswith("/0") or one[1].startswith("!"))


def _value(keys: Section, key: str, option: str, value: str, version: int) -> str:
    """A condition's value as iptables-save writes it; adds a problem if it is invalid."""
    if option == "-i":
        problem = link_name_problem(value.removesuffix("+") or value)
        if problem:
            keys.problem(key, f"names a link that {problem}")
        return value
    try:
        subnet = ip_network(value, strict=False)
        if subnet.version == version:
            return str(subnet)
        keys.problem(key, f"contains {value}, which is not IPv{version}")
    except ValueError:
        keys.problem(key, f"holds {quoted(value)}, which is neither an IP address nor a subnet")
    return ""


def _host(entry: Section) -> Address | None:
    """The hostIP, None with a problem added where no port can be published there."""
    text = entry.text("hostIP")
    try:
        found = ip_address(text.split("%")[0])
    except ValueError:
        return entry.address("hostIP")
    if found.version == 6 and found.is_link_local:
        entry.problem("hostIP", _LINK_LOCAL)
        return None
    return entry.address("hostIP")


def _mapping(entry: Section) -> PortMapping | None:
    """One entry of portMappings; None, with its problems added, if it is invalid."""
    known = len(entry.problems.found)
    host_port, container_port = (entry.integer(key, least=1, most=_LAST_PORT) for key in ("hostPort", "containerPort"))
    protocol = entry.text("protocol").lower()
    if protocol not in PROTOCOLS:
        entry.problem("protocol", f"must be one of {', '.join(PROTOCOLS)}")
    host = _host(entry)
    if len(entry.problems.found) > known:
        return None
    if host_port is None or container_port is None:
        entry.problems.add(f"{entry.path} requires hostPort and containerPort")
        return None
    version = host.version if host is not None else 0
    anywhere = host is None or host == ip_address("0.0.0.0" if host.version == 4 else "::")
    return PortMapping(host_port, container_port, protocol, None if anywhere else host, version)
