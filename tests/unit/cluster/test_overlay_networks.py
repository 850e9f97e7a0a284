"""Overlay networks in a store: created, removed, followed, and kept where the store forgets them."""

from __future__ import annotations

import asyncio
import base64
import json
from dataclasses import replace
from ipaddress import ip_address, ip_network
from pathlib import Path

import pytest

from cluster import networks, nodes, records, static, tunnels
from cluster.blocks import Blocks
from cluster.host_files import Host, inner_mtu, network_file, own_blocks, peers_file, text
from cluster.nodes import Node, Role, State
from cluster.records import Block, DecodeError, Member, Network, block_length
from cluster.view import View
from cni_plugin.agent.prober import own_addresses
from store import Batch, Entry, Event, Put, Range, Store
from store.embedded import open_embedded
from weft import overlay
from weft.claims import Claim
from weft.errors import BadOption, InUse, Missing


def network(name: str, *subnets: str) -> Network:
    found = tuple(ip_network(one) for one in subnets)
    return Network(name, f"{name}-id", 0, found, tuple(map(block_length, found)))


async def opened(folder: Path) -> Store:
    return await open_embedded(folder / "catalog.db")


async def test_names_and_subnets_are_the_clusters(tmp_path: Path) -> None:
    store = await opened(tmp_path)
    blue = await networks.create(store, network("blue", "10.60.0.0/16", "fd00:60::/48"))
    assert blue.vni and blue.revision
    with pytest.raises(InUse, match=r"10\.60\.128\.0/17 overlaps with 10\.60\.0\.0/16 of network blue"):
        await networks.create(store, network("red", "10.60.128.0/17"))
    with pytest.raises(InUse, match="name blue already exists"):
        await networks.create(store, network("blue", "10.61.0.0/16"))
    made = await asyncio.gather(
        *(networks.create(store, network(f"n{number % 3}", "10.62.0.0/16")) for number in range(6)),
        return_exceptions=True,
    )
    assert sum(isinstance(one, Network) for one in made) == 1, "of networks at once that overlap one is made"
    await store.put(records.member_key("h1", "blue"), records.encode(member("h1", attached=True)))
    await store.put(records.block_key("blue", ip_network("10.60.1.0/24")), records.encode(block(1)))
    with pytest.raises(InUse, match="containers on h1"):
        await networks.remove(store, "blue")
    await store.put(records.member_key("h1", "blue"), records.encode(member("h1")))
    await networks.remove(store, "blue")
    left = [one.key.removeprefix(records.ROOT) for one in (await store.range(records.ROOT)).entries]
    assert not any("blue" in one for one in left if not one.startswith("member/")), left
    with pytest.raises(Missing):
        await networks.remove(store, "blue")
    await networks.create(store, network("red", "10.60.128.0/17"))
    await store.close()


async def test_a_node_that_was_removed_keeps_no_network(tmp_path: Path) -> None:
    """Nobody deletes what it has said of the network. While it has blocks, it may run."""
    store = await opened(tmp_path)
    await networks.create(store, network("blue", "10.60.0.0/16"))
    address = ip_address("192.0.2.1")
    gone = Node("h1", "id", (address,), "0.9.0", 1.0, Role.CLIENT, State.REMOVED, removed=2.0)
    await store.put(nodes.record_key("h1"), nodes.encode(gone))
    await store.put(records.member_key("h1", "blue"), records.encode(member("h1", attached=True)))
    key = records.block_key("blue", block(1).subnet)
    await store.put(key, records.encode(block(1)))
    with pytest.raises(InUse, match="containers on h1"):
        await networks.remove(store, "blue")
    await store.delete(key)
    await networks.remove(store, "blue")
    await store.close()


def member(node: str, *, attached: bool = False, **more: object) -> Member:
    number = int(node.removeprefix("h"))
    found = Member(node, "blue", f"192.0.2.{number}", f"02:77:00:00:00:{number:02x}", 1500, attached)
    return replace(found, **more)  # type: ignore[arg-type]


def block(number: int, node: str = "") -> Block:
    return Block(ip_network(f"10.60.{number}.0/24"), node or f"h{number}", created=number, revision=number)


