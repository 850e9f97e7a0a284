"""The operations of ``weft apply``: each makes one declared thing, and can take it back.

Those that change something keep what it was, so that undo restores it. ``refuse`` is asked of all of
them before the first is applied.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from cni_plugin.ops import Vlans
from cni_plugin.ops.bridges import no_vlan_filtering
from cni_plugin.ops.links import has_mark, nsenter
from cni_plugin.ops.operation import Machine, Operation
from discovery.consul.client import ApiClient, ApiError, api_path
from weft.errors import Conflict, InUse, KernelLacks, Missing, NamespaceProblem, WeftError
from weft.identity import mark_digest, vlan_gateway_port
from weft.kernel.interface import Kernel, Namespace
from weft.kernel.values import BridgeVlan, Link
from weft.types import Side

__all__ = ["Declared", "NamedNamespace", "Registered", "Removed", "SourceNat", "SwitchBridge", "SwitchPort", "Within"]

TABLE = "inet weft_router"
"""The nftables table of a router, in its own namespace."""
APPLIED = "weft-apply"
"""The alias of ``lo`` in a namespace that weft apply has made."""
DIGEST_KEY = "weft-applied"
"""The key of a service's metadata with the digest of its declaration."""
_CHAIN = "nat_postrouting"
_MASQUERADED = re.compile(r'oifname "([^"]+)" masquerade')


class Declared(Operation):
    """An operation of ``weft apply``. ``about`` is what it is called in a plan: ``switch office``."""

    __slots__ = ()

    @property
    def about(self) -> str:
        raise NotImplementedError

    def refuse(self, machine: Machine) -> None:
        """Raises WeftError where apply would fail, or take something from somebody."""

    def refuse_removal(self, machine: Machine) -> None:
        """The same for undo."""

    def removal(self, namespace: str) -> tuple[str, ...]:
        """The shell commands that undo is equivalent to."""
        return ()


@dataclass(frozen=True, slots=True)
class Removed(Declared):
    """The removal of what an operation has made: its undo, and undone by its apply."""

    made: Declared

    @property
    def about(self) -> str:
        return self.made.about

    def refuse(self, machine: Machine) -> None:
        self.made.refuse_removal(machine)

    def apply(self, machine: Machine) -> bool:
        self.made.undo(machine)
        return True

    def undo(self, machine: Machine) -> None:
        self.made.apply(machine)

    def mismatch(self, machine: Machine) -> str | None:
        return f"{self.about} is no longer declared"

    def commands(self, namespace: str) -> tuple[str, ...]:
        return self.made.removal(namespace)


