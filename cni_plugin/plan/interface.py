"""What every driver does alike: give the container's link its addresses, settings and routes.

The order follows the reference plugins' ConfigureIface: settings, addresses, up, duplicate detection, routes.
"""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_interface, ip_network

from cni_plugin.ops import ContainerLink, Detection, LinkAddress, LinkRoute, Setting, Up, Veth
from cni_plugin.ops.operation import Operation
from cni_plugin.plan.plan import Context, Plan
from cni_plugin.plan.traits import Option, Value
from cni_plugin.wire.request import Request
from weft import identity
from weft.errors import ConfigProblem
from weft.identity import ROUTE_PROTOCOL, link_name_problem, normal_mac
from weft.kernel.interface import KernelRoute, Link
from weft.section import Section, quoted
from weft.types import Address, Cidr, Result, ResultAddress, ResultInterface, Route, Side

DEFAULT_MTU = 1500
SMALLEST_MTU = 68
LARGEST_MTU = 65535
MTU = Option("mtu", Value.NUMBER, ("mtu", "com.docker.network.driver.mtu"), least=SMALLEST_MTU, most=LARGEST_MTU)
MASTER = Option("master", Value.LINK, ("parent", "master"), podman=False)
_LINK_SCOPE = 253
_KERNEL_PROTOCOL = 2
_KERNEL_METRIC = 256
"""What the kernel says of a route that it adds with an address; the metric is IPv6's."""


def versions(result: Result) -> set[int]:
    """The IP versions of a result's addresses."""
    return {ip.address.version for ip in result.ips}


def link_settings(link: str, *, detect: bool, ipv6: bool) -> tuple[Operation, ...]:
    """Kernel settings of the container's link, before it is up.

    Without ``detect`` IPv6 addresses are usable at once; the peers' caches are refreshed when the link comes up.
    """
    make = Side.CONTAINER
    found: list[Operation] = [Setting(make, f"net/ipv4/conf/{link}/arp_notify", "1", link)]
    if ipv6:
        found.append(Setting(make, "net/ipv6/conf/lo/disable_ipv6", "0"))
        found.append(Setting(make, f"net/ipv6/conf/{link}/disable_ipv6", "0", link))
        found.append(Setting(make, f"net/ipv6/conf/{link}/keep_addr_on_down", "1", link, optional=True))
        found.append(Setting(make, f"net/ipv6/conf/{link}/ndisc_notify", "1", link, optional=True))
    found.append(Setting(make, f"net/ipv6/conf/{link}/accept_dad", "1" if detect else "0", link, optional=True))
    if detect:
        found.append(Setting(make, f"net/ipv6/conf/{link}/enhanced_dad", "1", link, optional=True))
    return tuple(found)


def configure(link: str, result: Result, *, detect: bool = False, prefix_routes: bool = True) -> tuple[Operation, ...]:
    """The operations that make a fresh link of the container carry the result's addresses and be up."""
    ipv6 = 6 in versions(result)
    return (
        *link_settings(link, detect=detect, ipv6=ipv6),
        *(LinkAddress(Side.CONTAINER, link, ip.address, prefix_routes) for ip in result.ips),
        Up(Side.CONTAINER, link),
        *((Detection(link),) if detect and ipv6 else ()),
    )


def routes(link: str, result: Result) -> tuple[Operation, ...]:
    """The result's routes over the container's link; one without a gateway takes its family's first.

    A route of scope link is meant to have none.
    """
    first: dict[int, Address] = {}
    for ip in result.ips:
        if ip.gateway is not None:
            first.setdefault(ip.gateway.version, ip.gateway)
    operations = []
    for route in result.routes:
        if route.gateway is None and route.scope != _LINK_SCOPE:
            route = replace(route, gateway=first.get(route.destination.version))
        operations.append(LinkRoute(Side.CONTAINER, KernelRoute(route, link, protocol=ROUTE_PROTOCOL)))
    return tuple(operations)


def veth_pair(context: Context, *, mtu: int, mac: str = "", bridge: str = "") -> Veth:
    """The veth pair of an attachment: its names and MAC addresses follow from the attachment alone."""
    attachment = context.attachment
    who = (attachment.network, attachment.container, attachment.interface)
    return Veth(
        host=identity.host_link(attachment),
        container=attachment.interface,
        alias=identity.alias(identity.attachment_mark(attachment), str(attachment)),
        host_mac=identity.mac(context.host, "host", *who),
        mac=mac or identity.mac(context.host, "container", *who),
        mtu=mtu,
        bridge=bridge,
    )


