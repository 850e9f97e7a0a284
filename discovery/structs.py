"""The data model of Consul's catalog: nodes, service instances, checks, and their health.

All are frozen values; an index of 0 means "not stored". ``api.serialize`` writes them as Consul's
JSON, ``layout`` encodes them for the store.

Source: agent, catalog and health endpoints of Consul's HTTP API.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum


class Status(StrEnum):
    """The status of a check; the worst of several counts, by ``rank``."""

    PASSING = "passing"
    WARNING = "warning"
    CRITICAL = "critical"

    @property
    def rank(self) -> int:
        """0 passing, 1 warning, 2 critical."""
        return _RANKS[self]


_RANKS = {Status.PASSING: 0, Status.WARNING: 1, Status.CRITICAL: 2}

SERF_HEALTH = "serfHealth"
"""The check that every node with a live agent has; Consul's clients look for this id."""
NODE_MAINT = "_node_maintenance"
SERVICE_MAINT_PREFIX = "_service_maintenance:"
"""Ids of maintenance checks; the second is followed by the service id."""
NETWORK_META = "network"
"""The metadata key of an attachment's instances that has their network."""
MAX_TTL = 2**31 - 1
"""Of a DNS record, in seconds. Source: RFC 2181 section 8."""
CONSUL_SERVICE = "consul"
"""The service that every agent registers: its HTTP API. Many clients expect it."""


@dataclass(frozen=True, slots=True)
class Weights:
    """The relative share of new connections by status, from 0 to 65,535."""

    passing: int = 1
    warning: int = 1


@dataclass(frozen=True, slots=True)
class ServiceAddress:
    """A tagged address of an instance (``TaggedAddresses``)."""

    address: str
    port: int = 0


@dataclass(frozen=True, slots=True)
class Node:
    """A host. ``id`` is a UUID, ``address`` the default address of its services."""

    name: str
    address: str
    id: str = ""
    datacenter: str = "dc1"
    meta: Mapping[str, str] = field(default_factory=dict)
    tagged_addresses: Mapping[str, str] = field(default_factory=dict)
    create_index: int = 0
    modify_index: int = 0


@dataclass(frozen=True, slots=True)
class Instance:
    """An instance of a service on a node. An empty ``address`` means the node's.

    ``ports`` are named ports beside ``port`` (``{"http": 80}``). ``protocol`` limits what is load
    balanced: "tcp", "udp" or "" for both. ``owner`` is the mark of the attachment that it stands
    for, "" if it was registered through the API.
    """

    node: str
    id: str
    name: str
    address: str = ""
    port: int = 0
    ports: Mapping[str, int] = field(default_factory=dict)
    protocol: str = ""
    tags: tuple[str, ...] = ()
    meta: Mapping[str, str] = field(default_factory=dict)
    tagged_addresses: Mapping[str, ServiceAddress] = field(default_factory=dict)
    weights: Weights = Weights()
    enable_tag_override: bool = False
    kind: str = ""
    owner: str = ""
    create_index: int = 0
    modify_index: int = 0

    def port_number(self, name: str) -> int:
        """The named port, by its name in lower case; 0 if the instance has none of that name."""
        return next((number for each, number in self.ports.items() if each.lower() == name), 0)

    @property
    def network(self) -> str:
        """The network of the attachment that it stands for, "" if it was registered through the API."""
        return self.meta.get(NETWORK_META, "") if self.owner else ""

    @property
    def order(self) -> tuple[str, str]:
        """Sort key of all lists of instances; clients match two endpoints' lists by position."""
        return (self.node, self.id)


@dataclass(frozen=True, slots=True)
class Check:
    """A health check and its status, of an instance or, with ``service_id`` empty, of a node.

    ``definition`` is the definition as the client wrote it (``{"HTTP": …, "Interval": …}``);
    ``type`` is "ttl", "http", "tcp", "udp", "script", "alias", or "" for a status reported from
    outside.
    """

    node: str
    id: str
    name: str
    status: Status = Status.CRITICAL
    service_id: str = ""
    service_name: str = ""
    service_tags: tuple[str, ...] = ()
    notes: str = ""
    output: str = ""
    type: str = ""
    definition: Mapping[str, object] = field(default_factory=dict)
    create_index: int = 0
    modify_index: int = 0

    @property
    def maintenance(self) -> bool:
        """Whether it is a maintenance mode check."""
        return self.id == NODE_MAINT or self.id.startswith(SERVICE_MAINT_PREFIX)


