"""The host's uplink as ``[uplink]`` of weft.toml describes it: its link, its rates and the default weight."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass

from weft import configuration, files
from weft.errors import ConfigProblem
from weft.identity import link_name_problem
from weft.section import Problems, Section, similar

KEYS = frozenset({"up", "down", "link", "weight"})
LEAST_RATE, MOST_RATE = 64_000, 10**12
"""Bits per second."""
MOST_WEIGHT = 100
_RATE = re.compile(r"([0-9]{1,13})(|k|m|g)bit")
_FACTORS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9}


@dataclass(frozen=True, slots=True)
class Uplink:
    """Rates in bits per second, 0 where that direction is not scheduled. ``link`` "": that of the default
    route. ``weight`` is that of what belongs to no network with settings, and of networks without one.
    """

    up: int = 0
    down: int = 0
    link: str = ""
    weight: int = 1


def rate(section: Section, key: str) -> int:
    """A rate in bits per second, a number or text as tc has it (``20mbit``); 0 if absent."""
    value = section.raw(key)
    if value is None:
        return 0
    found = _RATE.fullmatch(value.casefold()) if isinstance(value, str) else None
    number = int(found[1]) * _FACTORS[found[2]] if found else value
    if isinstance(number, bool) or not isinstance(number, int):
        section.problem(key, "must be a rate: bits per second, or a number with bit, kbit, mbit or gbit")
        return 0
    if not LEAST_RATE <= number <= MOST_RATE:
        section.problem(key, "must be between 64kbit and 1000gbit")
        return 0
    return number


def rate_text(bits: int) -> str:
    """A rate as ``rate`` reads it and tc prints it: ``20mbit``."""
    for unit in ("g", "m", "k"):
        if bits and bits % _FACTORS[unit] == 0:
            return f"{bits // _FACTORS[unit]}{unit}bit"
    return f"{bits}bit"


def read(section: Section) -> Uplink:
    """The section ``[uplink]``; problems are noted. Unknown keys are the reader's of the file to refuse."""
    link = section.text("link")
    if link and (problem := link_name_problem(link)):
        section.problem("link", problem)
    weight = section.integer("weight", least=1, most=MOST_WEIGHT)
    return Uplink(rate(section, "up"), rate(section, "down"), link, weight or 1)


def configured() -> Uplink:
    """What the file that the agent reads says: $WEFT_CONFIG, else /etc/weft/weft.toml; without the file
    nothing is scheduled. Raises ConfigProblem with all that is invalid in the section.
    """
    path = configuration.path()
    if not os.path.exists(path):
        return Uplink()
    import tomllib

    try:
        table = tomllib.loads(files.read(path, own=False).decode()).get("uplink")
    except (OSError, ValueError) as error:
        raise ConfigProblem(f"cannot read {path}: {error}") from error
    problems = Problems()
    section = Section(table, "uplink", problems)
    found = read(section)
    unknown = sorted(table.keys() - KEYS) if isinstance(table, dict) else ()
    for key in unknown:
        problems.add(f"unknown key uplink.{key}{similar(key, KEYS)}; valid keys: {', '.join(sorted(KEYS))}")
    if problems.found:
        raise ConfigProblem(f"{path}: {'; '.join(problems.found)}", hint="correct the section [uplink] of the file")
    return found
