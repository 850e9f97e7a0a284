"""Selects the driver, the features and the IPAM of a configuration.

Called by a reference plugin's name, weft is that plugin; called as ``weft`` it takes ``driver`` and
nested features, so that one process does what a chain of plugins did.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field, replace

from cni_plugin.ops import ForeignLease, PoolLease
from cni_plugin.ops.operation import Lease
from cni_plugin.plan import modules
from cni_plugin.plan.plan import PlanPart
from cni_plugin.plan.traits import Stage
from cni_plugin.wire.plugins import IPAM, OWN_NAME
from cni_plugin.wire.request import Request
from ipam import host_local, static
from ipam.leases import Owner
from weft import overlay
from weft.identity import digest
from weft.section import Section
from weft.types import Result


@dataclass(frozen=True, slots=True)
class Assembly:
    """The parts of one attachment. ``answer`` is what IPAM says without reserving anything.

    ``link_parts`` are those of the parts that need no address to be planned: the driver, and what
    protects others. ``on_host``: the container shares the host's network namespace. ``addresses_only``:
    an IPAM plugin called alone, which needs no network namespace, so CNI_NETNS is not opened.
    ``uses_rules``: the configuration asks for a feature that needs nftables. ``unasked`` are the parts
    that protect others although the configuration does not ask for it, as the reference does not.
    """

    driver: str = ""
    parts: tuple[PlanPart, ...] = ()
    link_parts: tuple[PlanPart, ...] = ()
    lease: Lease | None = None
    answer: Result = field(default_factory=Result)
    on_host: bool = False
    addresses_only: bool = False
    uses_rules: bool = False
    unasked: tuple[PlanPart, ...] = ()

    @property
    def follows(self) -> bool:
        """Whether it is of a later plugin of a list, which sets up something for the interface of an earlier one."""
        return bool(self.parts) and not self.driver

    def without_unasked(self) -> Assembly:
        """What can be done on a kernel without nftables: all that the configuration asks for."""
        return replace(
            self,
            parts=tuple(part for part in self.parts if part not in self.unasked),
            link_parts=tuple(part for part in self.link_parts if part not in self.unasked),
            unasked=(),
        )


def read(request: Request) -> Assembly:
    """The parts, validated; every problem is noted in the configuration's problems and none is raised."""
    if request.plugin in IPAM:
        if "ipam" not in request.config.keys:
            request.config.keys.problems.add(f"ipam is missing: {request.plugin} reads its settings there")
        if request.config.ipam.text("type") not in ("", request.plugin):
            request.config.ipam.problem("type", f"must be {request.plugin!r} when that plugin is called")
        found = _addressed("", (), request, request.plugin)
        return replace(found, addresses_only=found.lease is None or not found.lease.needs_link)
    driver, features = _choice(request)
    keys = request.config.keys
    part = modules.driver(driver).read(request, request.config.keys) if driver else None
    parts = [part] if part is not None else []
    declared = modules.declared(driver)
    if not declared.addresses and request.config.ipam:
        request.config.keys.problems.add(f"ipam is not allowed with driver {driver}, which assigns no addresses")
    if declared.on_host:
        return Assembly(driver, tuple(parts), on_host=True)
    if driver and declared.link_kind is None and request.plugin == OWN_NAME:
        _refuse_features(driver, request.config.keys)
        features = ()
    link_parts, uses_rules = list(parts), False
    unasked: list[PlanPart] = []
    for name in features:
        part = _feature(name, request)
        if part is not None:
            parts.append(part)
            feature = modules.feature(name).FEATURE
            if feature.guards:
                link_parts.append(part)
            if feature.guards and request.plugin != OWN_NAME and not any(key in keys for key in feature.keys):
                unasked.append(part)
            else:
                uses_rules |= feature.stage >= Stage.SOURCE_NAT
    found = _addressed(driver, tuple(parts), request, request.config.ipam.text("type") if driver else "")
    return replace(found, link_parts=tuple(link_parts), uses_rules=uses_rules, unasked=tuple(unasked))


def _choice(request: Request) -> tuple[str, tuple[str, ...]]:
    """The driver's name ("" for a chained plugin) and the names of the features to look for, in their
    order.

    A feature that the configuration does not ask for is not imported.
    """
    keys = request.config.keys
    if chained := modules.feature_of(request.plugin):
        return "", (chained,)
    if request.plugin not in (OWN_NAME, *modules.drivers()):
        known = ", ".join(modules.plugins())
        keys.problems.add(f"weft was called as {request.plugin!r}, which is the name of no plugin; those are {known}")
        return "", ()
    if request.plugin != OWN_NAME and not modules.declared(request.plugin).plugin:
        keys.problems.add(f"type {request.plugin!r} is no CNI plugin: write type weft and driver {request.plugin}")
        return "", ()
    if request.plugin != OWN_NAME:
        return request.plugin, _ordered(modules.driver(request.plugin).DRIVER.features)
    name = keys.text("driver")
    if name and name not in modules.drivers():
        keys.problem("driver", f"is not known; it is one of {', '.join(modules.drivers())}")
    driver = modules.declared(name)
    top = {*driver.features, *driver.own_features}
    asked = (each for each in modules.features() if each not in top and each in keys)
    sections = {each for each in asked if modules.feature(each).FEATURE.section}
    if not name and request.config.previous is None and not _follows(top | sections, keys):
        keys.problems.add(f"driver is missing; it is one of {', '.join(modules.drivers())}")
    name = name if name in modules.drivers() else ""
    return name, _ordered(top | sections)


