"""Weft called as netavark calls its driver plugins, with real containers."""

from __future__ import annotations

import json
from typing import Any

import pytest

from lab import engine, seen
from lab.abilities import require
from lab.commands import Outcome, run
from lab.dnsmasq import Dnsmasq, end_keepers, until
from lab.host import Host
from lab.plugins import OWN_FOLDER


def weft(*arguments: str, given: object = None, **variables: str) -> Outcome:
    if engine.for_programs():
        engine.ready()
    environment = {
        "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
        "WEFT_ENGINE": "require" if engine.for_programs() else "off",
        **variables,
    }
    given_text = "" if given is None else json.dumps(given)
    return run(str(OWN_FOLDER / "weft"), *arguments, stdin=given_text, environment=environment, check=False)


def create(**keys: Any) -> dict[str, Any]:
    """A network as podman requests it, created."""
    asked = {
        "name": "blue", "id": "ab" * 32, "driver": "weft", "dns_enabled": False, "internal": False,
        "ipv6_enabled": False, "ipam_options": {}, **keys,
    }  # fmt: skip
    outcome = weft("create", given=asked)
    assert outcome.code == 0, outcome
    found: dict[str, Any] = outcome.json
    return found


def attachment(network: dict[str, Any], container: str = "c1", **keys: Any) -> dict[str, Any]:
    options = {"interface_name": "eth0", "aliases": [container], **keys.pop("options", {})}
    return {
        "container_id": container, "container_name": container, "port_mappings": None, "network": network,
        "network_options": options, **keys,
    }  # fmt: skip


def setup(given: dict[str, Any], netns: str) -> dict[str, Any]:
    outcome = weft("setup", netns, given=given)
    assert outcome.code == 0, outcome
    found: dict[str, Any] = outcome.json
    return found


def teardown(given: dict[str, Any], netns: str) -> None:
    outcome = weft("teardown", netns, given=given)
    assert (outcome.code, outcome.stdout) == (0, ""), outcome


def test_info_and_call_without_arguments_need_no_input() -> None:
    assert weft("info").json["api_version"] == "1.0.0"
    bare = weft()
    assert (bare.code, bare.stdout) == (0, "") and "CNI protocol versions" in bare.stderr


def test_two_containers_and_published_ports(host: Host) -> None:
    network = create(options={"mtu": "1400"}, ipv6_enabled=True)
    one, two = host.container("c1"), host.container("c2")
    ports = [{"container_port": 80, "host_ip": "", "host_port": 8080, "protocol": "tcp", "range": 2}]
    first = attachment(network, port_mappings=ports)
    second = attachment(network, "c2", options={"static_ips": ["10.89.0.77"], "static_mac": "02:00:00:00:00:77"})
    status, other = setup(first, one), setup(second, two)
    [four, six] = status["interfaces"]["eth0"]["subnets"]
    assert four == {"ipnet": "10.89.0.2/24", "gateway": "10.89.0.1"} and ":" in six["ipnet"]
    assert status["interfaces"]["eth0"]["mac_address"] == seen.link(host, "eth0", "c1")["address"]
    assert seen.addresses(host, "eth0", "c1") == sorted((four["ipnet"], six["ipnet"]))
    assert seen.link(host, "eth0", "c1")["mtu"] == 1400
    assert other["interfaces"]["eth0"]["mac_address"] == "02:00:00:00:00:77"
    assert other["interfaces"]["eth0"]["subnets"][0]["ipnet"] == "10.89.0.77/24"
    assert (status["dns_server_ips"], status["dns_search_domains"]) == ([], [])
    assert seen.links(host).count(network["network_interface"]) == 1
    host.serve_tcp("c1", 81)
    assert host.fetch("c2", "10.89.0.2", 81) == "10.89.0.77"
    lan = host.lan()
    assert host.fetch(lan.name, lan.host, 8081) == lan.outside
    host.serve_tcp(lan.name, 90)
    assert host.fetch("c2", lan.outside, 90) == lan.host
    teardown(first, one)
    assert seen.links(host, "c1") == ["lo"] and host.fetch(lan.name, lan.host, 8081) is None
    teardown(first, one)
    assert host.fetch("c2", lan.outside, 90) == lan.host
    host.remove_container("c2")
    teardown(second, two)
    assert [link for link in seen.links(host) if link.startswith("veth")] == []


