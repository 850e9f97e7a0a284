"""Keys of a CNI configuration that several plugins read: ``routes`` and ``dns``."""

from __future__ import annotations

from weft.section import Section
from weft.types import Dns, Route

_MAX_UINT32 = 2**32 - 1


def routes(section: Section, key: str = "routes") -> tuple[Route, ...]:
    """The routes under a key: ``dst`` and, each optional, ``gw mtu advmss priority table scope``.

    A missing ``dst`` and a gateway of the other family are problems. 0 for ``mtu``, ``advmss`` and
    ``priority`` means unset. Source: CNI SPEC.md, "Success" (routes).
    """
    found = []
    for each in section.sections(key):
        if not each.text("dst"):
            if "dst" not in each or each.raw("dst") == "":
                each.problems.add(f"{each.at('dst')} is missing: a route needs a destination")
            continue
        written, gateway = each.cidr("dst"), each.address("gw")
        numbers = {
            "mtu": each.integer("mtu", least=0, most=_MAX_UINT32) or None,
            "advmss": each.integer("advmss", least=0, most=_MAX_UINT32) or None,
            "priority": each.integer("priority", least=0, most=_MAX_UINT32) or None,
            "table": each.integer("table", least=0, most=_MAX_UINT32),
            "scope": each.integer("scope", least=0, most=255),
        }
        if written is None:
            continue
        destination = written.network
        given = each.text("dst") if written.ip != destination.network_address else ""
        if gateway is not None and gateway.version != destination.version:
            each.problem("gw", f"is not of the same family as {each.at('dst')} {destination}")
            continue
        found.append(Route(destination, gateway, **numbers, given=given))
    return tuple(found)


def sets_dns(section: Section) -> bool:
    """Whether an object ``dns`` is set, so that it overrides that of IPAM: an empty list counts, as with
    the reference's bridge and ptp, but not an empty domain.
    """
    return any(key in section for key in ("nameservers", "search", "options")) or bool(section.text("domain"))


def dns(section: Section) -> Dns:
    """The DNS settings of an object with ``nameservers domain search options``."""
    return Dns(
        nameservers=section.texts("nameservers"),
        domain=section.text("domain"),
        search=section.texts("search"),
        options=section.texts("options"),
    )