def entries(count: int, revision: int = 50) -> list[Entry]:
    blue = replace(network("blue", "10.60.0.0/16"), vni=100)
    values = {blue.key: records.encode(blue), records.LIST: b"blue", records.vni_key(100): b"blue"}
    for number in range(1, count + 1):
        values[records.block_key("blue", block(number).subnet)] = records.encode(block(number))
        values[records.member_key(f"h{number}", "blue")] = records.encode(member(f"h{number}"))
    return [Entry(key, value, revision, revision, 1) for key, value in values.items()]


def test_a_view_follows_and_is_kept_in_a_file(tmp_path: Path) -> None:
    view = View()
    view.load(Range(tuple(entries(3)), 50), "h1")
    blue = view.network("blue")
    assert blue is not None and view.blocks(blue).owners() == {f"h{n}": [block(n).subnet] for n in (1, 2, 3)}
    key = records.block_key("blue", block(3).subnet)
    view.apply(Batch(51, (Event(key, None, None, 51),)))
    assert "h3" not in view.blocks(blue).owners() and not view.held
    bad = Entry(records.member_key("h2", "blue"), b'{"underlay": "x"}', 52, 52, 2)
    view.apply(Batch(52, (Event(bad.key, bad, None, 52),)))
    assert view.member("h2", "blue") is None and list(view.damaged) == [bad.key]
    view.save(str(tmp_path / "networks.json"))
    other = View()
    assert other.restore(str(tmp_path / "networks.json"))
    assert other.networks().keys() == {"blue"} and other.blocks(blue).owners() == view.blocks(blue).owners()
    (tmp_path / "networks.json").write_text("{")
    assert not View().restore(str(tmp_path / "networks.json"))


@pytest.mark.parametrize("what", ["network", "block"])
def test_an_invalid_record_changes_nothing(tmp_path: Path, what: str) -> None:
    """Until it is valid again or removed, also where the agent is started meanwhile."""
    blue, second = replace(network("blue", "10.60.0.0/16"), vni=100), block(2)
    key, valid = (blue.key, blue) if what == "network" else (records.block_key("blue", second.subnet), second)
    view = View()
    view.load(Range(tuple(entries(3)), 50), "h1")
    bad = Entry(key, b'{"vni": "x"}', 50, 60, 2)
    view.apply(Batch(60, (Event(key, bad, None, 60),)))
    view.save(str(tmp_path / "networks.json"))
    again = View()
    assert again.restore(str(tmp_path / "networks.json"))
    again.load(Range(tuple(bad if one.key == key else one for one in entries(3)), 60), "h1")
    for one in (view, again):
        found = one.network("blue")
        assert found is not None and found.subnets == blue.subnets and list(one.damaged) == [key]
        assert found.revision == (60 if what == "network" else 50), "so that it can be replaced"
        assert one.blocks(found).owners() == {f"h{n}": [block(n).subnet] for n in (1, 2, 3)}
        assert list(one.unread()) == (["blue"] if what == "network" else [])
        anew = Entry(key, bad.value, 61, 61, 1)
        one.apply(Batch(61, (Event(key, anew, None, 61),)))
        assert one.network("blue") is None or "h2" not in one.blocks(found).owners(), "one that was made anew"
        assert list(one.damaged) == [key]
        one.apply(Batch(62, (Event(key, Entry(key, records.encode(valid), 61, 62, 2), None, 62),)))
        assert one.blocks(found).owners().keys() == {"h1", "h2", "h3"} and not one.damaged and not one.unread()
        one.apply(Batch(63, (Event(key, bad, None, 63), Event(key, None, None, 63))))
        assert one.network("blue") is None or "h2" not in one.blocks(found).owners()
        assert not one.damaged


