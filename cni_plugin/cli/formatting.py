"""``--format`` of lists: ``json``, ``table``, and Go templates of plain fields (``{{.Name}} {{.Driver}}``)."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from functools import partial

import click

from cni_plugin.cli.output import printable, table
from weft.errors import BadOption

_FIELD = re.compile(r"\{\{\s*(?P<json>json\s+)?\.(?P<name>\w*)\s*\}\}")
Rows = Sequence[Mapping[str, str]]


def print_rows(rows: Rows, names: Sequence[str], form: str) -> None:
    """Print one line a row. ``names`` are the fields of a table. Raises BadOption."""
    if form == "json":
        for row in rows:
            click.echo(json.dumps(dict(row)))
        return
    is_table = form == "table" or form.startswith("table ")
    template = form.removeprefix("table").strip() if is_table else form
    template = template.replace("\\t", "\t").replace("\\n", "\n")
    if is_table and not template:
        template = "\t".join(f"{{{{.{name}}}}}" for name in names)
    known = set(names).union(*rows)
    _check(template, form, known)
    lines = [_FIELD.sub(partial(_value, row), template) for row in rows]
    if not is_table:
        for line in lines:
            click.echo("\t".join(printable(cell) for cell in line.split("\t")))
        return
    header = [_FIELD.sub(lambda found: _spaced(found["name"]), cell) for cell in template.split("\t")]
    table(header, [line.split("\t") for line in lines])


def _check(template: str, form: str, known: set[str]) -> None:
    rest = _FIELD.sub("", template)
    if "{{" in rest or "}}" in rest:
        raise BadOption(f"invalid --format {form!r}: only fields are supported, like '{{{{.Name}}}}', json and table")
    for found in _FIELD.finditer(template):
        if found["name"] not in known and not (found["json"] and not found["name"]):
            raise BadOption(f"invalid --format {form!r}: no field .{found['name']}; {', '.join(sorted(known))}")


def _value(row: Mapping[str, str], found: re.Match[str]) -> str:
    if found["json"]:
        return json.dumps(row[found["name"]] if found["name"] else dict(row))
    return row[found["name"]]


def _spaced(name: str) -> str:
    """``IPAddress`` as ``IP ADDRESS``."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name).upper()
