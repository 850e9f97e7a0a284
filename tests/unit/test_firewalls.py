"""Other firewalls of the host: what weft adds to their chains and zones, and takes back; what is told of the rest."""

from __future__ import annotations

import json
import re
from ipaddress import ip_address, ip_network
from typing import Any

import pytest

from cni_plugin.networks.firewalls import dropped
from cni_plugin.ops import PassedOn
from cni_plugin.service import gc, removal, shared
from cni_plugin.service.verbs import Service
from lab.calls import Weft
from lab.confs import network
from weft.errors import KernelRefused
from weft.kernel.fake.iptables import FakeIptables
from weft.kernel.fake.kernel import FakeKernel
from weft.kernel.fake.namespace import FakeNamespace
from weft.kernel.host import Host
from weft.kernel.values import KernelRoute
from weft.kernel.verdicts import Packet, of_iptables, of_nftables
from weft.types import Route

NETNS = "/run/netns/c1"
IPAM = {"type": "static", "addresses": [{"address": "10.80.0.2/24", "gateway": "10.80.0.1"}]}
BRIDGE = network("weft", driver="bridge", bridge="blue0", isGateway=True, ipam=IPAM)
OTHER = {"type": "static", "addresses": [{"address": "10.81.0.2/24", "gateway": "10.81.0.1"}]}
PTP = network("weft", driver="ptp", name="points", ipam=OTHER)


@pytest.fixture
def kernel() -> FakeKernel:
    made = FakeKernel()
    made.add(NETNS)
    return made


@pytest.fixture
def host(kernel: FakeKernel) -> FakeNamespace:
    assert isinstance(kernel.host, FakeNamespace)
    return kernel.host


@pytest.fixture
def weft(kernel: FakeKernel, tmp_path: Any) -> Weft:
    return Weft(kernel, Host(str(tmp_path), "boot", 0.0))


@pytest.fixture
def service(kernel: FakeKernel, weft: Weft) -> Service:
    return weft.service(kernel)


def docker(table: FakeIptables, *links: str) -> None:
    """The chains and rules of Docker, with its links."""
    rules = [rule for link in links for rule in (f"-A FORWARD -o {link} -j DOCKER", f"-A FORWARD -i {link} -j ACCEPT")]
    lines = ["-N DOCKER", "-N DOCKER-USER", "-A DOCKER-USER -j RETURN", "-A FORWARD -j DOCKER-USER", *rules]
    table.restore("filter", lines)
    table.forward = "DROP"


def ufw(table: FakeIptables) -> None:
    table.restore("filter", ["-N ufw-user-forward", "-N ufw-user-input", "-A ufw-user-forward -i lan0 -j DROP"])
    table.forward = table.input = "DROP"


def rules(host: FakeNamespace, chain: str, version: int = 4) -> list[str]:
    """A chain's rules, without comments."""
    there = host.tables[version].chains["filter"].get(chain, [])
    return [re.sub(r'-m comment --comment "weft:[0-9a-f]*" ', "", rule) for rule in there]


def test_a_host_without_other_firewalls_is_left_alone(weft: Weft, host: FakeNamespace) -> None:
    before = host.tables[4].save("filter")
    result = weft.add(BRIDGE, NETNS)
    assert host.tables[4].save("filter") == before
    assert weft.check(BRIDGE, result, NETNS) == ""


def test_docker_s_links_are_left_to_its_own_rules(weft: Weft, host: FakeNamespace) -> None:
    docker(host.tables[4], "docker0", "custom0")
    host.add_link("br-lan", "bridge")
    host.add_link("br-0123456789ab", "bridge")
    weft.add(BRIDGE, NETNS)
    first, second, last = rules(host, "DOCKER-USER")
    assert ({first, second}, last) == ({"-i blue0 -j WEFT-FORWARD", "-o blue0 -j WEFT-FORWARD"}, "-j RETURN")
    returned = ("custom0", "docker0", "docker_gwbridge")
    assert rules(host, "WEFT-FORWARD") == [
        *(f"{way} {link} -j RETURN" for link in returned for way in ("-o", "-i")),
        "-o br-lan -j ACCEPT",
        "-i br-lan -j ACCEPT",
        "-o br-+ -j RETURN",
        "-i br-+ -j RETURN",
        "-j ACCEPT",
    ]
    assert rules(host, "WEFT-FORWARD", 6) == []


