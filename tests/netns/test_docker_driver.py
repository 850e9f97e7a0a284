"""The driver for Docker on a real kernel, without dockerd: its calls, and the link moved as Docker does.

tests/conformance has the same with dockerd, but for the drivers that the kernel of such a machine lacks.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from cni_plugin.docker.calls import Calls
from cni_plugin.docker.driver import Networks
from cni_plugin.docker.state import Endpoint, Kept, Network
from cni_plugin.networks import attachments
from lab.abilities import require
from lab.host import Host
from lab.libnetwork import ENDPOINT, GENERIC, NETWORK, call, ended

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

    host.run("ip", "link", "set", link, "netns", path)
    for line in (f"link set {link} name eth0", f"address add {address} dev eth0",
                 "link set eth0 up", f"route add default via {gateway}"):  # fmt: skip
        host.inside("c1", "ip", *line.split())
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
