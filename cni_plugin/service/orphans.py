"""Finding what calls left behind: by weft's marks and its records, changing nothing. ``upkeep`` takes it away.

The kernel is listed before the records are, since a call writes its record before it makes anything.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from dataclasses import dataclass

from cni_plugin.ops import Elements
from cni_plugin.service.context import ServiceContext
from cni_plugin.service.records import Phase, Record
from weft import identity
from weft.errors import Missing
from weft.kernel.interface import Element


@dataclass(frozen=True, slots=True)
class Orphans:
    """What bears weft's mark and belongs to no attachment or network: names of links, elements, paths of files."""

    links: tuple[str, ...]
    elements: tuple[Element, ...]
    files: tuple[str, ...]


def orphans(context: ServiceContext) -> Orphans:
    """What bears weft's mark and has no record. A link that is another's master stays: it is a network's."""
    everything = context.kernel.host.links()
    masters = {link.master for link in everything}
    links = [link for link in everything if identity.mark_digest(link.alias) and link.name not in masters]
    elements = list(marked_elements(context))
    known = context.records.digests() | _shared_digests(context)
    lock = context.records.shared_lock()  # whoever sweeps takes it, so it is there as a rule
    return Orphans(
        tuple(link.name for link in links if identity.mark_digest(link.alias) not in known),
        tuple(element for element in elements if identity.mark_digest(element.mark) not in known),
        tuple(path for path in context.records.litter() if path != lock and not _held(path)),
    )


def _held(path: str) -> bool:
    """Whether somebody holds the lock that a stray file is, or is written under. Makes no lock file."""
    try:
        descriptor = os.open(f"{path.rpartition('.')[0]}.lock", os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(descriptor)
    return False


def dead(context: ServiceContext) -> list[Record]:
    """Attachments that nobody has any more: half made, half removed, or their namespace is gone."""
    return [
        record
        for record in context.records.all()
        if record.phase is not Phase.ATTACHED or not context.lives(record.namespace)
    ]


def idle(context: ServiceContext) -> list[str]:
    """Networks of which something exists and which nothing is attached to."""
    used = {record.attachment.network for record in context.records.all()}
    return [record.network for record in context.records.networks() if record.network not in used]


def marked_elements(context: ServiceContext) -> Iterator[Element]:
    """Every marked element of weft's table."""
    rules = context.kernel.rules
    for collection in rules.collections():
        with contextlib.suppress(Missing):  # since it was listed another GC has removed the rules of the last network
            yield from (one for one in rules.elements(collection) if identity.mark_digest(one.mark))


def element_text(element: Element) -> str:
    """A rule's element as messages name it: the set and the first part of its key."""
    return f"{element.collection} {element.key[0]}"


def _shared_digests(context: ServiceContext) -> set[str]:
    """The marks of what belongs to networks: their elements, and their VLAN gateways' links."""
    found = set()
    for record in context.records.networks():
        for operation in record.shared:
            if isinstance(operation, Elements):
                found |= {identity.mark_digest(element.mark) for element in operation.elements}
            found.add(identity.mark_digest(getattr(operation, "alias", "")))
    return found