@dataclass(frozen=True, slots=True)
class CheckDefinition:
    """How a check is executed; times in seconds.

    ``type`` as in Check. ``target`` is a URL (http), HOST:PORT (tcp, udp), HOST:PORT/SERVICE (grpc)
    or ""; an alias check follows ``alias_service`` on ``alias_node``. ``tls`` is TLS for tcp and
    grpc. The three thresholds are consecutive results before the status changes (0: the first one
    does). The service is deregistered after ``deregister_after`` seconds in critical state; 0 is
    never. ``netns`` is the path of the network namespace to probe from, and ``netns_inode`` the
    inode that it must have (0: any); "" is the host's. Such a check, which a container brings,
    connects only to ``reachable`` addresses and that namespace's loopback, at the port of its
    target. ``initial`` is the status before the first result.
    """

    id: str
    name: str
    type: str
    service_id: str = ""
    notes: str = ""
    initial: Status = Status.CRITICAL
    interval: float = 0.0
    timeout: float = 10.0
    ttl: float = 0.0
    target: str = ""
    method: str = "GET"
    headers: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    body: str = ""
    disable_redirects: bool = False
    tls: bool = False
    tls_skip_verify: bool = False
    tls_server_name: str = ""
    arguments: tuple[str, ...] = ()
    alias_node: str = ""
    alias_service: str = ""
    output_max_size: int = 4096
    success_before_passing: int = 0
    failures_before_warning: int = 0
    failures_before_critical: int = 0
    deregister_after: float = 0.0
    netns: str = ""
    netns_inode: int = 0
    reachable: tuple[str, ...] = ()
    asked: Mapping[str, object] = field(default_factory=dict)
    """The definition as the client wrote it, echoed in responses (``Definition`` of a check)."""


@dataclass(frozen=True, slots=True)
class Health:
    """An instance with its node and checks: its own, then the node's (Consul's
    CheckServiceNode).
    """

    node: Node
    instance: Instance
    checks: tuple[Check, ...]

    @property
    def status(self) -> Status:
        """The worst status of its checks; passing without checks."""
        return worst_status(self.checks)

    @property
    def maintenance(self) -> bool:
        """Whether it or its node is in maintenance mode."""
        return any(check.maintenance for check in self.checks)

    @property
    def address(self) -> str:
        """Its own address, else its node's."""
        return self.instance.address or self.node.address

    @property
    def addresses(self) -> tuple[str, ...]:
        """Its address, and its tagged addresses of the other family (lan_ipv4, lan_ipv6)."""
        tagged = (self.instance.tagged_addresses.get(name) for name in ("lan_ipv4", "lan_ipv6"))
        others = (one.address for one in tagged if one is not None and one.address)
        first = self.address
        return (first, *(one for one in others if (":" in one) != (":" in first)))

    @property
    def weight(self) -> int:
        """Its weight for the current status; 0 if critical."""
        if self.status is Status.CRITICAL:
            return 0
        weights = self.instance.weights
        return weights.passing if self.status is Status.PASSING else weights.warning


@dataclass(frozen=True, slots=True)
class VirtualAddress:
    """A virtual address of a service, balanced by the kernel of every node."""

    service: str
    address: str
    create_index: int = 0


@dataclass(frozen=True, slots=True)
class PreparedQuery:
    """A stored query for the healthy instances of a service. ``template`` is its type, "" for a
    query that is no template; ``tags`` that begin with "!" must be absent; ``ttl`` is that of DNS
    in seconds, None for the service's; ``failover`` is kept as the client wrote it. With a
    ``session`` it is deleted when that ends.
    """

    id: str
    name: str = ""
    service: str = ""
    tags: tuple[str, ...] = ()
    only_passing: bool = False
    ignore_checks: tuple[str, ...] = ()
    near: str = ""
    node_meta: Mapping[str, str] = field(default_factory=dict)
    service_meta: Mapping[str, str] = field(default_factory=dict)
    ttl: float | None = None
    template: str = ""
    remove_empty_tags: bool = False
    failover: Mapping[str, object] = field(default_factory=dict)
    session: str = ""
    create_index: int = 0
    modify_index: int = 0


CatalogEntry = Node | Instance | Check | VirtualAddress | PreparedQuery
"""Anything that the catalog stores."""


def worst_status(checks: Iterable[Check]) -> Status:
    """The worst status of several checks; passing for none."""
    return max((check.status for check in checks), key=lambda status: status.rank, default=Status.PASSING)


def cut_output(text: str, size: int) -> str:
    """The output of a check that is kept: at most ``size`` bytes of UTF-8, without half a character.

    What a service answers may contain lone surrogates, which cannot be stored; they become "?".
    """
    return text.encode("utf-8", "replace")[:size].decode("utf-8", "ignore")
