"""What DNS is told by weft's configuration."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from discovery.dns.codec import EDNS_UDP_SIZE


@dataclass(frozen=True, slots=True)
class ListenAddress:
    """An address and a port that services are answered at, to whoever can reach it."""

    address: str
    port: int = 8600


@dataclass(frozen=True, slots=True)
class DnsSettings:
    """DNS of this host. TTLs in seconds.

    ``domains``: what weft answers for, the first used in what it says itself. ``listen``: where services and nodes are
    answered for the host. ``recursors``: whom those listeners ask about other names ("9.9.9.9", "[fd00::1]:5353") for
    clients with private addresses; none means that they refuse. Containers' other questions go to the servers of
    ``resolv_conf``, whatever is here.
    ``service_ttl``: by name, by the start of a name ("db-*"), or for all ("*"); exact names first, then the longest.
    ``network_ttl``: of containers' names. ``answer_limit``: how many records an answer has at most, others for each
    client; 0 for all. ``udp_size``: bytes of an answer over UDP to a client that takes so many.
    *Equivalent to:* Consul's ``domain``, ``alt_domain``, ``recursors`` and ``dns_config`` (``a_record_limit``).
    """

    domains: tuple[str, ...] = ("weft", "consul")
    datacenter: str = "dc1"
    listen: tuple[ListenAddress, ...] = (ListenAddress("127.0.0.1"), ListenAddress("::1"))
    recursors: tuple[str, ...] = ()
    resolv_conf: str = "/etc/resolv.conf"
    only_passing: bool = False
    node_ttl: int = 0
    service_ttl: Mapping[str, int] = field(default_factory=dict)
    network_ttl: int = 0
    answer_limit: int = 0
    udp_size: int = EDNS_UDP_SIZE
    network_port: int = 53

    def ttl_of(self, service: str) -> int:
        """The TTL of a service's records."""
        if service in self.service_ttl:
            return self.service_ttl[service]
        starts = [key[:-1] for key in self.service_ttl if key.endswith("*") and service.startswith(key[:-1])]
        return self.service_ttl[max(starts, key=len) + "*"] if starts else 0
