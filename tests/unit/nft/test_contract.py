"""The ruleset: here on the fake, in tests/netns/rules on nf_tables."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address, ip_network

import pytest

from cni_plugin.dataplane.tables import TABLES
from weft.errors import Conflict, KernelRefused, Missing
from weft.kernel.interface import Ruleset
from weft.kernel.schema import Chain, Rule, Set, Tables
from weft.kernel.values import Element, Scalar

MINE = "weft:00112233445566aa"
OTHERS = "weft:ffeeddccbbaa9988"
CONTAINER = ip_address("10.1.0.5")
CONTAINER6 = ip_address("fd00:1::5")

ONE_OF_EACH = (
    Element("masquerade4", (CONTAINER,), (), MINE),
    Element("masquerade6", (CONTAINER6,), (), MINE),
    Element("masquerade_exempt4", (CONTAINER, ip_network("10.1.0.0/16")), (), MINE),
    Element("overlay_links", ("wvx0",), (), MINE),
    Element("overlay_vnis", (4789, 0xABCDE), (), MINE),
    Element("overlay_encrypted_vnis", (4789, 0xABCDE), (), MINE),
    Element("overlay_ipsec_vnis", (4789, 0xABCDE), (), MINE),
    Element("direct_closed4", (ip_network("10.60.0.0/16"),), (), MINE),
    Element("direct_closed6", (ip_network("fd00:60::/48"),), (), MINE),
    Element("direct_routed4", (ip_network("10.60.0.0/16"),), (), MINE),
    Element("direct_routed6", (ip_network("fd00:60::/48"),), (), MINE),
    Element("direct_peers4", ("eth0", ip_network("10.60.2.0/24"), "wov0"), (), MINE),
    Element("direct_peers6", ("eth0", ip_network("fd00:60:0:2::/64"), "wov0"), (), MINE),
    Element("overlay_peers4", (ip_address("192.0.2.2"), 4789, 100), (), MINE),
    Element("overlay_peers6", (ip_address("2001:db8::2"), 4789, 0xFFFFFF), (), MINE),
    Element("masquerade_exempt4", (ip_network("10.9.0.0/24"), ip_network("10.9.0.0/24")), (), MINE),
    Element("masquerade_exempt6", (CONTAINER6, ip_network("fd00:1::/64")), (), MINE),
    Element("ports4", ("tcp", 8080), (CONTAINER, 80), MINE),
    Element("ports4", ("udp", 8080), (CONTAINER, 53), MINE),
    Element("ports4", ("sctp", 65535), (CONTAINER, 1), MINE),
    Element("ports6", ("tcp", 8080), (CONTAINER6, 80), MINE),
    Element("ports4_at", (ip_address("127.0.0.1"), "tcp", 8080), (CONTAINER, 80), MINE),
    Element("ports6_at", (ip_address("2001:db8::1"), "udp", 53), (CONTAINER6, 53), MINE),
    Element("loopback_ports4", ("tcp", 8080), (), MINE),
    Element("loopback_ports6", ("udp", 8080), (), MINE),
    Element("dns_server4", ("br0",), (CONTAINER,), MINE),
    Element("dns_server6", ("br0",), (CONTAINER6,), MINE),
    Element("dns_redirected4", ("br0", CONTAINER), (), MINE),
    Element("dns_redirected6", ("br0", CONTAINER6), (), MINE),
    Element("loopback_ports4_at", (ip_address("127.0.0.1"), "tcp", 8080), (), MINE),
    Element("loopback_ports6_at", (ip_address("::1"), "sctp", 8080), (), MINE),
    Element("hairpin4", ("cni0", CONTAINER), (), MINE),
    Element("hairpin4", ("tcp", CONTAINER), (), MINE),
    Element("hairpin4", ("a}{,;#$@'`b", CONTAINER), (), MINE),
    Element("hairpin6", ("veth0.1-_x", CONTAINER6), (), MINE),
    Element("hairpin_self4", (CONTAINER, CONTAINER), (), MINE),
    Element("hairpin_self6", (CONTAINER6, CONTAINER6), (), MINE),
    Element("masquerade_all4", (CONTAINER,), (), MINE),
    Element("masquerade_all6", (CONTAINER6,), (), f"{MINE}:web/eth0"),
    Element("closed_links", ("cni0",), (), MINE),
    Element("routed_links", ("cni0",), (), MINE),
    Element("closed_or_routed_links", ("cni0",), (), MINE),
    Element("internal_links", ("cni0",), (), MINE),
    Element("intra_network_links", ("cni0", "cni0"), (), MINE),
    Element("intra_network4", ("veth0", ip_network("10.1.0.0/16")), (), MINE),
    Element("intra_network6", ("veth0", ip_network("fd00:1::/64")), (), MINE),
    Element("no_metadata_links", ("cni0",), (), MINE),
    Element("dns_only_links", ("cni0",), (), MINE),
    Element("source_checked_links", ("veth0",), (), MINE),
    Element("link_sources4", ("veth0", CONTAINER), (), MINE),
    Element("link_sources6", ("veth0", CONTAINER6), (), MINE),
    Element("ingress_policy_links", ("cni0",), (), MINE),
    Element("intra_link", ("cni0", "cni0"), (), MINE),
    Element("ingress_policy4", ("cni0", CONTAINER), (), MINE),
    Element("ingress_policy6", ("cni0", CONTAINER6), (), MINE),
    Element("ingress_isolated4", ("cni0", CONTAINER), (), MINE),
    Element("ingress_isolated6", ("cni0", CONTAINER6), (), MINE),
    Element("no_router_ports", ("veth0",), (), MINE),
    Element("mac_checked_ports", ("veth0",), (), MINE),
    Element("port_macs", ("veth0", "02:42:0a:01:00:05"), (), MINE),
    Element("ip_checked_ports", ("veth0",), (), MINE),
    Element("port_mac_ip4", ("veth0", "02:42:0a:01:00:05", CONTAINER), (), MINE),
    Element("port_mac_ip6", ("veth0", "02:42:0a:01:00:05", CONTAINER6), (), MINE),
    Element("nd_targets6", ("veth0", int(CONTAINER6)), (), MINE),
    Element("nd_link_addresses", ("veth0", 0x02420A010005), (), MINE),
    Element("trunk_ports", ("veth0",), (), MINE),
    Element("native_vlans", ("veth0", 7), (), MINE),
    Element("vlan_ports", ("eth1",), (), MINE),
    Element("vlan_sources4", ("eth1", ip_network("10.1.9.0/24")), (), MINE),
    Element("uplink_links", ("eth0",), (), MINE),
    Element("uplink_classes", (0x77650010,), (), f"{MINE}:blue"),
    Element("uplink_class4", (CONTAINER,), (0x77650011,), MINE),
    Element("uplink_class6", (CONTAINER6,), (0x77657001,), MINE),
    Element("limited_links", ("br0",), (), MINE),
    *(
        Element(f"{name}{address.version}", ("br0", address), (), MINE, limit)
        for name, limit in (
            ("dns_queries", (1000, 2000)),
            ("new_connections", (4_000_000_000, 1)),
            ("new_nexthops", (50, 256)),
            ("connections", (1,)),
            ("connections_sampled", (4096,)),
        )
        for address in (CONTAINER, CONTAINER6)
    ),
)
DYNAMIC = {"vlan_machines4"} | {f"{name}{one}" for name in ("too_many_connections", "nexthops") for one in (4, 6)}
PORT = Element("ports4", ("tcp", 8080), (CONTAINER, 80), MINE)

HOSTILE = (
    "",
    "*",
    "eth*",
    "lo\n",
    'lo" }',
    'lo" comment "x',
    "lo; flush ruleset",
    "lo\nflush ruleset",
    "a\\",
    "a b",
    "a\x00b",
    "bücher",
    "\U0001f4a3",
    "0123456789abcdef",
    "..",
)


def ports(count: int, mark: str = MINE) -> tuple[Element, ...]:
    return tuple(replace(PORT, key=("tcp", 20000 + number), mark=mark) for number in range(count))


def with_set(tables: Tables, which: str, **changes: object) -> Tables:
    """The tables with one set changed."""

    def changed(one: Set) -> Set:
        return one._replace(**changes) if one.name == which else one  # type: ignore[arg-type]

    return Tables(tuple(table._replace(sets=tuple(map(changed, table.sets))) for table in tables.tables))


def with_rule(tables: Tables, old: str, new: str) -> Tables:
    """The tables with part of a rule's text replaced; a rule whose text is then "" is removed."""

    def changed(chain: Chain) -> Chain:
        rules = (Rule(text, rule.why) for rule in chain.rules if (text := rule.text.replace(old, new)))
        return chain._replace(rules=tuple(rules))

    found = Tables(tuple(table._replace(chains=tuple(map(changed, table.chains))) for table in tables.tables))
    assert found.text != tables.text
    return found


