"""The agent's part in a cluster: its node's record and sign of life, and on members of etcd what all need.

On every node that has an etcd cluster ``NodeKeeper``; where weft has made the cluster also ``MemberKeeper``.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace

from cluster import authority, grants, join_client, nodes, setting_up, tokens
from cluster.diagnosis import CLOCK_SECONDS, clock_key, clock_offset
from cluster.etcd_server import EtcdServer
from cluster.join_client import Again
from cluster.join_server import JoinServer
from cluster.local import CLIENT_PORT, JOIN_PORT, Files, Local, endpoint, is_own
from cluster.membership import Membership, Seen
from cluster.nodes import DecodeError, Node, Role, State
from cluster.setting_up import Host
from store.etcd.client import EtcdStore, open_etcd
from store.interface import Compare, LeaseGone, Put, Store
from weft import __version__
from weft.errors import WeftError
from weft.types import Address

log = logging.getLogger(__name__)

_RENEWED_EVERY = nodes.ALIVE_SECONDS / 3
_AGAIN_SECONDS = 2.0
"""After a failure of the store."""
_LOOK_SECONDS = 1.0
"""Between two looks whether etcd runs."""
_MOST_PAUSE = 30.0
_SETTLE_SECONDS = (1.5, 3.0)
_CLOCK_SECONDS = 300.0
"""Between two writes of a node's time."""
_ENDPOINTS_SECONDS = 300.0
_CERTIFICATE_SECONDS = 3600.0
_DAY = 86400.0


class NodeKeeper:
    """Keeps the record of a node true, and its key ``alive`` while the agent runs.

    ``addresses`` tells the node's own; ``on_state`` is called with the state in the record, at first and when it
    changes. With ``creates`` a node without a record gets one: on clusters that weft has not made, where there is no
    join.
    """

    def __init__(
        self,
        store: Store,
        name: str,
        id_: str,
        addresses: Callable[[], tuple[Address, ...]],
        on_state: Callable[[State], Awaitable[None]],
        *,
        creates: bool,
    ) -> None:
        self._store = store
        self._name, self._id = name, id_
        self._addresses = addresses
        self._on_state = on_state
        self._creates = creates
        self._lease = 0
        self._state: State | None = None
        self._clock_at = 0.0
        self._task: asyncio.Task[None] | None = None
        self.problem = ""
        """Why the node does not take part, "" while it does."""

    async def start(self) -> None:
        """Raises StoreError."""
        await self._round()
        self._task = asyncio.create_task(self._run(), name="node-keeper")

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        if self._lease:
            with contextlib.suppress(WeftError):
                await self._store.revoke(self._lease)

    async def _run(self) -> None:
        pause = _RENEWED_EVERY
        while True:
            await asyncio.sleep(pause * random.uniform(0.8, 1.0))
            pause = _RENEWED_EVERY
            try:
                await self._round()
            except WeftError as error:
                # The store logs an outage; that a node was removed it cannot read any more.
                self.problem = f"the node's record cannot be kept: {error.message}"
                pause = _AGAIN_SECONDS

    async def _round(self) -> None:
        node = await self._record()
        if node is None or node.state is State.REMOVED:
            return
        if self._lease:
            try:
                await self._store.keep_alive(self._lease)
            except LeaseGone:
                log.info("the lease of this node has expired; it takes part again")
                self._lease = 0
        if not self._lease:
            self._clock_at = 0.0
            self._lease = await self._store.grant(nodes.ALIVE_SECONDS)
            await self._store.put(nodes.alive_key(self._name), self._id.encode(), lease=self._lease)
        if time.monotonic() >= self._clock_at:
            self._clock_at = time.monotonic() + _CLOCK_SECONDS * random.uniform(0.8, 1.2)
            await self._store.put(clock_key(self._name), f"{time.time():.3f}".encode(), lease=self._lease)
        if node.state is not self._state:
            await self._on_state(node.state)
            self._state = node.state

    async def _record(self) -> Node | None:
        """The record, brought up to date; None where this host has no part in the cluster."""
        key = nodes.record_key(self._name)
        entry = await self._store.get(key)
        now = self._addresses()
        try:
            found = nodes.decode(entry) if entry else None
        except DecodeError as error:
            self._tell(str(error))
            return None
        if found is None and not self._creates:
            self._tell(f"the cluster has no node {self._name}: weft cluster leave, then join again")
            return None
        if found is not None and found.id != self._id:
            self._tell(
                f"the cluster has another node {self._name}: this host needs another name, or the other one is gone: "
                f"weft node rm {self._name}"
            )
            return None
        if found is not None and found.state is State.REMOVED:
            when = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(found.removed))
            self._tell(f"this node was removed from the cluster at {when}: weft cluster leave, then join again")
            return found
        self._tell("")
        made = found or Node(self._name, self._id, now, __version__, time.time(), Role.CLIENT)
        wanted = replace(made, version=__version__, addresses=now or made.addresses)
        if wanted != found:
            compare = Compare(key, "mod", entry.mod_revision if entry else 0)
            await self._store.transact([compare], [Put(key, nodes.encode(wanted))])
        return wanted

    def _tell(self, problem: str) -> None:
        if problem != self.problem:
            self.problem = problem
            if problem:
                log.error("%s", problem)


