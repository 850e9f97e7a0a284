"""The fake kernel's network namespaces: links, bridge ports, addresses, routes, sysctls."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace as changed
from ipaddress import IPv4Interface, IPv6Interface
from typing import Protocol

from weft import identity
from weft.errors import Exists, KernelLacks, KernelRefused, Missing
from weft.kernel.fake import forwarding, routes, sysctls
from weft.kernel.fake.forwarding import FakeForwarding
from weft.kernel.fake.links import KINDS, MORE_OPTIONS, OPTIONS, PORT, FakeLink
from weft.kernel.interface import Namespace, VethPeer
from weft.kernel.route_lookup import FoundRoute, RouteQuestion
from weft.kernel.snapshot import snapshot
from weft.kernel.values import BridgeVlan, KernelRoute, Link
from weft.types import Cidr, NamespaceId

_DEFAULT_VLAN = BridgeVlan(1, pvid=True, untagged=True)


class FakeHost(Protocol):
    """What a namespace needs of its kernel."""

    lacks: frozenset[str]

    def called(self, verb: str) -> None:
        """Record a call; raise the error that a test has set for it."""

    def namespaces(self) -> tuple[FakeNamespace, ...]: ...

    def settle(self) -> None:
        """Update what depends on carriers, in all namespaces."""


class FakeNamespace(FakeForwarding):
    """One network namespace; ``opened`` is its number of unclosed opens."""

    def __init__(self, kernel: FakeHost, identity: NamespaceId) -> None:
        super().__init__()
        self.id = identity
        self.kernel = kernel
        self.opened = 0
        self.sysctls = sysctls.fresh()
        self._index = 0
        self._put("lo", "loopback", mac="00:00:00:00:00:00", mtu=65536)

    def close(self) -> None:
        self.opened -= 1

    def dump(self) -> dict[str, dict[str, object]]:
        """The namespace's state as a nested dict, to compare states."""
        return snapshot(self)

    def _called(self, verb: str) -> None:
        self.kernel.called(verb)

    def set_dad_state(self, link: str, running: bool, failed: bool) -> None:
        """Set what ``tentative`` returns for a link."""
        self.existing(link, "set the DAD state").dad = (running, failed)

    def link(self, name: str) -> Link | None:
        self.kernel.called("link")
        return self.links_by_name[name].to_link() if name in self.links_by_name else None

    def cached_link(self, name: str) -> Link | None:
        return self.link(name)

    def cached_mac(self, name: str) -> str:
        return ""

    def is_loopback_up(self) -> bool:
        return self.links_by_name["lo"].up

    def links(self) -> tuple[Link, ...]:
        self.kernel.called("links")
        return tuple(sorted((link.to_link() for link in self.links_by_name.values()), key=lambda link: link.index))

    def ports(self, master: str) -> tuple[Link, ...]:
        self.kernel.called("ports")
        self.existing(master, f"list the ports of {master}")
        every = (link.to_link() for link in self.links_by_name.values())
        return tuple(sorted((link for link in every if link.master == master), key=lambda link: link.index))

    def add_link(
        self,
        name: str,
        kind: str,
        *,
        mac: str = "",
        mtu: int = 0,
        alias: str = "",
        up: bool = False,
        master: str = "",
        parent: str = "",
        parent_namespace: Namespace | None = None,
        peer: VethPeer | None = None,
        options: Mapping[str, int | str] | None = None,
        addrgen_none: bool = False,
    ) -> None:
        self.kernel.called("add_link")
        doing = f"make the {kind} link {name}" + (f" with its peer {peer.name}" if peer else "")
        peer_namespace = _fake(peer.namespace) if peer and peer.namespace is not None else self
        upper = self.existing(master, doing) if master else None
        lower = (_fake(parent_namespace) if parent_namespace else self).existing(parent, doing) if parent else None
        self._check_new(name, doing)
        if kind not in KINDS or kind in self.kernel.lacks:
            hint = f"this kernel lacks the module {kind}"
            raise KernelLacks(f"cannot {doing}: the kernel says Unknown device type", hint=hint)
        if kind in ("macvlan", "macvtap", "ipvlan", "vlan") and lower is None:
            raise KernelRefused(f"cannot {doing}: the kernel says link not specified")
        if peer is not None:
            peer_namespace._check_new(peer.name, doing)
            if peer_namespace is self and peer.name == name:
                raise Exists(f"cannot {doing}: the kernel says File exists")
        _check_values(doing, mtu=mtu, alias=alias)
        _check_options(kind, options or {}, doing)
        made = self._put(name, kind, mac=mac, mtu=mtu or (lower.mtu if lower else 1500), parent=lower)
        made.alias = alias
        made.options.update(options or {})
        if peer is not None:
            other = peer_namespace._put(peer.name, kind, mac=peer.mac, mtu=peer.mtu or 1500)
            made.peer, other.peer = other, made
            peer_namespace._set_up(other, peer.up)
        try:
            if upper is not None:
                self._set_master(made, upper, doing)
        except KernelRefused:
            self._remove(made)
            raise
        self._set_up(made, up)

    def _put(self, name: str, kind: str, *, mac: str = "", mtu: int = 1500, parent: FakeLink | None = None) -> FakeLink:
        self._index += 1
        given, mac = bool(mac), mac or identity.mac("fake", self.id.path, str(self._index))
        made = FakeLink(name, kind, self._index, mac, mtu, self, parent=parent, options=dict(OPTIONS.get(kind, {})))
        made.mac_set = given
        made.sysctls = sysctls.of_new_link(self.sysctls)
        if kind == "bridge":
            made.vlans = {1: _DEFAULT_VLAN}
        self.links_by_name[name] = made
        return made

    def _check_new(self, name: str, doing: str) -> None:
        problem = identity.link_name_problem(name)
        if problem:
            raise KernelRefused(f"cannot {doing}: the link name {name!r} {problem}")
        if name in self.links_by_name:
            raise Exists(f"cannot {doing}: the kernel says File exists")

    def change_link(
        self,
        name: str,
        *,
        up: bool | None = None,
        mac: str | None = None,
        mtu: int | None = None,
        alias: str | None = None,
        master: str | None = None,
        promiscuous: bool | None = None,
        all_multicast: bool | None = None,
        queue_length: int | None = None,
        group: int | None = None,
        new_name: str | None = None,
        namespace: Namespace | None = None,
        options: Mapping[str, int | str] | None = None,
    ) -> None:
        self.kernel.called("change_link")
        doing = f"change the link {name}"
        link = self.existing(name, doing)
        upper = self.existing(master, doing) if master else None
        _check_values(doing, mtu=mtu or 0, alias=alias or "")
        _check_options(link.kind, options or {}, doing)
        target = _fake(namespace) if namespace is not None else self
        if (new_name not in (None, name)) or target is not self:
            target._check_new(new_name or name, doing)
            self._move(link, target, new_name or name)
        link.mac, link.mtu, link.mac_set = mac or link.mac, mtu or link.mtu, link.mac_set or mac is not None
        if mac is not None and link.master is not None:
            link.master.follow_ports()
        link.alias = link.alias if alias is None else alias
        link.promiscuous = link.promiscuous if promiscuous is None else promiscuous
        link.all_multicast = link.all_multicast if all_multicast is None else all_multicast
        link.queue_length = link.queue_length if queue_length is None else queue_length
        link.group = link.group if group is None else group
        link.options.update(options or {})
        if master is not None:
            target._set_master(link, upper, doing)
        target._set_up(link, link.up if up is None else up)

    def _move(self, link: FakeLink, target: FakeNamespace, new_name: str) -> None:
        del self.links_by_name[link.name]
        if target is not self:
            self._set_up(link, False)
            link.release()
            link.addresses, link.without_route = [], set()
            if any(other.index == link.index for other in target.links_by_name.values()):
                link.index = target._index + 1
            target._index = max(target._index, link.index)
            link.namespace, link.sysctls = target, sysctls.of_new_link(target.sysctls)
        link.name = new_name
        target.links_by_name[new_name] = link

    def _set_master(self, link: FakeLink, upper: FakeLink | None, doing: str) -> None:
        if upper is not None and upper.kind not in ("bridge", "vrf"):
            raise KernelRefused(f"cannot {doing}: the kernel says {upper.name} does not support enslaving")
        if upper is link.master:
            return
        bridge = upper is not None and upper.kind == "bridge"
        was_up = link.up
        domains = {one for one in (link.master, upper) if one is not None and one.kind == "vrf"}
        if domains:  # drivers/net/vrf.c, cycle_netdev
            self._set_up(link, False)
        link.release()
        link.master = upper
        if domains:
            self._set_up(link, was_up)
        link.port = dict(PORT) if bridge else {}
        link.vlans = {1: _DEFAULT_VLAN} if bridge else {}
        if upper is not None:
            upper.follow_ports()

    def _set_up(self, link: FakeLink, up: bool) -> None:
        before, link.up = link.up, up
        if up and not before:
            if link.kind == "loopback":
                standard: list[Cidr] = [IPv4Interface("127.0.0.1/8"), IPv6Interface("::1/128")]
                link.addresses += [cidr for cidr in standard if cidr not in link.addresses]
            for address in link.addresses:
                routes.connect(link, address)
        elif before and not up:
            link.flush()
            routes.flush(link)
            keep = link.sysctls["net/ipv6/conf/keep_addr_on_down"] == "1" and link.kind != "loopback"
            link.addresses = [cidr for cidr in link.addresses if cidr.version == 4 or (keep and not cidr.is_link_local)]
        self.kernel.settle()

    def settle(self) -> None:
        """Add link-local addresses on carrier; delete IPv6 addresses without IPv6, and nexthops without
        carrier.
        """
        forwarding.flush_nexthops(self)
        for link in self.links_by_name.values():
            if link.sysctls["net/ipv6/conf/disable_ipv6"] == "1":
                for address in [cidr for cidr in link.addresses if cidr.version == 6]:
                    link.addresses.remove(address)
                    routes.disconnect(link, address)
                continue
            automatic = link.kind != "loopback" and link.sysctls["net/ipv6/conf/addr_gen_mode"] == "0"
            has = any(cidr.version == 6 and cidr.is_link_local for cidr in link.addresses)
            if link.carrier and automatic and not has and (link.master is None or link.master.kind == "vrf"):
                link.addresses.append(link.link_local())
                routes.connect(link, link.link_local())

    def delete_link(self, name: str) -> None:
        self.kernel.called("delete_link")
        link = self.existing(name, f"delete the link {name}")
        if link.kind == "loopback":
            raise KernelRefused(f"cannot delete the link {name}: the kernel says Operation not supported")
        self._remove(link)
        self.kernel.settle()

    def _remove(self, link: FakeLink) -> None:
        space = link.namespace
        if space.links_by_name.get(link.name) is not link:
            return
        del space.links_by_name[link.name]
        link.release()
        for port in list(space.links_by_name.values()):
            if port.master is link:
                self._set_master(port, None, "")
        if link.peer is not None:
            self._remove(link.peer)
        for other in self.kernel.namespaces():
            for upper in [one for one in other.links_by_name.values() if one.parent is link]:
                self._remove(upper)

    def change_port(self, name: str, attributes: Mapping[str, int]) -> None:
        self.kernel.called("change_port")
        doing = f"set the bridge port {name}"
        link = self.existing(name, doing)
        for key in attributes:
            if key not in PORT:
                raise KernelRefused(f"cannot {doing}: a bridge port has no attribute {key}")
        if not link.port:
            raise KernelRefused(f"cannot {doing}: the kernel says it is not a bridge port")
        link.port.update(attributes)

    def vlans(self, name: str) -> tuple[BridgeVlan, ...]:
        self.kernel.called("vlans")
        held = self.existing(name, f"list the VLANs of {name}").vlans
        return tuple(held[vid] for vid in sorted(held))

    def add_vlans(self, name: str, wanted: Iterable[BridgeVlan]) -> None:
        self.kernel.called("add_vlans")
        link = self._bridge_link(name, f"add VLANs to {name}")
        for vlan in wanted:
            if not 1 <= vlan.vid <= 4094:
                raise KernelRefused(f"cannot add VLANs to {name}: the kernel says Invalid argument")
            if vlan.pvid:
                link.vlans = {vid: changed(other, pvid=False) for vid, other in link.vlans.items()}
            link.vlans[vlan.vid] = vlan

    def delete_vlans(self, name: str, vids: Iterable[int]) -> None:
        self.kernel.called("delete_vlans")
        link = self._bridge_link(name, f"delete VLANs from {name}")
        for vid in vids:
            link.vlans.pop(vid, None)

    def _bridge_link(self, name: str, doing: str) -> FakeLink:
        link = self.existing(name, doing)
        if not link.port and link.kind != "bridge":
            raise KernelRefused(f"cannot {doing}: the kernel says Operation not supported")
        return link

    def addresses(self, link: str, version: int = 0, *, permanent: bool = False) -> tuple[Cidr, ...]:
        self.kernel.called("addresses")
        held = self.existing(link, f"list the addresses of {link}")
        found = (cidr for cidr in held.addresses if version in (0, cidr.version))
        return tuple(sorted(found, key=lambda cidr: cidr.version))

    def all_addresses(self, version: int = 0) -> tuple[tuple[str, Cidr], ...]:
        self.kernel.called("all_addresses")
        found = ((link.name, cidr) for link in self.links() for cidr in self.existing(link.name, "").addresses)
        return tuple((name, cidr) for name, cidr in found if version in (0, cidr.version))

    def add_address(self, link: str, address: Cidr, *, prefix_route: bool = True, link_scope: bool = False) -> None:
        self.kernel.called("add_address")
        doing = f"add the address {address} to {link}"
        held = self.existing(link, doing)
        if address.version == 6 and held.sysctls["net/ipv6/conf/disable_ipv6"] == "1":
            raise KernelRefused(f"cannot {doing}: the kernel says IPv6 is disabled on this device")
        if any(cidr == address or (cidr.version == 6 and cidr.ip == address.ip) for cidr in held.addresses):
            raise Exists(f"cannot {doing}: the kernel says File exists")
        held.addresses.append(address)
        if not prefix_route:
            held.without_route.add(address)
        routes.connect(held, address)

    def delete_address(self, link: str, address: Cidr) -> None:
        self.kernel.called("delete_address")
        doing = f"delete the address {address} from {link}"
        held = self.existing(link, doing)
        if address not in held.addresses:
            raise Missing(f"cannot {doing}: the kernel says Address not found")
        same = [cidr for cidr in held.addresses if cidr.version == 4 and cidr.network == address.network]
        promote = held.sysctls["net/ipv4/conf/promote_secondaries"] == "1"
        # Deleting a primary IPv4 address deletes its secondaries (promote_secondaries in
        # ip-sysctl.rst).
        for gone in same if same[:1] == [address] and not promote else [address]:
            held.addresses.remove(gone)
            routes.disconnect(held, gone)
            held.without_route.discard(gone)

    def tentative(self, link: str) -> tuple[bool, bool]:
        self.kernel.called("tentative")
        return self.existing(link, f"list the addresses of {link}").dad

    def routes(self, *, link: str = "", family: int = 0, table: int = 0) -> tuple[KernelRoute, ...]:
        self.kernel.called("routes")
        if link:
            self.existing(link, f"list the routes of {link}")
        return routes.listed(self, link, family, table)

    def find_route(self, question: RouteQuestion) -> FoundRoute:
        self.kernel.called("find_route")
        return routes.found(self, question)

    def unreachable_routes(self) -> tuple[KernelRoute, ...]:
        self.kernel.called("unreachable_routes")
        return tuple(sorted(self.rejected, key=lambda one: one.route.destination.version))

    def add_route(self, route: KernelRoute, *, replace: bool = False) -> None:
        self.kernel.called("add_route")
        routes.add(self, route, replacing=replace)

    def delete_route(self, route: KernelRoute) -> None:
        self.kernel.called("delete_route")
        routes.delete(self, route)

    def sysctl(self, key: str) -> str | None:
        self.kernel.called("sysctl")
        return sysctls.read(self, key)

    def set_sysctl(self, key: str, value: str) -> None:
        self.kernel.called("set_sysctl")
        sysctls.write(self, key, value)
        self.settle()


def _fake(namespace: Namespace) -> FakeNamespace:
    if not isinstance(namespace, FakeNamespace):
        raise KernelRefused("cannot use a namespace that is not open")
    return namespace


def _check_values(doing: str, *, mtu: int, alias: str) -> None:
    if mtu and not 68 <= mtu <= 65535:
        raise KernelRefused(f"cannot {doing}: the kernel says Invalid argument")
    if len(alias.encode()) > 255:
        raise KernelRefused(f"cannot {doing}: the kernel says Attribute failed policy validation")


def _check_options(kind: str, options: Mapping[str, int | str], doing: str) -> None:
    for option in options:
        if option not in OPTIONS.get(kind, {}) and option not in MORE_OPTIONS.get(kind, ()):
            raise KernelRefused(f"cannot {doing}: {kind} links have no option {option}")
