"""Reading what files of ``weft apply`` declare. The keys are in docs/apply.md.

All problems are collected and raised together; an unknown key is one, with the most similar known one.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from ipaddress import ip_network

from cni_plugin.networks.conflists import Json
from cni_plugin.networks.create import CreateOptions
from cni_plugin.networks.declared import languages
from discovery.consul import definition_files
from discovery.consul.definition_files import BadDefinitionFile
from weft import identity
from weft.errors import ConfigProblem
from weft.section import Problems, Section, quoted, similar
from weft.types import Address, Cidr, Subnet

KINDS = ("switch", "network", "router", "interface", "service")
"""The top-level tables of a file, each with a table for each name."""

_LAST_VLAN = 4094
_SMALLEST_MTU, _LARGEST_MTU = 68, 65535
_SWITCH = ("mac", "mtu", "vlans", "ports")
_NETWORK = (
    "driver", "subnets", "gateways", "ranges", "ipv6", "internal", "names", "options", "labels", "switch", "router",
    "routes", "services",
)  # fmt: skip
_ROUTER = ("forwarding", "nat", "interface", "routes")
_NIC = ("switch", "network", "addresses", "mac", "mtu", "vlan", "trunk")
_INTERFACE = (*_NIC, "namespace", "ifname", "gateways", "routes")
_BALANCING = {"balance": "weft-balance", "sticky": "weft-sticky", "publish": "weft-publish"}
"""Keys of a service, and the keys of its metadata that the balancer reads."""

_Raw = dict[str, dict[str, object]]


@dataclass(frozen=True, slots=True)
class SwitchPort:
    """A link of the host that is a port of a switch. ``vlan`` is that of untagged frames, 0 for none."""

    link: str
    vlan: int = 0
    trunk: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Switch:
    """A bridge. ``mac`` "" and ``mtu`` (bytes) 0: as derived, and the kernel's. With ``vlans`` it filters them."""

    name: str
    mac: str = ""
    mtu: int = 0
    vlans: tuple[int, ...] = ()
    ports: tuple[SwitchPort, ...] = ()


@dataclass(frozen=True, slots=True)
class Hop:
    """A route by a gateway."""

    destination: Subnet
    via: Address


@dataclass(frozen=True, slots=True)
class Interface:
    """An interface of a network namespace, on a switch or a network. ``namespace`` is a name of ``ip
    netns``, or a path. ``forwards``: it is a router's, so packets of other sources leave by it.
    """

    name: str
    namespace: str
    ifname: str
    switch: str = ""
    network: str = ""
    addresses: tuple[Cidr, ...] = ()
    mac: str = ""
    mtu: int = 0
    vlan: int = 0
    trunk: tuple[int, ...] = ()
    routes: tuple[Hop, ...] = ()
    forwards: bool = False


@dataclass(frozen=True, slots=True)
class Router:
    """A network namespace that forwards between its interfaces. ``nat`` are those by which packets leave
    with the router's own address.
    """

    name: str
    forwarding: bool = True
    nat: tuple[str, ...] = ()
    interfaces: tuple[Interface, ...] = ()


@dataclass(frozen=True, slots=True)
class Network:
    """A network as of ``weft network create``; ``routes`` instead of the default route, if there are any."""

    name: str
    requested: CreateOptions
    routes: tuple[Hop, ...] = ()
    services: tuple[object, ...] = ()
    router: str = ""


@dataclass(frozen=True, slots=True)
class Service:
    """A service as Consul's API takes it."""

    name: str
    definition: Json


@dataclass(frozen=True, slots=True)
class Document:
    """What is declared; ``raw`` are the tables as read, by kind and name."""

    switches: tuple[Switch, ...] = ()
    networks: tuple[Network, ...] = ()
    routers: tuple[Router, ...] = ()
    interfaces: tuple[Interface, ...] = ()
    services: tuple[Service, ...] = ()
    raw: _Raw = field(default_factory=dict)

    @property
    def every_interface(self) -> tuple[Interface, ...]:
        """Those of routers first."""
        return (*(one for router in self.routers for one in router.interfaces), *self.interfaces)


