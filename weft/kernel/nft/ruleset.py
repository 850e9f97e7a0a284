"""nftables tables, installed, verified and filled: those of containers and the balancer's.

The rules never change with attachments; what an attachment adds are elements of sets and maps, each
with the mark of its owner as its comment. Rules are installed by libnftables in this process, as
one transaction; elements are written as netlink messages (``elements``), in a fifth of the time,
and everything is read by netlink (``survey``, ``lookup``). What nft prints is only compared with
another listing of nft's. Sources: nft(8), libnftables(3).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import suppress
from errno import ERESTART
from ipaddress import ip_network
from typing import TypeVar, cast

from weft.errors import Busy, Exists, KernelRefused, Missing
from weft.kernel.canonical import normal
from weft.kernel.interface import Ruleset
from weft.kernel.nft.connection import Connection, in_new_namespace
from weft.kernel.nft.elements import creations, deletions, writable
from weft.kernel.nft.generation import StoredGeneration, VerifiedGeneration
from weft.kernel.nft.library import Runner, refuse, runner
from weft.kernel.nft.limits import checked_limit
from weft.kernel.nft.lookup import dump, is_plain, keys, look_up, mark_digests, owned, raw_lists, same
from weft.kernel.nft.lookup import element as marked
from weft.kernel.nft.socket import Change, NftSocket, nft_error
from weft.kernel.nft.survey import Survey, declared, survey
from weft.kernel.nft.text import Entry, checked, commands, conflict, rendered
from weft.kernel.nft.upgrade import outdated, script
from weft.kernel.schema import Shape, Tables
from weft.kernel.values import Element, Scalar

T = TypeVar("T")

_STAMP = "stamp"
_STAMP_COMMENT = "fingerprint of this ruleset, by which weft notices changes; no packet comes here"
_ATTEMPTS = 5  # of a transaction that another process's came before
_SURVEYS = 20  # of which others' transactions may disturb all but the last
_LAST_GENERATION = 0xFFFFFFFF  # after which the kernel counts from 1 again


class Nft:
    """Tables in the network namespace that the constructor's thread is in; usable from any thread.

    Nothing is loaded before the first verb: most calls of a runtime need no rules. ``make`` chooses how
    commands are run (the library, else the ``nft`` program); ``verified`` is shared by those that verify
    together, ``stored`` the file of those that follow each other. Tables that an earlier release installed,
    with former names of sets, are upgraded before anything is done with them.
    """

    def __init__(
        self,
        tables: Tables,
        make: Callable[[], Runner] = runner,
        verified: VerifiedGeneration | None = None,
        stored: str = "",
    ) -> None:
        self._tables = tables
        self._make = make
        self._connection = Connection(make)
        self._verified = verified or (StoredGeneration(stored) if stored else VerifiedGeneration())
        self._shapes: dict[str, Shape] = {}
        self._plain = False

    def close(self) -> None:
        """Give back the library's memory and sockets; a second call does nothing."""
        self._verified.save()
        self._connection.close()

    def forked(self) -> None:
        """Close the library and the sockets, which are opened again when they are used."""
        self._connection.forked()

    def ask(self, work: Callable[[NftSocket], T]) -> T:
        """Call with the netlink socket of this object's namespace."""
        return self._connection.ask(work)

    # Tables

    @property
    def known(self) -> bool:
        """Whether the tables were verified, and no other transaction is known to have come since."""
        return self._verified.found is not None

    @property
    def installed(self) -> bool:
        """Whether all of the tables exist, whatever is in them. *Equivalent to:* ``nft list table``
        …
        """
        return not self._survey().missing

    def verify(self, tables: Tables) -> bool:
        """Whether the tables are as ``install`` left them; the difference is not named."""
        self._tables, self._shapes = tables, tables.shapes
        return self._look()[1] is None

    def lacks(self, tables: Tables) -> str | None:
        """What of the tables is not as it should be, in a sentence; None if all is.

        What the kernel has, whatever the sets hold, is compared with the stamp that ``install``
        left in the first table. Only where that differs are the tables installed in an empty
        namespace, and their listing compared with this one line by line, to name what differs.
        """
        self._tables, self._shapes = tables, tables.shapes
        sentence: str | None = None
        for _ in range(_SURVEYS):
            generation, found = self._look()
            if found is not None and outdated(tables, {shape.name: shape for shape, _ in found.sets}):
                self.install(tables)
                generation, found = self._look()
            sentence = None if found is None else self._difference(found)
            # A transaction between the dumps of a survey makes it inconsistent: repeat.
            if sentence is None or self.ask(NftSocket.generation) == generation:
                break
        return sentence

    def _look(self) -> tuple[int, Survey | None]:
        """The kernel's generation and a survey, None if the tables are as they were installed.

        Those that share ``verified`` wait meanwhile, and need no survey of their own.
        """
        tables = self._tables
        with self._verified.lock:
            generation = self.ask(NftSocket.generation)
            if self._verified.found == (tables.digest, generation):
                return generation, None
            found = self._survey()
            if found.missing or _stamp(tables, found).encode() not in found.stamp:
                return generation, found
            self._verified.found = tables.digest, generation
            return generation, None

    def _difference(self, found: Survey) -> str | None:
        if found.missing:
            return f"the table {found.missing[0]} is missing"
        from weft.kernel.nft.listing import declared_names, difference, listed, surveyed_names  # rarely needed

        tables = self._tables
        for name, one in tables.sets.items():  # a listing without elements does not show these
            if one.elements is not None and not self._holds(tables.shapes[name], one.elements):
                return f"the {one.kind} {name} holds other elements"
        try:
            fresh = self._declaring(
                lambda comments: in_new_namespace(lambda: _fresh_listings(tables, comments, self._make))
            )
            there = {table: self._connection.run(f"list table {table}\n", terse=True) for table in tables.names}
            for table in tables.tables:
                name = str(table)
                wanted = listed(fresh[name], name, declared_names(table))
                sentence = difference(wanted, listed(there[name], name, surveyed_names(found, name), leave=_STAMP))
                if sentence is not None:
                    return f"in the table {name}, {sentence}"
        except KernelRefused:
            return f"the nftables tables {' and '.join(tables.names)} are not as they were installed"
        with suppress(KernelRefused):
            self._connection.run(_stamping(tables, found, not self._plain))
        return None

    def _holds(self, shape: Shape, elements: tuple[str, ...]) -> bool:
        """Whether a set has exactly the elements of its definition, which are networks."""
        with suppress(Missing, ValueError):  # a range is no network
            found = self.ask(lambda nft_socket: dump(nft_socket, shape))
            return {ip_network(entry.key[0]) for entry in found} == {ip_network(one) for one in elements}
        return False

    def install(self, tables: Tables) -> None:
        """Make the tables be exactly what they should, in one transaction; what else is in them
        goes.

        Sets and maps keep their elements, also those that had another name in an earlier release.
        Raises KernelRefused with nftables' sentence. *Equivalent to:* ``nft -f RULES`` after
        flushing what was there.
        """
        self._tables, self._shapes = tables, tables.shapes
        for attempt in range(_ATTEMPTS):
            found = self._survey()
            for table in found.dormant:  # a table cannot become active and change at once
                self._connection.run(f"add table {table}\n")
            try:
                self._declare(found)
                break
            except (Missing, Exists):  # another process's transaction came between
                if attempt == _ATTEMPTS - 1:
                    raise
        found = self._survey()
        if not found.missing:
            self._connection.run(_stamping(tables, found, not self._plain))

    def _declare(self, found: Survey) -> None:
        def read(shape: Shape) -> list[Entry]:
            return self.ask(lambda nft_socket: dump(nft_socket, shape))

        self._declaring(lambda comments: self._connection.run(script(self._tables, found, read, comments)))

    def _declaring(self, work: Callable[[bool], T]) -> T:
        """Call with True, and again with False if this nftables takes no comments on tables, chains
        and sets (before 0.9.8).
        """
        if not self._plain:
            try:
                return work(True)
            except KernelRefused as error:
                if "syntax error" not in error.message:
                    raise
                self._plain = True
        return work(False)

    def remove(self) -> None:
        """Delete the tables with all in them; missing is fine. *Equivalent to:* ``nft delete table
        inet weft`` …
        """
        # "add" first, so that missing is fine with any version.
        self._connection.run("".join(f"add table {table}\ndelete table {table}\n" for table in self._tables.names))
        for table in self._tables.beside:
            with suppress(KernelRefused):  # missing, or another process's, which deletes it
                self._connection.run(f"delete table {table}\n")

    # Elements

    def add(self, elements: Iterable[Element]) -> None:
        """Add all or none; see ``kernel.Ruleset``. ``create`` and not ``add``: an existing key is
        refused.
        """
        wanted = self._keyed(elements)
        absent = dict(wanted)
        for _ in range(_ATTEMPTS):
            if not absent:
                return
            try:
                self._create(absent.values())
                return
            except Exists:
                there = self._there(wanted)
                for key, element in wanted.items():
                    if key in there and not _same(element, there[key]):
                        raise conflict(element, there[key]) from None
                absent = {key: element for key, element in wanted.items() if key not in there}
            except Missing as error:
                raise Missing(
                    f"nftables lacks one of {', '.join(sorted({key[0] for key in absent}))}",
                    hint="install the rules",
                ) from error
        if absent:
            raise Busy("others keep changing the same nftables elements", hint="try again")

    def delete(self, elements: Iterable[Element]) -> None:
        """Delete those that bear the same mark; one look-up of all keys, then one transaction."""
        wanted = self._keyed(elements, missing_ok=True)
        for _ in range(_ATTEMPTS):
            with suppress(Missing):  # another process deleted one meanwhile: look again
                if all(writable(self._shapes[collection]) for collection, _ in wanted):
                    self._delete(wanted.values())
                else:
                    there = self._there(wanted)
                    mine = [one for key, one in wanted.items() if _owned(one, there.get(key))]
                    if mine:
                        self._connection.run(commands("delete", [(self._shapes[one.collection], one) for one in mine]))
                return
        raise Busy("others keep changing the same nftables elements", hint="try again")

    def existing(self, elements: Iterable[Element]) -> tuple[Element, ...]:
        """The elements with the keys of the given ones. *Equivalent to:* ``nft get element inet weft …``."""
        return tuple(self._there(self._keyed(elements, missing_ok=True)).values())

    def at(self, collection: str, key: tuple[Scalar, ...]) -> Element | None:
        """The element with a key. *Equivalent to:* ``nft get element inet weft …``."""
        shape = self.shape(collection)
        if shape is None:
            raise Missing(f"weft's tables have no set or map {collection}", hint="install the rules")
        rendered(key, shape.key, shape)  # refuses parts of another type
        (found,) = self.ask(lambda nft_socket: look_up(nft_socket, [(shape, key)]))
        return found

    def missing(self, elements: Iterable[Element]) -> tuple[Element, ...]:
        """The elements that do not exist with the same data and mark."""
        given = tuple(elements)
        wanted = self._keyed(given, missing_ok=True)
        single = {place: one for place, one in wanted.items() if not is_plain(self._shapes[place[0]])}
        sought = [(self._shapes[place[0]], one) for place, one in single.items()]
        are = self.ask(lambda nft_socket: same(nft_socket, sought, _same)) if sought else []
        found = {place for place, one in zip(single, are, strict=True) if one}
        there = self._there({place: one for place, one in wanted.items() if place not in single})
        found.update(place for place, one in there.items() if _same(wanted[place], one))
        if len(found) == len(wanted) and all(one.collection in self._shapes for one in given):
            return ()
        return tuple(element for element in given if self._key(element) not in found)

    def elements(self, collection: str) -> tuple[Element, ...]:
        """All elements of a set or map; raises Missing. *Equivalent to:* ``nft list set inet weft
        NAME``.
        """
        shape = self.shape(collection)
        if shape is None:
            raise Missing(f"weft's tables have no set or map {collection!r}")
        entries = self.ask(lambda nft_socket: dump(nft_socket, shape))
        return tuple(marked(entry, shape) for entry in entries)

    def mark_digests(self, collection: str) -> frozenset[str]:
        """The digests of the elements' marks, which the bytes of the list are searched for; raises Missing."""
        shape = self.shape(collection)
        if shape is None:
            raise Missing(f"weft's tables have no set or map {collection!r}")
        return mark_digests(self.ask(lambda nft_socket: raw_lists(nft_socket, shape)))

    def exceeded(self, collection: str) -> tuple[tuple[Element, int], ...]:
        """The elements of a set with limits, and the packets that exceeded each; one dump."""
        shape = self.shape(collection)
        if shape is None:
            raise Missing(f"weft's tables have no set {collection!r}")
        entries = self.ask(lambda nft_socket: dump(nft_socket, shape))
        return tuple((marked(entry, shape), entry.exceeded) for entry in entries)

    def drops(self) -> dict[tuple[str, str, str], int]:
        """See ``kernel.Ruleset``."""
        from weft.kernel.nft.drops import drops  # for metrics only

        return self.ask(drops)

    def collections(self) -> tuple[str, ...]:
        """The names of the sets and maps, () where the tables are missing."""
        return tuple(self._declared())

    def once(self) -> Ruleset:
        """See ``kernel.Ruleset``."""
        from weft.kernel.nft.once import NftOnce  # for a look at all attachments only

        return cast(Ruleset, NftOnce(self))

    # How

    def _keyed(self, elements: Iterable[Element], missing_ok: bool = False) -> dict[tuple[str, str], Element]:
        """The elements by collection and key, each checked before anything is run; twins become
        one.
        """
        keyed: dict[tuple[str, str], Element] = {}
        for element in [checked(element) for element in elements]:
            shape = self.shape(element.collection)
            if shape is None:
                if missing_ok:
                    continue
                raise Missing(f"weft's tables have no set or map {element.collection}", hint="install the rules")
            rendered(element.data, shape.data, shape)
            checked_limit(shape.limit, element.limit, shape.name)
            twin = keyed.setdefault((element.collection, rendered(element.key, shape.key, shape)), element)
            if twin is not element and not _same(element, twin):
                raise conflict(element, twin)
        return keyed

    def _key(self, element: Element) -> tuple[str, str] | None:
        shape = self._shapes.get(element.collection)
        return None if shape is None else (element.collection, rendered(element.key, shape.key, shape))

    def shape(self, collection: str) -> Shape | None:
        """The types of a set or map: from the tables this process installed or verified, else from
        the kernel.
        """
        if collection not in self._shapes:
            self._shapes = {**self._declared(), **self._shapes}
        return self._shapes.get(collection)

    def _create(self, elements: Iterable[Element]) -> None:
        items = [(self._shapes[element.collection], element) for element in elements]
        if all(writable(shape) for shape, _ in items):
            self._change(creations(items))
        else:
            self._connection.run(commands("create", items))

    def _delete(self, elements: Iterable[Element]) -> None:
        """Look for all, then delete those that bear their mark."""
        shaped = [(self._shapes[element.collection], element) for element in elements]
        sought = [(shape, keys(shape, element.key), element.mark) for shape, element in shaped]
        bear = self.ask(lambda nft_socket: owned(nft_socket, sought)) if sought else []
        mine = [(shape, key) for (shape, key, _), one in zip(sought, bear, strict=True) if one]
        if mine:
            self._change(deletions(mine))

    def _change(self, changes: list[Change]) -> None:
        with self._verified.lock:
            number = self.ask(lambda nft_socket: self._transact(nft_socket, changes))
        if number:
            raise nft_error(number)

    def _transact(self, nft_socket: NftSocket, changes: list[Change]) -> int:
        """Verified rules stay so where no other transaction came between: else the kernel refuses
        (ERESTART).
        """
        if self._verified.found is not None:
            base, generation = self._verified.found
            number = nft_socket.transact(changes, generation)
            if number != ERESTART:
                self._verified.found = base, generation if number else generation % _LAST_GENERATION + 1
                return number
            self._verified.found = None
        return nft_socket.transact(changes)

    def _there(self, keyed: dict[tuple[str, str], Element]) -> dict[tuple[str, str], Element]:
        """The existing elements at the keys (in a set of intervals: that cover them)."""
        single = [(place, self._shapes[place[0]]) for place in keyed]
        plain = {shape.name for _, shape in single if is_plain(shape)}
        sought = [(place, shape) for place, shape in single if shape.name not in plain]
        wanted = [(shape, keyed[place].key) for place, shape in sought]
        answers = self.ask(lambda nft_socket: look_up(nft_socket, wanted)) if wanted else []
        found = {place: one for (place, _), one in zip(sought, answers, strict=True) if one is not None}
        for name in plain:  # such a set holds beginnings and ends, not keys
            there = {normal(one.key): one for one in self.elements(name)}
            places = [place for place in keyed if place[0] == name and normal(keyed[place].key) in there]
            found.update({place: there[normal(keyed[place].key)] for place in places})
        return found

    def _declared(self) -> dict[str, Shape]:
        """The existing sets and maps; tables of an earlier release are upgraded first."""
        tables = self._tables
        verified = self._verified.found
        if verified is not None and verified == (tables.digest, self.ask(NftSocket.generation)):
            return tables.shapes  # neither more nor fewer
        found = self.ask(lambda nft_socket: declared(nft_socket, tables.names))
        if outdated(tables, found):
            self.install(tables)
            found = self.ask(lambda nft_socket: declared(nft_socket, tables.names))
        wanted = tables.shapes
        return {
            name: wanted[name] if name in wanted and wanted[name].padded == one else one for name, one in found.items()
        }

    def _survey(self) -> Survey:
        return self.ask(lambda nft_socket: survey(nft_socket, self._tables.names, _STAMP))


