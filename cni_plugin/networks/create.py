"""From what a person asks of ``weft network create`` to the network list that says it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from ipaddress import ip_address, ip_network

from cni_plugin.networks import pools
from cni_plugin.networks.conflists import OWN_KEY, Json, NetworkList
from cni_plugin.networks.pools import Use
from cni_plugin.plan.facts import Look
from cni_plugin.plan.interface import LARGEST_MTU, SMALLEST_MTU
from cni_plugin.service import assemble
from cni_plugin.wire.plugins import OWN_NAME
from weft import identity
from weft.errors import BadOption, InUse
from weft.kernel.interface import Namespace
from weft.types import Address, Side, Subnet

VERSION = "1.0.0"
"""podman 4.3.1 does not show lists of 1.1.0."""

_LONGEST_LINK = 15
_LAST_VLAN = 4094

_FLAGS = {"true": True, "1": True, "yes": True, "on": True, "false": False, "0": False, "no": False, "off": False}


@dataclass(frozen=True, slots=True)
class Wanted:
    """What was asked for, still as text where it may be wrong."""

    driver: str = "bridge"
    subnets: tuple[str, ...] = ()
    gateways: tuple[str, ...] = ()
    ranges: tuple[str, ...] = ()
    ipv6: bool = False
    internal: bool = False
    names: bool = False
    options: dict[str, str] = field(default_factory=dict)
    labels: dict[str, str] = field(default_factory=dict)


def _flag(name: str, text: str) -> bool:
    if text.casefold() not in _FLAGS:
        raise BadOption(f"option {name}: {text!r} is neither true nor false")
    return _FLAGS[text.casefold()]


def _number(name: str, text: str, least: int, most: int) -> int:
    if not text.isascii() or not text.isdigit() or not least <= int(text) <= most:
        raise BadOption(f"option {name}: {text!r} is not a number between {least} and {most}")
    return int(text)


def _one_of(*choices: str) -> Callable[[str, str], str]:
    def read(name: str, text: str) -> str:
        if text not in choices:
            raise BadOption(f"option {name}: {text!r} is none of {', '.join(choices)}")
        return text

    return read


def _link(name: str, text: str) -> str:
    if problem := identity.link_name_problem(text):
        raise BadOption(f"option {name}: {text!r} {problem}")
    return text


@dataclass(frozen=True, slots=True)
class _Option:
    """One option: its long and short names, the key it sets, and how its value is read."""

    spellings: tuple[str, ...]
    key: str
    read: Callable[[str, str], object]


_MTU = _Option(
    ("mtu", "com.docker.network.driver.mtu"), "mtu", lambda name, text: _number(name, text, SMALLEST_MTU, LARGEST_MTU)
)
_MASQUERADE = _Option(
    ("ip-masq", "com.docker.network.bridge.enable_ip_masquerade"), "ipMasq", lambda name, text: _flag(name, text)
)
_GUARDS = (
    _Option(("isolation",), "isolation", _one_of("closed", "routed", "open")),
    _Option(("host-access",), "hostAccess", _one_of("open", "dns")),
)
_PARENT = _Option(("parent", "master"), "master", _link)
_OPTIONS: dict[str, tuple[_Option, ...]] = {
    "bridge": (
        _MTU,
        _MASQUERADE,
        _Option(("bridge", "com.docker.network.bridge.name"), "bridge", _link),
        _Option(("vlan",), "vlan", lambda name, text: _number(name, text, 1, _LAST_VLAN)),
        _Option(
            ("icc", "com.docker.network.bridge.enable_icc"),
            "portIsolation",
            lambda name, text: not _flag(name, text),
        ),
        _Option(("hairpin",), "hairpinMode", _flag),
        *_GUARDS,
    ),
    "ptp": (_MTU, _MASQUERADE, *_GUARDS),
    "macvlan": (_MTU, _PARENT, _Option(("mode", "macvlan_mode"), "mode", lambda _, text: text)),
    "ipvlan": (_MTU, _PARENT, _Option(("mode", "ipvlan_mode"), "mode", lambda _, text: text)),
    "vlan": (_MTU, _PARENT, _Option(("vlan",), "vlanId", lambda name, text: _number(name, text, 1, _LAST_VLAN))),
}
"""The drivers that ``weft network create`` knows, and what each can be told."""

_ROUTED = ("bridge", "ptp")
"""The drivers whose containers reach others through this host."""


def drivers() -> tuple[str, ...]:
    """The drivers that a network can be made with."""
    return tuple(name for name in assemble.drivers() if name in _OPTIONS)


def known_options(driver: str) -> tuple[str, ...]:
    """Every spelling of every option of a driver, the short one first."""
    return tuple(spelling for option in _OPTIONS[driver] for spelling in option.spellings)


def free_name(networks: Sequence[NetworkList], host: Namespace) -> str:
    """The first of weft0, weft1 … that neither a network nor a link has."""
    taken = {network.name for network in networks} | {network.bridge for network in networks}
    number = 0
    while f"weft{number}" in taken or host.link(f"weft{number}") is not None:
        number += 1
    return f"weft{number}"


def build(name: str, wanted: Wanted, networks: Sequence[NetworkList], host: Namespace) -> Json:
    """The network list; raises BadOption for what makes no sense, InUse for what another has."""
    if problem := identity.identifier_problem(name):
        raise BadOption(f"the network name {name!r} {problem}")
    if any(network.name == name for network in networks):
        raise InUse(f"network with name {name} already exists", hint="choose another name, or remove that one first")
    if wanted.driver not in drivers():
        raise BadOption(
            f"driver {wanted.driver!r} is not known; it is one of {', '.join(drivers())}",
            hint="for other plugins, write the network list by hand",
        )
    settings = _settings(wanted)
    if wanted.names and wanted.driver not in _ROUTED:
        raise BadOption(
            f"--names goes with the drivers {' and '.join(_ROUTED)}, whose gateway is this host",
            hint=f"containers of {wanted.driver} ask the name servers of the network they are on",
        )
    if wanted.driver == "bridge":
        settings["bridge"] = _bridge(name, settings, networks, host)
    own = str(settings.get("bridge", ""))
    if wanted.subnets and wanted.driver not in _ROUTED:
        # Containers on the wire are meant to have addresses of the subnet that the host has there.
        own = str(settings.get("master", "")) or Look(host, None).default_link(Side.HOST)
    uses = pools.of_networks(networks) + pools.of_host(host)
    subnets = _subnets(wanted, [use for use in uses if not use.link or use.link != own])
    capabilities = [*(["portMappings"] if wanted.driver in _ROUTED else []), "ips", "mac"]
    capabilities += ["aliases"] if wanted.names else []
    plugin: Json = {
        "type": OWN_NAME,
        "driver": wanted.driver,
        **_way_out(wanted, settings),
        "capabilities": dict.fromkeys(capabilities, True),
        **({"portmap": {}} if wanted.driver in _ROUTED else {}),
        **({"names": {}} if wanted.names else {}),
        "ipam": _ipam(wanted, subnets),
    }
    notes: Json = {
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "internal": wanted.internal,
        "options": dict(wanted.options),
        "labels": dict(wanted.labels),
    }
    return {"cniVersion": VERSION, "name": name, "plugins": [plugin], OWN_KEY: notes}


def _settings(wanted: Wanted) -> dict[str, object]:
    """The driver's keys that the options set. Raises BadOption naming the known ones."""
    found: dict[str, object] = {}
    given: dict[str, str] = {}
    for name, text in wanted.options.items():
        option = next((one for one in _OPTIONS[wanted.driver] if name in one.spellings), None)
        if option is None:
            raise BadOption(
                f"driver {wanted.driver} has no option {name!r}",
                hint=f"it has {', '.join(known_options(wanted.driver))}",
            )
        value = option.read(name, text)
        if found.get(option.key, value) != value:
            raise BadOption(f"options {given[option.key]} and {name} contradict each other")
        found[option.key], given[option.key] = value, name
    return found


