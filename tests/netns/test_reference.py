"""The same configuration through the reference plugins and weft: equal results, equal kernel state.

Each also removes what the other attached, so that a host can migrate while containers run.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lab import seen
from lab.confs import DEFAULT4, DEFAULT6, SUBNET, SUBNET6, bridge, dual, network, pool, port, ptp, published
from lab.host import Host
from lab.plugins import OWN_FOLDER, REFERENCE_FOLDER, Cni

VERSION = "1.0.0"  # the newest version that Debian's containernetworking-plugins supports
RANGE = {"subnet": SUBNET, "rangeStart": "10.80.0.40", "rangeEnd": "10.80.0.50", "gateway": "10.80.0.254"}
STATIC = {
    "type": "static",
    "addresses": [{"address": "10.80.0.5/24", "gateway": "10.80.0.1"}, {"address": "fd80::5/64", "gateway": "fd80::1"}],
    "routes": [DEFAULT4, {"dst": "10.9.0.0/16", "gw": "10.80.0.1"}],
}
NAMED = {
    **STATIC,
    "dns": {"nameservers": ["192.0.2.53"], "domain": "example.org", "search": ["a", "b"], "options": ["ndots:2"]},
}
OWN_MAC = {"args": {"cni": {"mac": "02:00:00:00:00:aa"}}}
CASES: dict[str, dict[str, Any]] = {
    "bridge": bridge(dual(), version=VERSION, isGateway=True),
    "bridge-bare": bridge(pool(SUBNET), version=VERSION),
    "bridge-default-gateway": bridge(pool(SUBNET, "fd80::/64"), version=VERSION, isDefaultGateway=True),
    "bridge-range": bridge({"type": "host-local", "ranges": [[RANGE]]}, version=VERSION, isGateway=True),
    "bridge-static": bridge(STATIC, version=VERSION, isGateway=True),
    "bridge-layer-2": bridge(version=VERSION),
    "bridge-options": bridge(pool(SUBNET), version=VERSION, mtu=1400, hairpinMode=True, **OWN_MAC),
    "bridge-promiscuous": bridge(pool(SUBNET), version=VERSION, promiscMode=True),
    "bridge-0.3.1": bridge(dual(), version="0.3.1", isGateway=True),
    "bridge-0.2.0": bridge(dual(), version="0.2.0", isGateway=True),
    "ptp": ptp(dual(), version=VERSION, mtu=1400),
    "ptp-static": ptp(STATIC, version=VERSION),
    "ptp-0.4.0": ptp(dual(), version="0.4.0"),
    "loopback": network("loopback", version=VERSION, name="lo"),
    "host-local": network("host-local", pool(SUBNET, SUBNET6, routes=[DEFAULT4, DEFAULT6]), version=VERSION),
    "host-local-range": network("host-local", {"type": "host-local", "ranges": [[RANGE]]}, version=VERSION),
    "static": network("static", NAMED, version=VERSION),
}


@pytest.fixture(autouse=True)
def both(isolation: None) -> None:
    if not (REFERENCE_FOLDER / "bridge").exists():
        pytest.skip("the reference plugins are not in /usr/lib/cni (Debian: containernetworking-plugins)")


@pytest.fixture
def reference() -> Cni:
    return Cni(REFERENCE_FOLDER)


@pytest.fixture
def weft() -> Cni:
    return Cni(OWN_FOLDER)


def plain(value: Any) -> Any:
    """A result without what differs between runs (names, MACs, namespaces) and empty dns."""
    if isinstance(value, dict):
        kept = {key: plain(item) for key, item in value.items() if key != "mac" and (key, item) != ("dns", {})}
        if re.fullmatch("veth[0-9a-f]+", str(kept.get("name", ""))):
            kept["name"] = "veth"
        return kept
    return [plain(item) for item in value] if isinstance(value, list) else value


def plain_routes(host: Host, place: str | None) -> list[tuple[Any, ...]]:
    """Routes without their protocol; a veth of the host by its type."""
    found = []
    for one in seen.routes(host, place):
        device = re.sub("^veth.*", "veth", one["dev"])
        scope = one.get("scope", "global") if place else ""
        found.append((one["dst"], one.get("gateway"), device, scope, one.get("prefsrc")))
    return sorted(found, key=str)


def state(host: Host, result: dict[str, Any]) -> dict[str, Any]:
    """The kernel state that both should have configured alike."""
    interfaces = result.get("interfaces", [])
    found: dict[str, Any] = {"container": plain_routes(host, "c1"), "host": plain_routes(host, None)}
    for name in seen.links(host, "c1"):
        link = seen.link(host, name, "c1")
        found[name] = (seen.addresses(host, name, "c1"), link["mtu"], sorted(link["flags"]), link.get("link_type"))
    for name in ("lo", "br0", *(one["name"] for one in interfaces if one["name"].startswith("veth"))):
        link = seen.link(host, name)
        if link:
            data = link.get("linkinfo", {}).get("info_slave_data", {})
            port_state = {key: data.get(key) for key in ("hairpin", "isolated", "learning", "flood")}
            flags = sorted(set(link["flags"]) - {"M-DOWN"})
            found[re.sub("^veth.*", "veth", name)] = (seen.addresses(host, name), link["mtu"], flags, port_state)
    for key in ("net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"):
        found[key] = seen.setting(host, key)
    # Weft sets arp_notify and accept_dad for every driver, the reference for bridges only.
    if interfaces and interfaces[0]["name"] == "br0" and "ips" in result:
        for key in ("net/ipv4/conf/eth0/arp_notify", "net/ipv6/conf/eth0/accept_dad"):
            found[key] = seen.setting(host, key, "c1")
    return found


def through(cni: Cni, conf: dict[str, Any]) -> tuple[Any, dict[str, Any], list[str]]:
    """ADD on a new host: its result, the kernel state and the leases; then CHECK and DEL."""
    host = Host()
    try:
        netns = host.container()
        ifname = "lo" if conf["type"] == "loopback" else "eth0"
        result = cni.add(conf, netns, ifname=ifname)
        found = state(host, result)
        leases = sorted(path.name for path in Path("/var/lib/cni/networks").glob("*/*") if path.name[0] in "1f")
        if conf["cniVersion"] == VERSION and "ipam" in conf:
            cni.check(conf, result, netns, ifname=ifname)
        cni.delete(conf, netns, ifname=ifname)
        assert seen.links(host, "c1") == ["lo"]
        return result, found, leases
    finally:
        host.close()


@pytest.mark.parametrize("conf", CASES.values(), ids=CASES)
def test_both_answer_and_do_the_same(reference: Cni, weft: Cni, conf: dict[str, Any]) -> None:
    theirs, their_state, their_leases = through(reference, conf)
    ours, our_state, our_leases = through(weft, conf)
    assert plain(ours) == plain(theirs)
    assert our_state == their_state
    assert our_leases == their_leases


CHAINS = {
    "bridge": published(bridge(dual(), version=VERSION, isGateway=True, ipMasq=True), [port(8080, 80)]),
    "ptp": published(ptp(dual(), version=VERSION, ipMasq=True), [port(8080, 80)]),
}


@pytest.fixture
def host(both: None) -> Iterator[Host]:
    made = Host()
    try:
        yield made
    finally:
        made.close()


@pytest.mark.parametrize("chain", CHAINS.values(), ids=CHAINS)
def test_a_chain_answers_the_same(reference: Cni, weft: Cni, chain: tuple[Any, Any]) -> None:
    conflist, runtime = chain
    results = []
    for cni in (reference, weft):
        host = Host()
        try:
            lan = host.lan()
            results.append(cni.add_list(conflist, host.container(), runtime))
            host.serve_tcp("c1", 80)
            host.serve_tcp(lan.name, 81)
            assert host.fetch(lan.name, lan.host, 8080) == lan.outside
            assert host.fetch(None, "127.0.0.1", 8080) is not None
            assert host.fetch("c1", lan.outside, 81) == lan.host
            cni.delete_list(conflist, results[-1], "/run/netns/c1", runtime)
        finally:
            host.close()
    assert plain(results[1]) == plain(results[0])


@pytest.mark.parametrize("known", [True, False], ids=["prevResult", "no-prevResult"])
@pytest.mark.parametrize("name", ["bridge", "ptp"])
def test_weft_deletes_what_the_reference_attached(
    host: Host, reference: Cni, weft: Cni, name: str, known: bool
) -> None:
    """Leases in any case; the link if the runtime passes a prevResult that identifies it."""
    conf = CASES[name]
    netns = host.container()
    result = reference.add(conf, netns)
    assert list(Path("/var/lib/cni/networks/net").glob("10.80.0.2"))
    weft.delete({**conf, "prevResult": result} if known else conf, netns)
    assert list(Path("/var/lib/cni/networks/net").glob("10.80.*")) == []
    if known:
        assert seen.links(host, "c1") == ["lo"]
        assert [one for one in seen.links(host) if one.startswith("veth")] == []


@pytest.mark.parametrize("name", ["bridge", "ptp"])
def test_reference_deletes_what_weft_attached(host: Host, reference: Cni, weft: Cni, name: str) -> None:
    conf = CASES[name]
    netns = host.container()
    result = weft.add(conf, netns)
    reference.check(conf, result, netns)
    reference.delete({**conf, "prevResult": result}, netns)
    assert list(Path("/var/lib/cni/networks/net").glob("10.80.*")) == []
    assert seen.links(host, "c1") == ["lo"]
    # Weft has a record of a link that is gone: the next ADD of the same name succeeds nevertheless.
    again = weft.add(conf, netns)
    assert host.ping("c1", "10.80.0.1")
    weft.check(conf, again, netns)
    weft.delete(conf, netns)


def test_both_share_one_lease_directory(host: Host, reference: Cni, weft: Cni) -> None:
    """Alternately, without a duplicate address; each continues after the other's last address."""
    conf = CASES["bridge"]
    found = []
    for index, cni in enumerate((reference, weft, reference, weft)):
        name = f"n{index}"
        found.append(cni.add(conf, host.container(name), container=name)["ips"][0]["address"])
    assert found == [f"10.80.0.{index}/24" for index in (2, 3, 4, 5)]
    assert host.ping("n0", "10.80.0.3") and host.ping("n3", "10.80.0.4")