async def test_networks_beside_an_invalid_record(tmp_path: Path) -> None:
    """None is created, since nobody knows its subnet; it can be removed, and so can others."""
    store = await open_embedded(tmp_path / "catalog.db")
    for name, subnet in (("blue", "10.60.0.0/16"), ("red", "10.61.0.0/16")):
        await networks.create(store, network(name, subnet))
    await store.transact([], [Put(f"{records.ROOT}network/blue", b"{"), Put(records.member_key("h1", "blue"), b"{")])
    with pytest.raises(InUse, match=r"record of network blue is invalid.*weft network rm blue"):
        await networks.create(store, network("green", "10.62.0.0/16"))
    await networks.remove(store, "red")
    await networks.remove(store, "blue")
    found = await store.range(records.ROOT)
    assert [one.key for one in found.entries] == [records.member_key("h1", "blue"), records.LIST]
    await networks.create(store, network("green", "10.60.0.0/16"))
    await store.close()


def at_vlan(name: str, subnet: str, vlan_range: str, **keys: object) -> Network:
    gateway = {"host": "h2", "parent": "eth1", "range": vlan_range, **keys}
    found = replace(network(name, subnet), keys={"mode": "l2", "vlanGateway": gateway})
    return replace(found, static=(ip_network(vlan_range),))


async def test_each_vlan_is_part_of_one_network(tmp_path: Path) -> None:
    store = await opened(tmp_path)
    await networks.create(store, at_vlan("blue", "10.60.0.0/16", "10.60.9.0/24", vlan=100))
    with pytest.raises(InUse, match="VLAN at eth1 of host h2 is a part of network blue"):
        await networks.create(store, at_vlan("red", "10.61.0.0/16", "10.61.9.0/24", vlan=100))
    await networks.create(store, at_vlan("red", "10.61.0.0/16", "10.61.9.0/24", vlan=101))
    await networks.create(store, at_vlan("grey", "10.62.0.0/16", "10.62.9.0/24", vlan=100, parent="eth2"))
    routed = at_vlan("green", "10.63.0.0/16", "10.63.9.0/24")
    for wrong, why in (
        (at_vlan("green", "10.63.0.0/16", "10.64.9.0/24"), "invalid vlan-range 10.64.9.0/24: it is not a part"),
        (at_vlan("green", "10.63.0.0/16", "10.63.9.0/26"), "whole blocks"),
        (at_vlan("green", "10.63.0.0/16", "10.63.0.0/24"), "has the network's gateway"),
        (replace(routed, keys={**routed.keys, "mode": "routed"}), "mode=l2"),
    ):
        with pytest.raises(BadOption, match=why):
            await networks.create(store, wrong)
    await store.close()


def test_machines_are_behind_their_gateway_alone(tmp_path: Path) -> None:
    """Its file says that it is the gateway, the others' files that the range is there; no container gets of it."""
    blue = replace(at_vlan("blue", "10.60.0.0/16", "10.60.9.0/24"), vni=100)
    blocks, members = Blocks(blue, (block(1), block(2), block(3))), {f"h{n}": member(f"h{n}") for n in (1, 2, 3)}
    for number in (1, 2, 3):
        host = Host(f"h{number}", ip_address(f"192.0.2.{number}"), 1500)
        own = network_file(blue, host, own_blocks(blocks, host.node, (), ()), (), 1450, {})
        (tmp_path / "blue.json").write_bytes(text(own))
        document, _ = peers_file(blue, host, blocks, members, {}, {})
        (tmp_path / "blue.peers.json").write_bytes(text(document))
        read = overlay.read_network(str(tmp_path / "blue.json"), "blue")
        assert read.vlan_gateway is not None and read.vlan_gateway.local == (number == 2)
        peers = {one.name: one.blocks for one in overlay.read_peers(read, str(tmp_path / "blue.json"))}
        assert [name for name, parts in peers.items() if ip_network("10.60.9.0/24") in parts] == ["h2"] * (number != 2)
    claim = Claim("blue", "c1", "eth0", (ip_address("10.60.9.7"),), "1")
    assert static.decide(blocks, "h1", (), (claim,), ()) == []
    assert "for machines on the VLAN" in str(static.answer(blocks, "h1", claim, (), (), ""))
    assert blocks.free(blue.subnets[0], 9) != ip_network("10.60.9.0/24")


