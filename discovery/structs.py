"""The nouns of service discovery: nodes, instances of services, checks, and how healthy they are together.

All are frozen values; an index of 0 means "not stored yet". How they look in Consul's JSON is ``discovery.api``'s
business, how they lie in a store that of ``discovery.layout``.
Source: the data model of Consul's catalog (agent, catalog and health endpoints of its HTTP API).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum


class Status(StrEnum):
    """What a check says. ``rank`` orders them: the worst of several is the one that counts."""

    PASSING = "passing"
    WARNING = "warning"
    CRITICAL = "critical"

    @property
    def rank(self) -> int:
        """0 passing, 1 warning, 2 critical."""
        return _RANKS[self]


_RANKS = {Status.PASSING: 0, Status.WARNING: 1, Status.CRITICAL: 2}

SERF_HEALTH = "serfHealth"
"""The check that every node has: its agent is alive. Clients of Consul look for this name."""
NODE_MAINT = "_node_maintenance"
SERVICE_MAINT_PREFIX = "_service_maintenance:"
"""Checks of these names (the second followed by the instance's id) mean that somebody took it out of service."""
CONSUL_SERVICE = "consul"
"""The service that every node offers: its own HTTP API. Many clients expect it in the catalog."""


@dataclass(frozen=True, slots=True)
class Weights:
    """The share of new connections that an instance gets beside its siblings, by its status; from 0 to 65,535."""

    passing: int = 1
    warning: int = 1


@dataclass(frozen=True, slots=True)
class ServiceAddress:
    """An address and a port that an instance is also known by (``TaggedAddresses``)."""

    address: str
    port: int = 0


@dataclass(frozen=True, slots=True)
class Node:
    """A machine that services run on. ``id`` is a UUID, ``address`` where its services are reached."""

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
    """One running copy of a service, on a node. An empty ``address`` means the node's.

    ``ports`` are named ports beside ``port`` (``{"http": 80}``). ``protocol`` is what its virtual IP carries: "tcp",
    "udp" or "" for both. ``owner`` is the mark of the attachment that it stands for, "" if it was registered by hand.
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
    def order(self) -> tuple[str, str]:
        """Every list of instances is sorted by this: clients pair the answers of two endpoints by position."""
        return (self.node, self.id)


@dataclass(frozen=True, slots=True)
class Check:
    """What is known of the health of an instance, or of a whole node (``service_id`` empty).

    ``definition`` is what the client asked for, as it did (``{"HTTP": …, "Interval": …}``); ``type`` is its kind:
    "ttl", "http", "tcp", "udp", "script", "alias", or "" for a status that somebody else reports.
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
        """Whether it says that somebody took the node or the instance out of service."""
        return self.id == NODE_MAINT or self.id.startswith(SERVICE_MAINT_PREFIX)


@dataclass(frozen=True, slots=True)
class CheckDefinition:
    """What a check does, and how often; times in seconds.

    ``type`` is one of Check's. ``target`` is a URL (http), HOST:PORT (tcp, udp) or "" ; an alias follows the service
    ``alias_service`` of ``alias_node``. The three counts say how many results in a row change the status (0: the first
    does). ``deregister_after`` critical seconds end the service; 0 is never. ``netns`` is the path of the network
    namespace that the check is made from; "" is the host's. ``initial`` is the status until the first result.
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
    asked: Mapping[str, object] = field(default_factory=dict)
    """The definition as its client wrote it, for answers (``Definition`` in the JSON of a check)."""


@dataclass(frozen=True, slots=True)
class Health:
    """An instance with its node and all checks that concern it: its own, then the node's."""

    node: Node
    instance: Instance
    checks: tuple[Check, ...]

    @property
    def status(self) -> Status:
        """The worst of the checks; passing if there is none."""
        return worst_status(self.checks)

    @property
    def maintenance(self) -> bool:
        """Whether it, or its node, was taken out of service by somebody."""
        return any(check.maintenance for check in self.checks)

    @property
    def address(self) -> str:
        """Where it is reached: its own address, or else its node's."""
        return self.instance.address or self.node.address

    @property
    def addresses(self) -> tuple[str, ...]:
        """Where it is reached, and the addresses of the other family that it is also known by (lan_ipv4, lan_ipv6)."""
        tagged = (self.instance.tagged_addresses.get(name) for name in ("lan_ipv4", "lan_ipv6"))
        others = (one.address for one in tagged if one is not None and one.address)
        first = self.address
        return (first, *(one for one in others if (":" in one) != (":" in first)))

    @property
    def weight(self) -> int:
        """Its share of new connections in its present state; 0 for critical."""
        if self.status is Status.CRITICAL:
            return 0
        weights = self.instance.weights
        return weights.passing if self.status is Status.PASSING else weights.warning


@dataclass(frozen=True, slots=True)
class VirtualAddress:
    """An address that stands for a service, and that the kernel of every node balances."""

    service: str
    address: str
    create_index: int = 0


CatalogEntry = Node | Instance | Check | VirtualAddress
"""What the store holds of the catalog."""


def worst_status(checks: Iterable[Check]) -> Status:
    """The status of several checks together: the worst; passing for none."""
    return max((check.status for check in checks), key=lambda status: status.rank, default=Status.PASSING)
