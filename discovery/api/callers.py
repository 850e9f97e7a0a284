"""Who is at the other end of a connection, and what users of this host may do without a token.

The kernel is asked once, when a connection is accepted: on loopback by sock_diag(7), on the unix
socket by SO_PEERCRED. Later the peer's socket may have been passed on, as any descriptor may.
"""

from __future__ import annotations

import asyncio
import grp
import logging
import os
import pwd
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import IntEnum
from ipaddress import ip_address

from discovery.acl.authorizer import (
    MANAGEMENT,
    READER_RULES,
    USER_RULES,
    Authorizer,
    PermissionDenied,
)
from discovery.acl.rules import Rules
from discovery.api.http_request import parse_parameters
from discovery.api.settings import HttpSettings
from weft.errors import KernelRefused
from weft.kernel.netlink.sock_diag import SocketOwners
from weft.peer_credentials import is_trusted, peer_credentials

log = logging.getLogger(__name__)

KNOWN_SECONDS = 60.0
"""How long the names and groups of a user are remembered."""
MAX_KNOWN = 4096
EVERYBODY = "*"
_UNKNOWN = (
    "Permission denied: the other end of this connection is no open socket of this host's; keep it open until the"
    " answer has come, and connect to the agent's own address"
)


def secret_of(headers: Mapping[str, str], query: str) -> str:
    """The token that a request has, "" for none: ``?token=``, else X-Consul-Token, else Authorization.
    Raises HttpError.
    """
    found = parse_parameters(query).get("token", [""])[0] if "token=" in query else ""
    scheme, _, bearer = headers.get("Authorization", "").partition(" ")
    return found or headers.get("X-Consul-Token", "") or (bearer.strip() if scheme.lower() == "bearer" else "")


class Level(IntEnum):
    """What a user of this host may do: read the catalog, read everything, or write."""

    CATALOG = 0
    READ = 1
    WRITE = 2


@dataclass(frozen=True, slots=True)
class Caller:
    """The other end of a connection. ``uid`` is None if it is no process of this host.

    ``owner``: root or the agent's own user on the unix socket. ``unknown``: it must be a process of
    this host, but the kernel does not know it.
    """

    uid: int | None = None
    owner: bool = False
    unknown: bool = False


class Callers:
    """Tells connections' callers, and their levels by ``http.readers`` and ``http.writers``."""

    def __init__(self, settings: HttpSettings) -> None:
        self._readers, self._writers = frozenset(settings.readers), frozenset(settings.writers)
        self._by_group = any(name.startswith("@") for name in self._readers | self._writers)
        self._known: dict[int, tuple[float, asyncio.Future[tuple[Level, str]]]] = {}
        self._owners = SocketOwners()

    def close(self) -> None:
        """Close the netlink socket."""
        self._owners.close()

    def identify(self, connection: socket.socket) -> Caller:
        """The caller of an accepted connection."""
        try:
            if connection.family == socket.AF_UNIX:
                return Caller(peer_credentials(connection)[1], owner=is_trusted(connection))
            peer, own = connection.getpeername()[:2], connection.getsockname()[:2]
            uid = self._owners.owner(peer, own)
        except (OSError, KernelRefused) as error:
            log.warning("cannot tell whose connection this is: %s", error)
            return Caller(unknown=True)
        return Caller(uid, unknown=uid is None and ip_address(own[0]).is_loopback)

    async def authorizer(self, caller: Caller) -> Authorizer:
        """What a caller may do without a token. Raises PermissionDenied where nobody knows who it is."""
        if caller.owner:
            return MANAGEMENT
        if caller.uid is None:
            raise PermissionDenied(_UNKNOWN)
        level, name = await self.level(caller.uid)
        if level is Level.WRITE:
            return MANAGEMENT
        rules = READER_RULES if level is Level.READ else USER_RULES
        return _of_user(level, rules, name)

    async def level(self, uid: int) -> tuple[Level, str]:
        """A user's level, and how an error calls them. The user database may be slow (LDAP)."""
        now = asyncio.get_running_loop().time()
        known = self._known.get(uid)
        if known is None or known[0] < now:
            if len(self._known) >= MAX_KNOWN:
                self._known.clear()
            known = self._known[uid] = now + KNOWN_SECONDS, asyncio.ensure_future(asyncio.to_thread(self._level, uid))
        return await asyncio.shield(known[1])

    def _level(self, uid: int) -> tuple[Level, str]:
        names = {EVERYBODY, str(uid)}
        said = f"user {uid}"
        try:
            user = pwd.getpwuid(uid)
        except KeyError:
            pass
        else:
            names.add(user.pw_name)
            said = f"user {user.pw_name} ({uid})"
            if self._by_group:
                names |= {name for gid in os.getgrouplist(user.pw_name, user.pw_gid) for name in _group_names(gid)}
        if uid in (0, os.geteuid()):
            names.add("root")  # where the agent does not run as root, its user is what root is
        if names & self._writers:
            return Level.WRITE, said
        return Level.READ if names & self._readers else Level.CATALOG, said


def _group_names(gid: int) -> tuple[str, ...]:
    try:
        return f"@{gid}", f"@{grp.getgrgid(gid).gr_name}"
    except KeyError:
        return (f"@{gid}",)


def _of_user(level: Level, rules: Rules, name: str) -> Authorizer:
    return Authorizer(f"level {level}", rules, _explain(name), local_user=True, level=level)


def _explain(who: str) -> Callable[[str, str], str]:
    def explain(permission: str, name: str) -> str:
        about = f' on "{name[:200]}"' if name else ""
        setting = "http.writers" if permission.endswith("write") or permission.startswith("acl") else "http.readers"
        return (
            f"Permission denied: {who} lacks permission '{permission}'{about}: name the user, or a group as @group, in"
            f" {setting} of weft.toml"
        )

    return explain
