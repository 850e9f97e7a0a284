"""Network lists that projects ship, through all plugins of theirs that weft is: ADD, CHECK, DEL. On the fake kernel."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from cni_plugin.plan import modules
from lab.calls import Weft
from lab.shipped import SHIPPED, Conf, pool
from weft.kernel.fake.kernel import FakeKernel
from weft.kernel.host import Host
from weft.kernel.interface import VethPeer

RUNTIME: Conf = {
    "portMappings": [{"HostPort": 8080, "ContainerPort": 80, "Protocol": "tcp", "HostIP": ""}],
    "bandwidth": {"IngressRate": 1_000_000, "IngressBurst": 2**32 - 1, "EgressRate": 0, "EgressBurst": 0},
    "mac": "02:00:00:00:00:31",
    "ips": None,
    "snat": True,
}
"""What runtimes pass, in containerd's case of letters."""

STAND_IN: Conf = {"type": "ptp", "ipam": pool("10.250.0.0/24", routes=[{"dst": "0.0.0.0/0"}])}
"""For the driver of another project that comes first in a list."""


def members(shipped: Conf, folder: Path) -> list[Conf]:
    """The configurations of a list, as libcni passes them, with leases in ``folder``."""
    known = {*modules.plugins()}
    found = []
    for index, plugin in enumerate(shipped["plugins"]):
        member = plugin if plugin["type"] in known else STAND_IN
        if index and plugin["type"] not in known:
            continue
        capabilities = plugin.get("capabilities", {})
        runtime = {name: value for name, value in RUNTIME.items() if capabilities.get(name)}
        whole = {**json.loads(json.dumps(member)), "name": shipped["name"]}
        if "cniVersion" in shipped:
            whole["cniVersion"] = shipped["cniVersion"]
        if runtime:
            whole["runtimeConfig"] = runtime
        if whole.get("ipam", {}).get("type") == "host-local":
            whole["ipam"]["dataDir"] = str(folder)
        found.append(whole)
    return found


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_list_works(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = FakeKernel()
    space = kernel.add("/c1")
    kernel.host.add_link("eth0", "veth", up=True, peer=VethPeer("far", up=True))
    weft = Weft(kernel, Host(str(tmp_path / "run"), "boot", 0.0))
    plugins = members(SHIPPED[name], tmp_path / "leases")
    version = plugins[0].get("cniVersion", "0.1.0")
    result: Any = None
    for plugin in plugins:
        given = plugin if result is None else {**plugin, "prevResult": result}
        answer = weft("ADD", given, "/c1")
        assert answer.ok, (plugin["type"], answer)
        result = answer.document
    assert result["cniVersion"] == version
    for plugin in plugins if version >= "0.4.0" else ():
        assert weft.check(plugin, result, "/c1") == "", plugin["type"]
    if any(plugin["type"] == "bridge" and not plugin.get("disableContainerInterface") for plugin in plugins):
        link = space.link("eth0")
        assert link is not None and link.up
    for plugin in reversed(plugins):
        weft.delete({**plugin, "prevResult": result} if version >= "0.4.0" else plugin, "/c1")
    assert [(link.name, link.up) for link in space.links()] == [("lo", False)]
    assert [one for _, _, files in os.walk(tmp_path / "leases") for one in files if one[0] in "1f2"] == []


def test_every_plugin_of_weft_is_in_some_list() -> None:
    """But those that no project ships a list with, which the documentation of the reference shows alone."""
    shipped = {plugin["type"] for one in SHIPPED.values() for plugin in one["plugins"]}
    assert {*modules.plugins()} - shipped == {
        "dhcp",
        "dnsname",
        "dummy",
        "host-device",
        "sbr",
        "static",
        "tap",
        "vlan",
        "vrf",
    }
