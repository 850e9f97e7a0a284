"""What weft is authoritative for: services, nodes and virtual addresses, under the names that Consul gives them.

    [TAG.]NAME.service[.DC].weft     _NAME._PROTO[.service][.DC].weft     _PORT._PROTO.NAME.service[.DC].weft
    NODE.node[.DC].weft              HEXADDRESS.addr[.DC].weft            NAME.virtual[.DC].weft

Pure but for the clock in an SOA's serial. Answers are kept until the catalog says that they are others.
Sources: the DNS interface of Consul; RFC 2782 (SRV), RFC 8020 (empty names in between), RFC 8482 (ANY).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from ipaddress import IPv4Address, IPv6Address

from discovery import catalog as topics
from discovery.catalog import Catalog, Topic
from discovery.dns import codec
from discovery.dns.answers import AnswerRecord, PreparedAnswer, negative, prepare, soa_authority
from discovery.dns.codec import (
    AAAA,
    ANY,
    CNAME,
    NS,
    PTR,
    QUESTION_NAME,
    SOA,
    SRV,
    TXT,
    A,
    BadName,
    addresses_of_type,
    pack_address,
)
from discovery.dns.service_index import ServiceIndex
from discovery.dns.settings import DnsSettings
from discovery.structs import CONSUL_SERVICE, Health, Instance, Node

CACHEABLE_TYPES = frozenset((A, AAAA, SRV, TXT, SOA, NS, ANY, 65))
"""Answers to these are kept (65 is HTTPS, which browsers ask for); whoever asks for others fills no memory."""
MAX_CACHED = 100_000
MAX_NAME_SERVERS = 3
_CATEGORIES = (b"service", b"node", b"addr", b"virtual")
_PROTOCOLS = (b"_tcp", b"_udp")
ZoneAnswer = tuple[PreparedAnswer, tuple[Topic, ...] | None]
"""An answer, and the topics that it depends on; None for what is not worth keeping."""


class Zone:
    """Answers questions about services, nodes and virtual addresses from the catalog."""

    def __init__(self, catalog: Catalog, settings: DnsSettings) -> None:
        self.kept: dict[bytes, PreparedAnswer] = {}
        """Answers by question: the name in lower case, type and class."""
        self._catalog = catalog
        self._settings = settings
        self._domains = tuple(codec.encode_name(domain).lower() for domain in settings.domains)
        self._datacenter = settings.datacenter.lower().encode()
        self._of_topic: dict[Topic, set[bytes]] = {}
        self._unsubscribe: Callable[[], None] | None = None
        self.open()

    def open(self) -> None:
        """Follow the catalog from now on, where that has ended; a new zone does."""
        if self._unsubscribe is None:
            self.kept.clear()
            self._of_topic.clear()
            self._index = ServiceIndex(self._catalog, self._settings.only_passing)
            self._unsubscribe = self._catalog.subscribe(self._take)

    def close(self) -> None:
        """Follow the catalog no longer."""
        if self._unsubscribe is not None:
            self._unsubscribe()
            self._unsubscribe = None

    def domain_of(self, name: bytes) -> bytes:
        """The zone that a name (lower case, as on the wire) is in; b"" if it is none of weft's."""
        for domain in self._domains:
            if name.endswith(domain) and (len(name) == len(domain) or _on_boundary(name, domain)):
                return domain
        return b""

    def answer(self, name: bytes, kind: int, domain: bytes) -> PreparedAnswer:
        """The answer to a question about a name in one of the zones."""
        found, about = self._answer(name, kind, domain)
        if kind in CACHEABLE_TYPES and about is not None:
            if len(self.kept) >= MAX_CACHED:
                self.kept.clear()
                self._of_topic.clear()
            key = name + kind.to_bytes(2, "big") + b"\0\1"
            self.kept[key] = found
            for topic in about:
                self._of_topic.setdefault(_caseless(topic), set()).add(key)
        return found

    def pointer(self, address: IPv4Address | IPv6Address) -> PreparedAnswer | None:
        """The names of an address: of a node, else of services, else of a virtual address; None if there is none."""
        holders = self._catalog.find_by_address(str(address))
        nodes = [one for one in holders if isinstance(one, Node)]
        targets = [self._node_name(one, self._domains[0]) for one in nodes] or [
            _joined(one.name, b"service", self._datacenter, self._domains[0])
            for one in holders
            if isinstance(one, Instance)
        ]
        owner = self._catalog.virtual_address_service(str(address))
        if not targets and owner:
            targets = [_joined(owner, b"virtual", b"", self._domains[0])]
        found = [AnswerRecord(codec.encode_record(QUESTION_NAME, PTR, 0, target)) for target in targets if target]
        return prepare(units=found) if found else None

    def _take(self, _: int, changed: frozenset[Topic]) -> None:
        """The catalog changed: forget what was said about it."""
        self._index.take(changed)
        for topic in changed:
            for key in self._of_topic.pop(_caseless(topic), ()):
                self.kept.pop(key, None)

    def _answer(self, name: bytes, kind: int, domain: bytes) -> ZoneAnswer:
        parts = codec.labels(name[: len(name) - len(domain)] + b"\0")
        if not parts:
            return self._apex(name, kind, domain), (topics.health(CONSUL_SERVICE), topics.NODES)
        if parts[-1] == self._datacenter:
            parts = parts[:-1]
        if not parts or (len(parts) == 1 and parts[0] in _CATEGORIES):
            return negative(name, domain, True), ()
        match parts:
            case (*rest, b"service"):
                return self._service(name, kind, domain, rest)
            case (*rest, b"node"):
                return self._node(name, kind, domain, b".".join(rest))
            case (address, b"addr"):
                return _of_addresses(name, domain, kind, _hexadecimal(address)), None
            case (service, b"virtual"):
                return self._virtual(name, kind, domain, service)
            case (b"ns",):
                return self._own(name, kind, domain), (topics.health(CONSUL_SERVICE), topics.NODES)
            case (*_, proto) if proto.startswith(b"_"):
                return self._service(name, kind, domain, list(parts))
        return negative(name, domain, False), None

    # The zone itself

    def _apex(self, name: bytes, kind: int, domain: bytes) -> PreparedAnswer:
        if kind in (SOA, ANY):
            return prepare(units=[AnswerRecord(soa_authority(0, int(time.time())))])
        if kind == NS:
            units = []
            for node in self._servers()[:MAX_NAME_SERVERS]:
                target = self._node_name(node, domain)
                if target:
                    glue = tuple(_records(target, [node.address], self._settings.node_ttl))
                    units.append(AnswerRecord(codec.encode_record(QUESTION_NAME, NS, 0, target), glue))
            return prepare(
                units=units or [AnswerRecord(codec.encode_record(QUESTION_NAME, NS, 0, b"\x02ns" + QUESTION_NAME))]
            )
        return negative(name, domain, True)

    def _own(self, name: bytes, kind: int, domain: bytes) -> PreparedAnswer:
        """``ns``, which the SOA names: the nodes that answer."""
        return _of_addresses(name, domain, kind, [pack_address(node.address) for node in self._servers()])

    def _servers(self) -> list[Node]:
        return [health.node for health in self._catalog.health(CONSUL_SERVICE)]

    # Services

    def _service(self, name: bytes, kind: int, domain: bytes, parts: list[bytes]) -> ZoneAnswer:
        """``parts`` is what stands left of ``service``."""
        tag, port, protocol = b"", "", ""
        if len(parts) >= 2 and parts[-1].startswith(b"_") and parts[-2].startswith(b"_"):
            # RFC 2782: what stands for the protocol is a tag, unless it is TCP.
            wanted = parts[-2][1:]
            tag = b"" if parts[-1] == b"_tcp" else parts[-1][1:]
            if len(parts) > 2:
                return negative(name, domain, False), None
        elif len(parts) == 3 and parts[0].startswith(b"_") and parts[1] in _PROTOCOLS:
            port, protocol = parts[0][1:].decode("utf-8", "surrogateescape"), parts[1][1:].decode()
            wanted = parts[2]
        elif parts[-1].startswith(b"_"):
            return negative(name, domain, parts[-1] in _PROTOCOLS), None
        else:
            wanted, tag = parts[-1], b".".join(parts[:-1])
        service = self._index.service(wanted)
        if service is None:
            return negative(name, domain, False), None
        about = tuple(topics.health(each) for each in service.names)
        members = service.by_tag.get(tag, ()) if tag else service.members
        if port:
            members = tuple(one for one in members if _port(one, port) and one.instance.protocol in ("", protocol))
        if not members:
            # Tags that nobody has are without number.
            below = bool(service.members) if tag in _PROTOCOLS else tag in service.above
            return negative(name, domain, below), None if tag or port else about
        ttl = self._settings.ttl_of(members[0].instance.name)
        if kind == SRV:
            return prepare(units=[self._location(one, domain, port, ttl) for one in members]), about
        addresses = [address for one in members for address in one.addresses]
        return self._of_hosts(name, domain, kind, addresses, ttl), about

    def _location(self, one: Health, domain: bytes, port: str, ttl: int) -> AnswerRecord:
        """An SRV record, with its target's addresses."""
        number = _port(one, port) if port else one.instance.port
        address = one.instance.address
        where = pack_address(one.address)
        target = b"" if address else self._node_name(one.node, domain)
        if not target and where:
            target = _joined(where.hex(), b"addr", self._datacenter, domain)
        if not target:
            target = _encoded(one.address) or domain
        extras = tuple(_records(target, [one.address], ttl))
        return AnswerRecord(
            codec.srv_record(QUESTION_NAME, ttl, 1, min(max(one.weight, 0), 65535), number, target), extras
        )

    def _virtual(self, name: bytes, kind: int, domain: bytes, wanted: bytes) -> ZoneAnswer:
        service = self._index.service(wanted)
        if service is None:
            return negative(name, domain, False), None
        names = service.names
        about = [topic for each in names for topic in (topics.service(each), topics.virtual(each))]
        found = [pack_address(one.address) for each in names for one in self._catalog.virtual_addresses(each)]
        ttl = self._settings.ttl_of(min(names))
        return _of_addresses(name, domain, kind, found, ttl, exists=True), tuple(about)

    # Nodes

    def _node(self, name: bytes, kind: int, domain: bytes, wanted: bytes) -> ZoneAnswer:
        node = self._index.node(wanted)
        if node is None:
            return negative(name, domain, self._index.is_above(wanted)), None
        ttl = self._settings.node_ttl
        about = (topics.node(node.name),)
        if kind == TXT and node.meta:
            pairs = sorted(node.meta.items())
            texts = [value if key.lower().startswith("rfc1035-") else f"{key}={value}" for key, value in pairs]
            return prepare(units=[AnswerRecord(codec.text_record(QUESTION_NAME, ttl, each)) for each in texts]), about
        return self._of_hosts(name, domain, kind, [node.address], ttl), about

    def _node_name(self, node: Node, domain: bytes) -> bytes:
        return _joined(node.name, b"node", self._datacenter, domain)

    def _of_hosts(self, name: bytes, domain: bytes, kind: int, hosts: list[str], ttl: int) -> PreparedAnswer:
        """Addresses; or the name that stands for one, if there is no address and only names are known."""
        known = [address for host in hosts if (address := pack_address(host))]
        if known:
            return _of_addresses(name, domain, kind, known, ttl)
        targets = sorted({target for host in hosts if (target := _encoded(host).lower()) and target != name})
        if not targets or kind not in (A, AAAA, CNAME, ANY):
            return negative(name, domain, True)
        # A name has one CNAME and nothing beside it (RFC 2181 section 10.1).
        target = targets[0]
        chain = codec.encode_record(QUESTION_NAME, CNAME, ttl, target)
        return prepare(chain=(chain,), target=target if kind in (A, AAAA) else b"")


