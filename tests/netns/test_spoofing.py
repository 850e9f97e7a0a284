"""Spoofed frames of a container: without checks each one arrives, with checks none does."""

from __future__ import annotations

import socket
import struct
import time
from collections.abc import Callable
from typing import Any

import pytest

from lab import frames, seen
from lab.calls import Weft
from lab.confs import DEFAULT4, SUBNET, bridge, dual, pool, ptp
from lab.frames import ALL_NODES, BROADCAST, ICMP, ICMP6, UDP
from lab.host import Host
from lab.snapshot import difference
from lab.waiting import BRIEFLY, until

EVIL, VICTIM, GATEWAY = "10.80.0.2", "10.80.0.3", "10.80.0.1"
EVIL6, VICTIM6, GATEWAY6 = "fd80::2", "fd80::3", "fd80::1"
FORGED = "02:66:6f:72:67:65"
PREFIX = "2001:db8:bad::"

UNCHECKED = bridge(dual(), isGateway=True, routerAdvertisements=True)
PLAIN = bridge(dual(), isGateway=True)
CHECKED = bridge(dual(), type="weft", driver="bridge", isGateway=True)


class Topology:
    """A container that sends spoofed frames, a sibling, and the host, on one bridge."""

    def __init__(self, host: Host, conf: dict[str, Any]) -> None:
        self.host, self.conf, self.weft = host, conf, Weft()
        seen.hurry(host)
        self.paths = {name: host.container(name) for name in ("evil", "victim")}
        self.results = {name: self.weft.add(conf, path, name) for name, path in self.paths.items()}
        self.macs = {
            name: next(one["mac"] for one in result["interfaces"] if one.get("sandbox"))
            for name, result in self.results.items()
        }
        self.macs["host"] = seen.link(host, "br0")["address"]

    def send(self, *made: bytes) -> None:
        frames.send(self.paths["evil"], made)

    def neighbours(self, place: str | None, link: str) -> dict[str, str]:
        argv = ("ip", "-j", "neighbour", "show", "dev", link)
        found = self.host.run(*argv) if place is None else self.host.inside(place, *argv)
        return {one["dst"]: one["lladdr"] for one in found.json if "lladdr" in one}