def _bridge(name: str, settings: dict[str, object], networks: Sequence[NetworkList], host: Namespace) -> str:
    """The bridge's name: the one asked for, or one that follows from the network's. Raises InUse."""
    owners = {network.bridge: network.name for network in networks if network.bridge}
    chosen = str(settings.get("bridge", ""))
    if chosen:
        vlans = [network.main.integer("vlan") for network in networks if network.bridge == chosen]
        if chosen in owners and (settings.get("vlan") is None or settings["vlan"] in vlans):
            raise InUse(f"the bridge {chosen} belongs to network {owners[chosen]}", hint="choose another bridge")
        return chosen
    longest = _LONGEST_LINK - (len(str(settings["vlan"])) + 1 if "vlan" in settings else 0)
    plain = name if name.startswith("weft") else f"weft-{name}"
    if len(plain) <= longest and plain not in owners and host.link(plain) is None:
        return plain
    tail = f"-{identity.digest('bridge of', name)[:5]}"
    return plain[: longest - len(tail)] + tail


def _way_out(wanted: Wanted, settings: dict[str, object]) -> dict[str, object]:
    """The driver's keys with their defaults: a gateway and masquerade, unless the network is internal."""
    if wanted.internal and settings.get("ipMasq"):
        raise BadOption("--internal and ip-masq=true contradict each other: an internal network has no way out")
    closed = {"internal": True} if wanted.internal else {}
    if wanted.driver == "bridge":
        outward = not wanted.internal
        return {"isGateway": outward or wanted.names, "ipMasq": outward, "hairpinMode": True, **closed, **settings}
    if wanted.driver == "ptp":
        return {"ipMasq": not wanted.internal, **closed, **settings}
    return settings


