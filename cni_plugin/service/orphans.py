"""Finds what interrupted calls left behind, by weft's marks and records. Read-only; ``gc`` removes it.

The kernel is listed before the records, since a call writes its record before it changes the kernel.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterable, Iterator, Set
from dataclasses import dataclass

from cni_plugin.ops import Elements
from cni_plugin.ops.operation import Operation
from cni_plugin.service.context import ServiceContext
from cni_plugin.service.holders import Holders, cached_attachments, lost_attachments, named_in, plugins
from cni_plugin.service.records import Phase, Record
from cni_plugin.service.removal import is_kept
from weft import identity
from weft.errors import KernelLacks, Missing
from weft.kernel.values import Element, Link
from weft.types import Attachment


@dataclass(frozen=True, slots=True)
class Orphans:
    """What has weft's mark and belongs to no attachment or network: names of links, elements, paths of
    files, marks of rules in other firewalls' chains.

    ``unrecorded`` are attachments that such links or elements belong to and that are none: their
    records are lost, but their containers run.
    """

    links: tuple[str, ...]
    elements: tuple[Element, ...]
    files: tuple[str, ...]
    rules: tuple[str, ...] = ()
    unrecorded: tuple[str, ...] = ()


NO_ORPHANS = Orphans((), (), ())


def orphans(context: ServiceContext, ended: str = "", valid: Set[tuple[str, str]] = frozenset()) -> Orphans:
    """What has weft's mark and no record; not a link that is the master of another, which is a
    network's.

    Of the network ``ended`` the runtime has said which containers and interfaces are ``valid``: no other is
    taken for one whose container runs.
    """
    all_links = context.kernel.host.links()
    masters = {link.master for link in all_links}
    links = [link for link in all_links if identity.mark_digest(link.alias) and link.name not in masters]
    marked = dict(_mark_digests(context))
    rules = sorted({mark for chain in context.kernel.host.firewalls().user_chains for mark in chain.marks})
    known = context.records.digests() | _shared_digests(context)
    unknown = {identity.mark_digest(link.alias) for link in links}.union(*marked.values()) - known
    if unknown:  # the record of a network may be lost: what its attachments have recorded is the network's as well
        shared = {id(record.shared): record.shared for record in context.records.all()}.values()
        known |= {digest for operations in shared for digest in mark_digests(operations)}
        unknown -= known
    running = _running(context, all_links, unknown, ended, valid) if unknown else {}
    unrecorded = tuple(sorted(set(running.values())))
    elements = [
        element
        for name, digests in marked.items()
        if not (unrecorded or digests <= known)
        for element in marked_elements(context, name)
        if identity.mark_digest(element.mark) in unknown
    ]
    if unrecorded:  # the record of their network is lost, too: which elements are the network's is not known
        rules = []
    return Orphans(
        tuple(
            link.name
            for link in links
            if identity.mark_digest(link.alias) in unknown - running.keys() and _is_removable(link, bool(unrecorded))
        ),
        tuple(elements),
        stray_files(context),
        tuple(mark for mark in rules if identity.mark_digest(mark) not in known),
        unrecorded,
    )


def _is_removable(link: Link, anything_lost: bool) -> bool:
    """Whether a link without a record is certainly not in use.

    Where this host is itself a container of another one, its own link has that one's mark. And while records of
    running containers are lost, which links are a network's (the pair of a VLAN's gateway) is not known.
    """
    if link.kind == "veth":
        return not anything_lost or named_in(link.alias) is not None
    return not (link.elsewhere or anything_lost)


def _running(
    context: ServiceContext, links: Iterable[Link], unknown: Set[str], ended: str, valid: Set[tuple[str, str]]
) -> dict[str, str]:
    """The attachments whose records are lost and whose containers run, by those of the digests that are theirs: of
    what libcni has cached, of the pairs that lead to other namespaces, and of other plugins in the same chain.
    """
    found = {digest: name for digest, name in cached_attachments(context).items() if digest in unknown}
    records = (record for record in context.records.all() if record.namespace.known)
    attached = {(one.network, one.container, one.interface) for one in (record.attachment for record in records)}
    attached |= {(ended, *one) for one in valid}
    for lost in lost_attachments(context, links):
        if not lost.is_ended(ended, valid):
            found.setdefault(lost.digest, lost.name)
            if (one := lost.attachment) is not None:
                attached.add((one.network, one.container, one.interface))
    for network, container, interface in attached:
        for plugin in plugins():
            one = Attachment(network, container, interface, plugin)
            if (digest := identity.attachment_digest(one)) in unknown:
                found.setdefault(digest, str(one))
    return found


def stray_files(context: ServiceContext) -> tuple[str, ...]:
    """Files of records that belong to no attachment or network, such as damaged ones, and are not in use."""
    lock = context.records.shared_lock()  # its file is created by every sweep
    return tuple(path for path in context.records.stray_files() if path != lock and not _is_locked(path))


def _is_locked(path: str) -> bool:
    """Whether the lock of a stray file, or the lock file itself, is held. Creates no lock file."""
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        descriptor = os.open(f"{path.rpartition('.')[0]}.lock", flags)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(descriptor)
    return False


def stale_attachments(context: ServiceContext) -> list[Record]:
    """Attachments that are partially set up or removed, or whose namespace no longer exists.

    An IPAM plugin called alone may have no namespace: what holds the address cannot be seen then.
    """
    holders = Holders(context)
    return [
        record for record in context.records.all() if record.phase is not Phase.ATTACHED or not holders.lives(record)
    ]


def unused_networks(context: ServiceContext) -> list[str]:
    """Networks that have a record and no attachment, but those that this host is to have all the same."""
    used = {record.attachment.network for record in context.records.all()}
    unused = [one for one in context.records.networks() if one.network not in used and not is_kept(one.shared)]
    lost = lost_attachments(context) if unused else []
    return [record.network for record in unused if not any(one.may_need(record.network, record.shared) for one in lost)]


def marked_elements(context: ServiceContext, *names: str) -> Iterator[Element]:
    """Every marked element of weft's table, or of some of its sets; none on a kernel without nftables."""
    rules = context.kernel.rules
    for collection in names or collections(context):
        with contextlib.suppress(Missing):  # another GC has removed the table meanwhile
            yield from (each for each in rules.elements(collection) if identity.mark_digest(each.mark))


def _mark_digests(context: ServiceContext) -> Iterator[tuple[str, frozenset[str]]]:
    """Weft's sets, and the digests of the marks in each."""
    for collection in collections(context):
        with contextlib.suppress(Missing):
            yield collection, context.kernel.rules.mark_digests(collection)


def collections(context: ServiceContext) -> tuple[str, ...]:
    """The names of weft's sets and maps; none on a kernel without nftables."""
    try:
        return context.kernel.rules.collections()
    except KernelLacks:
        return ()


def element_text(element: Element) -> str:
    """An element as messages name it: the set and the first part of its key."""
    return f"{element.collection} {element.key[0]}"


def _shared_digests(context: ServiceContext) -> set[str]:
    """The mark digests of what belongs to networks: their elements, and the links of their VLAN
    gateways.
    """
    return {digest for record in context.records.networks() for digest in mark_digests(record.shared)}


def mark_digests(operations: Iterable[Operation]) -> set[str]:
    """The digests of the marks of what operations make, elements and links; "" for a link without."""
    found = set()
    for operation in operations:
        if isinstance(operation, Elements):
            found |= {identity.mark_digest(element.mark) for element in operation.elements}
        found |= {identity.mark_digest(getattr(operation, key, "")) for key in ("alias", "mark")}
    return found
