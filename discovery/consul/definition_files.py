"""Files that define services, in JSON or HCL, as the objects that the HTTP API takes.

``service``, ``services``, ``check`` and ``checks`` at the top, each one object or several.
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

MAX_FILE_BYTES = 1 << 20
"""Bytes of a file."""
JsonObject = dict[str, object]
_SERVICES, _CHECKS = ("service", "services"), ("check", "checks")
_STANDARD_INPUT = "-"


class BadDefinitionFile(ValueError):
    """The file cannot be read, or defines nothing; its sentence names the file."""


@dataclass(frozen=True, slots=True)
class ServiceDefinitions:
    """What files define, in order. ``ignored`` are the other keys that stood at their top, with the file's name."""

    services: tuple[JsonObject, ...] = ()
    checks: tuple[JsonObject, ...] = ()
    ignored: tuple[str, ...] = ()


def read(paths: tuple[str, ...]) -> ServiceDefinitions:
    """What several files define; ``-`` is standard input. Raises BadFile."""
    found = [parse(_text(path), "standard input" if path == _STANDARD_INPUT else path) for path in paths]
    return ServiceDefinitions(
        tuple(service for one in found for service in one.services),
        tuple(check for one in found for check in one.checks),
        tuple(key for one in found for key in one.ignored),
    )


def parse(text: str, where: str) -> ServiceDefinitions:
    """What one text defines; ``where`` names it in errors. Raises BadFile."""
    try:
        found = decode_json(text.encode()) if text.lstrip().startswith("{") else hcl.parse(text)
    except (BadField, hcl.BadHcl, UnicodeEncodeError) as error:
        raise BadDefinitionFile(f"{where}: {str(error).removeprefix('the body is no JSON: ')}") from None
    if not isinstance(found, dict):
        raise BadDefinitionFile(f'{where} defines no service; write service {{ … }} or {{"service": {{…}}}}')
    keys = {key.lower(): key for key in found}
    if "name" in keys and not keys.keys() & {*_SERVICES}:
        return ServiceDefinitions((_service(found, where),))  # what would be sent to the API itself
    if not keys.keys() & {*_SERVICES, *_CHECKS}:
        has = f"it has {', '.join(sorted(found))[:100]}" if found else "it is empty"
        raise BadDefinitionFile(f'{where} defines no service: {has}; write service {{ … }} or {{"service": {{…}}}}')
    services = [one for key in _SERVICES if key in keys for one in _objects(found[keys[key]], f"{where}: {key}")]
    checks = [one for key in _CHECKS if key in keys for one in _objects(found[keys[key]], f"{where}: {key}")]
    ignored = [f"{where}: {keys[key]}" for key in keys if key not in (*_SERVICES, *_CHECKS)]
    return ServiceDefinitions(tuple(_service(one, where) for one in services), tuple(checks), tuple(ignored))


def _service(found: Mapping[str, object], where: str) -> JsonObject:
    """A service whose checks are all in ``checks``, however often and in whichever way they were written."""
    service, checks = {}, []
    for key, value in found.items():
        if key.lower() in _CHECKS:
            checks += _objects(value, f"{where}: {key}")
        else:
            service[key] = value
    return {**service, "checks": checks} if checks else service


def _objects(value: object, place: str) -> list[JsonObject]:
    """One object or a list of them. Raises BadFile."""
    found: list[JsonObject] = []
    for one in value if isinstance(value, list) else [] if value is None else [value]:
        if not isinstance(one, dict):
            raise BadDefinitionFile(f"{place}: {json.dumps(one)[:60]} is neither a block nor an object")
        found.append(one)
    return found


def _text(path: str) -> str:
    """The content of a file. Raises BadFile."""
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
        raise BadDefinitionFile(f"{path} cannot be read: {error.strerror or 'it is a folder'}") from None
    except UnicodeDecodeError as error:
        raise BadDefinitionFile(f"{path} is no text: {error.reason} at byte {error.start}") from None
