"""nftables' syntax and netlink attributes, without a kernel."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import replace
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from unit.nft.test_contract import HOSTILE, MINE, ONE_OF_EACH, PORT

from cni_plugin.cli.ruleset import document
from cni_plugin.dataplane import frames, limits, nat, overlay, packets, uplink
from cni_plugin.dataplane.tables import TABLES
from discovery.balancer.rules import tables as balancer_tables
from weft.errors import KernelLacks, KernelRefused, Missing
from weft.identity import attachment_mark
from weft.kernel.fake.rules import FakeRuleset
from weft.kernel.netlink.attributes import attribute, nested, parse
from weft.kernel.netlink.constants import NFTA_SET_ELEM_LIST_ELEMENTS
from weft.kernel.nft.elements import creations
from weft.kernel.nft.library import Runner
from weft.kernel.nft.listing import blocks, difference
from weft.kernel.nft.lookup import element, entries
from weft.kernel.nft.ruleset import Nft
from weft.kernel.nft.text import Entry, checked, copies, rendered
from weft.kernel.schema import Shape
from weft.kernel.values import Element
from weft.types import Attachment

SHAPES = TABLES.shapes


def test_every_set_and_map_has_a_constant_and_is_used_by_a_rule() -> None:
    others = (
        "PORTS",
        "PUBLISHED",
        "LOOPBACK_SOURCE4",
        "LOOPBACK_SOURCE6",
        "PACKET",
        "TABLE",
        "EXPECTED",
        "SAMPLED",
        "EXACT",
        "KEYS",
        "SETS",
        "CHAINS",
        "FORWARD",
        "MAJOR",
        "DOWNLOAD_LINK",
        "DEFAULT",
    )
    constants = [one for each in (packets, frames, limits, nat, overlay, uplink) for one in vars(each).items()]
    names = {value for name, value in constants if name.isupper() and name[0] != "_" and name not in others}
    read = {frames.VLAN_MACHINES4}  # which packets add to, and the agent reads
    assert names - read == {name for name, shape in SHAPES.items() if "dynamic" not in shape.flags}
    asked = names - {uplink.UPLINK_CLASSES}  # which says whose each class is, to weft alone
    assert all(f"@{name}\n" in TABLES.plain or f"@{name} " in TABLES.plain for name in asked)


def test_a_packet_meets_few_chains_and_lookups() -> None:
    """Each base chain and each look-up that no comparison precedes costs a packet 120 to 210 ns.

    Of 64-byte datagrams, 1 % of the rate is 125 ns. A condition on the packet alone costs 20 to 30 ns.
    """
    hooks = Counter((chain.hook, chain.type) for chain in packets.TABLE.chains if chain.hook)
    assert hooks["forward", "filter"] == 1 and hooks["prerouting", "filter"] == 2
    looked_up = {
        chain.name: [found[1] for rule in chain.rules if (found := re.match(r"[io]ifname @(\w+)", rule.text))]
        for table in TABLES.tables
        for chain in table.chains
    }
    assert looked_up["raw_prerouting"] == [packets.SOURCE_CHECKED_LINKS]
    assert looked_up["filter_forward"] == [uplink.UPLINK_LINKS, uplink.UPLINK_LINKS, limits.LIMITED_LINKS]
    # Packets of answered connections meet no more than the scheduler's.
    rules = [rule.text for rule in next(one.rules for one in packets.TABLE.chains if one.name == "filter_forward")]
    assert rules.index("ct state established accept") == 2
    for name in ("raw_prerouting", "filter_forward", "isolation"):
        [chain] = [one for one in packets.TABLE.chains if one.name == name]
        assert not [rule.text for rule in chain.rules if "ip6 " in rule.text], "IPv4 packets would be compared twice"


def test_metadata_services_are_compared_last() -> None:
    """A return from ``block_metadata``, as for DNS, leads out of a chain that went there: no check may follow."""
    [chain] = [one for one in packets.TABLE.chains if one.name == "raw_ipv6"]
    texts = [rule.text for rule in chain.rules]
    assert [text.endswith("goto block_metadata") for text in texts] == [False] * (len(texts) - 1) + [True]
    calls = [
        rule.text for one in packets.TABLE.chains for rule in one.rules if rule.text.endswith("special_destinations")
    ]
    assert len(calls) == 1 and " jump " in calls[0]


def test_types_of_sets_and_maps() -> None:
    assert SHAPES["masquerade4"] == Shape("masquerade4", ("ipv4_addr",))
    assert SHAPES["masquerade_exempt6"] == Shape("masquerade_exempt6", ("ipv6_addr", "ipv6_addr"), (), ("interval",))
    assert SHAPES["ports4_at"].key == ("ipv4_addr", "inet_proto", "inet_service")
    assert {name for name in SHAPES if name.startswith(("ports", "loopback"))} == nat.PORTS
    assert all(f"saddr {one} oifname" in TABLES.text for one in (nat.LOOPBACK_SOURCE4, nat.LOOPBACK_SOURCE6))
    assert SHAPES["ports4_at"].data == ("ipv4_addr", "inet_service")
    assert SHAPES["nd_targets6"] == Shape("nd_targets6", ("ifname", "bits128"), table="bridge weft")


@pytest.mark.parametrize("text", HOSTILE)
@pytest.mark.parametrize("verb", ["add", "delete", "missing"])
def test_nothing_is_run_for_injected_syntax(text: str, verb: str) -> None:
    """Not even the library is loaded."""

    def never() -> Runner:
        raise AssertionError("commands would be run")

    ruleset = Nft(TABLES, never)
    for wrong in (
        replace(PORT, collection=text),
        replace(PORT, mark=f"{MINE}{text}" if text else ""),
        Element("hairpin4", (text, ip_address("10.1.0.5")), (), MINE),
        Element("hairpin4", (ip_address("fe80::1%eth0"),), (), MINE),
        Element("hairpin4", (1.5, b"x"), (), MINE),  # type: ignore[arg-type]
    ):
        with pytest.raises(KernelRefused):
            getattr(ruleset, verb)([PORT, wrong])
    ruleset.close()


class Text(str):
    """A string whose ``__format__`` returns another text."""

    def __format__(self, _: str) -> str:
        return 'lo" }; flush ruleset; #'


def test_subclasses_of_str_are_refused() -> None:
    with pytest.raises(KernelRefused):
        checked(Element("hairpin4", (Text("cni0"), ip_address("10.1.0.5")), (), MINE))


def test_marks_of_attachments_are_accepted() -> None:
    mark = attachment_mark(Attachment("net", "c1", "eth0", "weft"))
    assert checked(replace(PORT, mark=mark)).mark == mark


printable = st.text(st.characters(min_codepoint=1, max_codepoint=0x2FF), max_size=16)


@given(printable)
def test_link_names_are_quoted_or_refused(text: str) -> None:
    shape = SHAPES["hairpin4"]
    try:
        word = rendered((text, ip_address("10.1.0.5")), shape.key, shape).removesuffix(" . 10.1.0.5")
    except KernelRefused:
        return
    assert word == f'"{text}"'
    assert text.isascii() and text.isprintable() and not set(text) & set('"\\* \n')
    known = Element("hairpin4", (text, ip_address("10.1.0.5")), (), MINE)
    assert read_back(known) == [known]


@given(
    st.integers(0, 32).flatmap(lambda bits: st.builds(lambda n: IPv4Network((n >> (32 - bits) << (32 - bits), bits)),
                                                       st.integers(0, 2**32 - 1))),
)  # fmt: skip
def test_subnets_round_trip(subnet: IPv4Network) -> None:
    shape = SHAPES["masquerade_exempt4"]
    (found,) = read_back(Element(shape.name, (subnet, subnet), (), MINE))
    assert [ip_network(part) for part in found.key] == [subnet, subnet]
    assert found.mark == MINE


def test_elements_round_trip_through_netlink_attributes() -> None:
    for known in ONE_OF_EACH:
        shape = SHAPES[known.collection]
        if len(shape.key) > 1 or "interval" not in shape.flags:  # plain intervals are listed as bounds
            assert read_back(known, known) == [known, known]


def test_foreign_elements_have_no_mark() -> None:
    shape = Shape("odd", ("ipv4_addr", "ipv6_addr"), (), ("interval",))
    ends = [("10.0.0.1", "fd00::", "10.0.0.9", "fd00::ffff"), ("10.1.0.1", "::", "10.1.0.1", "f" * 4 + ":ffff" * 7)]
    first, second = entries([b"".join(item(*one, comment="somebody") for one in ends)], shape)
    assert first == Entry(("10.0.0.1-10.0.0.9", ip_network("fd00::/112")), (), "somebody")
    assert element(first, shape).mark == ""
    assert second.key == (ip_address("10.1.0.1"), IPv6Network("::/0"))
    assert copies(shape, [first]) == [
        'add element inet weft odd { 10.0.0.1-10.0.0.9 . fd00::/112 comment "somebody" }\n'
    ]


def test_intervals_are_assembled_from_their_ends() -> None:
    """Each start, and each end + 1 with NFT_SET_ELEM_INTERVAL_END, which the last may lack."""
    shape = Shape("spans", ("ipv4_addr",), (), ("interval",))
    bounds = [
        ("0.0.0.0", True), ("10.0.0.0", False), ("10.1.0.0", True), ("10.0.0.4", False), ("10.0.0.4", True),
        ("255.0.0.0", False),
    ]  # fmt: skip
    found = entries([b"".join(item(one, ends=ends) for one, ends in bounds)], shape)
    networks = ["10.0.0.0/30", "255.0.0.0/8"]
    assert [one.key[0] for one in found] == [ip_network(networks[0]), "10.0.0.4-10.0.255.255", ip_network(networks[1])]


def read_back(*elements: Element) -> list[Element]:
    """Parse elements of one collection from the messages that create them."""
    shape = SHAPES[elements[0].collection]
    ((_, _, _, parts),) = creations([(shape, one) for one in elements])
    return [element(entry, shape) for entry in entries([parse(parts[2])[NFTA_SET_ELEM_LIST_ELEMENTS]], shape)]


def item(*addresses: str, comment: str = "", ends: bool = False) -> bytes:
    half = len(addresses) // 2 or 1
    packed = [b"".join(ip_address(one).packed for one in part) for part in (addresses[:half], addresses[half:])]
    found = nested(1, attribute(1, packed[0])) + (nested(10, attribute(1, packed[1])) if packed[1] else b"")
    found += attribute(3, (1).to_bytes(4, "big")) if ends else b""
    text = comment.encode() + b"\0"
    return nested(1, found, attribute(6, bytes((0, len(text))) + text))


LISTED = """\
table inet weft {
	set a {
		type ipv4_addr
		size 9	# count 3
		elements = { 10.0.0.1 comment "# not }" }
	}

	chain b {
		type nat hook output priority -100; policy accept;
		ip daddr { 10.0.0.1, 10.0.0.2 } return comment "# kept"
		accept
	}
}
"""


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("\t\taccept\n", "", "the chain b lacks “accept”"),
        ("\t\taccept\n", "\t\taccept\n\t\tdrop\n", "the chain b has “drop”"),
        ("\t\taccept\n", "\t\taccept\n\t\taccept\n", "the chain b has its lines in another order or number"),
        ("# kept", "# other", "the chain b lacks “ip daddr { 10.0.0.1, 10.0.0.2 } return comment"),
        ("chain b", "chain c", "the chain b is missing"),
        ("set a", "set c", "the set a is missing"),
        ("type ipv4_addr\n", "type ipv6_addr\n", "the set a lacks “type ipv4_addr”"),
        ("table inet weft {\n", "table inet weft {\n\tflags dormant\n", "the table has “flags dormant”"),
        ("}\n\n\tchain", "}\n\n\tset z {\n\t\ttype mark\n\t}\n\n\tchain", "there is a set z"),
    ],
)
def test_a_difference_is_reported(old: str, new: str, words: str) -> None:
    assert old in LISTED
    assert words in (difference(blocks(LISTED), blocks(LISTED.replace(old, new, 1))) or "")


@pytest.mark.parametrize(
    ("old", "new"),
    [("# count 3", "# count 4"), ("10.0.0.1 comment", "10.0.0.2, 10.0.0.3 comment"), ("\t# count 3", "")],
)
def test_counters_and_elements_are_no_difference(old: str, new: str) -> None:
    assert old in LISTED
    assert difference(blocks(LISTED), blocks(LISTED.replace(old, new, 1))) is None


def test_missing_nftables_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    from weft.kernel.nft import library

    monkeypatch.setattr(library, "LIBRARY", "libnosuch.so.1")
    monkeypatch.setattr(library, "PROGRAM", "nosuch")
    ruleset = Nft(TABLES)
    with pytest.raises(KernelLacks, match=r"neither libnosuch\.so\.1 nor a program nosuch"):
        ruleset.install(TABLES)
    ruleset.close()
    ruleset.close()
    with pytest.raises(KernelRefused, match="closed"):
        ruleset.collections()


def test_the_fake_raises_injected_faults_and_dumps_its_state() -> None:
    fake = FakeRuleset()
    assert fake.dump() == {}
    fake.install(TABLES)
    fake.fail("add", Missing("as told"), call=2)
    fake.add(ONE_OF_EACH[:1])
    with pytest.raises(Missing, match="as told"):
        fake.add([PORT])
    assert fake.dump()["ports4"] == {}
    fake.add([PORT])
    assert fake.dump()["ports4"] == {"tcp . 8080": f"10.1.0.5 . 80 {MINE}"}
    assert fake.dump()["masquerade4"] == {"10.1.0.5": MINE}


def test_docs_ruleset_is_up_to_date() -> None:
    written = Path(__file__).resolve().parents[3] / "docs/ruleset.md"
    assert written.read_text() == document(), "run python -m cni_plugin.cli.ruleset >docs/ruleset.md"


def test_comments_fit_nftables_limit() -> None:
    """NFTNL_UDATA_COMMENT_MAXLEN: 128 bytes including the final zero."""
    for table in (*TABLES.tables, *balancer_tables().tables):
        comments = [one.holds for one in table.sets] + [one.why for one in table.chains]
        comments += [table.why, *(rule.why for chain in table.chains for rule in chain.rules)]
        assert all(comments) and all(one.by for one in table.sets)
        assert max(len(one.encode()) for one in comments) < 128
        assert not any('"' in one for one in comments)