def test_ufw_s_own_rules_come_first(weft: Weft, host: FakeNamespace) -> None:
    ufw(host.tables[4])
    weft.add(PTP, NETNS)
    assert rules(host, "ufw-user-forward") == [
        "-i lan0 -j DROP",
        "-s 10.81.0.0/24 -i veth+ -j WEFT-FORWARD",
        "-d 10.81.0.0/24 -o veth+ -j WEFT-FORWARD",
    ]
    assert rules(host, "WEFT-FORWARD") == ["-j ACCEPT"]
    assert rules(host, "ufw-user-input") == []


def test_a_firewall_that_drops_nothing_gets_no_rules(weft: Weft, host: FakeNamespace) -> None:
    docker(host.tables[4], "docker0")
    host.tables[4].forward = "ACCEPT"
    weft.add(BRIDGE, NETNS)
    assert rules(host, "DOCKER-USER") == ["-j RETURN"]


def test_an_add_does_not_fail_because_of_another_firewall(
    monkeypatch: pytest.MonkeyPatch, weft: Weft, host: FakeNamespace
) -> None:
    """iptables refuses a table that nft has changed; without its program, Docker's chain is there all the same."""

    def refuse(*_: object, **__: object) -> tuple[str, ...]:
        raise KernelRefused("table `filter' is incompatible, use 'nft' tool")

    docker(host.tables[4], "docker0")
    monkeypatch.setattr(host, "iptables", refuse)
    result = weft.add(BRIDGE, NETNS)
    assert "iptables lacks the rules for blue0 in DOCKER-USER" in weft.check(BRIDGE, result, NETNS)
    host.zones = {}
    monkeypatch.setattr(host, "firewalld_zone", refuse)
    host.tables[4].forward = "ACCEPT"
    assert "use 'nft' tool" in weft.check(BRIDGE, result, NETNS)


def test_rules_come_back_with_the_next_add_and_by_repair(
    service: Service, kernel: FakeKernel, weft: Weft, host: FakeNamespace
) -> None:
    weft.add(BRIDGE, NETNS)
    docker(host.tables[4], "docker0")
    whole = 3
    shared.repair(service)
    assert len(rules(host, "DOCKER-USER")) == whole
    host.tables[4].restore("filter", ["-F DOCKER-USER", "-A DOCKER-USER -j RETURN"])
    kernel.add("/run/netns/c2")
    ipam = {**IPAM, "addresses": [{"address": "10.80.0.3/24", "gateway": "10.80.0.1"}]}
    weft.add({**BRIDGE, "ipam": ipam}, "/run/netns/c2", container="c2")
    assert len(rules(host, "DOCKER-USER")) == whole


def partial_changes() -> dict[str, list[str]]:
    """What another program may do to a part of weft's rules, as lines of iptables-restore."""
    jump = '-i blue0 -m comment --comment "{mark}" -j WEFT-FORWARD'
    return {
        "flushed": ["-F WEFT-FORWARD"],
        "first rule deleted": ["-D WEFT-FORWARD {first}"],
        "rule inserted": ["-I WEFT-FORWARD 1 -j DROP"],
        "moved": ["-D WEFT-FORWARD {first}", "-A WEFT-FORWARD {first}"],
        "replaced": ["-D WEFT-FORWARD {first}", "-I WEFT-FORWARD 1 -i lan9 -j DROP"],
        "renamed": ["-E WEFT-FORWARD THEIRS"],
        "jump deleted": [f"-D DOCKER-USER {jump}"],
        "jump moved behind the end": [f"-D DOCKER-USER {jump}", f"-A DOCKER-USER {jump}"],
        "end before the jumps": ["-I DOCKER-USER 1 -j RETURN"],
        "users' chain flushed": ["-F DOCKER-USER"],
    }


