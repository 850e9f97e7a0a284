"""Names of containers on networks of the cluster: published to the other hosts' agents, and read from them.

A key for each attachment with names, ``name/NODE/OWNER``, is bound to a lease that this agent renews: the
names of a host that is down are gone when it expires.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections.abc import Callable, Collection, Iterator, Mapping
from ipaddress import ip_interface

from cluster import records
from cluster.view import View
from cni_plugin.agent.attachments import Announcement
from store import Delete, LeaseGone, Put, Store, StoreError

log = logging.getLogger(__name__)

LEASE_SECONDS = 30.0
_RENEWALS = 3
_BATCH = 100


class SharedNames:
    """``networks`` returns the names of the cluster's networks, ``view`` follows the store."""

    def __init__(self, node: str, store: Store, view: View, networks: Callable[[], Collection[str]]) -> None:
        self._prefix = f"{records.ROOT}name/{node}/"
        self._store = store
        self._view = view
        self.networks = networks
        self._wanted: dict[str, bytes] = {}
        self._written: dict[str, bytes] = {}
        self._lease = 0
        self._changed = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        self._task = asyncio.create_task(self._work())

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def publish(self, announced: Mapping[str, Announcement]) -> None:
        """Publish the names of these attachments, by their owners, that are on networks of the cluster."""
        networks = self.networks()
        wanted = {
            f"{self._prefix}{owner}": _encode(one)
            for owner, one in announced.items()
            if one.network in networks and one.names
        }
        if wanted != self._wanted:
            self._wanted = wanted
            self._changed.set()

    def others(self) -> Iterator[Announcement]:
        """The attachments of other hosts."""
        for key, value in self._view.values_below(f"{records.ROOT}name/"):
            if not key.startswith(self._prefix):
                with contextlib.suppress(ValueError, TypeError, KeyError, RecursionError):
                    yield _decode(key.rpartition("/")[2], value)

    async def _work(self) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LEASE_SECONDS / _RENEWALS):
                    await self._changed.wait()
            self._changed.clear()
            try:
                await self._write()
            except LeaseGone:
                self._lease, self._written = 0, {}
                self._changed.set()
            except StoreError as error:
                log.warning("names are not published, retrying: %s", error)
                await asyncio.sleep(1.0)
                self._changed.set()

    async def _write(self) -> None:
        """Renew the lease, and write what has changed. Raises LeaseGone, StoreError."""
        if not self._wanted and not self._written:
            return
        if self._lease:
            await self._store.keep_alive(self._lease)
        else:
            self._lease = await self._store.grant(LEASE_SECONDS)
        wanted = dict(self._wanted)
        operations: list[Put | Delete] = [
            Put(key, value, self._lease) for key, value in wanted.items() if self._written.get(key) != value
        ]
        operations += [Delete(key) for key in self._written if key not in wanted]
        for start in range(0, len(operations), _BATCH):
            await self._store.transact((), operations[start : start + _BATCH])
        self._written = wanted


def _encode(one: Announcement) -> bytes:
    found = {
        "network": one.network,
        "container": one.container,
        "interface": one.interface,
        "addresses": [str(cidr) for cidr in one.addresses],
        "names": list(one.names),
        "domain": one.domain,
    }
    return json.dumps(found, sort_keys=True).encode()


def _decode(owner: str, value: bytes) -> Announcement:
    found = json.loads(value.decode())
    return Announcement(
        owner=owner,
        network=str(found["network"]),
        container=str(found["container"]),
        interface=str(found["interface"]),
        namespace="",
        addresses=tuple(ip_interface(str(text)) for text in found["addresses"]),
        gateways=(),
        internal=False,
        names=tuple(map(str, found["names"])),
        domain=str(found["domain"]),
        services=(),
    )