def test_a_list_that_has_lost_records_is_not_believed() -> None:
    view = View()
    view.load(Range(tuple(entries(20)), 50), "h1")
    fewer = entries(20)
    lost = {records.block_key("blue", block(n).subnet) for n in range(2, 14)}
    view.load(Range(tuple(one for one in fewer if one.key not in lost), 60), "h1")
    blue = view.network("blue")
    assert blue is not None and len(view.blocks(blue).owners()) == 20 and view.held.keys() == lost
    view.drop_held()
    assert len(view.blocks(blue).owners()) == 8
    view.load(Range(tuple(entries(20)[:-4]), 70), "h1")
    assert all(one.startswith(records.blocks_prefix("blue")) for one in view.held), "members may have gone"
    assert len(view.held) == 2 and not view.doubted, "blocks must not be claimed before their hosts have been heard"
    older = View()
    older.load(Range(tuple(entries(3)), 50), "h1")
    older.load(Range((), 3), "h1")
    assert older.networks().keys() == {"blue"} and len(older.held) == len(entries(3)), "an older store"
    again, changed = Entry(records.LIST, b"blue", 2, 2, 1), Entry(records.LIST, b"green", 2, 2, 1)
    for entry, held in ((again, set[str]()), (changed, {records.LIST})):
        written = View()
        written.load(Range((Entry(records.LIST, b"blue", 50, 61, 2),), 61), "h1")
        written.load(Range((entry,), 2), "h1")
        assert written.doubted and written.held.keys() == held, "another host may have written it again before"
        found = written.entry(records.LIST)
        assert found is not None and found.value == b"blue"
    removed = View()
    removed.load(Range(tuple(entries(3)), 50), "h1")
    removed.load(Range((Entry(records.LIST, b"blue", 50, 61, 2),), 61), "h1")
    assert not removed.networks() and not removed.held, "the network was removed"


def test_the_files_of_a_host(tmp_path: Path) -> None:
    blue = replace(network("blue", "10.60.0.0/16"), vni=100)
    host = Host("h1", ip_address("192.0.2.1"), 1500)
    members = {f"h{n}": member(f"h{n}") for n in (1, 2, 3, 4, 5, 6)}
    members["h3"] = replace(members["h3"], mtu=1400)
    members["h4"] = replace(members["h4"], problem="its subnet is in use", mtu=900)
    members["h5"] = replace(members["h5"], underlay="10.60.9.9")
    members["h6"] = replace(members["h6"], mac=members["h2"].mac)
    members["h7"] = replace(member("h7"), mtu=600)
    blocks = Blocks(blue, tuple(block(n) for n in range(1, 8)))
    mtu = inner_mtu(blue, host, members.values())
    assert mtu == 1350
    path = tmp_path / "blue.json"
    own = own_blocks(blocks, "h1", (), ())
    path.write_bytes(text(network_file(blue, host, own, (), mtu, {})))
    document, left_out = peers_file(blue, host, blocks, members, {"h2": 1300}, {})
    (tmp_path / "blue.peers.json").write_bytes(text(document))
    assert left_out.keys() == {"h5", "h6", "h7"} and "which h2 has" in left_out["h6"]
    assert "MTU of 600" in left_out["h7"]
    read = overlay.read_network(str(path), "blue")
    assert read.blocks == (block(1).subnet,) and read.kept and overlay.is_kept(str(path))
    peers = overlay.read_peers(read, str(path))
    assert [(one.name, one.mtu) for one in peers] == [("h2", 1300), ("h3", 0)], "what does not fit is left out"
    half = block(1).subnet.subnets(1)
    assert own_blocks(blocks, "h1", (), [[*half][1]]) == (ip_network("10.60.1.0/25"),)


@pytest.mark.parametrize("subnets", [("10.60.0.0/16",), ("fd00:60::/112",), ("10.60.0.0/16", "fd00:60::/112")])
def test_a_host_is_probed_at_its_own_address(subnets: tuple[str, ...], tmp_path: Path) -> None:
    """Not at an address that is its, but may be a container's and move: the record of such a one may be the oldest."""
    made = replace(network("blue", *subnets), vni=7)
    own = [Block(next(one.subnets(new_prefix=made.length(one.version))), "h1", (), 20) for one in made.subnets]
    moved = [Block(ip_network((one[-6], one.max_prefixlen)), "h1", (), 10) for one in made.subnets]
    blocks = Blocks(made, (*moved, *own))
    file = network_file(made, Host("h1", ip_address("192.0.2.1"), 1500), blocks.of("h1"), (), 1450, {})
    written = overlay.parse_network(text(file).decode(), "blue.json", "blue")
    for version, address in written.own.items():
        assert own_addresses(made, blocks, version) == {"h1": address}


