"""Container names per network: one value a network, and a table of them that the agent fills."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class ClientConfig:
    """Per-client configuration: the container's other networks, and its own name servers."""

    networks: tuple[str, ...] = ()
    upstreams: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class NetworkZone:
    """The names on one network.

    It is served at ``gateways``, to sources within ``subnets`` (CIDR) only. ``records`` are the
    addresses by lower-case name (container name, aliases, short id), ``reverse`` the name by
    address. ``domains`` are search domains that belong to this network ("dns.podman"), under which
    the names resolve too; ``search`` are further search domains of containers, beside the host's.
    ``upstreams`` replace the host's name servers. ``clients`` configures single container
    addresses. An ``internal`` network does not forward.
    """

    network: str
    gateways: tuple[str, ...] = ()
    subnets: tuple[str, ...] = ()
    internal: bool = False
    records: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    reverse: Mapping[str, str] = field(default_factory=dict)
    domains: tuple[str, ...] = ("dns.podman",)
    search: tuple[str, ...] = ()
    upstreams: tuple[str, ...] = ()
    clients: Mapping[str, ClientConfig] = field(default_factory=dict)


class NetworkZones:
    """The zones of this host's networks. Not thread-safe."""

    def __init__(self) -> None:
        self._networks: dict[str, NetworkZone] = {}
        self._listeners: list[Callable[[frozenset[str]], None]] = []

    def network(self, name: str) -> NetworkZone | None:
        """A network's zone; None if there is none."""
        return self._networks.get(name)

    def networks(self) -> tuple[NetworkZone, ...]:
        """All zones, sorted by network name."""
        return tuple(self._networks[name] for name in sorted(self._networks))

    def put(self, network: NetworkZone) -> None:
        """Add or update a network."""
        if self._networks.get(network.network) != network:
            self._networks[network.network] = network
            self._tell({network.network})

    def remove(self, name: str) -> None:
        """Remove a network; a missing one is no error."""
        if self._networks.pop(name, None) is not None:
            self._tell({name})

    def replace(self, networks: Iterable[NetworkZone]) -> None:
        """Replace all networks."""
        found = {network.network: network for network in networks}
        changed = {name for name in found.keys() | self._networks.keys() if found.get(name) != self._networks.get(name)}
        self._networks = found
        if changed:
            self._tell(changed)

    def subscribe(self, listener: Callable[[frozenset[str]], None]) -> Callable[[], None]:
        """Call ``listener`` with the names of changed networks; returns an unsubscribe function."""
        self._listeners.append(listener)
        return lambda: self._listeners.remove(listener)

    def _tell(self, changed: set[str]) -> None:
        for listener in tuple(self._listeners):
            listener(frozenset(changed))
