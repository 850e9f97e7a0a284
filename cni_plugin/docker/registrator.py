"""Services from Registrator's labels and environment variables, as with its options -internal and -explicit.

``SERVICE_KEY`` is of all ports of a container, ``SERVICE_PORT_KEY`` of one. Keys: ``NAME``, ``TAGS``,
``IGNORE``; ``CHECK_HTTP``, ``CHECK_HTTPS``, ``CHECK_TCP``, ``CHECK_TTL`` with ``CHECK_INTERVAL``,
``CHECK_TIMEOUT``, ``CHECK_INITIAL_STATUS``, ``CHECK_HTTP_METHOD``, ``CHECK_HTTPS_METHOD``,
``CHECK_TLS_SKIP_VERIFY``, ``CHECK_DEREGISTER_AFTER``; all others are metadata. Pure.

Source: Registrator's ``docs/user/services.md``, ``docs/user/backends.md`` and ``consul/consul.go``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping

from cni_plugin.docker.state import Json
from weft.identity import dns_name_problem

INTERVAL = "10s"
"""Between two checks where none is given."""
_PREFIX = "SERVICE_"
_OF_PORT = re.compile(r"(?P<port>\d{1,5})_(?P<key>.+)")
_EXPOSED = re.compile(r"(\d{1,5})/(tcp|udp)")
_OWN_KEYS = ("name", "tags", "id", "ignore")
_LAST_PORT = 65535
_CHECK = "check_"
_UNSUPPORTED = {
    "check_cmd": "runs a command, and weft runs none for a container",
    "check_script": "runs a command, and weft runs none for a container",
    "check_grpc": "is not for containers",
}
_KINDS = ("check_http", "check_https", "check_cmd", "check_script", "check_ttl", "check_tcp", "check_grpc")
"""In Registrator's order: it takes the first that is given."""
_INSTEAD = "give CHECK_HTTP, CHECK_HTTPS, CHECK_TCP or CHECK_TTL"
_OPTIONS = {
    "check_interval": "interval",
    "check_timeout": "timeout",
    "check_initial_status": "status",
    "check_http_method": "method",
    "check_https_method": "method",
    "check_deregister_after": "deregister_critical_service_after",
}
_SKIP_VERIFY = "check_tls_skip_verify"
_KNOWN = (*_KINDS, *_OPTIONS, _SKIP_VERIFY)

Settings = dict[str, str]


def read(
    labels: Mapping[str, str], environment: Mapping[str, str], exposed: Iterable[str]
) -> tuple[list[Json], list[str]]:
    """The services as the feature ``names`` takes them, and what is wrong, a sentence each. ``exposed`` are the
    container's ports as Docker writes them, ``80/tcp``.
    """
    common, of_ports = _settings({**labels, **environment})  # the environment comes first, as there
    ports = [(int(port), protocol) for port, protocol in _EXPOSED.findall(" ".join(exposed))]
    there = {port for port, _ in ports}
    ports += [(port, "tcp") for port, own in of_ports.items() if port not in there and own.get("name")]
    services: list[Json] = []
    problems: list[str] = []
    for port, own in sorted(of_ports.items()):
        if not (common | own).get("name") and not (common | own).get("ignore"):
            named = f"SERVICE_{port}_{next(iter(own)).upper()}"
            problems.append(f"{named} has no service: give SERVICE_{port}_NAME")
    for port, protocol in sorted(ports):
        own = common | of_ports.get(port, {})
        if own.get("ignore") or not own.get("name"):
            continue
        # Several ports of one name are told apart by the port.
        several = len(ports) > 1 and not of_ports.get(port, {}).get("name")
        name = f"{own['name']}-{port}" if several else own["name"]
        problem = dns_name_problem(name) if 0 < port <= _LAST_PORT else f"has port {port}, which is none"
        if problem:
            problems.append(f"service {name!r} {problem}")
            continue
        services.append(_service(name, port, protocol, own, problems))
    return services, problems


def _settings(given: Mapping[str, str]) -> tuple[Settings, dict[int, Settings]]:
    """Those of all ports, and those of each."""
    common: Settings = {}
    of_ports: dict[int, Settings] = {}
    for key, text in given.items():
        if key.startswith(_PREFIX) and key != _PREFIX:
            rest = key.removeprefix(_PREFIX).lower()
            matched = _OF_PORT.fullmatch(rest)
            if matched:
                of_ports.setdefault(int(matched["port"]), {})[matched["key"]] = text
            else:
                common[rest] = text
    return common, of_ports


def _service(name: str, port: int, protocol: str, own: Settings, problems: list[str]) -> Json:
    service: Json = {"name": name, "port": port, "tags": list(_tags(own.get("tags", "")))}
    if protocol == "udp":
        service |= {"protocol": protocol, "tags": [*_tags(own.get("tags", "")), "udp"]}
    meta = {key: text for key, text in own.items() if key not in _OWN_KEYS and not key.startswith(_CHECK)}
    if meta:
        service["meta"] = meta
    if own.get("id"):
        problems.append(f"service {name}: SERVICE_ID {own['id']!r} is not used: weft chooses the ids of services")
    problems += [
        f"service {name}: unknown SERVICE_{key.upper()}: known are {', '.join(one.upper() for one in _KNOWN)}"
        for key in own
        if key.startswith(_CHECK) and key not in _KNOWN
    ]
    kind = next((one for one in _KINDS if own.get(one)), "")
    if kind in _UNSUPPORTED:
        problems.append(f"service {name} has no check: SERVICE_{kind.upper()} {_UNSUPPORTED[kind]}; {_INSTEAD}")
    elif kind:
        service["check"] = _check(kind, own)
    return service


def _check(kind: str, own: Settings) -> Json:
    options: Json = {weft: own[key] for key, weft in _OPTIONS.items() if own.get(key)}
    if kind == "check_ttl":
        return {"ttl": own[kind]} | {key: text for key, text in options.items() if key == "status"}
    options.setdefault("interval", INTERVAL)
    if kind == "check_tcp":
        return {"tcp": "", **{key: text for key, text in options.items() if key != "method"}}
    path = own[kind] if own[kind].startswith("/") else f"/{own[kind]}"
    if kind == "check_http":
        return {"http": path, **options}
    return {"http": f"https:{path}", **options} | ({"tls_skip_verify": True} if own.get(_SKIP_VERIFY) else {})


def _tags(text: str) -> Iterator[str]:
    """Words between commas; a backslash makes a comma part of a word."""
    for word in re.split(r"(?<!\\),", text):
        if tag := word.replace("\\,", ",").strip():
            yield tag
