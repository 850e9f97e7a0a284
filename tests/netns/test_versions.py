"""Each CNI version through the executables: the format of results, and the commands that exist."""

from __future__ import annotations

from typing import Any

import pytest

from lab import seen
from lab.confs import DEFAULT4, DEFAULT6, SUBNET, bridge, dual, network, pool, port, ptp
from lab.host import Host
from lab.plugins import Cni

VERSIONS = ("0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0")
FAMILIES, NUMBERED = VERSIONS[:2], VERSIONS[2:5]
CHECKED, COLLECTED = VERSIONS[4:], VERSIONS[6:]


def shape(version: str, addresses: list[dict[str, Any]], routes: list[dict[str, Any]]) -> dict[str, Any]:
    """The expected result of two addresses in a version, without its interfaces."""
    if version in FAMILIES:
        four, six = ({key: ip[key] for key in ip if key != "interface"} for ip in addresses)
        return {
            "ip4": {"ip": four.pop("address"), **four, "routes": routes[:1]},
            "ip6": {"ip": six.pop("address"), **six, "routes": routes[1:]},
            "dns": {},
        }
    if version in NUMBERED:
        ips = [{"version": number, **ip} for number, ip in zip("46", addresses, strict=True)]
        return {"ips": ips, "routes": routes, "dns": {}}
    return {"ips": addresses, "routes": routes}


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("driver", ["bridge", "ptp"])
def test_a_drivers_result(host: Host, cni: Cni, driver: str, version: str) -> None:
    conf = bridge(dual(), version=version, isGateway=True) if driver == "bridge" else ptp(dual(), version=version)
    netns = host.container()
    result = cni.add(conf, netns)
    assert result.pop("cniVersion") == version
    interfaces = result.pop("interfaces", [])
    index = 2 if driver == "bridge" else 1
    addresses = [
        {"address": "10.80.0.2/24", "gateway": "10.80.0.1", "interface": index},
        {"address": "fd80::2/64", "gateway": "fd80::1", "interface": index},
    ]
    assert result == shape(version, addresses, [DEFAULT4, DEFAULT6])
    if version in FAMILIES:
        assert interfaces == []
    else:
        assert interfaces[index]["name"] == "eth0" and interfaces[index]["sandbox"] == netns
        assert {"mtu" in one for one in interfaces} == {version == "1.1.0"}
    assert host.ping("c1", "10.80.0.1") and host.ping("c1", "fd80::1")
    cni.delete(conf, netns)
    assert seen.links(host, "c1") == ["lo"]


@pytest.mark.parametrize("version", VERSIONS)
def test_loopback(host: Host, cni: Cni, version: str) -> None:
    conf = network("loopback", version=version, name="lo")
    netns = host.container()
    result = cni.add(conf, netns, ifname="lo")
    assert result.pop("cniVersion") == version
    interfaces = result.pop("interfaces", [])
    if version in FAMILIES:
        assert result == {"ip4": {"ip": "127.0.0.1/8"}, "ip6": {"ip": "::1/128"}, "dns": {}}
    else:
        addresses = [{"address": "127.0.0.1/8", "interface": 0}, {"address": "::1/128", "interface": 0}]
        wanted = shape(version, addresses, [])
        del wanted["routes"]
        assert result == wanted
        assert interfaces[0]["name"] == "lo"
    cni.delete(conf, netns, ifname="lo")