def _follows(features: Collection[str], keys: Section) -> bool:
    """Whether a configuration without a driver is a later plugin's of a list: it asks for a feature, and for no
    addresses. STATUS and GC come without prevResult, which tells so else.
    """
    declared = ((name, modules.feature(name).FEATURE) for name in features)
    return "ipam" not in keys and any(
        name in keys if one.section else any(key in keys for key in one.keys) for name, one in declared
    )


def _refuse_features(driver: str, keys: Section) -> None:
    """Note a problem for every feature that the configuration asks for: each acts on a link."""
    for name in modules.features():
        declared = modules.feature(name).FEATURE
        if (declared.section and name in keys) or any(keys.raw(key) for key in declared.keys):
            keys.problems.add(f"{name} needs an interface, which driver {driver} does not make")


def _ordered(features: Collection[str]) -> tuple[str, ...]:
    return tuple(sorted(features, key=lambda name: (modules.feature(name).FEATURE.stage, name)))


def _feature(name: str, request: Request) -> PlanPart | None:
    """The feature's settings, from its section or, under a reference plugin's name, from the top level."""
    module, keys = modules.feature(name), request.config.keys
    if request.plugin == OWN_NAME and module.FEATURE.section:
        keys = keys.section(name)
    return module.read(request, keys)


def owner(request: Request) -> Owner:
    """Who holds the request's addresses."""
    return Owner(request.container, request.interface)


def _addressed(driver: str, parts: tuple[PlanPart, ...], request: Request, ipam: str) -> Assembly:
    """The assembly with its source of addresses, if it has one."""
    config = request.config
    if not ipam:
        return Assembly(driver, parts)
    if ipam == "host-local":
        pool = host_local.read(
            config.ipam,
            network=config.name,
            version=config.version,
            arguments=request.arguments,
            args_cni=config.args_cni,
            runtime=config.runtime,
        )
        return Assembly(driver, parts, lease=PoolLease(pool, owner(request)))
    if ipam == "static":
        fixed = static.read(
            config.ipam,
            version=config.version,
            arguments=request.arguments,
            args_cni=config.args_cni,
            runtime=config.runtime,
        )
        return Assembly(driver, parts, answer=static.result(fixed))
    if ipam == "dhcp":
        return Assembly(driver, parts, lease=_dhcp(request))
    if ipam == "blocks":
        file = overlay.configured_path(config.ipam, config.name)
        return Assembly(driver, parts, lease=PoolLease(_blocks(request), owner(request), file=file))
    if ipam == OWN_NAME or ipam in modules.plugins():
        # It would be this very attachment, and wait for its own lock.
        config.ipam.problem(
            "type", f"must be an IPAM plugin, which {ipam} is not: host-local, static, dhcp or a foreign one"
        )
        return Assembly(driver, parts)
    return Assembly(driver, parts, lease=foreign(request, ipam))


def _blocks(request: Request) -> host_local.Pool:
    """The pool of this host's blocks of an overlay network; what it needs is imported only here."""
    from ipam import blocks

    config = request.config
    return blocks.read(
        config.ipam,
        network=config.name,
        arguments=request.arguments,
        args_cni=config.args_cni,
        runtime=config.runtime,
    )


def _dhcp(request: Request) -> Lease:
    """The lease that a DHCP server is to give; what it needs is imported only here."""
    from cni_plugin.ops.dhcp import DhcpLease
    from ipam import dhcp

    settings = dhcp.read(request.config.ipam, request.arguments)
    who = (request.container, request.config.name, request.interface)
    return DhcpLease(
        key=digest("dhcp", *who, request.plugin),
        about=f"{request.container}/{request.interface} on {request.config.name}",
        link=request.interface,
        client=dhcp.client_id(*who).hex(),
        provide=tuple((number, data.hex()) for number, data in settings.provide),
        request=settings.request,
        priority=settings.priority,
    )


def foreign(request: Request, ipam: str) -> ForeignLease:
    """The lease that another IPAM plugin holds for the request's attachment."""
    variables = {
        "CNI_CONTAINERID": request.container,
        "CNI_NETNS": request.namespace,
        "CNI_IFNAME": request.interface,
        "CNI_PATH": ":".join(request.path),
        "CNI_ARGS": request.environment.get("CNI_ARGS", ""),
    }
    return ForeignLease(
        ipam, request.config.version, tuple(variables.items()), request.stdin.decode("utf-8", "replace")
    )