def decoded(text: str, where: str) -> _Raw:
    """A file's tables. Raises ConfigProblem."""
    found = languages.parsed(text, where)
    if not isinstance(found, dict):
        raise ConfigProblem(f"{where} must be a table of {', '.join(KINDS)}", hint="see docs/apply.md for an example")
    tables: _Raw = {}
    for kind, table in found.items():
        if kind not in KINDS:
            raise ConfigProblem(
                f"{where}: {kind} is unknown{similar(kind, KINDS)}; the tables are {', '.join(KINDS)}",
                hint="write [network.blue] for a network named blue",
            )
        # "office:" without keys, in YAML, declares as much as [switch.office].
        names = {name: {} if one is None else one for name, one in table.items()} if isinstance(table, dict) else {}
        if not isinstance(table, dict) or not all(isinstance(one, dict) for one in names.values()):
            raise ConfigProblem(
                f"{where}: {kind} has no names", hint=f"write [{kind}.NAME], in YAML {kind}: {{NAME: }}"
            )
        tables[kind] = names
    return tables


def merged(tables: Iterable[tuple[str, _Raw]]) -> _Raw:
    """The tables of several files. Raises ConfigProblem for what two files declare."""
    found: _Raw = {}
    for where, each in tables:
        for kind, names in each.items():
            if twice := found.get(kind, {}).keys() & names.keys():
                raise ConfigProblem(f"{where}: {kind} {min(twice)} is declared by another file, too")
            found.setdefault(kind, {}).update(names)
    return found


def over(below: Mapping[str, Mapping[str, object]], above: Mapping[str, Mapping[str, object]]) -> _Raw:
    """Both, of what both declare ``above``."""
    kinds = [kind for kind in KINDS if kind in below or kind in above]
    return {kind: {**below.get(kind, {}), **above.get(kind, {})} for kind in kinds}


def read(raw: _Raw) -> Document:
    """The values of the tables. Raises ConfigProblem with all that is wrong with them."""
    problems = Problems()

    def each(kind: str) -> Iterator[tuple[str, Section]]:
        for name, value in raw.get(kind, {}).items():
            if problem := identity.identifier_problem(name):
                problems.add(f"{kind} {quoted(name)} {problem}")
            yield name, Section(value, f"{kind}.{name}", problems)

    switches = tuple(_switch(name, keys) for name, keys in each("switch"))
    routers = tuple(_router(name, keys) for name, keys in each("router"))
    found = Document(
        switches,
        tuple(_network(name, keys, routers) for name, keys in each("network")),
        routers,
        tuple(_interface(name, keys) for name, keys in each("interface")),
        tuple(_service(name, keys, raw["service"][name]) for name, keys in each("service")),
        raw,
    )
    _check_together(found, problems)
    if problems.found:
        raise ConfigProblem("; ".join(problems.found), hint="nothing was changed; see docs/apply.md for the keys")
    return found


def _switch(name: str, keys: Section) -> Switch:
    keys.refuse_unknown(_SWITCH)
    if problem := identity.link_name_problem(name):
        keys.problems.add(f"{keys.path}: the name of a switch is that of its bridge, and {problem}")
    ports = []
    section = keys.section("ports")
    raw = keys.raw("ports")
    for link in raw if isinstance(raw, dict) else ():
        port = section.section(link)
        port.refuse_unknown(("vlan", "trunk"))
        if problem := identity.link_name_problem(link):
            port.problems.add(f"{port.path} {problem}")
        ports.append(SwitchPort(link, _vlan(port), _vlans(port, "trunk")))
    return Switch(name, _mac(keys), _mtu(keys), _vlans(keys, "vlans"), tuple(ports))


