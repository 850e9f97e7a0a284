"""The tables of the previous release, elements in every set, upgraded: none is lost, and nothing
opens meanwhile.
"""

from __future__ import annotations

import contextlib
import itertools
import re
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path

import pytest
from netns.rules.test_traffic import BRIDGE, INNER, PORT, SERVER, Site
from unit.nft.test_contract import DYNAMIC, MINE, ONE_OF_EACH, OTHERS
from unit.nft.test_contract import PORT as PUBLISHED

from cni_plugin.dataplane.tables import TABLES
from discovery.balancer import rules as balancer
from discovery.balancer.settings import RANGES
from lab import namespaces
from lab.host import Host
from lab.waiting import until
from weft.kernel.nft import survey
from weft.kernel.nft.batch import ElementSocket
from weft.kernel.nft.library import Answer, Library
from weft.kernel.nft.ruleset import Nft
from weft.kernel.nft.socket import NftSocket
from weft.kernel.nft.text import commands
from weft.kernel.schema import Tables
from weft.kernel.values import Element

RELEASE = Path(__file__).parent / "previous_release"
FORMER = {name: old for old, name in TABLES.renamed.items()}
DECLARED = set(re.findall(r"^\s*(?:add )?(?:set|map) (?:\w+ \w+ )?(\w+)", (RELEASE / "weft.nft").read_text(), re.M))
"""The sets and maps that the previous release had, by the names of that release."""
FORMER_ELEMENTS = tuple(one for one in ONE_OF_EACH if FORMER.get(one.collection, one.collection) in DECLARED)


def load(host: Host, text: str) -> None:
    host.run("nft", "-f", "-", stdin=text)


def formerly(element: Element) -> Element:
    return replace(element, collection=FORMER.get(element.collection, element.collection))


def previous(host: Host, *elements: Element, first: str = "") -> None:
    """What the previous release leaves: its tables and stamp, and these elements under the names
    they had.
    """
    shaped = [(TABLES.shapes[one.collection], formerly(one)) for one in elements]
    filled = commands("create", [(replace(shape, name=one.collection), one) for shape, one in shaped])
    stamp = 'add chain inet weft stamp\nadd rule inet weft stamp return comment "base 12 made 34"\n'
    load(host, first + (RELEASE / "weft.nft").read_text() + filled + stamp)


def declared(host: Host, what: str, table: str) -> set[str]:
    """The names of the sets, maps or chains that nft lists in a table."""
    listed = host.run("nft", "-t", "list", "table", *table.split()).stdout
    return {line.split()[1] for line in listed.splitlines() if line.strip().startswith(f"{what} ")}


@pytest.fixture
def nft(host: Host) -> Iterator[Nft]:
    made = Nft(TABLES)
    yield made
    made.close()


VERBS: dict[str, Callable[[Nft], object]] = {
    "install": lambda nft: nft.install(TABLES),
    "lacks": lambda nft: nft.lacks(TABLES),
    "collections": lambda nft: nft.collections(),
    "elements": lambda nft: nft.elements("intra_link"),
    "missing": lambda nft: nft.missing(FORMER_ELEMENTS),
    "delete": lambda nft: nft.delete([replace(PUBLISHED, mark=OTHERS)]),
    "add": lambda nft: nft.add([next(one for one in FORMER_ELEMENTS if one.collection == "intra_link")]),
}
"""Whichever operation of the new release comes first."""


def test_there_is_an_element_for_every_set() -> None:
    assert {one.collection for one in ONE_OF_EACH} == set(TABLES.shapes) - DYNAMIC