@pytest.mark.parametrize("change", partial_changes())
def test_each_part_of_the_rules_is_missed_and_comes_back(
    service: Service, weft: Weft, host: FakeNamespace, change: str
) -> None:
    docker(host.tables[4], "docker0")
    result = weft.add(BRIDGE, NETNS)
    chains = host.tables[4].chains["filter"]
    own, users = chains["WEFT-FORWARD"], sorted(chains["DOCKER-USER"])
    [mark] = re.findall(r"weft:[0-9a-f]{16}", chains["DOCKER-USER"][0])
    host.tables[4].restore("filter", [line.format(mark=mark, first=own[0]) for line in partial_changes()[change]])
    assert "iptables lacks" in weft.check(BRIDGE, result, NETNS)
    assert shared.repair(service).changed == 1
    assert weft.check(BRIDGE, result, NETNS) == ""
    after = host.tables[4].chains["filter"]
    assert after["WEFT-FORWARD"] == own and "THEIRS" not in after
    found = after["DOCKER-USER"]
    ends = [one for one in found if one == "-j RETURN"]
    assert sorted({*found} - {*ends}) == sorted({*users} - {"-j RETURN"}), "each jump once"
    assert found.index("-j RETURN") == 2 if ends else len(found) == 2
    assert shared.repair(service).changed == 0


def test_a_rule_of_the_administrator_stays_before_weft_s(service: Service, weft: Weft, host: FakeNamespace) -> None:
    """It is for them to close what weft would let pass."""
    docker(host.tables[4], "docker0")
    result = weft.add(BRIDGE, NETNS)
    host.tables[4].restore("filter", ["-I DOCKER-USER 1 -s 10.80.0.2/32 -j DROP"])
    assert weft.check(BRIDGE, result, NETNS) == ""
    assert shared.repair(service).changed == 0
    assert rules(host, "DOCKER-USER")[0] == "-s 10.80.0.2/32 -j DROP"


def test_rules_go_before_the_end_of_ufw_s_chain(service: Service, weft: Weft, host: FakeNamespace) -> None:
    ufw(host.tables[4])
    weft.add(BRIDGE, NETNS)
    host.tables[4].restore("filter", ["-I ufw-user-forward 2 -j RETURN"])
    assert shared.repair(service).changed == 1
    assert rules(host, "ufw-user-forward")[0::3] == ["-i lan0 -j DROP", "-j RETURN"]
    assert len(rules(host, "ufw-user-forward")) == 4
    assert shared.repair(service).changed == 0


def test_the_last_network_takes_the_rules_back(service: Service, weft: Weft, host: FakeNamespace) -> None:
    docker(host.tables[4], "docker0")
    ufw(host.tables[4])
    host.zones = {}
    before = host.tables[4].save("filter")
    weft.add(BRIDGE, NETNS)
    weft.add(PTP, NETNS, ifname="eth1")
    assert host.zones == {"blue0": "trusted", "10.81.0.0/24": "trusted"}
    weft.delete(BRIDGE, NETNS)
    removal.remove_network(service, BRIDGE["name"])
    assert rules(host, "WEFT-FORWARD") and host.zones == {"blue0": "", "10.81.0.0/24": "trusted"}
    weft.delete(PTP, NETNS, ifname="eth1")
    removal.remove_network(service, PTP["name"])
    assert host.tables[4].save("filter") == before
    assert set(host.zones.values()) == {""}


