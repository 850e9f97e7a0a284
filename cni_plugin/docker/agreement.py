"""The driver's state agrees with Docker's: what Docker no longer has is removed, what it still has is kept.

Docker calls a driver once. A call is lost where the driver was down (``docker network rm``), or was
killed before it answered, or dockerd was killed between two calls. Docker's API says what there is.
"""

from __future__ import annotations

import asyncio
import contextlib
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from ipaddress import ip_address, ip_interface, ip_network
from typing import Protocol, TypeVar

from cni_plugin.docker.addresses import Addresses
from cni_plugin.docker.api import DockerApi, NoDocker
from cni_plugin.docker.calls import Calls
from cni_plugin.docker.cluster import ClusterNetworks
from cni_plugin.docker.driver import Networks
from cni_plugin.docker.naming import Naming, endpoints
from cni_plugin.docker.networks import Pooled, Wanted
from cni_plugin.docker.state import Endpoint, Json, Kept, Network, Pool
from cni_plugin.wire.plugins import OWN_NAME
from weft import stderr
from weft.errors import WeftError
from weft.section import Section
from weft.types import Address, Subnet

GRACE = 5.0
"""Seconds between the two looks at Docker's API that something must be missing in: Docker knows of a
network or an endpoint only after the driver's answer.
"""
_RETRY_SECONDS = 1.0
_AGAIN_SECONDS = 300.0
_AFTER_CALL_SECONDS = 15.0
"""From a call of Docker's to the next look: Docker may have given up waiting for the call's answer."""
_LAST_LOOK_SECONDS = 45.0
"""From that look to a last one, where Docker calls no more: it repeats a call that has failed for 30 s, and forgets
then what it called for without calling again.
"""
_CLUSTER_SECONDS = 2.0
"""Between two looks whether files of overlay networks have changed."""
_RENAMED = ("container", "rename")
_TOLD = (("container", "start"), _RENAMED, ("network", "connect"))
"""Events after which a container may be on another network, or has another name."""
_NO_CONTAINER = "ep-"
"""How Docker's API names an endpoint that no container has joined."""
_T = TypeVar("_T")


class Blocking(Protocol):
    """Runs blocking work in a thread."""

    def __call__(self, work: Callable[[], _T]) -> Awaitable[_T]: ...


@dataclass(slots=True)
class Seen:
    """What Docker has of this driver, at one moment."""

    networks: dict[str, Section] = field(default_factory=dict)
    endpoints: set[str] = field(default_factory=set)
    containers: set[str] = field(default_factory=set)
    addresses: dict[Subnet, set[Address]] = field(default_factory=dict)
    """Of each subnet whose addresses weft gives out, those that are in use."""


@dataclass(frozen=True, slots=True)
class Surplus:
    """Files of what Docker does not have, and when they were made; of pools, single addresses."""

    networks: frozenset[str]
    endpoints: frozenset[tuple[str, float]]
    pools: frozenset[tuple[str, float]]
    addresses: frozenset[tuple[str, str, float]]

    def also_in(self, later: Surplus) -> Surplus:
        return Surplus(
            self.networks & later.networks,
            self.endpoints & later.endpoints,
            self.pools & later.pools,
            self.addresses & later.addresses,
        )

    def not_in(self, earlier: Surplus) -> Surplus:
        return Surplus(
            self.networks - earlier.networks,
            self.endpoints - earlier.endpoints,
            self.pools - earlier.pools,
            self.addresses - earlier.addresses,
        )

    def __bool__(self) -> bool:
        return bool(self.networks or self.endpoints or self.pools or self.addresses)


