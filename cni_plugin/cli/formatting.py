"""``--format``: ``json``, ``table``, and Go templates of fields: ``{{.Name}}``, ``{{json .Labels}}``,
``{{range .IPAM.Config}}{{.Subnet}} {{end}}``. Functions, conditions and variables are refused.

Source: docker's and podman's documentation of ``--format``; https://pkg.go.dev/text/template.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence

import click

from cni_plugin.cli.output import printable, table
from weft.errors import BadOption

_FIELD = re.compile(r"\{\{-?\s*(?P<json>json\s+)?\.(?P<name>\w*(?:\.\w+)*)\s*-?\}\}")
_RANGE = re.compile(r"\{\{-?\s*range\s+\.(?P<name>\w+(?:\.\w+)*)\s*-?\}\}(?P<body>.*?)\{\{-?\s*end\s*-?\}\}", re.DOTALL)
Row = Mapping[str, object]


def print_rows(rows: Sequence[Row], names: Sequence[str], form: str) -> None:
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
    lines = [_filled(template, form, row) for row in rows or [dict.fromkeys(names, "")]][: len(rows)]
    if not is_table:
        for line in lines:
            for part in line.split("\n"):
                click.echo("\t".join(printable(cell) for cell in part.split("\t")))
        return
    header = [_FIELD.sub(lambda found: _spaced(found["name"]), cell) for cell in template.split("\t")]
    table(header, [line.split("\t") for line in lines])


def _filled(template: str, form: str, row: object) -> str:
    """The template with the values of a row. Raises BadOption."""
    # Text that a value has is not looked at again, whatever is in it.
    found, end = "", 0
    for each in re.finditer(f"{_named(_RANGE, 'r')}|{_named(_FIELD, 'f')}", template, re.DOTALL):
        found += _plain(template[end : each.start()], form)
        if each["rname"]:
            value = _value(row, each["rname"], form)
            listed = list(value.values()) if isinstance(value, dict) else value if isinstance(value, list) else []
            found += "".join(_filled(each["rbody"], form, one) for one in listed)
        else:
            value = _value(row, each["fname"], form)
            found += json.dumps(value) if each["fjson"] else _shown(value)
        end = each.end()
    return found + _plain(template[end:], form)


def _named(pattern: re.Pattern[str], letter: str) -> str:
    """The pattern with a letter before its groups' names, so that two may be in one."""
    return pattern.pattern.replace("(?P<", f"(?P<{letter}")


def _plain(text: str, form: str) -> str:
    """Raises BadOption for what is in braces and no field."""
    if "{{" in text or "}}" in text:
        fields = "fields like '{{.Name}}', '{{json .Labels}}' and '{{range .List}}{{.Name}}{{end}}'"
        raise BadOption(f"invalid --format {form!r}: only json, table and {fields} are supported")
    return text


def _value(row: object, path: str, form: str) -> object:
    """The value at a path of fields. Raises BadOption."""
    for name in filter(None, path.split(".")):
        if not isinstance(row, Mapping) or name not in row:
            known = ", ".join(sorted(row)) if isinstance(row, Mapping) and row else "none here"
            raise BadOption(f"invalid --format {form!r}: no field .{name}; fields: {known}")
        row = row[name]
    return row


def _shown(value: object) -> str:
    """A value as Go prints it: ``map[a:b]``, ``[a b]``, ``true``."""
    if isinstance(value, Mapping):
        return f"map[{' '.join(f'{key}:{_shown(value[key])}' for key in sorted(value))}]"
    if isinstance(value, list | tuple):
        return f"[{' '.join(map(_shown, value))}]"
    if isinstance(value, bool):
        return str(value).lower()
    return "" if value is None else str(value)


def _spaced(name: str) -> str:
    """``IPAddress`` as ``IP ADDRESS``."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name.rpartition(".")[2]).upper()