@pytest.mark.parametrize("name", ["networks", "restored", "blue.peers"])
def test_names_whose_files_are_others_are_refused(name: str) -> None:
    with pytest.raises(BadOption, match="its file would be another one"):
        networks.check(network(name, "10.60.0.0/16"))


def test_keys_are_replaced_in_steps() -> None:
    blue = replace(network("blue", "10.60.0.0/16"), keys={"encryption": "wireguard", "generation": 2})

    def says(node: str, ready: int, sending: int, *generations: int) -> Member:
        keys = [{"generation": one, "key": "k"} for one in generations]
        return member(node, keys={"keys": keys, "ready": ready, "generation": sending})

    def found(*others: Member) -> tuple[tuple[int, ...], int, int]:
        decided = tunnels.generations(blue, "h1", others)
        return decided.own, decided.ready, decided.sending

    assert tunnels.generations(replace(blue, keys={"encryption": "wireguard"}), "h1", ()).own == (1,)
    assert found(says("h2", 1, 1, 1), says("h3", 1, 1, 1, 2)) == ((1, 2), 1, 1)
    assert found(says("h2", 1, 1, 1, 2), says("h3", 1, 1, 1, 2)) == ((1, 2), 2, 1)
    assert found(says("h2", 2, 1, 1, 2), says("h3", 1, 1, 1, 2)) == ((1, 2), 2, 1)
    assert found(says("h2", 2, 1, 1, 2), says("h3", 2, 1, 1, 2)) == ((1, 2), 2, 2)
    assert found(says("h2", 2, 2, 1, 2), says("h3", 2, 1, 1, 2)) == ((1, 2), 2, 2)
    assert found(says("h2", 2, 2, 1, 2), says("h3", 2, 2, 2)) == ((2,), 2, 2)
    assert found() == ((2,), 2, 2)
    assert tunnels.wanted(replace(blue, keys={})) == 0
    assert tunnels.lagging(blue, [says("h2", 2, 2, 1, 2), says("h3", 2, 2, 2)]) == ["h2"]


@pytest.mark.parametrize(
    ("encryption", "underlay", "mtu", "inner"),
    [
        ("", "192.0.2.1", 1500, 1450),
        ("", "2001:db8::1", 1500, 1430),
        ("wireguard", "192.0.2.1", 1500, 1370),
        ("wireguard", "2001:db8::1", 1500, 1350),
        ("wireguard", "192.0.2.1", 9000, 8870),
        ("ipsec", "192.0.2.1", 1500, 1416),
        ("ipsec", "192.0.2.1", 1503, 1416),
        ("ipsec", "192.0.2.1", 1504, 1420),
        ("ipsec", "2001:db8::1", 1500, 1396),
    ],
)
def test_the_mtu_is_the_underlays_less_all_headers(encryption: str, underlay: str, mtu: int, inner: int) -> None:
    blue = replace(network("blue", "10.60.0.0/16"), vni=100, keys={"encryption": encryption} if encryption else {})
    assert inner_mtu(blue, Host("h1", ip_address(underlay), mtu), ()) == inner


async def test_a_network_with_ipsec_has_a_port_of_its_own(tmp_path: Path) -> None:
    store = await opened(tmp_path)
    ipsec, wireguard_keys = {"encryption": "ipsec"}, {"encryption": "wireguard"}
    plain = await networks.create(store, network("plain", "10.60.0.0/16"))
    tunnelled = await networks.create(store, replace(network("wg", "10.61.0.0/16"), keys=wireguard_keys))
    made = [
        await networks.create(store, replace(network(f"n{n}", f"10.{n}.0.0/16"), keys=ipsec)) for n in range(70, 74)
    ]
    ports = [*(tunnels.ports(plain) | tunnels.ports(tunnelled)), *(one.port for one in made)]
    assert len(set(ports)) == len(ports)
    taken = str(made[0].port)
    for keys in ({}, wireguard_keys, ipsec):
        with pytest.raises(InUse, match=f"port {taken} is that of network n70"):
            await networks.create(store, replace(network("other", "10.80.0.0/16"), port=made[0].port, keys=keys))
    await store.close()


