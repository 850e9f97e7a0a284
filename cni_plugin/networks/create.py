"""Builds the network list for the options of ``weft network create``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from ipaddress import ip_address, ip_network

from cni_plugin.networks import pools
from cni_plugin.networks.conflists import OWN_KEY, Json, NetworkList
from cni_plugin.plan import modules
from cni_plugin.plan.facts import KernelFacts
from cni_plugin.plan.traits import Driver, Option, Parent, Value
from cni_plugin.service import overlaps
from cni_plugin.service.overlaps import Use
from cni_plugin.wire.plugins import OWN_NAME
from weft import identity
from weft.errors import BadOption, InUse
from weft.kernel.interface import Namespace
from weft.section import Section
from weft.types import Address, Side, Subnet

VERSION = "1.0.0"
"""podman 4.3.1 ignores lists of version 1.1.0."""

IPAM_DRIVERS = ("host-local", "dhcp", "none")
_LONGEST_LINK = 15
_MOST_METRIC = 2**32 - 1

_FLAGS = {"true": True, "1": True, "yes": True, "on": True, "false": False, "0": False, "no": False, "off": False}


@dataclass(frozen=True, slots=True)
class CreateOptions:
    """The options of ``weft network create``; subnets and addresses are not parsed yet."""

    driver: str = "bridge"
    subnets: tuple[str, ...] = ()
    gateways: tuple[str, ...] = ()
    ranges: tuple[str, ...] = ()
    ipv6: bool = False
    internal: bool = False
    names: bool = False
    options: dict[str, str] = field(default_factory=dict)
    labels: dict[str, str] = field(default_factory=dict)
    ipam: str = ""
    """The IPAM driver, one of IPAM_DRIVERS; "": the driver's default."""
    others: tuple[str, ...] = ()
    """Addresses that no container gets."""
    servers: tuple[str, ...] = ()
    """Name servers of the containers."""
    routes: tuple[str, ...] = ()
    """``SUBNET,GATEWAY`` and perhaps a metric."""


def flag(name: str, text: str) -> bool:
    if text.casefold() not in _FLAGS:
        raise BadOption(f"invalid value {text!r} for option {name}: must be true or false")
    return _FLAGS[text.casefold()]


def _number(name: str, text: str, least: int, most: int) -> int:
    if not text.isascii() or not text.isdigit() or not least <= int(text) <= most:
        raise BadOption(f"invalid value {text!r} for option {name}: must be a number from {least} to {most}")
    return int(text)


def _one_of(name: str, text: str, choices: tuple[str, ...]) -> str:
    if text not in choices:
        raise BadOption(f"invalid value {text!r} for option {name}: must be one of {', '.join(choices)}")
    return text


def _link(name: str, text: str) -> str:
    if problem := identity.link_name_problem(text):
        raise BadOption(f"invalid value {text!r} for option {name}: {problem}")
    return text


def _read(option: Option, name: str, text: str) -> object:
    """The value of an option as the driver's key has it. Raises BadOption."""
    match option.value:
        case Value.FLAG:
            return flag(name, text) != option.inverted
        case Value.NUMBER:
            return _number(name, text, option.least, option.most)
        case Value.CHOICE:
            return _one_of(name, text, option.choices)
        case Value.LINK:
            return _link(name, text)
        case Value.TEXT:
            return text


def drivers() -> tuple[str, ...]:
    """The drivers that ``weft network create`` supports."""
    return tuple(name for name in modules.drivers() if modules.declared(name).creatable)


def _options(driver: Driver) -> tuple[Option, ...]:
    """The options of a driver and its features, and of those with a section that routed networks may ask for."""
    names = [*driver.features]
    if driver.routed:
        names += (name for name in modules.features() if modules.feature(name).FEATURE.section and name not in names)
    features = (option for name in names for option in modules.feature(name).FEATURE.options)
    return tuple(option for option in (*driver.options, *features) if option.names)


