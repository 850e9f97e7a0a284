"""The sysctls of a link that the kernel lists with it: ``net/ipv4/conf/LINK``, ``net/ipv6/conf/LINK``.

To open a file below /proc/sys in a namespace that this process has not looked into takes the kernel
0.2 ms, a list of its links with all these numbers 0.02 ms. Left out are those whose unit differs from the
file's. Source: ``linux/ip.h`` (IPV4_DEVCONF_*), ``linux/ipv6.h`` (DEVCONF_*), inet_fill_link_af in
``net/ipv4/devinet.c``, inet6_fill_ifla6_attrs in ``net/ipv6/addrconf.c``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from struct import Struct

from weft.kernel.netlink.attributes import parse
from weft.kernel.netlink.constants import AF_INET, AF_INET6, IFLA_INET6_CONF, IFLA_INET_CONF

_NUMBER = Struct("=i")
_FAMILIES = {"ipv4": (AF_INET, IFLA_INET_CONF), "ipv6": (AF_INET6, IFLA_INET6_CONF)}
_PLACES = {
    **{f"ipv4/{name}": place for place, name in (
        (0, "forwarding"), (2, "proxy_arp"), (3, "accept_redirects"), (5, "send_redirects"), (7, "rp_filter"),
        (8, "accept_source_route"), (17, "arp_announce"), (18, "arp_ignore"), (19, "promote_secondaries"),
        (20, "arp_accept"), (21, "arp_notify"), (22, "accept_local"), (25, "route_localnet"),
    )},
    **{f"ipv6/{name}": place for place, name in (
        (0, "forwarding"), (3, "accept_ra"), (4, "accept_redirects"), (5, "autoconf"), (6, "dad_transmits"),
        (22, "proxy_ndp"), (26, "disable_ipv6"), (27, "accept_dad"),
    )},
}  # fmt: skip
"""Where each is in the array of its family."""


class LinkSettings(Mapping[str, int]):
    """The numbers by family and name (``ipv4/rp_filter``); a family that the link lacks has none."""

    __slots__ = ("_given", "_known")

    def __init__(self, given: bytes) -> None:
        """``given`` is the payload of IFLA_AF_SPEC."""
        self._given = given
        self._known: dict[str, bytes] | None = None

    def _arrays(self) -> dict[str, bytes]:
        if self._known is None:
            families = parse(self._given)
            parts = {name: (families.get(number, b""), kind) for name, (number, kind) in _FAMILIES.items()}
            self._known = {name: parse(part).get(kind, b"") for name, (part, kind) in parts.items()}
        return self._known

    def __getitem__(self, key: str) -> int:
        array, offset = self._arrays()[key[:4]], 4 * _PLACES[key]
        if offset + 4 > len(array):
            raise KeyError(key)
        return int(_NUMBER.unpack_from(array, offset)[0])

    def __iter__(self) -> Iterator[str]:
        return (key for key, place in _PLACES.items() if 4 * place + 4 <= len(self._arrays()[key[:4]]))

    def __len__(self) -> int:
        return sum(1 for _ in self)