class MemberKeeper:
    """On a node of a cluster that weft has made: etcd's process, its members, joins and certificates.

    ``store`` is the agent's own; ``restart`` restarts the agent, whose certificate is new.
    """

    def __init__(
        self, own: Files, local: Local, server: EtcdServer, store: Store, restart: Callable[[str], None]
    ) -> None:
        self._own = own
        self._agents_store = store
        self._local = local
        self._server = server
        self._restart = restart
        self._host = Host(own, server, "", lambda said: log.info("%s", said))
        self._store: EtcdStore | None = None
        self._cluster: Membership | None = None
        self._joins: JoinServer | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._endpoints_at = 0.0
        self._clocks: dict[str, int] = {}
        self._etcd_pause = self._etcd_since = 0.0
        self._problems: dict[str, str] = {}

    @property
    def problem(self) -> str:
        """What does not work, "" if all does."""
        return "; ".join(self._problems.values())

    async def start(self) -> None:
        """Raises WeftError."""
        for work in (self._run_etcd, self._run_members, self._run_certificates):
            self._tasks.append(asyncio.create_task(self._forever(work), name=work.__name__))

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._joins is not None:
            await self._joins.close()
        if self._store is not None:
            await self._store.close()

    async def _forever(self, work: Callable[[], Awaitable[float]]) -> None:
        """Do it again and again, after the seconds that it returns."""
        while True:
            try:
                pause = await work()
                self._problems.pop(work.__name__, None)
            except (WeftError, OSError, DecodeError) as error:
                if str(error) != self._problems.get(work.__name__):
                    log.warning("cluster: %s", error)
                self._problems[work.__name__] = str(error)
                pause = _SETTLE_SECONDS[1]
            await asyncio.sleep(pause)

    async def _run_etcd(self) -> float:
        """Start it again when it has died."""
        if self._local.is_member and not is_own(self._local.address):
            raise WeftError(
                f"this host has no address {self._local.address} any more, at which it is a member of etcd: give it "
                f"back, or on another member weft node rm {self._local.node}, here weft cluster leave, and join again"
            )
        if self._local.is_member and self._server.is_configured and await asyncio.to_thread(self._server.ensure):
            log.warning("etcd did not run; it is started")
            # One that ends at once, because it was removed or lacks something, is started less and less often.
            self._etcd_pause = min(self._etcd_pause * 2, _MOST_PAUSE) if self._etcd_pause else _LOOK_SECONDS
            self._etcd_since = time.monotonic()
            return self._etcd_pause
        if time.monotonic() - self._etcd_since > _MOST_PAUSE:
            self._etcd_pause = 0.0
        return _LOOK_SECONDS

    async def _run_members(self) -> float:
        """Let etcd's members be those that the records say; serve joins."""
        cluster = await self._administration()
        if cluster is None:
            await self._follow_role()
            return _SETTLE_SECONDS[1]
        self._check_own(await cluster.see())
        await cluster.settle()
        seen = await cluster.see()
        await self._compare_clocks(cluster)
        await self._follow_members()
        members = {one.name for one in await cluster.members()}
        own = seen.nodes[self._local.node]
        if self._local.node not in members and not await asyncio.to_thread(self._server.running):
            await self._change_role(own, "is no member of etcd any more")
            return _SETTLE_SECONDS[1]
        if own.role is not self._local.role:
            self._local = self._own.save(replace(self._local, role=own.role))
        await self._serve_joins(cluster, seen, members)
        return random.uniform(*_SETTLE_SECONDS)

    def _check_own(self, seen: Seen) -> None:
        """A node that was removed acts no more. Raises WeftError."""
        own = seen.nodes.get(self._local.node)
        if own is None or own.id != self._local.id or own.state is State.REMOVED:
            raise WeftError(
                f"this node, {self._local.node}, was removed from the cluster",
                hint="weft cluster leave --force, then join again",
            )

    async def _administration(self) -> Membership | None:
        """None on a client."""
        if self._cluster is None and self._own.has("root.pem"):
            self._store = await open_etcd(self._own.root_settings(self._local))
            self._cluster = Membership(self._store, self._own)
            self._joins = JoinServer(self._cluster, self._own, self._local, added=self._follow_members)
        return self._cluster

    async def _serve_joins(self, cluster: Membership, seen: Seen, members: set[str]) -> None:
        """Listen while a token may be used, a node is to become a member, or a certificate must be renewed."""
        assert self._joins is not None
        now = time.time()
        found = (await cluster.store.range(nodes.TOKENS)).entries
        outstanding = any(tokens.is_outstanding(tokens.decode(one), now) for one in found)
        pending = any(one.role is not Role.CLIENT and one.name not in members for one in seen.present)
        old = any(one.expires - now < authority.RENEW_DAYS * _DAY for one in seen.present)
        if outstanding or pending or old:
            await self._joins.open()
        else:
            await self._joins.close()

    async def _compare_clocks(self, cluster: Membership) -> None:
        """Compare what nodes have written since the last look with the time now."""
        now, first = time.time(), not self._clocks
        for entry in (await cluster.store.range(nodes.ROOT)).entries:
            name = entry.key.removeprefix(nodes.ROOT).removesuffix("/clock")
            if "/" in name or not entry.key.endswith("/clock"):
                continue
            is_new = self._clocks.get(name) != entry.mod_revision
            self._clocks[name] = entry.mod_revision
            ahead = clock_offset(entry.value, now)
            if first or not is_new or ahead is None:
                continue
            # It was written up to one look ago.
            if not -CLOCK_SECONDS - _SETTLE_SECONDS[1] <= ahead <= CLOCK_SECONDS:
                self._problems[f"clock of {name}"] = (
                    f"the clock of node {name} differs by {ahead:.0f} s from this one's"
                )
                log.warning("%s", self._problems[f"clock of {name}"])
            else:
                self._problems.pop(f"clock of {name}", None)

    async def _follow_members(self) -> None:
        """Also before a new member takes this one's place, which is then the only one that it reaches."""
        if self._cluster is not None:
            await self._follow_endpoints(await self._cluster.endpoints())

    async def _follow_endpoints(self, found: tuple[str, ...]) -> None:
        if found and set(found) != set(self._local.endpoints):
            log.info("etcd is now at %s", ", ".join(found))
            self._local = self._own.save(replace(self._local, endpoints=found))
        for store in (self._agents_store, self._store):
            if isinstance(store, EtcdStore):
                store.follow(self._own.settings(self._local).endpoints)

    # A node whose role in etcd changes

    async def _follow_role(self) -> None:
        """A client looks whether it is to be a member, and rarely where etcd is."""
        entry = await self._agents_store.get(nodes.record_key(self._local.node))
        own = nodes.decode(entry) if entry else None
        if own is None or own.id != self._local.id or own.state is State.REMOVED:
            return
        if own.role is Role.CLIENT and time.monotonic() < self._endpoints_at:
            return
        self._endpoints_at = time.monotonic() + _ENDPOINTS_SECONDS * random.uniform(0.8, 1.2)
        known, _, _ = nodes.split((await self._agents_store.range(nodes.ROOT)).entries)
        known = grants.granted(known, await grants.read(self._agents_store))
        await self._follow_endpoints(
            tuple(
                endpoint(one.addresses[0], CLIENT_PORT)
                for one in known.values()
                if one.role is not Role.CLIENT and one.state is not State.REMOVED and one.addresses and one != own
            )
        )
        if own.role is not Role.CLIENT:
            await self._change_role(own, "becomes a member of etcd")

    async def _change_role(self, own: Node, why: str) -> None:
        """Become a member of etcd with nothing of what it was before, or a client."""
        log.info("this node %s: it is %s", why, own.role)
        await asyncio.to_thread(self._server.stop)
        self._server.clear()
        if own.role is not Role.CLIENT:
            await self._follow_address(own)
        self._local = self._own.save(replace(self._local, role=own.role))
        if self._local.is_member:
            itself = endpoint(self._local.address, JOIN_PORT)
            others = tuple(one for one in self._local.join_addresses if one != itself)
            await setting_up.become_member(self._host, self._local, others)
            return
        if self._joins is not None:
            await self._joins.close()
        if self._store is not None:
            await self._store.close()
        self._store = self._cluster = self._joins = None
        self._own.remove_members()

    async def _follow_address(self, own: Node) -> None:
        """A client that is to be a member may have another address than it has joined with: etcd serves that, and
        the certificate is for it.
        """
        if not is_own(self._local.address) and own.addresses:
            self._local = self._own.save(replace(self._local, address=str(own.addresses[0])))
        if self._local.underlay not in authority.addresses(self._own.read("node.pem")):
            await renew(self._own, self._local, always=True)

    # Certificates

    async def _run_certificates(self) -> float:
        """Renew this node's certificates while they are still valid for long."""
        if await renew(self._own, self._local):
            self._restart("this node's certificate is new")
        return _CERTIFICATE_SECONDS


async def renew(own: Files, local: Local, *, always: bool = False) -> bool:
    """Renew the certificates of this node where they end soon; whether they are new. Raises WeftError."""
    left = authority.expires(own.read("node.pem")) - time.time()
    if not always and left > authority.RENEW_DAYS * _DAY:
        return False
    key = own.read("node-key.pem")
    if own.has("root.pem"):
        setting_up.sign_member(own)
        async with setting_up.administrating(own, local) as cluster:
            made = await cluster.renew(local.node, authority.public_key(key), time.time())
    else:
        request = {"op": "renew", "request": authority.request(key, local.node).decode()}
        try:
            made = str((await join_client.ask(local.join_addresses, own, request)).get("certificate", "")).encode()
        except Again as error:
            raise WeftError(
                f"cannot renew this node's certificate: {error.message}",
                hint=f"members serve that in its last {authority.RENEW_DAYS} days, and while there is a join token: on "
                f"one of them weft cluster token",
            ) from None
    if not authority.belongs(made, key):
        raise WeftError("the certificate that the member sent is not for this node's key", hint="see weft node ls")
    own.write("node.pem", made)
    log.info("certificates renewed, valid until %s", time.strftime("%Y-%m-%d", time.gmtime(authority.expires(made))))
    return True
