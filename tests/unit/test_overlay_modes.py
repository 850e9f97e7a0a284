"""What hosts say of containers in mode l2, claims of static addresses, and options that exclude each other."""

from __future__ import annotations

from ipaddress import IPv4Network, ip_address, ip_network
from pathlib import Path

import pytest

from cni_plugin.networks.clustered import network_of
from cni_plugin.ops import overlay_l2
from cni_plugin.ops.overlay_gateway import machines
from weft import claims
from weft.errors import ConfigProblem
from weft.kernel.values import Element, FdbEntry, Neighbour
from weft.overlay import OverlayNetwork, Peer
from weft.overlay_modes import ContainerPort, VlanGateway, encoded, parse_ports

BLOCKS = (ip_network("10.60.1.0/24"), ip_network("10.60.240.7/32"), ip_network("fd00:60:0:1::/64"))
MAC = "02:00:00:00:00:01"


def test_a_host_speaks_for_addresses_in_its_blocks_alone() -> None:
    said = {MAC: ["10.60.1.5", "10.60.2.5", "fd00:60:0:1::5"], "02:00:00:00:00:02": ["10.60.9.9"]}
    own = (ip_address("10.60.1.5"), ip_address("fd00:60:0:1::5"))
    assert parse_ports(said, BLOCKS) == (ContainerPort(MAC, own),)
    assert parse_ports({MAC: ["10.60.240.7"]}, BLOCKS) == (ContainerPort(MAC, (ip_address("10.60.240.7"),)),)
    assert parse_ports(encoded([ContainerPort(MAC, own)]), BLOCKS) == (ContainerPort(MAC, own),)


@pytest.mark.parametrize("said", [[], {MAC: "10.60.1.5"}, {"no MAC": ["10.60.1.5"]}, {MAC: ["no address"]}])
def test_what_is_no_list_of_containers_is_refused(said: object) -> None:
    with pytest.raises((ValueError, TypeError)):
        parse_ports(said, BLOCKS)


AT_VLAN = {"vlanGateway": "h2", "vlanParent": "eth1", "vlan": 100, "vlanRange": "10.60.9.0/24"}
MACS = [f"02:00:00:00:00:0{number}" for number in range(8)]


def test_machines_are_known_by_their_frames() -> None:
    """Not with a MAC address that a container or a host has; of two for one address the one that is in use."""
    at = [ip_address(f"10.60.9.{number}") for number in range(8)]
    seen = [("eth1", MACS[1], at[1]), ("eth1", MACS[2], at[2]), ("eth1", MACS[3], at[2]), ("eth1", MACS[1], at[4]),
            ("eth1", MACS[5], at[5]), ("eth2", MACS[6], at[6])]  # fmt: skip
    rows = (
        ("eth1", FdbEntry(MACS[2], master=True, state="dynamic")),
        ("veth1", FdbEntry(MACS[5], master=True, state="static")),
        ("eth1", FdbEntry(MACS[7], master=True, state="permanent")),
    )
    found = machines(tuple(Element("vlan_machines4", key) for key in seen), rows, "eth1")
    assert encoded(found) == {MACS[1]: [str(at[1]), str(at[4])], MACS[2]: [str(at[2])]}


