"""Check definitions from clients and files: ``{"HTTP": "http://…/health", "Interval": "10s"}``.

Sources: https://developer.hashicorp.com/consul/api-docs/agent/check and
.../docs/reference/service/health-check; error messages are Consul's where it has one.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec

from discovery.check_targets import parse_url, split_host_port
from discovery.consul.durations import format_duration
from discovery.consul.json_fields import BadField, Fields
from discovery.structs import CheckDefinition, Status
from weft.service_options import NETWORK_CHECKS, TTL_CHECK

PROBED = (*NETWORK_CHECKS, "grpc")
"""The types of checks over the network; in a container's namespace all but the last."""
MIN_INTERVAL = 0.1
"""Seconds; shorter intervals are raised to this, to bound the load on the agent."""
MIN_DEREGISTER_AFTER = 60.0
"""Seconds; shorter ``DeregisterCriticalServiceAfter`` are raised to this, as in Consul."""
MAX_OUTPUT_SIZE = 4096
_TIMEOUTS = {"script": 30.0}
_SCRIPTS_OFF = (
    "Scripts are disabled on this agent; to enable, configure 'enable_script_checks' or"
    " 'enable_local_script_checks' to true"
)
_NO_CHECK = "Must provide TTL or Script/DockerContainerID/HTTP/TCP and Interval"
_UNSUPPORTED = {
    "H2PING": "HTTP/2 ping checks are not supported; use HTTP or TCP",
    "OSService": "operating system service checks are not supported; use Args with systemctl is-active",
    "DockerContainerID": "Docker checks are not supported; use Args with docker exec, or a check over the network",
    "Script": "no longer supported, use Args",
    "ProxyHTTP": "checks through a Connect proxy are not supported",
    "ProxyGRPC": "checks through a Connect proxy are not supported",
}
"""Keys that mean another check than the rest of the definition, and what to do instead."""
_OPTIONS = {
    "DisableRedirects": ("http",),
    "TCPUseTLS": ("tcp",),
    "GRPCUseTLS": ("grpc",),
}
"""Options that change the meaning of one type of check; they are refused with others."""


def parse_check(fields: Fields, *, scripts: bool = False, service_id: str = "") -> CheckDefinition:
    """Parse a check definition, standalone or (with ``service_id``) of a service. Raises BadField.

    ``scripts`` allows script checks. A missing id is left for the caller to generate.
    """
    kind, target = _check_type(fields)
    if kind == "script" and not scripts:
        raise BadField(_SCRIPTS_OFF)
    interval, ttl = fields.duration("Interval"), fields.duration("TTL")
    _validate_timing(kind, interval, ttl)
    warning = fields.number("FailuresBeforeWarning")
    critical = fields.number("FailuresBeforeCritical")
    if warning > critical:
        raise BadField("Invalid check: FailuresBeforeWarning can't be higher than FailuresBeforeCritical")
    for option, kinds in _OPTIONS.items():
        if fields.boolean(option) and kind not in kinds:
            raise BadField(f"Invalid check: {option} has no meaning for a {kind} check")
    tls = fields.boolean("TCPUseTLS") or fields.boolean("GRPCUseTLS")
    if kind == "grpc" and fields.boolean("TLSSkipVerify"):
        raise BadField("Invalid check: TLSSkipVerify: not supported for gRPC checks; trust the authority on this host")
    status = fields.text("Status")
    name = fields.name("Name")
    timeout, after = fields.duration("Timeout"), fields.duration("DeregisterCriticalServiceAfter")
    size = fields.number("OutputMaxSize", low=-(2**31))
    if size < 0:
        raise BadField("Invalid check: MaxOutputMaxSize must be positive")
    return CheckDefinition(
        id=fields.name("CheckID", "ID"),
        name=name,
        type=kind,
        service_id=service_id or fields.name("ServiceID"),
        notes=fields.text("Notes"),
        initial=_status(status) if status else Status.CRITICAL,
        interval=max(interval, MIN_INTERVAL) if interval else 0.0,
        timeout=timeout if timeout > 0 else _TIMEOUTS.get(kind, 10.0),
        ttl=max(ttl, 0.0),
        target=target,
        method=fields.name("Method") or "GET",
        headers=_headers(fields),
        body=fields.text("Body", longest=64 * 1024),
        disable_redirects=fields.boolean("DisableRedirects"),
        tls=tls,
        tls_skip_verify=fields.boolean("TLSSkipVerify"),
        tls_server_name=fields.name("TLSServerName"),
        arguments=fields.string_list("Args", "ScriptArgs"),
        alias_node=fields.name("AliasNode"),
        alias_service=fields.name("AliasService"),
        output_max_size=min(size or MAX_OUTPUT_SIZE, MAX_OUTPUT_SIZE),
        success_before_passing=fields.number("SuccessBeforePassing"),
        failures_before_warning=warning or critical,
        failures_before_critical=critical,
        deregister_after=max(after, MIN_DEREGISTER_AFTER) if after > 0 else 0.0,
        asked=_echo_definition(fields),
    )


