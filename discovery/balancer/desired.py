"""The desired state: from the catalog to virtual services with frontends and backends. Pure.

The oldest instance of a service configures it, by keys of its ``meta``:

``weft-balance``   ``weighted`` (default: random, by weight), ``random`` (uniform), ``round-robin``
                   (by weight), ``source`` (by client address), ``maglev`` (consistent hashing, the
                   same on every host), ``sticky`` (session affinity with a timeout),
                   ``least-connections``
``weft-sticky``    affinity timeout since the client's last connection: 1m, 10m (default), 1h, 3h
                   or 24h; others are rounded up
``weft-slots``     slots of the service's table: 12, 61, 251 or 1021; default by the number of
                   instances. Maglev and source have at least 251, sticky 61 or 251
``weft-publish``   published host ports: ``30080`` or ``30080:80/tcp, 30443:https``; on the right a
                   port of the service by number or name

A virtual address has the ports of the oldest instance (``port``, and each of ``ports``), or the port
of its ``tagged_addresses.virtual``; an instance is reached at its own port of the same name. The
address of the other family is that of ``tagged_addresses`` ``lan_ipv4`` or ``lan_ipv6``.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from ipaddress import ip_address

from discovery.balancer.rules import SIZES, STICKY_SECONDS
from discovery.balancer.settings import Address, BalancerSettings, backend_address_error, virtual_address_error
from discovery.catalog import Catalog
from discovery.consul.durations import parse_duration
from discovery.reach import seen_from
from discovery.structs import Health, Instance, Status
from weft.service_options import Algorithm

VIRTUAL_TAG = "virtual"
MAX_PORTS = 64
"""Ports balanced per service, and ports published."""
_TAGGED = {4: "lan_ipv4", 6: "lan_ipv6"}
_PROTOCOLS = {"": ("tcp", "udp"), "tcp": ("tcp",), "udp": ("udp",)}


@dataclass(frozen=True, slots=True)
class BalancePolicy:
    """How a service is balanced. ``slots`` 0 is automatic; ``sticky`` in seconds."""

    algorithm: Algorithm = Algorithm.WEIGHTED
    sticky: int = 600
    slots: int = 0


@dataclass(frozen=True, slots=True)
class Frontend:
    """A port of a virtual address or, with ``address`` None, of every address of this host."""

    address: Address | None
    version: int
    protocol: str
    port: int

    def __str__(self) -> str:
        where = "any" if self.address is None else f"[{self.address}]" if self.version == 6 else str(self.address)
        return f"{where}:{self.port}/{self.protocol}"


@dataclass(frozen=True, slots=True)
class Backend:
    """An instance's address and port. ``local`` if it is on this host."""

    address: Address
    port: int
    local: bool = field(default=True, compare=False)

    @property
    def name(self) -> str:
        """The identifier, the same on every host."""
        return f"{self.address}#{self.port}"


@dataclass(frozen=True, slots=True)
class PortGroup:
    """Frontends of one family and protocol that share backends, each with its weight (0:
    draining).
    """

    frontends: tuple[Frontend, ...]
    backends: tuple[tuple[Backend, int], ...]


@dataclass(frozen=True, slots=True)
class VirtualService:
    """A service to balance. ``problems`` are errors in its settings."""

    name: str
    policy: BalancePolicy = BalancePolicy()
    addresses: tuple[Address, ...] = ()
    groups: tuple[PortGroup, ...] = ()
    problems: tuple[str, ...] = ()
    registered: frozenset[Backend] = field(default_factory=frozenset)
    """All registered instances, healthy or not."""


def desired_service(catalog: Catalog, name: str, config: BalancerSettings) -> VirtualService | None:
    """The virtual service of a name; None without virtual address and published port."""
    return virtual_service(name, catalog.health(name), [one.address for one in catalog.virtual_addresses(name)], config)


def virtual_service(
    name: str, found: Sequence[Health], virtuals: Iterable[str], config: BalancerSettings
) -> VirtualService | None:
    """The virtual service from a snapshot of the catalog."""
    problems: list[str] = []
    addresses: list[Address] = []
    for text in virtuals:
        address = _address(text)
        problem = f"{text!r} is not a valid address" if address is None else virtual_address_error(address, config)
        if address is None or problem:
            problems.append(problem)
        else:
            addresses.append(address)
    if not found:
        return VirtualService(name, addresses=tuple(addresses), problems=tuple(problems)) if addresses else None
    oldest = oldest_instance(health.instance for health in found)
    published = list(_published(oldest, config, problems))
    if not addresses and not published:
        return None
    groups = []
    registered: set[Backend] = set()
    ports = list(_ports(oldest))
    if len(ports) > MAX_PORTS:
        problems.append(f"service {name} has {len(ports)} ports, only the first {MAX_PORTS} are balanced")
    seen: set[tuple[str, int]] = set()
    for label, port in ports[:MAX_PORTS]:
        for protocol in _PROTOCOLS.get(oldest.protocol, ()):
            if (protocol, port) in seen:
                continue
            seen.add((protocol, port))
            wanted = [host for host, target, kind in published if target in (label, port) and kind in ("", protocol)]
            for version in (4, 6):
                frontends = [Frontend(one, version, protocol, port) for one in addresses if one.version == version]
                frontends += [Frontend(None, version, protocol, host) for host in wanted]
                backends = _backends(found, label, version, config, problems)
                registered |= {backend for backend, _ in backends}
                if frontends:
                    groups.append(PortGroup(tuple(frontends), tuple(sorted(backends, key=lambda pair: pair[0].name))))
    return VirtualService(
        name,
        _policy(oldest, problems),
        tuple(addresses),
        tuple(groups),
        tuple(dict.fromkeys(problems)),
        frozenset(registered),
    )


