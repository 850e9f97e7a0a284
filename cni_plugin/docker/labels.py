"""Services of a container, from its labels: weft's, and Registrator's.

| label | meaning |
|---|---|
| ``weft.service=web:80`` | a service; several with commas, ``dns:53/udp`` |
| ``weft.check=http:/`` | the check of all services that have none of their own, ``weft.check.web`` of one |
| ``weft.tags=a,b`` | tags, ``weft.tags.web`` of one |
| ``weft.virtual=true`` | a virtual address, ``weft.virtual.web`` of one |
| ``SERVICE_NAME``, ``SERVICE_80_NAME`` … | Registrator's (``registrator``) |

A check is ``http:/path``, ``tcp``, ``udp`` or ``ttl:30s``; ``weft.check.interval`` is its
interval. Pure.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from cni_plugin.docker import registrator
from cni_plugin.docker.state import Json

_SERVICE = re.compile(r"(?P<name>[A-Za-z0-9_-]{1,63}):(?P<port>\d{1,5})(?:/(?P<protocol>tcp|udp))?")
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
    services, problems = registrator.read(labels, environment or {}, exposed)
    found.services += services
    found.problems += problems
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
            check = _check(asked, labels.get("weft.check.interval", registrator.INTERVAL))
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


def _words(text: str) -> list[str]:
    return [word for word in (one.strip() for one in text.split(",")) if word]