def known_options(driver: str) -> tuple[str, ...]:
    """Every spelling of every option of a driver, the short one first."""
    return tuple(name for option in _options(modules.declared(driver)) for name in option.names)


def free_name(networks: Sequence[NetworkList], host: Namespace) -> str:
    """The first of weft0, weft1 … that is no network's or link's name."""
    taken = {network.name for network in networks} | {network.bridge for network in networks}
    number = 0
    while f"weft{number}" in taken or host.link(f"weft{number}") is not None:
        number += 1
    return f"weft{number}"


def build(
    name: str,
    requested: CreateOptions,
    networks: Sequence[NetworkList],
    host: Namespace,
    others: Sequence[Use] = (),
) -> Json:
    """The network list; ``others`` are more subnets in use. Raises BadOption for invalid options, InUse for a
    name, bridge or subnet in use.
    """
    if problem := identity.identifier_problem(name):
        raise BadOption(f"invalid network name {name!r}: {problem}")
    if any(network.name == name for network in networks):
        raise InUse(f"network with name {name} already exists", hint="choose another name, or remove that one first")
    if requested.driver not in drivers():
        raise BadOption(
            f"unknown driver {requested.driver!r}: must be one of {', '.join(drivers())}",
            hint="for other plugins, write the network list by hand",
        )
    driver = modules.declared(requested.driver)
    settings = settings_of(requested, driver)
    if requested.names and not driver.routed:
        routed = (name for name in drivers() if modules.declared(name).routed)
        physical = driver.parent in (Parent.SHARED, Parent.LENT)
        raise BadOption(
            f"--names is only supported by the drivers {' and '.join(routed)}, whose gateway is this host",
            hint=f"containers of {requested.driver} use the name servers of their physical network" if physical else "",
        )
    if driver.bridged and driver.parent_key:
        settings[driver.parent_key] = _bridge(name, str(settings.get(driver.parent_key, "")), settings, networks, host)
    own_link = str(settings.get(driver.parent_key, ""))
    if driver.parent is Parent.SHARED:
        # On a shared parent, containers get addresses of the host's own subnet there.
        own_link = (own_link or KernelFacts(host, None).default_link(Side.HOST)) if requested.subnets else ""
    ipam = requested.ipam if driver.addresses else "none"
    if requested.ipam and not driver.addresses and requested.ipam != "none":
        raise BadOption(f"--ipam-driver {requested.ipam} is not supported by driver {requested.driver}")
    if requested.ipam and driver.clustered:
        raise BadOption("--ipam-driver is not supported by overlay networks, whose hosts have blocks of the subnet")
    subnets: tuple[Subnet, ...] = ()
    if ipam in ("", "host-local"):
        uses = [*pools.of_networks(networks), *others]
        if not settings.get(overlaps.KEY) or not requested.subnets:
            uses += pools.of_host(host) + pools.of_docker()
            uses += overlaps.of_virtual_ranges() if driver.routed else ()
        # With a VLAN the gateway's address is on a link of its own.
        own_links = {own_link, f"{own_link}.{settings.get('vlan')}"} - {""}
        uses = [use for use in uses if use.link not in own_links]
        subnets = _subnets(requested, uses, pools.OVERLAY if driver.clustered else pools.LOCAL)
    else:
        _refuse_addresses(requested, driver)
    servers = _servers(requested)
    # Containers on a shared parent are neighbours of the host and its routers.
    taken = sorted(pools.taken(host), key=int) if driver.parent is Parent.SHARED else []
    plugin: Json = {
        "type": OWN_NAME,
        "driver": requested.driver,
        **gateway_and_masquerade(requested, driver, settings),
        **_capabilities(requested, driver),
        **({"portmap": {}} if driver.routed else {}),
        **({"names": {"nameservers": servers} if servers else {}} if requested.names else {}),
        **({"dns": {"nameservers": servers}} if servers and not requested.names else {}),
        **({"ipam": _ipam(requested, subnets, taken)} if driver.addresses else {}),
    }
    cluster: Json = {}
    if driver.clustered:
        cluster = {"cluster": clustered(requested, subnets, plugin.pop("cluster", {}))}
        plugin["ipam"] = {"type": driver.default_ipam}
    notes: Json = {
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "internal": requested.internal,
        "options": dict(requested.options),
        "labels": dict(requested.labels),
        **cluster,
    }
    return {"cniVersion": VERSION, "name": name, "plugins": [plugin], OWN_KEY: notes}