def oldest_instance(instances: Iterable[Instance]) -> Instance:
    """The instance registered first; its settings apply to the service."""
    return min(instances, key=lambda instance: (instance.create_index, instance.order))


def _ports(oldest: Instance) -> Iterator[tuple[str, int]]:
    """Names and numbers of a service's ports; "" is the main port."""
    asked = oldest.tagged_addresses.get(VIRTUAL_TAG)
    if oldest.port:
        yield "", asked.port if asked is not None and asked.port else oldest.port
    for name, port in sorted(oldest.ports.items(), key=lambda pair: pair[1]):
        if port:
            yield name, port


def _backends(
    found: Sequence[Health], label: str, version: int, config: BalancerSettings, problems: list[str]
) -> list[tuple[Backend, int]]:
    backends: dict[Backend, int] = {}
    for known in found:
        health = seen_from(config.node, known)
        if health is None:
            continue
        place = _family_address(health, version)
        if place is None:
            continue
        address, port = place
        port = health.instance.ports.get(label, 0) if label else port or health.instance.port
        if problem := backend_address_error(address, config.ranges):
            problems.append(f"instance {health.instance.id} of {health.instance.name} is not balanced: {problem}")
            continue
        if port:
            backend = Backend(address, port, health.instance.node == config.node)
            usable = not health.maintenance and health.status is not Status.CRITICAL
            backends[backend] = max(backends.get(backend, 0), health.weight if usable else 0)
    return list(backends.items())


def _family_address(health: Health, version: int) -> tuple[Address, int] | None:
    """An instance's address of a family, and a port of that address (0: the instance's)."""
    tagged = health.instance.tagged_addresses.get(_TAGGED[version])
    own = _address(health.address)
    if own is not None and own.version == version:
        return own, 0
    other = _address(tagged.address) if tagged is not None else None
    if tagged is not None and other is not None and other.version == version:
        return other, tagged.port
    return None


@lru_cache(65536)
def _address(text: str) -> Address | None:
    try:
        return ip_address(text)
    except ValueError:  # a host name
        return None


def _policy(oldest: Instance, problems: list[str]) -> BalancePolicy:
    found = BalancePolicy()
    value = oldest.meta.get("weft-balance", found.algorithm)
    try:
        algorithm = Algorithm(value)
    except ValueError:
        algorithm = found.algorithm
        problems.append(
            f"meta weft-balance {value!r} is invalid, using {algorithm}; must be one of {', '.join(Algorithm)}"
        )
    sticky, slots = found.sticky, found.slots
    if text := oldest.meta.get("weft-sticky", ""):
        try:
            wanted = parse_duration(text)
            sticky = next((seconds for seconds in STICKY_SECONDS if seconds >= wanted), STICKY_SECONDS[-1])
        except ValueError as error:
            problems.append(f"meta weft-sticky: {error}; using {sticky}s")
    if text := oldest.meta.get("weft-slots", ""):
        if text in map(str, SIZES):
            slots = int(text)
        else:
            problems.append(f"meta weft-slots {text!r} is invalid, must be one of {', '.join(map(str, SIZES))}")
    return BalancePolicy(algorithm, sticky, slots)


def _published(oldest: Instance, config: BalancerSettings, problems: list[str]) -> Iterator[tuple[int, str | int, str]]:
    """Host port, service port (name or number) and protocol ("": the service's) of each
    publication.
    """
    text = oldest.meta.get("weft-publish", "")
    low, high = config.published
    for part in [part.strip() for part in text.split(",") if part.strip()][:MAX_PORTS]:
        rest, _, protocol = part.partition("/")
        host, _, target = rest.partition(":")
        if not _number(host) or protocol not in _PROTOCOLS or target.startswith("0"):
            problems.append(f"meta weft-publish {part!r} is invalid, expected e.g. 30080, 30080:80/tcp or 30443:https")
        elif not low <= int(host) <= high:
            problems.append(f"meta weft-publish: port {host} is out of range {low} to {high}")
        else:
            ports = list(_ports(oldest))
            yield int(host), int(target) if _number(target) else target or (ports[0][0] if ports else ""), protocol


def _number(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= 5
