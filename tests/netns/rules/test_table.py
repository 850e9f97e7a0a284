"""Tables in the kernel: changes by other programs, foreign tables, namespaces, cost at scale."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any

import pytest
from unit.nft.test_contract import MINE, ONE_OF_EACH, OTHERS, PORT, ports, with_rule

from cni_plugin.dataplane.tables import TABLES
from lab import namespaces
from lab.host import Host
from weft.errors import Conflict, Missing
from weft.identity import mark_digest
from weft.kernel.nft import ruleset
from weft.kernel.nft.library import Library, Program
from weft.kernel.nft.ruleset import Nft
from weft.kernel.nft.socket import NftSocket
from weft.kernel.nft.text import commands
from weft.kernel.schema import Chain, Tables
from weft.kernel.values import Element


@pytest.fixture
def nft(host: Host) -> Iterator[Nft]:
    made = Nft(TABLES)
    made.install(TABLES)
    yield made
    made.close()


def nft_program(host: Host, *commands: str) -> str:
    return host.run("nft", "-f", "-", stdin="\n".join(commands)).stdout


OTHER_TYPE = (
    "flush chain inet weft dnat_published\ndelete map inet weft ports4\n"
    "add map inet weft ports4 { type inet_proto . inet_service : ipv4_addr . inet_service; flags interval; }"
)
NO_MASQUERADING = "flush chain inet weft nat_postrouting\nflush chain inet weft masquerade_outgoing"
TAMPERING = [
    ("delete table inet weft", "the table inet weft is missing"),
    ("flush table inet weft", "the chain limit_dns lacks"),
    ("delete table bridge weft", "the table bridge weft is missing"),
    ("flush chain bridge weft check_other", "in the table bridge weft, the chain check_other lacks"),
    ("add table bridge weft { flags dormant; }", "in the table bridge weft, the table has “flags dormant”"),
    ("add set bridge weft extra { type mark; }", "in the table bridge weft, there is a set extra"),
    ("flush chain inet weft dnat_published", "the chain dnat_published lacks “dnat ip to ip daddr"),
    ("delete chain inet weft raw_prerouting", "the chain raw_prerouting is missing"),
    (
        NO_MASQUERADING,
        "the chain masquerade_outgoing lacks",
    ),
    ("insert rule inet weft nat_prerouting accept", "the chain nat_prerouting has “accept”"),
    ("add chain inet weft nat_prerouting { policy drop; }", "the chain nat_prerouting lacks “type nat hook prerouting"),
    ("add chain inet weft extra", "there is a chain extra that is not weft's"),
    ("add set inet weft extra { type mark; }", "there is a set extra that is not weft's"),
    ("add table inet weft { flags dormant; }", "the table has “flags dormant”"),
    (
        f"{NO_MASQUERADING}\nflush chain inet weft filter_forward\ndelete set inet weft masquerade4",
        "the set masquerade4 is missing",
    ),
    (
        OTHER_TYPE,
        "the map ports4 has “flags interval”",
    ),
]


@pytest.mark.parametrize(("commands", "words"), TAMPERING, ids=[words for _, words in TAMPERING])
def test_manual_change_is_detected_named_and_repaired(host: Host, nft: Nft, commands: str, words: str) -> None:
    before = host.run("nft", "list", "ruleset").stdout
    nft_program(host, *commands.splitlines())
    assert words in (nft.lacks(TABLES) or "")
    other = Nft(TABLES, Program)  # as another process, through the nft program
    assert words in (other.lacks(TABLES) or "")
    other.install(TABLES)
    assert nft.lacks(TABLES) is None
    # A set that was created again is listed last; otherwise the ruleset is as before.
    assert sorted(host.run("nft", "list", "ruleset").stdout.splitlines()) == sorted(before.splitlines())
    other.close()


def test_replaced_rule_is_detected(host: Host, nft: Nft) -> None:
    listed = host.run("nft", "-a", "list", "chain", "inet", "weft", "raw_prerouting").stdout
    handle = next(line for line in listed.splitlines() if "saddr" in line).rpartition(" ")[2]
    rule = f"inet weft raw_prerouting handle {handle} iifname != lo ip saddr 127.0.0.0/8 accept"
    nft_program(host, f"replace rule {rule}")
    assert "lacks “ip saddr 127.0.0.0/8 counter drop comment" in (nft.lacks(TABLES) or "")


def with_priority(name: str, priority: str) -> Tables:
    """The tables with the priority of one chain changed."""

    def changed(chain: Chain) -> Chain:
        return chain._replace(priority=priority) if chain.name == name else chain

    return Tables(tuple(table._replace(chains=tuple(map(changed, table.chains))) for table in TABLES.tables))


def test_changed_base_rules_are_detected(nft: Nft) -> None:
    assert nft.lacks(with_priority("raw_prerouting", "mangle")) is not None
    assert nft.lacks(with_rule(TABLES, "ip daddr 224.0.0.0/4 return", "")) is not None
    assert nft.lacks(TABLES) is None


@pytest.mark.parametrize("stamp", ['return comment "base 12 listed 34"', "", "none"])
def test_mismatching_stamp_costs_one_comparison_and_is_renewed(host: Host, nft: Nft, stamp: str) -> None:
    """A stamp that does not match, as after an update of nftables, costs one full comparison."""
    fine = host.run("nft", "list", "table", "inet", "weft").stdout
    change = {"": "flush chain inet weft stamp", "none": "delete chain inet weft stamp"}
    nft_program(host, change.get(stamp, f"flush chain inet weft stamp\nadd rule inet weft stamp {stamp}"))
    if stamp == "none":
        nft_program(host)
    assert nft.lacks(TABLES) is None
    assert sorted(host.run("nft", "list", "table", "inet", "weft").stdout.split()) == sorted(fine.split())


def test_library_and_program_produce_the_same_tables(host: Host) -> None:
    listings = []
    for make in (Library, Program):
        made = Nft(TABLES, make)
        made.install(TABLES)
        made.add(ONE_OF_EACH)
        listings.append(host.run("nft", "list", "ruleset").stdout)
        assert made.lacks(TABLES) is None
        made.remove()
        made.close()
    assert listings[0] == listings[1]
    assert host.run("nft", "list", "ruleset").stdout == ""


def test_elements_list_as_those_of_the_nft_program(host: Host, nft: Nft) -> None:
    """Elements sent over netlink list exactly as those that the nft program added."""
    nft.add(ONE_OF_EACH)
    ours = host.run("nft", "list", "ruleset").stdout
    assert all(element.mark in ours for element in ONE_OF_EACH)
    nft.delete(ONE_OF_EACH)
    assert not any(nft.elements(name) for name in nft.collections())
    nft_program(host, commands("create", [(TABLES.shapes[one.collection], one) for one in ONE_OF_EACH]))
    assert host.run("nft", "list", "ruleset").stdout == ours
    assert nft.missing(ONE_OF_EACH) == ()
    nft.delete(ONE_OF_EACH)
    assert not any(nft.elements(name) for name in nft.collections())


def test_the_marks_of_all_elements(host: Host, nft: Nft) -> None:
    """They are found in the bytes of the lists, in every kind of set."""
    nft.add(ONE_OF_EACH)
    nft_program(host, 'add element inet weft masquerade4 { 10.1.9.9 comment "of the operator" }')
    for name in nft.collections():
        digests = {mark_digest(each.mark) for each in nft.elements(name)} - {""}
        assert nft.mark_digests(name) == digests, name
    assert {each for name in nft.collections() for each in nft.mark_digests(name)}
    with pytest.raises(Missing):
        nft.mark_digests("none")


def test_interval_set_without_concatenation_goes_through_libnftables(host: Host, nft: Nft) -> None:
    nft_program(host, "add set inet weft spans { type ipv4_addr; flags interval; }")
    span = Element("spans", (ip_network("10.1.0.0/16"),), (), OTHERS)
    nft.add([span])
    assert nft.elements("spans") == (span,)
    with pytest.raises(Conflict):
        nft.add([replace(span, mark=MINE)])
    nft.delete([span])
    assert nft.elements("spans") == ()


def test_only_own_changes_keep_the_generation_verified(host: Host, nft: Nft) -> None:
    """Verified rules are verified again only after another program changed nf_tables."""
    assert nft.lacks(TABLES) is None
    nft.add(ports(500))
    with pytest.raises(Conflict):
        nft.add(ports(1, OTHERS))
    assert nft.known
    nft_program(host, "add table ip other")
    nft.delete(ports(500))
    assert not nft.known
    assert nft.lacks(TABLES) is None
    assert nft.known
    nft_program(host, "flush chain inet weft dnat_published")
    nft.add([PORT])
    assert "ports" in (nft.lacks(TABLES) or "")


def test_processes_that_follow_each_other_keep_what_was_verified(
    host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each Nft is a process: it reads the rules again only after another program's change, or elsewhere."""
    surveys = []
    original = ruleset.survey
    monkeypatch.setattr(ruleset, "survey", lambda *given: surveys.append(given) or original(*given))
    path = tmp_path / "ruleset.verified"

    @contextlib.contextmanager
    def process() -> Iterator[Nft]:
        made = Nft(TABLES, stored=str(path))
        surveys.clear()
        yield made
        made.close()

    with process() as one:
        one.install(TABLES)
        assert one.lacks(TABLES) is None
        one.add([PORT])
    assert path.stat().st_mode & 0o777 == 0o600
    with process() as one:
        assert one.lacks(TABLES) is None and "ports4" in one.collections()
        one.delete([PORT])
        assert one.elements("ports4") == () and not surveys
    kept = path.read_bytes()
    with process() as one:  # of another release
        assert "raw_prerouting" in (one.lacks(with_priority("raw_prerouting", "mangle")) or "")
    for damaged in (b"", kept[:-2], kept.replace(b" ", b"", 1), kept.replace(b"a", b"b"), b"\xff" * 300):
        path.write_bytes(damaged)
        with process() as one:
            assert one.lacks(TABLES) is None and surveys
    nft_program(host, "flush chain inet weft dnat_published")
    with process() as one:
        assert "dnat_published" in (one.lacks(TABLES) or "")

    generation = int(path.read_text().split()[-2])

    def elsewhere() -> None:
        namespaces.unshare()  # as if the inode number, and with it the folder, were the same
        with process() as one:
            while one.ask(NftSocket.generation) < generation:
                one._connection.run("add table ip other\ndelete table ip other\n")
            assert one.lacks(TABLES) == "the table inet weft is missing" and surveys

    with ThreadPoolExecutor() as thread:
        thread.submit(elsewhere).result()


