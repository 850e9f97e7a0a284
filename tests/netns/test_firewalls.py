"""A firewall made by hand: ``weft check`` and ``weft doctor`` say what it drops, and the rule to add cures it."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cni_plugin.dataplane.tables import TABLES
from cni_plugin.networks.firewalls import dropped
from lab.calls import Weft
from lab.commands import Outcome, run
from lab.confs import bridge, network, pool, port
from lab.host import Host
from lab.plugins import ROOT
from lab.waiting import BRIEFLY
from weft.kernel.linux.kernel import LinuxKernel

CONFIG = Path("/run/cni-config")
REJECTING = """
table inet mine {
    chain forwarded {
        type filter hook forward priority 10; policy accept;
        ct state established accept
        reject with icmpx type admin-prohibited
    }
    chain received {
        type filter hook input priority 10; policy drop;
        ct state established accept
        meta l4proto { icmp, ipv6-icmp } accept
        iif lo accept
        tcp dport 22 accept
    }
}
"""


@pytest.fixture
def weft(host: Host) -> Iterator[Callable[..., Outcome]]:
    environment = {"PATH": os.environ["PATH"], "WEFT_CNI_CONFIG": str(CONFIG), "LC_ALL": "C.UTF-8"}
    yield lambda *arguments: run(str(ROOT / "bin/weft"), *arguments, environment=environment, check=False)
    run(str(ROOT / "bin/weft"), "down", environment=environment, check=False)
    shutil.rmtree(CONFIG, ignore_errors=True)


def by_iptables(host: Host, suffix: str) -> None:
    for program in (f"iptables{suffix}", f"ip6tables{suffix}"):
        if host.run(program, "-P", "FORWARD", "DROP", check=False).code:
            pytest.skip(f"{program} does not work here")
        # As RHEL's iptables-services end INPUT.
        host.run(program, "-A", "INPUT", "-p", "tcp", "-m", "tcp", "--dport", "22", "-j", "ACCEPT")
        host.run(program, "-A", "INPUT", "-m", "conntrack", "--ctstate", "RELATED,ESTABLISHED", "-j", "ACCEPT")
        host.run(program, "-A", "INPUT", "!", "-p", "ipv6-icmp" if "6" in program else "icmp", "-j", "REJECT")


@pytest.mark.parametrize("how", ["nft", "iptables-nft", "iptables-legacy"])
def test_the_rule_to_add_is_named(host: Host, how: str) -> None:
    lan, weft = host.lan(default_route=True), Weft()
    if how == "nft":
        host.run("nft", "-f", "-", stdin=REJECTING)
    else:
        by_iptables(host, how.removeprefix("iptables"))
    blue = bridge(
        pool("10.7.0.0/24", "fd07::/64"), type="weft", driver="bridge", bridge="blue0", name="blue",
        isGateway=True, isDefaultGateway=True, isolation="open", portmap={},
        runtimeConfig={"portMappings": [port(8080, 80)]},
    )  # fmt: skip
    points = network("weft", driver="ptp", name="points", ipam=pool("10.8.0.0/24", routes=[{"dst": "0.0.0.0/0"}]))
    for conf in (blue, points):
        weft.add(conf, host.container(conf["name"]), conf["name"])
    host.serve_tcp("blue", 80)
    assert not host.ping("blue", lan.outside, expected=False)
    assert host.fetch(lan.name, lan.host, 8080, timeout=BRIEFLY) is None

    kernel = LinuxKernel(TABLES)
    service = weft.service(kernel)
    found = dropped(service)
    owners = (
        ("inet mine",) if how == "nft" else (how.removesuffix("-nft"), how.replace("ip", "ip6").removesuffix("-nft"))
    )
    assert {one.network for one in found} == {"blue", "points"}
    assert all(one.sentence.split(" drops ")[0].endswith(owners) for one in found), found
    for one in found:
        host.run("sh", "-c", one.command)
    assert dropped(service) == []
    kernel.close()
    assert all(host.ping(name, lan.outside) for name in ("blue", "points")) and host.ping("blue", lan.outside6)
    assert host.fetch(lan.name, lan.host, 8080) is not None and host.fetch(lan.name, lan.host6, 8080) is not None


def test_names_and_the_command_line(host: Host, weft: Callable[..., Outcome]) -> None:
    host.run("nft", "-f", "-", stdin=REJECTING.replace("reject", "#"))
    weft("network", "create", "blue", "--subnet", "10.7.0.0/24", "--names")
    host.container("blue")
    assert weft("attach", "blue", "blue").code == 0
    ask = ("busybox", "nslookup", "weft-blue", "10.7.0.1")
    assert host.inside("blue", *ask, check=False).code != 0
    checked = weft("check")
    sentence = (
        "the chain received of the nftables table inet mine drops its containers' questions for names to 10.7.0.1"
    )
    assert checked.code == 1 and sentence in checked.stdout and "run nft 'insert rule inet mine" in checked.stdout
    [finding] = json.loads(weft("doctor", "--json").stdout)["findings"]
    assert finding["what"] == f"network blue: {sentence}"
    host.run("sh", "-c", finding["command"])
    assert host.inside("blue", *ask).code == 0 and weft("check").code == 0