def _status(text: str) -> Status:
    try:
        return Status(text)
    except ValueError:
        raise BadField("Bad check status") from None


def _check_type(fields: Fields) -> tuple[str, str]:
    """The type of a check and its target. Raises BadField."""
    for name, instead in _UNSUPPORTED.items():
        if fields.get(name):
            raise BadField(f"Invalid check: {name}: {instead}")
    kinds: list[tuple[str, str]] = []
    if fields.string_list("Args", "ScriptArgs"):
        kinds.append(("script", ""))
    for kind in PROBED:
        if address := fields.text(kind.upper()):
            kinds.append((kind, _target(kind, address)))
    if fields.get("AliasService") or fields.get("AliasNode"):
        kinds.append(("alias", ""))
    if fields.get("TTL") and not kinds:
        kinds.append((TTL_CHECK, ""))
    if len(kinds) > 1:
        raise BadField(
            f"Invalid check: only one check type may be set, found {' and '.join(kind for kind, _ in kinds)}"
        )
    if not kinds:
        raise BadField("Invalid check: TTL must be > 0 for TTL checks" if fields.has("TTL") else _NO_CHECK)
    return kinds[0]


def _validate_timing(kind: str, interval: float, ttl: float) -> None:
    regular = kind in ("script", *PROBED)
    problem = ""
    if interval > 0 and ttl > 0:
        problem = "Interval and TTL cannot both be specified"
    elif regular and interval <= 0:
        problem = "Interval must be > 0 for Script, HTTP, H2PING, TCP, UDP or OSService checks"
    elif kind == "alias" and interval > 0:
        problem = "Interval cannot be set for Alias checks"
    elif kind == "alias" and ttl > 0:
        problem = "TTL must be not be set for Alias checks"
    elif kind == TTL_CHECK and ttl <= 0:
        problem = "TTL must be > 0 for TTL checks"
    if problem:
        raise BadField(f"Invalid check: {problem}")


def _target(kind: str, address: str) -> str:
    """The target of a check as the client wrote it. Raises BadField."""
    name = kind.upper()
    wanted = "URL, expected e.g. http://10.0.0.5:8080/health" if kind == "http" else "address, expected HOST:PORT"
    if kind == "grpc" and find_spec("grpc") is None:
        raise BadField("Invalid check: GRPC: gRPC checks need grpcio on this agent: pip install grpcio beside weft")
    try:
        if kind == "http":
            parse_url(address)
        else:
            split_host_port(address.partition("/")[0] if kind == "grpc" else address, kind)
    except ValueError as error:
        raise BadField(f"Invalid check: {name}: {address[:100]!r} is not a valid {wanted}: it {error}") from None
    return address


def _headers(fields: Fields) -> dict[str, tuple[str, ...]]:
    value = fields.get("Header") or {}
    if not isinstance(value, dict):
        fields.invalid("Header", value, 'is not an object, expected e.g. {"Host": ["web"]}')
    headers = {}
    for name, parts in value.items():
        parts = [parts] if isinstance(parts, str) else parts
        if not isinstance(parts, list) or not all(isinstance(part, str) and part.isprintable() for part in parts):
            fields.invalid(f"Header.{name}", parts, "is not a list of strings")
        if not name.isascii() or not name.replace("-", "").replace("_", "").isalnum():
            fields.invalid("Header", name, "is not a valid header name")
        headers[name] = tuple(parts)
    return headers


def _echo_definition(fields: Fields) -> Mapping[str, object]:
    """The definition in Consul's field names, echoed in responses (``Definition``)."""
    times = {name: fields.duration(name) for name in ("Interval", "Timeout", "TTL", "DeregisterCriticalServiceAfter")}
    asked: dict[str, object] = {name: format_duration(seconds) for name, seconds in times.items() if seconds > 0}
    for name in ("HTTP", "Method", "Body", "TCP", "UDP", "GRPC", "TLSServerName", "AliasNode", "AliasService"):
        if text := fields.text(name, longest=64 * 1024):
            asked[name] = text
    asked |= {name: True for name in ("TLSSkipVerify", *_OPTIONS) if fields.boolean(name)}
    if headers := _headers(fields):
        asked["Header"] = {name: list(values) for name, values in headers.items()}
    if arguments := fields.string_list("Args", "ScriptArgs"):
        asked["ScriptArgs"] = list(arguments)
    return asked