def test_foreign_tables_are_kept(host: Host, nft: Nft) -> None:
    nft_program(
        host,
        "table ip nat { chain DOCKER { counter return; }; chain PREROUTING {",
        "type nat hook prerouting priority dstnat; policy accept; fib daddr type local jump DOCKER; }; }",
    )
    theirs = host.run("nft", "list", "table", "ip", "nat").stdout
    nft.install(TABLES)
    nft.add([PORT])
    nft.remove()
    assert host.run("nft", "list", "table", "ip", "nat").stdout == theirs


def test_tables_stay_in_their_namespace(host: Host) -> None:
    """An engine's threads change namespaces; the rules stay in the host's."""
    for make in (Library, Program):
        made = Nft(TABLES, make)  # no socket is open yet: the first use is on another thread

        def elsewhere(made: Nft = made) -> None:
            os.close(os.open("/proc/thread-self/ns/net", os.O_RDONLY))
            namespaces.unshare()
            made.install(TABLES)
            made.add([PORT])

        thread = threading.Thread(target=elsewhere)
        thread.start()
        thread.join()
        assert "8080" in host.run("nft", "list", "map", "inet", "weft", "ports4").stdout
        made.remove()
        made.close()


def test_concurrent_threads(host: Host, nft: Nft) -> None:
    errors: list[BaseException] = []

    def work(number: int) -> None:
        mine = [replace(port, mark=f"weft:{number:016x}") for port in ports(80)[number * 10 : number * 10 + 10]]
        own = nft if number % 2 else Nft(TABLES)
        try:
            own.install(TABLES)
            own.add(mine)
            assert own.missing(mine) == ()
            assert own.lacks(TABLES) is None
            own.delete(mine[:5])
        except BaseException as error:
            errors.append(error)
        if own is not nft:
            own.close()

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert len(nft.elements("ports4")) == 40


