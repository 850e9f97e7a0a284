"""Who may change something: not a page that a browser on this machine has open.

The API listens where every program of the machine can reach it, and browsers are programs that run what strangers
wrote. A page of another site is known by its Origin, or by what the browser says about where the request comes from;
one whose name was made to point here (DNS rebinding) by the Host that it asks for.
Source: RFC 6454; https://www.w3.org/TR/fetch-metadata/; RFC 9110 section 7.2.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from ipaddress import ip_address

_LOCAL = ("localhost",)
_OWN_SITES = ("same-origin", "none")


def rejection_reason(headers: Mapping[str, str], hosts: Collection[str]) -> str:
    """Why a request with these headers may change nothing, "" if it may. ``hosts``: names of this agent, lower case."""
    if origin := headers.get("Origin"):
        return f"requests with an Origin may change nothing here: {origin[:100]!r} is a web page"
    site = headers.get("Sec-Fetch-Site", "none")
    if site not in _OWN_SITES:
        return f"requests from other sites' pages may change nothing here (Sec-Fetch-Site: {site[:40]})"
    host = _hostname(headers.get("Host", ""))
    if host and not _is_own_host(host, hosts):
        return f"this agent is not called {host[:100]!r}: use its address, localhost, or a name of its configuration"
    return ""


def _hostname(host: str) -> str:
    """The host of ``HOST:PORT``."""
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.rpartition(":")[0].lower() or host.lower() if host.count(":") == 1 else host.lower()


def _is_own_host(host: str, hosts: Collection[str]) -> bool:
    name = host.rstrip(".")
    if name in _LOCAL or name.endswith(".localhost") or name in hosts:
        return True
    try:
        ip_address(name)
    except ValueError:
        return False
    return True
