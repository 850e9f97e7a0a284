"""``weft apply`` on the real kernel: a switch, a router, an interface, a container, a service that is called."""

from __future__ import annotations

import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lab import dns, namespaces
from lab.abilities import lack, require
from lab.commands import Outcome, run
from lab.confined import confined
from lab.host import Host
from lab.plugins import ROOT
from lab.waiting import until

Weft = Callable[..., Outcome]
CONFIG, KEPT, FILE = Path("/run/cni-config"), Path("/etc/weft/applied.toml"), Path("/run/office.toml")
OFFICE = """
[switch.office]
mac = "02:00:00:00:0f:01"
mtu = 1450
{switch}

[network.outside]
subnets = ["10.90.0.0/24"]

[router.edge]
nat = ["wan"]
[router.edge.interface.lan]
switch = "office"
addresses = ["10.50.0.1/24"]
{access}
[router.edge.interface.wan]
network = "outside"

[interface.printer]
namespace = "printer"
ifname = "eth0"
switch = "office"
mac = "02:00:00:00:0f:20"
addresses = ["10.50.0.20/24"]
gateways = ["10.50.0.1"]
{access}

[network.shop]
switch = "office"
router = "edge"
subnets = ["10.50.0.0/24"]
gateways = ["10.50.0.254"]
names = true
{options}

[service.printing]
address = "10.50.0.20"
port = 631
balance = "round-robin"
check = {{ tcp = "10.50.0.20:631", interval = "500ms" }}
"""


@pytest.fixture
def weft(host: Host) -> Iterator[Weft]:
    """Runs bin/weft; afterwards no daemon, no namespace and no file of it is left."""
    environment = {"PATH": os.environ["PATH"], "WEFT_CNI_CONFIG": str(CONFIG), "LC_ALL": "C.UTF-8"}

    def call(*arguments: str, check: bool = True) -> Outcome:
        return run(str(ROOT / "bin/weft"), *arguments, environment=environment, check=check, timeout=120)

    yield call
    call("down", "--services", check=False)
    for name in ("edge", "printer"):
        if Path(f"/run/netns/{name}").exists():
            run("ip", "netns", "delete", name)
    shutil.rmtree(CONFIG, ignore_errors=True)
    KEPT.unlink(missing_ok=True)


def write(text: str) -> str:
    FILE.write_text(text)
    return str(FILE)


def office(tagged: bool = False) -> str:
    return write(
        OFFICE.format(
            switch="vlans = [10, 20]\n[switch.office.ports.lan0]" if tagged else "",
            access="vlan = 10" if tagged else "",
            options="options = { vlan = 10 }" if tagged else "",
        )
    )


_SERVER = """
import socket
server = socket.create_server(("10.50.0.20", 631))
while True:
    connection, peer = server.accept()
    connection.sendall(b"printed for " + peer[0].encode())
    connection.close()
"""
_CALL = """
import socket, sys
print(socket.create_connection((sys.argv[1], int(sys.argv[2])), 5).recv(99).decode())
"""


def call(host: Host, name: str, address: str, port: int) -> str:
    return host.inside(name, sys.executable, "-c", _CALL, address, str(port)).stdout.strip()


def call_printer(host: Host, weft: Weft) -> None:
    """A container of the network reaches the router's other side, finds the service by name, and calls it."""
    assert host.ping("c1", "10.50.0.1") and host.ping("c1", "10.90.0.1")  # by the router, with its address
    traced = weft("trace", "c1", "10.90.0.1", "--json").json
    routed, masqueraded = [one["what"] for one in traced["hops"] if one["place"] == "weft-edge"]
    assert traced["delivered"] and routed == "routed by wan"
    assert re.fullmatch(r"the source becomes 10\.90\.0\.[2-9], by inet weft_router nat_postrouting", masqueraded)
    server = host.start("ip", "netns", "exec", "printer", sys.executable, "-c", _SERVER)
    try:
        until(lambda: "passing" in weft("services", "list", "-detailed").stdout)
        with namespaces.inside("/run/netns/c1"):
            reply = dns.ask("10.50.0.254", 53, dns.question("printing.service.weft", "A"))
        assert reply is not None and "10.50.0.20" in str(dns.read(reply).answer)
        assert call(host, "c1", "10.50.0.20", 631).startswith("printed for 10.50.0.")
    finally:
        server.kill()
        server.wait()


