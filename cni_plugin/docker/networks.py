"""From ``docker network create -d weft`` to the CNI configuration of the network's attachments."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from cni_plugin.docker import overlays
from cni_plugin.docker.addresses import SPACE
from cni_plugin.docker.calls import VERSION
from cni_plugin.docker.state import Json, Network
from cni_plugin.networks import create, podman, pools
from cni_plugin.networks.create import CreateOptions
from cni_plugin.plan import modules
from cni_plugin.service.overlaps import KEY, Use
from cni_plugin.wire.plugins import OWN_NAME
from weft.errors import BadOption, InUse
from weft.identity import link_name_problem
from weft.section import Problems, Section
from weft.types import Subnet

GENERIC = "com.docker.network.generic"
_DRIVER, _BINDING = "driver", "com.docker.network.bridge.host_binding_ipv4"
_PREFIX = "com.docker.network.container_iface_prefix"
_NAMES, _DEFAULT_ROUTE = "names", "default-route"
_OWN = (_DRIVER, _BINDING, _PREFIX, _NAMES, _DEFAULT_ROUTE)
_SHORT_ID, _SHORT_BRIDGE = 12, 10


@dataclass(frozen=True, slots=True)
class Pooled:
    """A subnet of the network as Docker passes it, with its gateway and that one's prefix length.

    ``own``: weft gives out its addresses.
    """

    subnet: Subnet
    gateway: str = ""
    own: bool = False


@dataclass(frozen=True, slots=True)
class Wanted:
    """What Docker passes for a network."""

    id: str
    options: dict[str, str]
    pools: tuple[Pooled, ...] = ()
    internal: bool = False


def read(call: Section) -> Wanted:
    """The body of CreateNetwork. Raises ConfigProblem.

    Source: moby's ``libnetwork/drivers/remote/api``, CreateNetworkRequest.
    """
    options = call.section("Options")
    generic = options.section(GENERIC)
    raw = options.raw(GENERIC)
    names = list(raw) if isinstance(raw, dict) else []
    found = Wanted(
        call.text("NetworkID"),
        {name: generic.text(name) for name in names},
        tuple(_pooled([*call.sections("IPv4Data"), *call.sections("IPv6Data")])),
        options.flag("com.docker.network.internal"),
    )
    versions = {one.subnet.version for one in found.pools}
    if options.flag("com.docker.network.enable_ipv6") and versions == {4}:
        call.problems.add("--ipv6 needs a subnet: give --subnet with an IPv6 one, such as fd00:1::/64")
    call.problems.raise_any()
    return found


def _pooled(sections: Iterable[Section]) -> Iterator[Pooled]:
    for one in sections:
        subnet, gateway = one.subnet("Pool"), one.cidr("Gateway")
        if subnet is not None:
            yield Pooled(subnet, str(gateway or ""), one.text("AddressSpace") == SPACE)


def build(wanted: Wanted, others: Iterable[Network]) -> Network:
    """The network. Raises BadOption for an option, InUse for a subnet or bridge that is in use."""
    name = wanted.options.get(_DRIVER) or "bridge"
    if name not in _drivers():
        raise BadOption(f"unknown driver {name!r}: -o driver must be one of {', '.join(_drivers())}")
    driver = modules.declared(name)
    own = {key: text for key, text in wanted.options.items() if key not in _OWN}
    requested = CreateOptions(driver=name, internal=wanted.internal, options=own)
    keys = create.gateway_and_masquerade(requested, driver, create.settings_of(requested, driver))
    gateways = tuple(one.gateway for one in wanted.pools if one.gateway)
    if driver.gateway_key:
        keys[driver.gateway_key] = bool(gateways)
    config_name, ipam = f"docker-{wanted.id[:_SHORT_ID]}", {}
    if name == overlays.DRIVER:
        config_name = _overlay(wanted, others)
        keys = {**(overlays.listed(config_name) or keys), **create.settings_of(requested, driver)}
        ipam = {"ipam": {"type": driver.default_ipam}}
    elif driver.bridged:
        keys.setdefault(driver.parent_key, f"weft-{wanted.id[:_SHORT_BRIDGE]}")
        _require_bridge(str(keys[driver.parent_key]), keys, others)
    if driver.routed and not ipam:
        _require_gateways(wanted, name)
        if not keys.get(KEY):
            _require_free(wanted, str(keys.get(driver.parent_key, "")))
    config: Json = {
        "cniVersion": VERSION,
        "name": config_name,
        "type": OWN_NAME,
        "driver": name,
        **keys,
        **ipam,
    }
    binding = _binding(wanted.options.get(_BINDING, ""))
    names, default_route = (create.flag(key, wanted.options.get(key, "true")) for key in (_NAMES, _DEFAULT_ROUTE))
    prefix = wanted.options.get(_PREFIX, "")
    if prefix and (problem := link_name_problem(f"{prefix}0")):
        raise BadOption(f"invalid value {prefix!r} for option {_PREFIX}: with a number, the name of a link {problem}")
    return Network(
        wanted.id, name, config, gateways, wanted.internal, binding, prefix, names, time.time(), default_route
    )


def _overlay(wanted: Wanted, others: Iterable[Network]) -> str:
    """The name of the overlay network. Raises BadOption, InUse where Docker has it already."""
    if not all(one.own for one in wanted.pools):
        raise BadOption(
            "driver overlay needs --ipam-driver weft: Docker's own would give one address to containers of two hosts"
        )
    found = overlays.require([one.subnet for one in wanted.pools])
    for other in others:
        if other.name == found.name:
            raise InUse(f"overlay network {found.name} is already Docker's network {other.id[:_SHORT_ID]}")
    return found.name


def _drivers() -> tuple[str, ...]:
    names = {*create.drivers(), overlays.DRIVER}
    return tuple(name for name in sorted(names) if modules.declared(name).addresses)


def _binding(text: str) -> str:
    if text:
        problems = Problems()
        Section({_BINDING: text}, "", problems).address(_BINDING)
        problems.raise_any()
    return text


def _require_bridge(bridge: str, keys: dict[str, object], others: Iterable[Network]) -> None:
    """Raises InUse for a bridge of another network of Docker's, unless both are VLANs of it."""
    for other in others:
        if other.config.get("bridge") == bridge and other.config.get("vlan") == keys.get("vlan"):
            raise InUse(f"bridge {bridge} is already in use by network {other.id[:_SHORT_ID]}")


def _require_gateways(wanted: Wanted, name: str) -> None:
    without = [str(one.subnet) for one in wanted.pools if not one.gateway]
    if without:
        raise BadOption(f"driver {name} needs a gateway, and {without[0]} has none", hint="give --gateway")


def _require_free(wanted: Wanted, bridge: str) -> None:
    """Raises InUse where something else of this host has one of the subnets."""
    uses: list[Use] = [one for one in podman.subnets_in_use(routes=False) if not bridge or one.link != bridge]
    uses += overlays.uses()
    for one in wanted.pools:
        pools.require_free(one.subnet, uses)
