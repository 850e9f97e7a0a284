"""What a client may see: the containers on its networks, and whether its queries are forwarded.

Names are those of Docker and podman: container name, aliases and short id, bare (``web``), under
the network's search domain (``web.dns.podman``) and under the network's name (``web.blue``).
Single-label names are never forwarded, nor container names under a search domain.

Sources: the embedded servers of Docker (libnetwork) and podman (aardvark-dns); RFC 6761
(localhost).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_network

from discovery.dns import codec
from discovery.dns.answers import AnswerRecord, PreparedAnswer, prepare
from discovery.dns.codec import ANY, EDNS_UDP_SIZE, NOERROR, NXDOMAIN, QUESTION_NAME, REFUSED, encode_record
from discovery.dns.naming import unicode_label
from discovery.dns.network_zones import NetworkZone
from discovery.dns.rrtypes import AAAA, PTR, A, address_record, addresses_of_type, is_cacheable, pack_address
from discovery.dns.settings import DnsSettings

Address = IPv4Address | IPv6Address
Subnet = IPv4Network | IPv6Network
MAX_CACHED = 20_000
_NXDOMAIN = prepare(NXDOMAIN)
_NODATA = prepare(NOERROR)
_LOOPBACK = {A: pack_address("127.0.0.1"), AAAA: pack_address("::1")}
_SPECIAL_TLDS = (b"invalid", b"onion")


class View:
    """The names visible to clients of these networks; none for clients of the host's listeners.

    ``upstreams`` are the servers to forward to: None for none, () for those of the host's
    resolv.conf. ``local`` returns the subnets of all networks of this host, whose reverse names are
    not forwarded, ``search`` the search domains that containers inherit from the host.
    ``udp_size`` is the largest UDP reply in bytes.
    """

    def __init__(
        self,
        networks: Sequence[NetworkZone],
        settings: DnsSettings,
        upstreams: tuple[str, ...] | None = None,
        local: Callable[[], Sequence[Subnet]] = tuple,
        search: Callable[[], Collection[str]] = tuple,
        udp_size: int = EDNS_UDP_SIZE,
    ) -> None:
        self.cache: dict[bytes, PreparedAnswer] = {}
        """Answers by question: the name in lower case, type and class."""
        self.networks = tuple(networks)
        self.upstreams = upstreams
        self.udp_size = udp_size
        self.recursion = codec.RA if upstreams is not None else 0
        # Stub resolvers retry after REFUSED; NXDOMAIN fails fast on internal networks.
        self.refusal = NXDOMAIN if networks else REFUSED
        self._local = local
        self._search = search
        self._ttl = settings.network_ttl

    def answer(self, name: bytes, rrtype: int) -> PreparedAnswer | None:
        """The answer for a name (wire format, lower case); None to forward."""
        parts = codec.labels(name)
        address = parse_reverse_name(parts)
        if address is not None:
            return self._pointer(address, rrtype)
        if not self.networks or not parts:
            return None
        found, known = self._lookup(b".".join(map(unicode_label, parts)).decode("utf-8", "surrogateescape"))
        if found:
            answer = self._address_answer(found, rrtype)
            if is_cacheable(rrtype):
                if len(self.cache) >= MAX_CACHED:
                    self.cache.clear()
                self.cache[name + rrtype.to_bytes(2, "big") + b"\0\1"] = answer
            return answer
        if parts[-1] == b"localhost":
            own = _LOOPBACK.get(rrtype)
            return prepare(records=[AnswerRecord(address_record(QUESTION_NAME, own, 0))]) if own else _NODATA
        if known is not None:
            return known
        return _NXDOMAIN if len(parts) == 1 or parts[-1] in _SPECIAL_TLDS else None

    def _lookup(self, name: str) -> tuple[list[str], PreparedAnswer | None]:
        """The addresses of a name on the networks; without any, a negative answer if the name is
        local.
        """
        found: list[str] = []
        known: PreparedAnswer | None = None
        search = self._search()
        for each in self.networks:
            found += each.records.get(name, ())
            first = name
            while (at := first.rfind(".")) >= 0:
                first, rest = name[:at], name[at + 1 :]
                if rest == each.network.lower() or rest in each.domains:
                    found += each.records.get(first, ())
                if rest in each.domains or ((rest in search or rest in each.search) and first in each.records):
                    known = _NXDOMAIN
            if name in each.domains:
                known = _NODATA
        return found, known

    def _address_answer(self, addresses: list[str], rrtype: int) -> PreparedAnswer:
        chosen = addresses_of_type(map(pack_address, addresses), rrtype)
        return prepare(records=[AnswerRecord(address_record(QUESTION_NAME, each, self._ttl)) for each in chosen])

    def _pointer(self, address: Address, rrtype: int) -> PreparedAnswer | None:
        """The PTR record of an address on the networks."""
        for each in self.networks:
            name = each.reverse.get(str(address))
            if name is None:
                continue
            if rrtype not in (PTR, ANY):
                return _NODATA
            full = f"{name}.{each.domains[0] if each.domains else each.network}"
            try:
                target = codec.encode_name(full)
            except codec.BadName:
                return _NODATA
            return prepare(records=[AnswerRecord(encode_record(QUESTION_NAME, PTR, self._ttl, target))])
        if any(address.version == each.version and address in each for each in self._local()):
            return _NXDOMAIN
        return None


def parse_subnets(texts: Sequence[str]) -> tuple[Subnet, ...]:
    """Parse CIDRs; invalid ones are left out."""
    found: list[Subnet] = []
    for text in texts:
        try:
            found.append(ip_network(text, strict=False))
        except ValueError:
            continue
    return tuple(found)


def parse_reverse_name(parts: Sequence[bytes]) -> Address | None:
    """The address of a name in ``in-addr.arpa`` or ``ip6.arpa``; None if it is no complete one."""
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
