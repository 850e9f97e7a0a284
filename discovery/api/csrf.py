"""Rejects requests of other sites' pages, reads included.

The API listens where every process of the host can reach it, browsers included, and those run
untrusted pages. A cross-site request is recognized by Origin or Sec-Fetch-Site, DNS rebinding by
Host: to the browser a rebound page and the API are one site, so that it could also read the answer.

Source: RFC 6454; https://www.w3.org/TR/fetch-metadata/; RFC 9110 section 7.2.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from ipaddress import ip_address

from discovery.structs import CONSUL_SERVICE, Node

_LOCAL = ("localhost",)
_OWN_NAMES = ("consul", "weft")
"""Single labels that clients are configured with; no top-level domain has these names."""
_OWN_SITES = ("same-origin", "none")


def rejection_reason(headers: Mapping[str, str], hosts: Collection[str], *, writes: bool = True) -> str:
    """Why a request is rejected, "" if it is not. ``hosts`` are this agent's names in lower
    case.

    A read may come from a link on another site, whose pages cannot see what it leads to. Browsers send
    the API's own Origin when its page loads a module script.
    """
    origin = headers.get("Origin")
    if origin and (writes or origin.partition("://")[2] != headers.get("Host")):
        return f"cross-origin request from {origin[:100]!r} rejected"
    site = headers.get("Sec-Fetch-Site", "none")
    if site not in _OWN_SITES and (writes or not _is_link(headers)):
        return f"cross-site request rejected (Sec-Fetch-Site: {site[:40]})"
    host = _hostname(headers.get("Host", ""))
    if host and not _is_own_host(host, hosts):
        return f"unknown Host {host[:100]!r}: use an IP address, localhost, or a name in http.hosts"
    return ""


def own_hosts(node: Node, domains: Iterable[str]) -> Iterator[str]:
    """The names under which DNS and clients know this agent: ``consul``, the node's name,
    ``consul.service.consul`` …
    """
    yield from (node.name, *_OWN_NAMES)
    for domain in domains:
        for name in (f"{CONSUL_SERVICE}.service", f"{node.name}.node"):
            yield from (f"{name}.{domain}", f"{name}.{node.datacenter}.{domain}")


def _is_link(headers: Mapping[str, str]) -> bool:
    """Whether the browser opens the answer in a tab of its own."""
    return headers.get("Sec-Fetch-Mode") == "navigate" and headers.get("Sec-Fetch-Dest") == "document"


def _hostname(host: str) -> str:
    """The host of ``HOST:PORT``, in lower case."""
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
