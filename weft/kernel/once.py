"""A kernel whose links, addresses and sets are listed once each: for a look at every attachment.

To ask for each fact by itself is right for one attachment and costs thousands of requests for all of
them. What it answers is as old as the list: whoever finds a difference asks the kernel itself again.
Nothing is changed through it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import TypeVar, cast

from weft.kernel.firewall_chains import Firewalls
from weft.kernel.interface import Kernel, Namespace, Ruleset
from weft.kernel.values import FdbEntry, Link
from weft.types import Cidr, NamespaceId

_T = TypeVar("_T")


class _Namespace:
    """A namespace; what is not listed here is asked of it each time (``__getattr__``)."""

    def __init__(self, namespace: Namespace) -> None:
        self.id = namespace.id
        self._namespace = namespace
        self._known: dict[tuple[object, ...], object] = {}

    def __getattr__(self, name: str) -> object:
        return getattr(self._namespace, name)

    def _once(self, read: Callable[..., _T], *given: object) -> _T:
        key = (read.__name__, *given)
        if key not in self._known:
            self._known[key] = read(*given)
        return cast(_T, self._known[key])

    @cached_property
    def _links(self) -> dict[str, Link]:
        return {link.name: link for link in self._namespace.links()}

    @cached_property
    def _addresses(self) -> dict[str, list[Cidr]]:
        found: dict[str, list[Cidr]] = {}
        for name, address in self._all_addresses:
            found.setdefault(name, []).append(address)
        return found

    @cached_property
    def _all_addresses(self) -> tuple[tuple[str, Cidr], ...]:
        return self._namespace.all_addresses()

    def all_addresses(self, version: int = 0) -> tuple[tuple[str, Cidr], ...]:
        return tuple(one for one in self._all_addresses if version in (0, one[1].version))

    @cached_property
    def _fdb(self) -> dict[str, list[FdbEntry]]:
        found: dict[str, list[FdbEntry]] = {}
        for name, entry in self._namespace.all_ports_fdb():
            found.setdefault(name, []).append(entry)
        return found

    def links(self) -> tuple[Link, ...]:
        return tuple(self._links.values())

    @cached_property
    def _ports(self) -> dict[str, tuple[Link, ...]]:
        found: dict[str, list[Link]] = {}
        for link in self._links.values():
            found.setdefault(link.master, []).append(link)
        return {master: tuple(ports) for master, ports in found.items()}

    def ports(self, master: str) -> tuple[Link, ...]:
        return self._ports.get(master, ()) if master in self._links else self._namespace.ports(master)

    def link(self, name: str) -> Link | None:
        # One that is not listed may have that alternative name.
        return self._links.get(name) or self._once(self._namespace.link, name)

    def cached_link(self, name: str) -> Link | None:
        return self.link(name)

    def addresses(self, link: str, version: int = 0, *, permanent: bool = False) -> tuple[Cidr, ...]:
        if permanent or link not in self._links:
            return self._namespace.addresses(link, version, permanent=permanent)
        return tuple(one for one in self._addresses.get(link, ()) if version in (0, one.version))

    def fdb(self, link: str) -> tuple[FdbEntry, ...]:
        there = self._links.get(link)
        if there is None or not there.master or there.kind == "vxlan":
            return self._namespace.fdb(link)
        return tuple(self._fdb.get(link, ()))

    def sysctl(self, key: str) -> str | None:
        parts = key.split("/")
        if len(parts) == 5 and parts[2] == "conf" and parts[3] not in ("all", "default"):
            link = self.link(parts[3])
            value = link.sysctls.get(f"{parts[1]}/{parts[4]}") if link is not None else None
            if value is not None:
                return str(value)
        return self._once(self._namespace.sysctl, key)

    def firewalls(self) -> Firewalls:
        return self._once(self._namespace.firewalls)


class _Container(_Namespace):
    """A namespace of which one link is looked at, several times: it is asked for by name, once."""

    def links(self) -> tuple[Link, ...]:
        return self._once(self._namespace.links)

    def ports(self, master: str) -> tuple[Link, ...]:
        return self._namespace.ports(master)

    def link(self, name: str) -> Link | None:
        return self._once(self._namespace.link, name)

    def addresses(self, link: str, version: int = 0, *, permanent: bool = False) -> tuple[Cidr, ...]:
        if permanent:
            return self._namespace.addresses(link, version, permanent=True)
        return self._once(self._namespace.addresses, link, version)

    def fdb(self, link: str) -> tuple[FdbEntry, ...]:
        return self._namespace.fdb(link)


class _Kernel:
    """See ``once``. A namespace that is opened anew is asked anew."""

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel
        self.host = cast(Namespace, _Namespace(kernel.host))

    @cached_property
    def rules(self) -> Ruleset:
        return self._kernel.rules.once()

    def identify(self, path: str) -> NamespaceId:
        return self._kernel.identify(path)

    def open(self, path: str) -> Namespace:
        return cast(Namespace, _Container(self._kernel.open(path)))

    def add_namespace(self, path: str) -> None:
        self._kernel.add_namespace(path)

    def remove_namespace(self, path: str) -> None:
        self._kernel.remove_namespace(path)

    def others(self) -> tuple[str, ...]:
        return self._kernel.others()

    def forked(self) -> None:
        self._kernel.forked()

    def close(self) -> None:
        """Nothing is its own: the kernel that it was made of is closed by itself."""


def once(kernel: Kernel) -> Kernel:
    """The same kernel, its lists read when they are first asked for and kept."""
    return _Kernel(kernel)