KEY = "QUJDREVGR0hJSktMTU5PUFFSU1RVVldYWVphYmNkZWY="
BAD_KEYS: tuple[object, ...] = (
    {"keys": "none"},
    {"keys": {}},
    {"keys": ["none"]},
    {"keys": [{"generation": 1, "key": "c2hvcnQ="}]},
    {"keys": [{"generation": 1, "key": KEY, "port": 65536}]},
    {"keys": [{"generation": 0, "key": KEY}]},
    {"keys": [{"generation": 1, "key": KEY}, {"generation": 3, "key": KEY}]},
    {"keys": [{"generation": 1, "key": KEY}], "generation": "1"},
    {"keys": [{"generation": 1, "key": KEY}], "ready": 2**31},
)


@pytest.mark.parametrize("said", BAD_KEYS, ids=json.dumps)
def test_bad_keys_of_one_host_hinder_no_other(tmp_path: Path, said: object) -> None:
    blue = replace(network("blue", "10.60.0.0/16"), vni=100, keys={"encryption": "wireguard", "generation": 2})
    view = View()
    view.load(Range(tuple(entries(4)), 50), "h1")
    host, blocks = Host("h1", ip_address("192.0.2.1"), 1500), view.blocks(blue)
    good = {f"h{n}": {"keys": [_key(n, 1), _key(n, 2)], "ready": 2, "generation": 1} for n in (1, 2, 3)}
    for node, keys in good.items():
        value = records.encode(member(node, keys=keys))
        key = records.member_key(node, "blue")
        view.apply(Batch(60, (Event(key, Entry(key, value, 50, 60, 1), None, 60),)))
    key = records.member_key("h4", "blue")
    bad = {"underlay": "192.0.2.4", "mac": "02:77:00:00:00:04", "mtu": 600, "keys": said}
    view.apply(Batch(61, (Event(key, Entry(key, json.dumps(bad).encode(), 50, 61, 1), None, 61),)))
    assert view.undecoded("blue").keys() == {"h4"} and "keys" in view.undecoded("blue")["h4"]
    assert view.undecoded("other") == {}
    assert [one.node for one in view.sharing(blue)] == ["h1", "h2", "h3"]
    assert tunnels.generations(blue, "h1", view.sharing(blue)).sending == 2
    members = view.members("blue")
    assert inner_mtu(blue, host, members.values()) == 1370
    document, left_out = peers_file(blue, host, blocks, members, {}, good["h1"])
    assert [one["name"] for one in document["peers"]] == ["h2", "h3"] and not left_out  # type: ignore[index,attr-defined]


def _key(node: int, generation: int) -> dict[str, object]:
    return {"generation": generation, "key": base64.b64encode(bytes([node, generation] * 16)).decode()}