def test_rows_of_machines_give_way_to_those_of_containers() -> None:
    gateway = VlanGateway("h2", "eth1", 0, IPv4Network("10.60.9.0/24"))
    here = OverlayNetwork(
        "blue", 100, MACS[0], ip_address("192.0.2.1"), 1450, (ip_network("10.60.0.0/16"),),
        (ip_network("10.60.1.0/24"),), mode="l2", vlan_gateway=gateway,
    )  # fmt: skip
    machine, container, forged = (ip_address(one) for one in ("10.60.9.5", "10.60.3.5", "10.60.9.6"))
    at_gateway = tuple(
        ContainerPort(mac, (one,)) for mac, one in zip(MACS[3:6], (machine, forged, forged), strict=True)
    )
    peers = (
        Peer(
            "h3",
            ip_address("192.0.2.3"),
            MACS[2],
            (ip_network("10.60.3.0/24"),),
            ports=(ContainerPort(MACS[4], (container,)),),
        ),
        Peer("h2", ip_address("192.0.2.2"), MACS[1], (ip_network("10.60.2.0/24"),), ports=at_gateway),
    )
    rows = overlay_l2.desired(here, peers, "br", frozenset({MACS[5]})).values()
    to = {row.mac: str(row.destination) for row in rows if isinstance(row, FdbEntry) and row.destination}
    assert to == {MACS[1]: "192.0.2.2", MACS[2]: "192.0.2.3", MACS[3]: "192.0.2.2", MACS[4]: "192.0.2.3"}


def test_the_range_of_machines_has_no_address_of_their_gateways_host() -> None:
    """Also where that host has no whole block, and its address is that of a container."""
    gateway = VlanGateway("h2", "eth1", 0, IPv4Network("10.60.9.0/24"))
    here = OverlayNetwork(
        "blue", 100, MACS[0], ip_address("192.0.2.1"), 1450, (ip_network("10.60.0.0/16"),),
        (ip_network("10.60.1.0/24"),), mode="l2", vlan_gateway=gateway,
    )  # fmt: skip
    peer = Peer("h2", ip_address("192.0.2.2"), MACS[1], (ip_network("10.60.240.7/32"), gateway.range))
    rows = overlay_l2.desired(here, [peer], "br").values()
    assert [str(row.address) for row in rows if isinstance(row, Neighbour)] == ["10.60.240.7"]


def test_a_claim_is_answered_once_and_removed(tmp_path: Path) -> None:
    run = str(tmp_path)
    made = claims.make(run, "blue", "c1", "eth0", [ip_address("10.60.240.7")])
    [found] = claims.listed(run)
    assert (found.token, found.addresses, str(found)) == (made.token, made.addresses, "c1/eth0")
    assert claims.answered(run, made) is None
    claims.answer(run, made, "used")
    assert claims.answered(run, made) == "used"
    again = claims.make(run, "blue", "c1", "eth0", [ip_address("10.60.240.7")])
    assert claims.answered(run, again) is None, "that answer was to another claim"
    (tmp_path / claims.FOLDER / "damaged.json").write_text("{")
    assert len([*claims.listed(run)]) == 1
    assert claims.remove(run, "blue", "c1", "eth0") and not claims.remove(run, "blue", "c1", "eth0")


@pytest.mark.parametrize(
    ("more", "cluster", "message"),
    [
        ({"direct": True}, {"mode": "l2"}, "option direct cannot be set together with mode l2"),
        ({"direct": True}, {"encryption": "wireguard"}, "option direct cannot be set together with encryption"),
        ({}, {"mode": "L3"}, "L3"),
        ({}, {"vlanGateway": "h2"}, "must be set together"),
        ({}, {"vlan": 100}, "must be set together"),
        ({}, {**AT_VLAN, "vlanGateway": "h1,h2"}, "must be set together: one host"),
        ({}, {**AT_VLAN, "vlanRange": "10.60.9.0"}, "range"),
        ({}, {**AT_VLAN, "vlanRange": "fd00:60::/64"}, "must be a part of the network's IPv4 subnet"),
        ({}, {**AT_VLAN, "vlan": 4095}, "vlan"),
        ({}, {**AT_VLAN, "vlanParent": "eth1/2"}, "parent"),
    ],
)
def test_options_that_exclude_each_other(more: dict[str, object], cluster: dict[str, object], message: str) -> None:
    plugin = {"type": "weft", "driver": "overlay", "ipam": {"type": "blocks"}, **more}
    content = {"name": "blue", "plugins": [plugin], "weft": {"cluster": {"subnets": ["10.60.0.0/16"], **cluster}}}
    with pytest.raises(ConfigProblem, match=message):
        network_of(content)