def forgeries(topology: Topology) -> dict[bytes, bytes]:
    """One frame of each kind; the key is the token in its payload."""
    mine, theirs = topology.macs["evil"], topology.macs["victim"]
    own = frames.link_local(mine)
    found: dict[bytes, bytes] = {}

    def add(name: str, make: Callable[[bytes], tuple[int, bytes]], mac: str = mine) -> None:
        token = f"<{name[:12]}>".encode()
        assert token not in found
        found[token] = frames.frame(mac, *make(token))

    def packet(source: str, ports: tuple[int, int] = (4000, 4000)) -> Callable[[bytes], tuple[int, bytes]]:
        to = "255.255.255.255" if "." in source else ALL_NODES
        return lambda token: frames.ip(source, to, UDP, frames.udp(*ports, token))

    def claim(source: str, content: Callable[[bytes], bytes], before: bytes = b"") -> Callable[..., tuple[int, bytes]]:
        return lambda token: frames.ip(source, ALL_NODES, ICMP6, content(frames.note(token)), before=before)

    add("mac", packet(EVIL), FORGED)
    add("sibling", packet(VICTIM))
    add("gateway", packet(GATEWAY))
    add("foreign", packet("8.8.8.8"))
    add("second", packet("10.80.0.99"))
    add("nobody", packet("0.0.0.0"))
    add("sibling6", packet(VICTIM6))
    add("gateway6", packet(GATEWAY6))
    add("second6", packet("fd80::99"))
    add("local6", packet(frames.link_local(theirs)))
    add("dhcp", packet(EVIL, (67, 68)))
    add("dhcp6", packet(EVIL6, (547, 546)))
    redirect = struct.pack("!BBHI", 5, 1, 0, 0)
    add("redirect4", lambda token: frames.ip(EVIL, "255.255.255.255", ICMP, redirect + token))
    add("arp ip", lambda token: (0x0806, frames.arp(2, mine, VICTIM, BROADCAST, VICTIM, token)))
    add("arp gateway", lambda token: (0x0806, frames.arp(1, mine, GATEWAY, BROADCAST, GATEWAY, token)))
    add("arp mac", lambda token: (0x0806, frames.arp(2, FORGED, EVIL, BROADCAST, EVIL, token)))
    add("na target", claim(EVIL6, lambda rest: frames.advertisement(VICTIM6, frames.option(2, mine) + rest)))
    add("na mac", claim(EVIL6, lambda rest: frames.advertisement(EVIL6, frames.option(2, FORGED) + rest)))
    add("na hidden", claim(EVIL6, lambda rest: frames.advertisement(EVIL6, rest + frames.option(2, FORGED))))
    add("ns mac", claim(EVIL6, lambda rest: frames.solicitation(VICTIM6, frames.option(1, FORGED) + rest)))
    add("dad", claim("::", lambda rest: frames.solicitation(VICTIM6, rest)))
    add("rs mac", claim(own, lambda rest: struct.pack("!BBHI", 133, 0, 0, 0) + frames.option(1, FORGED) + rest))
    hops = bytes([ICMP6, 0, 1, 4, 0, 0, 0, 0])
    add("ra", claim(own, lambda rest: frames.router(PREFIX, rest)))
    add("ra behind", claim(own, lambda rest: frames.router(PREFIX, rest), hops))
    add("redirect6", claim(own, lambda rest: struct.pack("!BBHI", 137, 0, 0, 0) + bytes(32) + rest))
    add("rarp", lambda token: (0x8035, frames.arp(3, mine, EVIL, mine, EVIL, token)))
    add("tag", packet(EVIL))
    found[b"<tag>"] = frames.tagged(found[b"<tag>"], 7)
    add("tagged ra", claim(own, lambda rest: frames.router(PREFIX, rest)))
    found[b"<tagged ra>"] = frames.tagged(found[b"<tagged ra>"], 1)
    for outer, inner in STACKS:  # VU#855201
        name = f"{outer:x} {inner:x} ra"
        add(name, claim(own, lambda rest: frames.router(PREFIX, rest)))
        token = f"<{name}>".encode()
        found[token] = frames.tagged(frames.tagged(found[token], 0, inner), 0, outer)
    add("snap ra", claim(own, lambda rest: frames.router(PREFIX, rest)))
    found[b"<snap ra>"] = frames.snap(found[b"<snap ra>"])
    for last in range(2, 16):
        name = f"reserved {last:x}"
        add(name, packet(EVIL))
        token = f"<{name}>".encode()
        found[token] = frames.octets(f"01:80:c2:00:00:{last:02x}") + found[token][6:]
    return found


STACKS = [(outer, inner) for outer in (0x8100, 0x88A8) for inner in (0x8100, 0x88A8)]
STACKED = {f"<{outer:x} {inner:x} ra>".encode() for outer, inner in STACKS}
RESERVED = {f"<reserved {last:x}>".encode() for last in range(2, 16)}
ROUTERS = {b"<ra>", b"<ra behind>", b"<redirect6>", b"<tagged ra>", b"<snap ra>"} | STACKED | RESERVED


def arrived(topology: Topology) -> tuple[set[bytes], set[bytes], set[bytes]]:
    """All tokens, those that the sibling received, those that the host did.

    A valid frame marks the end.
    """
    made = forgeries(topology)
    honest = frames.frame(
        topology.macs["evil"], *frames.ip(EVIL, "255.255.255.255", UDP, frames.udp(4000, 4000, b"<honest>"))
    )
    ears = frames.Ear(topology.paths["victim"]), frames.Ear(topology.host.path, "br0")
    topology.send(*made.values(), honest)
    sibling, host = (ear.heard(made, b"<honest>") for ear in ears)
    for ear in ears:
        ear.close()
    return set(made), sibling, host


def test_without_checks_every_forged_frame_arrives(host: Host) -> None:
    every, sibling, at_host = arrived(Topology(host, UNCHECKED))
    assert len(every) >= 12
    assert sibling == every
    assert at_host == every


