"""IpamDriver: subnets and addresses for ``docker network create --ipam-driver weft``.

Source: moby's ``libnetwork/docs/ipam.md``.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable
from dataclasses import replace
from ipaddress import ip_address, ip_interface, ip_network

from cni_plugin.docker import overlays
from cni_plugin.docker.state import Json, Kept, Network, Pool
from cni_plugin.networks import podman, pools
from cni_plugin.service.overlaps import Use, special
from ipam.allocate import next_free
from ipam.host_local_config import DATA_DIRECTORY
from ipam.leases import owners
from ipam.ranges import Range, Span, address_at, describe
from weft.errors import BadOption, Conflict, InUse, Missing, PoolExhausted
from weft.identity import digest
from weft.section import Section
from weft.types import Address, Subnet

SPACE = "weft"
GATEWAY = "com.docker.network.gateway"


class Addresses:
    """The pools on disk; ``lock`` serialises their changes."""

    def __init__(self, kept: Kept) -> None:
        self._kept = kept
        self._lock = threading.Lock()

    def request_pool(self, call: Section) -> Json:
        """A subnet: the one that is asked for, or a free one. Raises BadOption, InUse, PoolExhausted."""
        asked, part = call.text("Pool"), call.text("SubPool")
        with self._lock:
            others = [ip_network(one.subnet) for one in self._kept.all(Pool)]
            subnet = _subnet(asked) if asked else self._free(call.flag("V6"), others)
            if what := special(subnet):
                raise BadOption(f"invalid --subnet {subnet}: it contains {what}", hint="choose another --subnet")
            for other in others:
                if other.version == subnet.version and other.overlaps(subnet):
                    raise InUse(f"Pool overlaps with other one on this address space: {subnet} with {other}")
            if part and not _is_within(_subnet(part), subnet):
                raise BadOption(f"invalid --ip-range {part}: it is not in {subnet}")
            network = overlays.of_subnet(subnet)
            # An id of its own for each request: Docker may still release the former pool of a subnet.
            pool = Pool(digest("pool", str(subnet), str(time.time_ns())), str(subnet), part, made=time.time())
            self._kept.write(replace(pool, overlay=network.name if network is not None else ""))
        return {"PoolID": pool.id, "Pool": str(subnet), "Data": {}}

    def _free(self, v6: bool, others: list[Subnet]) -> Subnet:
        uses = [*podman.subnets_in_use(), *(Use(one, "a pool of Docker's") for one in others)]
        gateways = (ip_interface(text) for one in self._kept.all(Network) for text in one.gateways)
        uses += [Use(one.network, "a network of Docker's") for one in gateways]
        uses += overlays.uses()
        return pools.free_ipv6(uses) if v6 else pools.free_ipv4(uses)

    def release_pool(self, call: Section) -> Json:
        with self._lock:
            self._kept.remove(Pool, call.text("PoolID"))
        return {}

    def request_address(self, call: Section) -> Json:
        """An address of a pool, with the pool's prefix length. Raises Conflict, PoolExhausted."""
        with self._lock:
            pool = self._kept.read(Pool, call.text("PoolID"))
            if pool is None:
                raise Missing(f"there is no pool {call.text('PoolID')}", hint="remove the network and create it again")
            subnet = ip_network(pool.subnet)
            asked = call.address("Address")
            call.problems.raise_any()
            taken = frozenset(map(ip_address, pool.taken))
            is_gateway = call.section("Options").text("RequestAddressType") == GATEWAY
            if pool.overlay:
                found = self._of_overlay(pool, subnet, asked, taken, is_gateway=is_gateway)
            else:
                found = asked if asked is not None else self._next(_ranges(pool, subnet), pool.last, taken)
            if found is None:
                raise PoolExhausted(f"no available addresses in {pool.part or pool.subnet}")
            if found not in subnet:
                raise BadOption(f"address {found} is not in the pool {subnet}")
            if not any(found in one.span for one in _ranges(replace(pool, part=""), subnet)):
                raise BadOption(f"address {found} is not one of a host in {subnet}")
            if found in taken:
                raise Conflict(f"Address already in use: {found}")
            last = pool.last if asked is not None or is_gateway else str(found)
            gateway = str(found) if is_gateway else pool.gateway
            self._kept.write(replace(pool, taken={**pool.taken, str(found): time.time()}, last=last, gateway=gateway))
        return {"Address": f"{found}/{subnet.prefixlen}", "Data": {}}

    @staticmethod
    def _next(ranges: tuple[Range, ...], last: str, taken: frozenset[Address]) -> Address | None:
        return next_free(ranges, frozenset(), ip_address(last) if last else None, _Taken(taken))

    def _of_overlay(
        self, pool: Pool, subnet: Subnet, asked: Address | None, taken: frozenset[Address], *, is_gateway: bool
    ) -> Address | None:
        """An address of this host's blocks that no other attachment of the network leases either."""
        if is_gateway:
            found = overlays.gateway(pool.overlay, subnet)
            if asked not in (None, found):
                raise BadOption(f"--gateway {asked} is not that of overlay network {pool.overlay}: {found}")
            return found
        ranges = overlays.ranges(pool.overlay, subnet)
        if asked is not None and not any(asked in one.requests for one in ranges):
            raise BadOption(f"address {asked} is not in this host's blocks: {describe(ranges)}")
        leased = frozenset(address for address, _, _ in owners(f"{DATA_DIRECTORY}/{pool.overlay}"))
        if asked in leased:
            raise Conflict(f"Address already in use: {asked}")
        return asked if asked is not None else self._next(ranges, pool.last, taken | leased)

    def release_address(self, call: Section) -> Json:
        """Release an address; one that is not taken is fine."""
        address = call.address("Address")
        call.problems.raise_any()
        self.free(call.text("PoolID"), [address] if address is not None else [])
        return {}

    def free(self, pool_id: str, addresses: Iterable[Address], before: float = float("inf")) -> list[str]:
        """Release addresses that were given out before a time; those that were."""
        with self._lock:
            pool = self._kept.read(Pool, pool_id)
            if pool is None:
                return []
            gone = [text for text in map(str, addresses) if pool.taken.get(text, before) < before]
            if gone:
                taken = {text: when for text, when in pool.taken.items() if text not in gone}
                self._kept.write(replace(pool, taken=taken))
            return gone


class _Taken:
    """The addresses that are given out, as ``ipam.allocate`` looks at them."""

    def __init__(self, taken: frozenset[Address]) -> None:
        self._numbers = {(one.version, int(one)) for one in taken}

    def first_free_from(self, version: int, number: int) -> int:
        while (version, number) in self._numbers:
            number += 1
        return number


def _ranges(pool: Pool, subnet: Subnet) -> tuple[Range, ...]:
    """What is given out to those that ask for no address of their own."""
    part = ip_network(pool.part) if pool.part else subnet
    reserved = 1 if subnet.num_addresses > 2 else 0
    low, high = int(subnet[0]) + reserved, int(subnet[-1]) - (reserved if subnet.version == 4 else 0)
    first, last = max(low, int(part[0])), min(high, int(part[-1]))
    if first > last:
        return ()
    span = Span(address_at(subnet.version, first), address_at(subnet.version, last))
    return (Range(subnet, span, None),)


def _subnet(text: str) -> Subnet:
    try:
        return ip_network(text)
    except ValueError as error:
        raise BadOption(f"invalid subnet {text!r}: {error}") from None


def _is_within(part: Subnet, subnet: Subnet) -> bool:
    return part.version == subnet.version and part[0] in subnet and part[-1] in subnet
