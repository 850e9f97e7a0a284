"""IPAM type static: addresses from the configuration, without leases."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from ipaddress import ip_address

from weft.cni_keys import dns, routes
from weft.section import Section, quoted
from weft.types import Address, Cidr, Dns, Result, ResultAddress, Route

__all__ = ["Static", "lacks", "read", "result"]


@dataclass(frozen=True, slots=True)
class Static:
    """A static configuration."""

    addresses: tuple[ResultAddress, ...] = ()
    routes: tuple[Route, ...] = ()
    dns: Dns = field(default_factory=Dns)


def read(
    ipam: Section,
    *,
    version: str,
    arguments: Mapping[str, str],
    args_cni: Section,
    runtime: Section,
) -> Static:
    """The addresses of ``ipam.addresses`` and CNI_ARGS ``IP`` (with ``GATEWAY`` for its subnet).

    ``args.cni.ips`` replaces these, and ``runtimeConfig.ips`` all others; neither has gateways.
    Problems are added to the sections. An empty list of addresses is valid.
    """
    found = _configured(ipam) + _from_arguments(ipam, arguments)
    found = _with_gateways(ipam, found, arguments)
    for section in (args_cni, runtime):
        texts = section.texts("ips")
        if texts:
            parsed = (section.parse_cidr("ips", text) for text in texts)
            found = [ResultAddress(cidr) for cidr in parsed if cidr is not None]
    _check_together(ipam, found, version)
    return Static(tuple(found), routes(ipam), dns(ipam.section("dns")))


def result(static: Static) -> Result:
    """The result of ADD."""
    return Result(ips=static.addresses, routes=static.routes, dns=static.dns)


def lacks(static: Static, expected: tuple[Cidr, ...]) -> str | None:
    """CHECK: which configured address is missing from the result, None if none is."""
    missing = [str(each.address) for each in static.addresses if each.address not in expected]
    return f"the configured address {missing[0]} is not in the attachment's result" if missing else None


def _configured(ipam: Section) -> list[ResultAddress]:
    found = []
    for each in ipam.sections("addresses"):
        if "address" not in each:
            each.problems.add(f"{each.at('address')} is missing")
        cidr, gateway = each.cidr("address"), each.address("gateway")
        if cidr is None:
            continue
        if gateway is not None and gateway.version != cidr.version:
            each.problem("gateway", f"is not of the same family as {cidr}")
            continue
        found.append(ResultAddress(cidr, gateway))
    return found


def _from_arguments(ipam: Section, arguments: Mapping[str, str]) -> list[ResultAddress]:
    """CNI_ARGS ``IP=10.1.0.5/24,fd00::5/64``."""
    found = []
    for text in arguments.get("IP", "").split(","):
        if text:
            cidr = Section({}, "CNI_ARGS", ipam.problems).parse_cidr("IP", text.strip())
            if cidr is not None:
                found.append(ResultAddress(cidr))
    return found


def _with_gateways(ipam: Section, found: list[ResultAddress], arguments: Mapping[str, str]) -> list[ResultAddress]:
    """CNI_ARGS ``GATEWAY=10.1.0.1,fd00::1``: each for the addresses in its subnet."""
    for text in arguments.get("GATEWAY", "").split(","):
        if not text:
            continue
        try:
            gateway: Address = ip_address(text.strip())
        except ValueError:
            ipam.problems.add(f"CNI_ARGS GATEWAY {quoted(text)} is not an IP address")
            continue
        found = [replace(each, gateway=gateway) if gateway in each.address.network else each for each in found]
    return found


def _check_together(ipam: Section, found: list[ResultAddress], version: str) -> None:
    seen = set()
    for each in found:
        if each.address.ip in seen:
            ipam.problems.add(f"the address {each.address.ip} is configured twice")
        seen.add(each.address.ip)
    families = [each.address.version for each in found]
    if version in ("", "0.1.0", "0.2.0") and len(families) > len(set(families)):
        ipam.problems.add(
            f"cniVersion {version or '0.1.0'} allows one address of each family; use 0.3.0 or later for more"
        )
