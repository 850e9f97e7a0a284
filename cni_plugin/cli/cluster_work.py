"""What ``weft cluster`` and ``weft node`` do, with the libraries that no other command needs."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Coroutine
from dataclasses import replace
from typing import TypeVar

from cluster import authority, diagnosis, grants, keeper, networks, nodes, records, setting_up, tokens
from cluster.etcd_server import EtcdServer
from cluster.local import FOLDER, JOIN_PORT, STATE, Files, Local, endpoint
from cluster.membership import Membership
from cluster.nodes import Node, Role, State
from cluster.setting_up import Host
from cluster.tokens import Token
from cluster.view import View
from cni_plugin.agent import catalog_file, settings
from cni_plugin.agent.settings import Settings
from cni_plugin.agent.stores import open_store
from cni_plugin.engine import listener
from discovery.consul.durations import parse_duration
from store.etcd.client import EtcdStore, open_etcd
from store.interface import StoreError
from weft import configuration
from weft.errors import BadOption, Conflict
from weft.kernel import default_route
from weft.kernel.linux.kernel import LinuxKernel
from weft.remedies import NoCommand, Remedy

Result = TypeVar("Result")
Say = Callable[[str], None]


def init(address: str, voters: int, seconds: float, say: Say) -> tuple[Local, Token]:
    """Make a cluster of this host, and a token that is valid for some seconds. Raises WeftError."""
    found = settings.read()
    host = _host(say, found)

    async def make() -> tuple[Local, Token]:
        local = await setting_up.make(host, found.node, address or _uplink(), voters)
        addresses = [endpoint(local.address, JOIN_PORT)]
        async with setting_up.administrating(host.own, local) as cluster:
            token = await tokens.issue(cluster.store, addresses, local.fingerprint, seconds, time.time())
        return local, token

    return _run(make())


def join(token: str, address: str, say: Say) -> tuple[Local, bool]:
    """Let this host join; whether it was not of the cluster before. Raises WeftError."""
    parsed, found = tokens.parse(token), settings.read()
    return _run(setting_up.join(_host(say, found), parsed, found.node, address))


def token(seconds: float) -> Token:
    """A token that is valid for some seconds. Raises WeftError."""
    local, own = _joined()

    async def issue() -> Token:
        async with setting_up.administrating(own, local) as cluster:
            return await tokens.issue(cluster.store, local.join_addresses, local.fingerprint, seconds, time.time())

    return _run(issue())


def leave(say: Say, *, last: bool, powered_off: bool, force: bool) -> bool:
    """Let this host leave; whether it was in a cluster. Raises WeftError."""
    return _run(setting_up.leave(_host(say), last=last, powered_off=powered_off, force=force))


def renew() -> float:
    """Renew this node's certificates; when they end, in Unix time. Raises WeftError."""
    local, own = _joined()
    _run(keeper.renew(own, local, always=True))
    return authority.expires(own.read("node.pem"))


def list_nodes() -> tuple[dict[str, Node], frozenset[str], tuple[str, ...]]:
    """As ``nodes.split``, of the cluster that the agent uses. Raises WeftError."""
    found = settings.read()
    if found.store is None:
        raise Conflict(
            "this host is of no cluster", hint="weft cluster init makes one, weft cluster join TOKEN joins one"
        )

    async def read() -> tuple[dict[str, Node], frozenset[str], tuple[str, ...]]:
        store = await open_store(found, "")
        try:
            known, alive, problems = nodes.split((await store.range(nodes.ROOT)).entries)
            return grants.granted(known, await grants.read(store)), alive, problems
        finally:
            await store.close()

    return _run(read())


def drain(name: str, *, undo: bool) -> State:
    """Drain a node, or let it get work again; its state then. Raises WeftError."""
    local, own = _joined()
    state = State.READY if undo else State.DRAINED

    def changed(one: Node) -> Node:
        if one.state is State.REMOVED:
            raise Conflict(f"node {name} is removed", hint="it has to join again")
        return replace(one, state=state)

    async def change() -> None:
        if name != local.node:
            async with setting_up.administrating(own, local) as cluster:
                await cluster.change(name, changed)
            return
        store = await open_etcd(own.settings(local))
        try:
            await Membership(store, own).change(name, changed)
        finally:
            await store.close()

    _run(change())
    return state


