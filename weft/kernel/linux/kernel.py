"""Linux: network namespaces opened by path, each with its own NETLINK_ROUTE socket.

A socket belongs to the namespace that it was created in, so the thread enters a namespace only to
open one (and for sysctls, whose files depend on the thread's namespace).
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from weft import files
from weft.errors import Exists, KernelLacks, KernelRefused, Missing
from weft.identity import TEMPORARY_PREFIX, digest
from weft.kernel import netns, sysctl
from weft.kernel.canonical import describe
from weft.kernel.firewall_chains import OWN_CHAIN, Firewalls
from weft.kernel.interface import Namespace, VethPeer
from weft.kernel.linux import tuntap, wireguard_go
from weft.kernel.netlink import (
    addresses,
    bridge_ports,
    deletion,
    fdb,
    htb,
    ioctls,
    links,
    neighbours,
    nexthops,
    qdiscs,
    route_lookup,
    routes,
    rows,
    rules,
    sock_diag,
    vlans,
    wireguard,
    xfrm,
)
from weft.kernel.netlink.links import NewLink
from weft.kernel.netlink.rtnetlink import RouteSocket
from weft.kernel.values import (
    BridgeVlan,
    ClassTraffic,
    EspRow,
    FdbEntry,
    Flow,
    KernelRoute,
    Limit,
    Link,
    Listener,
    Neighbour,
    Nexthop,
    RoutingRule,
    Row,
    TrafficClass,
    WireGuard,
)
from weft.types import Address, Cidr, NamespaceId

if TYPE_CHECKING:
    from types import ModuleType

    from weft.kernel.interface import Ruleset
    from weft.kernel.netlink.batch_deletion import BatchDeleter
    from weft.kernel.netlink.conntrack import Conntrack
    from weft.kernel.nft.socket import NftSocket
    from weft.kernel.route_lookup import FoundRoute, RouteQuestion
    from weft.kernel.schema import Tables
    from weft.kernel.verdicts import BaseChain


class LinuxNamespace:
    """A network namespace. Owns ``descriptor``, its open file."""

    def __init__(self, descriptor: int, identity: NamespaceId) -> None:
        self.id = identity
        self.descriptor = descriptor
        self._sysctls = sysctl.Sysctls()
        self.link_deleter: BatchDeleter | None = None
        """Deletes links in batches for many threads; None: each thread deletes its own."""
        self._opened: RouteSocket | None = None
        self._nft_socket: NftSocket | None = None
        self._conntrack: Conntrack | None = None
        """Kept open: closing one may take 20 ms."""

    @property
    def _socket(self) -> RouteSocket:
        """Opened when first used: a DEL needs none in the container."""
        if self._opened is None:
            with self._entered():
                self._opened = RouteSocket()
        return self._opened

    def share(self, indexes: dict[str, int], cache: dict[str, tuple[float, Link]]) -> None:
        """Share caches with other objects for the same namespace."""
        self._socket.link_indexes, self._socket.link_cache = indexes, cache

    def close(self) -> None:
        """Close the descriptor and the sockets. Idempotent."""
        if self.descriptor >= 0:
            self.close_sockets()
            self._sysctls.close()
            os.close(self.descriptor)
            self.descriptor = -1

    def close_sockets(self) -> None:
        """They are opened again when they are used."""
        for one in (self._opened, self._nft_socket, self._conntrack):
            if one is not None:
                one.close()
        self._opened = self._nft_socket = self._conntrack = None

    def _entered(self) -> contextlib.AbstractContextManager[None]:
        current = os.stat(netns.CURRENT)
        if (current.st_dev, current.st_ino) == (self.id.device, self.id.inode):
            return contextlib.nullcontext()
        return netns.inside(self.descriptor)

    def link(self, name: str) -> Link | None:
        return links.get(self._socket, name)

    def cached_link(self, name: str) -> Link | None:
        return links.cached(self._socket, name)

    def cached_mac(self, name: str) -> str:
        return links.cached_mac(self._socket, name)

    def is_loopback_up(self) -> bool:
        return ioctls.is_loopback_up(self._socket.fileno())

    def links(self) -> tuple[Link, ...]:
        return links.list_links(self._socket)

    def ports(self, master: str) -> tuple[Link, ...]:
        return links.list_ports(self._socket, master)

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
        action = f"make the {kind} link {name}" + (f" with its peer {peer.name}" if peer else "")
        links.check_name(name, action)
        far: Namespace = parent_namespace if parent and parent_namespace is not None else self
        if kind == "tun":
            self._add_tun(name, options or {}, action)
            rest = {"mac": mac or None, "mtu": mtu or None, "master": master or None}
            self._finish(name, action, alias=alias or None, up=up or None, **rest)  # type: ignore[arg-type]
            return
        plan = NewLink(
            name=name,
            kind=kind,
            mac=mac,
            mtu=mtu,
            up=up,
            master=links.index(self._socket, master, action) if master else 0,
            parent=links.index(_socket_of(far), parent, action) if parent else 0,
            peer=peer,
            peer_target=_descriptor_of(peer.namespace) if peer and peer.namespace is not None else None,
            options=options,
        )
        if not far.id.same(self.id):
            self._add_with_remote_parent(plan, far, alias, action)
            return
        try:
            links.add(self._socket, plan, action)
        except KernelLacks:
            if kind != "wireguard":
                raise
            with self._entered():
                wireguard_go.add(name, action)
            self._finish(name, action, up=up or None, mtu=mtu or None)
        links.cache_index(self._socket, name)
        if peer is not None and peer.namespace is not None:
            links.cache_index(_socket_of(peer.namespace), peer.name)
        # Not in the same sendmsg(2): the kernel continues after an error, and would change an
        # existing link.
        if alias:
            with self._delete_on_error(name):
                links.finish(self._socket, name, alias, action, addrgen_none=addrgen_none)
        if peer is not None and peer.up:
            there = _linux(peer.namespace) if peer.namespace is not None else self
            with self._delete_on_error(name):
                links.change(there._socket, peer.name, action, up=True)

    def _finish(
        self,
        name: str,
        action: str,
        *,
        alias: str | None = None,
        up: bool | None = None,
        mac: str | None = None,
        mtu: int | None = None,
        master: str | None = None,
        new_name: str | None = None,
    ) -> None:
        """Set what RTM_NEWLINK does not set at creation; delete the link if that fails."""
        with self._delete_on_error(name):
            links.change(
                self._socket, name, action, alias=alias, up=up, mac=mac, mtu=mtu, master=master, new_name=new_name
            )

    @contextlib.contextmanager
    def _delete_on_error(self, name: str) -> Iterator[None]:
        try:
            yield
        except BaseException:
            with contextlib.suppress(Missing):
                links.delete(self._socket, name)
            raise

    def _add_tun(self, name: str, options: Mapping[str, int | str], action: str) -> None:
        if links.get(self._socket, name) is not None:
            raise Exists(f"cannot {action}: the link {name} exists")
        with self._entered():
            tuntap.add(name, options, action)

    def _add_with_remote_parent(self, plan: NewLink, far: Namespace, alias: str, action: str) -> None:
        """Create a link here whose parent is in another namespace.

        Before Linux 6.15 the name must be unused in the parent's namespace too, where eth0 often
        exists; so the link is created with a temporary name and renamed.
        """
        if links.get(self._socket, plan.name) is not None:
            raise Exists(f"cannot {action}: the link {plan.name} exists")
        is_temporary = plan.name.startswith(TEMPORARY_PREFIX)
        temporary = (
            plan.name if is_temporary else TEMPORARY_PREFIX + digest("passing", str(self.id.inode), plan.name)[:10]
        )
        created = replace(plan, name=temporary, up=False, master=0, target=self.descriptor)
        try:
            links.add(_socket_of(far), created, action)
        except Exists:  # left by a killed call, or the name exists in the parent's namespace
            with contextlib.suppress(Missing):
                links.delete(self._socket, temporary)
            links.add(_socket_of(far), created, action)
        master = next((link.name for link in self.links() if link.index == plan.master), None) if plan.master else None
        name = None if is_temporary else plan.name
        if alias or plan.up or master or name:
            self._finish(temporary, action, alias=alias or None, up=plan.up or None, master=master, new_name=name)

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
        asked = {
            "up": up, "mac": mac, "mtu": mtu, "alias": alias, "master": master, "promiscuous": promiscuous,
            "all-multicast": all_multicast, "queue length": queue_length, "group": group, "name": new_name,
            "namespace": namespace.id.path if namespace is not None else None, **(options or {}),
        }  # fmt: skip
        said = ", ".join(f"{key} {value}" for key, value in asked.items() if value is not None)
        action = f"change the link {name} to {said}"
        if namespace is not None and new_name and links.get(_socket_of(namespace), new_name) is not None:
            # The kernel moves the link before it renames it, and would leave it there under its old
            # name.
            raise Exists(f"cannot {action}: the link {new_name} exists in the target namespace")
        links.change(
            self._socket,
            name,
            action,
            up=up,
            mac=mac,
            mtu=mtu,
            alias=alias,
            master=master,
            promiscuous=promiscuous,
            all_multicast=all_multicast,
            queue_length=queue_length,
            group=group,
            new_name=new_name,
            target=_descriptor_of(namespace) if namespace is not None else None,
            options=options,
        )

    def delete_link(self, name: str) -> None:
        index = links.index(self._socket, name, f"delete the link {name}")
        if self.link_deleter is not None:
            self.link_deleter.delete(index, name)
        else:
            with self._entered():
                deletion.delete(index, name)
        # Waits for RTNL, so that the deletion is complete, including the routes of peers.
        links.get(self._socket, name)

    def change_port(self, name: str, attributes: Mapping[str, int]) -> None:
        bridge_ports.change(self._socket, name, attributes)

    def is_operational(self, name: str, bridge: str = "") -> bool:
        return bridge_ports.is_operational(self._socket, name, bridge)

    def announce(self, name: str) -> None:
        links.announce(self._socket, name)

    def vlans(self, name: str) -> tuple[BridgeVlan, ...]:
        return vlans.of_port(self._socket, name)

    def add_vlans(self, name: str, wanted: Iterable[BridgeVlan]) -> None:
        vlans.add(self._socket, name, wanted)

    def delete_vlans(self, name: str, vids: Iterable[int]) -> None:
        vlans.delete(self._socket, name, vids)

    def addresses(self, link: str, version: int = 0, *, permanent: bool = False) -> tuple[Cidr, ...]:
        index = self._index(link, f"list the addresses of {link}")
        return addresses.of_link(self._socket, index, link, version, permanent=permanent)

    def all_addresses(self, version: int = 0) -> tuple[tuple[str, Cidr], ...]:
        return addresses.of_all(self._socket, version)

    def add_address(self, link: str, address: Cidr, *, prefix_route: bool = True, link_scope: bool = False) -> None:
        index = self._index(link, f"add the address {address} to {link}")
        detect = address.version == 4 or self.sysctl(f"net/ipv6/conf/{link}/accept_dad") != "0"
        addresses.add(
            self._socket, index, link, address, detect=detect, prefix_route=prefix_route, link_scope=link_scope
        )

    def delete_address(self, link: str, address: Cidr) -> None:
        index = self._index(link, f"delete the address {address} from {link}")
        addresses.delete(self._socket, index, link, address)

    def tentative(self, link: str) -> tuple[bool, bool]:
        return addresses.tentative(self._socket, self._index(link, f"list the addresses of {link}"), link)

    def routes(self, *, link: str = "", family: int = 0, table: int = 0) -> tuple[KernelRoute, ...]:
        index = self._index(link, f"list the routes of {link}") if link else 0
        return routes.list_routes(self._socket, link=link, index=index, family=family, table=table)

    def find_route(self, question: RouteQuestion) -> FoundRoute:
        return route_lookup.find(self._socket, question, self.link(question.incoming) if question.incoming else None)

    def unreachable_routes(self) -> tuple[KernelRoute, ...]:
        return routes.list_unreachable(self._socket)

    def add_route(self, route: KernelRoute, *, replace: bool = False) -> None:
        index = self._index(route.link, f"add the route {describe(route)}") if route.link else 0
        routes.add(self._socket, route, index, replace=replace)

    def delete_route(self, route: KernelRoute) -> None:
        index = self._index(route.link, f"delete the route {describe(route)}") if route.link else 0
        routes.delete(self._socket, route, index)

    def neighbours(self, link: str = "", version: int = 0) -> tuple[Neighbour, ...]:
        index = self._index(link, f"list the neighbours of {link}") if link else 0
        return neighbours.list_neighbours(self._socket, index, version)

    def add_neighbour(self, neighbour: Neighbour, *, replace: bool = False) -> None:
        index = self._index(neighbour.link, f"add the neighbour {neighbour.address} on {neighbour.link}")
        neighbours.add(self._socket, neighbour, index, replace=replace)

    def delete_neighbour(self, link: str, address: Address) -> None:
        index = self._index(link, f"delete the neighbour {address} on {link}")
        neighbours.delete(self._socket, address, index, link)

    def fdb(self, link: str) -> tuple[FdbEntry, ...]:
        return fdb.list_fdb(self._socket, link)

    def all_ports_fdb(self) -> tuple[tuple[str, FdbEntry], ...]:
        return fdb.list_ports(self._socket)

    def add_fdb(self, link: str, entry: FdbEntry, *, append: bool = False, replace: bool = False) -> None:
        fdb.add(self._socket, link, entry, append=append, replace=replace)

    def delete_fdb(self, link: str, entry: FdbEntry) -> None:
        fdb.delete(self._socket, link, entry)

    def nexthops(self) -> tuple[Nexthop, ...]:
        return nexthops.list_nexthops(self._socket)

    def add_nexthop(self, nexthop: Nexthop, *, replace: bool = False) -> None:
        index = self._index(nexthop.link, f"add the nexthop {nexthops.describe(nexthop)}") if nexthop.link else 0
        nexthops.add(self._socket, nexthop, index, replace=replace)

    def delete_nexthop(self, number: int) -> None:
        nexthops.delete(self._socket, number)

    def add_rows(self, link: str, wanted: Iterable[Row]) -> None:
        rows.add(self._socket, link, wanted)

    def delete_rows(self, link: str, gone: Iterable[Row]) -> None:
        rows.delete(self._socket, link, gone)

    def wireguard(self, link: str) -> WireGuard:
        with self._entered():
            found: WireGuard = self._wireguard(link).get(link)
            return found

    def set_wireguard(self, link: str, wanted: WireGuard) -> None:
        with self._entered():
            self._wireguard(link).set_all(link, wanted)

    def esp(self, reqid: int) -> tuple[EspRow, ...]:
        with self._entered():
            return xfrm.listed(reqid)

    def add_esp(self, rows: Iterable[EspRow]) -> None:
        with self._entered():
            xfrm.add(rows)

    def delete_esp(self, rows: Iterable[EspRow]) -> None:
        with self._entered():
            xfrm.delete(rows)

    def _wireguard(self, name: str) -> ModuleType:
        """What sets a WireGuard link: the kernel's messages, or wireguard-go's socket."""
        link = links.get(self._socket, name)
        if link is None:
            raise Missing(f"the WireGuard link {name} does not exist")
        if link.kind not in ("wireguard", "tun"):
            raise KernelLacks(f"{name} is no WireGuard link, but of kind {link.kind}")
        return wireguard if link.kind == "wireguard" else wireguard_go

    def sysctl(self, key: str) -> str | None:
        with self._entered():
            return self._sysctls.read(key)

    def set_sysctl(self, key: str, value: str) -> None:
        with self._entered():
            self._sysctls.write(key, value)

    def limit(self, link: str) -> Limit | None:
        return qdiscs.limit(self._socket, link)

    def set_limit(self, link: str, limit: Limit | None) -> None:
        qdiscs.set_limit(self._socket, link, limit)

    def redirect(self, link: str, *, egress: bool = False) -> str:
        return qdiscs.redirect(self._socket, link, egress)

    def set_redirect(self, link: str, target: str, *, egress: bool = False) -> None:
        qdiscs.set_redirect(self._socket, link, target, egress)

    def root_qdisc(self, link: str) -> str:
        return htb.root_qdisc(self._socket, link)

    def add_scheduler(self, link: str, major: int, default: int) -> None:
        htb.add_scheduler(self._socket, link, major, default)

    def delete_scheduler(self, link: str, major: int) -> None:
        htb.delete_scheduler(self._socket, link, major)

    def classes(self, link: str) -> tuple[TrafficClass, ...]:
        return htb.classes(self._socket, link)

    def set_class(self, link: str, major: int, wanted: TrafficClass, *, leaf: bool) -> None:
        htb.set_class(self._socket, link, major, wanted, leaf=leaf)

    def delete_class(self, link: str, major: int, number: int) -> None:
        htb.delete_class(self._socket, link, major, number)

    def class_traffic(self, link: str) -> tuple[ClassTraffic, ...]:
        return htb.class_traffic(self._socket, link)

    def routing_rules(self) -> tuple[RoutingRule, ...]:
        return rules.list_rules(self._socket)

    def add_routing_rule(self, rule: RoutingRule) -> None:
        rules.add(self._socket, rule)

    def delete_routing_rule(self, rule: RoutingRule) -> None:
        rules.delete(self._socket, rule)

    # Rarely needed by a runtime's call, so imported on use.

    def flows(self, ports: Collection[tuple[str, int]], version: int = 0) -> tuple[Flow, ...]:
        with self._entered():
            return self._connections().to_ports(ports, version)

    def translated_flows(self, target: Address, ports: Collection[tuple[str, int]]) -> tuple[Flow, ...]:
        with self._entered():
            return self._connections().translated(target, ports)

    def delete_flows(self, flows: Iterable[Flow]) -> None:
        with self._entered():
            self._connections().delete(flows)

    def _connections(self) -> Conntrack:
        if self._conntrack is None:
            from weft.kernel.netlink.conntrack import Conntrack

            self._conntrack = Conntrack()
        return self._conntrack

    def listeners(self, protocol: str, ports: Collection[int], caller: int = 0) -> tuple[Listener, ...]:
        with self._entered():
            return sock_diag.listeners(protocol, ports, caller)

    def iptables(self, version: int, table: str, backend: str = "") -> tuple[str, ...]:
        from weft.kernel.linux import iptables

        with self._entered():
            return iptables.save(version, table, self._nftables(), backend)

    def change_iptables(self, version: int, table: str, lines: Iterable[str], backend: str = "") -> None:
        from weft.kernel.linux import iptables

        with self._entered():
            iptables.restore(version, table, lines, backend)

    def drops_forwarded(self, version: int) -> bool:
        from weft.kernel.linux import iptables

        with self._entered():
            nft_socket = self._nftables()
            return nft_socket is not None and iptables.drops_forwarded(version, nft_socket)

    def firewalls(self) -> Firewalls:
        from weft.kernel.linux import firewalls

        with self._entered():
            nft_socket = self._nftables()
            found = firewalls.firewalls(nft_socket) if nft_socket is not None else Firewalls()
            if more := firewalls.legacy_chains():
                found = Firewalls(
                    (*found.user_chains, *(one for one in more if one.name != OWN_CHAIN)),
                    found.firewalld,
                    (*found.own_chains, *(one for one in more if one.name == OWN_CHAIN)),
                )
            return found

    def base_chains(self) -> tuple[BaseChain, ...]:
        from weft.kernel.linux import filters

        with self._entered():
            return filters.base_chains(self._nftables())

    def nftables_listing(self, what: str, *, as_json: bool = False, terse: bool = False) -> str:
        from weft.kernel.linux import filters

        with self._entered():
            return filters.listing(what, as_json=as_json, terse=terse)

    def change_nftables(self, commands: str) -> None:
        from weft.kernel.linux import filters

        with self._entered():
            filters.change(commands)

    def firewalld_zone(self, place: str, *, permanent: bool = False) -> str | None:
        from weft.kernel.linux import firewalld

        return firewalld.permanent_zone(place) if permanent else firewalld.zone(place)

    def set_firewalld_zone(self, place: str, zone: str) -> None:
        from weft.kernel.linux import firewalld

        if zone:
            firewalld.add(zone, place)
        elif there := firewalld.zone(place):
            firewalld.remove(there, place)

    def _nftables(self) -> NftSocket | None:
        """A socket to nf_tables of this namespace, which the thread has entered; None if the kernel has
        none.
        """
        from weft.kernel.nft.socket import NftSocket

        if self._nft_socket is None:
            with contextlib.suppress(KernelRefused):
                self._nft_socket = NftSocket()
        return self._nft_socket

    def _index(self, link: str, action: str) -> int:
        return links.index(self._socket, link, action)


class LinuxKernel:
    """The running kernel; ``host`` is the network namespace of the creating thread.

    ``tables`` are those that ``rules`` are about; without them there are none.
    """

    def __init__(self, tables: Tables | None = None) -> None:
        self.host: Namespace = LinuxNamespace(*netns.open_namespace(netns.CURRENT))
        self._tables = tables
        self._rules: Ruleset | None = None

    @property
    def rules(self) -> Ruleset:
        """nftables in the host's namespace, loaded on first use (libnftables takes 10 ms)."""
        if self._rules is None:
            from weft.kernel.nft.ruleset import Nft

            if self._tables is None:
                raise KernelRefused("this kernel was opened without nftables tables")
            self._rules = Nft(self._tables, stored=f"{files.ROOT}/{self.host.id.inode}/ruleset.verified")
        return self._rules

    def identify(self, path: str) -> NamespaceId:
        return netns.identify(path)

    def open(self, path: str) -> Namespace:
        return LinuxNamespace(*netns.open_namespace(path))

    def add_namespace(self, path: str) -> None:
        netns.add(path)

    def remove_namespace(self, path: str) -> None:
        netns.remove(path)

    def others(self) -> tuple[str, ...]:
        return netns.others(self.host.id)

    def forked(self) -> None:
        _linux(self.host).close_sockets()
        forked = getattr(self._rules, "forked", None)
        if forked is not None:
            forked()

    def close(self) -> None:
        self.host.close()
        if self._rules is not None:
            close = getattr(self._rules, "close", None)
            if close is not None:
                close()
            self._rules = None


def _linux(namespace: Namespace) -> LinuxNamespace:
    if not isinstance(namespace, LinuxNamespace) or namespace.descriptor < 0:
        raise KernelRefused("the network namespace is not open")
    return namespace


def _descriptor_of(namespace: Namespace) -> int:
    return _linux(namespace).descriptor


def _socket_of(namespace: Namespace) -> RouteSocket:
    return _linux(namespace)._socket
