"""What the certificate of a node may do in etcd, as the permissions of its role.

It reads all keys of weft. It writes its own node record, what is below it, and its own services, checks and part in
overlay networks; and
what belongs to no node: keys, sessions, tokens, networks and their blocks, where nodes write what others have
written before, and etcd cannot tell one from the other (docs/security.md).
"""

from __future__ import annotations

from urllib.parse import quote

from cluster import nodes, records
from store.etcd.administration import Permission

_ALL = "/weft/"
_HOSTS = "/weft/v2/host/"
"""What ``discovery.layout`` has for each node, by its name."""
_TAKING_PART = f"{records.ROOT}member/"
_PROTECTED = (nodes.CLUSTER, nodes.ROOT, _HOSTS, _TAKING_PART)


def role(node: str) -> str:
    """The name of a node's role, and of the user that its certificate names: they are the same."""
    return node


def permissions(node: str) -> tuple[Permission, ...]:
    """All permissions of a node's role."""
    own = [
        _prefix(one) for one in (nodes.own_prefix(node), f"{_HOSTS}{quote(node, safe='')}/", f"{_TAKING_PART}{node}/")
    ]
    record = nodes.record_key(node)
    return (
        Permission(_ALL, _after(_ALL), writes=False),
        Permission(record, record + "\0", writes=True),
        *own,
        *_shared(),
    )


def _shared() -> list[Permission]:
    """All of weft's keys but those below the protected prefixes."""
    found, start = [], _ALL
    for prefix in sorted(_PROTECTED):
        found.append(Permission(start, prefix, writes=True))
        start = _after(prefix)
    return [*found, Permission(start, _after(_ALL), writes=True)]


def _prefix(prefix: str) -> Permission:
    return Permission(prefix, _after(prefix), writes=True)


def _after(prefix: str) -> str:
    """The first key after all with a prefix, which ends with "/"."""
    return prefix[:-1] + chr(ord(prefix[-1]) + 1)