def test_tables_are_missing_until_installed(rules: Ruleset) -> None:
    assert "missing" in (rules.lacks(TABLES) or "")
    assert rules.collections() == ()
    rules.install(TABLES)
    assert rules.lacks(TABLES) is None
    assert set(rules.collections()) - DYNAMIC == {element.collection for element in ONE_OF_EACH}
    assert all(rules.elements(name) == () for name in rules.collections())


def test_installing_again_changes_nothing_and_keeps_elements(rules: Ruleset) -> None:
    rules.install(TABLES)
    rules.add(ONE_OF_EACH)
    before = {name: sorted(rules.elements(name), key=repr) for name in rules.collections()}
    rules.install(TABLES)
    assert rules.lacks(TABLES) is None
    assert {name: sorted(rules.elements(name), key=repr) for name in rules.collections()} == before


def test_other_tables_replace_the_first(rules: Ruleset) -> None:
    rules.install(TABLES)
    rules.add([PORT, ONE_OF_EACH[0]])
    changed = with_rule(TABLES, "ip saddr @masquerade4", "ip saddr . ip daddr @masquerade4")
    changed = with_set(changed, "masquerade4", type="ipv4_addr . ipv4_addr")
    assert rules.lacks(changed) is not None
    rules.install(changed)
    assert rules.lacks(changed) is None
    assert rules.lacks(TABLES) is not None
    assert rules.elements("ports4") == (PORT,)
    assert rules.elements("masquerade4") == ()  # of another type: its elements are dropped