def _of_addresses(
    name: bytes, domain: bytes, kind: int, known: list[bytes], ttl: int = 0, *, exists: bool = False
) -> PreparedAnswer:
    """Those of the type that is asked for; a name that has any address exists."""
    units = [AnswerRecord(codec.address_record(QUESTION_NAME, each, ttl)) for each in addresses_of_type(known, kind)]
    return prepare(units=units) if units else negative(name, domain, exists or bool(known))


def _records(owner: bytes, hosts: Iterable[str], ttl: int) -> list[bytes]:
    return [codec.address_record(owner, address, ttl) for host in hosts if (address := pack_address(host))]


def _caseless(topic: Topic) -> Topic:
    """The same for all names that are one in DNS."""
    return (topic[0], topic[1].lower())


def _on_boundary(name: bytes, domain: bytes) -> bool:
    """Whether the end of a name begins where a label does."""
    at, start = 0, len(name) - len(domain)
    while at < start:
        at += 1 + name[at]
    return at == start


def _port(one: Health, name: str) -> int:
    return next((number for each, number in one.instance.ports.items() if each.lower() == name), 0)


def _hexadecimal(label: bytes) -> list[bytes]:
    """The address that ``0a000001`` or 32 such digits are, as a list."""
    try:
        packed = bytes.fromhex(label.decode("ascii"))
    except ValueError:
        return []
    return [packed] if len(packed) in (4, 16) and len(label) == 2 * len(packed) else []


def _encoded(name: str) -> bytes:
    """A host's name for the wire; b"" if it is none."""
    try:
        found = codec.encode_name(name)
    except BadName:
        return b""
    return found if found != b"\0" else b""


def _joined(name: str, kind: bytes, datacenter: bytes, domain: bytes) -> bytes:
    """``NAME.KIND.DC.DOMAIN``; b"" if that is too long or no name."""
    start = _encoded(name)
    found = start[:-1] + codec.encode_labels(*filter(None, (kind, datacenter)))[:-1] + domain
    return found if start and len(found) <= codec.MAX_NAME_LENGTH else b""