class Agreement:
    """Compares, and follows Docker's events. ``run`` does its blocking work in the driver's threads."""

    def __init__(
        self,
        api: DockerApi,
        kept: Kept,
        calls: Calls,
        driver: Networks,
        addresses: Addresses,
        blocking: Blocking,
    ) -> None:
        self._api = api
        self._kept = kept
        self._calls = calls
        self._driver = driver
        self._addresses = addresses
        self._naming = Naming(kept, calls)
        self._blocking = blocking
        self._cluster = ClusterNetworks(api, kept, blocking)
        # Endpoints and sandboxes whose links were found there: each is looked for once, not at every event.
        self._settled: set[tuple[str, str]] = set()
        self._called = asyncio.Event()
        # Those of these whose container's names are not published yet.
        self._unnamed: set[str] = set()

    def called(self) -> None:
        """Note that a call has changed something: look again in a while."""
        self._called.set()

    async def run(self) -> None:
        """Until cancelled. dockerd need not run."""
        while True:
            try:
                await self._follow()
            except NoDocker:
                pass
            except Exception:  # whatever it was must not be the end of all comparisons
                stderr.write(f"weft docker: comparing with Docker failed, and is repeated: {traceback.format_exc()}\n")
            await asyncio.sleep(_RETRY_SECONDS)

    async def _follow(self) -> None:
        """Agree, and go on with each event, until dockerd ends or one of them fails."""
        events = self._api.events()
        await anext(events, None)
        works = (self._follow_events(events), self._agree_again(), self._follow_cluster())
        tasks = [asyncio.create_task(work) for work in works]
        try:
            ended, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in ended:
                task.result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _follow_events(self, events: AsyncIterator[Json]) -> None:
        async for event in events:
            told = (event.get("Type"), event.get("Action"))
            if told in _TOLD:
                await self.settle()
                if self._unnamed or told == _RENAMED:  # else it is no container of weft's
                    await self._announce(_container(event), again=True)

    async def _agree_again(self) -> None:
        while True:
            pause = _RETRY_SECONDS
            with contextlib.suppress(NoDocker):
                await self.agree()
                pause = _AGAIN_SECONDS
            with contextlib.suppress(TimeoutError, NoDocker):
                async with asyncio.timeout(pause):
                    await self._trim_after_calls()

    async def _trim_after_calls(self) -> None:
        """While Docker calls, remove what it does not have: a call whose answer Docker no longer waits for is
        finished all the same, and never undone. Raises NoDocker.
        """
        while True:
            await self._called.wait()
            await asyncio.sleep(_AFTER_CALL_SECONDS)
            self._called.clear()
            try:
                await self.settle()
                await self._trim(await self._seen())
                try:
                    async with asyncio.timeout(_LAST_LOOK_SECONDS):
                        await self._called.wait()
                except TimeoutError:
                    await self.agree()  # also what Docker has after all, of a call that was taken for given up
            except NoDocker:
                self._called.set()  # the looks that are owed are made once dockerd answers
                raise

    async def _follow_cluster(self) -> None:
        while True:
            if self._cluster.changed():
                with contextlib.suppress(NoDocker):
                    await self._cluster.follow()
            await asyncio.sleep(_CLUSTER_SECONDS)

    async def settle(self) -> None:
        """Note where Docker has moved links since their containers' Join."""
        await self._work(self._settle)

    def _settle(self) -> None:
        joined = {(one.id, one.sandbox): one for one in self._kept.all(Endpoint) if one.sandbox}
        self._settled &= joined.keys()
        self._unnamed &= {name for name, _ in joined}
        for key in joined.keys() - self._settled:
            network = self._kept.read(Network, joined[key].network)
            try:
                is_settled = network is not None and self._calls.settle(network, joined[key])
            except WeftError as error:  # of this one; the names of the others wait for them
                stderr.write(f"weft docker: endpoint {key[0][:12]}: {error}\n")
                continue
            if is_settled:
                self._settled.add(key)
                self._unnamed.add(key[0])

    async def _work(self, work: Callable[[], object], about: str = "") -> None:
        """Run in a thread, and log what it was ``about``. What fails is tried again the next time."""
        try:
            await self._blocking(work)
            if about:
                stderr.write(f"weft docker: removed {about}, which Docker no longer has\n")
        except WeftError as error:
            stderr.write(f"weft docker: {error}\n")

    async def agree(self) -> None:
        """Keep the networks that Docker has and weft lost, and remove what Docker does not have. Raises
        NoDocker.
        """
        seen = await self._seen()
        for name, section in seen.networks.items():
            await self._work(partial(self._restore, name, section))
        await self.settle()
        for name in sorted(seen.containers):
            await self._announce(name, again=False)
        await self._trim(seen)

    async def _trim(self, seen: Seen) -> None:
        """Remove what Docker does not have, now and a moment later. Raises NoDocker."""
        surplus = await self._blocking(partial(self._surplus, seen))
        while surplus:
            await asyncio.sleep(GRACE)
            later = await self._blocking(partial(self._surplus, await self._seen()))
            await self._remove(surplus.also_in(later))
            surplus = later.not_in(surplus)  # of which Docker has let go meanwhile

    async def _announce(self, name: str, *, again: bool) -> None:
        """Publish the names of a container that runs."""
        container = await self._api.container(name)
        if container is not None and container.section("State").flag("Running"):
            await self._work(partial(self._naming.announce, container, again=again))
            self._unnamed -= set(endpoints(container))

    async def _seen(self) -> Seen:
        found = Seen()
        for section in await self._api.networks(OWN_NAME):
            if section.text("Driver") == OWN_NAME:  # else weft gives out its addresses only
                found.networks[section.text("Id")] = section
            ipam = section.section("IPAM")
            own = ipam.text("Driver") == OWN_NAME
            for config in ipam.sections("Config") if own else ():
                subnet = config.subnet("Subnet")
                if subnet is not None:
                    found.addresses[subnet] = set(_given(config))
            containers = section.section("Containers")
            raw = section.raw("Containers")
            for name in list(raw) if isinstance(raw, dict) else ():
                one = containers.section(name)
                if not str(name).startswith(_NO_CONTAINER):
                    found.containers.add(str(name))
                found.endpoints.add(one.text("EndpointID"))
                for key in ("IPv4Address", "IPv6Address"):
                    if text := one.text(key):
                        address = ip_interface(text).ip
                        for subnet, used in found.addresses.items():
                            if address.version == subnet.version and address in subnet:
                                used.add(address)
        return found

    def _restore(self, name: str, section: Section) -> None:
        """Keep a network that Docker has, and weft does not: its file is lost."""
        if self._kept.read(Network, name) is None:
            self._driver.keep(wanted(section, {ip_network(one.subnet): one.gateway for one in self._kept.all(Pool)}))
            stderr.write(f"weft docker: network {section.text('Name')} ({name[:12]}) is kept again\n")

    def _surplus(self, seen: Seen) -> Surplus:
        pools = list(self._kept.all(Pool))
        unused = [one for one in pools if ip_network(one.subnet) not in seen.addresses]
        return Surplus(
            frozenset(one.id for one in self._kept.all(Network) if one.id not in seen.networks),
            frozenset((one.id, one.made) for one in self._kept.all(Endpoint) if one.id not in seen.endpoints),
            frozenset((one.id, one.made) for one in unused),
            frozenset(
                (pool.id, text, made)
                for pool in pools
                if pool not in unused
                for text, made in pool.taken.items()
                if text != pool.gateway and ip_address(text) not in seen.addresses[ip_network(pool.subnet)]
            ),
        )

    async def _remove(self, surplus: Surplus) -> None:
        for endpoint, _ in surplus.endpoints:
            await self._work(partial(self._remove_endpoint, endpoint), f"endpoint {endpoint[:12]}")
        for network in surplus.networks:
            await self._work(partial(self._driver.forget, network), f"network {network[:12]}")
        for pool, _ in surplus.pools:
            await self._work(partial(self._kept.remove, Pool, pool), f"pool {pool}")
        for pool, text, made in surplus.addresses:
            await self._work(partial(self._free, pool, text, made), f"address {text}")

    def _remove_endpoint(self, name: str) -> None:
        endpoint = self._kept.read(Endpoint, name)  # as it is now: what is known of it may have become more
        if endpoint is not None:
            self._driver.remove_endpoint(endpoint)

    def _free(self, pool: str, text: str, made: float) -> None:
        self._addresses.free(pool, [ip_address(text)], before=made + 0.001)


