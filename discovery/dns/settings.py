"""Settings of the DNS server."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class ListenAddress:
    """An address and port on which services are served to all clients."""

    address: str
    port: int = 8600


@dataclass(frozen=True, slots=True)
class DnsSettings:
    """Settings of the DNS server. TTLs in seconds.

    ``domains``: the zones, the first one used in generated names. ``listen``: where services and
    nodes are served. ``recursors``: upstream servers of those listeners ("9.9.9.9",
    "[fd00::1]:5353"), for clients with private addresses; () refuses other names. Containers'
    queries go to the servers of ``resolv_conf`` in any case.

    ``service_ttl``: by service name, by prefix ("db-*"), or for all ("*"); exact names win, then
    the longest prefix. ``network_ttl``: of container names. ``answer_limit``: most records in an
    answer, shuffled per reply; 0 for all. ``alias_domains``: domains at and below which containers'
    names are served, beside those of their networks. ``udp_size``: largest UDP reply in bytes; 0 for what is
    not fragmented: what the MTU carries to this host and its containers, else 1232. ``node`` is this host's
    name in the catalog.

    *Equivalent to:* Consul's ``domain``, ``alt_domain``, ``recursors`` and ``dns_config``
    (``a_record_limit``).
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
    udp_size: int = 0
    network_port: int = 53
    alias_domains: tuple[str, ...] = ()
    node: str = ""

    def ttl_of(self, service: str) -> int:
        """The TTL of a service's records."""
        if service in self.service_ttl:
            return self.service_ttl[service]
        starts = [key[:-1] for key in self.service_ttl if key.endswith("*") and service.startswith(key[:-1])]
        return self.service_ttl[max(starts, key=len) + "*"] if starts else 0
