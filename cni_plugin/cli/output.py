"""Output: aligned columns, ages, JSON; control characters are escaped."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from typing import TextIO

import click

_GAP = "   "


def printable(text: str) -> str:
    """The text with control characters escaped, which could move the cursor or change colours."""
    if text.isprintable():
        return text
    return "".join(one if one.isprintable() else one.encode("unicode_escape").decode("ascii") for one in text)


def has_colours(stream: TextIO) -> bool:
    """Whether to print colours: on a terminal that has them, unless NO_COLOR is set (https://no-color.org)."""
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def say(line: str = "", *, colour: str = "", bold: bool = False) -> None:
    """Print one line, on a terminal in a colour."""
    text = printable(line)
    styled = (colour or bold) and has_colours(sys.stdout)
    click.echo(click.style(text, fg=colour or None, bold=bold or None) if styled else text)


def complain(line: str, *, colour: str = "yellow") -> None:
    """Print a message of weft's on standard error."""
    name = click.style("weft:", fg=colour, bold=True) if has_colours(sys.stderr) else "weft:"
    click.echo(f"{name} {printable(line)}", err=True)


def warn(line: str) -> None:
    """Print a warning on standard error."""
    complain(line)


def as_json(value: object) -> None:
    """Print a document."""
    click.echo(json.dumps(value, indent=2))


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print aligned columns, without a header if that is empty."""
    cells = [[printable(cell) for cell in row] for row in (*([header] if header else []), *rows)]
    widths = [max(len(row[place]) for row in cells) for place in range(len(cells[0]))] if cells else []
    for place, row in enumerate(cells):
        line = _GAP.join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        say(line, bold=bool(header) and not place)


def fields(pairs: Sequence[tuple[str, str]], *, indent: str = "") -> None:
    """Print names and values in two columns; values may have several lines."""
    width = max((len(name) for name, _ in pairs), default=0) + 2
    for name, value in pairs:
        for place, line in enumerate(value.split("\n")):
            say(f"{indent}{(f'{name}:' if not place else '').ljust(width)}{line}".rstrip())


def age(seconds: float) -> str:
    """A duration in its largest unit: 42s, 5m, 3h, 12d."""
    whole = max(0, int(seconds))
    for size, unit in ((86400, "d"), (3600, "h"), (60, "m")):
        if whole >= size:
            return f"{whole // size}{unit}"
    return f"{whole}s"


def count(number: int, noun: str) -> str:
    """A number with its noun: "1 address", "3 addresses"."""
    if number == 1:
        return f"1 {noun}"
    return f"{number} {noun}{'es' if noun.endswith('s') else 's'}"
