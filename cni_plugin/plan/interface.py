"""What drivers have in common: the container's link with its sysctls, addresses and routes.

The order follows the reference plugins' ConfigureIface: settings, addresses, up, duplicate detection,
routes.
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
from weft.kernel.values import KernelRoute, Link
from weft.section import Section, quoted
from weft.types import Address, Cidr, Result, ResultAddress, ResultInterface, Route, Side

DEFAULT_MTU = 1500
SMALLEST_MTU = 68
LARGEST_MTU = 65535
MTU = Option("mtu", Value.NUMBER, ("mtu", "com.docker.network.driver.mtu"), least=SMALLEST_MTU, most=LARGEST_MTU)
OVERLAP = Option("allowOverlap", Value.FLAG, ("allow-overlap",))
MASTER = Option("master", Value.LINK, ("parent", "master"), podman=False)
_LINK_SCOPE = 253
_KERNEL_PROTOCOL = 2
_KERNEL_METRIC = 256
"""RTPROT_KERNEL, and the IPv6 metric, of the routes that the kernel adds with an address."""


def versions(result: Result) -> set[int]:
    """The IP versions of a result's addresses."""
    return {ip.address.version for ip in result.ips}


def link_settings(link: str, *, detect: bool, ipv6: bool) -> tuple[Operation, ...]:
    """Sysctls of the container's link, before it is up.

    Without ``detect`` there is no duplicate address detection (accept_dad=0); arp_notify and
    ndisc_notify have the neighbours' caches updated when the link comes up.
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


def enable_ipv6(link: str) -> Setting:
    """IPv6 on a link of the host that gets an IPv6 address, on a host that has it disabled
    (net.ipv6.conf.default.disable_ipv6=1).
    """
    return Setting(Side.HOST, f"net/ipv6/conf/{link}/disable_ipv6", "0", link, optional=True)


def configure(
    link: str, result: Result, *, detect: bool = False, prefix_routes: tuple[int, ...] = (4, 6)
) -> tuple[Operation, ...]:
    """The operations that give a new link of the container the result's addresses and bring it up.

    ``prefix_routes`` are the IP versions in which the subnet of an address is on the link.
    """
    ipv6 = 6 in versions(result)
    return (
        *link_settings(link, detect=detect, ipv6=ipv6),
        *(LinkAddress(Side.CONTAINER, link, ip.address, ip.address.version in prefix_routes) for ip in result.ips),
        Up(Side.CONTAINER, link),
        *((Detection(link),) if detect and ipv6 else ()),
    )


def routes(
    context: Context, link: str, result: Result, near: tuple[LinkRoute, ...] | None = None
) -> tuple[Operation, ...]:
    """The result's routes over the container's link.

    Where the container has other links, these come after theirs, and what the link's addresses send
    leaves by it (``plan.routing``). ``near`` are routes to the gateways, instead of those that the
    kernel adds with the addresses.
    """
    if context.handed_over:
        return ()
    made = (*(near or ()), *_routes(link, result))
    if context.pending or any(feature in context.config.keys for feature in ("sbr", "vrf")):
        return made
    others = [one for one in context.facts.routes(Side.CONTAINER) if one.link not in ("", "lo", link)]
    if not others:
        return made
    from cni_plugin.plan.routing import beside

    return beside(context, link, result, made, others, connected=near is None)


def _routes(link: str, result: Result) -> tuple[LinkRoute, ...]:
    """A route without a gateway gets the first gateway of its family, unless its scope is link."""
    first: dict[int, Address] = {}
    for ip in result.ips:
        if ip.gateway is not None:
            first.setdefault(ip.gateway.version, ip.gateway)
    operations = []
    for route in result.routes:
        if route.given and route.destination.version == 4:
            raise ConfigProblem(
                f"the route's dst {route.given} has host bits set, which the kernel refuses in IPv4",
                hint=f"set dst to {route.destination}",
            )
        route = replace(route, given="")
        if route.gateway is None and route.scope != _LINK_SCOPE:
            route = replace(route, gateway=first.get(route.destination.version))
        operations.append(LinkRoute(Side.CONTAINER, KernelRoute(route, link, protocol=ROUTE_PROTOCOL)))
    return tuple(operations)


def veth_pair(context: Context, *, mtu: int, follows: bool, mac: str = "", bridge: str = "") -> Veth:
    """The veth pair of an attachment; names and MAC addresses are derived from the attachment.

    ``follows``: without ``mtu`` it has the MTU of the host's uplink, else 1500 as the reference plugins.
    """
    uplink = context.facts.uplink_mtu() if follows and not mtu else 0
    attachment = context.attachment
    who = (attachment.network, attachment.container, attachment.interface)
    return Veth(
        host=identity.host_link(attachment),
        container=attachment.interface,
        alias=identity.alias(identity.attachment_mark(attachment), str(attachment)),
        host_mac=identity.mac(context.host, "host", *who),
        mac=mac or identity.mac(context.host, "container", *who),
        mtu=mtu or min(uplink, LARGEST_MTU) or DEFAULT_MTU,
        bridge=bridge,
        follows=bool(uplink),
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
    """A link of ``kind`` in the container; its MAC address is derived from the attachment unless given."""
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
    context: Context,
    creation: Operation,
    link: ResultInterface,
    found: Result,
    *,
    detect: bool = False,
    addressed: bool = True,
) -> Plan:
    """The plan of a driver with a single link: create it, then configure IPAM's addresses and routes.

    Raises ConfigProblem if it is to be ``addressed`` and IPAM returned no address.
    """
    if addressed and not found.ips:
        raise ConfigProblem("IPAM plugin returned missing IP config", hint="set a subnet or addresses in ipam")
    return Plan(
        operations=(creation, *configure(link.name, found, detect=detect), *routes(context, link.name, found)),
        result=replace(found, interfaces=(link,), ips=on_interface(found, 0)),
    )


def result_interface(context: Context, link: ContainerLink) -> ResultInterface:
    """The result's interface for a link in the container."""
    return ResultInterface(link.name, link.mac, context.namespace.path, link.mtu or DEFAULT_MTU)