def clustered(requested: CreateOptions, subnets: Sequence[Subnet], settings: object) -> Json:
    """What the cluster stores of a network beside its configuration. Raises BadOption."""
    given = settings if isinstance(settings, dict) else {}
    if requested.ranges:
        raise BadOption("--ip-range is not supported by overlay networks, whose hosts have blocks of the subnet")
    gateway = ""
    for text in requested.gateways:
        address = _address("--gateway", text)
        _subnet_of("--gateway", text, (address,), [one for one in subnets if one.version == 4])
        if gateway:
            raise BadOption("an overlay network has one --gateway, of IPv4")
        gateway = str(address)
    static = [str(_subnet("option static", one)) for one in str(given.get("static", "")).split(",") if one]
    found = {"subnets": [str(one) for one in subnets], "static": static, "gateway": gateway}
    return {key: value for key, value in {**given, **found}.items() if value}


def _capabilities(requested: CreateOptions, driver: Driver) -> Json:
    """The key ``capabilities``: what a runtime may ask for, one container at a time."""
    given = {
        "portMappings": driver.routed,
        "ips": driver.addresses,
        "mac": driver.link_kind is not None,
        "aliases": requested.names,
        "uplink": any(name.startswith("uplink-") for name in requested.options),
    }
    names = [name for name, supported in given.items() if supported]
    return {"capabilities": dict.fromkeys(names, True)} if names else {}


def _refuse_addresses(requested: CreateOptions, driver: Driver) -> None:
    """Raises BadOption for options of a network whose addresses are not from this host's leases."""
    if driver.on_host and requested.internal:
        raise BadOption(f"--internal is not supported by driver {requested.driver}, whose containers are on the host")
    options = {
        "--subnet": requested.subnets,
        "--gateway": requested.gateways,
        "--ip-range": requested.ranges,
        "--ipv6": requested.ipv6,
        "--aux-address": requested.others,
        "--route": requested.routes,
    }
    if given := [option for option, value in options.items() if value]:
        if driver.addresses:
            raise BadOption(f"{given[0]} is not supported with --ipam-driver {requested.ipam}")
        raise BadOption(f"{given[0]} is not supported by driver {requested.driver}, which assigns no addresses")


def _servers(requested: CreateOptions) -> list[str]:
    """The name servers. Raises BadOption."""
    return list(dict.fromkeys(str(_address("--dns", text)) for text in requested.servers))


def settings_of(requested: CreateOptions, driver: Driver) -> dict[str, object]:
    """The driver's keys that the options set. Raises BadOption, listing the valid options."""
    found: dict[str, object] = {}
    names: dict[str, str] = {}
    for name, text in requested.options.items():
        option = next((one for one in _options(driver) if name in one.names), None)
        if option is None:
            raise BadOption(
                f"unknown option {name!r} for driver {requested.driver}",
                hint=f"valid options: {', '.join(known_options(requested.driver)) or 'none'}",
            )
        value = _read(option, name, text)
        if found.get(option.key, value) != value:
            raise BadOption(f"options {names[option.key]} and {name} have conflicting values")
        found[option.key], names[option.key] = value, name
    return _in_sections(found)


def _in_sections(settings: dict[str, object]) -> dict[str, object]:
    """The settings with those of a section (``uplink.weight``) in it."""
    found: dict[str, object] = {}
    for key, value in settings.items():
        section, _, inner = key.rpartition(".")
        place = found.setdefault(section, {}) if section else found
        assert isinstance(place, dict)
        place[inner] = value
    return found