def test_an_administrator_s_zone_is_kept(service: Service, weft: Weft, host: FakeNamespace) -> None:
    host.zones = {"blue0": "internal"}
    weft.add(BRIDGE, NETNS)
    assert host.zones == {"blue0": "internal"}
    host.zones["blue0"] = host.permanent_zones["blue0"] = "trusted"
    weft.delete(BRIDGE, NETNS)
    removal.remove_network(service, BRIDGE["name"])
    assert host.zones == {"blue0": "trusted"}


def test_gc_removes_rules_of_no_network(service: Service, weft: Weft, host: FakeNamespace) -> None:
    docker(host.tables[4], "docker0")
    weft.add(BRIDGE, NETNS)
    marked = '-A DOCKER-USER -i gone0 -m comment --comment "weft:0123456789abcdef" -j WEFT-FORWARD'
    host.tables[4].restore("filter", [marked])
    swept = gc.collect_stale(service)
    assert "iptables rules with the comment weft:0123456789abcdef" in swept.leftovers
    shared.repair(service)
    assert [rule for rule in rules(host, "DOCKER-USER") if "gone0" in rule] == []


def test_names_are_asked_for_at_the_gateway_only(service: Service, host: FakeNamespace, weft: Weft) -> None:
    ufw(host.tables[4])
    operation = PassedOn("blue0", "weft:0123456789abcdef", names=(ip_address("10.80.0.1"),))
    machine = service.machine(None)
    assert operation.mismatch(machine) == "iptables lacks the rules for blue0 in ufw-user-input"
    assert operation.apply(machine) and operation.mismatch(machine) is None and not operation.apply(machine)
    expected = [f"-d 10.80.0.1/32 -i blue0 -p {one} -m {one} --dport 53 -j ACCEPT" for one in ("udp", "tcp")]
    assert rules(host, "ufw-user-input") == expected
    assert rules(host, "ufw-user-forward") == ["-i lan0 -j DROP"]
    operation.undo(machine)
    assert rules(host, "ufw-user-input") == []


OUT = Packet("blue0", "lan0", "10.80.0.2", protocol="tcp")
BACK = Packet("lan0", "blue0", "", "10.80.0.2", "tcp", reply=True)
PORT = Packet("lan0", "blue0", "", "10.80.0.2", "tcp", translated=True)
NAMES = Packet("blue0", "", "10.80.0.2", "10.80.0.1", "udp", 53)
REJECT = "-A FORWARD -j REJECT --reject-with icmp-host-prohibited"


@pytest.mark.parametrize(
    ("packet", "lines", "expected"),
    [
        (OUT, [":FORWARD DROP [0:0]"], True),
        (OUT, [":FORWARD ACCEPT [0:0]"], False),
        (OUT, [":FORWARD ACCEPT [0:0]", REJECT], True),
        (OUT, [":FORWARD DROP [0:0]", "-A FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT"], True),
        (BACK, [":FORWARD DROP [0:0]", "-A FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT"], False),
        (PORT, [":FORWARD DROP [0:0]", "-A FORWARD -m conntrack --ctstate DNAT -j ACCEPT"], False),
        (OUT, [":FORWARD DROP [0:0]", "-A FORWARD -i blue+ -j ACCEPT"], False),
        (OUT, [":FORWARD DROP [0:0]", "-A FORWARD ! -i blue0 -j ACCEPT"], True),
        (OUT, [":FORWARD DROP [0:0]", "-A FORWARD -s 10.80.0.0/16 -j ACCEPT"], False),
        (OUT, [":FORWARD DROP [0:0]", "-A FORWARD -p icmp -j ACCEPT"], True),
        # What is not understood may accept.
        (OUT, [":FORWARD DROP [0:0]", "-A FORWARD -m set --match-set good src -j ACCEPT"], False),
        (OUT, [":FORWARD ACCEPT [0:0]", "-A FORWARD -m set --match-set bad src -j DROP"], False),
        (OUT, [":FORWARD DROP [0:0]", ":MINE - [0:0]", "-A FORWARD -j MINE", "-A MINE -o lan0 -j ACCEPT"], False),
        (OUT, [":FORWARD DROP [0:0]", ":MINE - [0:0]", "-A FORWARD -j MINE", "-A MINE -o lan0 -j RETURN"], True),
        (
            OUT,
            [":FORWARD ACCEPT [0:0]", ":MINE - [0:0]", "-A FORWARD -j MINE", "-A MINE -j LOG", "-A MINE -j DROP"],
            True,
        ),
        (NAMES, [":INPUT DROP [0:0]", '-A INPUT -p tcp -m tcp --dport 22 -m comment --comment "a b" -j ACCEPT'], True),
        (NAMES, [":INPUT DROP [0:0]", "-A INPUT -p udp -m udp --dport 53 -j ACCEPT"], False),
        (NAMES, [":INPUT DROP [0:0]", "-A INPUT -p udp -m udp --dport 50:60 -j ACCEPT"], False),
    ],
)
def test_what_an_iptables_chain_drops(packet: Packet, lines: list[str], expected: bool) -> None:
    [chain] = of_iptables(lines, "iptables", 4)
    assert chain.drops(packet) is expected