@pytest.mark.parametrize("verb", VERBS)
def test_every_element_is_there_under_its_new_name(host: Host, nft: Nft, verb: str) -> None:
    previous(host, *FORMER_ELEMENTS)
    load(host, 'add element inet weft same { "cni1" . "cni1" comment "by hand", "cni2" . "cni2" }')
    VERBS[verb](nft)
    if verb == "delete":  # does not read the other sets if these are known
        nft.collections()
    assert nft.missing(FORMER_ELEMENTS) == ()
    strangers = {one.key for one in nft.elements("intra_link") if not one.mark}
    assert strangers == {("cni1", "cni1"), ("cni2", "cni2")}
    assert 'comment "by hand"' in host.run("nft", "list", "set", "inet", "weft", "intra_link").stdout
    found = [one for name in nft.collections() for one in nft.elements(name) if one.mark]
    assert sorted(found, key=repr) == sorted(FORMER_ELEMENTS, key=repr)
    assert nft.lacks(TABLES) is None
    for table in TABLES.tables:
        sets = declared(host, "set", str(table)) | declared(host, "map", str(table))
        assert sets == {one.name for one in table.sets}
        assert declared(host, "chain", str(table)) - {"stamp"} == {one.name for one in table.chains}
    nft.delete(FORMER_ELEMENTS)
    assert nft.missing(FORMER_ELEMENTS) == FORMER_ELEMENTS


def test_delete_as_the_first_operation(host: Host, nft: Nft) -> None:
    """DEL by the new release on a host where only the previous one has run."""
    previous(host, *FORMER_ELEMENTS)
    nft.delete(FORMER_ELEMENTS)
    assert nft.missing(FORMER_ELEMENTS) == FORMER_ELEMENTS
    assert not any(nft.elements(name) for name in nft.collections())


def table_comments(host: Host) -> list[str]:
    """The comments of tables, which ``nft list ruleset`` prints on the first line within them."""
    lines = host.run("nft", "-t", "list", "ruleset").stdout.splitlines()
    return [after.strip() for line, after in itertools.pairwise(lines) if line.startswith("table ")]


def test_new_tables_and_the_stamp_have_comments(host: Host, nft: Nft) -> None:
    nft.install(TABLES)
    assert table_comments(host) == [f'comment "{table.why}"' for table in TABLES.tables]
    assert "no packet comes here" in host.run("nft", "list", "chain", "inet", "weft", "stamp").stdout
    nft.install(TABLES)
    assert nft.lacks(TABLES) is None


def test_a_table_with_another_comment_is_upgraded(host: Host, nft: Nft) -> None:
    """The kernel does not change a table's comment: the former one stays and is no difference."""
    previous(host, *FORMER_ELEMENTS, first='add table inet weft { comment "former"; }\n')
    nft.install(TABLES)
    assert nft.missing(FORMER_ELEMENTS) == ()
    assert nft.lacks(TABLES) is None
    assert table_comments(host)[0] == 'comment "former"'
    host.run("nft", "flush", "chain", "inet", "weft", "check_source")
    assert "check_source lacks" in (nft.lacks(TABLES) or "")


def test_tables_of_both_releases_become_one(host: Host, nft: Nft) -> None:
    nft.install(TABLES)
    shared, new, old = (Element("intra_link", (f"cni{n}", f"cni{n}"), (), MINE) for n in range(3))
    nft.add([shared, new])
    load(host, "add set inet weft same { type ifname . ifname; }")
    load(host, f'add element inet weft same {{ "cni0" . "cni0" comment "{OTHERS}", "cni2" . "cni2" comment "{MINE}" }}')
    assert nft.lacks(TABLES) is None
    assert set(nft.elements("intra_link")) == {shared, new, old}


@pytest.mark.parametrize("tables", [TABLES, balancer.tables(RANGES)], ids=["containers", "services"])
def test_the_kernel_has_the_types_that_are_declared(host: Host, tables: Tables) -> None:
    made = Nft(tables)
    made.install(tables)
    with contextlib.closing(NftSocket()) as nft_socket:
        there = survey.declared(nft_socket, tables.names)
    assert there == {name: shape.padded for name, shape in tables.shapes.items()}
    made.close()


