"""nftables tables as values, each with its reason, from which the text that nft reads is made.

A :class:`Rule` without a reason and a :class:`Set` without a description cannot be written, so
``nft list ruleset`` and docs/ruleset.md say the same as the code. For example::

    Table("inet", "example", "drops what listed links send", sets=(
        Set("closed_links", "ifname", "links that may not send"),
    ), chains=(
        Chain("filter_forward", "what this host forwards", (
            Rule("iifname @closed_links drop", "closed"),
        ), hook="forward", priority="filter"),
    ))

Named tuples, since every call imports them: a class takes 0.3 ms instead of 1 to 2. Source: nft(8).
Comments on tables, sets and chains need nftables 0.9.8; ``Tables.plain`` is the same text without them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from weft.identity import digest

_TYPES = {
    "iifname": "ifname",
    "ip daddr": "ipv4_addr",
    "ip saddr": "ipv4_addr",
    "ip6 saddr": "ipv6_addr",
    "ip6 daddr": "ipv6_addr",
    "meta l4proto": "inet_proto",
    "meta priority": "classid",
    "numgen random mod 2": "integer",
    "th dport": "inet_service",
    "udp dport": "inet_service",
    "vlan id": "bits16",
}
_BITS = re.compile(r"@[a-z]+,[0-9]+,([0-9]+)")


@dataclass(frozen=True, slots=True)
class Shape:
    """What a set or map holds: the types of its key's parts, and of its data's (none: it is a set).

    ``limit`` is the expression by which each element counts (``limit``, ``connlimit``), if any.
    ``bits64`` is a number of 64 bits as packets have it, ``integer`` one of 32 bits as the CPU has
    it (nftables gives both no name). ``table`` is the family and the name of its table.
    """

    name: str
    key: tuple[str, ...]
    data: tuple[str, ...] = ()
    flags: tuple[str, ...] = ()
    table: str = "inet weft"
    limit: str = ""

    @property
    def kind(self) -> str:
        return "map" if self.data else "set"

    @property
    def padded(self) -> Shape:
        """With numbers of whole words: the kernel keeps a key's length, not that of each part nor
        the byte order.
        """
        return Shape(self.name, tuple(map(_padded, self.key)), tuple(map(_padded, self.data)), self.flags, self.table)


def _padded(name: str) -> str:
    if name == "integer":
        return "bits32"
    return f"bits{(int(name[4:]) + 31) & ~31}" if name.startswith("bits") else name


class Rule(NamedTuple):
    """One rule as nft reads it, and the reason for it, which becomes its comment. One that drops counts
    what it drops: other packets do not come to the counter.
    """

    text: str
    why: str

    def lines(self, comments: bool) -> Iterable[str]:
        text = f"{self.text.removesuffix('drop')}counter drop" if self.text.endswith("drop") else self.text
        yield f'{text} comment "{self.why}"' if comments else text


class Set(NamedTuple):
    """A set, or a map ``to`` data of another type or to chains (``verdict``).

    ``type`` is that of its elements, as nft has it, or expressions if ``typeof``. ``formerly`` are
    the names it had in earlier releases; its elements are taken over from there. ``elements`` are
    part of the definition (None: they come and go at run time). ``timeout`` is in seconds, 0 for
    none. ``limit`` is what each element has of its own, with other numbers: packets match only
    beyond it, and are counted.
    """

    name: str
    type: str
    holds: str
    by: str = ""
    typeof: bool = False
    flags: tuple[str, ...] = ()
    timeout: int = 0
    size: int = 0
    formerly: tuple[str, ...] = ()
    elements: tuple[str, ...] | None = None
    to: str = ""
    limit: str = ""

    @property
    def kind(self) -> str:
        return "map" if self.to else "set"

    @property
    def declared(self) -> str:
        """The types, as nft reads them."""
        of = f"{self.type} : {self.to}" if self.to else self.type
        return f"{'typeof' if self.typeof else 'type'} {of}"

    @property
    def replaced(self) -> bool:
        """Whether installing deletes and declares it again, with the elements it had unless it
        defines some.

        nftables 1.0.6 uses no set that was declared before by ``typeof`` with a transport header:
        "conflicting protocols specified: ip vs. th".
        """
        return self.elements is not None or (self.typeof and "th dport" in self.declared)

    def lines(self, comments: bool) -> Iterable[str]:
        """The declaration, line by line."""
        yield f"{self.kind} {self.name} {{"
        yield f"\t{self.declared};"
        if self.flags:
            yield f"\tflags {','.join(self.flags)};"
        if self.timeout:
            yield f"\ttimeout {self.timeout}s;"
        if self.size:
            yield f"\tsize {self.size};"
        if self.limit:
            yield f"\t{self.limit} counter;"
        if self.elements:
            yield f"\telements = {{ {', '.join(self.elements)} }};"
        if comments:
            yield f'\tcomment "{self.holds}";'
        yield "}"

    def shape(self, table: str) -> Shape:
        """The types of an element's parts."""
        counts = "connlimit" if self.limit.startswith("ct count") else self.limit.partition(" ")[0]
        return Shape(self.name, _parts(self.type), _parts(self.to), tuple(sorted(self.flags)), table, counts)


