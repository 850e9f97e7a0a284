"""A host that has IPv6 disabled by sysctl: networks that have IPv6 enable it on their own links only."""

from __future__ import annotations

import pytest

from lab.confs import bridge, pool, ptp
from lab.host import Host
from lab.plugins import Cni

SETTING = "net.ipv6.conf.{}.disable_ipv6"
ROUTES = [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}]
DUAL = pool("10.84.0.0/24", "fd84::/64", routes=ROUTES)
NETS = {
    "bridge": bridge(DUAL, isGateway=True),
    "ptp": ptp(DUAL),
}


@pytest.mark.parametrize("kind", list(NETS))
def test_ipv6_is_enabled_on_the_networks_links(host: Host, cni: Cni, kind: str) -> None:
    for scope in ("all", "default"):
        host.run("sysctl", "-w", SETTING.format(scope) + "=1")
    conf = NETS[kind]
    results = {name: cni.add(conf, host.container(name), container=name) for name in ("c1", "c2")}
    host.serve_tcp("c1", 80)
    for address in ("10.84.0.2", "fd84::2"):
        assert host.reaches("c2", address, 80), address
        assert host.reaches(None, address, 80), address
    for name, result in results.items():
        cni.check(conf, result, f"/run/netns/{name}", container=name)
    for scope in ("all", "default", "lo"):
        assert host.run("sysctl", "-n", SETTING.format(scope)).stdout == "1\n"
    for name in results:
        cni.delete(conf, f"/run/netns/{name}", container=name)