def remove(name: str, *, powered_off: bool, force: bool) -> str:
    """Remove a node; what has to be waited for. Raises WeftError."""
    local, own = _joined()
    if name == local.node:
        raise Conflict(f"node {name} is this host", hint="weft cluster leave")

    async def work() -> str:
        async with setting_up.administrating(own, local) as cluster:
            seen = await cluster.see()
            if name in seen.alive and not force:
                raise Conflict(
                    f"the agent of node {name} runs",
                    hint=f"on it: weft cluster leave; or --force. A node is down {nodes.ALIVE_SECONDS} s after its "
                    f"last sign of life",
                )
            if name in seen.nodes and name not in {one.name for one in await cluster.members()}:
                await cluster.revoke(name)  # it writes its own record, also that it is not removed
            await cluster.remove(name, time.time(), powered_off=powered_off)
            awaited = await cluster.settle()
            if powered_off:
                await _free_blocks(cluster.store, name)
            return awaited

    return _run(work())


async def _free_blocks(store: EtcdStore, name: str) -> None:
    """Agents do so within minutes: also what changes at this moment."""
    view, entry = View(), await store.get(nodes.record_key(name))
    view.load(await store.range(records.ROOT))
    if entry is not None:
        await networks.free_blocks(store, view, name, entry.mod_revision)


def promote(name: str) -> tuple[Role, str]:
    """Prefer a node as a member of etcd: its role, and what has to be waited for. Raises WeftError."""
    local, own = _joined()

    async def work() -> tuple[Role, str]:
        async with setting_up.administrating(own, local) as cluster:
            role = await cluster.prefer(name)
            return role, await cluster.settle()

    return _run(work())


def findings() -> list[tuple[str, Remedy]]:
    """What is wrong with this host's part in a cluster, each with its remedy. Raises WeftError."""
    own = Files(FOLDER)
    local = own.load()
    if local is None:
        return []
    expires = authority.expires(own.read("node.pem")) if own.has("node.pem") else 0.0
    found = list(diagnosis.of_files(local, expires, time.time()))
    if not local.done:
        return found

    async def read() -> list[tuple[str, Remedy]]:
        if not own.has("root.pem"):
            store = await open_etcd(own.settings(local))
            try:
                seen, members = await Membership(store, own).see(), None
            finally:
                await store.close()
        else:
            async with setting_up.administrating(own, local) as cluster:
                seen = await cluster.see()
                members = {one.name for one in await cluster.members()}
        return list(diagnosis.of_nodes(seen.nodes, seen.alive, members, time.time(), seen.config.voters))

    try:
        return found + _run(read())
    except StoreError as error:
        return [*found, (f"the cluster cannot be read: {error.message}", NoCommand("see weft status"))]


def seconds(ttl: str) -> float:
    """Seconds of a duration like 30m. Raises BadOption."""
    try:
        return parse_duration(ttl)
    except ValueError as error:
        raise BadOption(f"--ttl: {error}", hint="like 30m or 2h") from None


def _joined() -> tuple[Local, Files]:
    """This host's part in a cluster that weft has made. Raises Conflict on a host that has none."""
    own = Files(FOLDER)
    local = own.load()
    if local is None or not local.done:
        raise Conflict(
            "this host is of no cluster that weft has made",
            hint="weft cluster init makes one, weft cluster join TOKEN joins one",
        )
    return local, own


def _run(work: Coroutine[object, object, Result]) -> Result:
    return asyncio.run(work)


def _host(say: Say, found: Settings | None = None) -> Host:
    own = Files(FOLDER)
    kept = (STATE, *catalog_file.of_cluster(found)) if found is not None else ()
    return Host(own, EtcdServer(own, listener.folder()), configuration.path(), say, kept)


def _uplink() -> str:
    with contextlib.closing(LinuxKernel()) as kernel:
        found = default_route.address(kernel.host)
    if found is None:
        raise BadOption("this host has no default route, so its address is not known", hint="name it: --address")
    return str(found)