def _network(name: str, keys: Section, routers: Sequence[Router]) -> Network:
    keys.refuse_unknown(_NETWORK)
    switch, router = keys.text("switch"), keys.text("router")
    options = {key: _option(value) for key, value in _table(keys, "options").items()}
    if switch:
        options["bridge"] = switch
        if not router:
            options.setdefault("isolation", "closed")  # which is no default on a bridge that a network did not make
    routes = _routes(keys)
    if router:
        via = _router_addresses(routers, router, switch)
        if not via:
            keys.problem("router", f"has no interface on {f'the switch {switch}' if switch else 'a switch'}")
        # The way out is the router's; where br_netfilter shows bridged packets to the host's rules, it would
        # masquerade them on their way to the router.
        options.setdefault("ip-masq", "false")
        routes += tuple(Hop(ip_network("::/0" if one.version == 6 else "0.0.0.0/0"), one.ip) for one in via)
    requested = CreateOptions(
        driver=keys.text("driver", "bridge"),
        subnets=keys.texts("subnets"),
        gateways=keys.texts("gateways"),
        ranges=keys.texts("ranges"),
        ipv6=keys.flag("ipv6"),
        internal=keys.flag("internal"),
        names=keys.flag("names") or bool(keys.items("services")),
        options=options,
        labels={key: str(value) for key, value in _table(keys, "labels").items()},
    )
    return Network(name, requested, routes, tuple(keys.items("services")), router)


def _router_addresses(routers: Iterable[Router], name: str, switch: str) -> list[Cidr]:
    """The addresses of a router on a switch, one of each IP version."""
    found: dict[int, Cidr] = {}
    for router in routers:
        for one in router.interfaces if router.name == name else ():
            for address in one.addresses if one.switch == switch and switch else ():
                found.setdefault(address.version, address)
    return list(found.values())


def _router(name: str, keys: Section) -> Router:
    keys.refuse_unknown(_ROUTER)
    interfaces = []
    section = keys.section("interface")
    raw = keys.raw("interface")
    for ifname in raw if isinstance(raw, dict) else ():
        inner = section.section(ifname)
        inner.refuse_unknown(_NIC)
        interfaces.append(_nic(ifname, inner, name, ifname, forwards=True))
    nat = keys.texts("nat")
    for each in nat:
        if each not in {one.ifname for one in interfaces}:
            keys.problem("nat", f"names {each}, which is no interface of the router")
    routes = _routes(keys)
    placed = []
    for one in interfaces:
        mine = tuple(hop for hop in routes if any(hop.via in address.network for address in one.addresses))
        routes = tuple(hop for hop in routes if hop not in mine)
        placed.append(_with_routes(one, mine))
    for hop in routes:
        keys.problems.add(f"{keys.at('routes')}: via {hop.via} is in no subnet of the router's interfaces")
    return Router(name, keys.flag("forwarding", True), nat, tuple(placed))


def _with_routes(one: Interface, routes: tuple[Hop, ...]) -> Interface:
    return replace(one, routes=routes)


def _interface(name: str, keys: Section) -> Interface:
    keys.refuse_unknown(_INTERFACE)
    namespace = keys.text("namespace")
    if not namespace:
        keys.problems.add(f"{keys.at('namespace')} is missing: a name of ip netns, or a path")
    elif "/" not in namespace and (problem := identity.identifier_problem(namespace)):
        keys.problem("namespace", problem)
    one = _nic(name, keys, namespace, keys.text("ifname", name))
    routes = list(_routes(keys))
    for text in keys.texts("gateways"):
        if (gateway := keys.parse_address("gateways", text)) is not None:
            routes.append(Hop(ip_network("::/0" if gateway.version == 6 else "0.0.0.0/0"), gateway))
    if one.network and routes:
        keys.problems.add(f"{keys.path}: an interface on a network has the network's routes, and none of its own")
    return _with_routes(one, tuple(routes))


def _nic(name: str, keys: Section, namespace: str, ifname: str, *, forwards: bool = False) -> Interface:
    if problem := identity.link_name_problem(ifname):
        keys.problems.add(f"{keys.path}: the interface's name {quoted(ifname)} {problem}")
    switch, network = keys.text("switch"), keys.text("network")
    if bool(switch) == bool(network):
        keys.problems.add(f"{keys.path}: must have either switch or network")
    addresses = [keys.parse_cidr("addresses", text) for text in keys.texts("addresses")]
    found = Interface(
        name, namespace, ifname, switch, network, tuple(one for one in addresses if one is not None), _mac(keys),
        _mtu(keys), _vlan(keys), _vlans(keys, "trunk"), forwards=forwards,
    )  # fmt: skip
    if network:
        for key in ("mtu", "vlan", "trunk"):
            if key in keys:
                keys.problem(key, "is the network's: set it in options there")
    return found


