"""IPAM type static: addresses from the configuration, without leases."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from ipaddress import ip_address, ip_interface

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

    ``args.cni.ips`` replaces these, and ``runtimeConfig.ips`` all others; neither has gateways. An
    address without a prefix length, as podman passes it, takes the place of the configured address in
    whose subnet it is, with its prefix length and gateway. Problems are added to the sections. An empty
    list of addresses is valid.
    """
    configured = _configured(ipam)
    asked = [text.strip() for text in arguments.get("IP", "").split(",") if text]
    bare = [_bare(text) for text in asked]
    found = [one for one in configured if not any(each is not None and each in one.address.network for each in bare)]
    found += _requested(Section({}, "CNI_ARGS", ipam.problems), "IP", asked, configured)
    found = _with_gateways(ipam, found, arguments)
    for section in (args_cni, runtime):
        texts = section.texts("ips")
        if texts:
            found = _requested(section, "ips", texts, configured)
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


def _requested(
    section: Section, key: str, texts: Sequence[str], configured: Sequence[ResultAddress]
) -> list[ResultAddress]:
    """The addresses that the runtime asks for: ``10.1.0.5/24``, or ``10.1.0.5`` of a configured subnet."""
    found = []
    for text in texts:
        address = _bare(text)
        if address is None:
            cidr = section.parse_cidr(key, text)
            found += [ResultAddress(cidr)] if cidr is not None else []
            continue
        like = next((one for one in configured if address in one.address.network), None)
        if like is not None:
            found.append(replace(like, address=ip_interface((address, like.address.network.prefixlen))))
        else:
            section.problems.add(
                f"{section.at(key)} {quoted(text)} has no prefix length, and no address in ipam.addresses is of its "
                "subnet: add one there, or pass the prefix length"
            )
    return found


def _bare(text: str) -> Address | None:
    """An address without a prefix length; None for anything else."""
    try:
        return None if "%" in text else ip_address(text)
    except ValueError:
        return None


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
