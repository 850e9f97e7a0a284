"""weft's tables of nftables rules, ``inet weft`` and ``bridge weft``, through libnftables in this process.

The rules never change with attachments; what an attachment adds are elements of sets and maps, each with the
mark of its owner as its comment. Commands are made from typed values alone (``nft_text``), and all that one
call asks for goes to the kernel as one transaction: elements by messages of our own (``nft_elements``), a fifth of the
time, the rest by the library. Sources: nft(8), libnftables(3).
"""

from __future__ import annotations

import os
import re
from _thread import allocate_lock
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import lru_cache
from typing import NoReturn, TypeVar

from weft.errors import Busy, Exists, KernelLacks, KernelRefused, Missing
from weft.identity import digest
from weft.kernel.interface import Element
from weft.kernel.nft.elements import creations, deletions, writable
from weft.kernel.nft.generation import Sound
from weft.kernel.nft.library import Answer, Runner, enter_namespace, leave_namespace, runner
from weft.kernel.nft.lookup import keys, look_up, owned
from weft.kernel.nft.socket import ERESTART, Change, NftSocket, refusal
from weft.kernel.nft.survey import Survey, survey
from weft.kernel.nft.text import Shape, checked, commands, conflict, elements_in, normal, rendered, shapes

T = TypeVar("T")

TABLES = ("inet weft", "bridge weft")
"""The first is about packets, the second about frames between the ports of a bridge."""
_STAMP = "stamp"
_STAMP_CHAIN = re.compile(r'\s*chain stamp \{\s*(?:return comment "([^"]*)"\s*)?\}')
_FAMILIES = tuple(table.split()[0] for table in TABLES)
_ATTEMPTS = 5  # of a transaction that another process's came before
_LAST_GENERATION = 0xFFFFFFFF  # after which the kernel counts from 1 again
_INTERRUPTED = "Interrupted system call"  # the rules changed while nftables read them, before it wrote
_ERRORS: tuple[tuple[str, type[KernelRefused], str], ...] = (
    ("No such file or directory", Missing, ""),
    ("File exists", Exists, ""),
    ("Operation not permitted", KernelRefused, "it takes CAP_NET_ADMIN: run weft as root"),
    ("Operation not supported", KernelLacks, "the kernel lacks an nftables module"),
    ("Protocol not supported", KernelLacks, "the kernel lacks an nftables module"),
)


