"""What the HTTP API can be told: where it listens, what it allows, and its bounds."""

from __future__ import annotations

from dataclasses import dataclass

KIBIBYTE = 1024
MAX_VALUE_BYTES = 511 * KIBIBYTE
"""Bytes of a value in the key-value store; the store's own 512 KiB, less what is kept beside it."""


@dataclass(frozen=True, slots=True)
class HttpSettings:
    """Times are in seconds, sizes in bytes.

    ``listen``: ``HOST:PORT``, ``[IPV6]:PORT``, or the path of a unix socket, which is made with mode 0600. ``hosts``:
    names, beside addresses, ``localhost`` and the node's own name, by which requests that change something may call
    this agent. ``scripts``: whether checks that run programs may be registered over HTTP; off, since that is running
    programs as root for whoever reaches the API. ``header_time`` is what a client has for the rest of a request's head
    once it has begun, ``body_time`` for its body, ``idle_time`` between requests, ``write_time`` for taking an answer.
    """

    listen: tuple[str, ...] = ("127.0.0.1:8500",)
    hosts: tuple[str, ...] = ()
    scripts: bool = False
    session_ttl_min: float = 10.0
    body_bytes: int = 512 * KIBIBYTE
    connections: int = 8192
    connections_of_peer: int = 4096
    header_time: float = 10.0
    body_time: float = 20.0
    idle_time: float = 90.0
    write_time: float = 30.0