def parent_link(context: Context, name: str, side: Side) -> Link:
    """The parent of a macvlan, ipvlan or VLAN link: ``master``, or the link of the default route on
    that side.

    Raises ConfigProblem if there is none.
    """
    name = name or context.facts.default_link(side)
    if not name:
        raise ConfigProblem(
            f"master is missing, and the {side} has no default route to choose it by", hint="set master to a link"
        )
    link = context.facts.link(side, name)
    if link is not None:
        return link
    base, _, vid = name.rpartition(".")
    hint = f"list the links of the {side} with: ip link show"
    if base and vid.isdigit():
        hint = f"weft does not create VLAN links on the host: ip link add link {base} name {name} type vlan id {vid}"
    raise ConfigProblem(f"master {quoted(name)} not found on the {side}", hint=hint)


def limited_mtu(mtu: int, parent: Link) -> int:
    """The MTU in bytes, by default the parent's; raises ConfigProblem if it is larger than the
    parent's.
    """
    if mtu > parent.mtu:
        raise ConfigProblem(
            f"mtu {mtu} must be between 0 and {parent.mtu}, the MTU of the master {parent.name}",
            hint=f"lower it, or raise the MTU of {parent.name} first",
        )
    return mtu or parent.mtu


def read_side(keys: Section) -> Side:
    """Which side the master is on: ``linkInContainer``."""
    return Side.CONTAINER if keys.flag("linkInContainer") else Side.HOST


def require_ipam(request: Request, driver: str) -> None:
    if not request.config.ipam.text("type"):
        request.config.keys.problems.add(f"ipam.type is missing: {driver} requires addresses")


def forwarding(families: set[int]) -> tuple[Operation, ...]:
    """Enable forwarding on the host for these IP versions. IPv4's is not disabled again: other software
    may rely on it.
    """
    found: list[Operation] = [Setting(Side.HOST, "net/ipv4/ip_forward", "1")] if 4 in families else []
    if 6 in families:
        from cni_plugin.ops.forwarding import Forwarding6

        found.append(Forwarding6())
    return tuple(found)


def on_interface(result: Result, index: int) -> tuple[ResultAddress, ...]:
    """The result's addresses, on the interface with that index."""
    return tuple(replace(ip, interface=index) for ip in result.ips)


def with_gateways(result: Result) -> Result:
    """The result with a gateway for each address: the first address of its subnet unless IPAM set one."""
    return replace(
        result,
        ips=tuple(
            ip if ip.gateway is not None else replace(ip, gateway=ip.address.network.network_address + 1)
            for ip in result.ips
        ),
    )


def default_routes(result: Result) -> tuple[Route, ...]:
    """The result's routes, with a default route for each family that has a gateway and none yet."""
    found = list(result.routes)
    for ip in result.ips:
        anywhere = ip_network("0.0.0.0/0" if ip.address.version == 4 else "::/0")
        if ip.gateway is not None and all(route.destination != anywhere for route in found):
            found.append(Route(anywhere, ip.gateway))
    return tuple(found)


def host_prefix(address: Address) -> Cidr:
    """The address as a host prefix: /32 or /128."""
    return ip_interface(address)