def _container(event: Json) -> str:
    """The id of the container that an event is about."""
    actor = Section(event).section("Actor")
    return actor.text("ID") if event.get("Type") == "container" else actor.section("Attributes").text("container")


def wanted(section: Section, gateways: Mapping[Subnet, str]) -> Wanted:
    """What CreateNetwork was passed, from ``docker network inspect``.

    That has no gateway where the user gave none. It is that of weft's pool, or the first address: Docker's
    own IPAM gives out that.
    """
    raw = section.raw("Options")
    options = section.section("Options")
    pools = []
    own = section.section("IPAM").text("Driver") == OWN_NAME
    for config in section.section("IPAM").sections("Config"):
        subnet = config.subnet("Subnet")
        if subnet is not None:
            first = _first(config.subnet("IPRange") or subnet, subnet)
            gateway = config.text("Gateway").partition("/")[0] or gateways.get(subnet, first)
            pools.append(Pooled(subnet, f"{gateway}/{subnet.prefixlen}" if gateway else "", own))
    return Wanted(
        section.text("Id"),
        {name: options.text(name) for name in (raw if isinstance(raw, dict) else ())},
        tuple(pools),
        section.flag("Internal"),
    )


def _first(part: Subnet, subnet: Subnet) -> str:
    return str(part[1] if part[0] == subnet[0] and part.num_addresses > 1 else part[0])


def _given(config: Section) -> Iterable[Address]:
    """The gateway and the auxiliary addresses of a subnet."""
    raw = config.raw("AuxiliaryAddresses")
    others = config.section("AuxiliaryAddresses")
    texts = [config.text("Gateway"), *(others.text(name) for name in (raw if isinstance(raw, dict) else ()))]
    return [ip_interface(text).ip for text in texts if text]
