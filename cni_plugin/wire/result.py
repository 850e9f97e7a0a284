"""Results of an ADD, to JSON and back, in each of the three shapes that the versions have.

| versions | shape |
|---|---|
| 0.1.0, 0.2.0 | ``ip4`` and ``ip6``, one address each, with the routes of their family |
| 0.3.0, 0.3.1, 0.4.0 | ``interfaces``, ``ips`` that name their IP version, ``routes``, ``dns`` |
| 1.0.0, 1.1.0 | the same without IP versions; an interface's MTU and device names since 1.1.0 |

Source: SPEC.md of each version, "Success" ("Result").
"""

from __future__ import annotations

import json
from json.encoder import encode_basestring_ascii

from cni_plugin.wire import versions
from weft import cni_keys
from weft.errors import VersionProblem
from weft.section import Problems, Section
from weft.types import Cidr, Dns, Result, ResultAddress, ResultInterface, Route

Json = dict[str, object]
_FAMILIES = ((4, "ip4"), (6, "ip6"))


def render(result: Result, version: str) -> bytes:
    """The result as a plugin prints it: four spaces of indentation, no newline at the end.

    Raises VersionProblem as ``check`` does.
    """
    body: Json = {"cniVersion": version}
    if not versions.at_least(version, "0.3.0"):
        body |= _by_family(result)
    elif not versions.at_least(version, "1.0.0"):
        body |= _lists(result, version) | {"dns": _dns(result.dns)}
    else:
        body |= _lists(result, version)
        if result.dns:
            body["dns"] = _dns(result.dns)
        body = dict(sorted(body.items()))
    return _indented(body, "\n").encode("ascii")


def _indented(value: object, end: str) -> str:
    """What ``json.dumps(value, indent=4)`` says, which takes five times as long."""
    inner = end + "    "
    if isinstance(value, dict) and value:
        items = [f"{encode_basestring_ascii(key)}: {_indented(each, inner)}" for key, each in value.items()]
        return f"{{{inner}{f',{inner}'.join(items)}{end}}}"
    if isinstance(value, list) and value:
        return f"[{inner}{f',{inner}'.join([_indented(each, inner) for each in value])}{end}]"
    return encode_basestring_ascii(value) if isinstance(value, str) else json.dumps(value)


def check(result: Result, version: str) -> None:
    """Raises VersionProblem where the version cannot say it: 0.1.0 and 0.2.0 need an address.

    A plan's result is known before the kernel is touched, so that is the time to ask.
    """
    if not versions.at_least(version, "0.3.0"):
        _by_family(result)


def parse(value: object, version: str, problems: Problems, path: str = "prevResult") -> Result:
    """A result from JSON, in the shape of ``version`` or of the older one, which it tells apart by its
    keys.

    What is wrong goes to ``problems`` and is left out. ``path`` is what messages call the whole.
    """
    section = Section(value, path, problems)
    if not versions.at_least(version, "0.3.0") or (("ip4" in section or "ip6" in section) and "ips" not in section):
        return _from_families(section)
    interfaces = tuple(_interface(each) for each in section.sections("interfaces"))
    found = (_address(each, len(interfaces)) for each in section.sections("ips"))
    return Result(
        interfaces=interfaces,
        ips=tuple(each for each in found if each is not None),
        routes=cni_keys.routes(section),
        dns=cni_keys.dns(section.section("dns")),
    )


def _by_family(result: Result) -> Json:
    body: Json = {}
    for family, key in _FAMILIES:
        first = next((each for each in result.ips if each.address.version == family), None)
        if first is None:
            continue
        entry: Json = {"ip": str(first.address)}
        if first.gateway is not None:
            entry["gateway"] = str(first.gateway)
        routes = [_plain_route(route) for route in result.routes if route.destination.version == family]
        if routes:
            entry["routes"] = routes
        body[key] = entry
    if not body:
        raise VersionProblem(
            "cannot convert: no valid IP addresses", hint="use cniVersion 0.3.0 or later, whose results need none"
        )
    return body | {"dns": _dns(result.dns)}


