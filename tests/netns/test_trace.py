"""``weft trace`` names what stops a packet, and follows it where it is translated: beside real traffic.

That it agrees with real packets between networks of every isolation is checked in test_isolation.
"""

from __future__ import annotations

import json
import shlex
import signal

import pytest

from lab import seen, tracing
from lab.calls import Weft
from lab.commands import run
from lab.confs import DEFAULT4, DEFAULT6, bridge, pool, port
from lab.host import Host, Lan
from lab.plugins import ROOT
from lab.waiting import until

pytestmark = pytest.mark.netns


def conf(name: str, number: int, **keys: object) -> dict[str, object]:
    """A network of weft's own on 10.NUMBER.0.0/24."""
    ipam = pool(f"10.{number}.0.0/24", routes=[DEFAULT4])
    return {**bridge(ipam, name=name, bridge=f"b-{name}", isGateway=True), "type": "weft", "driver": "bridge", **keys}


@pytest.fixture
def lan(host: Host) -> Lan:
    """Two networks, one container on each, that of the second with a published port; and a machine outside."""
    seen.hurry(host)
    seen.forward(host)
    lan = host.lan(default_route=True)
    weft = Weft()
    weft.add(conf("one", 81), host.container("web1"), "web1")
    published = {
        "portmap": {},
        "runtimeConfig": {"portMappings": [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]},
    }
    weft.add(conf("two", 82, **published), host.container("web2"), "web2")
    host.serve_tcp("web2", 80)
    return lan


def test_a_published_port_is_followed_to_its_container(host: Host, lan: Lan) -> None:
    for client, start in (("outside", lan.outside), ("web1", "web1"), (None, None)):
        assert host.fetch(client, lan.host, 8080) is not None, client
        reached, why = tracing.reaches(start, lan.host, 8080, "tcp", live=client != "outside")
        assert reached and "the destination becomes 10.82.0.2 port 80" in why, why


def test_a_port_published_in_both_families_is_followed(host: Host) -> None:
    """The map of IPv4 has the same protocol and port as that of IPv6."""
    seen.forward(host)
    lan = host.lan(default_route=True)
    published = {"portmap": {}, "runtimeConfig": {"portMappings": [port(8080, 80)]}}
    made = {**conf("two", 82, **published), "ipam": pool("10.82.0.0/24", "fd00:82::/64", routes=[DEFAULT4, DEFAULT6])}
    Weft().add(made, host.container("web2"), "web2")
    host.serve_tcp("web2", 80)
    for address in ("127.0.0.1", "::1", lan.host, lan.host6):
        reached, why = tracing.reaches(None, address, 8080, "tcp", live=True)
        assert reached, why


def test_what_stops_a_packet_is_named(host: Host, lan: Lan) -> None:
    def said(start: str | None = "web1", address: str = "192.0.2.2", port: int = 80) -> str:
        reached, why = tracing.reaches(start, address, port, "tcp")
        assert not reached, why
        assert host.fetch(start, address, port, timeout=0.5) is None
        return why.splitlines()[-1]

    assert said(address="10.82.0.2") == "dropped by inet weft intra_network"
    assert said("web1", "10.81.0.9").startswith("nobody known behind b-one has 10.81.0.9")
    assert said(None, "10.82.0.2", 99).startswith("delivered to web2; nothing listens on port 99")
    host.serve_tcp("outside", 80)
    assert host.fetch("web1", lan.outside, 80) is not None and tracing.reaches("web1", lan.outside, 80, "tcp")[0]
    run("nft", "add table ip mine; add chain ip mine f { type filter hook forward priority 10; policy drop; }")
    assert said() == "dropped by ip mine f"
    run("nft", "delete table ip mine")
    run("sysctl", "-qw", "net.ipv4.ip_forward=0")
    assert said() == "this host does not forward packets"
    run("sysctl", "-qw", "net.ipv4.ip_forward=1")
    run("ip", "route", "add", "blackhole", "192.0.2.2/32")
    assert said() == "the route to 192.0.2.2 discards it"
    run("ip", "route", "delete", "blackhole", "192.0.2.2/32")
    run("ip", "link", "set", "b-one", "down")
    assert said() == "b-one is down"
    run("ip", "link", "set", "b-one", "up")
    host.inside("web1", "ip", "link", "set", "eth0", "down")
    assert said() == "no route to 192.0.2.2"


def test_a_real_packet_leaves_nothing_behind(host: Host, lan: Lan) -> None:
    """Also where the process is killed: the tables are its own."""
    before = run("nft", "list", "tables").stdout
    assert tracing.reaches("web1", "10.82.0.2", 80, "tcp", live=True)[0] is False
    assert run("nft", "list", "tables").stdout == before
    owner = host.start(str(ROOT / ".venv/bin/python"), "-c", _OWNER, str(ROOT))
    assert owner.stdout is not None and owner.stdout.readline() == b"True\n"
    assert "table bridge weft-trace-test" in run("nft", "list", "tables").stdout
    owner.send_signal(signal.SIGKILL)
    owner.communicate()
    until(lambda: run("nft", "list", "tables").stdout == before)


_OWNER = """
import sys, time
sys.path.insert(0, sys.argv[1])
from weft.kernel.linux.live import table
from weft.kernel.nft.owned import OwnedTable
owned = OwnedTable(table("bridge", "weft-trace-test", "ip saddr 10.0.0.1"), persist=False)
print(owned.claim(), flush=True)
time.sleep(600)
"""


def test_the_command(host: Host, lan: Lan) -> None:
    run("mkdir", "-p", "/etc/cni/net.d")
    done = run("bin/weft", "trace", "web1", "web2", "--port", "80", check=False)
    assert done.code == 1 and done.stdout.startswith("tcp 10.81.0.2 > 10.82.0.2:80\n")
    assert 'drop comment "another network, or the outside"' in done.stdout
    assert done.stdout.endswith("not delivered: dropped by inet weft intra_network\n")
    done = run("bin/weft", "trace", "web1", lan.host, "--port", "8080", "--live")
    assert "a real packet: connected" in done.stdout and done.stdout.endswith("as was said, rule by rule\n")
    document = json.loads(run("bin/weft", "trace", lan.outside, lan.host, "--port", "8080", "--json").stdout)
    assert document["delivered"] and document["listening"]
    for words, message in (
        (["web1", "web2", "--proto", "tcp"], "--proto tcp needs --port"),
        (["nobody", "web2"], "nobody is not attached"),
        (["web1", "10.82.0.2", "-6"], "10.82.0.2 is no IPv6 address"),
        ([lan.outside, "web2", "--port", "80", "--live"], "--live sends from a container or this host"),
    ):
        failed = run("bin/weft", "trace", *words, check=False)
        assert failed.code in (2, 3) and message in failed.stderr


def test_a_command_is_no_others(host: Host, lan: Lan) -> None:
    """A container chooses the names of its links, and an operator copies commands to a shell of root."""
    name = ";touch${IFS}x;#"
    host.inside("web1", "ip", "link", "add", name, "type", "bridge")
    host.inside("web1", "ip", "address", "add", "198.51.100.1/24", "dev", name)
    host.inside("web1", "ip", "link", "set", name, "up")
    document = json.loads(run("bin/weft", "trace", "web1", "198.51.100.2", "--json").stdout)
    command = next(hop["command"] for hop in document["hops"] if "link show" in hop["command"])
    assert command.endswith(f" {shlex.quote(name)}")
