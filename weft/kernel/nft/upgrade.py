"""The nft script that replaces installed tables by others, in one transaction and without losing an
element.

A set with a former name (``Set.formerly``) is deleted in the transaction that adds its elements to
the set with the present name, so no packet meets the new rules without them. Unchanged sets are
kept with their elements. Chains are deleted and added again, except those that elements of a
verdict map refer to. Former sets are deleted by handle: if another process has created one again
meanwhile, the transaction fails. Source: nft(8), ``net/netfilter/nf_tables_api.c``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

from weft.kernel.nft.lookup import readable
from weft.kernel.nft.survey import Survey
from weft.kernel.nft.text import Entry, copies
from weft.kernel.schema import Shape, Tables

Read = Callable[[Shape], list[Entry]]
"""Reads all elements of a set or map."""


def outdated(wanted: Tables, there: dict[str, Shape]) -> bool:
    """Whether one of the sets has a name of an earlier release."""
    return not wanted.renamed.keys().isdisjoint(there)


def script(wanted: Tables, found: Survey, read: Read, comments: bool) -> str:
    """The commands that lead from what a survey found to the wanted tables, declared with
    ``comments`` or without.
    """
    kept = _kept_chains(wanted, found)
    lines = [f"{table.head(comments)}flush table {table}\n" for table in wanted.tables]
    added: list[str] = []
    for shape, handle in found.sets:
        same = wanted.shapes.get(shape.name)
        if same is None or same.padded != shape or wanted.sets[shape.name].replaced:
            # By handle nft does not see that the name is free again.
            which = shape.name if same is not None else f"handle {handle}"
            lines.append(f"delete {shape.kind} {shape.table} {which}\n")
            now = wanted.renamed.get(shape.name, shape.name)
            if now in wanted.shapes and wanted.sets[now].elements is None:
                added += _moved(wanted, found, shape, now, read)
        elif shape.data == ("verdict",):
            entries = read(shape)
            if any((shape.table, _target(entry)) not in kept for entry in entries):
                lines.append(f"flush map {shape.table} {shape.name}\n")
                added += copies(shape, _redirected(wanted, entries))
    lines += [f"delete chain {table} {name}\n" for table, name, _ in found.chains if (table, name) not in kept]
    return "".join([*lines, wanted.text if comments else wanted.plain, "\n", *added])


def _kept_chains(wanted: Tables, found: Survey) -> set[tuple[str, str]]:
    """The chains that can stay: neither now nor then entered by a hook, for a hook cannot be
    changed.
    """
    plain = {(str(table), one.name) for table in wanted.tables for one in table.chains if not one.hook}
    return {(table, name) for table, name, hooked in found.chains if not hooked and (table, name) in plain}


def _moved(wanted: Tables, found: Survey, old: Shape, name: str, read: Read) -> list[str]:
    """What adds the elements of a set that ends to the set of its present name, if that takes such
    elements.
    """
    shape = wanted.shapes[name]
    if replace(old, name=name) != shape.padded or not readable(shape):
        return []
    entries = read(replace(shape, name=old.name))
    if old.name != name and any(one == shape.padded for one, _ in found.sets):  # both releases have been at work
        there = {entry.key for entry in read(shape)}
        entries = [entry for entry in entries if entry.key not in there]
    return copies(shape, _redirected(wanted, entries) if shape.data == ("verdict",) else entries)


def _redirected(wanted: Tables, entries: list[Entry]) -> list[Entry]:
    """Elements of a verdict map, leading to chains by their present names; those that lead nowhere
    any more go.
    """
    chains = {one.name for table in wanted.tables for one in table.chains}
    return list(_present(entries, wanted.renamed_chains, chains))


def _present(entries: list[Entry], renamed: dict[str, str], chains: set[str]) -> Iterator[Entry]:
    for entry in entries:
        target = _target(entry)
        now = target if target in chains else renamed.get(target, "")
        if now in chains:
            yield replace(entry, data=(f"goto {now}",))


def _target(entry: Entry) -> str:
    return str(entry.data[0]).partition(" ")[2]