class Chain(NamedTuple):
    """A chain: where packets enter it (``hook`` and ``priority``; "" if rules of other chains lead
    there), and why.

    ``formerly`` are the names it had in earlier releases: elements of verdict maps that lead there
    lead here now.
    """

    name: str
    why: str
    rules: tuple[Rule, ...]
    hook: str = ""
    priority: str = ""
    type: str = "filter"
    policy: str = "accept"
    formerly: tuple[str, ...] = ()

    def lines(self, comments: bool) -> Iterable[str]:
        yield f"chain {self.name} {{"
        if comments:
            yield f'\tcomment "{self.why}"'
        if self.hook:
            yield f"\ttype {self.type} hook {self.hook} priority {self.priority}; policy {self.policy};"
        for rule in self.rules:
            yield from (f"\t{line}" for line in rule.lines(comments))
        yield "}"


class Table(NamedTuple):
    """A table of a family; a chain stands before those whose rules lead to it."""

    family: str
    name: str
    why: str
    sets: tuple[Set, ...]
    chains: tuple[Chain, ...]

    def __str__(self) -> str:
        return f"{self.family} {self.name}"

    def head(self, comments: bool = True) -> str:
        """The command that adds the table, without what is in it.

        A table has the comment that it was added with: the kernel does not change it.
        """
        return f'add table {self} {{ comment "{self.why}"; }}\n' if comments else f"add table {self}\n"

    def text(self, comments: bool = True) -> str:
        """The table as ``nft -f`` reads it, its own comment included."""
        sets = (line for one in self.sets for line in one.lines(comments))
        chains = (line for one in self.chains for line in one.lines(comments))
        body = "".join(f"\t{line}\n" for line in (*sets, *chains))
        comment = f'\tcomment "{self.why}"\n' if comments else ""
        return f"table {self} {{\n{comment}{body}}}\n"


@dataclass(frozen=True, eq=False)
class Tables:
    """The tables that are installed together, in one transaction. Not slotted: what is derived is
    kept.
    """

    tables: tuple[Table, ...] = ()
    beside: tuple[str, ...] = ()
    """Tables that are installed otherwise, and removed with these."""

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Family and name of each."""
        return tuple(map(str, self.tables))

    @cached_property
    def text(self) -> str:
        """What ``nft -f`` reads, with a comment on each table, chain, set and rule."""
        return "\n".join(table.text() for table in self.tables)

    @cached_property
    def plain(self) -> str:
        """The same without comments."""
        return "\n".join(table.text(comments=False) for table in self.tables)

    @cached_property
    def digest(self) -> str:
        return digest(self.text)

    @cached_property
    def sets(self) -> dict[str, Set]:
        """Sets and maps by name: no two tables installed together share one."""
        return {one.name: one for table in self.tables for one in table.sets}

    @cached_property
    def shapes(self) -> dict[str, Shape]:
        """The types of each set and map, by name."""
        return {one.name: one.shape(str(table)) for table in self.tables for one in table.sets}

    @cached_property
    def renamed(self) -> dict[str, str]:
        """Sets and maps: the former name of each, and the name it has now."""
        return {old: one.name for table in self.tables for one in table.sets for old in one.formerly}

    @cached_property
    def renamed_chains(self) -> dict[str, str]:
        """Chains: the former name of each, and the name it has now."""
        return {old: one.name for table in self.tables for one in table.chains for old in one.formerly}


def limit_text(kind: str, numbers: tuple[int, ...]) -> str:
    """The limit and the counter of an element (``Set.limit``), as nft reads them."""
    if kind == "connlimit":
        return f"ct count over {numbers[0]} counter"
    rate, burst = numbers
    return f"limit rate over {rate}/second burst {burst} packets counter"


_FAMILIES = (("4", "ip", "ipv4_addr", "127.0.0.1"), ("6", "ip6", "ipv6_addr", "::1"))


def families(text: str) -> tuple[str, str]:
    """The text for IPv4 and for IPv6: ``{v}`` is the version, ``{ip}`` the header, ``{address}``
    the type, ``{loopback}`` the loopback address.
    """
    first, second = (
        text.replace("{v}", version).replace("{ip}", header).replace("{address}", kind).replace("{loopback}", loopback)
        for version, header, kind, loopback in _FAMILIES
    )
    return first, second


def rules(text: str, why: str, *versions: int) -> tuple[Rule, ...]:
    """A rule for each IP version, or some; see :func:`families`."""
    of_each = zip((4, 6), families(text), families(why), strict=True)
    return tuple(Rule(one, because) for version, one, because in of_each if version in (versions or (4, 6)))


def sets(
    name: str,
    key: str,
    holds: str,
    by: str,
    formerly: str = "",
    flags: tuple[str, ...] = (),
    *,
    timeout: int = 0,
    size: int = 0,
    limit: str = "",
) -> tuple[Set, ...]:
    """A set for each family; ``{v}`` in the names, too."""
    return tuple(
        Set(
            called,
            declared,
            held,
            by,
            flags=flags,
            formerly=(before,) if before else (),
            timeout=timeout,
            size=size,
            limit=limit,
        )
        for called, declared, held, before in zip(*map(families, (name, key, holds, formerly)), strict=True)
    )


def maps(name: str, key: str, to: str, holds: str, by: str, *, typeof: bool = False) -> tuple[Set, ...]:
    """A map for each family; ``{v}`` in the names, too."""
    return tuple(
        Set(called, declared, held, by, typeof, to=data)
        for called, declared, data, held in zip(*map(families, (name, key, to, holds)), strict=True)
    )


def _parts(declared: str) -> tuple[str, ...]:
    return tuple(_type(word.strip()) for word in declared.split(" . ") if word.strip())


def _type(word: str) -> str:
    """A type's name, also where a set declares it by an expression (``typeof iifname .
    @th,64,128``).
    """
    bits = _BITS.fullmatch(word)
    return f"bits{bits.group(1)}" if bits else _TYPES.get(word, word)
