"""Which driver, which features and which addresses a configuration asks for.

Called by a reference plugin's name, weft is that plugin; called as ``weft`` it takes ``driver`` and nested
features, so that one process does what a chain of plugins did.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field, replace
from functools import cache
from importlib import import_module
from typing import Protocol, cast

from cni_plugin.ops import ForeignLease, PoolLease
from cni_plugin.ops.operation import Lease
from cni_plugin.plan.plan import Part
from cni_plugin.wire.plugins import FEATURE_OF, OWN_NAME
from cni_plugin.wire.request import Request
from ipam import host_local, static
from ipam.leases import Owner
from weft.identity import digest
from weft.section import Section
from weft.types import Result

FEATURES = ("tuning", "vrf", "sbr", "bandwidth", "masquerade", "firewall", "portmap", "names")
"""All features, in the order in which they join a plan: the link, its routes, what it carries, and rules at last."""

GUARDS = ("spoofing", "isolation")
"""What protects others from a container and it from them; a driver that has it names it among its FEATURES."""

_IPAM = ("host-local", "static", "dhcp")


class _Module(Protocol):
    """What a driver's or feature's file offers; all but ``read`` may be absent."""

    FEATURES: tuple[str, ...]
    SECTION: str
    ON_HOST: bool

    def read(self, request: Request, keys: Section) -> Part | None: ...


@dataclass(frozen=True, slots=True)
class Assembly:
    """The parts of one attachment. ``answer`` is what IPAM says without reserving anything.

    ``foundation`` are those of the parts that need no address to be planned: the driver, and what protects others.
    ``on_host``: the container shares the host's network namespace, and there is nothing for a feature to do.
    """

    driver: str = ""
    parts: tuple[Part, ...] = ()
    foundation: tuple[Part, ...] = ()
    lease: Lease | None = None
    answer: Result = field(default_factory=Result)
    on_host: bool = False


def drivers() -> tuple[str, ...]:
    """The names of all drivers: the files in ``drivers/``."""
    folder = os.path.join(os.path.dirname(os.path.dirname(__file__)), "drivers")
    names = (name.removesuffix(".py") for name in os.listdir(folder) if name.endswith(".py") and name[0] != "_")
    return tuple(sorted(name.replace("_", "-") for name in names))


def read(request: Request) -> Assembly:
    """The parts, validated; every problem is noted in the configuration's problems and none is raised."""
    if request.plugin in _IPAM:
        if request.config.ipam.text("type") not in ("", request.plugin):
            request.config.ipam.problem("type", f"must be {request.plugin!r} when that plugin is called")
        return _addressed("", (), request, request.plugin)
    driver, features = _choice(request)
    parts: list[Part] = []
    if driver and getattr(_module("drivers", driver), "ON_HOST", False):
        part = _module("drivers", driver).read(request, request.config.keys)
        return Assembly(driver, (part,) if part is not None else (), on_host=True)
    if driver:
        part = _module("drivers", driver).read(request, request.config.keys)
        parts += [part] if part is not None else []
    foundation = list(parts)
    for name in features:
        part = _feature(name, request)
        parts += [part] if part is not None else []
        foundation += [part] if part is not None and name in GUARDS else []
    found = _addressed(driver, tuple(parts), request, request.config.ipam.text("type") if driver else "")
    return replace(found, foundation=tuple(foundation))


def _choice(request: Request) -> tuple[str, tuple[str, ...]]:
    """The driver's name ("" for a chained plugin) and the names of the features to look for."""
    keys = request.config.keys
    feature = FEATURE_OF.get(request.plugin, request.plugin)
    if feature in FEATURES:
        return "", (feature,)
    if request.plugin != OWN_NAME:
        return request.plugin, getattr(_module("drivers", request.plugin), "FEATURES", ())
    name = keys.text("driver")
    if not name and request.config.previous is None:
        keys.problems.add(f"driver is missing; it is one of {', '.join(drivers())}")
    elif name and name not in drivers():
        keys.problem("driver", f"is not known; it is one of {', '.join(drivers())}")
        name = ""
    guards = getattr(_module("drivers", name), "FEATURES", ()) if name else ()
    return name, (*FEATURES, *(guard for guard in GUARDS if guard in guards))


def _feature(name: str, request: Request) -> Part | None:
    if request.plugin == OWN_NAME and name not in ("masquerade", *GUARDS) and not _asked(name, request):
        return None  # a section bears its feature's name: what is not asked for is not imported
    module = _module("features", name)
    section = getattr(module, "SECTION", "")
    if request.plugin != OWN_NAME or not section:
        return module.read(request, request.config.keys)
    if section not in request.config.keys:
        return None
    return module.read(request, request.config.keys.section(section))


def _asked(name: str, request: Request) -> bool:
    """Whether the configuration has the feature's section, or for names one of the ways to offer a service."""
    keys = request.config.keys
    if name != "names":
        return name in keys
    offered = "services" in keys or "services" in request.config.args_cni
    return name in keys or offered or "SERVICE_NAME" in request.arguments


@cache
def _module(kind: str, name: str) -> _Module:
    return cast(_Module, import_module(f"cni_plugin.{kind}.{name.replace('-', '_')}"))


def owner(request: Request) -> Owner:
    """Who holds the request's addresses."""
    return Owner(request.container, request.interface)


def _addressed(driver: str, parts: tuple[Part, ...], request: Request, ipam: str) -> Assembly:
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
    return Assembly(driver, parts, lease=foreign(request, ipam))


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
    if ipam == OWN_NAME:
        request.config.ipam.problem("type", "must be an IPAM plugin: host-local, static or a foreign one")
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
