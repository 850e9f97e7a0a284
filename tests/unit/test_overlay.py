"""Overlay networks without a kernel: their files, leases from blocks, and the changes that files lead to."""

from __future__ import annotations

import json
from collections.abc import Callable
from ipaddress import ip_address, ip_interface, ip_network
from pathlib import Path
from typing import Any, cast

import pytest

from cluster import networks
from cni_plugin.dataplane.overlay import DIRECT_PEERS4
from cni_plugin.networks import clustered
from cni_plugin.networks.create import CreateOptions, build
from cni_plugin.ops.overlay_rows import FIRST_NEXTHOP, Rows, actual, changes, desired
from cni_plugin.service.overlaps import Use
from ipam import blocks, host_local
from ipam.values import HostState, Owner
from lab.calls import Weft
from weft import overlay
from weft.errors import BadOption, Busy, Conflict, PoolExhausted, StateDamaged
from weft.kernel.fake.kernel import FakeKernel
from weft.kernel.host import Host
from weft.kernel.values import FdbEntry, KernelRoute, Neighbour, Nexthop
from weft.section import Section

Json = dict[str, Any]
NETWORK: Json = {
    "format": 1, "network": "blue", "vni": 100, "mac": "02:77:00:00:00:01", "underlay": "192.0.2.1", "mtu": 1450,
    "subnets": ["10.60.0.0/16", "fd00:60::/48"], "blocks": ["10.60.1.0/24", "fd00:60:0:1::/64"],
}  # fmt: skip
PEER: Json = {
    "name": "two", "underlay": "192.0.2.2", "mac": "02:77:00:00:00:02", "blocks": ["10.60.2.0/24"], "mtu": 1400,
}  # fmt: skip


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., str]:
    """Writes the files of the network blue, with some keys changed; the path."""

    def files(*peers: Json, **keys: Any) -> str:
        path = tmp_path / "blue.json"
        path.write_text(json.dumps({key: value for key, value in {**NETWORK, **keys}.items() if value is not None}))
        document = {"format": 1, "network": "blue", "peers": list(peers)}
        (tmp_path / "blue.peers.json").write_text(json.dumps(document))
        return str(path)

    return files


def test_the_files_are_read(write: Callable[..., str]) -> None:
    path = write(PEER)
    network = overlay.read_network(path, "blue")
    assert (network.vni, network.port, network.gateway) == (100, 4789, ip_address("10.60.0.1"))
    assert network.own == {4: ip_address("10.60.1.1"), 6: ip_address("fd00:60:0:1::1")}
    [peer] = overlay.read_peers(network, path)
    assert (peer.underlay, peer.blocks, peer.mtu) == (ip_address("192.0.2.2"), (ip_network("10.60.2.0/24"),), 1400)
    # The first host address of the block is the gateway's.
    first = overlay.read_network(write(blocks=["10.60.0.0/24", "fd00:60:0:1::/64"]), "blue")
    assert first.own[4] == ip_address("10.60.0.2")
    assert overlay.read_network(write(blocks=["10.60.9.9/32"]), "blue").own == {4: ip_address("10.60.9.9")}


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"vni": 0}, "vni 0"),
        ({"vni": 2**24}, "vni"),
        ({"vni": None}, "vni is missing"),
        ({"format": 2}, "format 2"),
        ({"network": "red"}, 'network "red"'),
        ({"mac": "01:00:00:00:00:01"}, "mac"),
        ({"mac": None}, "mac is missing"),
        ({"underlay": "10.60.5.5"}, "own subnet"),
        ({"underlay": "224.0.0.1"}, "underlay"),
        ({"underlay": "host1"}, "underlay"),
        ({"mtu": 1000}, "mtu 1000"),
        ({"port": 70000}, "port"),
        ({"subnets": ["10.60.0.0/16", "10.61.0.0/16"]}, "two of one IP version"),
        ({"subnets": ["10.60.0.5/16"]}, "10.60.0.5/16"),
        ({"blocks": ["10.61.1.0/24"]}, "part of no subnet"),
        ({"blocks": ["10.60.1.0/24", "10.60.1.128/25"]}, "overlap"),
        ({"blocks": ["10.60.0.1/32"]}, "gateway"),
        ({"static": ["192.0.2.0/28"]}, "part of no subnet"),
        ({"gateway": "192.0.2.1"}, "gateway"),
        ({"blocks": [7]}, "blocks"),
    ],
)
def test_an_invalid_network_is_refused_by_key_and_value(write: Callable[..., str], keys: Json, words: str) -> None:
    with pytest.raises(StateDamaged, match=words) as caught:
        overlay.read_network(write(**keys), "blue")
    assert "blue.json" in caught.value.message