class Nft:
    """The rules of the network namespace that the constructor's thread is in; usable from any thread.

    Nothing is loaded before the first verb: most calls of a runtime need no rules. ``make`` chooses how
    commands are run (the library, else the ``nft`` program), ``sound`` who shares what is known of the rules.
    """

    def __init__(self, make: Callable[[], Runner] = runner, sound: Sound | None = None) -> None:
        self._make = make
        self._sound = sound or Sound()
        self._namespace = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        self._lock = allocate_lock()
        self._runner: Runner | None = None
        self._nft_socket: NftSocket | None = None
        self._shapes: dict[str, Shape] = {}

    def close(self) -> None:
        """Give back the library's memory and sockets; a second call does nothing."""
        with self._lock:
            if self._runner is not None:
                self._runner.close()
                self._runner = None
            if self._nft_socket is not None:
                self._nft_socket.close()
                self._nft_socket = None
            if self._namespace >= 0:
                os.close(self._namespace)
                self._namespace = -1

    # The base rules

    @property
    def known(self) -> bool:
        """Whether the base was looked at, and nobody else was seen to change any rules since."""
        return self._sound.found is not None

    def lacks(self, base: str) -> str | None:
        """What of the base is not as it should be, in a sentence; None if all is.

        One look at the rules, whatever the sets hold, is compared with the stamp that ``install`` left in the
        first table. Only where that differs is the base installed in an empty namespace, and its listing compared with
        this one line by line, to name what differs.
        """
        self._shapes = shapes(base)
        for _ in range(_ATTEMPTS):
            generation, found = self._look(base)
            sentence = None if found is None else self._difference(base, found)
            # Looks before and after somebody's transaction make a whole that never was: look again.
            if sentence is None or self._ask(NftSocket.generation) == generation:
                break
        return sentence

    def _look(self, base: str) -> tuple[int, Survey | None]:
        """The count of transactions and what there is, None where that is the base as it was installed.

        Whoever shares what is known waits meanwhile, and need not look himself.
        """
        with self._sound.turn:
            generation = self._ask(NftSocket.generation)
            if self._sound.found == (_digest(base), generation):
                return generation, None
            found = self._survey()
            if found.missing or _stamp(base, found).encode() not in found.stamp:
                return generation, found
            self._sound.found = _digest(base), generation
            return generation, None

    def _difference(self, base: str, found: Survey) -> str | None:
        if found.missing:
            return f"the table {found.missing[0]} is missing"
        from weft.kernel.nft.listing import blocks, difference  # rarely needed

        try:
            wanted = in_new_namespace(lambda: _fresh_listings(base, self._make))
            there = [_STAMP_CHAIN.sub("", self._do(f"list table {table}\n", terse=True)) for table in TABLES]
        except KernelRefused:
            return "weft's nftables tables are not as they were installed"
        for table, one, other in zip(TABLES, wanted, there, strict=True):
            sentence = difference(blocks(one), blocks(other))
            if sentence is not None:
                return f"in the table {table}, {sentence}"
        with suppress(KernelRefused):
            self._do(_stamping(_stamp(base, found)))
        return None

    def install(self, base: str) -> None:
        """Make the tables be exactly what ``base`` says, in one transaction; what else is in them goes.

        Sets and maps of the same type keep their elements. Raises KernelRefused with nftables' sentence.
        *Equivalent to:* ``nft -f BASE`` after flushing what was there.
        """
        self._shapes = shapes(base)
        for attempt in range(_ATTEMPTS):
            found = self._survey()
            for table in found.dormant:  # a sleeping table cannot wake and change at once
                self._do(f"add table {table}\n")
            empty = "".join(f"add table {table}\nflush table {table}\n" for table in TABLES)
            chains = "".join(f"delete chain {table} {name}\n" for table, name in found.chains)
            script = f"{empty}{chains}{self._unlike(self._shapes)}{base}\n"
            try:
                self._do(script)
                break
            except (Missing, Exists):  # another process's transaction came between
                if attempt == _ATTEMPTS - 1:
                    raise
        found = self._survey()
        if not found.missing:
            self._do(_stamping(_stamp(base, found)))

    def remove(self) -> None:
        """Delete the tables with all in them; missing is fine. *Equivalent to:* ``nft delete table inet weft`` …"""
        # "add" first, so that missing is fine with any version.
        self._do("".join(f"add table {table}\ndelete table {table}\n" for table in TABLES))

    # Elements

    def add(self, elements: Iterable[Element]) -> None:
        """Add all or none; see ``kernel.Ruleset``. ``create`` and not ``add``: a key of another's is refused."""
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
                    hint="install the base rules",
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
                        self._do(commands("delete", [(self._shapes[one.collection], one) for one in mine]))
                return
        raise Busy("others keep changing the same nftables elements", hint="try again")

    def missing(self, elements: Iterable[Element]) -> tuple[Element, ...]:
        """Those of the elements that are not there with the same data and mark."""
        given = tuple(elements)
        wanted = self._keyed(given, missing_ok=True)
        there = self._there(wanted)
        found = {key for key, element in wanted.items() if key in there and _same(element, there[key])}
        return tuple(element for element in given if self._key(element) not in found)

    def elements(self, collection: str) -> tuple[Element, ...]:
        """All elements of a set or map; raises Missing. *Equivalent to:* ``nft list set inet weft NAME``."""
        shape = self._shape(collection)
        if shape is None:
            raise Missing(f"weft's tables have no set or map {collection!r}")
        return elements_in(self._do(f"list {shape.kind} {shape.table} {collection}\n"), shape)

    def collections(self) -> tuple[str, ...]:
        """The names of weft's sets and maps, () where the tables are missing."""
        return tuple(self._declared())

    # How

    def _keyed(self, elements: Iterable[Element], missing_ok: bool = False) -> dict[tuple[str, str], Element]:
        """The elements by collection and key, each checked before anything is run; twins become one."""
        keyed: dict[tuple[str, str], Element] = {}
        for element in [checked(element) for element in elements]:
            shape = self._shape(element.collection)
            if shape is None:
                if missing_ok:
                    continue
                raise Missing(f"weft's tables have no set or map {element.collection}", hint="install the base rules")
            rendered(element.data, shape.data, shape)
            twin = keyed.setdefault((element.collection, rendered(element.key, shape.key, shape)), element)
            if twin is not element and not _same(element, twin):
                raise conflict(element, twin)
        return keyed

    def _key(self, element: Element) -> tuple[str, str] | None:
        shape = self._shapes.get(element.collection)
        return None if shape is None else (element.collection, rendered(element.key, shape.key, shape))

    def _shape(self, collection: str) -> Shape | None:
        """The types of a set or map: from the base this process saw, else from the kernel."""
        if collection not in self._shapes:
            self._shapes = {**self._declared(), **self._shapes}
        return self._shapes.get(collection)

    def _create(self, elements: Iterable[Element]) -> None:
        items = [(self._shapes[element.collection], element) for element in elements]
        if all(writable(shape) for shape, _ in items):
            self._change(creations(items))
        else:
            self._do(commands("create", items))

    def _delete(self, elements: Iterable[Element]) -> None:
        """Look for all, then delete those that bear their mark."""
        shaped = [(self._shapes[element.collection], element) for element in elements]
        sought = [(shape, keys(shape, element.key), element.mark) for shape, element in shaped]
        bear = self._ask(lambda nft_socket: owned(nft_socket, sought)) if sought else []
        mine = [(shape, key) for (shape, key, _), one in zip(sought, bear, strict=True) if one]
        if mine:
            self._change(deletions(mine))

    def _change(self, changes: list[Change]) -> None:
        with self._sound.turn:
            number = self._ask(lambda nft_socket: self._transact(nft_socket, changes))
        if number:
            raise refusal(number)

    def _transact(self, nft_socket: NftSocket, changes: list[Change]) -> int:
        """Rules that were sound stay so where nobody else's transaction came between: else the kernel refuses."""
        if self._sound.found is not None:
            base, generation = self._sound.found
            number = nft_socket.transact(changes, generation)
            if number != ERESTART:
                self._sound.found = base, generation if number else generation % _LAST_GENERATION + 1
                return number
            self._sound.found = None
        return nft_socket.transact(changes)

    def _there(self, keyed: dict[tuple[str, str], Element]) -> dict[tuple[str, str], Element]:
        """What is there under (or, in a set of intervals, over) the keys."""
        single = [(place, self._shapes[place[0]]) for place in keyed]
        plain = {shape.name for _, shape in single if "interval" in shape.flags and len(shape.key) == 1}
        sought = [(place, shape) for place, shape in single if shape.name not in plain]
        wanted = [(shape, keyed[place].key) for place, shape in sought]
        answers = self._ask(lambda nft_socket: look_up(nft_socket, wanted)) if wanted else []
        found = {place: one for (place, _), one in zip(sought, answers, strict=True) if one is not None}
        for name in plain:  # such a set holds beginnings and ends, not keys
            there = {normal(one.key): one for one in self.elements(name)}
            places = [place for place in keyed if place[0] == name and normal(keyed[place].key) in there]
            found.update({place: there[normal(keyed[place].key)] for place in places})
        return found

    def _declared(self) -> dict[str, Shape]:
        """The sets and maps there are. *Equivalent to:* ``nft list sets inet; nft list maps inet`` …, weft's only."""
        commands = "".join(f"list sets {family}\nlist maps {family}\n" for family in _FAMILIES)
        return shapes(self._do(commands, terse=True))

    def _unlike(self, wanted: dict[str, Shape]) -> str:
        """Commands that delete every set or map that is not as wanted."""
        others = [shape for shape in self._declared().values() if wanted.get(shape.name) != shape]
        return "".join(f"delete {shape.kind} {shape.table} {shape.name}\n" for shape in others)

    def _survey(self) -> Survey:
        return self._ask(lambda nft_socket: survey(nft_socket, TABLES, _STAMP))

    def _ask(self, work: Callable[[NftSocket], T]) -> T:
        """Ask the kernel directly, where this object belongs."""

        with self._lock:
            if self._nft_socket is None:
                self._nft_socket = self._at_home(NftSocket)
            try:
                return work(self._nft_socket)
            except BaseException:  # answers may still come: never to the next question
                self._nft_socket.close()
                self._nft_socket = None
                raise

    def _do(self, commands: str, *, terse: bool = False) -> str:
        """Run the commands where this object belongs; raises a KernelRefused with nftables' own sentence."""
        with self._lock:
            for _ in range(_ATTEMPTS):
                output, errors = self._at_home(lambda: self._run(commands, terse))
                if _INTERRUPTED not in errors:
                    break
        if errors:
            _refuse(errors)
        return output

    def _run(self, commands: str, terse: bool) -> Answer:
        if self._runner is None:
            self._runner = self._make()
        return self._runner.run(commands, terse=terse)

    def _at_home(self, work: Callable[[], T]) -> T:
        """Do the work in the namespace this object belongs to, in a thread of its own if this one is elsewhere."""
        if self._namespace < 0:
            raise KernelRefused("these nftables rules are closed")
        here = os.stat("/proc/thread-self/ns/net")
        home = os.fstat(self._namespace)
        if (here.st_dev, here.st_ino) == (home.st_dev, home.st_ino):
            return work()
        return _in_thread(lambda: enter_namespace(self._namespace), work)


