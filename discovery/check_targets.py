"""What a check connects to: ``HOST:PORT`` as Go's net.Dial takes it, URLs as Go's url.Parse does.

Sources: https://pkg.go.dev/net#Dial, net.SplitHostPort, net.LookupPort, https://pkg.go.dev/net/url.
"""

from __future__ import annotations

import re
import socket

LOCAL = "127.0.0.1"
"""What an empty host means."""

_PORTS = {
    "ftp": 21, "ssh": 22, "telnet": 23, "smtp": 25, "domain": 53, "http": 80, "pop3": 110, "imap2": 143,
    "https": 443, "submissions": 465, "imaps": 993, "pop3s": 995,
}  # fmt: skip
"""Port names that Go knows without /etc/services."""
_URL = re.compile(r"(https?)://([^/?#]*)(.*)", re.IGNORECASE | re.DOTALL)
_FORBIDDEN = frozenset(' "<>\\^`{|}\t')


def split_host_port(address: str, protocol: str) -> tuple[str, int]:
    """The host ("" is LOCAL) and port of ``:9000``, ``[127.0.0.1]:80``, ``db.example:postgresql``.

    ``protocol`` is "tcp" or "udp", for names of ports. Raises ValueError.
    """
    host, port = _split(address)
    if not port:
        raise ValueError("has no port")
    return _host(host), _port(port, protocol)


def parse_url(address: str) -> str:
    """The URL with its host in a form that every client accepts. Raises ValueError.

    ``http://:9000/`` is a URL of LOCAL, ``http://[127.0.0.1]:9998/`` has no use for the brackets,
    and a path may contain spaces.
    """
    if any(not character.isprintable() for character in address):
        raise ValueError("contains non-printable characters")
    found = _URL.fullmatch(address)
    if found is None:
        raise ValueError("has no scheme http or https")
    scheme, authority, rest = found.groups()
    user, at, place = authority.rpartition("@")
    host, port = _split(place) if ":" in place.rpartition("]")[2] else (place.removeprefix("[").removesuffix("]"), "")
    if port and not port.isdigit():
        raise ValueError(f"has the port {port!r}, which is not a number")
    number = f":{_port(port, 'tcp')}" if port else ""
    host = _host(host)
    return f"{scheme.lower()}://{user}{at}{f'[{host}]' if ':' in host else host}{number}{rest}"


def _split(address: str) -> tuple[str, str]:
    """Host and port, as net.SplitHostPort splits them."""
    host, colon, port = address.rpartition(":")
    if not colon or port.endswith("]"):
        raise ValueError("has no port")
    if host.startswith("["):
        if not host.endswith("]") or "[" in host[1:] or "]" in host[:-1]:
            raise ValueError("has unmatched brackets")
        return host[1:-1], port
    if ":" in host:
        raise ValueError("has too many colons, an IPv6 address needs brackets")
    if "[" in host or "]" in host:
        raise ValueError("has unmatched brackets")
    return host, port


def _host(host: str) -> str:
    if not host.isprintable() or _FORBIDDEN & set(host) or "[" in host or "]" in host:
        raise ValueError(f"has an invalid host {host[:60]!r}")
    return host or LOCAL


def _port(port: str, protocol: str) -> int:
    number = -1
    if port.isascii() and port.isdigit() and len(port) <= 5:
        number = int(port)
    elif not port[0].isdigit():
        try:
            number = socket.getservbyname(port, protocol)
        except (OSError, ValueError):
            number = _PORTS.get(port.lower(), -1)
    if not 0 < number <= 65535:
        raise ValueError(f"has an unknown port {port[:20]!r}")
    return number