def test_elements_of_a_renamed_set_are_migrated(rules: Ruleset) -> None:
    older = with_rule(TABLES, "@hairpin_self4", "@self4")
    older = with_set(older, "hairpin_self4", name="self4", formerly=())
    former = Element("self4", (CONTAINER, CONTAINER), (), OTHERS)
    rules.install(older)
    rules.add([former, PORT])
    rules.install(TABLES)
    assert rules.lacks(TABLES) is None
    assert rules.elements("hairpin_self4") == (replace(former, collection="hairpin_self4"),)
    assert rules.elements("ports4") == (PORT,)
    assert "self4" not in rules.collections()


def test_former_names_are_unique() -> None:
    former = [old for table in TABLES.tables for one in table.sets for old in one.formerly]
    assert len(former) == len(set(former)) == len(TABLES.renamed)
    assert not set(former) & TABLES.shapes.keys()


def test_removing_twice_is_no_error(rules: Ruleset) -> None:
    rules.remove()
    rules.install(TABLES)
    rules.remove()
    rules.remove()
    assert "missing" in (rules.lacks(TABLES) or "")


def test_elements_round_trip(rules: Ruleset) -> None:
    rules.install(TABLES)
    rules.add(ONE_OF_EACH)
    there = [element for name in rules.collections() for element in rules.elements(name)]
    assert sorted(there, key=repr) == sorted(ONE_OF_EACH, key=repr)
    assert rules.missing(ONE_OF_EACH) == ()
    theirs = [replace(element, mark=OTHERS) for element in ONE_OF_EACH]
    assert sorted(rules.existing(theirs), key=repr) == sorted(ONE_OF_EACH, key=repr)
    single = [element for element in ONE_OF_EACH if not TABLES.shapes[element.collection].flags]
    assert [rules.at(element.collection, element.key) for element in single] == single
    rules.delete(ONE_OF_EACH)
    assert rules.missing(ONE_OF_EACH) == ONE_OF_EACH and rules.existing(theirs) == ()
    assert {rules.at(element.collection, element.key) for element in single} == {None}
    assert all(rules.elements(name) == () for name in rules.collections())


