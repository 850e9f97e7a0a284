"""Settings of the HTTP API."""

from __future__ import annotations

from dataclasses import dataclass, field

KIBIBYTE = 1024
MAX_VALUE_BYTES = 511 * KIBIBYTE
"""Bytes of a KV value: the store's 512 KiB less weft's own header."""


@dataclass(frozen=True, slots=True)
class AclSettings:
    """Settings of tokens. ``allow``: what no rule is about is allowed (default_policy = "allow").

    ``initial_management`` is the secret of a token that may do everything, ``default`` that of the
    token for requests without one, and for DNS. ``data`` is the folder of ``acl-bootstrap-reset``.
    """

    enabled: bool = False
    allow: bool = False
    initial_management: str = ""
    default: str = ""
    data: str = ""


@dataclass(frozen=True, slots=True)
class TlsSettings:
    """TLS of what listens beyond loopback: PEM files. ``verify``: clients need a certificate of
    ``ca``.
    """

    certificate: str
    key: str
    ca: str = ""
    verify: bool = False


@dataclass(frozen=True, slots=True)
class HttpSettings:
    """Settings of the HTTP API. Times in seconds, sizes in bytes.

    ``listen``: ``HOST:PORT``, ``[IPV6]:PORT``, or the path of a unix socket, created with mode
    0600. ``hosts``: Host names accepted in requests, beside addresses, ``localhost`` and the
    agent's own names, which end in ``domains``. ``scripts``: accept script checks over HTTP; off,
    since they run as root for whoever reaches the API. ``readers`` and ``writers``: users, and
    groups as ``@group``, who may read all but ACLs, and everything; every local user may read the
    catalog, unless there are tokens (``acl``). ``header_time``: for a request header once
    begun; ``body_time``: for the body; ``idle_time``: between requests; ``write_time``: for the
    client to read a response.
    """

    listen: tuple[str, ...] = ("127.0.0.1:8500",)
    hosts: tuple[str, ...] = ()
    domains: tuple[str, ...] = ("weft", "consul")
    scripts: bool = False
    readers: tuple[str, ...] = ()
    writers: tuple[str, ...] = ("root",)
    acl: AclSettings = field(default_factory=AclSettings)
    tls: TlsSettings | None = None
    session_ttl_min: float = 10.0
    body_bytes: int = 512 * KIBIBYTE
    connections: int = 8192
    connections_of_peer: int = 4096
    header_time: float = 10.0
    body_time: float = 20.0
    idle_time: float = 90.0
    write_time: float = 30.0