@dataclass(frozen=True, slots=True)
class SwitchBridge(Declared):
    """The bridge of a switch. ``mtu`` in bytes, 0: the kernel's. ``ports`` are the declared ones, and
    ``before`` is the link as it was, None if there was none.

    *Equivalent to:* ``ip link add NAME address MAC type bridge``.
    """

    name: str
    mac: str
    mtu: int = 0
    vlans: tuple[int, ...] = ()
    ports: tuple[str, ...] = ()
    before: Link | None = None

    @property
    def about(self) -> str:
        return f"switch {self.name}"

    @property
    def filtering(self) -> bool:
        return bool(self.vlans)

    @property
    def alias(self) -> str:
        return f"{APPLIED}:switch"

    def refuse(self, machine: Machine) -> None:
        link = machine.host.link(self.name)
        if link is not None and not has_mark(link, self.alias):
            raise Conflict(
                f"{self.about}: there is a link {self.name} that weft apply has not made",
                hint="choose another name for the switch, or delete the link",
            )

    def apply(self, machine: Machine) -> bool:
        host = machine.host
        try:
            if host.link(self.name) is None:
                options: dict[str, int | str] = {"br_vlan_filtering": 1} if self.filtering else {}
                host.add_link(self.name, "bridge", mac=self.mac, alias=self.alias, up=True, options=options)
                if self.mtu:  # not when it is created: the kernel would lower it to that of its ports
                    host.change_link(self.name, mtu=self.mtu)
            else:
                self._set(host, self.mac, self.mtu, self.filtering)
        except KernelLacks as error:
            if self.filtering:
                raise no_vlan_filtering(self.name) from error
            raise
        return True

    def _set(self, host: Namespace, mac: str, mtu: int, filtering: bool) -> None:
        host.change_link(
            self.name, up=True, mac=mac, mtu=mtu or None, options={"br_vlan_filtering": 1} if filtering else None
        )

    def undo(self, machine: Machine) -> None:
        link = machine.host.link(self.name)
        if link is None or not has_mark(link, self.alias):
            return
        if self.before is not None:
            self._set(machine.host, self.before.mac, self.before.mtu, _filters(self.before))
        elif not _ports(machine, self.name):
            with contextlib.suppress(Missing):
                machine.host.delete_link(self.name)

    def refuse_removal(self, machine: Machine) -> None:
        known = {*self.ports, *(vlan_gateway_port(f"{self.name}.{vid}") for vid in self.vlans)}
        foreign = [one for one in _ports(machine, self.name) if not mark_digest(one.alias) and one.name not in known]
        if foreign:
            raise InUse(
                f"{self.about} has the port {foreign[0].name}, which weft has not made", hint="take it off first"
            )

    def mismatch(self, machine: Machine) -> str | None:
        link = machine.host.link(self.name)
        if link is None:
            return f"the bridge {self.name} is missing"
        if link.kind != "bridge" or not link.up:
            return f"{self.name} is no bridge, or is down"
        if link.mac != self.mac:
            return f"the bridge {self.name} has the MAC address {link.mac} instead of {self.mac}"
        if self.mtu and link.mtu not in (self.mtu, min((one.mtu for one in _ports(machine, self.name)), default=0)):
            return f"the MTU of the bridge {self.name} is {link.mtu} instead of {self.mtu}"
        if self.filtering and not _filters(link):
            return f"the bridge {self.name} does not filter VLANs"
        return None

    def commands(self, namespace: str) -> tuple[str, ...]:
        mtu = f" mtu {self.mtu}" if self.mtu else ""
        filtering = " vlan_filtering 1" if self.filtering else ""
        if self.before is not None:
            change = (f"ip link set {self.name} address {self.mac}{mtu} up",)
            return (*change, f"ip link set {self.name} type bridge{filtering}") if filtering else change
        return (
            f"ip link add {self.name} address {self.mac}{mtu} type bridge{filtering}",
            f"ip link set {self.name} alias {self.alias} up",
        )

    def removal(self, namespace: str) -> tuple[str, ...]:
        return (f"ip link delete {self.name}",)


def _filters(link: Link) -> bool:
    return bool(link.options.get("br_vlan_filtering"))


def _ports(machine: Machine, bridge: str) -> list[Link]:
    return [one for one in machine.host.links() if one.master == bridge]