@pytest.mark.parametrize(
    ("peer", "words"),
    [
        ({"underlay": "192.0.2.1"}, "this host"),
        ({"underlay": "2001:db8::2"}, "not IPv4"),
        ({"underlay": "10.60.9.9"}, "own subnet"),
        ({"underlay": 3221225986}, "not a string"),
        ({"mac": "02:77:00:00:00:01"}, "this host"),
        ({"mac": "x"}, "MAC"),
        ({"blocks": ["10.60.1.0/24"]}, "this host"),
        ({"blocks": ["10.61.1.0/24"]}, "part of no subnet"),
        ({"blocks": "10.60.3.0/24"}, "list"),
        ({"mtu": 10}, "mtu"),
        ({"mtu": True}, "mtu"),
        ({"name": None}, "name"),
    ],
)
def test_an_invalid_peer_is_refused(write: Callable[..., str], peer: Json, words: str) -> None:
    path = write({**PEER, **peer})
    network = overlay.read_network(path, "blue")
    with pytest.raises(StateDamaged, match=words):
        overlay.read_peers(network, path)
    path = write(PEER, {**PEER, "name": "again"})
    with pytest.raises(StateDamaged, match="which two has"):
        overlay.read_peers(network, path)


def test_damaged_and_missing_files(write: Callable[..., str], tmp_path: Path) -> None:
    path = Path(write())
    for text in ("{", "[]", "\udcff", "[" * 100000):
        path.write_bytes(text.encode("utf-8", "surrogateescape"))
        with pytest.raises(StateDamaged):
            overlay.read_network(str(path), "blue")
    path.unlink()
    with pytest.raises(Busy, match="missing"):
        overlay.read_network(str(path), "blue")
    path.symlink_to(tmp_path / "blue.peers.json")
    with pytest.raises(StateDamaged, match="cannot read"):
        overlay.read_network(str(path), "blue")


# Leases


def _pool(path: str, folder: Path, requested: str = "", **keys: Any) -> host_local.Pool:
    ipam = Section({"type": "blocks", "file": path, "dataDir": str(folder), **keys}, "ipam")
    nothing = Section(None, problems=ipam.problems)
    pool = blocks.read(
        ipam, network="blue", arguments={"IP": requested} if requested else {}, args_cni=nothing, runtime=nothing
    )
    ipam.problems.raise_any()
    return pool


def _lease(pool: host_local.Pool, name: str, tmp_path: Path) -> list[str]:
    state = HostState(str(tmp_path / "index"), 0.0, lambda network, owner: True)
    return [str(ip.address) for ip in host_local.reserve(pool, Owner(name, "eth0"), state).ips]


def test_addresses_are_leased_from_all_blocks_and_no_others(write: Callable[..., str], tmp_path: Path) -> None:
    path = write(subnets=["10.60.0.0/16"], blocks=["10.60.0.0/30", "10.60.7.0/30", "10.60.9.9/32"])
    pool = _pool(path, tmp_path)
    found = [_lease(pool, f"c{number}", tmp_path)[0] for number in range(3)]
    # 10.60.0.1 is the gateway, 10.60.0.2 this host's own address.
    assert found == ["10.60.7.1/16", "10.60.7.2/16", "10.60.9.9/16"]
    with pytest.raises(PoolExhausted, match="blue"):
        _lease(pool, "one-more", tmp_path)


def test_static_addresses_are_leased_on_request_only(write: Callable[..., str], tmp_path: Path) -> None:
    path = write(subnets=["10.60.0.0/16"], blocks=["10.60.1.0/29"], static=["10.60.1.4/30"])
    found = [_lease(_pool(path, tmp_path), f"c{number}", tmp_path)[0] for number in range(2)]
    assert found == ["10.60.1.2/16", "10.60.1.3/16"]
    with pytest.raises(PoolExhausted):
        _lease(_pool(path, tmp_path), "c2", tmp_path)
    assert _lease(_pool(path, tmp_path, "10.60.1.5"), "c3", tmp_path) == ["10.60.1.5/16"]
    with pytest.raises(Conflict, match=r"10\.60\.1\.5"):
        _lease(_pool(path, tmp_path, "10.60.1.5"), "c4", tmp_path)
    for other in ("10.60.2.5", "10.60.1.1", "10.60.0.1"):
        with pytest.raises(Exception, match=other):
            _pool(path, tmp_path, other)