@pytest.mark.parametrize("netns", ["vm-1f3a", "/dev/null", "/no/such/path"])
def test_ipam_alone_takes_any_string_as_namespace_and_refuses_a_second_add(
    host: Host, reference: Cni, weft: Cni, netns: str
) -> None:
    """As plugins for virtual machines delegate; the second ADD must not give the first one's address to others."""
    conf = network("host-local", pool(SUBNET), version=VERSION)
    for cni in (reference, weft):
        assert cni.add(conf, netns)["ips"][0]["address"] == "10.80.0.2/24"
        refused = cni("ADD", conf, netns=netns)
        assert refused.code == 1 and "10.80.0.2" in refused.json["msg"]
        assert [path.name for path in Path("/var/lib/cni/networks/net").glob("10.*")] == ["10.80.0.2"]
        cni.delete(conf, netns)
        assert list(Path("/var/lib/cni/networks/net").glob("10.*")) == []
        Path("/var/lib/cni/networks/net/last_reserved_ip.0").unlink()


@pytest.mark.parametrize("gateway", [True, False])
def test_the_mac_address_of_a_bridge_that_somebody_else_made(host: Host, weft: Cni, gateway: bool) -> None:
    """The reference pins it with the gateway's address alone, and fails (could not set bridge's mac) if it is zero."""
    host.run("ip", "link", "add", "br0", "type", "bridge")
    host.run("ip", "link", "add", "gone", "type", "veth", "peer", "name", "gone0")
    host.run("ip", "link", "set", "gone", "master", "br0")
    host.run("ip", "link", "delete", "gone")
    assert seen.link(host, "br0")["address"] == "00:00:00:00:00:00"
    conf = bridge(pool(SUBNET), version=VERSION, isGateway=gateway)
    results = [weft.add(conf, host.container(name), container=name) for name in ("c1", "c2")]
    told = {result["interfaces"][0]["mac"] for result in results}
    assert told == {seen.link(host, "br0")["address"]}
    weft.delete(conf, "/run/netns/c1", container="c1")
    assert told == {seen.link(host, "br0")["address"]}
    weft.check(conf, results[1], "/run/netns/c2", container="c2")