def test_with_checks_no_forged_frame_arrives(host: Host) -> None:
    topology = Topology(host, CHECKED)
    _, sibling, at_host = arrived(topology)
    assert (sibling, at_host) == (set(), set())
    for name, path in topology.paths.items():
        assert topology.weft.check(topology.conf, topology.results[name], path, name) == ""


def test_the_checks_can_be_asked_for_under_the_references_name(host: Host) -> None:
    _, sibling, at_host = arrived(Topology(host, {**PLAIN, "ipspoofchk": True}))
    assert (sibling, at_host) == (set(), set())


def test_macspoofchk_is_about_mac_addresses(host: Host) -> None:
    every, sibling, _ = arrived(Topology(host, {**PLAIN, "macspoofchk": True}))
    assert every - sibling == {b"<mac>", b"<arp mac>"} | ROUTERS


def test_reference_defaults_drop_router_messages_only(host: Host) -> None:
    every, sibling, at_host = arrived(Topology(host, PLAIN))
    assert every - sibling == every - at_host == ROUTERS


def test_a_network_without_addresses_is_checked_for_mac_addresses(host: Host) -> None:
    topology = Topology(host, CHECKED)  # the spoofed frames claim its addresses
    weft, flat = Weft(), {**CHECKED, "name": "flat", "ipam": {}, "isGateway": False}
    weft.add(flat, host.container("flat"), "flat")
    mac = seen.link(host, "eth0", "flat")["address"]
    ear = frames.Ear(topology.paths["victim"])
    packet = frames.ip("192.0.2.77", "255.255.255.255", UDP, frames.udp(4000, 4000, b"<free>"))
    forged = frames.ip("192.0.2.77", "255.255.255.255", UDP, frames.udp(4000, 4000, b"<forged>"))
    frames.send("/run/netns/flat", [frames.frame(FORGED, *forged), frames.frame(mac, *packet)])
    assert ear.heard([b"<forged>"], b"<free>") == set()
    ear.close()


def poison(topology: Topology) -> None:
    """Claim the victim's and the host's addresses by ARP and ND."""
    mine = topology.macs["evil"]
    for to, to4, to6, pairs in (
        ("victim", VICTIM, VICTIM6, ((GATEWAY, GATEWAY6),)),
        ("host", GATEWAY, GATEWAY6, ((VICTIM, VICTIM6),)),
    ):
        mac = topology.macs[to]
        for four, six in pairs:
            said = frames.advertisement(six, frames.option(2, mine))
            asked = frames.solicitation(to6, frames.option(1, mine))
            topology.send(
                frames.frame(mine, 0x0806, frames.arp(2, mine, four, mac, to4), mac),
                frames.frame(mine, *frames.ip(six, to6, ICMP6, said), mac),
                frames.frame(mine, *frames.ip(six, to6, ICMP6, asked), mac),
            )


@pytest.mark.parametrize(("conf", "poisoned"), [(UNCHECKED, True), (CHECKED, False)], ids=["unchecked", "checked"])
def test_arp_and_nd_poisoning(host: Host, conf: dict[str, Any], poisoned: bool) -> None:
    """With checks, the neighbour entries of the sibling and of the host do not change."""
    topology = Topology(host, conf)
    host.run("sysctl", "-qw", "net.ipv4.neigh.br0.locktime=0")
    host.inside("victim", "sysctl", "-qw", "net.ipv4.neigh.eth0.locktime=0")
    for address in (GATEWAY, GATEWAY6):
        assert host.ping("victim", address)
    wrong = topology.macs["evil"]
    right = {"victim": topology.macs["host"], None: topology.macs["victim"]}

    def known() -> dict[str | None, list[str | None]]:
        return {
            "victim": [topology.neighbours("victim", "eth0").get(one) for one in (GATEWAY, GATEWAY6)],
            None: [topology.neighbours(None, "br0").get(one) for one in (VICTIM, VICTIM6)],
        }

    def poisoned_again() -> bool:
        # A claim is ignored in the jiffy of an earlier change (arp_process), and undone by the question of a neighbour
        # that asks after five seconds whether the other is still there (NUD_PROBE).
        poison(topology)
        return known() == {place: [wrong] * 2 for place in right}

    poison(topology)
    if poisoned:
        until(poisoned_again, what=lambda: f"poisoning; {known()}")
    else:
        time.sleep(BRIEFLY)
        assert known() == {place: [mac] * 2 for place, mac in right.items()}


