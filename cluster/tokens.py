"""Join tokens: what an operator carries from a member of a cluster to the host that is to join it.

``weft1/ADDRESS:PORT[,…]/FINGERPRINT/SECRET``: where members serve joins, the SHA-256 of the cluster's
certificate authority, and a secret of 256 random bits. The store has the secret's digest only, with when it
expires and who has used it. A token serves one join: the key that has used it may repeat its request, so
that a join that was interrupted can be finished, and no other.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass

from cluster import nodes
from store.interface import Compare, Entry, Put, Store
from weft.errors import ConfigProblem, WeftError
from weft.section import Section

DEFAULT_SECONDS = 3600.0
MOST_SECONDS = 7 * 86400.0
KEPT_SECONDS = 86400.0
"""Seconds after its end for which a token is remembered, so that its refusal tells why."""
_VERSION = "weft1"
_ADDRESS = re.compile(r"(\[[0-9A-Fa-f:.]{2,45}\]|[0-9.]{7,15}):(\d{1,5})\Z")
_FINGERPRINT = re.compile(r"[0-9a-f]{64}\Z")
_SECRET = re.compile(r"[A-Za-z0-9_-]{43}\Z")
_HINT = "copy the whole line that weft cluster token prints"


class Refused(WeftError):
    """A join that a member refuses, with the reason."""


@dataclass(frozen=True, slots=True)
class Token:
    """A token as an operator carries it; ``addresses`` are ``HOST:PORT``."""

    addresses: tuple[str, ...]
    fingerprint: str
    secret: str

    def __str__(self) -> str:
        return f"{_VERSION}/{','.join(self.addresses)}/{self.fingerprint}/{self.secret}"


@dataclass(frozen=True, slots=True)
class Issued:
    """A token as the store has it: when it expires (Unix time), and the name and key of who has used it."""

    expires: float
    name: str = ""
    key: str = ""


def new_secret() -> str:
    """256 random bits as text."""
    return base64.urlsafe_b64encode(secrets.token_bytes(32)).rstrip(b"=").decode()


def digest(secret: str) -> str:
    """What is kept of a secret. It needs no salt: nobody can try 2**256 secrets."""
    return hashlib.sha256(secret.encode()).hexdigest()


def parse(text: str) -> Token:
    """The token of a text. Raises ConfigProblem, which names the part that is wrong."""
    parts = text.strip().split("/")
    if len(parts) != 4 or parts[0] != _VERSION:
        raise ConfigProblem(f"this is no join token: it must have the form {_VERSION}/…/…/…", hint=_HINT)
    addresses = tuple(parts[1].split(","))
    for one in addresses:
        match = _ADDRESS.match(one)
        if match is None or not 0 < int(match[2]) <= 65535:
            raise ConfigProblem(f"the join token's address {one[:60]!r} is invalid", hint=_HINT)
    if not _FINGERPRINT.match(parts[2]):
        raise ConfigProblem("the join token's fingerprint is not 64 hexadecimal digits", hint=_HINT)
    if not _SECRET.match(parts[3]):
        raise ConfigProblem("the join token's secret is incomplete", hint=_HINT)
    return Token(addresses, parts[2], parts[3])


async def issue(store: Store, addresses: Sequence[str], fingerprint: str, seconds: float, now: float) -> Token:
    """Make a token that expires after some seconds. Raises ConfigProblem, StoreError."""
    if not 0 < seconds <= MOST_SECONDS:
        raise ConfigProblem(f"a token of {seconds:g} seconds", hint=f"at least 1 second, at most {MOST_SECONDS:.0f}")
    token = Token(tuple(addresses), fingerprint, new_secret())
    lease = await store.grant(seconds + KEPT_SECONDS)
    await store.put(_key(token.secret), _encode(Issued(now + seconds)), lease=lease)
    return token


async def check(store: Store, secret: str) -> None:
    """Raises Refused for a token that the store has never had, StoreError."""
    if not _SECRET.match(secret):
        raise Refused("the join token's secret is malformed", hint=_HINT)
    if await store.get(_key(secret)) is None:
        raise Refused(
            "the cluster knows no such join token: it is wrong, or ended more than a day ago",
            hint="on a member: weft cluster token",
        )


async def use(store: Store, secret: str, name: str, key: str, now: float) -> None:
    """Use a token for the join of a node, whose key's digest is ``key``; again by the same one is allowed.

    Raises Refused, StoreError.
    """
    while True:
        await check(store, secret)
        entry = await store.get(_key(secret))
        if entry is None:
            continue
        found = decode(entry)
        if (found.name, found.key) == (name, key):
            return
        if found.key:
            raise Refused(
                f"the join token has been used already, by node {found.name}", hint="on a member: weft cluster token"
            )
        if found.expires <= now:
            raise Refused(
                f"the join token expired {now - found.expires:.0f} s ago",
                hint="on a member: weft cluster token; if it should not have: compare the clocks of the hosts",
            )
        used = Put(entry.key, _encode(Issued(found.expires, name, key)), entry.lease)
        if (await store.transact([Compare(entry.key, "mod", entry.mod_revision)], [used])).succeeded:
            return


def decode(entry: Entry) -> Issued:
    """A token as the store has it. Raises Refused for one that is damaged."""
    try:
        section = Section(json.loads(entry.value))
        expires = section.raw("expires")
        if isinstance(expires, bool) or not isinstance(expires, int | float):
            raise ValueError("expires")
        return Issued(float(expires), section.text("name"), section.text("key"))
    except ValueError:
        raise Refused(f"{entry.key} is damaged", hint="on a member: weft cluster token") from None


def is_outstanding(token: Issued, now: float) -> bool:
    """Whether a join by this token may still come, or have to be finished."""
    return token.expires > now


def _key(secret: str) -> str:
    return nodes.TOKENS + digest(secret)


def _encode(token: Issued) -> bytes:
    value: dict[str, object] = {"expires": token.expires}
    if token.key:
        value |= {"name": token.name, "key": token.key}
    return json.dumps(value).encode()
