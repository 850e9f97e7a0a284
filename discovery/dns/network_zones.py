"""The names of containers on each network: a value for each, and a holder that somebody fills from what is attached."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class ClientConfig:
    """A container that has one of a network's addresses: the other networks that it is on, and its own name servers."""

    networks: tuple[str, ...] = ()
    upstreams: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class NetworkZone:
    """What DNS knows of one network.

    ``gateways`` are the addresses that it is asked at, and only by sources within ``subnets`` (CIDR). ``records``: each
    name of a container (its name, aliases, short id) in lower case, and its addresses. ``reverse``: each address and
    the name that it is known by. ``domains`` are search domains that belong to the network alone ("dns.podman"), under
    which the names are known as well, and ``search`` others that containers were given (the host's are known).
    ``upstreams`` are the name servers of this network instead of the host's. ``holders`` says more of some addresses.
    An ``internal`` network asks nobody.
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
    """The networks of this host and their names. Not thread-safe."""

    def __init__(self) -> None:
        self._networks: dict[str, NetworkZone] = {}
        self._listeners: list[Callable[[frozenset[str]], None]] = []

    def network(self, name: str) -> NetworkZone | None:
        """A network by its name; None if there is none."""
        return self._networks.get(name)

    def networks(self) -> tuple[NetworkZone, ...]:
        """All networks, sorted by name."""
        return tuple(self._networks[name] for name in sorted(self._networks))

    def put(self, network: NetworkZone) -> None:
        """A network is there, or is another now."""
        if self._networks.get(network.network) != network:
            self._networks[network.network] = network
            self._tell({network.network})

    def remove(self, name: str) -> None:
        """A network is gone; missing is fine."""
        if self._networks.pop(name, None) is not None:
            self._tell({name})

    def replace(self, networks: Iterable[NetworkZone]) -> None:
        """These are all networks."""
        found = {network.network: network for network in networks}
        changed = {name for name in found.keys() | self._networks.keys() if found.get(name) != self._networks.get(name)}
        self._networks = found
        if changed:
            self._tell(changed)

    def subscribe(self, listener: Callable[[frozenset[str]], None]) -> Callable[[], None]:
        """Have a function called with the names of networks that changed; returns what ends that."""
        self._listeners.append(listener)
        return lambda: self._listeners.remove(listener)

    def _tell(self, changed: set[str]) -> None:
        for listener in tuple(self._listeners):
            listener(frozenset(changed))
