"""Which links virtual addresses cannot be reached from."""

from __future__ import annotations

import pytest

from discovery.balancer.table import LINK, outside_links
from weft.kernel.values import Link

OWN = "weft:0123456789abcdef"


def link(name: str, kind: str = "", master: str = "", alias: str = "") -> Link:
    return Link(name, 1, kind=kind, master=master, alias=alias)


@pytest.mark.parametrize(
    ("links", "outside"),
    [
        ([link("lo"), link(LINK, "bridge")], ()),
        (
            [link("eth0"), link("eth1"), link("bond0", "bond"), link("eth0.7", "vlan")],
            ("eth0", "eth1", "bond0", "eth0.7"),
        ),
        ([link("wg0", "wireguard"), link("tun0", "tun"), link("shim", "macvlan")], ("wg0", "tun0", "shim")),
        ([link("veth1", "veth", alias=OWN), link("veth2", "veth")], ("veth2",)),
        ([link("weft-a", "bridge", alias=OWN), link("docker0", "bridge")], ()),
        ([link("br0", "bridge"), link("veth1", "veth", "br0", OWN), link("tap0", "tun", "br0")], ("tap0",)),
        (
            [link("br0", "bridge", alias=OWN), link("eth1", master="br0"), link("v", "veth", "br0", OWN)],
            ("br0", "eth1"),
        ),
        ([link("br0", "bridge"), link("bond0.7", "vlan", "br0")], ("br0", "bond0.7")),
        ([link("uplink", "bridge", alias=OWN)], ("uplink",)),
    ],
    ids=["own", "physical", "vpn", "ptp", "empty", "adopted", "lan", "tagged", "default route"],
)
def test_outside_are_all_links_but_those_of_containers(links: list[Link], outside: tuple[str, ...]) -> None:
    assert outside_links(links, {"uplink"}) == outside