@dataclass(frozen=True, slots=True)
class SwitchPort(Declared):
    """A link of the host as a port of a switch, with its VLANs; () on a switch without.

    *Equivalent to:* ``ip link set LINK master SWITCH up``.
    """

    link: str
    switch: str
    vlans: tuple[BridgeVlan, ...] = ()
    was_up: bool = False

    @property
    def about(self) -> str:
        return f"port {self.link} of switch {self.switch}"

    def refuse(self, machine: Machine) -> None:
        link = machine.host.link(self.link)
        if link is None:
            raise Missing(f"{self.about}: there is no link {self.link} on this host")
        if link.master not in ("", self.switch):
            raise Conflict(f"{self.about}: {self.link} is a port of {link.master}", hint="take it off there first")
        addresses = [one for one in machine.host.addresses(self.link) if not one.is_link_local]
        if addresses and link.master != self.switch:
            raise Conflict(
                f"{self.about}: {self.link} has the address {addresses[0]}, at which this host could not be reached "
                "any more",
                hint="give the address to another link first",
            )

    def apply(self, machine: Machine) -> bool:
        machine.host.change_link(self.link, master=self.switch, up=True)
        if self.vlans:
            Vlans(self.link, self.vlans).apply(machine)
        return True

    def undo(self, machine: Machine) -> None:
        link = machine.host.link(self.link)
        if link is not None and link.master == self.switch:
            machine.host.change_link(self.link, master="", up=self.was_up)

    def mismatch(self, machine: Machine) -> str | None:
        link = machine.host.link(self.link)
        if link is None:
            return f"the link {self.link} is missing"
        if link.master != self.switch or not link.up:
            return f"{self.link} is no port of {self.switch}, or is down"
        return Vlans(self.link, self.vlans).mismatch(machine) if self.vlans else None

    def commands(self, namespace: str) -> tuple[str, ...]:
        more = Vlans(self.link, self.vlans).commands(namespace) if self.vlans else ()
        return (f"ip link set {self.link} master {self.switch} up", *more)

    def removal(self, namespace: str) -> tuple[str, ...]:
        return (f"ip link set {self.link} nomaster",)


@dataclass(frozen=True, slots=True)
class NamedNamespace(Declared):
    """A network namespace of ``ip netns``, made where there is none, and removed only if it was.

    *Equivalent to:* ``ip netns add NAME``.
    """

    name: str
    path: str
    kernel: Kernel = field(compare=False, repr=False)

    @property
    def about(self) -> str:
        return f"namespace {self.name}"

    def apply(self, machine: Machine) -> bool:
        self.kernel.add_namespace(self.path)
        with contextlib.closing(self.kernel.open(self.path)) as made:
            made.change_link("lo", alias=APPLIED, up=True)
        return True

    def undo(self, machine: Machine) -> None:
        if self._is_ours():
            with contextlib.suppress(Missing):
                self.kernel.remove_namespace(self.path)

    def _is_ours(self) -> bool:
        try:
            with contextlib.closing(self.kernel.open(self.path)) as there:
                lo = there.link("lo")
        except NamespaceProblem:
            return False
        return lo is not None and lo.alias == APPLIED

    def mismatch(self, machine: Machine) -> str | None:
        return None if self.kernel.identify(self.path).known else f"there is no namespace {self.name}"

    def commands(self, namespace: str) -> tuple[str, ...]:
        return (f"ip netns add {self.name}", f"ip -n {self.name} link set lo alias {APPLIED} up")

    def removal(self, namespace: str) -> tuple[str, ...]:
        return (f"ip netns delete {self.name}",) if self._is_ours() else ()


@dataclass(frozen=True, slots=True)
class Within(Declared):
    """An operation in a namespace, which is opened for it."""

    name: str
    path: str
    made: Operation
    kernel: Kernel = field(compare=False, repr=False)

    @property
    def about(self) -> str:
        return self.name

    def _do(self, machine: Machine, work: Callable[[Machine], bool | str | None]) -> bool | str | None:
        with contextlib.closing(self.kernel.open(self.path)) as container:
            return work(replace(machine, container=container))

    def apply(self, machine: Machine) -> bool:
        return bool(self._do(machine, self.made.apply))

    def undo(self, machine: Machine) -> None:
        with contextlib.suppress(NamespaceProblem):
            self._do(machine, self.made.undo)

    def mismatch(self, machine: Machine) -> str | None:
        try:
            found = self._do(machine, self.made.mismatch)
        except NamespaceProblem:
            return f"there is no namespace {self.path}"
        return str(found) if found else None

    def commands(self, namespace: str) -> tuple[str, ...]:
        return self.made.commands(self.path)


