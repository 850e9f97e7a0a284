"""``tuning``: sysctls of the container, and attributes of its link.

Keys: ``sysctl`` (a map; ``IFNAME`` in a key stands for the interface), ``mac``, ``mtu``, ``promisc``,
``allmulti``, ``txQLen``; the same under args.cni over them. A MAC address may also come as CNI_ARGS
``MAC`` and, over it, as runtimeConfig ``mac``. ``dataDir`` is accepted and not used: weft's record
holds the previous values. As with the reference plugin an MTU is set at the container's end only. If
``/etc/cni/tuning/allowlist.conf`` exists, a sysctl's key must match one of its lines, which are regular
expressions.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from cni_plugin.ops import Setting
from cni_plugin.ops.operation import Operation
from cni_plugin.ops.tuning import LinkSetting
from cni_plugin.plan.interface import LARGEST_MTU, read_mac, read_mtu
from cni_plugin.plan.plan import Context, Plan, PlanPart
from cni_plugin.plan.traits import Feature, Stage
from cni_plugin.wire.request import Request
from weft.errors import ConfigProblem
from weft.identity import normal_mac
from weft.section import Section, quoted
from weft.types import Result, Side

FEATURE = Feature(Stage.LINK, plugin="tuning", reads_arguments=True)
ALLOWLIST = "/etc/cni/tuning/allowlist.conf"
_LONGEST_QUEUE = 2**31 - 1
_PLACEHOLDER = "IFNAME"

Value = int | str | bool


@dataclass(frozen=True, slots=True)
class Tuning:
    """``settings`` are sysctls, as pairs of key and value; ``attributes`` those of ``LinkSetting``."""

    settings: tuple[tuple[str, str], ...] = ()
    attributes: tuple[tuple[str, Value], ...] = ()

    def plan(self, context: Context) -> Plan:
        interface = context.attachment.interface
        _require_allowed(self.settings, context)
        operations: list[Operation] = []
        for key, text in self.settings:
            path = place(key, interface)
            link = interface if f"/{interface}/" in path else ""
            operations.append(Setting(Side.CONTAINER, path, text, link, before=_before(context, path)))
        there = context.facts.link(Side.CONTAINER, interface)
        for name, value in self.attributes:
            before: Value | None = getattr(there, name) if there is not None else None
            operations.append(LinkSetting(interface, name, value, before))
        return Plan(operations=tuple(operations), result=_updated(context.result, interface, dict(self.attributes)))


def place(key: str, interface: str) -> str:
    """A sysctl's path. The first of '.' and '/' in the key is the separator, as in sysctl(8)."""
    dots, slashes = key.find("."), key.find("/")
    if dots >= 0 and (slashes < 0 or dots < slashes):
        key = key.translate({ord("."): "/", ord("/"): "."})
    return key.replace(_PLACEHOLDER, interface, 1)


def _before(context: Context, path: str) -> str | None:
    value = context.facts.sysctl(Side.CONTAINER, path)
    if value is None and context.facts.link(Side.CONTAINER, context.attachment.interface) is not None:
        raise ConfigProblem(f"sysctl {path} not found in the container", hint="this kernel may lack that feature")
    return value


def _require_allowed(settings: tuple[tuple[str, str], ...], context: Context) -> None:
    """Raises ConfigProblem for a sysctl that the administrator's allowlist does not match."""
    lines = context.facts.lines(ALLOWLIST) if settings else None
    if lines is None:
        return
    try:
        patterns = [re.compile(line.strip()) for line in lines if line.strip()]
    except re.error as error:
        raise ConfigProblem(
            f"{ALLOWLIST} contains the invalid regular expression {error.pattern!r}: {error}"
        ) from error
    for key, _ in settings:
        if not any(pattern.search(key) for pattern in patterns):
            raise ConfigProblem(
                f"sysctl {key} is not allowed by {ALLOWLIST}", hint="ask the administrator of this host to add it"
            )


def _updated(result: Result, interface: str, attributes: dict[str, Value]) -> Result:
    """The result with the new attributes of the container's interface."""
    found = []
    for one in result.interfaces:
        if one.sandbox and one.name == interface:
            one = replace(one, mac=str(attributes.get("mac", one.mac)), mtu=int(attributes.get("mtu", one.mtu)))
        found.append(one)
    return replace(result, interfaces=tuple(found))


def read(request: Request, keys: Section) -> PlanPart | None:
    given = request.config.args_cni
    attributes: dict[str, Value] = {}
    mac = _mac(keys) or ""
    asked = read_mac(request)  # this has args.cni below CNI_ARGS, so it is read again
    attributes["mac"] = _mac(given) or asked or mac
    attributes["mtu"] = read_mtu(given, negative=False) or read_mtu(keys, negative=False)
    for key, name in (("promisc", "promiscuous"), ("allmulti", "all_multicast")):
        wanted = given if key in given else keys
        # promisc false is ignored, as in the reference; allmulti false is set.
        if wanted.flag(key) or (key == "allmulti" and key in wanted):
            attributes[name] = wanted.flag(key)
    queue = (given if "txQLen" in given else keys).integer("txQLen", least=0, most=_LONGEST_QUEUE)
    if queue is not None:
        attributes["queue_length"] = queue
    settings = _settings(request, keys, given)
    return Tuning(
        settings, tuple((name, value) for name, value in attributes.items() if value not in ("", 0) or value is False)
    )


def _mac(keys: Section) -> str:
    text = keys.text("mac")
    try:
        return normal_mac(text) if text else ""
    except ValueError as error:
        keys.problem("mac", str(error))
        return ""


def _settings(request: Request, keys: Section, given: Section) -> tuple[tuple[str, str], ...]:
    """The sysctls of the configuration, overridden by args.cni; two keys with one path are a problem."""
    found: dict[str, tuple[str, str]] = {}
    for section in (keys, given):
        places: set[str] = set()
        for key, value in _map(section).items():
            path = place(key, request.interface)
            if path in places:
                section.problems.add(f"{section.at('sysctl')} sets {path} twice")
            places.add(path)
            problem = _problem(path)
            if problem or not isinstance(value, str) or "\0" in value:
                problem = problem or f"must be set to a string, not {quoted(value)}"
                section.problems.add(f"{section.at('sysctl')} {quoted(key)} {problem}")
            else:
                found[path] = (key, value)
    return tuple(found.values())


def _map(section: Section) -> dict[str, object]:
    value = section.raw("sysctl")
    if value is None:
        return {}
    if not isinstance(value, dict):
        section.problem("sysctl", "must be an object")
        return {}
    return value


def _problem(path: str) -> str:
    parts = path.split("/")
    if parts[0] != "net" or len(parts) < 2:
        return "is not a network sysctl: it must begin with net."
    if any(part in ("", ".", "..") or "\0" in part for part in parts):
        return "must be a plain name, without '..' and empty parts"
    return ""


__all__ = ["ALLOWLIST", "LARGEST_MTU", "Tuning", "place", "read"]
