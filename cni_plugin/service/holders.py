"""Who holds a lease, as far as this host shows it now: a lease is freed only where nothing does.

A DEL ends a lease. Where none comes (the node restarted without a boot of its kernel and /run is new, a
runtime lost its state or does not call DEL) the lease file outlives its container. Nobody holds it if

- it is older than ``GRACE``,
- no attachment has a record of it, and no link of the host has the attachment's mark,
- no network namespace has the address on an interface of the owner's name,
- the result that libcni cached for the runtime is missing, or names only namespaces that are gone,
- and, without such a result, no neighbour of the host has the address: it may be a virtual machine's.

Read-only; ``gc`` frees.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import time
from collections.abc import Iterable, Iterator, Set
from dataclasses import dataclass
from functools import cache, cached_property
from ipaddress import ip_interface

from cni_plugin.ops.operation import Operation
from cni_plugin.plan import modules
from cni_plugin.service.context import ServiceContext
from cni_plugin.service.records import Record
from cni_plugin.wire.plugins import OWN_NAME
from ipam.directory import LeaseFile
from ipam.values import Owner
from weft import files, identity
from weft.errors import WeftError
from weft.kernel.values import Link
from weft.types import Address, Attachment

GRACE = 60.0
"""Seconds for which every lease is held: the ADD that took it, of weft or of host-local, may still run."""

_MOST_BYTES = 1 << 20
RESULTS = "/var/lib/cni/results"
"""Where libcni, and so every runtime that uses it, keeps the result of each ADD until DEL has succeeded.
Source: libcni's ``api.go``, CacheDir.
"""


class Holders:
    """What is known at one moment; each part is read when it is first needed.

    ``besides`` is an attachment whose record does not count: that of the ADD that asks.
    """

    def __init__(self, context: ServiceContext, besides: Attachment | None = None) -> None:
        self._context = context
        self._besides = besides

    def holder(self, network: str, lease: LeaseFile) -> str:
        """What holds the lease, "" if nothing does. A file without a valid owner is left to IPAM."""
        owner = lease.owner
        if owner is None:
            return "a file without an owner"
        if time.time() - lease.modified < GRACE:
            return "a recent ADD"
        if (network, owner.container, owner.interface) in self._recorded or (
            not owner.interface and (network, owner.container) in self._recorded_containers
        ):
            return "attachment"
        if not self._marks.isdisjoint(_digests(network, owner)):
            return "a link with its mark"
        if place := self.place(lease.address, owner):
            return f"namespace {place}"
        paths = _cached_namespaces(network, owner)
        if paths is None:
            mac = self._neighbours.get(lease.address)
            return f"neighbour {mac}" if mac else ""
        if not paths:
            return "a cached result of the runtime"
        return next((f"namespace {path}" for path in paths if self.is_container(path)), "")

    def lives(self, record: Record) -> bool:
        """Whether the attachment's namespace exists: at its path, or elsewhere with an address of the
        container's attachments, as a pod's does when its runtime was killed and /run is new. One that had
        no namespace lives.
        """
        return not self._context.is_gone(record.namespace) or any(
            self.place(ip.address.ip, Owner(one.attachment.container, one.attachment.interface))
            for one in self._of_container.get(record.attachment.container, ())
            if one.namespace.same(record.namespace)
            for ip in one.result.ips
            if not ip.address.is_loopback
        )

    def place(self, address: Address, owner: Owner) -> str:
        """The namespace that has the address on an interface of the owner's name, "" if none has."""
        found = self._addresses.get(address, {})
        return next((path for name, path in found.items() if owner.interface in ("", name)), "")

    def is_container(self, path: str) -> bool:
        """Whether a path is a network namespace, and not the host's."""
        found = self._context.kernel.identify(path)
        return found.known and not found.same(self._context.kernel.host.id)

    @cached_property
    def _records(self) -> list[Record]:
        return [record for record in self._context.records.all() if record.attachment != self._besides]

    @cached_property
    def _recorded(self) -> set[tuple[str, str, str]]:
        attachments = (record.attachment for record in self._records)
        return {(one.network, one.container, one.interface) for one in attachments}

    @cached_property
    def _recorded_containers(self) -> set[tuple[str, str]]:
        return {(network, container) for network, container, _ in self._recorded}

    @cached_property
    def _of_container(self) -> dict[str, list[Record]]:
        found: dict[str, list[Record]] = {}
        for record in self._records:
            found.setdefault(record.attachment.container, []).append(record)
        return found

    @cached_property
    def _marks(self) -> set[str]:
        return {identity.mark_digest(link.alias) for link in self._context.kernel.host.links()} - {""}

    @cached_property
    def _neighbours(self) -> dict[Address, str]:
        return {one.address: one.mac for one in self._context.kernel.host.neighbours() if one.mac}

    @cached_property
    def _addresses(self) -> dict[Address, dict[str, str]]:
        """The addresses in all other namespaces: the names of their interfaces, with a namespace each."""
        found: dict[Address, dict[str, str]] = {}
        for path in self._context.kernel.others():
            for name, address in self._of_namespace(path):
                found.setdefault(address, {}).setdefault(name, path)
        return found

    def _of_namespace(self, path: str) -> Iterator[tuple[str, Address]]:
        with contextlib.suppress(WeftError):  # it may end meanwhile
            namespace = self._context.kernel.open(path)
            try:
                yield from ((name, cidr.ip) for name, cidr in namespace.all_addresses())
            finally:
                namespace.close()


