"""The owner of a lease, and what IPAM needs to know of the host."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

_CONTAINER = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.\-]*")
_INTERFACE = re.compile(r"[^\x00-\x20\x7f-\x9f/]+")


@dataclass(frozen=True, slots=True)
class Owner:
    """The owner of a lease: one interface of one container.

    ``interface`` is empty for leases of host-local before 0.8, which wrote only the container id.
    """

    container: str
    interface: str

    def __str__(self) -> str:
        return f"{self.container}/{self.interface}" if self.interface else self.container


@dataclass(frozen=True, slots=True)
class HostState:
    """The host as IPAM sees it.

    ``index`` is a directory on a tmpfs, mode 0700, for the indexes of large lease directories; it
    may be deleted at any time. ``booted`` is the time of the boot in wall-clock seconds (now minus
    uptime). ``alive(network, owner)``: whether weft has a record of that attachment from this boot;
    ``unused(network)``: whether it has none of any attachment to the network, False if that is not known.
    """

    index: str
    booted: float
    alive: Callable[[str, Owner], bool]
    unused: Callable[[str], bool] = lambda network: False


def owner_text(owner: Owner) -> bytes:
    """The content of a lease file, as host-local writes it."""
    return f"{owner.container}\r\n{owner.interface}".encode()


def parse_owner(content: bytes) -> Owner | None:
    """The owner in a lease file, None if the content is invalid.

    Invalid are an empty file, NULs, control characters, and a container id with a line end but no
    interface: what a crash during a write leaves. A container id alone is from host-local before
    0.8.
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