@pytest.mark.parametrize("conf", [UNCHECKED, PLAIN, CHECKED], ids=["allowed", "plain", "checked"])
def test_nobody_takes_a_container_for_a_router(host: Host, conf: dict[str, Any]) -> None:
    """CVE-2020-10749: siblings and the host get no router advertisements of a container."""
    ipam = pool(SUBNET, routes=[DEFAULT4])  # an IPv4 network, where IPv6 autoconfiguration would go unnoticed
    topology = Topology(host, {**conf, "ipam": ipam})
    before = seen.inner(topology.paths["victim"]), host.snapshot()
    mac = topology.macs["evil"]
    said = frames.frame(mac, *frames.ip(frames.link_local(mac), ALL_NODES, ICMP6, frames.router(PREFIX)), BROADCAST)

    def taken() -> bool:
        topology.send(said)
        return has_advertised_route(host)

    topology.send(said)
    if conf is UNCHECKED:
        until(taken, what="an advertised route")
    else:
        time.sleep(BRIEFLY)
        assert not has_advertised_route(host)
        assert difference(before[0], seen.inner(topology.paths["victim"])) == []
        assert host.changes(before[1]) == []


def has_advertised_route(host: Host) -> bool:
    """Whether the victim has a default route from a router advertisement."""
    return "default" in host.inside("victim", "ip", "-6", "route", "show").stdout


def test_legitimate_traffic_passes(host: Host) -> None:
    """Both families, link-local addresses, DAD, large packets, and the default route."""
    lan = host.lan()
    topology = Topology(host, {**CHECKED, "ipMasq": True, "enabledad": True})
    host.serve_tcp("victim", 80)
    host.serve_udp("victim", 53)
    for address, source in ((VICTIM, EVIL), (VICTIM6, EVIL6)):
        assert host.fetch("evil", address, 80) == source
        assert host.fetch("evil", address, 53, "udp") == source
        assert host.inside("evil", "ping", "-nqc1", "-w10", "-s", "8000", address).code == 0
    local = frames.link_local(topology.macs["victim"])
    assert host.inside("evil", "ping", "-nqc1", "-w10", f"{local}%eth0").code == 0
    assert host.ping("evil", lan.outside)
    assert host.ping("evil", lan.outside6)
    host.inside("evil", "ip", "neighbour", "flush", "dev", "eth0")
    assert host.ping("victim", EVIL) and host.ping(None, EVIL6)


def test_spoofed_mac_addresses_do_not_fill_the_fdb(host: Host) -> None:
    topology = Topology(host, CHECKED)
    content = frames.ip(EVIL, "255.255.255.255", UDP, frames.udp(1, 1, b""))
    topology.send(*(frames.frame(f"02:00:00:00:00:{number:02x}", *content) for number in range(200)))
    known = host.run("bridge", "fdb", "show", "br", "br0").stdout
    assert topology.macs["victim"] in known and "02:00:00:00:00:" not in known