def _subnets(wanted: Wanted, uses: Sequence[Use]) -> tuple[Subnet, ...]:
    """The subnets asked for, or free ones; raises BadOption and InUse."""
    found: list[Subnet] = []
    for text in wanted.subnets:
        subnet = _subnet("--subnet", text)
        pools.require_free(subnet, [*uses, *(Use(one, "another --subnet of this network") for one in found)])
        found.append(subnet)
    if not wanted.subnets:
        found.append(pools.free_ipv4(uses))
    if wanted.ipv6 and not any(subnet.version == 6 for subnet in found):
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
        loose = f"; did you mean {ip_network(text, strict=False)}?" if "/" in text else ", like 10.89.7.0/24"
    except ValueError:
        loose = ", like 10.89.7.0/24"
    raise BadOption(f"{option} {text!r} is not a subnet{loose}")


def _ipam(wanted: Wanted, subnets: tuple[Subnet, ...]) -> Json:
    """The pools, one set of ranges for each subnet: a container gets an address of each."""
    ranges: dict[Subnet, Json] = {subnet: {"subnet": str(subnet)} for subnet in subnets}
    for text in wanted.gateways:
        address = _address("--gateway", text)
        subnet = _home("--gateway", text, (address,), subnets)
        if "gateway" in ranges[subnet]:
            raise BadOption(f"--gateway {text}: {subnet} has the gateway {ranges[subnet]['gateway']} already")
        ranges[subnet]["gateway"] = str(address)
    for text in wanted.ranges:
        first, last = _span(text)
        subnet = _home("--ip-range", text, (first, last), subnets)
        if "rangeStart" in ranges[subnet]:
            raise BadOption(f"--ip-range {text}: {subnet} has a range already")
        first, last = _usable(subnet, first, last)
        ranges[subnet] |= {"rangeStart": str(first), "rangeEnd": str(last)}
    made: Json = {"type": "host-local", "ranges": [[one] for one in ranges.values()]}
    if not wanted.internal:
        anywhere = {4: "0.0.0.0/0", 6: "::/0"}
        made["routes"] = [{"dst": anywhere[version]} for version in sorted({subnet.version for subnet in subnets})]
    return made


def _address(option: str, text: str) -> Address:
    try:
        return ip_address(text)
    except ValueError:
        raise BadOption(f"{option} {text!r} is not an IP address") from None


def _span(text: str) -> tuple[Address, Address]:
    """First and last address of 10.89.7.128/25 or 10.89.7.128-10.89.7.200."""
    if "-" in text:
        first, last = (_address("--ip-range", part.strip()) for part in text.split("-", 1))
        if first.version != last.version or int(first) > int(last):
            raise BadOption(f"--ip-range {text!r} does not go from a lower to a higher address")
        return first, last
    part = _subnet("--ip-range", text)
    return part[0], part[-1]


def _home(option: str, text: str, addresses: Sequence[Address], subnets: Sequence[Subnet]) -> Subnet:
    """The subnet that the addresses are in. Raises BadOption."""
    for subnet in subnets:
        if all(address in subnet for address in addresses):
            return subnet
    raise BadOption(f"{option} {text} is not in {' or '.join(map(str, subnets))}")


def _usable(subnet: Subnet, first: Address, last: Address) -> tuple[Address, Address]:
    """The range without what no container can have: the subnet's own address and its broadcast address."""
    low = first + 1 if first == subnet.network_address else first
    high = last - 1 if last == subnet.broadcast_address and subnet.version == 4 else last
    return low, high
