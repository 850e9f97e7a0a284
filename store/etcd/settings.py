"""Where an etcd cluster is, how to log in to it, and how long to wait for it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class EtcdSettings:
    """``endpoints`` are ``HOST:PORT``; ``state`` is a folder for what this host knows of the cluster.

    ``ca``, ``cert``, ``key`` and ``password_file`` are files. A key of the store is kept as ``prefix``
    and the key; the operation tokens (``store.etcd.slots``) have keys that begin with ``operations``.
    ``attempt_seconds`` is the deadline of a request to one member, ``call_seconds`` that of a call of
    the store, and a watch that hears nothing for ``silent_seconds`` goes to another member.
    """

    endpoints: tuple[str, ...]
    state: str
    tls: bool = False
    ca: str = ""
    cert: str = ""
    key: str = ""
    user: str = ""
    password_file: str = ""
    prefix: str = ""
    operations: str = "/weft/operation/"
    attempt_seconds: float = 0.8
    call_seconds: float = 3.0
    silent_seconds: float = 3.0
