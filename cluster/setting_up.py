"""What a host does to make a cluster, to join one, and to leave it: steps that may be repeated after a kill."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from cluster import authority, join_client, membership, weft_toml
from cluster.authority import Authority
from cluster.etcd_server import CONFIGURATION, EtcdServer, binary, configuration
from cluster.join_client import Again
from cluster.local import CLIENT_PORT, Files, Local, endpoint, peer_url
from cluster.membership import Membership
from cluster.nodes import Config, Role, State
from cluster.tokens import Token
from store.etcd.client import open_etcd
from store.interface import Unavailable
from weft import __version__
from weft.errors import Conflict, WeftError

_PATIENCE = 90.0
"""Seconds for what another host, or etcd, has to do first."""
_PAUSE = 0.5

Say = Callable[[str], None]
Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Host:
    """What a command changes on this host: its files, its member of etcd, ``weft.toml``; ``say`` tells of steps.

    ``kept`` are files and folders with what is known of the cluster that this host is in, or was in.
    """

    own: Files
    server: EtcdServer
    toml: str
    say: Say
    kept: tuple[str, ...] = ()

    def begin(self) -> None:
        """Make the folder, for a cluster of which this host knows nothing: what it knows of one that it has left
        would be written to this one.
        """
        for path in map(Path, self.kept):
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
        self.own.prepare()


@contextlib.asynccontextmanager
async def administrating(own: Files, local: Local) -> AsyncIterator[Membership]:
    """The cluster, administrated from this member. Raises Conflict on a host that is none."""
    if not own.has("root.pem"):
        members = ", ".join(one.rpartition(":")[0] for one in local.endpoints)
        raise Conflict(
            "this host is no member of the cluster's etcd, and may not change other nodes",
            hint=f"run it on a member: {members}",
        )
    store = await open_etcd(own.root_settings(local))
    try:
        yield Membership(store, own)
    finally:
        await store.close()


async def make(host: Host, node: str, address: str, voters: int) -> Local:
    """Make a cluster of this host. Raises WeftError."""
    own = host.own
    membership.check_name(node)
    membership.check_address(address)
    local = own.load()
    if local is None:
        binary()  # before anything is written
        weft_toml.check_free(host.toml)
        host.begin()
        local = own.save(
            Local(node, membership.new_id(), address, cluster=membership.new_id(), role=Role.VOTER, made=True)
        )
    elif local.done:
        raise Conflict(
            f"this host is node {local.node} of a cluster already", hint="weft cluster token lets another host join"
        )
    elif not local.made:
        raise Conflict("this host has begun to join a cluster", hint="repeat weft cluster join, or weft cluster leave")
    _make_authorities(own, local)
    local = own.save(
        replace(
            local,
            fingerprint=authority.fingerprint(own.read("ca.pem")),
            endpoints=(endpoint(local.address, CLIENT_PORT),),
        )
    )
    _sign_own(own, local)
    sign_member(own)
    if not own.has(CONFIGURATION):
        initial = f"{local.node}={peer_url(local.address)}"
        own.write(CONFIGURATION, configuration(local, own, initial, new=True))
    host.say(f"certificates in {own.folder}")
    host.server.install()
    host.server.ensure()
    host.say(f"etcd on {local.endpoints[0]}")
    async with administrating(own, local) as cluster:
        await _patiently(lambda: cluster.members(), Unavailable, host)
        first = membership.first_node(
            local, own.read("node.pem"), authority.public_key(own.read("node-key.pem")), time.time()
        )
        await cluster.bootstrap(first, Config(local.cluster, voters, time.time()))
    weft_toml.add(host.toml, own.folder)
    host.say(f"[store] in {host.toml}")
    return own.save(replace(local, done=True))


async def join(host: Host, token: Token, node: str, address: str) -> tuple[Local, bool]:
    """Join a cluster; whether anything was left to do. Raises WeftError."""
    own = host.own
    membership.check_name(node)
    local = own.load()
    if local is not None and local.made:
        raise Conflict(
            f"this host is node {local.node} of a cluster that it has made", hint="weft cluster leave ends that"
        )
    if local is not None and local.cluster and local.fingerprint != token.fingerprint:
        raise Conflict(f"this host is node {local.node} of another cluster", hint="weft cluster leave ends that")
    if local is not None and local.done:
        return local, False
    # A member listens some seconds after a token was made.
    ca = await _patiently(lambda: join_client.fetch_authority(token), Again, host)
    if local is None or local.fingerprint != token.fingerprint:
        weft_toml.check_free(host.toml)
        address = address or await join_client.own_address(token.addresses)
        membership.check_address(address)
        own.remove()  # of a join that no member has admitted
        host.begin()
        local = own.save(Local(node, membership.new_id(), address, fingerprint=token.fingerprint))
    if not own.has("node-key.pem"):
        own.write("node-key.pem", authority.new_key())
    own.write("ca.pem", ca)
    if not (own.has("node.pem") and local.cluster):
        local = await _ask_to_join(host, local, token)
    host.say(f"node {local.node} at {local.address}, {local.role} of etcd")
    if local.is_member:
        await become_member(host, local, token.addresses)
    else:
        host.server.install()
    weft_toml.add(host.toml, own.folder)
    host.say(f"[store] in {host.toml}")
    return own.save(replace(local, done=True)), True


async def become_member(host: Host, local: Local, addresses: tuple[str, ...]) -> None:
    """Run etcd on this node, as a learner at first. ``addresses`` are where joins are served.

    Raises WeftError.
    """
    own = host.own
    if not own.has(CONFIGURATION):
        answer = await _patiently(lambda: join_client.ask(addresses, own, {"op": "member"}), Again, host)
        for name in ("ca-key", "peer-ca", "peer-ca-key"):
            own.write(f"{name}.pem", _text(answer.get(name)).encode())
        sign_member(own)
        own.write(CONFIGURATION, configuration(local, own, _text(answer.get("initial")), new=False))
    host.server.install()
    host.server.ensure()
    host.say(f"etcd on {endpoint(local.address, CLIENT_PORT)}")
    async with administrating(own, local) as cluster:

        async def started() -> None:
            if all(one.name != local.node for one in await cluster.members()):
                words = "" if host.server.running() else host.server.last_words()
                raise Unavailable(f"etcd of this host has not joined the others{': ' if words else ''}{words}")

        await _patiently(started, Unavailable, host)


async def leave(host: Host, *, last: bool, powered_off: bool, force: bool) -> bool:
    """Leave the cluster; whether the agent has used it. ``force``: also where the others cannot be told.

    Raises WeftError.
    """
    own = host.own
    local = own.load()
    if local is None:
        return False
    if local.cluster and local.done:
        try:
            await _take_leave(host, local, last=last, powered_off=powered_off)
        except (Unavailable, Conflict) as error:
            if not force:
                raise
            host.say(f"the others are not told: {error.message}; on a member: weft node rm {local.node}")
    weft_toml.remove(host.toml, own.folder)
    host.say(f"no [store] in {host.toml}")
    host.server.remove()
    own.remove()
    host.say(f"removed {own.folder} and etcd's data")
    return local.done


async def _take_leave(host: Host, local: Local, *, last: bool, powered_off: bool) -> None:
    """Tell the others, and stop being a member."""
    own = host.own
    if not own.has("root.pem"):
        store = await open_etcd(own.settings(local))
        try:
            # It may write its own record only; members take its access away.
            await Membership(store, own).remove(local.node, time.time(), powered_off=powered_off)
        finally:
            await store.close()
        host.say(f"node {local.node} is removed")
        return
    async with administrating(own, local) as cluster:
        seen = await cluster.see()
        own_node = seen.nodes.get(local.node)
        if own_node is None or own_node.id != local.id or own_node.state is State.REMOVED:
            host.say(f"node {local.node} was removed before")
            return
        others = [one for one in seen.present if one.name != local.node]
        if not others:
            if not last:
                raise Conflict(
                    "this is the only node: the cluster ends with it, and its keys and services are lost",
                    hint="weft cluster leave --last; GET /v1/snapshot before keeps keys and services",
                )
            return
        members = {one.name for one in await cluster.members()}
        running = [one for one in others if one.name in seen.alive]
        if local.role is Role.VOTER and not any(one.role is not Role.CLIENT and one.name in members for one in running):
            hint = "see weft node ls; start the agents of the other members, or let another host join"
            if running and len([one for one in seen.present if one.role is Role.VOTER]) == 1:
                hint = f"weft node promote {running[0].name}, and repeat this when it has become a voter: weft node ls"
            raise Conflict("no other member of etcd runs: the cluster would be lost", hint=hint)
        await cluster.remove(local.node, time.time(), powered_off=powered_off)

        async def gone() -> None:
            awaited = await cluster.settle(1)
            if any(one.name == local.node for one in await cluster.members()):
                raise Unavailable(f"node {local.node} is still a member of etcd: {awaited}")

        await _patiently(gone, Unavailable, host)
        host.say(f"node {local.node} is removed, and no member of etcd any more")


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise WeftError("the member's answer is incomplete", hint="is it of the same release of weft?")
    return value


async def _ask_to_join(host: Host, local: Local, token: Token) -> Local:
    own = host.own
    key = own.read("node-key.pem")
    message = {
        "op": "join",
        "secret": token.secret,
        "name": local.node,
        "id": local.id,
        "address": local.address,
        "version": __version__,
        "request": authority.request(key, local.node).decode(),
    }
    answer = await _patiently(lambda: join_client.ask(token.addresses, own, message), Again, host)
    certificate = _text(answer.get("certificate")).encode()
    if not authority.belongs(certificate, key):
        raise WeftError("the certificate that the member sent is not for this node's key", hint="join again")
    endpoints = answer.get("endpoints")
    if not isinstance(endpoints, list):
        raise WeftError("the member's answer is incomplete", hint="is it of the same release of weft?")
    own.write("node.pem", certificate)
    return own.save(
        replace(
            local,
            cluster=_text(answer.get("cluster")),
            role=Role(_text(answer.get("role"))),
            endpoints=tuple(map(str, endpoints)),
        )
    )


def _make_authorities(own: Files, local: Local) -> None:
    for name, title in (("ca", "weft cluster"), ("peer-ca", "weft etcd members")):
        if not (own.has(f"{name}.pem") and own.has(f"{name}-key.pem")):
            made = Authority.create(f"{title} {local.cluster[:8]}")
            own.write(f"{name}-key.pem", made.key)
            own.write(f"{name}.pem", made.certificate)


def _sign_own(own: Files, local: Local) -> None:
    """The first node's certificate, by its own authority."""
    if not own.has("node-key.pem"):
        own.write("node-key.pem", authority.new_key())
    public = authority.public_key(own.read("node-key.pem"))
    signer = Authority(own.read("ca.pem"), own.read("ca-key.pem"))
    own.write("node.pem", signer.sign(public, local.node, membership.with_loopbacks(local.underlay)))


def sign_member(own: Files) -> None:
    """A member's certificates for its peers and for the administration of etcd."""
    addresses = authority.addresses(own.read("node.pem"))
    for name, signer, title in (("peer", "peer-ca", "peer"), ("root", "ca", "root")):
        if not own.has(f"{name}-key.pem"):
            own.write(f"{name}-key.pem", authority.new_key())
        made = Authority(own.read(f"{signer}.pem"), own.read(f"{signer}-key.pem"))
        public = authority.public_key(own.read(f"{name}-key.pem"))
        own.write(f"{name}.pem", made.sign(public, title, addresses if name == "peer" else ()))


async def _patiently(work: Callable[[], Awaitable[Result]], repeated: type[WeftError], host: Host) -> Result:
    """Do it until it does not raise that error, or the patience ends."""
    end = time.monotonic() + _PATIENCE
    told = False
    while True:
        try:
            return await work()
        except repeated as error:
            if time.monotonic() > end:
                raise
            if not told:
                told = True
                host.say(f"waiting: {error.message}")
        await asyncio.sleep(_PAUSE)
