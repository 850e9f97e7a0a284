"""Changes of a cluster that its members make, by etcd's user root: admit a node, make it a member, remove it.

Each may be repeated, also after a kill at any point: what is done already is left as it is.
"""

from __future__ import annotations

import hashlib
import re
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from ipaddress import ip_address

from cluster import authority, grants, nodes, permissions, tokens, voters
from cluster.authority import Authority
from cluster.local import CLIENT_PORT, Files, Local, endpoint, peer_url
from cluster.nodes import Config, Node, Role, State
from cluster.tokens import Refused
from cluster.voters import Action, Step
from store.etcd.administration import ROOT, Administration, Member
from store.etcd.client import EtcdStore
from store.interface import Compare, Operation, Put, Unavailable
from weft import __version__
from weft.errors import Conflict
from weft.types import Address

_NAME = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_.-]{0,62}[A-Za-z0-9_])?\Z")
_ID = re.compile(r"[0-9a-f]{32}\Z")
_VERSION = re.compile(r"[A-Za-z0-9.+_-]{1,40}\Z")


@dataclass(frozen=True, slots=True)
class Joining:
    """What a host says of itself when it joins; ``public`` is its public key (DER)."""

    secret: str
    name: str
    id: str
    address: Address
    version: str
    public: bytes


@dataclass(frozen=True, slots=True)
class Admission:
    """What it gets: its certificate (PEM), its role, the cluster's id and etcd's endpoints."""

    certificate: bytes
    role: Role
    cluster: str
    endpoints: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Seen:
    """The cluster at a moment."""

    nodes: Mapping[str, Node]
    alive: frozenset[str]
    config: Config
    problems: tuple[str, ...] = ()

    @property
    def present(self) -> list[Node]:
        return [one for one in self.nodes.values() if one.state is not State.REMOVED]

    @property
    def roles(self) -> dict[str, Role]:
        return voters.roles(self.nodes.values(), self.alive, self.config.voters)


def new_id() -> str:
    """An id for a node or a cluster."""
    return uuid.uuid4().hex


def check_name(name: str) -> None:
    """Raises Refused for a name that no node may have."""
    if not _NAME.match(name) or name == ROOT:
        raise Refused(
            f"the node name {name[:80]!r} is not allowed",
            hint='letters, digits, "-", "_" and dots, at most 64, and not "root"; set agent.node in weft.toml',
        )


def check_address(text: str) -> Address:
    """The address of a node. Raises Refused."""
    try:
        address = ip_address(text)
    except ValueError:
        raise Refused(f"the address {text[:60]!r} is none") from None
    if address.is_loopback or address.is_unspecified or address.is_multicast or address.is_link_local:
        raise Refused(
            f"other hosts cannot reach this one at {address}", hint="name the address that they can reach: --address"
        )
    return address


def check_joining(found: Joining) -> None:
    """Raises Refused for what a host says of itself."""
    check_name(found.name)
    if not _ID.match(found.id) or not _VERSION.match(found.version):
        raise Refused("the request to join is malformed", hint="is it of the same release of weft?")


def with_loopbacks(*addresses: Address) -> tuple[Address, ...]:
    """What a node's certificate is for: its addresses, and those by which it reaches itself."""
    return (*addresses, ip_address("127.0.0.1"), ip_address("::1"))


def key_digest(public: bytes) -> str:
    """By what a record knows a public key (DER)."""
    return hashlib.sha256(public).hexdigest()