def test_a_host_prefix_is_that_address(rules: Ruleset) -> None:
    rules.install(TABLES)
    element = Element("masquerade_exempt4", (ip_network("10.1.0.5/32"), ip_network("10.1.0.0/16")), (), MINE)
    rules.add([element])
    assert rules.elements("masquerade_exempt4") == (replace(element, key=(CONTAINER, element.key[1])),)
    assert rules.missing([element]) == ()
    rules.add([element])
    rules.delete([element])
    assert rules.elements("masquerade_exempt4") == ()


def test_adding_existing_elements_again_is_no_error(rules: Ruleset) -> None:
    rules.install(TABLES)
    rules.add([PORT])
    rules.add([PORT])
    rules.add([PORT, *ports(3), PORT])
    assert len(rules.elements("ports4")) == 4
    rules.add([])


@pytest.mark.parametrize(
    "other",
    [replace(PORT, mark=OTHERS), replace(PORT, data=(ip_address("10.1.0.6"), 80)), replace(PORT, data=(CONTAINER, 81))],
    ids=["mark", "address", "port"],
)
def test_a_key_with_another_mark_is_refused_and_nothing_is_added(rules: Ruleset, other: Element) -> None:
    rules.install(TABLES)
    rules.add([PORT])
    with pytest.raises(Conflict) as raised:
        rules.add([*ports(2), other, ONE_OF_EACH[0]])
    assert all(word in str(raised.value) for word in ("ports4", "tcp . 8080", MINE))
    assert rules.elements("ports4") == (PORT,)
    assert rules.elements("masquerade4") == ()


def test_duplicate_keys_in_one_call_are_refused(rules: Ruleset) -> None:
    rules.install(TABLES)
    with pytest.raises(Conflict):
        rules.add([PORT, replace(PORT, mark=OTHERS)])
    assert rules.elements("ports4") == ()


@pytest.mark.parametrize("subnet", ["10.1.3.0/24", "10.1.0.0/17", "10.1.0.0/16"])
def test_overlap_with_an_interval_of_another_mark_is_refused(rules: Ruleset, subnet: str) -> None:
    rules.install(TABLES)
    network = ip_network("10.1.0.0/16")
    rules.add([Element("masquerade_exempt4", (network, network), (), OTHERS)])
    inner = Element("masquerade_exempt4", (ip_network(subnet), ip_network(subnet)), (), MINE)
    with pytest.raises(Conflict, match=OTHERS):
        rules.add([inner])
    assert rules.missing([inner]) == (inner,)
    rules.delete([inner])
    assert len(rules.elements("masquerade_exempt4")) == 1


def test_only_elements_with_the_same_mark_are_deleted(rules: Ruleset) -> None:
    rules.install(TABLES)
    theirs = replace(PORT, key=("tcp", 9090), mark=OTHERS)
    rules.add([PORT, theirs])
    rules.delete([PORT, replace(theirs, mark=MINE), replace(PORT, key=("tcp", 1))])
    assert rules.elements("ports4") == (theirs,)
    rules.delete([PORT])
    assert rules.elements("ports4") == (theirs,)


@pytest.mark.parametrize("count", [5, 200])
def test_deleting_many_elements_some_of_them_missing(rules: Ruleset, count: int) -> None:
    rules.install(TABLES)
    many = ports(count)
    rules.add(many)
    assert rules.missing(many) == ()
    rules.delete(many[:2])
    assert rules.missing(many) == many[:2]
    rules.add(many)
    assert rules.missing(many) == ()
    rules.delete(many[-1:])
    rules.delete(many)
    assert rules.elements("ports4") == ()
    assert rules.missing(many) == many


def test_limits_of_elements(rules: Ruleset) -> None:
    rules.install(TABLES)
    one = Element("dns_queries4", ("br0", CONTAINER), (), MINE, (10, 20))
    rules.add([one])
    rules.add([one])
    assert rules.exceeded("dns_queries4") == ((one, 0),)
    other = replace(one, limit=(11, 20))
    assert (rules.missing([one]), rules.missing([other])) == ((), (other,))
    with pytest.raises(Conflict):
        rules.add([other])
    for wrong in ((), (1,), (0, 5), (1, 1 << 32), (1, 2, 3)):
        with pytest.raises(KernelRefused, match="limit"):
            rules.add([replace(one, limit=wrong)])
    with pytest.raises(KernelRefused, match="limit"):
        rules.add([Element("limited_links", ("br0",), (), MINE, (1, 2))])
    rules.install(with_set(TABLES, "dns_queries4", limit="limit rate over 5/second burst 5 packets"))
    assert rules.missing([one]) == ()
    rules.delete([one])
    assert rules.elements("dns_queries4") == ()