def _fresh_listings(tables: Tables, comments: bool, make: Callable[[], Runner]) -> dict[str, str]:
    """How this nftables lists the tables where nothing else is; one listing a run, since 1.1.7
    prints only the last.
    """
    fresh = make()
    text = tables.text if comments else tables.plain
    try:
        answers = {}
        for name, commands in (("", text), *((name, f"list table {name}\n") for name in tables.names)):
            answers[name], errors = fresh.run(commands, terse=True)
            if errors:
                refuse(errors)
        return answers
    finally:
        fresh.close()


def _stamp(tables: Tables, found: Survey) -> str:
    """What ties the tables to what the kernel made of them."""
    return f"base {tables.digest} made {found.fingerprint}"


def _stamping(tables: Tables, found: Survey, comments: bool) -> str:
    """The stamp is the comment of a rule in a chain that no packet meets: a table's comment cannot
    change.
    """
    chain = f"{tables.names[0]} {_STAMP}"
    why = f' {{ comment "{_STAMP_COMMENT}"; }}' if comments else ""
    return f'add chain {chain}{why}\nflush chain {chain}\nadd rule {chain} return comment "{_stamp(tables, found)}"\n'


def _owned(element: Element, there: Element | None) -> bool:
    return there is not None and there.mark == element.mark and normal(there.key) == normal(element.key)


def _same(element: Element, there: Element) -> bool:
    """Whether both are one element, however its single addresses are written."""
    return _owned(element, there) and (normal(there.data), there.limit) == (normal(element.data), element.limit)
