"""Each conflist of conf/, called as a runtime does: ADD, traffic to the gateway, CHECK, DEL."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lab.abilities import require
from lab.commands import run
from lab.dnsmasq import Dnsmasq, end_keepers
from lab.ground import overlay_files
from lab.host import Host
from lab.namespaces import OWN
from lab.plugins import OWN_FOLDER, ROOT, Cni

FILES = sorted((ROOT / "conf").glob("*.conflist"))
RUNTIME = {"portMappings": [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]}
NEEDS = {name: name for name in ("macvlan", "ipvlan", "dummy", "vrf")}
NEEDS |= {"overlay": "vxlan", "vlan-link": "vlan", "tap": "tun", "dhcp": "macvlan"}
WIRED = ("macvlan", "ipvlan", "vlan-link", "host", "dhcp", "uplink")
"""Networks whose master is the link of the default route."""


def lacks_vlan_filtering() -> bool:
    """Tried on a bridge in the test's own namespace, deleted afterwards."""
    outcome = run("ip", "link", "add", "probe0", "type", "bridge", "vlan_filtering", "1", check=False)
    if outcome.code == 0:
        run("ip", "link", "delete", "probe0")
    return outcome.code != 0


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_conflist_works(host: Host, path: Path, tmp_path: Path) -> None:
    conflist: dict[str, Any] = json.loads(path.read_text())
    if any("vlan" in plugin for plugin in conflist["plugins"]) and lacks_vlan_filtering():
        pytest.skip("this kernel has no VLAN filtering on bridges (bin/vm has)")
    require(NEEDS.get(path.stem, ""))
    if path.stem == "uplink":
        host.configure('[uplink]\nup = "45mbit"\ndown = "95mbit"\n')
    if path.stem in WIRED:
        lan = host.lan()
        if path.stem == "dhcp":
            Dnsmasq(host, lan, tmp_path)
    if path.stem == "overlay":
        overlay_files()
    if path.stem == "host-device":
        host.run("ip", "link", "add", "eth1", "type", "veth", "peer", "name", "eth1-far")
    cni = Cni(OWN_FOLDER)
    netns = OWN if path.stem == "host" else host.container("c1")
    runtime = RUNTIME if any("portMappings" in plugin.get("capabilities", {}) for plugin in conflist["plugins"]) else {}
    interface = "lo" if path.stem == "loopback" else "eth0"
    cni.add_list(conflist, netns, runtime, ifname=interface, container="first")
    cni.delete_list(conflist, None, netns, runtime, ifname=interface, container="first")
    # The bridge and the rules belong to the network and stay; a second attachment adds no others.
    before = host.snapshot()
    result = cni.add_list(conflist, netns, runtime, ifname=interface)
    for ip in result.get("ips", []):
        if "gateway" in ip and conflist["plugins"][0].get("isGateway", path.stem.endswith("ptp")):
            assert host.ping("c1", ip["gateway"]), ip
    if runtime:
        lan = host.lan()
        host.serve_tcp("c1", 80)
        assert host.fetch(lan.name, lan.host, 8080) == lan.outside
        host.run("ip", "link", "delete", lan.link)
    cni.check_list(conflist, result, netns, runtime, ifname=interface)
    cni.delete_list(conflist, result, netns, runtime, ifname=interface)
    cni.delete_list(conflist, result, netns, runtime, ifname=interface)
    assert host.changes(before) == []
    end_keepers()