LONG = "enp129s0f1npv17-on-the-second-adapter-of-the-left-rack-named-by-systemd.link"


@pytest.mark.parametrize("name", ["nic-a", LONG], ids=["short", "long"])
@pytest.mark.parametrize("plugin", ["macvlan", "host-device", "bridge"])
def test_alternative_names_name_links(host: Host, weft: Cni, plugin: str, name: str) -> None:
    """systemd gives links such names, of up to 127 bytes; those of up to 15 can name a bridge, too."""
    kind = ["type", "bridge"] if plugin == "bridge" else ["type", "veth", "peer", "name", "far0"]
    host.run("ip", "link", "add", "lan9", "up", *kind)
    host.run("ip", "link", "property", "add", "dev", "lan9", "altname", name)
    key = {"macvlan": "master", "host-device": "device", "bridge": "bridge"}[plugin]
    conf = network(plugin, STATIC, version=VERSION, **{key: name})
    netns = host.container()
    if plugin == "bridge" and name == LONG:
        assert "15 bytes" in seen.problem(weft, "ADD", conf, netns)["msg"]
        return
    result = weft.add(conf, netns)
    weft.check(conf, result, netns)
    assert seen.addresses(host, "eth0", "c1") == ["10.80.0.5/24", "fd80::5/64"]
    weft.delete(conf, netns)
    assert seen.link(host, "lan9").get("altnames") == [name]