def nft(policy: str, *expressions: list[dict[str, Any]]) -> list[dict[str, Any]]:
    place = {"family": "inet", "table": "mine"}
    base = {**place, "name": "fwd", "hook": "forward", "policy": policy}
    listed = [{"rule": {**place, "chain": "fwd", "expr": expression}} for expression in expressions]
    return [{"chain": base}, {"chain": {**place, "name": "more"}}, *listed]


def match(key: str, right: object, op: str = "==", kind: str = "meta") -> dict[str, Any]:
    return {"match": {"op": op, "left": {kind: {"key": key}}, "right": right}}


ACCEPT, DROP = {"accept": None}, {"drop": None}
STATES = {"vmap": {"key": {"ct": {"key": "state"}}, "data": {"set": [["established", ACCEPT], ["invalid", DROP]]}}}


@pytest.mark.parametrize(
    ("policy", "expressions", "expected"),
    [
        ("drop", [], True),
        ("accept", [], False),
        ("accept", [[{"reject": {"type": "icmpx", "expr": "admin-prohibited"}}]], True),
        ("drop", [[match("iifname", "blue*"), ACCEPT]], False),
        ("drop", [[match("iifname", {"set": ["a", "b"]}), ACCEPT]], True),
        ("drop", [[match("iifname", "blue0", "!="), {"counter": None}, ACCEPT]], True),
        ("drop", [[match("state", ["established", "related"], "in", "ct"), ACCEPT]], True),
        ("drop", [[match("iifname", "@known"), ACCEPT]], False),
        ("drop", [[match("oifname", "lan0"), {"jump": {"target": "more"}}]], True),
        ("drop", [[STATES]], True),
        ("drop", [[{"xt": {"type": "match", "name": "set"}}, ACCEPT]], False),
    ],
)
def test_what_an_nftables_chain_drops(policy: str, expressions: list[list[dict[str, Any]]], expected: bool) -> None:
    [chain] = of_nftables(json.loads(json.dumps(nft(policy, *expressions))), ())
    assert chain.drops(OUT) is expected


def test_the_rule_to_add_is_named(service: Service, weft: Weft, host: FakeNamespace) -> None:
    weft.add(BRIDGE, NETNS)
    host.add_link("lan0", "veth", up=True)
    host.tables[4].forward = "DROP"
    assert dropped(service) == []  # no default route, so nothing to reach
    host.add_route(KernelRoute(Route(ip_network("0.0.0.0/0")), "lan0"))
    options = ("-i blue0 -o lan0", "-i lan0 -o blue0 -m conntrack --ctstate RELATED,ESTABLISHED")
    assert [one.command for one in dropped(service)] == [f"iptables -I FORWARD {each} -j ACCEPT" for each in options]
    docker(host.tables[4], "docker0")
    assert dropped(service) == []  # Docker's own mechanism comes first
    shared.repair(service)
    assert dropped(service) == []
