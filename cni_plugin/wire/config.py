"""Standard input to a ``Config``: the keys that every plugin has in common.

Source: SPEC.md, "Network configuration format" and "Deriving runtime configuration from network
configuration".
"""

from __future__ import annotations

from cni_plugin.wire import document, result, versions
from cni_plugin.wire.request import Command, Config
from weft import cni_keys
from weft.errors import ConfigProblem, DecodeProblem
from weft.identity import identifier_problem
from weft.section import Problems, Section, quoted
from weft.types import Result

_VALID = ("cni.dev/valid-attachments", "cni.dev/attachments")


def read(stdin: bytes, command: Command, plugin: str = "weft") -> Config:
    """The configuration on standard input.

    Raises DecodeProblem for what is no JSON object, ConfigProblem for a missing or bad network name,
    VersionProblem for a version that the plugin or the command does not have, in this order; then, for
    every command but DEL, ConfigProblem with all else that is wrong in the common keys. A DEL must
    clean up after an ADD that was refused.
    """
    value, twice = document.decode(stdin)
    problems = Problems()
    keys = Section(value, "", problems)
    name = _name(keys)
    version = _version(keys)
    versions.require(version, command, plugin)
    for key in twice:
        problems.add(f"the key {quoted(key)} is given twice in one object")
    config = Config(
        version=version,
        name=name,
        type=keys.text("type"),
        keys=keys,
        ipam=keys.section("ipam"),
        runtime=keys.section("runtimeConfig"),
        args_cni=keys.section("args").section("cni"),
        dns=cni_keys.dns(keys.section("dns")) if cni_keys.sets_dns(keys.section("dns")) else None,
        previous=_previous(keys, version, problems),
        valid=_valid(value or {}, problems) if command is Command.GC else None,
    )
    if command is not Command.DEL:
        problems.raise_any()
    return config


def _name(keys: Section) -> str:
    """The network's name, which becomes part of file names and marks."""
    name = keys.raw("name")
    if name is None or name == "":
        raise ConfigProblem("missing network name", hint="give the network configuration a name")
    if not isinstance(name, str):
        raise DecodeProblem(f"name {quoted(name)} must be a string")
    if problem := identifier_problem(name):
        raise ConfigProblem(f"the network name {quoted(name)} {problem}", hint="give the network another name")
    return name


def _version(keys: Section) -> str:
    version = keys.raw("cniVersion")
    if version is None or version == "":
        return versions.WHEN_ABSENT
    if not isinstance(version, str):
        raise DecodeProblem(f"cniVersion {quoted(version)} must be a string, like {quoted(versions.NEWEST)}")
    return version


def _previous(keys: Section, version: str, problems: Problems) -> Result | None:
    """The result of the plugins before this one; None where there is none, or where it is no object."""
    value = keys.raw("prevResult")
    if value is None:
        return None
    if not isinstance(value, dict):
        keys.problem("prevResult", "must be an object")
        return None
    return result.parse(value, version, problems)


def _valid(value: dict[str, object], problems: Problems) -> tuple[tuple[str, str], ...] | None:
    """What GC must keep: the union of the list and of its older name, so that it never frees too much.

    ``null`` is an empty list and not an absent one: it is what Go makes of a runtime that has nothing
    attached.
    """
    found: dict[tuple[str, str], None] = {}
    given = False
    for key, attachments in value.items():
        if key.casefold() not in _VALID:
            continue
        given = True
        section = Section({key: attachments}, "", problems)
        for each in section.sections(key):
            pair = each.text("containerID"), each.text("ifname")
            if "" in pair:
                problems.add(f"{each.path} must name a containerID and an ifname")
            found[pair] = None
    return tuple(found) if given else None