def _service(name: str, keys: Section, raw: object) -> Service:
    """A service: Consul's definition with weft's keys for balancing, which become metadata."""
    given: Json = dict(raw) if isinstance(raw, dict) else {}
    meta = given.get("meta")
    more = {place: str(given.pop(key)) for key, place in _BALANCING.items() if key in given}
    if more:
        given["meta"] = {**(meta if isinstance(meta, dict) else {}), **more}
    given.setdefault("name", name)
    given.setdefault("id", name)
    try:
        [definition] = definition_files.parse(json.dumps({"service": given}), keys.path).services
    except BadDefinitionFile as error:
        keys.problems.add(str(error))
        return Service(name, {})
    return Service(name, definition)


def _check_together(found: Document, problems: Problems) -> None:
    """Add what is wrong with the declarations of several names."""
    switches = {one.name: one for one in found.switches}
    for name in switches.keys() & {one.name for one in found.networks}:
        problems.add(f"a switch and a network are both named {name}")
    for network in found.networks:
        bridge = network.requested.options.get("bridge", "")
        if bridge and f"network.{network.name}" and _declares(found, network, "switch") and bridge not in switches:
            problems.add(f"network.{network.name}.switch {quoted(bridge)} is not declared{similar(bridge, switches)}")
    seen: dict[tuple[str, ...], str] = {}
    for one in found.every_interface:
        if one.switch and one.switch not in switches:
            problems.add(
                f"interface {one.name}: switch {quoted(one.switch)} is not declared{similar(one.switch, switches)}"
            )
        known = switches[one.switch].vlans if one.switch in switches else ()
        _check_vlans(f"interface {one.name}", one.switch, (one.vlan, *one.trunk), known, problems)
        signs = [("namespace", one.namespace, one.ifname)]
        signs += [("address", one.switch, str(each.ip)) for each in one.addresses if one.switch]
        signs += [("MAC address", one.switch, one.mac)] if one.mac and one.switch else []
        for sign in signs:
            if sign in seen:
                problems.add(f"interface {one.name}: {sign[0]} {sign[1]} {sign[2]} is {seen[sign]}'s, too")
            seen[sign] = one.name
    for switch in found.switches:
        for port in switch.ports:
            where = f"switch.{switch.name}.ports.{port.link}"
            _check_vlans(where, switch.name, (port.vlan, *port.trunk), switch.vlans, problems)


def _declares(found: Document, network: Network, key: str) -> bool:
    table = found.raw.get("network", {}).get(network.name)
    return isinstance(table, dict) and key in table


def _check_vlans(where: str, switch: str, vids: Iterable[int], known: Sequence[int], problems: Problems) -> None:
    for vid in vids:
        if vid and vid not in known:
            problems.add(f"{where}: VLAN {vid} is not among vlans of the switch {switch}")


def _routes(keys: Section) -> tuple[Hop, ...]:
    found = []
    for each in keys.sections("routes"):
        each.refuse_unknown(("to", "via"))
        to, via = each.subnet("to"), each.address("via")
        for key in ("to", "via"):
            if key not in each:
                each.problems.add(f"{each.at(key)} is missing")
        if to is not None and via is not None:
            if to.version != via.version:
                each.problem("via", f"is not of the same IP version as {to}")
            found.append(Hop(to, via))
    return tuple(found)


def _table(keys: Section, key: str) -> Json:
    keys.section(key)
    value = keys.raw(key)
    return value if isinstance(value, dict) else {}


def _option(value: object) -> str:
    return {True: "true", False: "false"}[value] if isinstance(value, bool) else str(value)


def _mac(keys: Section) -> str:
    text = keys.text("mac")
    try:
        return identity.normal_mac(text) if text else ""
    except ValueError as error:
        keys.problem("mac", str(error))
        return ""


def _mtu(keys: Section) -> int:
    return keys.integer("mtu", least=_SMALLEST_MTU, most=_LARGEST_MTU) or 0


def _vlan(keys: Section) -> int:
    return keys.integer("vlan", least=1, most=_LAST_VLAN) or 0


def _vlans(keys: Section, key: str) -> tuple[int, ...]:
    found = []
    for value in keys.items(key):
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= _LAST_VLAN:
            keys.problem(key, f"must be a list of numbers from 1 to {_LAST_VLAN}")
            return ()
        found.append(value)
    return tuple(sorted(set(found)))
