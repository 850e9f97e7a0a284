"""What one kind of client may see: the containers of its networks by their names, and whether others are asked.

Names are those that Docker and podman give: a container's name, its aliases and its short id, alone (``web``), before
the network's search domain (``web.dns.podman``) and before the network's name (``web.blue``). A name of one label is
never asked elsewhere, nor what only a search domain made of a container's name.
Sources: the embedded servers of Docker (libnetwork) and podman (aardvark-dns); RFC 6761 (localhost).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_network

from discovery.dns import codec
from discovery.dns.answers import Prepared, Unit, ready
from discovery.dns.codec import AAAA, ANY, NOERROR, NXDOMAIN, PTR, QUESTION, REFUSED, A, of_kind, read_address
from discovery.dns.network_zones import NetworkNames
from discovery.dns.settings import Settings
from discovery.dns.zone import KEPT_TYPES

Address = IPv4Address | IPv6Address
Subnet = IPv4Network | IPv6Network
MOST_KEPT = 20_000
_NOBODY = ready(NXDOMAIN)
_NOTHING = ready(NOERROR)
_LOOPBACK = {A: read_address("127.0.0.1"), AAAA: read_address("::1")}
_NEVER = (b"invalid", b"onion")


class View:
    """The names that clients of these networks know; none for the host's own clients, who know services alone.

    ``upstreams``: who is asked about other names; None for nobody, and empty for the servers of the host's resolv.conf.
    ``local`` gives the subnets of all networks of this host, whose addresses are nobody else's business, and ``search``
    the search domains that containers have from the host.
    """

    def __init__(
        self,
        networks: Sequence[NetworkNames],
        settings: Settings,
        upstreams: tuple[str, ...] | None = None,
        local: Callable[[], Sequence[Subnet]] = tuple,
        search: Callable[[], Collection[str]] = tuple,
    ) -> None:
        self.kept: dict[bytes, Prepared] = {}
        """Answers by question: the name in lower case, type and class."""
        self.networks = tuple(networks)
        self.upstreams = upstreams
        self.recursion = codec.RA if upstreams is not None else 0
        # A stub resolver waits for long after REFUSED; a container on an internal network need not.
        self.refusal = NXDOMAIN if networks else REFUSED
        self._local = local
        self._search = search
        self._ttl = settings.network_ttl

    def answer(self, name: bytes, kind: int) -> Prepared | None:
        """The answer about a name (lower case, as on the wire); None if it is others' to answer."""
        parts = codec.labels(name)
        address = reversed_address(parts)
        if address is not None:
            return self._pointer(address, kind)
        if not self.networks or not parts:
            return None
        found, known = self._addresses(b".".join(parts).decode("utf-8", "surrogateescape"))
        if found:
            answer = self._of(found, kind)
            if kind in KEPT_TYPES:
                if len(self.kept) >= MOST_KEPT:
                    self.kept.clear()
                self.kept[name + kind.to_bytes(2, "big") + b"\0\1"] = answer
            return answer
        if parts[-1] == b"localhost":
            own = _LOOPBACK.get(kind)
            return ready(units=[Unit(codec.address_record(QUESTION, own, 0))]) if own else _NOTHING
        if known is not None:
            return known
        return _NOBODY if len(parts) == 1 or parts[-1] in _NEVER else None

    def _addresses(self, name: str) -> tuple[list[str], Prepared | None]:
        """The addresses that a name has on the networks; and if none has it, what is to be said of it nevertheless."""
        found: list[str] = []
        known: Prepared | None = None
        search = self._search()
        for each in self.networks:
            found += each.records.get(name, ())
            first = name
            while (at := first.rfind(".")) >= 0:
                first, rest = name[:at], name[at + 1 :]
                if rest == each.network.lower() or rest in each.domains:
                    found += each.records.get(first, ())
                if rest in each.domains or ((rest in search or rest in each.search) and first in each.records):
                    known = _NOBODY
            if name in each.domains:
                known = _NOTHING
        return found, known

    def _of(self, addresses: list[str], kind: int) -> Prepared:
        chosen = of_kind(map(read_address, addresses), kind)
        return ready(units=[Unit(codec.address_record(QUESTION, each, self._ttl)) for each in chosen])

    def _pointer(self, address: Address, kind: int) -> Prepared | None:
        """The name that an address has on the networks."""
        for each in self.networks:
            name = each.reverse.get(str(address))
            if name is None:
                continue
            if kind not in (PTR, ANY):
                return _NOTHING
            full = f"{name}.{each.domains[0] if each.domains else each.network}"
            try:
                target = codec.encode_name(full)
            except codec.BadName:
                return _NOTHING
            return ready(units=[Unit(codec.record(QUESTION, PTR, self._ttl, target))])
        if any(address.version == each.version and address in each for each in self._local()):
            return _NOBODY
        return None


def subnets(texts: Sequence[str]) -> tuple[Subnet, ...]:
    """CIDR texts as networks; what is none is left out."""
    found: list[Subnet] = []
    for text in texts:
        try:
            found.append(ip_network(text, strict=False))
        except ValueError:
            continue
    return tuple(found)


def reversed_address(parts: Sequence[bytes]) -> Address | None:
    """The address that the labels of a name in ``in-addr.arpa`` or ``ip6.arpa`` are; None if they are no whole one."""
    if len(parts) < 6 or parts[-1] != b"arpa":
        return None
    texts = [part.decode("ascii", "replace") for part in parts[-3::-1]]
    try:
        if parts[-2] == b"in-addr":
            return IPv4Address(".".join(texts))
        if parts[-2] == b"ip6" and len(texts) == 32 and all(len(each) == 1 for each in texts):
            return IPv6Address(bytes.fromhex("".join(texts)))
    except ValueError:
        pass
    return None