def _lists(result: Result, version: str) -> Json:
    """Interfaces, addresses and routes, leaving out empty lists."""
    lists: dict[str, list[Json]] = {
        "interfaces": [_interface_json(each, version) for each in result.interfaces],
        "ips": [_address_json(each, version) for each in result.ips],
        "routes": [_route_json(each) for each in result.routes],
    }
    return {key: items for key, items in lists.items() if items}


def _interface_json(interface: ResultInterface, version: str) -> Json:
    body: Json = {"name": interface.name}
    newest = versions.at_least(version, "1.1.0")
    for key, value, known in (
        ("mtu", interface.mtu, newest),
        ("mac", interface.mac, True),
        ("sandbox", interface.sandbox, True),
        ("socketPath", interface.socket_path, newest),
        ("pciID", interface.pci_id, newest),
    ):
        if value and known:
            body[key] = value
    return body


def _address_json(address: ResultAddress, version: str) -> Json:
    body: Json = {}
    if not versions.at_least(version, "1.0.0"):
        body["version"] = str(address.address.version)
    if address.interface is not None:
        body["interface"] = address.interface
    body["address"] = str(address.address)
    if address.gateway is not None:
        body["gateway"] = str(address.gateway)
    return body


def _plain_route(route: Route) -> Json:
    body: Json = {"dst": route.given or str(route.destination)}
    if route.gateway is not None:
        body["gw"] = str(route.gateway)
    return body


def _route_json(route: Route) -> Json:
    """All that a route says, whatever the version: the next plugin of a chain at 0.4.0 needs it too."""
    body = _plain_route(route)
    for key in ("mtu", "advmss", "priority", "table", "scope"):
        value: int | None = getattr(route, key)
        if value is not None:
            body[key] = value
    return body


def _dns(dns: Dns) -> Json:
    body: Json = {
        "nameservers": list(dns.nameservers),
        "domain": dns.domain,
        "search": list(dns.search),
        "options": list(dns.options),
    }
    return {key: value for key, value in body.items() if value}


def _from_families(section: Section) -> Result:
    ips: list[ResultAddress] = []
    routes: list[Route] = []
    for family, key in _FAMILIES:
        if key not in section:
            continue
        entry = section.section(key)
        address = entry.cidr("ip")
        if address is None:
            if not entry.text("ip"):
                entry.problems.add(f"{entry.at('ip')} is missing")
            continue
        if address.version != family:
            entry.problem("ip", f"is not an IPv{family} address")
            continue
        ips.append(ResultAddress(address, entry.address("gateway")))
        routes.extend(cni_keys.routes(entry))
    return Result(ips=tuple(ips), routes=tuple(routes), dns=cni_keys.dns(section.section("dns")))


def _interface(section: Section) -> ResultInterface:
    if not section.text("name"):
        section.problems.add(f"{section.at('name')} is missing")
    return ResultInterface(
        name=section.text("name"),
        mac=section.text("mac"),
        sandbox=section.text("sandbox"),
        mtu=section.integer("mtu", least=0) or 0,
        socket_path=section.text("socketPath"),
        pci_id=section.text("pciID"),
    )


def _address(section: Section, interfaces: int) -> ResultAddress | None:
    """One of ``ips``, None where it has no address that can be read; -1 is no interface, as in old
    results.
    """
    address: Cidr | None = section.cidr("address")
    if address is None:
        if not section.text("address"):
            section.problems.add(f"{section.at('address')} is missing")
        return None
    index = section.integer("interface", least=-1)
    if index is not None and index >= interfaces:
        section.problem("interface", f"is no interface of this result, which has {interfaces}")
        index = None
    return ResultAddress(address, section.address("gateway"), None if index == -1 else index)