def test_many_upgrade_at_once(host: Host) -> None:
    previous(host, *FORMER_ELEMENTS)
    errors: list[BaseException] = []

    def upgrade(number: int) -> None:
        own = Nft(TABLES)
        try:
            mine = replace(PUBLISHED, key=("tcp", 9000 + number), mark=f"weft:{number:016x}")
            if number % 2:
                own.install(TABLES)
            own.add([mine])
            assert own.missing([mine, *FORMER_ELEMENTS]) == ()
        except BaseException as error:
            errors.append(error)
        own.close()

    threads = [threading.Thread(target=upgrade, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []


class LastListing(Library):
    """nftables 1.1.7: of several list commands in one run only the last one's output is printed."""

    def run(self, commands: str, *, terse: bool = False) -> Answer:
        output, errors = super().run(commands, terse=terse)
        start = output.rfind("table ") if commands.count("list ") > 1 else 0
        return output[max(start, 0) :], errors


class NoListing(Library):
    """Each list command succeeds and prints nothing."""

    def run(self, commands: str, *, terse: bool = False) -> Answer:
        return "", super().run(commands, terse=terse)[1]


class WithoutComments(Library):
    """nftables before 0.9.8, which knows no comments of tables, sets and chains."""

    def run(self, commands: str, *, terse: bool = False) -> Answer:
        if re.search(r"(^\s+|\{ )comment ", commands, re.MULTILINE):
            return "", "Error: syntax error, unexpected comment"
        return super().run(commands, terse=terse)


def test_an_older_nftables_gets_no_comments(host: Host) -> None:
    previous(host, *FORMER_ELEMENTS)
    made, other = Nft(TABLES, WithoutComments), Nft(TABLES, WithoutComments)
    made.install(TABLES)
    assert made.missing(FORMER_ELEMENTS) == ()
    assert made.lacks(TABLES) is None and other.lacks(TABLES) is None
    host.run("nft", "flush", "chain", "inet", "weft", "check_source")
    assert "check_source lacks" in (other.lacks(TABLES) or "")
    for one in (made, other):
        one.close()


@pytest.mark.parametrize("make", [LastListing, NoListing])
def test_empty_nft_output_is_not_taken_for_an_empty_table(host: Host, make: type[Library]) -> None:
    first, later = Nft(TABLES, make), Nft(TABLES, make)
    first.install(TABLES)
    first.add(FORMER_ELEMENTS)
    assert later.missing(FORMER_ELEMENTS) == ()
    assert set(later.collections()) == set(TABLES.shapes)
    later.delete(FORMER_ELEMENTS)
    assert first.missing(FORMER_ELEMENTS) == FORMER_ELEMENTS
    assert not any(first.elements(name) for name in first.collections())
    # Where two listings are compared, an empty one is an error and not a match.
    host.run("nft", "flush", "chain", "inet", "weft", "check_source")
    assert later.lacks(TABLES) is not None
    later.install(TABLES)
    assert later.lacks(TABLES) is None
    for made in (first, later):
        made.close()


def test_the_balancers_table_keeps_its_services(host: Host) -> None:
    load(host, (RELEASE / "weft-services.nft").read_text())
    load(
        host,
        """
        add element inet weft-services slots4 { 10.79.0.10 . tcp . 80 . 0 : 10.1.0.5 . 8080 }
        add element inet weft-services services4 { 10.79.0.10 . tcp . 80 : goto turn3_12 }
        add element inet weft-services services4 { 10.79.0.11 . tcp . 80 : goto random61 }
        add element inet weft-services services6 { fd57::10 . udp . 53 : goto source251 }
        add element inet weft-services ports4 { tcp . 30080 : goto sticky60_61 }
        add element inet weft-services virtuals4 { 10.79.0.10, 10.79.0.11 }
        add element inet weft-services virtuals6 { fd57::10 }
        add element inet weft-services near4 { 10.1.0.5 . tcp . 8080 }
        add element inet weft-services far6 { fd57::5 . udp . 53 }
        add element inet weft-services selves4 { 10.1.0.5 . 10.1.0.5 }
        add element inet weft-services outside { "eth0" }
        add element inet weft-services turning { "cni0" . "cni0" }
        add element inet weft-services ranges4 { 10.99.0.0/16 }
        add element inet weft-services clients4_60 { 10.1.0.9 . 10.79.0.10 timeout 60s : 0x3 }
        add element inet weft-services sticky_slots6 { fd57::10 . tcp . 80 . 0x2 : fd57::5 . 8080 }
        add element inet weft-services port_slots4 { tcp . 30080 . 7 : 10.1.0.5 . 8080 }
        """,
    )
    wanted = balancer.tables(RANGES)
    made, elements = Nft(wanted), ElementSocket(balancer.TABLE)
    unchanged = ("slots4", "ports4", "sticky_slots6", "port_slots4", "clients4_60")
    before = [elements.read(name) for name in unchanged]
    assert all(before)
    made.install(wanted)
    assert made.lacks(wanted) is None
    assert sorted(chain for _, chain in elements.read("services4")) == ["random61", "round_robin3_12"]
    assert [chain for _, chain in elements.read("services6")] == ["source_hash251"]
    assert [elements.read(name) for name in unchanged] == before
    counts = {name: len(elements.read(name)) for name in wanted.sets if not name.startswith(("services", "clients"))}
    assert {name for name, count in counts.items() if count} == {
        "slots4", "ports4", "sticky_slots6", "port_slots4", "virtual_ips4", "virtual_ips6", "local_backends4",
        "remote_backends6", "hairpin_self4",
        "outside_links", "hairpin_links", "virtual_ranges4", "virtual_ranges6",
    }  # fmt: skip
    assert counts["virtual_ips4"] == 2
    assert [str(one.key[0]) for one in made.elements("virtual_ranges4")] == ["10.79.0.0/16"]
    assert declared(host, "chain", balancer.TABLE) - {"stamp"} == {one.name for one in wanted.tables[0].chains}
    assert made.lacks(balancer.tables(RANGES[:1])) is not None
    made.close()
    elements.close()


class Prober:
    """Connects again and again from a namespace, or sends datagrams, each from a port of its own,
    until it is ended.
    """

    def __init__(self, client: str, probe: Callable[[], bool]) -> None:
        self.answered = self.refused = 0
        self._client, self._probe, self._ending = client, probe, threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        namespaces.enter(namespaces.open_namespace(f"{namespaces.FOLDER}/{self._client}"))
        while not self._ending.is_set():
            if self._probe():
                self.answered += 1
            else:
                self.refused += 1

    def end(self) -> None:
        self._ending.set()
        self._thread.join()


def connects(address: str, port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection((address, port), 3) as connection:
        connection.sendall(b"?")
        return bool(connection.recv(100))
    return False


def sends(address: str, port: int) -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender, contextlib.suppress(OSError):
        sender.sendto(b"?", (address, port))
    return True


def test_no_port_vanishes_and_no_network_opens_while_the_rules_are_upgraded(host: Host) -> None:
    """Probed continuously while the rulesets of both releases replace each other."""
    nft = Nft(TABLES)
    site = Site(host, nft)
    host.serve_tcp("server", INNER)
    hidden = host.serve_udp("server", INNER + 1)
    nft.remove()
    closed = Element("closed_links", (BRIDGE,), (), MINE)
    isolated = Element("closed_or_routed_links", (BRIDGE,), (), MINE)
    port = Element("ports4", ("tcp", PORT), (ip_address(SERVER), INNER), MINE)
    kept = (closed, isolated, port, Element("hairpin4", (BRIDGE, ip_address(SERVER)), (), MINE))
    previous(host, *kept)
    assert host.fetch("outside", site.lan.host, PORT) == site.lan.outside
    outside = Prober("outside", lambda: connects(site.lan.host, PORT))
    elsewhere = Prober("elsewhere", lambda: sends(SERVER, INNER + 1))
    try:
        for round_ in range(4):
            before = outside.answered, elsewhere.answered
            until(lambda before=before: outside.answered > before[0] + 20 and elsewhere.answered > before[1] + 200)  # type: ignore[misc]
            nft.install(TABLES)
            assert nft.missing(kept) == ()
            before = outside.answered, elsewhere.answered
            until(lambda before=before: outside.answered > before[0] + 20 and elsewhere.answered > before[1] + 200)  # type: ignore[misc]
            if round_ < 3:
                previous(host, *kept, first="".join(f"delete table {name}\n" for name in TABLES.names))
    finally:
        outside.end()
        elsewhere.end()
    assert outside.refused == 0
    assert hidden.clients == []
    # Control: without the rule the probe arrives.
    nft.delete([closed])
    assert host.fetch("elsewhere", SERVER, INNER + 1, "udp") == "10.2.0.5"
    nft.close()