def read_mac(request: Request, keys: Section | None = None) -> str:
    """The requested MAC address, "" for none. The last that is set counts: ``mac`` in the driver's
    ``keys``, if given, CNI_ARGS MAC, args.cni.mac, runtimeConfig.mac.
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


def read_mtu(keys: Section, key: str = "mtu", *, negative: bool = True) -> int:
    """The MTU in bytes, 0 if not set; zero counts as not set, and so does a ``negative`` one where the
    reference ignores it.
    """
    value = keys.integer(key) or 0
    if value == 0 or (value < 0 and negative):
        return 0
    if not SMALLEST_MTU <= value <= LARGEST_MTU:
        keys.problem(key, f"must be between {SMALLEST_MTU} and {LARGEST_MTU}")
    return value


def read_link(keys: Section, key: str, default: str = "", *, longest: int = 15) -> str:
    """A link's name. Without a ``default`` an empty one counts as not set: podman writes it so.

    ``longest`` is ``identity.ALTNAME_BYTES`` for a link that exists already.
    """
    name = keys.text(key, default)
    problem = link_name_problem(name, longest)
    if problem and (name or (default and key in keys)):
        keys.problem(key, problem)
    return name


def host_link(result: Result) -> str:
    """The host's link to the containers: the bridge, its VLAN gateway link, or the host end of a veth
    pair.
    """
    host = [one.name for one in result.interfaces if not one.sandbox]
    return next((name for name in host[1:] if name.startswith(f"{host[0]}.")), next(iter(host), ""))


def tunnel(result: Result) -> str:
    """The VXLAN link of an overlay network, "" for any other network."""
    host = [one.name for one in result.interfaces if not one.sandbox]
    return next((name for name in host[1:] if name == identity.overlay_vxlan(host[0])), "")


def host_end(context: Context) -> str:
    """The host end of the container's veth pair, "" if its link is of another kind."""
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


def hairpin(context: Context) -> tuple[Operation, ...]:
    """Lets the container reach itself by an address that this host translates.

    br_netfilter (Docker and Kubernetes load it) translates frames on the bridge, which then leave by
    the port that they came from, and the kernel drops them unless it is in hairpin mode.
    """
    port = host_end(context)
    first = next((one.name for one in context.result.interfaces if not one.sandbox), port)
    there = context.facts.link(Side.HOST, port)
    if port == first or (there is not None and there.port.get("brport_mode") == 1):
        return ()
    from cni_plugin.ops.ports import Hairpin

    return (Hairpin(port),)


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
    """The routes of the attachment's interface as they are, or as the same plan will add them.

    Link-local routes of IPv6 are left out, since they stay in the main table.
    """
    interface = context.attachment.interface
    if context.facts.link(Side.CONTAINER, interface) is not None:
        there = context.facts.routes(Side.CONTAINER, interface)
        return tuple(
            one for one in there if not (one.route.destination.version == 6 and one.route.destination.is_link_local)
        )
    mine = (Side.CONTAINER, interface)
    found = [
        _prefix_route(one.link, one.address)
        for one in context.operations
        if isinstance(one, LinkAddress) and one.on_link == mine and one.prefix_route
    ]
    made = (one.route for one in context.operations if isinstance(one, LinkRoute) and one.on_link == mine)
    return (*(route for route in found if route is not None), *made)


def _prefix_route(link: str, address: Cidr) -> KernelRoute | None:
    """The route to an address's subnet that the kernel adds with it, None for a host prefix."""
    subnet = address.network
    if subnet.prefixlen == subnet.max_prefixlen:
        return None
    if subnet.version == 4:
        return KernelRoute(Route(subnet), link, address.ip, _KERNEL_PROTOCOL)
    return KernelRoute(Route(subnet, priority=_KERNEL_METRIC), link, None, _KERNEL_PROTOCOL)


def permanent_addresses(context: Context, version: int) -> tuple[tuple[Cidr, ...], tuple[Cidr, ...]]:
    """The addresses of the attachment's interface, as they are or as the same plan will add them: those
    with the kernel's route to their subnet, and those without. None that a router advertisement gave.
    """
    interface = context.attachment.interface
    if context.facts.link(Side.CONTAINER, interface) is None:
        found = [one for one in context.operations if isinstance(one, LinkAddress)]
        mine = [one for one in found if one.on_link == (Side.CONTAINER, interface) and one.address.version == version]
        return (
            tuple(one.address for one in mine if one.prefix_route),
            tuple(one.address for one in mine if not one.prefix_route),
        )
    there = context.facts.addresses(Side.CONTAINER, interface, True)
    routes = context.facts.routes(Side.CONTAINER, interface)
    routed = {one.route.destination for one in routes if one.protocol == _KERNEL_PROTOCOL}
    every = [one for one in there if one.version == version]
    has_route = [one.network in routed or one.network.prefixlen == one.max_prefixlen for one in every]
    return (
        tuple(one for one, has in zip(every, has_route, strict=True) if has),
        tuple(one for one, has in zip(every, has_route, strict=True) if not has),
    )