def _bridge(
    name: str, chosen: str, settings: dict[str, object], networks: Sequence[NetworkList], host: Namespace
) -> str:
    """The bridge's name: the requested one, or one derived from the network's name. Raises InUse."""
    owners = {network.bridge: network.name for network in networks if network.bridge}
    if chosen:
        vlans = [network.main.integer("vlan") for network in networks if network.bridge == chosen]
        if chosen in owners and (settings.get("vlan") is None or settings["vlan"] in vlans):
            raise InUse(f"bridge {chosen} is already in use by network {owners[chosen]}", hint="choose another bridge")
        return chosen
    longest = _LONGEST_LINK - (len(str(settings["vlan"])) + 1 if "vlan" in settings else 0)
    plain = name if name.startswith("weft") else f"weft-{name}"
    if len(plain) <= longest and plain not in owners and host.link(plain) is None:
        return plain
    tail = f"-{identity.digest('bridge of', name)[:5]}"
    return plain[: longest - len(tail)] + tail


def gateway_and_masquerade(requested: CreateOptions, driver: Driver, settings: dict[str, object]) -> dict[str, object]:
    """The driver's keys with their defaults: gateway and masquerade, unless the network is internal."""
    if requested.internal and settings.get("ipMasq"):
        raise BadOption("--internal and ip-masq=true are mutually exclusive")
    if not driver.routed:
        return {**dict(driver.created_with), **settings}
    external = not requested.internal
    gateway = {driver.gateway_key: external or requested.names} if driver.gateway_key else {}
    internal = {"internal": True} if requested.internal else {}
    return {**gateway, "ipMasq": external, **dict(driver.created_with), **internal, **settings}


def _subnets(requested: CreateOptions, uses: Sequence[Use], kind: pools.Default) -> tuple[Subnet, ...]:
    """The requested subnets, or free ones. Raises BadOption, InUse and PoolExhausted."""
    found: list[Subnet] = []
    for text in requested.subnets:
        subnet = _subnet("--subnet", text)
        pools.require_free(subnet, [*uses, *(Use(one, "another --subnet of this network") for one in found)])
        found.append(subnet)
    if not requested.subnets:
        found.append(pools.free_ipv4(uses, kind))
    if requested.ipv6 and not any(subnet.version == 6 for subnet in found):
        found.append(pools.free_ipv6(uses))
    return tuple(found)


def _subnet(option: str, text: str) -> Subnet:
    try:
        if "/" not in text:
            raise ValueError
        return ip_network(text)
    except ValueError:
        pass
    try:
        suggestion = f"; did you mean {ip_network(text, strict=False)}?" if "/" in text else ", like 10.89.7.0/24"
    except ValueError:
        suggestion = ", like 10.89.7.0/24"
    raise BadOption(f"invalid {option} {text!r}: not a subnet{suggestion}")


def _ipam(requested: CreateOptions, subnets: tuple[Subnet, ...], taken: Sequence[Address]) -> Json:
    """The ipam section: one range set for each subnet; a container gets an address of each, but none
    that is ``taken``.
    """
    if requested.ipam in ("dhcp", "none"):
        return {"type": "dhcp"} if requested.ipam == "dhcp" else {}
    ranges: dict[Subnet, Json] = {subnet: {"subnet": str(subnet)} for subnet in subnets}
    for text in requested.gateways:
        address = _address("--gateway", text)
        subnet = _subnet_of("--gateway", text, (address,), subnets)
        if "gateway" in ranges[subnet]:
            raise BadOption(f"--gateway {text}: {subnet} already has gateway {ranges[subnet]['gateway']}")
        ranges[subnet]["gateway"] = str(address)
    for text in requested.ranges:
        first, last = _span(text)
        subnet = _subnet_of("--ip-range", text, (first, last), subnets)
        if "rangeStart" in ranges[subnet]:
            raise BadOption(f"--ip-range {text}: {subnet} already has a range")
        first, last = _usable(subnet, first, last)
        ranges[subnet] |= {"rangeStart": str(first), "rangeEnd": str(last)}
    others = [_address("--aux-address", text) for text in requested.others]
    for address in others:
        _subnet_of("--aux-address", str(address), (address,), subnets)
    for subnet, one in ranges.items():
        gateway = one.get("gateway", str(subnet.network_address + 1))
        excluded = dict.fromkeys(str(each) for each in (*taken, *others) if each in subnet and str(each) != gateway)
        if excluded:
            one["exclude"] = list(excluded)
    ipam: Json = {"type": "host-local", "ranges": [[one] for one in ranges.values()]}
    default = {4: "0.0.0.0/0", 6: "::/0"}
    versions = [] if requested.internal else sorted({subnet.version for subnet in subnets})
    own = [_route(text) for text in requested.routes]
    for via in (ip_address(str(route["gw"])) for route in own):
        if not via.is_link_local:
            _subnet_of("the gateway of --route,", str(via), (via,), subnets)
    if routes := [*({"dst": default[version]} for version in versions), *own]:
        ipam["routes"] = routes
    return ipam


