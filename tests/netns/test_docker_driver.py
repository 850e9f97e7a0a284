"""The driver for Docker on a real kernel, without dockerd: its calls, and the link moved as Docker does.

tests/conformance has the same with dockerd, but for the drivers that the kernel of such a machine lacks.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from cni_plugin.docker.calls import Calls, link_name
from cni_plugin.docker.driver import Networks
from cni_plugin.docker.state import Endpoint, Kept, Network
from cni_plugin.networks import attachments
from lab import seen
from lab.abilities import require
from lab.host import Host
from lab.libnetwork import ENDPOINT, GENERIC, NETWORK, call, ended
from lab.waiting import until

_TAG = "5"
OPTIONS = {
    "bridge": {},
    "macvlan": {"parent": "lan0"},
    "ipvlan": {"parent": "lan0"},
    "vlan": {"parent": "lan0", "vlan": _TAG},
}


def names(host: Host) -> set[str]:
    """The links of the host."""
    return {one["ifname"] for one in host.run("ip", "-j", "link").json}


def move(host: Host, link: str, name: str, *addresses: str) -> None:
    """What Docker does with a link after Join."""
    host.run("ip", "link", "set", link, "netns", f"/run/netns/{name}")
    host.inside(name, "ip", "link", "set", link, "name", "eth0")
    for one in addresses:
        host.inside(name, "ip", "address", "add", one, "dev", "eth0", *(["nodad"] if ":" in one else []))
    host.inside(name, "ip", "link", "set", "eth0", "up")


@pytest.mark.parametrize("driver", OPTIONS)
def test_a_link_that_docker_moves(host: Host, driver: str, tmp_path: Path) -> None:
    """CreateNetwork to DeleteNetwork: traffic, CHECK, and nothing left."""
    if driver != "bridge":
        require(driver)
    lan, path = host.lan(), host.container()
    subnet, gateway = ("10.77.0.0/24", "10.77.0.1") if driver == "bridge" else ("192.0.2.0/24", lan.outside)
    if driver == "vlan":
        subnet, gateway = "198.51.100.0/24", "198.51.100.1"
        for line in (f"link add link eth0 name tagged type vlan id {_TAG}", f"address add {gateway}/24 dev tagged",
                     "link set tagged up"):  # fmt: skip
            host.inside(lan.name, "ip", *line.split())
    address = f"{subnet.removesuffix('0/24')}77/24"
    before = names(host)
    kept, calls = Kept(str(tmp_path / "kept")), Calls()
    docker = Networks(kept, calls)
    pool = {"AddressSpace": "LocalDefault", "Gateway": f"{gateway}/24", "Pool": subnet}
    options = {GENERIC: {"driver": driver, **OPTIONS[driver]}}
    docker.create_network(call(NetworkID=NETWORK, Options=options, IPv4Data=[pool], IPv6Data=[]))
    interface = {"Address": address, "AddressIPv6": "", "MacAddress": ""}
    docker.create_endpoint(call(NetworkID=NETWORK, EndpointID=ENDPOINT, Interface=interface, Options={}))
    answer = docker.join(call(NetworkID=NETWORK, EndpointID=ENDPOINT, SandboxKey=path, Options={}))
    named = answer["InterfaceName"]
    assert isinstance(named, dict) and answer["Gateway"] == gateway
    link = str(named["SrcName"])

    move(host, link, "c1", address)
    host.inside("c1", "ip", "route", "add", "default", "via", gateway)
    assert host.ping("c1", gateway)

    endpoint, network = docker.endpoint(call(EndpointID=ENDPOINT)), docker.network(NETWORK)
    assert calls.settle(network, endpoint)
    [one] = attachments.endpoints(calls.service)
    assert attachments.mismatches(calls.service, one) == []
    ended(docker)
    docker.delete_network(call(NetworkID=NETWORK))
    assert "eth0" not in host.inside("c1", "ip", "link").stdout
    assert names(host) == before and list(calls.service.records.all()) == []
    assert list(kept.all(Network)) == [] and list(kept.all(Endpoint)) == []


@pytest.mark.parametrize("driver", ["bridge", "macvlan"])
def test_neighbours_know_an_address_that_is_given_again_at_once(host: Host, driver: str, tmp_path: Path) -> None:
    """They had the MAC address of the endpoint before; Docker's own networks make it of the address."""
    if driver != "bridge":
        require(driver)
    lan = host.lan()
    place = lan.name if driver == "macvlan" else None
    if place:
        for one in ("10.77.0.1/24", "fd77::1/64"):
            host.inside(place, "ip", "address", "add", one, "dev", "eth0", *(["nodad"] if ":" in one else []))
    calls = Calls()
    docker = Networks(Kept(str(tmp_path / "kept")), calls)
    pools = [{"AddressSpace": "LocalDefault", "Gateway": f"{net}1/{bits}", "Pool": f"{net}{zero}/{bits}"}
             for net, zero, bits in (("10.77.0.", "0", 24), ("fd77::", "", 64))]  # fmt: skip
    options = {GENERIC: {"driver": driver, **OPTIONS[driver]}}
    docker.create_network(call(NetworkID=NETWORK, Options=options, IPv4Data=pools[:1], IPv6Data=pools[1:]))

    def attach(number: int, *addresses: str) -> str:
        """The MAC address of a new endpoint with these addresses, in use."""
        path, name = host.container(f"x{number}"), f"{number}" * 64
        keys = {"Address": addresses[0], "AddressIPv6": addresses[1], "MacAddress": ""}
        made = docker.create_endpoint(call(NetworkID=NETWORK, EndpointID=name, Interface=keys, Options={}))
        docker.join(call(NetworkID=NETWORK, EndpointID=name, SandboxKey=path, Options={}))
        move(host, link_name(name), f"x{number}", *addresses)
        assert calls.settle(docker.network(NETWORK), docker.endpoint(call(EndpointID=name)))
        interface = made["Interface"]
        assert isinstance(interface, dict)
        return str(interface["MacAddress"])

    attach(9, "10.77.0.9/24", "fd77::9/64")  # a bridge without ports forgets its neighbours
    for turn in range(4):
        mac = attach(turn, "10.77.0.77/24", "fd77::77/64")
        for address in ("10.77.0.77", "fd77::77"):
            if turn:  # nothing is sent to it meanwhile, by which they would notice
                until(lambda address=address, mac=mac: seen.neighbour(host, address, place) == mac, what=address)  # type: ignore[misc]
            assert host.ping(place, address)
        docker.leave(call(NetworkID=NETWORK, EndpointID=f"{turn}" * 64))
        docker.delete_endpoint(call(NetworkID=NETWORK, EndpointID=f"{turn}" * 64))
