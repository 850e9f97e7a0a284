"""Each driver and option of ``podman network create``, with the lists that podman itself writes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from lab.podman import Podman

OUTSIDE = "192.0.2.2"
Create = Callable[..., None]


def test_every_option_of_a_bridge(podman: Podman, create: Create, roots: list[str]) -> None:
    """The upper half of a subnet: podman writes its broadcast address as the range's end."""
    addresses = ("--subnet", "10.70.0.0/24", "--gateway", "10.70.0.200", "--ip-range", "10.70.0.128/25")
    create("full", *addresses, "-o", "mtu=1400", "--label", "colour=blue", "--disable-dns")
    [shown] = json.loads(podman.podman("network", "inspect", "full"))
    assert shown["labels"] == {"colour": "blue"}
    assert shown["options"] == {"mtu": "1400"}
    first = podman.up("c1", roots[0], network="full")
    second = podman.up("c2", roots[1], network="full")
    assert [first, second] == ["10.70.0.129", "10.70.0.130"]
    assert podman.inspect("c1", "full")["Gateway"] == "10.70.0.200"
    assert "default via 10.70.0.200" in podman.show("c1", "route")
    assert "mtu 1400" in podman.show("c1", "link", "show", "eth0")
    assert podman.ping("c1", second)
    assert podman.ping("c1", OUTSIDE)


def test_an_internal_network(podman: Podman, create: Create, roots: list[str]) -> None:
    create("inner", "--internal", "--subnet", "10.70.0.0/24")
    podman.up("c1", roots[0], network="inner")
    other = podman.up("c2", roots[1], network="inner")
    assert "default" not in podman.show("c1", "route")
    assert podman.ping("c1", other)
    assert not podman.ping("c1", OUTSIDE, expected=False)


def test_ipv6_beside_ipv4(podman: Podman, create: Create, roots: list[str]) -> None:
    create("dual", "--ipv6", "--subnet", "10.70.0.0/24", "--subnet", "fd70::/64")
    podman.serve("web", roots[0], "-p", "8080:80", network="dual")
    podman.up("c2", roots[1], "--ip", "10.70.0.20", "--ip6", "fd70::20", network="dual")
    found = podman.inspect("c2", "dual")
    assert (found["IPAddress"], found["GlobalIPv6Address"]) == ("10.70.0.20", "fd70::20")
    assert found["IPv6Gateway"] == "fd70::1"
    assert "default via fd70::1" in podman.show("c2", "-6", "route")
    assert podman.ping("web", "fd70::20")
    assert podman.ping("web", "10.70.0.20")
    for address in ("fd70::1", "192.0.2.1"):
        assert "weft was here" in podman.get(address, 8080)
    assert sorted(podman.leases("dual")) == ["10.70.0.2", "10.70.0.20", "fd70::2", "fd70::20"]


def test_isolated_networks(podman: Podman, create: Create, roots: list[str]) -> None:
    """``-o isolate``: the outside is reachable, the other network is not."""
    create("red", "-o", "isolate=true")
    create("green", "-o", "isolate=true")
    podman.up("c1", roots[0], network="red")
    near = podman.up("c2", roots[1], network="red")
    far = podman.up("c3", roots[2], network="green")
    assert podman.ping("c1", near)
    assert podman.ping("c1", OUTSIDE)
    assert podman.ping("c3", OUTSIDE)
    assert not podman.ping("c1", far, expected=False)
    assert not podman.ping("c3", near, expected=False)


def test_a_vlan_of_a_bridge(podman: Podman, create: Create, roots: list[str]) -> None:
    """On a kernel without VLAN filtering, ADD fails with that reason and leaves nothing behind."""
    create("tagged", "-o", "vlan=7")
    outcome = podman.start_one("c1", roots[0], network="tagged")
    if outcome.code:
        assert "this kernel has no VLAN filtering for bridges" in outcome.stderr
        assert podman.left() == []
        return
    podman.up("c2", roots[1], network="tagged")
    assert podman.ping("c2", podman.inspect("c1", "tagged")["IPAddress"])


def test_no_addresses(podman: Podman, create: Create, roots: list[str]) -> None:
    create("bare", "--ipam-driver", "none")
    podman.up("c1", roots[0], network="bare")
    shown = podman.show("c1", "address", "show", "eth0")
    assert "state UP" in shown or ",UP," in shown
    assert " inet " not in shown
    assert podman.inspect("c1", "bare")["MacAddress"] in shown


