"""Members, users and roles of an etcd cluster, which only its user root may change.

Source: etcd's api/etcdserverpb/rpc.proto, services Cluster and Auth.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from store.etcd import rpc_pb2 as rpc
from store.etcd.connection import Connection, Method, Reply, Request
from store.etcd.errors import Answered

ROOT = "root"
"""The user, and its role, that may do everything."""

_MEMBER_ADD = Method("/etcdserverpb.Cluster/MemberAdd", rpc.MemberAddResponse.FromString)
_MEMBER_REMOVE = Method("/etcdserverpb.Cluster/MemberRemove", rpc.MembersResponse.FromString)
_MEMBER_UPDATE = Method("/etcdserverpb.Cluster/MemberUpdate", rpc.MembersResponse.FromString)
_MEMBER_LIST = Method("/etcdserverpb.Cluster/MemberList", rpc.MembersResponse.FromString)
_MEMBER_PROMOTE = Method("/etcdserverpb.Cluster/MemberPromote", rpc.MembersResponse.FromString)
_AUTH_ENABLE = Method("/etcdserverpb.Auth/AuthEnable", rpc.AuthResponse.FromString)
_USER_ADD = Method("/etcdserverpb.Auth/UserAdd", rpc.AuthResponse.FromString)
_USER_DELETE = Method("/etcdserverpb.Auth/UserDelete", rpc.AuthResponse.FromString)
_USER_GRANT_ROLE = Method("/etcdserverpb.Auth/UserGrantRole", rpc.AuthResponse.FromString)
_ROLE_ADD = Method("/etcdserverpb.Auth/RoleAdd", rpc.AuthResponse.FromString)
_ROLE_DELETE = Method("/etcdserverpb.Auth/RoleDelete", rpc.AuthResponse.FromString)
_ROLE_GRANT = Method("/etcdserverpb.Auth/RoleGrantPermission", rpc.AuthResponse.FromString)


@dataclass(frozen=True, slots=True)
class Member:
    """A member of etcd; ``name`` is "" until it has started."""

    id: int
    name: str
    peer: str
    is_learner: bool


@dataclass(frozen=True, slots=True)
class Permission:
    """Access to all keys from ``start`` to before ``end``."""

    start: str
    end: str
    writes: bool


class Administration:
    """Raises Unavailable; every call may be repeated, and what is so already is no error."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def members(self) -> tuple[Member, ...]:
        """All members. *Equivalent to:* ``etcdctl member list``."""
        found = await self._call(_MEMBER_LIST, rpc.MemberListRequest(), "list the members of etcd")
        return tuple(map(_member, found.members))

    async def add_learner(self, peer: str) -> tuple[Member, ...]:
        """Add a member that does not vote; all members then. *Equivalent to:* ``etcdctl member add --learner``.

        Raises Unavailable where there is a learner already, or a member has not started yet.
        """
        try:
            request = rpc.MemberAddRequest(peerURLs=[peer], isLearner=True)
            found = await self._try(_MEMBER_ADD, request)
        except Answered as answered:
            if "Peer URLs already exists" not in answered.details:
                raise self._connection.error(answered, f"add member {peer}") from None
            return await self.members()
        return tuple(map(_member, found.members))

    async def promote(self, number: int) -> bool:
        """Let a learner vote; False while it has not caught up. *Equivalent to:* ``etcdctl member promote``."""
        try:
            await self._try(_MEMBER_PROMOTE, rpc.MemberPromoteRequest(ID=number))
        except Answered as answered:
            if "in sync with leader" in answered.details:
                return False
            if "not a learner" not in answered.details and "not found" not in answered.details:
                raise self._connection.error(answered, f"promote member {number:x}") from None
        return True

    async def remove(self, number: int) -> None:
        """Remove a member, for good. *Equivalent to:* ``etcdctl member remove``."""
        await self._call(_MEMBER_REMOVE, rpc.MemberRemoveRequest(ID=number), f"remove member {number:x}", "not found")

    async def move(self, number: int, peer: str) -> None:
        """Give a member another address. *Equivalent to:* ``etcdctl member update --peer-urls``."""
        await self._call(_MEMBER_UPDATE, rpc.MemberUpdateRequest(ID=number, peerURLs=[peer]), f"move member {number:x}")

    async def add_user(self, name: str, role: str) -> None:
        """Add a user, whom only a certificate of that name can be, with a role.

        *Equivalent to:* ``etcdctl user add --no-password`` and ``user grant-role``.
        """
        options = rpc.UserAddOptions(no_password=True)
        await self._call(
            _USER_ADD, rpc.UserAddRequest(name=name, options=options), f"add user {name}", "already exists"
        )
        request = rpc.UserGrantRoleRequest(user=name, role=role)
        await self._call(_USER_GRANT_ROLE, request, f"give user {name} the role {role}", "already")

    async def delete_user(self, name: str) -> None:
        """Delete a user: the certificate of that name has no access any more."""
        await self._call(_USER_DELETE, rpc.UserDeleteRequest(name=name), f"delete user {name}", "not found")

    async def add_role(self, name: str, permissions: Sequence[Permission]) -> None:
        """Add a role. *Equivalent to:* ``etcdctl role add`` and ``role grant-permission``."""
        await self._call(_ROLE_ADD, rpc.RoleAddRequest(name=name), f"add role {name}", "already exists")
        for one in permissions:
            kind = rpc.Permission.READWRITE if one.writes else rpc.Permission.READ
            grant = rpc.Permission(permType=kind, key=one.start.encode(), range_end=one.end.encode())
            request = rpc.RoleGrantPermissionRequest(name=name, perm=grant)
            await self._call(_ROLE_GRANT, request, f"grant role {name} {one.start}")

    async def delete_role(self, name: str) -> None:
        """Delete a role."""
        await self._call(_ROLE_DELETE, rpc.RoleDeleteRequest(role=name), f"delete role {name}", "not found")

    async def enable(self) -> None:
        """Require users. *Equivalent to:* ``etcdctl auth enable``."""
        await self._call(_AUTH_ENABLE, rpc.AuthEnableRequest(), "enable users")

    async def _try(self, method: Method[Reply], request: Request) -> Reply:
        return await self._connection.call(method, request, method.path, self._connection.deadline())

    async def _call(self, method: Method[Reply], request: Request, what: str, accepted: str = "") -> Reply:
        """Call; a refusal with the words ``accepted`` says that it is so already."""
        try:
            return await self._connection.call(method, request, what, self._connection.deadline())
        except Answered as answered:
            if accepted and accepted in answered.details:
                return method.parse(b"")
            raise self._connection.error(answered, what) from None


def _member(found: rpc.Member) -> Member:
    return Member(found.ID, found.name, next(iter(found.peerURLs), ""), found.isLearner)
