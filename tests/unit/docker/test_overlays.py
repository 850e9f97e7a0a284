"""Overlay networks as Docker's: addresses of this host's blocks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cni_plugin.docker.addresses import GATEWAY, Addresses
from cni_plugin.docker.calls import link_name
from cni_plugin.docker.driver import Networks
from cni_plugin.docker.state import Kept, Network
from lab.libnetwork import ENDPOINT, GENERIC, NETWORK, SANDBOX, Fake, address_of, call, ended, pool_of
from weft import overlay
from weft.errors import BadOption, Busy, Conflict, InUse, PoolExhausted

SUBNET = "10.60.0.0/16"
BLUE = {
    "format": 1,
    "network": "blue",
    "vni": 100,
    "mac": "02:77:00:00:00:01",
    "underlay": "192.0.2.1",
    "mtu": 1450,
    "subnets": [SUBNET],
    "blocks": ["10.60.1.0/29"],
}


@pytest.fixture(autouse=True)
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "overlay"
    folder.mkdir()
    (folder / "blue.json").write_text(json.dumps(BLUE))
    (folder / "blue.peers.json").write_text(json.dumps({"format": 1, "network": "blue", "peers": []}))
    (folder / "torn.json").write_text("{")
    monkeypatch.setattr(overlay, "FOLDER", str(folder))


def created(driver: Networks, name: str = NETWORK, /, space: str = "weft", **options: str) -> None:
    pool = {"AddressSpace": space, "Gateway": "10.60.0.1/16", "Pool": SUBNET}
    driver.create_network(call(NetworkID=name, Options={GENERIC: {"driver": "overlay", **options}}, IPv4Data=[pool]))


def test_addresses_are_of_this_hosts_blocks(addresses: Addresses) -> None:
    pool = str(pool_of(addresses, SUBNET)["PoolID"])
    assert address_of(addresses, pool, RequestAddressType=GATEWAY) == "10.60.0.1/16"
    with pytest.raises(BadOption, match=r"--gateway 10.60.0.9 is not that of overlay network blue: 10.60.0.1"):
        address_of(addresses, pool, "10.60.0.9", RequestAddressType=GATEWAY)
    assert address_of(addresses, pool, "10.60.1.4") == "10.60.1.4/16"
    for other in ("10.60.2.5", "10.60.1.1"):  # another host's, and this host's own
        with pytest.raises(BadOption, match=f"{other} is not in this host's blocks: 10.60.1.2-10.60.1.6"):
            address_of(addresses, pool, other)
    found = [address_of(addresses, pool) for _ in range(4)]
    assert found == [f"10.60.1.{number}/16" for number in (2, 3, 5, 6)]
    with pytest.raises(PoolExhausted):
        address_of(addresses, pool)
    with pytest.raises(Conflict):
        address_of(addresses, pool, "10.60.1.4")
    with pytest.raises(InUse):  # Docker has a network once
        pool_of(addresses, SUBNET)


def test_another_network_gets_no_subnet_of_an_overlay_network(driver: Networks) -> None:
    pool = {"AddressSpace": "weft", "Gateway": "10.60.3.1/24", "Pool": "10.60.3.0/24"}
    with pytest.raises(InUse, match="overlay network blue"):
        driver.create_network(call(NetworkID=NETWORK, Options={GENERIC: {}}, IPv4Data=[pool]))


def test_what_is_no_overlay_network_here_is_refused(driver: Networks, kept: Kept) -> None:
    with pytest.raises(BadOption, match="driver overlay needs --ipam-driver weft"):
        created(driver, space="LocalDefault")
    with pytest.raises(BadOption, match=r"no overlay network with the subnet 10.99.0.0/16") as caught:
        pool = {"AddressSpace": "weft", "Gateway": "10.99.0.1/16", "Pool": "10.99.0.0/16"}
        driver.create_network(call(NetworkID=NETWORK, Options={GENERIC: {"driver": "overlay"}}, IPv4Data=[pool]))
    assert caught.value.hint == f"give --subnet of one of blue: {SUBNET}"
    assert list(kept.all(Network)) == []
    created(driver)
    with pytest.raises(InUse, match="overlay network blue is already Docker's network a9fe288e7882"):
        created(driver, "b" * 16)


def test_an_endpoint_leases_its_address_beside_others(
    driver: Networks, calls: Fake, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("ipam.host_local_config.DATA_DIRECTORY", str(tmp_path / "leases"))
    created(driver)
    interface = {"Address": "10.60.1.3/16", "AddressIPv6": "", "MacAddress": ""}
    driver.create_endpoint(call(NetworkID=NETWORK, EndpointID=ENDPOINT, Interface=interface, Options={}))
    answer: dict[str, Any] = driver.join(call(NetworkID=NETWORK, EndpointID=ENDPOINT, SandboxKey=SANDBOX, Options={}))
    assert answer["Gateway"] == "10.60.0.1" and "StaticRoutes" not in answer
    assert (tmp_path / "leases" / "blue" / "10.60.1.3").exists()
    ended(driver)
    assert not (tmp_path / "leases" / "blue" / "10.60.1.3").exists()
    assert list(calls.service.records.all()) == []


@pytest.mark.parametrize("static", [True, False])
def test_a_container_asks_soon_again_for_what_its_host_does_not_know_yet(
    driver: Networks, calls: Fake, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, static: bool
) -> None:
    """As one that weft configures (``unit/test_overlay.py``)."""
    monkeypatch.setattr("ipam.host_local_config.DATA_DIRECTORY", str(tmp_path / "leases"))
    (Path(overlay.FOLDER) / "blue.json").write_text(json.dumps(BLUE | ({"static": ["10.60.9.0/28"]} if static else {})))
    created(driver)
    interface = {"Address": "10.60.1.3/16", "AddressIPv6": "", "MacAddress": ""}
    driver.create_endpoint(call(NetworkID=NETWORK, EndpointID=ENDPOINT, Interface=interface, Options={}))
    driver.join(call(NetworkID=NETWORK, EndpointID=ENDPOINT, SandboxKey=SANDBOX, Options={}))
    sandbox = calls.kernel.add(SANDBOX)
    calls.kernel.host.change_link(link_name(ENDPOINT), new_name="eth0", namespace=sandbox, up=True)
    assert calls.settle(driver.network(NETWORK), driver.endpoint(call(EndpointID=ENDPOINT)))
    assert sandbox.sysctl("net/ipv4/neigh/eth0/retrans_time_ms") == ("60" if static else "1000")
    assert sandbox.sysctl("net/ipv4/neigh/eth0/mcast_solicit") == ("50" if static else "3")
    ended(driver)


def test_a_network_of_the_cluster_is_removed_with_it(driver: Networks, kept: Kept) -> None:
    created(driver)
    path = Path(overlay.FOLDER) / "blue.json"
    path.write_text(json.dumps({**BLUE, "kept": True}))
    with pytest.raises(Busy, match="network blue is one of the cluster's") as caught:
        driver.delete_network(call(NetworkID=NETWORK))
    assert caught.value.hint == "weft network rm blue removes it" and list(kept.all(Network))
    path.unlink()
    driver.delete_network(call(NetworkID=NETWORK))
    assert list(kept.all(Network)) == []
