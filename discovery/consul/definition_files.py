"""Service definition files, in JSON or HCL, converted to what the HTTP API takes.

Top-level keys are ``service``, ``services``, ``check`` and ``checks``, each one object or a list.

Source: https://developer.hashicorp.com/consul/docs/reference/service.
"""

from __future__ import annotations

import json
import os
import stat
import sys
from collections.abc import Mapping
from dataclasses import dataclass

from discovery.consul import hcl
from discovery.consul.json_fields import BadField, decode_json
from weft.section import similar

MAX_FILE_BYTES = 1 << 20
"""Bytes of a definition file."""
JsonObject = dict[str, object]
_SERVICES, _CHECKS = ("service", "services"), ("check", "checks")
_STANDARD_INPUT = "-"
_CHECK_KEYS = frozenset((
    "id", "check_id", "name", "service_id", "notes", "status", "interval", "timeout", "ttl", "http", "tcp", "udp",
    "grpc", "args", "script_args", "alias_node", "alias_service", "method", "header", "body", "disable_redirects",
    "tcp_use_tls", "grpc_use_tls", "tls_skip_verify", "tls_server_name", "deregister_critical_service_after",
    "output_max_size", "success_before_passing", "failures_before_warning", "failures_before_critical",
    "h2ping", "h2ping_use_tls", "os_service", "docker_container_id", "shell", "script", "proxy_http", "proxy_grpc",
    "type", "namespace", "partition",
))  # fmt: skip
_SERVICE_KEYS = frozenset((
    "id", "name", "tags", "address", "port", "ports", "protocol", "socket_path", "tagged_addresses", "meta", "kind",
    "enable_tag_override", "weights", "token", "check", "checks", "connect", "proxy", "locality", "namespace",
    "partition",
))  # fmt: skip
"""All keys of Consul, also those whose values weft refuses; each is written with or without underscores."""


class BadDefinitionFile(ValueError):
    """The file cannot be read or parsed; the message begins with its name."""


@dataclass(frozen=True, slots=True)
class ServiceDefinitions:
    """Definitions in order of the files. ``ignored`` are other top-level keys, with file names."""

    services: tuple[JsonObject, ...] = ()
    checks: tuple[JsonObject, ...] = ()
    ignored: tuple[str, ...] = ()


def read(paths: tuple[str, ...]) -> ServiceDefinitions:
    """Read several files; ``-`` is standard input. Raises BadDefinitionFile."""
    found = [parse(_text(path), "standard input" if path == _STANDARD_INPUT else path) for path in paths]
    return ServiceDefinitions(
        tuple(service for one in found for service in one.services),
        tuple(check for one in found for check in one.checks),
        tuple(key for one in found for key in one.ignored),
    )


def parse(text: str, where: str) -> ServiceDefinitions:
    """Parse one file's text; ``where`` is its name for errors. Raises BadDefinitionFile."""
    try:
        found = decode_json(text.encode()) if text.lstrip().startswith("{") else hcl.parse(text)
    except (BadField, hcl.BadHcl, UnicodeEncodeError) as error:
        raise BadDefinitionFile(f"{where}: {str(error).removeprefix('invalid JSON: ')}") from None
    if not isinstance(found, dict):
        raise BadDefinitionFile(f'{where} defines no service; write service {{ … }} or {{"service": {{…}}}}')
    keys = {key.lower(): key for key in found}
    if "name" in keys and not keys.keys() & {*_SERVICES}:
        return ServiceDefinitions((_service(found, where),))  # a bare service, as the API takes it
    if not keys.keys() & {*_SERVICES, *_CHECKS}:
        has = f"it has {', '.join(sorted(found))[:100]}" if found else "it is empty"
        raise BadDefinitionFile(f'{where} defines no service: {has}; write service {{ … }} or {{"service": {{…}}}}')
    services = [one for key in _SERVICES if key in keys for one in _objects(found[keys[key]], f"{where}: {key}")]
    checks = [one for key in _CHECKS if key in keys for one in _objects(found[keys[key]], f"{where}: {key}")]
    ignored = [f"{where}: {keys[key]}" for key in keys if key not in (*_SERVICES, *_CHECKS)]
    for key in keys.keys() - {*_SERVICES, *_CHECKS}:
        if hint := similar(key, (*_SERVICES, *_CHECKS)):
            raise BadDefinitionFile(f"{where}: unknown key {keys[key]}{hint}")
    for each in checks:
        _check_keys(each, _CHECK_KEYS, f"{where}: check")
    return ServiceDefinitions(tuple(_service(one, where) for one in services), tuple(checks), tuple(ignored))


def _service(found: Mapping[str, object], where: str) -> JsonObject:
    """A service with all its checks under ``checks``."""
    service, checks = {}, []
    _check_keys(found, _SERVICE_KEYS, f"{where}: service")
    for key, value in found.items():
        if key.lower() in _CHECKS:
            checks += _objects(value, f"{where}: {key}")
        else:
            service[key] = value
    for each in checks:
        _check_keys(each, _CHECK_KEYS, f"{where}: check")
    return {**service, "checks": checks} if checks else service


def _check_keys(found: Mapping[str, object], known: frozenset[str], where: str) -> None:
    """Refuse keys that no release of Consul has. Raises BadDefinitionFile."""
    plain = {key.replace("_", "") for key in known}
    for key in found:
        if key.replace("_", "").lower() not in plain:
            raise BadDefinitionFile(f"{where}: unknown key {key[:60]}{similar(key, sorted(known))}")


def _objects(value: object, place: str) -> list[JsonObject]:
    """One object or a list, as a list. Raises BadDefinitionFile."""
    found: list[JsonObject] = []
    for one in value if isinstance(value, list) else [] if value is None else [value]:
        if not isinstance(one, dict):
            raise BadDefinitionFile(f"{place}: {json.dumps(one)[:60]} is neither a block nor an object")
        found.append(one)
    return found


def _text(path: str) -> str:
    """Read a file. Raises BadDefinitionFile."""
    try:
        if path == _STANDARD_INPUT:
            content = sys.stdin.buffer.read(MAX_FILE_BYTES + 1)
        else:
            with open(path, "rb") as file:
                if stat.S_ISDIR(os.fstat(file.fileno()).st_mode):
                    raise IsADirectoryError
                content = file.read(MAX_FILE_BYTES + 1)
        if len(content) > MAX_FILE_BYTES:
            raise BadDefinitionFile(f"{path} is larger than {MAX_FILE_BYTES >> 20} MiB")
        return content.decode("utf-8-sig")
    except OSError as error:
        raise BadDefinitionFile(f"{path} cannot be read: {error.strerror or 'is a directory'}") from None
    except UnicodeDecodeError as error:
        raise BadDefinitionFile(f"{path} is not valid UTF-8: {error.reason} at byte {error.start}") from None