@dataclass(frozen=True, slots=True)
class SourceNat(Operation):
    """Packets leave by these links of a router with its own address. ``before``: the links that it was so
    for. *Equivalent to:* ``nft add rule inet weft_router nat_postrouting oifname LINK masquerade``.
    """

    links: tuple[str, ...]
    before: tuple[str, ...] = ()

    def apply(self, machine: Machine) -> bool:
        assert machine.container is not None
        machine.container.change_nftables(_nat(self.links))
        return True

    def undo(self, machine: Machine) -> None:
        if machine.container is not None:
            machine.container.change_nftables(_nat(self.before))

    def mismatch(self, machine: Machine) -> str | None:
        assert machine.container is not None
        there = masqueraded(machine.container)
        if there == self.links:
            return None
        return f"source NAT is of {', '.join(there) or 'no link'} instead of {', '.join(self.links) or 'none'}"

    def commands(self, namespace: str) -> tuple[str, ...]:
        prefix = nsenter(Side.CONTAINER, namespace)
        return tuple(f"{prefix}nft '{line}'" for line in _nat(self.links).splitlines())


def masqueraded(namespace: Namespace) -> tuple[str, ...]:
    """The links by which a router does source NAT."""
    return tuple(_MASQUERADED.findall(namespace.nftables_listing(f"chain {TABLE} {_CHAIN}")))


def _nat(links: tuple[str, ...]) -> str:
    rules = [f'add rule {TABLE} {_CHAIN} oifname "{link}" masquerade' for link in links]
    chain = [f"add chain {TABLE} {_CHAIN} {{ type nat hook postrouting priority 100; }}", *rules] if links else []
    table = [f"add table {TABLE}", *chain] if links else []
    return "\n".join([f"add table {TABLE}", f"delete table {TABLE}", *table]) + "\n"


@dataclass(frozen=True, slots=True)
class Registered(Declared):
    """A service, registered with this host's agent. ``before`` is the declaration that it had.

    *Equivalent to:* ``weft services register FILE``.
    """

    name: str
    definition: dict[str, object] = field(hash=False)
    digest: str
    client: ApiClient = field(compare=False, repr=False)
    before: dict[str, object] | None = field(default=None, hash=False)

    @property
    def about(self) -> str:
        return f"service {self.name}"

    def apply(self, machine: Machine) -> bool:
        self._register(self.definition, self.digest)
        return True

    def _register(self, definition: dict[str, object], digest: str) -> None:
        meta = definition.get("meta")
        body = {**definition, "meta": {**(meta if isinstance(meta, dict) else {}), DIGEST_KEY: digest}}
        try:
            self.client.put("/v1/agent/service/register", body, (("replace-existing-checks", "true"),))
        except ApiError as error:
            raise WeftError(f"{self.about}: the agent refuses it: {error.message}") from error

    def undo(self, machine: Machine) -> None:
        if self.before is not None:
            self._register(self.before, "")
            return
        try:
            self.client.put(api_path("agent", "service", "deregister", str(self.definition["id"])))
        except ApiError as error:
            if error.status != 404:
                raise

    def mismatch(self, machine: Machine) -> str | None:
        try:
            there = self.client.get(api_path("agent", "service", str(self.definition["id"]))).json
        except ApiError:
            return f"no service {self.definition['id']} is registered"
        except WeftError:
            return "the agent does not run"
        meta = there.get("Meta") if isinstance(there, dict) else None
        if not isinstance(meta, dict) or meta.get(DIGEST_KEY) != self.digest:
            return f"the service {self.definition['id']} is registered otherwise"
        return None

    def commands(self, namespace: str) -> tuple[str, ...]:
        words = [f"-id={self.definition['id']}", f"-name={self.definition['name']}"]
        words += [f"-{key}={self.definition[key]}" for key in ("address", "port") if key in self.definition]
        return (f"weft services register {' '.join(words)}",)

    def removal(self, namespace: str) -> tuple[str, ...]:
        return (f"weft services deregister -id={self.definition['id']}",)
