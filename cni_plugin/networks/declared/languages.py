"""The languages in which ``weft apply`` reads files: TOML, YAML and JSON."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Callable

from weft.errors import ConfigProblem

_YAML = re.compile(r"(?:\s|#[^\n]*(?:\n|$))*(---|%YAML|[^\s\[={\"'#][^\n=]*?:(?:\s|$)|[\"'][^\n]*[\"']\s*:(?:\s|$))")


def parsed(text: str, where: str) -> object:
    """What a file has: YAML if its name or first line says so, JSON if it starts with "{", else TOML.

    Raises ConfigProblem.
    """
    is_json = text.lstrip().startswith("{")
    language = "YAML" if _is_yaml(text, where) else "JSON" if is_json else "TOML"
    try:
        return _LANGUAGES[language](text)
    except ValueError as error:
        raise ConfigProblem(
            f"{where} is not valid {language}: {error}", hint="see docs/apply.md for an example"
        ) from error


def _once(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """An object of JSON. Raises ValueError if it has a key twice."""
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"the key {next(key for key in keys if keys.count(key) > 1)} is given twice")
    return found


def _is_yaml(text: str, where: str) -> bool:
    """By the file's name, else by its first line, which in TOML has no ``key:``."""
    return where.endswith((".yaml", ".yml")) or _YAML.match(text) is not None


def _yaml(text: str) -> object:
    from cni_plugin.networks.declared import yaml_files

    return yaml_files.loads(text)


_LANGUAGES: dict[str, Callable[[str], object]] = {
    "YAML": _yaml,
    "JSON": lambda text: json.loads(text, object_pairs_hook=_once),
    "TOML": tomllib.loads,
}
