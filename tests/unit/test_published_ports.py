"""Published ports beside the processes of the host."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path

import pytest

from cni_plugin.dataplane.tables import TABLES
from cni_plugin.ops.ports import PortsFree, PublishedPort
from cni_plugin.service.verbs import Service
from weft.errors import Conflict
from weft.kernel.fake.kernel import FakeKernel
from weft.kernel.host import Host
from weft.kernel.values import Listener

PORT = PublishedPort("udp", 53, ip_address("10.1.0.2"), 53)


@pytest.mark.parametrize(("address", "named"), [("127.0.0.53", True), ("0.0.0.0", False)])
def test_beside_a_process_on_one_address_the_hint_names_host_ip(tmp_path: Path, address: str, named: bool) -> None:
    """systemd-resolved listens on 127.0.0.53; DNAT of every address would cut the host off from its names."""
    kernel = FakeKernel()
    kernel.host.sockets["udp", 53] = [Listener(ip_address(address), 53, "systemd-resolve (7)")]
    kernel.rules.install(TABLES)
    machine = Service(kernel, Host(str(tmp_path), "boot", 0.0)).machine(None)
    with pytest.raises(Conflict, match=rf"systemd-resolve \(7\) listens on {address}") as refused:
        PortsFree((PORT,)).apply(machine)
    assert ("hostIP" in refused.value.hint) == named
    at = PortsFree((replace(PORT, host=ip_address("192.0.2.1")),))
    if named:
        assert not at.apply(machine)
    else:
        with pytest.raises(Conflict):
            at.apply(machine)