def test_a_switch_a_router_an_interface_and_a_service_that_is_called(host: Host, weft: Weft) -> None:
    before = host.snapshot()
    planned = weft("diff", "-f", office(), check=False)
    assert planned.code == 1 and host.changes(before, within=0.0) == []
    assert "ip link add office address 02:00:00:00:0f:01 mtu 1450 type bridge" in planned.stdout
    assert "ip netns add edge" in planned.stdout and "masquerade" in planned.stdout
    weft("apply", "-f", office())
    host.container("c1")
    weft("attach", "shop", "c1")
    bridge = host.run("ip", "-j", "-d", "link", "show", "office").json[0]
    assert (bridge["address"], bridge["mtu"]) == ("02:00:00:00:0f:01", 1450)
    printer = host.run("ip", "-j", "-n", "printer", "address", "show", "eth0").json[0]
    assert printer["address"] == "02:00:00:00:0f:20"
    assert {"10.50.0.20"} == {one["local"] for one in printer["addr_info"] if one["family"] == "inet"}
    call_printer(host, weft)
    assert weft("diff").stdout == "nothing to change\n"
    assert weft("apply", "-f", office()).stdout == "nothing to change\n"
    assert weft("check").code == 0 and "No problems found" in weft("doctor").stdout

    # As after a boot: links, namespaces and the state of /run are gone, the kept file is there.
    weft("down")
    for name in ("edge", "printer"):
        host.run("ip", "netns", "delete", name)
    host.remove_container("c1")
    for link in ("office", "weft-outside"):
        host.run("ip", "link", "delete", link)
    shutil.rmtree("/run/weft")
    for path in Path("/var/lib/cni/networks").rglob("10.*"):
        os.utime(path, (0, 0))  # older than the boot
    weft("up")  # as by weft-agent.service
    by_unit = confined(ROOT / "conf/systemd/weft-apply.service", str(ROOT / "bin/weft"), "apply")
    environment = {"PATH": os.environ["PATH"], "WEFT_CNI_CONFIG": str(CONFIG), "LC_ALL": "C.UTF-8"}
    run(*by_unit, environment=environment, timeout=120)
    host.container("c1")
    weft("attach", "shop", "c1")
    call_printer(host, weft)

    weft("detach", "shop", "c1")
    assert weft("apply", "-f", write(""), "--prune", check=False).code == 0
    assert not KEPT.exists() and "printing" not in weft("services", "list").stdout
    weft("down", "--services")
    weft("gc")
    left = [line for line in host.changes(before) if "forwarding" not in line and "ip_forward" not in line]
    assert left == []


def test_vlans_of_a_switch(host: Host, weft: Weft) -> None:
    """Frames leave by a port of the host with the tag of the interface's VLAN."""
    if lack("vlan_filtering"):
        refused = weft("apply", "-f", office(tagged=True), check=False)
        assert refused.code != 0
        require("vlan_filtering")
    host.container("far")
    host.run("ip", "link", "add", "lan0", "type", "veth", "peer", "name", "eth0", "netns", "far")
    host.inside("far", "ip", "link", "set", "eth0", "up")
    # Without what needs an agent, whose start takes long on the emulated machine that has VLANs.
    text = Path(office(tagged=True)).read_text().partition("[service.printing]")[0].replace("names = true\n", "")
    weft("apply", "-f", write(text))
    host.inside("far", "ip", "link", "add", "link", "eth0", "name", "v10", "type", "vlan", "id", "10")
    host.inside("far", "ip", "address", "add", "10.50.0.99/24", "dev", "v10")
    host.inside("far", "ip", "link", "set", "v10", "up")
    assert host.ping("far", "10.50.0.20") and host.ping("far", "10.50.0.1")
    host.container("c1")
    weft("attach", "shop", "c1")
    assert host.ping("c1", "10.50.0.20") and host.ping("c1", "10.50.0.99")
    host.inside("far", "ip", "link", "delete", "v10")
    host.inside("far", "ip", "link", "add", "link", "eth0", "name", "v20", "type", "vlan", "id", "20")
    host.inside("far", "ip", "address", "add", "10.50.0.98/24", "dev", "v20")
    host.inside("far", "ip", "link", "set", "v20", "up")
    assert not host.ping("far", "10.50.0.20", expected=False)
    assert weft("diff").stdout == "nothing to change\n"
    weft("detach", "shop", "c1")
    weft("apply", "-f", write(""), "--prune")
    assert host.run("ip", "-j", "link", "show", "lan0").json[0].get("master") is None


def test_a_port_keeps_the_host_reachable(host: Host, weft: Weft) -> None:
    """A link with an address is not taken for a port; nothing else is made, either."""
    lan = host.lan()
    before = host.snapshot()
    refused = weft("apply", "-f", write(f"[switch.s]\n[switch.s.ports.{lan.link}]\n"), check=False)
    assert refused.code == 4 and f"has the address {lan.host}" in refused.stderr
    assert host.changes(before) == [] and not KEPT.exists()


def test_a_failure_half_way_undoes_all(host: Host, weft: Weft) -> None:
    """The kernel refuses a route of the last interface; switch, network, router are there by then."""
    host.container("mine")
    host.inside("mine", "ip", "link", "set", "lo", "up")  # where it is not, an attach leaves it up
    before, inside = host.snapshot(), host.run("ip", "-n", "mine", "-o", "address").stdout
    text = (
        "[switch.s]\n[network.n]\nswitch = 's'\nsubnets = ['10.51.0.0/24']\n[router.r]\n"
        "[router.r.interface.a]\nswitch = 's'\naddresses = ['10.51.0.7/24']\n"
        "[interface.eth9]\nnamespace = 'mine'\nswitch = 's'\naddresses = ['10.51.0.9/24']\ngateways = ['10.77.0.1']\n"
    )
    refused = weft("apply", "-f", write(text), check=False)
    assert refused.code == 1 and "interface eth9 of mine: " in refused.stderr, refused
    assert host.run("ip", "-n", "mine", "-o", "address").stdout == inside
    assert not list(CONFIG.glob("*.conflist")) and not KEPT.exists() and not Path("/run/netns/r").exists()
    assert [line for line in host.changes(before) if "forward" not in line] == []
