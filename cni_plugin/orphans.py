"""Finding what calls left behind: by weft's marks and its records, changing nothing. ``upkeep`` takes it away.

The kernel is listed before the records are, since a call writes its record before it makes anything.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from dataclasses import dataclass

from cni_plugin import names
from cni_plugin.errors import Missing
from cni_plugin.kernel import Element
from cni_plugin.ops import Elements
from cni_plugin.records import Phase, Record
from cni_plugin.service import Service


@dataclass(frozen=True, slots=True)
class Orphans:
    """What bears weft's mark and belongs to no attachment or network: names of links, elements, paths of files."""

    links: tuple[str, ...]
    elements: tuple[Element, ...]
    files: tuple[str, ...]


def orphans(service: Service) -> Orphans:
    """What bears weft's mark and has no record. A link that is another's master stays: it is a network's."""
    everything = service.kernel.host.links()
    masters = {link.master for link in everything}
    links = [link for link in everything if names.mark_digest(link.alias) and link.name not in masters]
    elements = list(marked_elements(service))
    known = service.records.digests() | _shared_digests(service)
    lock = service.records.shared_lock()  # whoever sweeps takes it, so it is there as a rule
    return Orphans(
        tuple(link.name for link in links if names.mark_digest(link.alias) not in known),
        tuple(element for element in elements if names.mark_digest(element.mark) not in known),
        tuple(path for path in service.records.litter() if path != lock and not _held(path)),
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


def dead(service: Service) -> list[Record]:
    """Attachments that nobody has any more: half made, half removed, or their namespace is gone."""
    return [
        record
        for record in service.records.all()
        if record.phase is not Phase.ATTACHED or not service.lives(record.namespace)
    ]


def idle(service: Service) -> list[str]:
    """Networks of which something exists and which nothing is attached to."""
    used = {record.attachment.network for record in service.records.all()}
    return [record.network for record in service.records.networks() if record.network not in used]


def marked_elements(service: Service) -> Iterator[Element]:
    """Every marked element of weft's table."""
    rules = service.kernel.rules
    for collection in rules.collections():
        with contextlib.suppress(Missing):  # since it was listed another GC has removed the rules of the last network
            yield from (one for one in rules.elements(collection) if names.mark_digest(one.mark))


def _shared_digests(service: Service) -> set[str]:
    """The marks of what belongs to networks: their elements, and their VLAN gateways' links."""
    found = set()
    for record in service.records.networks():
        for operation in record.shared:
            if isinstance(operation, Elements):
                found |= {names.mark_digest(element.mark) for element in operation.elements}
            found.add(names.mark_digest(getattr(operation, "alias", "")))
    return found
