"""What ``nft list table`` prints, part by part: to say what differs, where something does.

Only a look-up that found a difference, and an installation, need it; so it is a module of its own.
Source: nft(8).
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from weft.errors import KernelRefused
from weft.kernel.nft.survey import Survey
from weft.kernel.schema import Table

_BLOCK = re.compile(r"^\s*(set|map|chain)\s+(\S+)\s*\{(.*)$")
_COMMENT = re.compile(r'^((?:[^"#]|"[^"]*")*)#.*$')
_COUNTED = re.compile(r"\bcounter packets [0-9]+ bytes [0-9]+")
_ELEMENTS = re.compile(r'\belements = \{((?:[^}"]+|"[^"]*")*)\}')


@dataclass(frozen=True, slots=True)
class Block:
    """A set, map or chain of a listing with its lines, as printed but for the indentation."""

    kind: str
    name: str
    lines: tuple[str, ...]


def blocks(text: str) -> tuple[Block, ...]:
    """The sets, maps and chains of a table, and the table's own lines as a block of kind ``table``.

    What rules have counted goes, and so do comments (newer versions count elements in one; those of
    sets stay what they were when the set was made) and elements, which a terse listing leaves out
    anyway. A block's braces are on its first and its last line.
    """
    found: list[Block] = []
    table: list[str] = []
    current: tuple[str, str, list[str]] | None = None
    for line in _ELEMENTS.sub("", text).splitlines():
        clean = _COUNTED.sub("counter", _COMMENT.sub(r"\1", line)).strip()
        if clean.startswith('comment "'):
            continue
        opened = _BLOCK.match(clean) if current is None else None
        if opened is not None:
            current = (opened.group(1), opened.group(2), [])
            clean = opened.group(3).strip()
        if current is None:
            if clean and clean != "}":
                table.append(clean)
            continue
        closed = clean.endswith("}") and clean.count("{") < clean.count("}")
        current[2].extend(part for part in ([clean[:-1].strip()] if closed else [clean]) if part)
        if closed:
            found.append(Block(current[0], current[1], tuple(current[2])))
            current = None
    return (Block("table", "", tuple(table)), *found)


def listed(output: str, table: str, names: set[tuple[str, str]], leave: str = "") -> tuple[Block, ...]:
    """The blocks of a listing but for the chain ``leave``. Raises KernelRefused where it lacks a
    set, map or chain of those that are known to exist: an empty or partial answer is none.
    """
    found = tuple(block for block in blocks(output) if (block.kind, block.name) != ("chain", leave))
    lacking = names - {(block.kind, block.name) for block in found} - {("chain", leave)}
    if f"table {table} {{" not in output or lacking:
        what = " ".join(min(lacking)) if lacking else "its head"
        raise KernelRefused(f"nft lists the table {table} without {what}")
    return found


def declared_names(table: Table) -> set[tuple[str, str]]:
    """The sets, maps and chains that a table should have, by kind and name."""
    return {(one.kind, one.name) for one in table.sets} | {("chain", one.name) for one in table.chains}


def surveyed_names(found: Survey, table: str) -> set[tuple[str, str]]:
    """Those that the kernel has in it."""
    sets = {(shape.kind, shape.name) for shape, _ in found.sets if shape.table == table}
    return sets | {("chain", name) for place, name, _ in found.chains if place == table}


def difference(wanted: tuple[Block, ...], there: tuple[Block, ...]) -> str | None:
    """What of the wanted listing the other lacks or has besides, in a sentence; None if they are
    the same.
    """
    have = {(block.kind, block.name): block for block in there}
    for block in wanted:
        other = have.pop((block.kind, block.name), None)
        if other is None:
            return f"the {block.kind} {block.name} is missing"
        if other.lines != block.lines:
            return _lines(block, other)
    for block in have.values():
        return f"there is a {block.kind} {block.name} that is not weft's"
    return None


def _lines(wanted: Block, there: Block) -> str:
    name = f"the {wanted.kind} {wanted.name}".rstrip()
    for line in wanted.lines:
        if line not in there.lines:
            return f"{name} lacks “{line}”"
    for line in there.lines:
        if line not in wanted.lines:
            return f"{name} has “{line}”, which is not weft's"
    return f"{name} has its lines in another order or number"