@pytest.mark.parametrize(
    "conf",
    [
        {**CHECKED, "hostAccess": "dns"},
        {**CHECKED, "internal": True},
        {**CHECKED, "hairpinMode": True},
        {**CHECKED, "promiscMode": True, "hostAccess": "dns"},
        {**PLAIN, "macspoofchk": True, "hostAccess": "dns"},
        {**UNCHECKED, "hostAccess": "dns"},
    ],
    ids=["dns", "internal", "hairpin", "promiscuous", "macspoofchk", "unchecked"],
)
def test_reserved_addresses_lead_past_no_rule(host: Host, conf: dict[str, Any]) -> None:
    """The kernel hands frames to 01:80:c2:00:00:0x to the host before the bridge's rules: with the
    port's group_fwd_mask it does not, whether or not they are dropped there.
    """
    topology = Topology(host, conf)
    port = next(one["name"] for one in topology.results["evil"]["interfaces"] if one["name"].startswith("veth"))
    server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    server.bind(("0.0.0.0", 4000))
    server.settimeout(BRIEFLY)
    sent = []
    for last in range(16):
        for mac, source in ((FORGED, VICTIM), (FORGED, "8.8.8.8"), (topology.macs["evil"], EVIL)):
            _, content = frames.ip(source, GATEWAY, UDP, frames.udp(4000, 4000, b"<handed up>"))
            made = frames.frame(mac, 0x0800, content, f"01:80:c2:00:00:{last:02x}")
            sent += [made, frames.tagged(made, 0), frames.tagged(made, 0, 0x88A8)]
    topology.send(*sent)
    with server, pytest.raises(TimeoutError):
        server.recv(100)
    known = host.run("bridge", "fdb", "show", "br", "br0").stdout
    assert (FORGED in known) is bool(conf.get("routerAdvertisements"))  # unchecked: any MAC address is its own
    assert seen.link(host, port)["linkinfo"]["info_slave_data"]["group_fwd_mask"] == "0xfffd"


def test_check_and_repair_know_the_ports_mask(host: Host) -> None:
    topology = Topology(host, CHECKED)
    port = next(one["name"] for one in topology.results["evil"]["interfaces"] if one["name"].startswith("veth"))
    host.run("ip", "link", "set", port, "type", "bridge_slave", "group_fwd_mask", "0")
    problem = topology.weft.check(topology.conf, topology.results["evil"], topology.paths["evil"], "evil")
    assert f"group_fwd_mask of the port {port} is 0x0 instead of 0xfffd" in problem
    host.run("nft", "flush", "ruleset")  # as after an upgrade: rules are installed, elements and ports restored
    topology.weft.add(CHECKED, host.container("third"), "third")
    for name, path in topology.paths.items():
        assert topology.weft.check(topology.conf, topology.results[name], path, name) == ""


@pytest.mark.parametrize("checked", [False, True])
def test_ptp_source_addresses_are_checked(host: Host, checked: bool) -> None:
    """The host checks sources when it routes; under the reference's type name it does not."""
    seen.hurry(host)
    conf = ptp(dual(), **({"type": "weft", "driver": "ptp"} if checked else {}))
    weft = Weft()
    evil, victim = (host.container(name) for name in ("evil", "victim"))
    outer, inner = weft.add(conf, evil, "evil")["interfaces"]
    weft.add(conf, victim, "victim")
    # Packets queued for neighbour resolution could arrive after the valid one.
    assert host.ping(None, VICTIM) and host.ping(None, VICTIM6)
    ear = frames.Ear(victim)
    forged = {b"<sibling>": "10.80.0.77", b"<foreign>": "8.8.8.8", b"<sibling6>": "fd80::77", b"<foreign6>": "2600::1"}
    for token, source in (*forged.items(), (b"<honest>", EVIL)):
        packet = frames.ip(source, VICTIM if "." in source else VICTIM6, UDP, frames.udp(9, 9, token))
        frames.send(evil, [frames.frame(inner["mac"], *packet, outer["mac"])])
    assert ear.heard(forged, b"<honest>") == (set() if checked else set(forged))
    ear.close()


@pytest.mark.parametrize(
    ("keys", "word"),
    [
        ({"macspoofchk": False, "ipspoofchk": True}, "macspoofchk"),
        ({"ipspoofchk": True, "ipam": {}}, "ipspoofchk"),
        ({"macspoofchk": "yes"}, "macspoofchk"),
    ],
)
def test_invalid_combinations_are_refused(host: Host, keys: dict[str, Any], word: str) -> None:
    answer = Weft()("ADD", {**CHECKED, **keys}, host.container())
    assert answer.code == 7 and word in answer.text
