"""The fake kernel's neighbours, forwarding databases and nexthop objects."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace as changed
from typing import TypeVar

from weft.errors import Exists, KernelLacks, KernelRefused, Missing, WeftError
from weft.kernel.fake import routes
from weft.kernel.fake.links import FakeLink, FakeState
from weft.kernel.fake.traffic import FakeTraffic
from weft.kernel.values import EspRow, EspState, FdbEntry, Neighbour, Nexthop, Row, WireGuard
from weft.types import Address

_EVERY_MAC = "00:00:00:00:00:00"
Each = TypeVar("Each")


class FakeForwarding(FakeTraffic):
    """A namespace's neighbours, forwarding databases and nexthop objects."""

    def neighbours(self, link: str = "", version: int = 0) -> tuple[Neighbour, ...]:
        self._called("neighbours")
        owners = [self.existing(link, f"list the neighbours of {link}")] if link else self.links_by_name.values()
        found = [changed(one, link=owner.name) for owner in owners for one in owner.neighbours]
        found = [one for one in found if version in (0, one.address.version)]
        return tuple(sorted(found, key=lambda one: one.address.version))

    def add_neighbour(self, neighbour: Neighbour, *, replace: bool = False) -> None:
        self._called("add_neighbour")
        action = f"{'replace' if replace else 'add'} the neighbour {neighbour.address} on {neighbour.link}"
        link = self.existing(neighbour.link, action)
        _check_mac(neighbour.mac)
        if neighbour.address.version == 6 and link.sysctls["net/ipv6/conf/disable_ipv6"] == "1":
            raise KernelRefused(f"cannot {action}: the kernel says IPv6 is disabled on this device")
        others = [one for one in link.neighbours if one.address != neighbour.address]
        if len(others) < len(link.neighbours) and not replace:
            raise Exists(f"cannot {action}: the kernel says File exists")
        link.neighbours = [*others, changed(neighbour, permanent=True)]

    def delete_neighbour(self, link: str, address: Address) -> None:
        self._called("delete_neighbour")
        action = f"delete the neighbour {address} on {link}"
        owner = self.existing(link, action)
        rest = [one for one in owner.neighbours if one.address != address]
        if len(rest) == len(owner.neighbours):
            raise Missing(f"cannot {action}: the kernel says No such file or directory")
        owner.neighbours = rest

    def is_operational(self, name: str, bridge: str = "") -> bool:
        self._called("is_operational")
        action = f"read the state of {name}"
        return all(self.existing(one, action).carrier for one in (name, bridge) if one)

    def announce(self, name: str) -> None:
        self._called("announce")
        self.existing(name, f"announce the addresses of {name}")

    def fdb(self, link: str) -> tuple[FdbEntry, ...]:
        self._called("fdb")
        owner = self.existing(link, f"list the forwarding database of {link}")
        port = owner.master is not None and owner.master.kind == "bridge"
        return (*owner.fdb, *([FdbEntry(owner.mac, master=True)] if port else []))

    def all_ports_fdb(self) -> tuple[tuple[str, FdbEntry], ...]:
        self._called("all_ports_fdb")
        ports = [one.name for one in self.links_by_name.values() if one.master is not None]
        return tuple((name, entry) for name in ports for entry in self.fdb(name) if entry.master)

    def add_fdb(self, link: str, entry: FdbEntry, *, append: bool = False, replace: bool = False) -> None:
        self._called("add_fdb")
        action = f"add the FDB entry {entry.mac} dev {link}"
        owner = self._fdb_owner(link, entry, action)
        _check_mac(entry.mac)
        existing = _rows(owner, entry)
        if existing and not (append or replace):
            raise Exists(f"cannot {action}: the kernel says File exists")
        if entry.master:
            if entry.mac == _EVERY_MAC or entry.vlan:
                raise KernelRefused(f"cannot {action}: the kernel says Invalid argument")
            row = FdbEntry(entry.mac, master=True, state=entry.state)
        else:
            row = changed(entry, vlan=0)
            self._check_vxlan(owner, entry, action, replace)
        if append and existing and not entry.master:
            if _is_multicast(entry.mac) and row not in existing:  # of others the kernel ignores it
                owner.fdb.append(row)
            return
        owner.fdb = [one for one in owner.fdb if one not in existing] + [row]

    def delete_fdb(self, link: str, entry: FdbEntry) -> None:
        self._called("delete_fdb")
        action = f"delete the FDB entry {entry.mac} dev {link}"
        owner = self._fdb_owner(link, entry, action)
        existing = _rows(owner, entry)
        if not existing:
            raise Missing(f"cannot {action}: the kernel says No such file or directory")
        if entry.destination is not None and not entry.master:
            key = (entry.destination, entry.vni, entry.port)
            existing = [one for one in existing if (one.destination, one.vni, one.port) == key]
        owner.fdb = [one for one in owner.fdb if one not in existing]

    def _fdb_owner(self, name: str, entry: FdbEntry, action: str) -> FakeLink:
        link = self.existing(name, action)
        if entry.state not in ("permanent", "static", "dynamic"):
            raise KernelRefused(f"cannot {action}: {entry.state!r} is none of permanent, static, dynamic")
        if entry.master and link.master is None:
            raise KernelRefused(f"cannot {action}: {name} is no bridge port")
        if not entry.master and link.kind != "vxlan":
            raise KernelRefused(f"cannot {action}: {name} is no VXLAN link, and has no forwarding database of its own")
        return link

    def _check_vxlan(self, link: FakeLink, entry: FdbEntry, action: str, replace: bool) -> None:
        if replace and _is_multicast(entry.mac):
            raise KernelRefused(f"cannot {action}: the kernel says Cannot replace non-unicast fdb entries")
        if entry.nexthop:
            if entry.destination is not None or entry.vni or entry.port:
                raise KernelRefused(
                    f"cannot {action}: the kernel says DST, VNI, ifindex and port are mutually exclusive with NH_ID"
                )
            self._check_fdb_nexthop(entry.nexthop, action)
            return
        if entry.destination is None:
            raise KernelRefused(f"cannot {action}: the kernel says Invalid argument")
        version = 6 if {"vxlan_local6", "vxlan_group6"} & link.options.keys() else 4
        if entry.destination.version != version:
            raise KernelRefused(f"cannot {action}: the kernel says Address family not supported by protocol")

    def _check_fdb_nexthop(self, number: int, action: str) -> None:
        nexthop = self.nexthops_by_id.get(number)
        problem = "Nexthop id does not exist" if nexthop is None else ""
        if nexthop is not None and not nexthop.group:
            problem = "Nexthop is not a multipath group"
        elif nexthop is not None and not nexthop.fdb:
            problem = "Nexthop is not a fdb nexthop"
        if problem:
            raise KernelRefused(f"cannot {action}: the kernel says {problem}")

    def nexthops(self) -> tuple[Nexthop, ...]:
        self._called("nexthops")
        return tuple(self.nexthops_by_id[number] for number in sorted(self.nexthops_by_id))

    def add_nexthop(self, nexthop: Nexthop, *, replace: bool = False) -> None:
        self._called("add_nexthop")
        action = f"{'replace' if replace else 'add'} the nexthop id {nexthop.id}"
        link = self.existing(nexthop.link, action) if nexthop.link else None
        existing = self.nexthops_by_id.get(nexthop.id)
        problem = "the id must be 1 or more" if nexthop.id < 1 else ""
        if not problem:
            problem = self._group_problem(nexthop) if nexthop.group else self._nexthop_problem(nexthop, link)
        if existing is not None and replace and not problem and bool(existing.group) != bool(nexthop.group):
            problem = "the kernel says Can not replace a nexthop with a nexthop group, or a group with a nexthop"
        if problem:
            raise KernelRefused(f"cannot {action}: {problem}")
        if existing is not None and not replace:
            raise Exists(f"cannot {action}: the kernel says File exists")
        self.nexthops_by_id[nexthop.id] = nexthop

    def _group_problem(self, nexthop: Nexthop) -> str:
        members = [self.nexthops_by_id.get(number) for number, _ in nexthop.group]
        if not all(1 <= weight <= 256 for _, weight in nexthop.group):
            return "the weight of a nexthop is not from 1 to 256"
        if len({number for number, _ in nexthop.group}) < len(nexthop.group):
            return "the kernel says Nexthop id can not be used twice in a group"
        for member in members:
            if member is None:
                return "the kernel says Invalid nexthop id"
            if member.group:
                return "the kernel says Hash-threshold group can not be a nexthop within a group"
            if member.fdb != nexthop.fdb:
                kind = "FDB nexthop group can only have" if nexthop.fdb else "Non FDB nexthop group cannot have"
                return f"the kernel says {kind} fdb nexthops"
        return ""

    def _nexthop_problem(self, nexthop: Nexthop, link: FakeLink | None) -> str:
        if nexthop.gateway is None and link is None:
            return "the kernel says Invalid address family"
        if nexthop.fdb:
            return "the kernel says Fdb attribute can not be used with encap, oif or blackhole" if link else ""
        if link is None:
            return "the kernel says Device attribute required for non-blackhole and non-fdb nexthops"
        if not link.up:
            return "the kernel says Nexthop device is not up"
        if not link.carrier:
            return "the kernel says Carrier for nexthop device is down"
        if nexthop.gateway is not None and not nexthop.onlink and not routes.reachable(link, nexthop.gateway):
            return "the kernel says Nexthop has invalid gateway"
        return ""

    def delete_nexthop(self, number: int) -> None:
        self._called("delete_nexthop")
        if number not in self.nexthops_by_id:
            raise Missing(f"cannot delete the nexthop {number}: the kernel says No such file or directory")
        _remove_nexthop(self, number)

    def add_rows(self, link: str, rows: Iterable[Row]) -> None:
        self._each(rows, lambda row: self._add_row(link, row))

    def delete_rows(self, link: str, rows: Iterable[Row]) -> None:
        self._each(rows, lambda row: self._delete_row(link, row), Missing)

    def wireguard(self, link: str) -> WireGuard:
        self._called("wireguard")
        return self._wireguard_link(link).wireguard or WireGuard("", 0)

    def set_wireguard(self, link: str, wanted: WireGuard) -> None:
        self._called("set_wireguard")
        owner = self._wireguard_link(link)
        owner.wireguard = changed(wanted, peers=tuple(sorted(wanted.peers, key=lambda one: one.key)))

    def esp(self, reqid: int) -> tuple[EspRow, ...]:
        self._called("esp")
        return tuple(one for one in self.esp_rows.values() if one.reqid == reqid)

    def add_esp(self, rows: Iterable[EspRow]) -> None:
        self._called("add_esp")
        self._each(rows, self._add_esp)

    def _add_esp(self, row: EspRow) -> None:
        key = _esp_key(row)
        if isinstance(row, EspState):
            if key in self.esp_rows:
                raise Exists(f"cannot add the IPsec state {row.spi:#x}: the kernel says File exists")
            row = changed(row, key=b"")
        self.esp_rows[key] = row

    def delete_esp(self, rows: Iterable[EspRow]) -> None:
        self._called("delete_esp")
        for row in rows:
            self.esp_rows.pop(_esp_key(row), None)

    def _wireguard_link(self, name: str) -> FakeLink:
        owner = self.existing(name, f"set up the WireGuard link {name}")
        if owner.kind != "wireguard":
            raise KernelLacks(f"{name} is no WireGuard link, but of kind {owner.kind}")
        return owner

    def _each(self, rows: Iterable[Each], work: Callable[[Each], None], *ignored: type[WeftError]) -> None:
        first: WeftError | None = None
        for row in rows:
            try:
                work(row)
            except ignored:
                continue
            except WeftError as error:
                first = first or error
        if first is not None:
            raise first

    def _add_row(self, link: str, row: Row) -> None:
        if isinstance(row, FdbEntry):
            self.add_fdb(link, row, replace=True)
        elif isinstance(row, Neighbour):
            self.add_neighbour(row, replace=True)
        elif isinstance(row, Nexthop):
            self.add_nexthop(row, replace=True)
        else:
            routes.add(self, row, replacing=True)

    def _delete_row(self, link: str, row: Row) -> None:
        if isinstance(row, FdbEntry):
            self.delete_fdb(link, row)
        elif isinstance(row, Neighbour):
            self.delete_neighbour(row.link, row.address)
        elif isinstance(row, Nexthop):
            self.delete_nexthop(row.id)
        else:
            routes.delete(self, row)