def in_new_namespace(work: Callable[[], T]) -> T:
    """Do the work in an empty network namespace that ends with it; this thread stays where it is."""
    return _in_thread(leave_namespace, work)


def _in_thread(move: Callable[[], None], work: Callable[[], T]) -> T:
    """Move a thread of its own to another namespace and do the work there."""
    from threading import Thread  # a millisecond to import, for a rare path

    results: list[T] = []
    failures: list[BaseException] = []

    def run() -> None:
        try:
            move()
            results.append(work())
        except BaseException as error:
            failures.append(error)

    thread = Thread(target=run)
    thread.start()
    thread.join()
    if failures:
        raise failures[0]
    return results[0]


def _fresh_listings(base: str, make: Callable[[], Runner]) -> list[str]:
    """How this nftables lists the base's tables where nothing else is."""
    fresh = make()
    try:
        listings = []
        for commands in (base, *(f"list table {table}\n" for table in TABLES)):
            output, errors = fresh.run(commands, terse=True)
            if errors:
                _refuse(errors)
            listings.append(output)
        return listings[1:]
    finally:
        fresh.close()


@lru_cache(4)
def _digest(base: str) -> str:
    return digest(base)


def _stamp(base: str, found: Survey) -> str:
    """What ties a base to what the kernel made of it."""
    return f"base {_digest(base)} made {found.fingerprint}"


def _stamping(stamp: str) -> str:
    """The stamp is the comment of a rule in a chain that no packet meets: a table's comment cannot change."""
    chain = f"{TABLES[0]} {_STAMP}"
    return f'add chain {chain}\nflush chain {chain}\nadd rule {chain} return comment "{stamp}"\n'


def _owned(element: Element, there: Element | None) -> bool:
    return there is not None and there.mark == element.mark and normal(there.key) == normal(element.key)


def _same(element: Element, there: Element) -> bool:
    """Whether both are one element, however its single addresses are written."""
    return _owned(element, there) and normal(there.data) == normal(element.data)


def _refuse(errors: str) -> NoReturn:
    """Raise what nftables' message says; only its first line, since the others repeat the command."""
    sentence = errors.strip().splitlines()[0].removeprefix("Error: ").removeprefix("Could not process rule: ")
    for text, kind, hint in _ERRORS:
        if text in sentence:
            raise kind(f"nftables: {sentence}", hint=hint)
    raise KernelRefused(f"nftables: {sentence}")