def test_without_the_table(rules: Ruleset) -> None:
    rules.delete(ONE_OF_EACH)
    assert rules.missing(ONE_OF_EACH) == ONE_OF_EACH
    with pytest.raises(Missing, match="ports4"):
        rules.add([PORT])
    with pytest.raises(Missing):
        rules.elements("ports4")
    rules.install(TABLES)
    rules.add([PORT])
    rules.remove()
    rules.delete([PORT])
    assert rules.missing([PORT]) == (PORT,)
    with pytest.raises(Missing):
        rules.add([PORT])


def test_an_unknown_collection(rules: Ruleset) -> None:
    rules.install(TABLES)
    stray = replace(PORT, collection="nosuch")
    with pytest.raises(Missing, match="nosuch"):
        rules.add([PORT, stray])
    assert rules.elements("ports4") == ()
    rules.add([PORT])
    rules.delete([stray, PORT])
    assert rules.elements("ports4") == ()
    assert rules.missing([stray]) == (stray,)


@pytest.mark.parametrize(
    ("collection", "key", "data"),
    [
        ("masquerade4", ("localhost",), ()),  # nft would resolve it by DNS
        ("masquerade4", (CONTAINER6,), ()),
        ("masquerade4", (ip_network("10.1.0.0/16"),), ()),  # no interval set
        ("masquerade4", (3,), ()),
        ("masquerade4", (), ()),
        ("masquerade4", (CONTAINER, CONTAINER), ()),
        ("masquerade4", (CONTAINER,), (CONTAINER,)),
        ("masquerade6", (CONTAINER,), ()),
        ("ports4", ("tcp", 8080), ()),
        ("ports4", ("icmp", 8080), (CONTAINER, 80)),
        ("ports4", (6, 8080), (CONTAINER, 80)),
        ("ports4", ("tcp", "http"), (CONTAINER, 80)),
        ("ports4", ("tcp", -1), (CONTAINER, 80)),
        ("ports4", ("tcp", 65536), (CONTAINER, 80)),
        ("ports4", ("tcp", True), (CONTAINER, 80)),
        ("ports4", (8080, "tcp"), (CONTAINER, 80)),
        ("ports4", ("tcp", 8080), (80, CONTAINER)),
        ("hairpin4", (1, CONTAINER), ()),
        ("hairpin4", (CONTAINER, "cni0"), ()),
    ],
)
def test_values_of_a_wrong_type_are_refused(
    rules: Ruleset, collection: str, key: tuple[Scalar, ...], data: tuple[Scalar, ...]
) -> None:
    rules.install(TABLES)
    element = Element(collection, key, data, MINE)
    for verb in (rules.add, rules.delete, rules.missing):
        with pytest.raises(KernelRefused, match=collection):
            verb([PORT, element])
    assert rules.elements(collection) == ()


@pytest.mark.parametrize("text", HOSTILE)
def test_injected_syntax_is_refused_in_every_field(rules: Ruleset, text: str) -> None:
    rules.install(TABLES)
    wrong = [
        replace(PORT, collection=text),
        replace(PORT, mark=text),
        replace(PORT, mark=f"{MINE}{text or 'x'}"),
        replace(PORT, key=(text, 8080)),
        replace(PORT, key=("tcp", text)),
        replace(PORT, data=(text, 80)),
        replace(PORT, data=(CONTAINER, text)),
        Element("hairpin4", (text, CONTAINER), (), MINE),
    ]
    for element in wrong:
        for verb in (rules.add, rules.delete, rules.missing):
            with pytest.raises(KernelRefused):
                verb([PORT, element])
    assert rules.lacks(TABLES) is None
    assert all(rules.elements(name) == () for name in rules.collections())