def test_a_copied_key_leaves_out_who_came_later(tmp_path: Path) -> None:
    """What a host has that was left out it keeps from nobody."""
    blue = replace(network("blue", "10.60.0.0/16"), vni=100, keys={"encryption": "wireguard"})
    host, blocks = Host("h1", ip_address("192.0.2.1"), 1500), Blocks(blue, tuple(block(n) for n in range(1, 6)))
    said = {f"h{n}": {"keys": [_key(n, 1)], "generation": 1} for n in range(1, 6)}
    members = {node: member(node, keys=keys, created=10) for node, keys in said.items()}
    members["h2"] = replace(members["h2"], keys=said["h4"], created=20)
    members["h3"] = replace(members["h3"], keys=said["h1"])
    members["h5"] = replace(members["h5"], underlay=members["h2"].underlay, created=30)
    document, left_out = peers_file(blue, host, blocks, members, {}, said["h1"])
    own = network_file(blue, host, own_blocks(blocks, "h1", (), ()), (), 1370, said["h1"])
    (tmp_path / "blue.json").write_bytes(text(own))
    (tmp_path / "blue.peers.json").write_bytes(text(document))
    read = overlay.read_network(str(tmp_path / "blue.json"), "blue")
    assert [one.name for one in overlay.read_peers(read, str(tmp_path / "blue.json"))] == ["h4", "h5"]
    assert left_out.keys() == {"h2", "h3"}
    assert "which h4 has" in left_out["h2"] and "which this host has" in left_out["h3"]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("network/blue", '{"subnets": ["10.60.0.0/16"], "blocks": [24]}'),
        ("network/blue", '{"vni": 5, "subnets": ["10.60.0.0/16"], "blocks": [8]}'),
        ("network/blue", '{"vni": 5, "subnets": ["10.60.0.0/16", "10.61.0.0/16"], "blocks": [24, 24]}'),
        ("network/..", '{"vni": 5, "subnets": ["10.60.0.0/16"], "blocks": [24]}'),
        ("block/blue/10.60.1.0-24", "{}"),
        ("block/blue/10.60.1.0-24", '{"node": "h1", "parts": {"10.61.0.0/25": "h2"}}'),
        ("block/blue/10.60.1.7-24", '{"node": "h1"}'),
        ("member/h1/blue", '{"underlay": "nowhere", "mac": "02:00:00:00:00:01"}'),
        ("member/h1/blue", '{"underlay": "192.0.2.1", "mac": "ff:ff:ff:ff:ff:ff"}'),
        ("member/h1/blue", "[" * 10000),
        *(
            ("member/h1/blue", json.dumps({"underlay": "192.0.2.1", "mac": "02:00:00:00:00:01", "keys": said}))
            for said in BAD_KEYS
        ),
    ],
)
def test_invalid_values_are_refused(key: str, value: str) -> None:
    with pytest.raises(DecodeError):
        records.decode(Entry(records.ROOT + key, value.encode(), 1, 1, 1))


def test_values_are_decoded_as_they_were_encoded() -> None:
    blue = replace(network("blue", "10.60.0.0/16"), vni=100, gateway=ip_address("10.60.0.9"), plugin={"driver": "x"})
    half = (ip_network("10.60.1.128/25"), "h2")
    for key, value in (
        (blue.key, blue),
        (records.block_key("blue", block(1).subnet), replace(block(1), parts=(half,))),
        (records.member_key("h1", "blue"), member("h1", attached=True)),
    ):
        found = records.decode(Entry(key, records.encode(value), 1, 1, 1))
        created = {"created": 1} if isinstance(value, Member | Block) else {}
        assert found == replace(value, revision=1, **created)  # type: ignore[type-var,arg-type]


def test_a_restored_store_changes_no_block() -> None:
    """Whether it shows by its revision or not: a block that it has with another owner, or not at all, is kept."""
    key = records.block_key("blue", block(3).subnet)
    for revision in (60, 90):
        view = View()
        view.load(Range(tuple(entries(3, 55)), 55), "h1")
        lent = Entry(key, records.encode(block(3, "h2")), 55, 70, 2)
        view.apply(Batch(70, (Event(key, lent, None, 70),)))
        view.load(Range(tuple(entries(3, 55)), revision), "h1")
        blue = view.network("blue")
        assert blue is not None and view.blocks(blue).owners()["h2"] == [block(2).subnet, block(3).subnet]
        assert {one: there.mod_revision for one, there in view.held.items() if there} == {key: 55}
        assert view.doubted
        view.drop_held()
        assert "h3" in view.blocks(blue).owners()
    view = View()
    view.load(Range(tuple(entries(3, 55)), 55), "h1")
    view.load(Range(tuple(one for one in entries(3, 55) if one.key != key), 90), "h1")
    blue = view.network("blue")
    assert blue is not None and view.blocks(blue).at(block(3).subnet) is not None, "it may have been claimed later"
    assert view.held == {key: None} and not view.doubted
    again = Entry(key, records.encode(block(3)), 91, 91, 1)
    view.apply(Batch(91, (Event(key, again, None, 91),)))
    assert not view.held