@dataclass(frozen=True, slots=True)
class LostAttachment:
    """An attachment of a running container whose record is lost: the digest in its link's mark, and its name as far
    as the link's alias has it; ``attachment`` is None where that is cut. ``master`` is the link's bridge.
    """

    digest: str
    name: str
    attachment: Attachment | None
    master: str

    def is_ended(self, network: str, valid: Set[tuple[str, str]]) -> bool:
        """Whether it is of that network and none of the valid containers with their interfaces."""
        one = self.attachment
        return one is not None and one.network == network and (one.container, one.interface) not in valid

    def may_need(self, network: str, shared: Iterable[Operation]) -> bool:
        """Whether it may be of that network, or on a bridge that the network's shared operations are about."""
        if self.attachment is None or self.attachment.network == network:
            return True
        links = {name for one in shared for name in (getattr(one, "link", ""), *(link for _, link in one.creates))}
        return self.master in links - {""}


def lost_attachments(context: ServiceContext, links: Iterable[Link] | None = None) -> list[LostAttachment]:
    """The attachments without a record whose veth pair leads to another namespace: the kernel deletes the pair with
    that namespace, so that it lives. ``links`` are all of the host, where they have been listed.
    """
    links = context.kernel.host.links() if links is None else links
    recorded = context.records.digests()  # after the links, whose records are written before they are made
    found = []
    for link in links:
        digest = identity.mark_digest(link.alias) if link.kind == "veth" and link.elsewhere else ""
        if digest and digest not in recorded:
            found.append(
                LostAttachment(digest, link.alias.removeprefix(f"weft:{digest}:"), named_in(link.alias), link.master)
            )
    return found


_ALIAS = re.compile(r"weft:([0-9a-f]{16}):([^/ ]+)/([^/ ]+) on ([^/ ]+)")


def named_in(alias: str) -> Attachment | None:
    """The attachment that a link's alias names; None for another one, and where it is cut (``identity.alias``)."""
    found = _ALIAS.fullmatch(alias)
    if found is None:
        return None
    digest, container, interface, network = found.groups()
    every = (Attachment(network, container, interface, plugin) for plugin in plugins())
    return next((one for one in every if identity.attachment_digest(one) == digest), None)


@cache
def plugins() -> tuple[str, ...]:
    """Every name that weft may have been called by."""
    return tuple(dict.fromkeys((OWN_NAME, *modules.drivers(), *modules.plugins())))


def cached_attachments(context: ServiceContext) -> dict[str, str]:
    """The attachments whose namespaces live by libcni's cached results, for each of their marks' digests.

    Their records may be lost, with /run; then these results tell a running container's links and
    elements from those of an ADD that was killed, which has none.
    """
    found: dict[str, str] = {}
    holders = Holders(context)
    with contextlib.suppress(OSError):
        for name in os.listdir(RESULTS):
            document = _document(os.path.join(RESULTS, name))
            network, container, interface = (str(document.get(key)) for key in ("networkName", "containerId", "ifName"))
            places = (holders.place(address, Owner(container, interface)) for address in _addresses(document))
            if any(map(holders.is_container, _sandboxes(document))) or any(places):
                for plugin in plugins():
                    attachment = Attachment(network, container, interface, plugin)
                    found[identity.attachment_digest(attachment)] = str(attachment)
    return found


def _digests(network: str, owner: Owner) -> set[str]:
    """The digests in the marks that links of the owner have: of the plugins that make links."""
    names = (OWN_NAME, *modules.drivers())
    return {identity.attachment_digest(Attachment(network, owner.container, owner.interface, name)) for name in names}


def _cached_namespaces(network: str, owner: Owner) -> tuple[str, ...] | None:
    """The namespaces that libcni's cached result of the attachment names; None without such a result, ()
    for one that cannot be read: whatever it is, a runtime knows the attachment.
    """
    path = os.path.join(RESULTS, f"{network}-{owner.container}-{owner.interface}")
    return _sandboxes(_document(path)) if os.path.lexists(path) else None


def _document(path: str) -> dict[str, object]:
    """A cached result; {} if it cannot be read."""
    try:
        found = json.loads(files.read(path, _MOST_BYTES))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _sandboxes(document: dict[str, object]) -> tuple[str, ...]:
    """The namespaces that a cached result names."""
    return tuple(sorted({str(one["sandbox"]) for one in _members(document, "interfaces") if one.get("sandbox")}))


def _addresses(document: dict[str, object]) -> Iterator[Address]:
    """The addresses in a cached result, without those of loopback."""
    for one in _members(document, "ips"):
        with contextlib.suppress(ValueError):
            address = ip_interface(str(one.get("address"))).ip
            if not address.is_loopback:
                yield address


def _members(document: dict[str, object], key: str) -> list[dict[str, object]]:
    result = document.get("result", document)
    found = result.get(key) if isinstance(result, dict) else None
    return [one for one in found if isinstance(one, dict)] if isinstance(found, list) else []
