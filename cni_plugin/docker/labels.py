"""Services of a container, from its labels: weft's, and those of Registrator.

| label | meaning |
|---|---|
| ``weft.service=web:80`` | a service; several with commas, ``dns:53/udp`` |
| ``weft.check=http:/`` | the check of all services that have none of their own, ``weft.check.web`` of one |
| ``weft.tags=a,b`` | tags, ``weft.tags.web`` of one |
| ``weft.virtual=true`` | a virtual address, ``weft.virtual.web`` of one |
| ``SERVICE_NAME``, ``SERVICE_80_NAME`` … | as Registrator reads them from labels and the environment |

A check is ``http:/path``, ``tcp``, ``udp`` or ``ttl:30s``; ``weft.check.interval`` is its
interval. Source: Registrator's ``docs/user/services.md`` and ``docs/user/backends.md``. Pure.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from cni_plugin.docker.state import Json

INTERVAL = "10s"
"""Between two checks; Registrator's own default."""
_SERVICE = re.compile(r"(?P<name>[A-Za-z0-9_-]{1,63}):(?P<port>\d{1,5})(?:/(?P<protocol>tcp|udp))?")
_REGISTRATOR = re.compile(r"SERVICE_(?:(?P<port>\d{1,5})_)?(?P<key>[A-Z][A-Z0-9_]*)")
_EXPOSED = re.compile(r"(\d{1,5})/(tcp|udp)")
_OWN_KEYS = frozenset({"NAME", "TAGS", "ID", "IGNORE", "REGION"})
_LAST_PORT = 65535


@dataclass(slots=True)
class Found:
    """The services as the feature ``names`` takes them, and what is wrong with labels, a sentence each."""

    services: list[Json] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def read(labels: Mapping[str, str], environment: Mapping[str, str] | None = None, exposed: Iterable[str] = ()) -> Found:
    """The services of a container; ``exposed`` are its ports as Docker writes them, ``80/tcp``."""
    found = Found()
    _own(labels, found)
    settings = {key: text for key, text in (environment or {}).items() if key.startswith("SERVICE_")}
    settings |= {key: text for key, text in labels.items() if key.startswith("SERVICE_")}
    if settings:
        _registrator(settings, exposed, found)
    return found


def _own(labels: Mapping[str, str], found: Found) -> None:
    for text in filter(None, (one.strip() for one in labels.get("weft.service", "").split(","))):
        matched = _SERVICE.fullmatch(text)
        if matched is None or not 0 < int(matched["port"]) <= _LAST_PORT:
            found.problems.append(f"label weft.service {text!r} must be NAME:PORT, such as web:80 or dns:53/udp")
            continue
        name = matched["name"]

        def of(key: str, name: str = name) -> str:
            return labels.get(f"weft.{key}.{name}", labels.get(f"weft.{key}", ""))

        service: Json = {"name": name, "port": int(matched["port"]), "tags": _words(of("tags"))}
        if matched["protocol"]:
            service["protocol"] = matched["protocol"]
        if of("virtual").lower() in ("true", "1"):
            service["virtual"] = True
        if asked := of("check"):
            check = _check(asked, labels.get("weft.check.interval", INTERVAL))
            if check is None:
                known = "http:/path, tcp, udp or ttl:30s"
                found.problems.append(f"label weft.check {asked!r} of service {name} must be {known}")
                continue
            service["check"] = check
        found.services.append(service)


def _check(text: str, interval: str) -> Json | None:
    kind, _, rest = text.partition(":")
    if kind == "http" and rest.startswith("/"):
        return {"http": rest, "interval": interval}
    if kind in ("tcp", "udp") and not rest:
        return {kind: "", "interval": interval}
    return {"ttl": rest} if kind == "ttl" and rest else None


def _registrator(settings: Mapping[str, str], exposed: Iterable[str], found: Found) -> None:
    """Services by port: a port's own settings before those of the container."""
    common: dict[str, str] = {}
    of_ports: dict[int, dict[str, str]] = {}
    for key, text in settings.items():
        matched = _REGISTRATOR.fullmatch(key)
        if matched is None:
            continue
        if matched["port"]:
            of_ports.setdefault(int(matched["port"]), {})[matched["key"]] = text
        else:
            common[matched["key"]] = text
    ports = {int(port): protocol for port, protocol in _EXPOSED.findall(" ".join(exposed))}
    ports |= {port: "tcp" for port in of_ports if port not in ports}
    for port, protocol in sorted(ports.items()):
        own = common | of_ports.get(port, {})
        if "IGNORE" in own or "NAME" not in own or not 0 < port <= _LAST_PORT:
            continue
        # Registrator tells several ports of one name apart by the port.
        several = len(ports) > 1 and "NAME" not in of_ports.get(port, {})
        name = f"{own['NAME']}-{port}" if several else own["NAME"]
        service: Json = {"name": name, "port": port, "tags": _words(own.get("TAGS", ""))}
        if protocol == "udp":
            service |= {"protocol": protocol, "tags": [*_words(own.get("TAGS", "")), "udp"]}
        meta = {key.lower(): text for key, text in own.items() if key not in _OWN_KEYS and "CHECK" not in key}
        if meta:
            service["meta"] = meta
        if check := _registrator_check(own):
            service["check"] = check
        elif any("CHECK" in key for key in own):
            known = "CHECK_HTTP, CHECK_TCP and CHECK_TTL"
            found.problems.append(f"service {name} has no check: of Registrator's, weft has {known}")
        found.services.append(service)


def _registrator_check(own: Mapping[str, str]) -> Json | None:
    times = {"interval": own.get("CHECK_INTERVAL", INTERVAL)}
    if timeout := own.get("CHECK_TIMEOUT"):
        times["timeout"] = timeout
    if path := own.get("CHECK_HTTP"):
        return {"http": path if path.startswith("/") else f"/{path}", **times}
    if "CHECK_TCP" in own:
        return {"tcp": "", **times}
    return {"ttl": own["CHECK_TTL"]} if own.get("CHECK_TTL") else None


def _words(text: str) -> list[str]:
    return [word for word in (one.strip() for one in text.split(",")) if word]
