"""Which names of a container its siblings are answered: those that cannot be taken for another's.

Whoever starts a container chooses its name and aliases, and every container of the network asks for
them. Sources: RFC 6761, 6762, 7686, 8375, 9476 (special-use names); WPAD and ISATAP, which clients
look up by these names; systemd-resolved(8); the names that Docker and podman give to the host.
"""

from __future__ import annotations

from collections.abc import Collection

RESERVED = frozenset(
    (
        *("localhost", "localhost6", "localdomain", "local", "broadcasthost", "ip6-localhost"),
        *("ip6-loopback", "ip6-localnet", "ip6-mcastprefix", "ip6-allnodes", "ip6-allrouters"),
        *("invalid", "onion", "alt", "internal", "arpa", "wpad", "isatap"),
        *("_gateway", "_outbound", "_localdnsstub", "_localdnsproxy"),
        *("com", "net", "org", "edu", "gov", "mil", "int"),
    )
)
"""Single labels that mean something else than a container. Of the top-level domains only those that
nobody calls a container: app, dev and shop are some, too.
"""


def not_served(name: str, domains: Collection[str], permitted: Collection[str] = ()) -> str:
    """Why a name (in lower case) is not served, "" if it is.

    One label is, alone or below one of ``domains``, which are the network's own, unless it is
    RESERVED. Longer names are served only at or below a ``permitted`` domain.
    """
    if any(name == one or name.endswith(f".{one}") for one in permitted):
        return ""
    relative = next((name.removesuffix(f".{one}") for one in domains if name.endswith(f".{one}")), name)
    if "." in relative:
        return (
            f"name {name} is not served: it has several labels, and is none below the network's name or domain; "
            "[dns] alias_domains in weft.toml permits other domains"
        )
    if _unicode(relative) in RESERVED:
        return f"name {name} is not served: {relative} is reserved"
    return ""


def looked_up(name: str) -> str:
    """A name as the DNS server looks it up: ``xn--bcher-kva`` is ``bücher``."""
    return ".".join(map(_unicode, name.split("."))) if "xn--" in name else name


def _unicode(label: str) -> str:
    if not label.startswith("xn--"):
        return label
    try:
        return label.removeprefix("xn--").encode("ascii").decode("punycode")
    except UnicodeError:
        return label