def with_servers(network: NetworkList, added: Sequence[str], dropped: Sequence[str]) -> Json:
    """The network list with other name servers. Raises BadOption."""
    main = dict(network.plugins[0])
    key = "names" if network.weft and isinstance(main.get("names"), dict) else "dns"
    section = main.get(key)
    settings = dict(section) if isinstance(section, dict) else {}
    present = list(Section(settings).texts("nameservers"))
    for text in dropped:
        address = str(_address("--dns-drop", text))
        if address not in present:
            listed = ", ".join(present) or "none"
            raise BadOption(f"--dns-drop {text}: network {network.name} has no such name server; it has {listed}")
        present.remove(address)
    present += [each for text in added if (each := str(_address("--dns-add", text))) not in present]
    settings["nameservers"] = present
    main[key] = settings
    if "plugins" not in network.content:
        return main
    return {**network.content, "plugins": [main, *network.plugins[1:]]}


def _route(text: str) -> Json:
    """``10.1.0.0/16,10.89.0.9[,100]`` as a route of CNI, as podman has it. Raises BadOption."""
    destination, _, rest = text.partition(",")
    gateway, comma, metric = rest.partition(",")
    if not gateway:
        raise BadOption(f"invalid --route {text!r}: must be SUBNET,GATEWAY[,METRIC]")
    subnet, via = _subnet("--route", destination), _address("--route", gateway)
    if subnet.version != via.version:
        raise BadOption(f"invalid --route {text!r}: subnet and gateway are not of the same family")
    found: Json = {"dst": str(subnet), "gw": str(via)}
    return {**found, "priority": _number("--route", metric, 1, _MOST_METRIC)} if comma else found


def _address(option: str, text: str) -> Address:
    try:
        return ip_address(text)
    except ValueError:
        raise BadOption(f"invalid {option} {text!r}: not an IP address") from None


def _span(text: str) -> tuple[Address, Address]:
    """First and last address of 10.89.7.128/25 or 10.89.7.128-10.89.7.200."""
    if "-" in text:
        first, last = (_address("--ip-range", part.strip()) for part in text.split("-", 1))
        if first.version != last.version or int(first) > int(last):
            raise BadOption(f"invalid --ip-range {text!r}: the first address must not be higher than the last")
        return first, last
    part = _subnet("--ip-range", text)
    return part[0], part[-1]


def _subnet_of(option: str, text: str, addresses: Sequence[Address], subnets: Sequence[Subnet]) -> Subnet:
    """The subnet that contains the addresses. Raises BadOption."""
    for subnet in subnets:
        if all(address in subnet for address in addresses):
            return subnet
    raise BadOption(f"{option} {text} is not in {' or '.join(map(str, subnets))}")


def _usable(subnet: Subnet, first: Address, last: Address) -> tuple[Address, Address]:
    """The range without the subnet's network address and broadcast address."""
    low = first + 1 if first == subnet.network_address else first
    high = last - 1 if last == subnet.broadcast_address and subnet.version == 4 else last
    return low, high
