"""The authoritative zones: services, nodes and virtual addresses under Consul's names.

    [TAG.]NAME.service[.DC].weft     _NAME._PROTO[.service][.DC].weft
    _PORT._PROTO.NAME.service[.DC].weft NODE.node[.DC].weft              HEXADDRESS.addr[.DC].weft
    NAME.virtual[.DC].weft              QUERY.query[.DC].weft

Pure but for the clock in the SOA's serial. Answers are cached until the catalog changes one of
their topics.
Sources: the DNS interface of Consul; RFC 2782 (SRV), RFC 8020 (empty non-terminals), RFC 8482
(ANY).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from ipaddress import IPv4Address, IPv6Address

from discovery import catalog as topics
from discovery.catalog import Catalog, Topic
from discovery.dns import codec
from discovery.dns.answers import AnswerRecord, PreparedAnswer, negative, prepare, soa_authority
from discovery.dns.codec import ANY, QUESTION_NAME, encode_record
from discovery.dns.naming import encode_host, full_name, node_name
from discovery.dns.rrtypes import (
    CNAME,
    NODE_RECORDS,
    NS,
    PTR,
    SERVICE_RECORDS,
    SOA,
    ServiceContext,
    address_record,
    address_records,
    addresses_of_type,
    is_cacheable,
    pack_address,
)
from discovery.dns.service_index import ServiceIndex, Visible
from discovery.dns.settings import DnsSettings
from discovery.prepared_queries import execute, find_query
from discovery.structs import CONSUL_SERVICE, Health, Instance, Node

MAX_CACHED = 100_000
MAX_NAME_SERVERS = 3
_CATEGORIES = (b"service", b"node", b"addr", b"virtual", b"query")
_PROTOCOLS = (b"_tcp", b"_udp")
ZoneAnswer = tuple[PreparedAnswer, tuple[Topic, ...] | None]
"""An answer and the topics that invalidate it; None for one that is not cached."""


class Zone:
    """Answers queries for services, nodes and virtual addresses from the catalog; ``visible`` says
    which of them.
    """

    def __init__(self, catalog: Catalog, settings: DnsSettings, visible: Visible = lambda kind, name: True) -> None:
        self._visible = visible
        self.cache: dict[bytes, PreparedAnswer] = {}
        """Answers by question: the name in lower case, type and class."""
        self._catalog = catalog
        self._settings = settings
        self._domains = tuple(codec.encode_name(domain).lower() for domain in settings.domains)
        self._datacenter = settings.datacenter.lower().encode()
        self._keys_by_topic: dict[Topic, set[bytes]] = {}
        self._unsubscribe: Callable[[], None] | None = None
        self.open()

    def open(self) -> None:
        """Subscribe to the catalog, if not subscribed; done by the constructor."""
        if self._unsubscribe is None:
            self.cache.clear()
            self._keys_by_topic.clear()
            self._index = ServiceIndex(self._catalog, self._settings.only_passing, self._visible, self._settings.node)
            self._unsubscribe = self._catalog.subscribe(self._on_change)

    def close(self) -> None:
        """Unsubscribe from the catalog."""
        if self._unsubscribe is not None:
            self._unsubscribe()
            self._unsubscribe = None

    def domain_of(self, name: bytes) -> bytes:
        """The zone that a name (wire format, lower case) is in; b"" if none."""
        for domain in self._domains:
            if name.endswith(domain) and (len(name) == len(domain) or _at_label_boundary(name, domain)):
                return domain
        return b""

    def answer(self, name: bytes, rrtype: int, domain: bytes) -> PreparedAnswer:
        """The answer for a name in the zone ``domain``; cached."""
        answer, changes = self._answer(name, rrtype, domain)
        if is_cacheable(rrtype) and changes is not None:
            if len(self.cache) >= MAX_CACHED:
                self.cache.clear()
                self._keys_by_topic.clear()
            key = name + rrtype.to_bytes(2, "big") + b"\0\1"
            self.cache[key] = answer
            for topic in changes:
                self._keys_by_topic.setdefault(_fold_topic(topic), set()).add(key)
        return answer

    def pointer(self, address: IPv4Address | IPv6Address) -> PreparedAnswer | None:
        """PTR records of an address: its node's, else its services', else its virtual service's;
        None if unknown.
        """
        found = [one for one in self._catalog.find_by_address(str(address)) if self._is_visible(one)]
        zone = self._domains[0]
        targets = [node_name(one, self._datacenter, zone) for one in found if isinstance(one, Node)] or [
            full_name(one.name, b"service", self._datacenter, zone) for one in found if isinstance(one, Instance)
        ]
        service = self._catalog.virtual_address_service(str(address))
        if not targets and service and self._visible("service", service):
            targets = [full_name(service, b"virtual", b"", zone)]
        records = [AnswerRecord(encode_record(QUESTION_NAME, PTR, 0, target)) for target in targets if target]
        return prepare(records=records) if records else None

    def permissions_changed(self) -> None:
        """Drop all that was computed from what ``visible`` said before."""
        if self._unsubscribe is not None:
            self.close()
            self.open()

    def _is_visible(self, one: Node | Instance) -> bool:
        if isinstance(one, Node):
            return self._visible("node", one.name)
        return self._visible("node", one.node) and self._visible("service", one.name)

    def _on_change(self, _: int, changed: frozenset[Topic]) -> None:
        """Drop the cached answers that depend on these topics."""
        self._index.update(changed)
        for topic in changed:
            for key in self._keys_by_topic.pop(_fold_topic(topic), ()):
                self.cache.pop(key, None)

    def _answer(self, name: bytes, rrtype: int, domain: bytes) -> ZoneAnswer:
        labels = codec.labels(name[: len(name) - len(domain)] + b"\0")
        if not labels:
            return self._apex(name, rrtype, domain), (topics.health(CONSUL_SERVICE), topics.NODES)
        labels = self._without_place(labels)
        if not labels or (len(labels) == 1 and labels[0] in _CATEGORIES):
            return negative(name, domain, True), ()
        match labels:
            case (*rest, b"service"):
                return self._service(name, rrtype, domain, rest)
            case (*rest, b"node"):
                return self._node(name, rrtype, domain, b".".join(rest))
            case (address, b"addr"):
                return _address_answer(name, domain, rrtype, _parse_hex_address(address)), None
            case (service, b"virtual"):
                return self._virtual(name, rrtype, domain, service)
            case (*rest, b"query"):
                return self._query(name, rrtype, domain, b".".join(rest)), None
            case (b"ns",):
                return self._name_server(name, rrtype, domain), (topics.health(CONSUL_SERVICE), topics.NODES)
            case (*_, protocol) if protocol.startswith(b"_"):
                return self._service(name, rrtype, domain, list(labels))
        return negative(name, domain, False), None

    def _without_place(self, labels: tuple[bytes, ...]) -> tuple[bytes, ...]:
        """The labels without this place at their end, in both of Consul's forms: ``dc1``, or any of
        ``default.ns``, ``default.ap`` and ``dc1.dc``.
        """
        if labels[-1] == self._datacenter:
            return labels[:-1]
        for kind, here in ((b"dc", self._datacenter), (b"ap", b"default"), (b"ns", b"default")):
            if labels[-2:] == (here, kind):
                labels = labels[:-2]
        return labels

    # The zone itself

    def _apex(self, name: bytes, rrtype: int, domain: bytes) -> PreparedAnswer:
        if rrtype in (SOA, ANY):
            return prepare(records=[AnswerRecord(soa_authority(0, int(time.time())))])
        if rrtype == NS:
            records = []
            for node in self._servers()[:MAX_NAME_SERVERS]:
                target = node_name(node, self._datacenter, domain)
                if target:
                    glue = address_records(target, [node.address], self._settings.node_ttl)
                    records.append(AnswerRecord(encode_record(QUESTION_NAME, NS, 0, target), glue))
            return prepare(
                records=records or [AnswerRecord(encode_record(QUESTION_NAME, NS, 0, b"\x02ns" + QUESTION_NAME))]
            )
        return negative(name, domain, True)

    def _name_server(self, name: bytes, rrtype: int, domain: bytes) -> PreparedAnswer:
        """``ns``, the primary server in the SOA: the addresses of all nodes that run an agent."""
        return _address_answer(name, domain, rrtype, [pack_address(node.address) for node in self._servers()])

    def _servers(self) -> list[Node]:
        nodes = [health.node for health in self._catalog.health(CONSUL_SERVICE)]
        return [node for node in nodes if self._is_visible(node)]

    # Services

    def _service(self, name: bytes, rrtype: int, domain: bytes, labels: list[bytes]) -> ZoneAnswer:
        """``labels`` are those left of ``service``."""
        tag, port, protocol = b"", "", ""
        if len(labels) >= 2 and labels[-1].startswith(b"_") and labels[-2].startswith(b"_"):
            # RFC 2782 style, as in Consul: what stands for the protocol is a tag, unless it is _tcp.
            wanted = labels[-2][1:]
            tag = b"" if labels[-1] == b"_tcp" else labels[-1][1:]
            if len(labels) > 2:
                return negative(name, domain, False), None
        elif len(labels) == 3 and labels[0].startswith(b"_") and labels[1] in _PROTOCOLS:
            port, protocol = labels[0][1:].decode("utf-8", "surrogateescape"), labels[1][1:].decode()
            wanted = labels[2]
        elif labels[-1].startswith(b"_"):
            return negative(name, domain, labels[-1] in _PROTOCOLS), None
        else:
            wanted, tag = labels[-1], b".".join(labels[:-1])
        service = self._index.service(wanted)
        if service is None:
            return negative(name, domain, False), None
        changes = tuple(topics.health(each) for each in service.names)
        instances = service.by_tag.get(tag, ()) if tag else service.instances
        if port:
            instances = tuple(
                one for one in instances if one.instance.port_number(port) and one.instance.protocol in ("", protocol)
            )
        if not instances:
            # Not cached with a tag or port: the number of made-up ones is unbounded.
            exists = bool(service.instances) if tag in _PROTOCOLS else tag in service.empty_non_terminals
            return negative(name, domain, exists), None if tag or port else changes
        ttl = self._settings.ttl_of(instances[0].instance.name)
        return self._instances(name, rrtype, domain, instances, ttl, port), changes

    def _query(self, name: bytes, rrtype: int, domain: bytes, wanted: bytes) -> PreparedAnswer:
        """A prepared query. Not cached: template names are unbounded."""
        query = find_query(self._catalog.queries(), wanted.decode("utf-8", "surrogateescape"))
        if query is None:
            return negative(name, domain, False)
        found = execute(self._catalog, query)
        instances = tuple(one for one in found if self._is_visible(one.node) and self._is_visible(one.instance))
        if not instances:
            return negative(name, domain, True)
        ttl = int(query.ttl) if query.ttl is not None else self._settings.ttl_of(query.service)
        return self._instances(name, rrtype, domain, instances, ttl)

    def _instances(
        self, name: bytes, rrtype: int, domain: bytes, instances: Sequence[Health], ttl: int, port: str = ""
    ) -> PreparedAnswer:
        """The records of some instances of a service."""
        if record := SERVICE_RECORDS.get(rrtype):
            # Not hidden by a CNAME, as in Consul: a service's port is known to its name only.
            context = ServiceContext(domain, self._datacenter, ttl, port)
            found = [each for one in instances if (each := record(one, context)) is not None]
            if found:
                return prepare(
                    records=[
                        AnswerRecord(encode_record(QUESTION_NAME, rrtype, ttl, data), additional)
                        for data, additional in found
                    ]
                )
        addresses = [address for one in instances for address in one.addresses]
        return _host_answer(name, domain, rrtype, addresses, ttl)

    def _virtual(self, name: bytes, rrtype: int, domain: bytes, wanted: bytes) -> ZoneAnswer:
        service = self._index.service(wanted)
        if service is None:
            return negative(name, domain, False), None
        names = service.names
        changes = [topic for each in names for topic in (topics.service(each), topics.virtual(each))]
        addresses = [pack_address(one.address) for each in names for one in self._catalog.virtual_addresses(each)]
        ttl = self._settings.ttl_of(min(names))
        return _address_answer(name, domain, rrtype, addresses, ttl, exists=True), tuple(changes)

    # Nodes

    def _node(self, name: bytes, rrtype: int, domain: bytes, wanted: bytes) -> ZoneAnswer:
        node = self._index.node(wanted)
        if node is None:
            return negative(name, domain, self._index.is_empty_non_terminal(wanted)), None
        ttl = self._settings.node_ttl
        changes = (topics.node(node.name),)
        hosts = [node.address]
        if rrtype in NODE_RECORDS and not _canonical_name(name, hosts):
            found = list(NODE_RECORDS[rrtype](node))
            if found:
                return prepare(
                    records=[AnswerRecord(encode_record(QUESTION_NAME, rrtype, ttl, data)) for data in found]
                ), changes
        return _host_answer(name, domain, rrtype, hosts, ttl), changes


def _host_answer(name: bytes, domain: bytes, rrtype: int, hosts: list[str], ttl: int) -> PreparedAnswer:
    """The addresses among the hosts; if there are none, a CNAME to the first host name, for every
    type. Source: RFC 1034 section 4.3.2 step 3a.
    """
    if target := _canonical_name(name, hosts):
        cname = encode_record(QUESTION_NAME, CNAME, ttl, target)
        return prepare(cnames=(cname,), target=b"" if rrtype in (CNAME, ANY) else target)
    return _address_answer(name, domain, rrtype, list(map(pack_address, hosts)), ttl, exists=True)


def _canonical_name(name: bytes, hosts: list[str]) -> bytes:
    """The first host name, if no host is an address; b"" if there is none but ``name`` itself.

    A name has one CNAME and no other records (RFC 2181 section 10.1).
    """
    if any(map(pack_address, hosts)):
        return b""
    return min((target for host in hosts if (target := encode_host(host).lower()) and target != name), default=b"")


def _address_answer(
    name: bytes, domain: bytes, rrtype: int, addresses: list[bytes], ttl: int = 0, *, exists: bool = False
) -> PreparedAnswer:
    """The addresses of the type asked for. NODATA if there are only others or ``exists``, else
    NXDOMAIN.
    """
    wanted = addresses_of_type(addresses, rrtype)
    if not wanted:
        return negative(name, domain, exists or bool(addresses))
    return prepare(records=[AnswerRecord(address_record(QUESTION_NAME, each, ttl)) for each in wanted])


def _fold_topic(topic: Topic) -> Topic:
    """The topic in lower case: DNS names are case-insensitive, the catalog's are not."""
    return (topic[0], topic[1].lower())


def _at_label_boundary(name: bytes, domain: bytes) -> bool:
    """Whether ``domain``, with which the name ends, begins where a label does."""
    at, start = 0, len(name) - len(domain)
    while at < start:
        at += 1 + name[at]
    return at == start


def _parse_hex_address(label: bytes) -> list[bytes]:
    """The address of a label like ``0a000001`` (8 or 32 digits); empty if it is none."""
    try:
        packed = bytes.fromhex(label.decode("ascii"))
    except ValueError:
        return []
    return [packed] if len(packed) in (4, 16) and len(label) == 2 * len(packed) else []