def test_concurrent_claims_of_a_key_have_one_winner(host: Host, nft: Nft) -> None:
    won: list[str] = []

    def claim(mark: str) -> None:
        own = Nft(TABLES)
        try:
            own.add([replace(port, mark=mark) for port in ports(20)])
            won.append(mark)
        except Conflict:
            pass
        own.close()

    threads = [threading.Thread(target=claim, args=(f"weft:{number:016x}",)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1
    assert {element.mark for element in nft.elements("ports4")} == set(won)
    assert len(nft.elements("ports4")) == 20


class MessageCounter:
    """Counts messages to and bytes from nf_tables: a cost that does not depend on the machine's
    load.

    What is measured must not use libnftables, which reads all rules and sets first.
    """

    def __init__(self, nft: Nft) -> None:
        nft.missing(())
        self._nft = nft
        assert nft._connection._nft_socket is not None
        self._socket = nft._connection._nft_socket._socket
        nft._connection._nft_socket._socket = self  # type: ignore[assignment]
        self.said = self.heard = 0

    def send(self, data: bytes) -> int:
        self.said += 1
        return self._socket.send(data)

    def recvmsg(self, *sizes: int) -> tuple[bytes, list[Any], int, Any]:
        answer = self._socket.recvmsg(*sizes)
        self.heard += len(answer[0])
        return answer

    def close(self) -> None:
        self._socket.close()

    def of(self, work: Callable[[], object]) -> tuple[int, int]:
        """The number of messages sent for ``work`` and of bytes received."""
        self.said = self.heard = 0
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(self._nft._connection, "run", lambda *_, **__: pytest.fail("libnftables was used"))
            work()
        return self.said, self.heard


def test_cost_does_not_grow_with_elements(host: Host, nft: Nft) -> None:
    def look() -> None:
        nft._verified.found = None  # forget the verified generation, so that the rules are read
        assert nft.lacks(TABLES) is None

    def once() -> None:
        nft.add([PORT])
        nft.delete([PORT])

    words = MessageCounter(nft)
    works = [look, once, lambda: nft.missing([PORT])]
    empty = [words.of(work) for work in works]
    nft.add(Element("ports4", ("udp", 1000 + number), (ip_address("10.1.0.9"), 53), OTHERS) for number in range(10_000))
    assert len(nft.elements("ports4")) == 10_000
    full = [words.of(work) for work in works]
    for (said, heard), (said_then, heard_then) in zip(full, empty, strict=True):
        assert said == said_then > 0
        assert heard <= heard_then + 100


@pytest.mark.parametrize("number", [1, 200])
def test_elements_are_written_in_one_transaction(host: Host, nft: Nft, number: int) -> None:
    def transactions(work: Callable[[], object]) -> int:
        before = nft.ask(NftSocket.generation)
        work()
        return nft.ask(NftSocket.generation) - before

    words, elements = MessageCounter(nft), ports(number)
    for work in (nft.add, nft.delete):
        assert words.of(lambda work=work: work(elements))[0] <= 2 + number // 50  # type: ignore[misc]
    for work in (nft.add, nft.delete):
        assert transactions(lambda work=work: work(elements)) == 1  # type: ignore[misc]
    assert nft.elements("ports4") == ()


def test_no_process_is_started(host: Host, nft: Nft) -> None:
    """The kernel counts all processes and threads; the full comparison's thread is not used."""
    import resource

    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    nft.install(TABLES)
    assert nft.lacks(TABLES) is None
    nft.add(ONE_OF_EACH)
    assert nft.missing(ONE_OF_EACH) == ()
    nft.delete(ONE_OF_EACH)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert (after.ru_minflt, after.ru_utime, after.ru_stime) == (before.ru_minflt, before.ru_utime, before.ru_stime)