@pytest.mark.parametrize("version", VERSIONS)
def test_portmap_passes_the_result_on(host: Host, cni: Cni, version: str) -> None:
    """In the format of its version; portmap finds the container's address in it."""
    conf = bridge(dual(), version=version, isGateway=True)
    netns = host.container()
    result = cni.add(conf, netns)
    chained = network("portmap", version=version, prevResult=result, runtimeConfig={"portMappings": [port(8080, 80)]})
    assert cni.add(chained, netns) == result
    host.serve_tcp("c1", 80)
    assert host.fetch(None, "10.80.0.1", 8080) is not None
    if version in CHECKED:
        cni.check(chained, result, netns)
    cni.delete(chained, netns)
    assert host.fetch(None, "10.80.0.1", 8080, timeout=0.5) is None


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("plugin", ["host-local", "static"])
def test_ipam_alone(host: Host, cni: Cni, plugin: str, version: str) -> None:
    ipam = (
        {**dual(), "type": plugin}
        if plugin == "host-local"
        else {
            "type": plugin,
            "addresses": [
                {"address": "10.80.0.2/24", "gateway": "10.80.0.1"},
                {"address": "fd80::2/64", "gateway": "fd80::1"},
            ],
            "routes": [DEFAULT4, DEFAULT6],
        }
    )
    conf = network(plugin, ipam, version=version)
    netns = host.container()
    result = cni.add(conf, netns)
    assert result.pop("cniVersion") == version
    addresses = [
        {"address": "10.80.0.2/24", "gateway": "10.80.0.1"},
        {"address": "fd80::2/64", "gateway": "fd80::1"},
    ]
    assert result == shape(version, addresses, [DEFAULT4, DEFAULT6])
    cni.delete(conf, netns)


@pytest.mark.parametrize("version", FAMILIES)
def test_result_without_addresses_is_refused_in_old_versions(host: Host, cni: Cni, version: str) -> None:
    seen.forward(host)
    before = host.snapshot()
    netns = host.container()
    problem = seen.problem(cni, "ADD", bridge(version=version), netns)
    assert "no valid IP addresses" in problem["msg"]
    assert host.changes(before) == []
    assert seen.links(host, "c1") == ["lo"]


@pytest.mark.parametrize("plugin", ["bridge", "ptp", "loopback", "portmap", "host-local", "static", "weft"])
def test_commands_of_each_version(host: Host, cni: Cni, plugin: str) -> None:
    netns = host.container()
    conf = network(plugin, pool(SUBNET) if plugin != "static" else {"type": "static"}, driver="bridge")
    for version in VERSIONS:
        for command, those in (("CHECK", CHECKED), ("GC", COLLECTED), ("STATUS", COLLECTED)):
            given = {**conf, "cniVersion": version, "cni.dev/valid-attachments": []}
            if plugin == "host-local":
                given["ipam"] = {**pool(SUBNET), "type": plugin}
            outcome = cni(command, given, netns=netns)
            if version not in those:
                assert outcome.json["code"] == 1
                assert outcome.json["msg"] == f"config version does not allow {command}"
                assert version in outcome.json["details"]
            elif command != "CHECK":
                assert (outcome.code, outcome.stdout) == (0, ""), (plugin, command, outcome)
            else:
                assert outcome.json["code"] != 1, outcome


@pytest.mark.parametrize("version", ["0.0.1", "2.0.0", "abc", "1.0"])
def test_unsupported_version(host: Host, cni: Cni, version: str) -> None:
    problem = seen.problem(cni, "ADD", bridge(pool(SUBNET), version=version), host.container())
    assert problem["code"] == 1 and problem["msg"] == "incompatible CNI versions"
    assert f'"{version}"' in problem["details"] and '"1.1.0"' in problem["details"]


def test_without_a_version_it_is_0_1_0(host: Host, cni: Cni) -> None:
    conf = bridge(pool(SUBNET))
    del conf["cniVersion"]
    result = cni.add(conf, host.container())
    assert result["cniVersion"] == "0.1.0" and result["ip4"]["ip"] == "10.80.0.2/24"


def test_each_name_answers_version(cni: Cni) -> None:
    for plugin in ("bridge", "ptp", "loopback", "portmap", "host-local", "static", "weft"):
        assert cni("VERSION", {"cniVersion": "1.0.0"}, plugin=plugin).json == {
            "cniVersion": "1.0.0",
            "supportedVersions": list(VERSIONS),
        }
