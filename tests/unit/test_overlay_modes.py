"""What hosts say of containers in mode l2, claims of static addresses, and options that exclude each other."""

from __future__ import annotations

from ipaddress import ip_address, ip_network
from pathlib import Path

import pytest

from cni_plugin.networks.clustered import network_of
from weft import claims
from weft.errors import ConfigProblem
from weft.overlay_modes import ContainerPort, encoded, parse_ports

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
    ],
)
def test_options_that_exclude_each_other(more: dict[str, object], cluster: dict[str, object], message: str) -> None:
    plugin = {"type": "weft", "driver": "overlay", "ipam": {"type": "blocks"}, **more}
    content = {"name": "blue", "plugins": [plugin], "weft": {"cluster": {"subnets": ["10.60.0.0/16"], **cluster}}}
    with pytest.raises(ConfigProblem, match=message):
        network_of(content)