def test_new_network_avoids_subnets_of_the_host(host: Host) -> None:
    host.run("ip", "link", "add", "br9", "type", "bridge")
    host.run("ip", "address", "add", "10.89.0.1/24", "dev", "br9")
    assert create()["subnets"] == [{"subnet": "10.89.1.0/24", "gateway": "10.89.1.1"}]


def test_an_internal_network(host: Host) -> None:
    lan = host.lan()
    netns = host.container()
    given = attachment(create(internal=True))
    assert "gateway" not in setup(given, netns)["interfaces"]["eth0"]["subnets"][0]
    assert not host.ping("c1", lan.outside, timeout=0.5)
    teardown(given, netns)


def test_macvlan_with_dhcp(host: Host, tmp_path: Any) -> None:
    require("macvlan")
    lan = host.lan()
    server = Dnsmasq(host, lan, tmp_path, f"--dhcp-option=3,{lan.outside}", "--dhcp-option=6,192.0.2.53")
    network = create(options={"driver": "macvlan"}, network_interface=lan.link, ipam_options={"driver": "dhcp"})
    netns = host.container()
    given = attachment(network)
    try:
        status = setup(given, netns)
        assert [one["ipnet"].split("/")[0] for one in status["interfaces"]["eth0"]["subnets"]] == server.leases
        assert status["dns_server_ips"] == ["192.0.2.53"]
        assert host.ping("c1", lan.outside)
        teardown(given, netns)
        until(lambda: server.leases == [])
    finally:
        end_keepers()


@pytest.mark.parametrize(
    ("options", "words"),
    [({"static_ips": ["10.1.2.3"]}, "10.1.2.3"), ({"static_mac": "01:00:00:00:00:01"}, "multicast")],
)
def test_invalid_options_are_errors_and_leave_nothing(host: Host, options: dict[str, Any], words: str) -> None:
    network = create()
    netns = host.container()
    before = host.snapshot()
    outcome = weft("setup", netns, given=attachment(network, options=options))
    assert outcome.code == 1 and words in outcome.json["error"], outcome
    assert host.changes(before) == [] and seen.links(host, "c1") == ["lo"]


@pytest.mark.parametrize("mode", ["require", "off"])
def test_the_engine_answers_as_a_process_of_its_own_does(
    host: Host, monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    """Also errors; and a call that requires an engine where none runs gets netavark's kind of error."""
    missing = weft("create", given={"name": "blue"}, WEFT_ENGINE="require")
    assert (missing.code, list(missing.json)) == (1, ["error"]) and "no engine" in missing.json["error"]
    monkeypatch.setenv("WEFT_TEST_ENGINE", "require" if mode == "require" else "")
    network = create(subnets=[{"subnet": "10.77.0.0/24"}])
    netns = host.container()
    given = attachment(network)
    bad = attachment(network, options={"static_ips": ["10.99.0.9"]})
    for arguments, asked, words in (
        (("setup", "/nowhere"), given, "No such file"),
        (("setup",), given, "usage: weft setup NETNS"),
        (("create", netns), given, "usage: weft create"),
        (("setup", netns), bad, "10.99.0.9"),
    ):
        refused = weft(*arguments, given=asked)
        assert (refused.code, refused.stderr) == (1, "") and words in refused.json["error"], refused
    environment = {"CNI_IFNAME": "eth9", "CNI_CONTAINERID": "other", "CNI_NETNS": "/nowhere", "CNI_NETAVARK": "create"}
    answer = weft("setup", netns, given=given, **environment)
    assert answer.code == 0 and list(answer.json["interfaces"]) == ["eth0"], answer
    teardown(given, netns)
    assert seen.links(host, "c1") == ["lo"]


def test_no_call_starts_python_while_an_engine_runs(host: Host, tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither setup nor teardown executes an interpreter once an engine runs."""
    monkeypatch.setenv("WEFT_TEST_ENGINE", "require")
    given = attachment(create())
    netns = host.container()
    for verb in ("setup", "teardown"):
        trace = tmp_path / verb
        flags = ("-f", "-qq", "-o", str(trace), "-e", "trace=execve")
        outcome = run(
            "strace", *flags, str(OWN_FOLDER / "weft"), verb, netns, stdin=json.dumps(given),
            environment={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}, check=False,
        )  # fmt: skip
        assert outcome.code == 0, outcome
        assert trace.read_text().count("execve(") == 1