def container_link(
    context: Context,
    kind: str,
    *,
    mac: str = "",
    mtu: int = 0,
    parent: str = "",
    side: Side = Side.HOST,
    master: str = "",
    options: tuple[tuple[str, int | str], ...] = (),
) -> ContainerLink:
    """A link of a kind inside the container; its MAC address follows from the attachment unless it is given."""
    attachment = context.attachment
    return ContainerLink(
        name=attachment.interface,
        type=kind,
        passing=identity.temporary_link(attachment),
        alias=identity.alias(identity.attachment_mark(attachment), str(attachment)),
        mac=mac
        or identity.mac(context.host, "container", attachment.network, attachment.container, attachment.interface),
        mtu=mtu,
        parent=parent,
        side=side,
        master=master,
        options=options,
    )


def attach(
    maker: Operation,
    link: ResultInterface,
    found: Result,
    *,
    detect: bool = False,
    addressed: bool = True,
) -> Plan:
    """The plan of a driver whose only link is the container's own: make it, then give it what IPAM found.

    Raises ConfigProblem where it is to be ``addressed`` and IPAM found nothing.
    """
    if addressed and not found.ips:
        raise ConfigProblem("IPAM plugin returned missing IP config", hint="give ipam a subnet or addresses")
    return Plan(
        operations=(maker, *configure(link.name, found, detect=detect), *routes(link.name, found)),
        result=replace(found, interfaces=(link,), ips=on_interface(found, 0)),
    )


def result_interface(context: Context, link: ContainerLink) -> ResultInterface:
    """How a link of the container's own stands in the result."""
    return ResultInterface(link.name, link.mac, context.namespace.path, link.mtu or DEFAULT_MTU)


def parent_link(context: Context, name: str, side: Side) -> Link:
    """The link that a macvlan, ipvlan or VLAN goes on: ``master``, or that of the side's default route.

    Raises ConfigProblem where there is none.
    """
    name = name or context.facts.default_link(side)
    if not name:
        raise ConfigProblem(
            f"master is missing, and the {side} has no default route to take it from", hint="name the link in master"
        )
    link = context.facts.link(side, name)
    if link is not None:
        return link
    base, _, vid = name.rpartition(".")
    hint = f"ip link show lists the links of the {side}"
    if base and vid.isdigit():
        hint = f"weft makes no VLAN link of the host: ip link add link {base} name {name} type vlan id {vid}"
    raise ConfigProblem(f"master {quoted(name)} is no link of the {side}", hint=hint)


def limited_mtu(mtu: int, below: Link) -> int:
    """The MTU in bytes, by default that of the link below; raises ConfigProblem for more than that."""
    if mtu > below.mtu:
        raise ConfigProblem(
            f"mtu {mtu} must be between 0 and {below.mtu}, the MTU of the master {below.name}",
            hint=f"lower it, or raise that of {below.name} first",
        )
    return mtu or below.mtu


def read_side(keys: Section) -> Side:
    """Where the master is: ``linkInContainer``."""
    return Side.CONTAINER if keys.flag("linkInContainer") else Side.HOST


def require_ipam(request: Request, driver: str) -> None:
    if not request.config.ipam.text("type"):
        request.config.keys.problems.add(f"ipam.type is missing, and {driver} needs addresses")


def forwarding(families: set[int]) -> tuple[Operation, ...]:
    """The host forwards packets of these IP versions. It stays so: others come to rely on it."""
    keys = {4: "net/ipv4/ip_forward", 6: "net/ipv6/conf/all/forwarding"}
    return tuple(Setting(Side.HOST, keys[version], "1") for version in sorted(families))


def on_interface(result: Result, index: int) -> tuple[ResultAddress, ...]:
    """The result's addresses, said to be on the interface of that index."""
    return tuple(replace(ip, interface=index) for ip in result.ips)