def test_keys_of_ranges_and_a_missing_block_are_refused(write: Callable[..., str], tmp_path: Path) -> None:
    with pytest.raises(Exception, match=r"ipam\.subnet"):
        _pool(write(), tmp_path, subnet="10.60.0.0/16")
    with pytest.raises(Exception, match="no block of fd00:60::/48"):
        _pool(write(blocks=["10.60.1.0/24"]), tmp_path)


# What follows the files


def _rows(path: str, nexthops: tuple[Nexthop, ...] = ()) -> Rows:
    network = overlay.read_network(path, "blue")
    return desired(network, overlay.read_peers(network, path), "br", "vx", nexthops)


def test_a_peer_needs_four_rows_that_come_before_each_other(write: Callable[..., str]) -> None:
    found = changes(_rows(write(PEER)), _rows(write()))
    assert [type(one) for one in found.added] == [Neighbour, FdbEntry, Nexthop, KernelRoute]
    neighbour, row, nexthop, route = found.added
    assert neighbour == Neighbour(ip_address("fe80::77:ff:fe00:2"), "02:77:00:00:00:02", "vx")
    assert row == FdbEntry("02:77:00:00:00:02", ip_address("192.0.2.2"))
    assert nexthop == Nexthop(FIRST_NEXTHOP, ip_address("fe80::77:ff:fe00:2"), "vx", protocol=119)
    assert isinstance(route, KernelRoute) and (route.nexthop, route.route.mtu) == (FIRST_NEXTHOP, 1400)
    back = changes(_rows(write()), _rows(write(PEER)))
    assert [type(one) for one in back.deleted] == [KernelRoute, Nexthop, FdbEntry, Neighbour] and not back.added
    assert not changes(_rows(write()), _rows(write(PEER)), keep=True)


def test_only_what_differs_is_changed(write: Callable[..., str]) -> None:
    moved = changes(_rows(write({**PEER, "underlay": "192.0.2.9"})), _rows(write(PEER)))
    assert [type(one) for one in moved.added] == [FdbEntry] and not moved.deleted
    probed = changes(_rows(write({**PEER, "mtu": 1300})), _rows(write(PEER)))
    assert [type(one) for one in probed.added] == [KernelRoute] and not probed.deleted


def test_a_nexthop_keeps_its_id_and_takes_no_other_programs(write: Callable[..., str]) -> None:
    there = Nexthop(FIRST_NEXTHOP + 5, ip_address("fe80::77:ff:fe00:2"), "vx", protocol=119)
    other = Nexthop(FIRST_NEXTHOP, ip_address("192.0.2.7"), "eth0")
    third = {**PEER, "name": "three", "underlay": "192.0.2.3", "mac": "02:77:00:00:00:03", "blocks": []}
    rows = _rows(write(PEER, third), (other, there)).values()
    assert [one.id for one in rows if isinstance(one, Nexthop)] == [FIRST_NEXTHOP + 5, FIRST_NEXTHOP + 1]


def test_the_kernel_is_as_the_files_say_after_one_call(write: Callable[..., str], tmp_path: Path) -> None:
    """On the fake kernel: an ADD, new peers, one call, and nothing more to do."""
    path, kernel = write(PEER), FakeKernel()
    kernel.add("/c1")
    weft = Weft(kernel, Host(str(tmp_path / "state"), "boot", 0.0))
    ipam = {"type": "blocks", "file": path, "dataDir": str(tmp_path / "leases")}
    conf = {"cniVersion": "1.1.0", "name": "blue", "type": "weft", "driver": "overlay", "ipam": ipam}
    result = weft.add(conf, "/c1")
    assert weft.check(conf, result, "/c1") == ""
    from cni_plugin.service import overlay as following

    service = weft.service(kernel)
    assert following.differences(service, "blue") == []
    many = [
        {"name": f"h{n}", "underlay": f"192.0.2.{n}", "mac": f"02:77:00:00:01:{n:02x}", "blocks": [f"10.60.{n}.0/24"]}
        for n in range(10, 30)
    ]
    write(*many)
    assert len(following.differences(service, "blue")) == 2
    assert len(following.reconcile(service, "blue")) == 2
    assert following.differences(service, "blue") == [] and len(kernel.host.nexthops()) == 20
    weft.delete(conf, "/c1")
    weft.collect(conf)
    assert kernel.host.nexthops() == () and kernel.host.unreachable_routes() == ()
    assert actual(kernel.host, "br", "vx", (), ()) == {}