class Membership:
    """The cluster, as a member administrates it."""

    def __init__(self, store: EtcdStore, own: Files) -> None:
        self._store = store
        self._admin: Administration = store.administration()
        self._own = own

    @property
    def store(self) -> EtcdStore:
        return self._store

    # Reading

    async def see(self) -> Seen:
        """Read the cluster. Raises StoreError, Unavailable where it is none of weft's."""
        found = await self._store.range(nodes.ROOT)
        entry = await self._store.get(nodes.CONFIG)
        if entry is None:
            raise Unavailable("this etcd has no cluster that weft has made", hint="weft cluster init makes one")
        known, alive, problems = nodes.split(found.entries)
        known = grants.granted(known, await grants.read(self._store))
        return Seen(known, alive, nodes.decode_config(entry), problems)

    async def members(self) -> tuple[Member, ...]:
        return await self._admin.members()

    async def endpoints(self) -> tuple[str, ...]:
        """``HOST:PORT`` of all members for clients; those that vote first."""
        members = sorted(await self._admin.members(), key=lambda one: one.is_learner)
        return tuple(endpoint(_host(one), CLIENT_PORT) for one in members)

    # The first node

    async def bootstrap(self, node: Node, config: Config) -> None:
        """Make users, the configuration and the first record; then require users."""
        created = Put(nodes.CONFIG, nodes.encode_config(config))
        await self._store.transact([Compare(nodes.CONFIG, "version", 0)], [created])
        await self._grant(node, node.role)
        await self._write(node, check=None)
        await self._admin.add_user(ROOT, ROOT)
        await self._add_user(node.name)
        await self._admin.enable()

    # Joins

    async def check_token(self, secret: str) -> None:
        """Raises Refused for a token that is not the cluster's."""
        await tokens.check(self._store, secret)

    async def admit(self, joining: Joining, now: float) -> Admission:
        """Admit a node whose token is right; sign its certificate. Raises Refused, StoreError."""
        check_joining(joining)
        seen = await self.see()
        self._check_free(joining, seen)
        await tokens.use(self._store, joining.secret, joining.name, key_digest(joining.public), now)
        signer = self._signer()
        certificate = signer.sign(joining.public, joining.name, with_loopbacks(joining.address))
        node = Node(
            joining.name,
            joining.id,
            (joining.address,),
            joining.version,
            now,
            Role.CLIENT,
            expires=authority.expires(certificate),
            key=key_digest(joining.public),
        )
        known = seen.nodes.get(joining.name)
        if known is not None and known.id == joining.id:
            node = replace(node, joined=known.joined, role=known.role, state=known.state)
        roles = replace(seen, nodes={**seen.nodes, node.name: node}).roles
        node = replace(node, role=roles[node.name])
        await self._grant(node, node.role)
        await self._add_user(node.name)
        if not await self._write(node, check=known):
            raise Refused(f"another host joins as {node.name} at this moment", hint="try again")
        return Admission(certificate, node.role, seen.config.id, await self.endpoints())

    def _check_free(self, joining: Joining, seen: Seen) -> None:
        for one in seen.present:
            if one.name == joining.name and one.id != joining.id:
                how = "is alive" if one.name in seen.alive else "does not run"
                raise Refused(
                    f"the cluster has a node {one.name} already, which {how}",
                    hint=f"if this host was reinstalled: on a member weft node rm {one.name} --powered-off, then join "
                    f"again; else give this host another name (agent.node in weft.toml)",
                )
            if one.name != joining.name and joining.address in one.addresses:
                raise Refused(
                    f"the address {joining.address} is that of node {one.name}",
                    hint=f"name another one by --address, or on a member: weft node rm {one.name}",
                )

    async def add_member(self, name: str) -> str:
        """Add a node that is to be a member as a learner: etcd's initial cluster for it. Raises Refused where it
        must wait.
        """
        seen = await self.see()
        node, roles = seen.nodes[name], seen.roles
        if roles.get(name, Role.CLIENT) is Role.CLIENT:
            raise Refused(f"node {name} is to be no member of etcd", hint="on a member: weft node promote")
        for _ in range(3):
            members = await self._admin.members()
            url = peer_url(node.addresses[0])
            if any(one.peer == url or one.name == name for one in members):
                break
            may = voters.may_add(self._votes(members, seen), roles, name)
            if isinstance(may, Step):
                await self._perform(may, members, seen)
                continue
            if not may:
                raise Refused(f"node {name} cannot become a member of etcd now", hint="wait: another one becomes it")
            members = await self._admin.add_learner(url)
            break
        else:
            raise Refused(f"node {name} cannot become a member of etcd now", hint="wait: the learner catches up")
        named = {peer_url(one.addresses[0]): one.name for one in seen.present}
        return ",".join(f"{one.name or named.get(one.peer) or f'm{one.id:x}'}={one.peer}" for one in members)

    async def renew(self, name: str, public: bytes, now: float) -> bytes:
        """A new certificate for a node and its key (DER). Raises Refused, StoreError."""
        node = (await self.see()).nodes.get(name)
        if node is None or node.state is State.REMOVED:
            raise Refused(f"node {name} is not of the cluster", hint="on a member: weft node ls")
        certificate = self._signer().sign(public, name, with_loopbacks(*node.addresses))
        await self.change(
            name, lambda one: replace(one, expires=authority.expires(certificate), key=key_digest(public))
        )
        return certificate

    # Nodes

    async def change(self, name: str, how: Callable[[Node], Node]) -> Node:
        """Change a node's record. Raises Conflict for a node that is not there, StoreError."""
        while True:
            entry = await self._store.get(nodes.record_key(name))
            if entry is None:
                raise Conflict(f"the cluster has no node {name}", hint="see weft node ls")
            node = nodes.decode(entry)
            changed = how(node)
            if changed == node:
                return node
            put = Put(entry.key, nodes.encode(changed))
            if (await self._store.transact([Compare(entry.key, "mod", entry.mod_revision)], [put])).succeeded:
                return changed

    async def remove(self, name: str, now: float, *, powered_off: bool) -> Node:
        """Mark a node as removed; ``settle`` does the rest. One that is already stays as it is, but may be declared
        powered off.
        """

        def removed(node: Node) -> Node:
            if node.state is State.REMOVED:
                return replace(node, powered_off=node.powered_off or powered_off)
            return replace(node, state=State.REMOVED, removed=now, powered_off=powered_off)

        return await self.change(name, removed)

    async def prefer(self, name: str) -> Role:
        """Let a node change roles with a voter that does not run, with a learner, or with the only voter; its role
        then. Raises Conflict, StoreError.
        """
        while True:
            seen = await self.see()
            node = seen.nodes.get(name)
            if node is None or node.state is State.REMOVED:
                raise Conflict(f"the cluster has no node {name}", hint="see weft node ls")
            if node.role is Role.VOTER:
                return node.role
            voting = [one for one in seen.present if one.role is Role.VOTER]
            lost = [one for one in voting if one.name not in seen.alive]
            learners = [one for one in seen.present if one.role is Role.LEARNER and node.role is Role.CLIENT]
            other = next(iter([*lost, *learners, *(voting if len(voting) == 1 else [])]), None)
            if other is None:
                raise Conflict(
                    f"no member of etcd is down or a learner, whose place node {name} could take",
                    hint="let one of them leave first: weft node ls",
                )
            if await self._exchange(node, other):
                return other.role

    async def _exchange(self, one: Node, other: Node) -> bool:
        """Let two nodes change roles at once, since members assign roles anew to what they see between two changes.
        False where a record is not the one that was read.
        """
        await self._make_grants()
        same: list[Compare] = []
        changes: list[Operation] = []
        for node, role in ((one, other.role), (other, one.role)):
            entry = await self._store.get(nodes.record_key(node.name))
            if entry is None or not _is_same(nodes.decode(entry), node):
                return False
            same.append(Compare(entry.key, "mod", entry.mod_revision))
            changes += [Put(entry.key, nodes.encode(replace(node, role=role))), grants.change(node, role)]
        return (await self._store.transact(same, changes)).succeeded

    async def settle(self, most: int = 20) -> str:
        """Make the steps that lead to what the records say; what has to be waited for, "" for nothing.

        Raises StoreError.
        """
        await self._make_grants()
        for _ in range(most):
            seen = await self.see()
            for name, role in seen.roles.items():
                if seen.nodes[name].role is not role:
                    await self._assign(seen.nodes[name], role)
            members = await self._admin.members()
            step = voters.next_step(self._votes(members, seen), seen.roles)
            if step is None:
                await self._forget(seen, members)
                return self._awaited(seen, members)
            if not await self._perform(step, members, seen):
                return f"node {step.name} catches up"
        return "members change"

    async def _assign(self, node: Node, role: Role) -> None:
        await self._grant(node, role)
        await self.change(node.name, lambda one: replace(one, role=role))

    async def _make_grants(self) -> None:
        """Grant what all have at once, in a cluster of an earlier release."""
        if await grants.read(self._store):
            return
        having = [one for one in nodes.split((await self._store.range(nodes.ROOT)).entries)[0].values()
                  if one.state is not State.REMOVED and one.role is not Role.CLIENT]  # fmt: skip
        if having:
            none = [Compare(grants.key(one), "create", 0) for one in having]
            await self._store.transact(none, [grants.change(one, one.role) for one in having])

    async def _grant(self, node: Node, role: Role) -> None:
        await self._make_grants()
        await self._store.transact((), [grants.change(node, role)])

    def _awaited(self, seen: Seen, members: tuple[Member, ...]) -> str:
        there = {self._name(one, seen): one.is_learner for one in members}
        for name, role in seen.roles.items():
            if role is not Role.CLIENT and name not in there:
                return f"node {name} has not become a member of etcd"
            if role is Role.VOTER and there.get(name):
                return f"node {name} catches up"
        return ""

    async def _forget(self, seen: Seen, members: tuple[Member, ...]) -> None:
        """Take the access of removed nodes away, once they are no members."""
        there = {self._name(one, seen) for one in members}
        for node in seen.nodes.values():
            if node.state is State.REMOVED and node.key and node.name not in there:
                await self.revoke(node.name)
                await self._grant(node, Role.CLIENT)
                await self.change(node.name, lambda one: replace(one, key="") if one.state is State.REMOVED else one)

    async def revoke(self, name: str) -> None:
        """Take the access of a node away that is no member."""
        await self._admin.delete_user(name)
        await self._admin.delete_role(permissions.role(name))

    async def _perform(self, step: Step, members: tuple[Member, ...], seen: Seen) -> bool:
        member = next(one for one in members if self._name(one, seen) == step.name)
        if step.action is Action.PROMOTE:
            return await self._admin.promote(member.id)
        await self._admin.remove(member.id)
        return True

    def _votes(self, members: tuple[Member, ...], seen: Seen) -> list[voters.Member]:
        named = [(self._name(one, seen), one) for one in members]
        # One that has not started yet has no name, and no vote that counts.
        return [voters.Member(name, one.is_learner, bool(one.name) and name in seen.alive) for name, one in named]

    def _name(self, member: Member, seen: Seen) -> str:
        if member.name:
            return member.name
        found = (one.name for one in seen.present if peer_url(one.addresses[0]) == member.peer)
        return next(found, f"{member.id:x}")

    async def _add_user(self, name: str) -> None:
        await self._admin.add_role(permissions.role(name), permissions.permissions(name))
        await self._admin.add_user(name, permissions.role(name))

    async def _write(self, node: Node, *, check: Node | None) -> bool:
        """Write a record in place of the one that was read, None: of none. False where another is there now."""
        key = nodes.record_key(node.name)
        entry = await self._store.get(key)
        if not _is_same(nodes.decode(entry) if entry else None, check):
            return False
        revision = entry.mod_revision if entry else 0
        return (await self._store.transact([Compare(key, "mod", revision)], [Put(key, nodes.encode(node))])).succeeded

    def _signer(self) -> Authority:
        return Authority(self._own.read("ca.pem"), self._own.read("ca-key.pem"))


def _is_same(record: Node | None, seen: Node | None) -> bool:
    """Whether a record is the one that was read, in whatever role it says that it is."""
    return record == seen or (record is not None and seen is not None and replace(record, role=seen.role) == seen)


def _host(member: Member) -> str:
    """The address in a member's URL."""
    return member.peer.removeprefix("https://").removeprefix("http://").rpartition(":")[0].strip("[]")


def first_node(local: Local, certificate: bytes, public: bytes, now: float) -> Node:
    """The record of the node that makes a cluster."""
    return Node(
        local.node,
        local.id,
        (local.underlay,),
        __version__,
        now,
        Role.VOTER,
        expires=authority.expires(certificate),
        key=key_digest(public),
    )