@pytest.mark.parametrize("mode", ["bridge", "private"])
def test_macvlan_with_the_subnet_of_the_lan(mode: str, podman: Podman, create: Create, roots: list[str]) -> None:
    wire = ("-o", "parent=lan0", "--subnet", "192.0.2.0/24", "--ip-range", "192.0.2.128/25")
    name = f"wire-{mode}"
    create(name, "-d", "macvlan", *wire, "-o", f"mode={mode}", "-o", "mtu=1300")
    first = podman.up("c1", roots[0], "--mac-address", "02:00:00:00:00:77", network=name)
    second = podman.up("c2", roots[1], "--ip", "192.0.2.201", network=name)
    assert (first, second) == ("192.0.2.129", "192.0.2.201")
    shown = podman.show("c1", "link", "show", "eth0")
    assert "02:00:00:00:00:77" in shown and "mtu 1300" in shown
    assert podman.ping("c1", OUTSIDE)
    assert podman.ping("c1", second, expected=mode == "bridge") is (mode == "bridge")


def test_macvlan_with_dhcp_ipam(podman: Podman, create: Create, roots: list[str], tmp_path: Path) -> None:
    """Without a subnet podman names the ipam plugin ``dhcp``, which is in the same directory."""
    leases = tmp_path / "leases"
    options = (
        "--keep-in-foreground", "--conf-file=/dev/null", "--port=0", "--no-ping", "--user=root", "--interface=eth0",
        "--dhcp-authoritative", "--dhcp-range=192.0.2.100,192.0.2.120,255.255.255.0,2m",
        f"--dhcp-leasefile={leases}", f"--pid-file={tmp_path}/pid", f"--log-facility={tmp_path}/log",
    )  # fmt: skip
    podman.start("ip", "netns", "exec", "outside", "dnsmasq", *options, log=tmp_path / "errors")
    ready = podman.until("grep", "-q", "DHCP, IP range", f"{tmp_path}/log")
    assert ready.code == 0, (tmp_path / "errors").read_text()
    try:
        create("wire", "-d", "macvlan", "-o", "parent=lan0")
        address = podman.up("c1", roots[0], network="wire")
        assert address.startswith("192.0.2.1")
        assert address in leases.read_text()
        assert podman.ping("c1", OUTSIDE)
        podman.podman("rm", "-f", "-t0", "c1")
        assert address not in leases.read_text()
    finally:
        podman.run("sh", "-c", f"kill $(cat {tmp_path}/pid)")


def test_ipvlan(podman: Podman, create: Create, roots: list[str]) -> None:
    """Podman 4.3 names no parent: weft takes the default route's link, if the kernel has ipvlan."""
    create("shared", "-d", "ipvlan", "--subnet", "192.0.2.0/24", "--ip-range", "192.0.2.128/25")
    podman.run("ip", "route", "add", "default", "via", OUTSIDE)
    try:
        outcome = podman.start_one("c1", roots[0], network="shared")
        if outcome.code:
            assert "ipvlan" in outcome.stderr and "kernel" in outcome.stderr
            assert podman.left() == []
        else:
            assert podman.ping("c1", OUTSIDE)
    finally:
        podman.run("ip", "route", "del", "default")


def test_podmans_own_network(own: None, podman: Podman, create: Create, roots: list[str]) -> None:
    """The default network ``podman``, which is in no configuration file."""
    podman.serve("web", roots[0], "-p", "8080:80", network="-")
    assert podman.inspect("web", "podman")["IPAddress"].startswith("10.88.0.")
    assert "weft was here" in podman.get("192.0.2.1", 8080, namespace="outside")
    podman.podman("rm", "-fa", "-t0")
    assert podman.findings() == []


def test_podman_removes_a_network(own: None, podman: Podman, roots: list[str]) -> None:
    """Podman deletes the list and the bridge, calling no plugin; ``weft gc`` removes the rest."""
    podman.podman("network", "create", "--subnet", "10.70.0.0/24", "brief")
    address = podman.up("c1", roots[0], network="brief")
    refused = podman.run("podman", "network", "rm", "brief", check=False)
    assert refused.code != 0 and "is being used" in refused.stderr
    podman.podman("network", "rm", "-f", "-t0", "brief")
    assert podman.left() == []
    assert "network brief is set up but neither defined nor used" in podman.findings()
    assert "freed network brief" in podman.weft("gc").stdout
    assert podman.findings() == []
    # The same subnet under another network name.
    podman.podman("network", "create", "--subnet", "10.70.0.0/24", "other")
    assert podman.up("c1", roots[0], network="other") == address
    podman.podman("network", "rm", "-f", "-t0", "other")
    podman.weft("gc")