def flush_nexthops(state: FakeState) -> None:
    """Delete the nexthops of links that are gone, down or without carrier."""
    for number, nexthop in list(state.nexthops_by_id.items()):
        link = state.links_by_name.get(nexthop.link)
        if nexthop.link and (link is None or not link.carrier):
            _remove_nexthop(state, number)


def _remove_nexthop(state: FakeState, number: int) -> None:
    """Delete a nexthop with its routes and FDB rows, and groups without another member."""
    del state.nexthops_by_id[number]
    state.nexthop_routes = [route for route in state.nexthop_routes if route.nexthop != number]
    for link in state.links_by_name.values():
        link.fdb = [entry for entry in link.fdb if entry.nexthop != number]
    for group in [one for one in state.nexthops_by_id.values() if number in dict(one.group)]:
        rest = tuple(member for member in group.group if member[0] != number)
        if rest:
            state.nexthops_by_id[group.id] = changed(group, group=rest)
        else:
            _remove_nexthop(state, group.id)


def _rows(link: FakeLink, entry: FdbEntry) -> list[FdbEntry]:
    return [one for one in link.fdb if (one.mac, one.master) == (entry.mac, entry.master)]


def _is_multicast(mac: str) -> bool:
    return mac == _EVERY_MAC or bool(int(mac[:2], 16) & 1)


def _check_mac(mac: str) -> None:
    try:
        bytes.fromhex(mac.replace(":", ""))
    except ValueError:
        raise KernelRefused(f"{mac!r} is no MAC address") from None


def _esp_key(row: EspRow) -> tuple[object, ...]:
    if isinstance(row, EspState):
        return "state", row.destination, row.spi
    return "policy", row.out, row.source, row.destination, row.port