def with_gateways(result: Result) -> Result:
    """The result with each address's gateway known: its subnet's first address unless IPAM said another."""
    return replace(
        result,
        ips=tuple(
            ip if ip.gateway is not None else replace(ip, gateway=ip.address.network.network_address + 1)
            for ip in result.ips
        ),
    )


def default_routes(result: Result) -> tuple[Route, ...]:
    """The result's routes, with a default one for each family that has a gateway and no default route yet."""
    found = list(result.routes)
    for ip in result.ips:
        anywhere = ip_network("0.0.0.0/0" if ip.address.version == 4 else "::/0")
        if ip.gateway is not None and all(route.destination != anywhere for route in found):
            found.append(Route(anywhere, ip.gateway))
    return tuple(found)


def host_prefix(address: Address) -> Cidr:
    """The address alone: /32 or /128."""
    return ip_interface(address)


def read_mac(request: Request, keys: Section | None = None) -> str:
    """The MAC address asked for, "" if none is: CNI_ARGS, over it args.cni.mac, over it runtimeConfig.mac.

    Some drivers have a ``mac`` of their own ``keys``, under all of these.
    """
    mac = ""
    sources = (
        ("mac", keys.text("mac") if keys is not None else ""),
        ("CNI_ARGS MAC", request.arguments.get("MAC", "")),
        ("args.cni.mac", request.config.args_cni.text("mac")),
        ("runtimeConfig.mac", request.config.runtime.text("mac")),
    )
    for key, text in sources:
        if text:
            try:
                mac = normal_mac(text)
            except ValueError as error:
                request.config.keys.problems.add(f"{key} {quoted(text)} {error}")
    return mac


def read_mtu(keys: Section, key: str = "mtu") -> int:
    """The MTU in bytes, 0 where none is given; not above zero counts as none, as in the reference."""
    value = keys.integer(key) or 0
    if value <= 0:
        return 0
    if not SMALLEST_MTU <= value <= LARGEST_MTU:
        keys.problem(key, f"must be between {SMALLEST_MTU} and {LARGEST_MTU}")
    return value


def read_link(keys: Section, key: str, default: str = "") -> str:
    """The name of a link, checked. Without a ``default`` an empty one is none: podman writes it where none is named."""
    name = keys.text(key, default)
    problem = link_name_problem(name)
    if problem and (name or (default and key in keys)):
        keys.problem(key, problem)
    return name


def host_end(context: Context) -> str:
    """The host's end of the container's veth pair, "" where the container's link is of another kind."""
    planned = identity.host_link(context.attachment)
    candidates = [one.name for one in context.result.interfaces if not one.sandbox]
    if planned in candidates:
        return planned
    inner = context.facts.link(Side.CONTAINER, context.attachment.interface)
    for name in candidates if inner is not None and inner.kind == "veth" else ():
        link = context.facts.link(Side.HOST, name)
        if link is not None and inner is not None and link.kind == "veth" and link.index == inner.peer_index:
            return name
    return ""


def own_addresses(context: Context) -> tuple[ResultAddress, ...]:
    """The result's addresses that are on the attachment's interface."""
    interfaces = context.result.interfaces
    return tuple(
        ip
        for ip in context.result.ips
        if ip.interface is None
        or ip.interface >= len(interfaces)
        or interfaces[ip.interface].name == context.attachment.interface
    )


def planned_routes(context: Context) -> tuple[KernelRoute, ...]:
    """The routes of the attachment's interface: as they are, or as the same plan will make them.

    Without IPv6's link-local ones, which stay where they are.
    """
    interface = context.attachment.interface
    if context.facts.link(Side.CONTAINER, interface) is not None:
        there = context.facts.routes(Side.CONTAINER, interface)
        return tuple(
            one for one in there if not (one.route.destination.version == 6 and one.route.destination.is_link_local)
        )
    found = []
    for ip in own_addresses(context):
        subnet = ip.address.network
        if subnet.prefixlen < subnet.max_prefixlen:
            metric = None if subnet.version == 4 else _KERNEL_METRIC
            source = ip.address.ip if subnet.version == 4 else None
            found.append(KernelRoute(Route(subnet, priority=metric), interface, source, _KERNEL_PROTOCOL))
    result = replace(context.result, ips=own_addresses(context))
    made = (one.route for one in routes(interface, result) if isinstance(one, LinkRoute))
    return (*found, *made)
