"""What IPAM needs to know of the world: who holds an address, and which boot of the host this is."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

_CONTAINER = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.\-]*")
_INTERFACE = re.compile(r"[^\x00-\x20\x7f-\x9f/]+")


@dataclass(frozen=True, slots=True)
class Owner:
    """Who holds an address: one interface of one container.

    ``interface`` is empty for leases of host-local before 0.8, which wrote the container's id alone.
    """

    container: str
    interface: str

    def __str__(self) -> str:
        return f"{self.container}/{self.interface}" if self.interface else self.container


@dataclass(frozen=True, slots=True)
class HostState:
    """What the caller knows of this host.

    ``index`` is a directory for the index of large pools, on a tmpfs, private to root; it may be wiped at any
    time. ``booted`` is when the host booted, in wall-clock seconds (now, less the first field of
    ``/proc/uptime``). ``alive(network, owner)`` says whether weft has a record, of this boot, of that
    attachment.
    """

    index: str
    booted: float
    alive: Callable[[str, Owner], bool]


def owner_text(owner: Owner) -> bytes:
    """A lease file's content, as host-local writes it."""
    return f"{owner.container}\r\n{owner.interface}".encode()


def parse_owner(content: bytes) -> Owner | None:
    """Whom a lease file names, None where it names nobody.

    Nobody is: an empty file, NULs, control characters, a container id with a line end and no interface (all of
    them what a crash in the middle of a write leaves behind). A bare container id is an old host-local's.
    """
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError:
        return None
    container, end, interface = text.partition("\r\n")
    interface = interface.strip()
    if end:
        whole = _CONTAINER.fullmatch(container) and _INTERFACE.fullmatch(interface)
        return Owner(container, interface) if whole else None
    container = container.strip()
    return Owner(container, "") if _CONTAINER.fullmatch(container) else None