def test_what_direct_peers_have_is_no_difference_once_it_is_there(write: Callable[..., str], tmp_path: Path) -> None:
    """Also single addresses, such as a peer's own: they are not deleted and added again on each comparison."""
    static = {**PEER, "blocks": ["10.60.2.0/24", "10.60.240.7/32"]}
    path, kernel = write(static), FakeKernel()
    kernel.add("/c1")
    kernel.host.add_link("eth0", "dummy", up=True)
    kernel.host.add_address("eth0", ip_interface("192.0.2.1/24"))
    weft = Weft(kernel, Host(str(tmp_path / "state"), "boot", 0.0))
    ipam = {"type": "blocks", "file": path, "dataDir": str(tmp_path / "leases")}
    conf = {"cniVersion": "1.1.0", "name": "blue", "type": "weft", "driver": "overlay", "direct": True, "ipam": ipam}
    result = weft.add(conf, "/c1")
    there = {one.key[1] for one in kernel.rules.elements(DIRECT_PEERS4)}
    assert there == {ip_address("192.0.2.2"), ip_network("10.60.2.0/24"), ip_address("10.60.240.7")}
    assert weft.check(conf, result, "/c1") == ""
    from cni_plugin.service import overlay as following

    assert following.reconcile(weft.service(kernel), "blue") == []


@pytest.mark.parametrize(
    ("keys", "versions"),
    [({}, ()), ({"static": ["10.60.1.0/28"]}, (4,)), ({"mode": "l2"}, (4, 6))],
    ids=("routed", "static", "l2"),
)
def test_a_container_asks_soon_again_for_what_its_host_does_not_know_yet(
    write: Callable[..., str], tmp_path: Path, keys: Json, versions: tuple[int, ...]
) -> None:
    """Not only a second later: that is longer than it takes until its host does."""
    kernel = FakeKernel()
    kernel.add("/c1")
    weft = Weft(kernel, Host(str(tmp_path / "state"), "boot", 0.0))
    ipam = {"type": "blocks", "file": write(**keys), "dataDir": str(tmp_path / "leases")}
    weft.add({"cniVersion": "1.1.0", "name": "blue", "type": "weft", "driver": "overlay", "ipam": ipam}, "/c1")
    for version in (4, 6):
        interval, *counts = (
            int(kernel.open("/c1").sysctl(f"net/ipv{version}/neigh/eth0/{key}") or 0)
            for key in ("retrans_time_ms", "mcast_solicit", "ucast_solicit")
        )
        assert interval < 100 if version in versions else interval == 1000
        assert {interval * one for one in counts} == {3000}, "as long as usual"


def test_network_create_leaves_blocks_to_the_cluster() -> None:
    host = FakeKernel().host
    options = CreateOptions(
        "overlay", ("10.60.0.0/16",), ("10.60.0.9",), options={"static": "10.60.250.0/24", "mtu": "1400"}
    )
    found = build("blue", options, (), host)
    (plugin,) = cast(list[dict[str, object]], found["plugins"])
    assert plugin["ipam"] == {"type": "blocks"} and plugin["mtu"] == 1400 and "cluster" not in plugin
    network = clustered.network_of(found)
    assert network.gateway == ip_address("10.60.0.9") and network.static == (ip_network("10.60.250.0/24"),)
    assert network.blocks == (24,) and network.plugin == plugin
    free = clustered.network_of(build("red", CreateOptions("overlay", ipv6=True), (), host, [Use(
        ip_network("10.128.0.0/16"), "network blue of the cluster")]))  # fmt: skip
    assert free.subnets[0] == ip_network("10.129.0.0/16") and free.blocks == (24, 80)
    for wrong in (
        CreateOptions("overlay", ranges=("10.60.0.0/24",)),
        CreateOptions("overlay", ("10.60.0.0/16",), ("10.61.0.1",)),
        CreateOptions("overlay", options={"port": "0"}),
    ):
        with pytest.raises(BadOption):
            build("blue", wrong, (), host)
    for text, said in (("10.60.0.0/28", "too small"), ("10.60.0.0/16", "whole blocks")):
        with pytest.raises(BadOption, match=said):
            options = CreateOptions("overlay", (text,), options={"static": "10.60.0.16/28"})
            networks.check(clustered.network_of(build("b", options, (), host)))
