"""Plugin calls of nerdctl and Nomad, which no distribution packages, after their sources.

nerdctl: its hooks call DEL before each ADD, without a namespace; the list has cniVersion 1.0.0 and
keys of nerdctl's own. Nomad: runs each file of ``cni_path`` to fingerprint it, tries an ADD three
times, publishes each port for tcp and udp. Both use go-cni, which writes the keys of a port mapping
as Go spells them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from lab.commands import Outcome
from lab.plugins import Cni, Config
from lab.podman import Podman

NERDCTL: Config = {
    "cniVersion": "1.0.0",
    "name": "bridge",
    "nerdctlID": "17f29b073143d8cd97b5bbe492bdeffec1c5fee55cc1fe2112c8b9335f8b6121",
    "nerdctlLabels": {"nerdctl/default-network": "true"},
    "plugins": [
        {
            "type": "bridge", "bridge": "nerdctl0", "isGateway": True, "ipMasq": True, "hairpinMode": True,
            "ipam": {
                "type": "host-local", "routes": [{"dst": "0.0.0.0/0"}],
                "ranges": [[{"subnet": "10.4.0.0/24", "gateway": "10.4.0.1"}]],
            },
            "capabilities": {"ips": True},
        },
        {"type": "portmap", "capabilities": {"portMappings": True}},
        {"type": "firewall", "ingressPolicy": "same-bridge"},
        {"type": "tuning"},
    ],
}  # fmt: skip
NOMAD: Config = {
    "cniVersion": "0.4.0",
    "name": "nomad",
    "plugins": [
        {"type": "loopback"},
        {
            "type": "bridge", "bridge": "nomad", "ipMasq": True, "isGateway": True, "forceAddress": True,
            "hairpinMode": False,
            "ipam": {
                "type": "host-local", "ranges": [[{"subnet": "172.26.64.0/20"}]], "routes": [{"dst": "0.0.0.0/0"}],
            },
        },
        {"type": "firewall", "backend": "iptables", "iptablesAdminChainName": "NOMAD-ADMIN"},
        {"type": "portmap", "capabilities": {"portMappings": True}, "snat": True},
    ],
}  # fmt: skip
# As hashicorp/go-version and semver parse them: a leading "v" is allowed, "+…" is build metadata.
VERSION = re.compile(r"v?\d+\.\d+\.\d+(-[0-9A-Za-z.-]+)?(\+[0-9A-Za-z.-]+)?")


class Calls(Cni):
    """Calls plugins as libcni does: it passes prevResult along and keeps it for DEL."""

    def __init__(self, folder: Path, machine: Podman) -> None:
        super().__init__(folder)
        self.machine = machine

    def call(
        self, command: str, conf: Config, container: str, netns: str, args: str = "", ifname: str = "eth0"
    ) -> Outcome:
        variables = self.environment(command, container, netns, ifname, args)
        return self.machine.run(
            str(self.folder / conf["type"]), stdin=json.dumps(conf), environment=variables, check=False
        )

    def attach(
        self, conflist: Config, container: str, netns: str, runtime: Config, args: str = "", ifname: str = "eth0"
    ) -> Outcome:
        """ADD of the whole list, ended by the first failure; returns the last outcome."""
        result: Any = None
        for conf in self._members(conflist, runtime):
            given = conf if result is None else {**conf, "prevResult": result}
            outcome = self.call("ADD", given, container, netns, args, ifname)
            if outcome.code:
                return outcome
            result = outcome.json
        return outcome

    def detach(
        self, conflist: Config, container: str, netns: str, runtime: Config, result: Any = None, args: str = ""
    ) -> None:
        """DEL of the whole list, which must succeed and print nothing."""
        for conf in reversed(self._members(conflist, runtime)):
            given = conf if result is None else {**conf, "prevResult": result}
            outcome = self.call("DEL", given, container, netns, args)
            assert (outcome.code, outcome.stdout) == (0, ""), outcome


@pytest.fixture
def calls(machine: Podman, plugin_folder: Path) -> Iterator[Calls]:
    """Calls on podman's machine, with the network namespaces box1 and box2."""
    for name in ("box1", "box2"):
        machine.run("ip", "netns", "add", name)
    yield Calls(plugin_folder, machine)
    for name in ("box1", "box2"):
        machine.run("ip", "netns", "del", name)
    machine.weft("gc")
    assert machine.left() == []


def mapping(host: int, container: int, protocol: str, address: str = "") -> Mapping[str, object]:
    """A port mapping as go-cni writes it."""
    return {"HostPort": host, "ContainerPort": container, "Protocol": protocol, "HostIP": address}


def test_fingerprints(own: None, calls: Calls) -> None:
    """Without arguments and environment each plugin prints its version to stderr, and exits 0."""
    for path in sorted(calls.folder.iterdir()):
        outcome = calls.machine.run(str(path), environment={}, check=False)
        assert (outcome.code, outcome.stdout) == (0, ""), outcome
        prefix = f"CNI {path.name} plugin "
        [line] = [line for line in outcome.stderr.splitlines() if line.startswith(prefix)]
        assert VERSION.fullmatch(line.removeprefix(prefix)), line
        # Nomad takes the first word that parses as a version.
        assert next(word for word in outcome.stderr.split() if VERSION.fullmatch(word)) == line.split()[-1]
    # nerdctl isolates networks only with a firewall plugin of 1.1.0 or later; icc=false needs
    # 1.7.1.
    said = calls.machine.run(str(calls.folder / "firewall"), environment={}).stderr
    found = re.search(r"CNI firewall plugin v(\d+)\.(\d+)\.(\d+)", said)
    assert found and tuple(map(int, found.groups())) >= (1, 7, 1)


def test_versions(calls: Calls) -> None:
    """As libcni calls VERSION: the other CNI_ variables are set to dummy words."""
    for name in ("bridge", "portmap", "firewall", "tuning", "loopback", "host-local"):
        dummies = dict.fromkeys(("CNI_NETNS", "CNI_IFNAME", "CNI_PATH"), "dummy")
        outcome = calls.machine.run(
            str(calls.folder / name),
            stdin='{"cniVersion":"1.0.0"}',
            environment={**calls.environment("VERSION"), **dummies},
        )
        assert {"0.4.0", "1.0.0"} <= set(outcome.json["supportedVersions"]), name


def test_nerdctl(calls: Calls) -> None:
    container = "default-" + "0123456789abcdef" * 4
    args = "IgnoreUnknown=1;NERDCTL_CNI_DHCP_HOSTNAME=web;MAC=02:00:00:00:00:55;IP=10.4.0.55"
    runtime = {"portMappings": [mapping(8080, 80, "tcp", "0.0.0.0"), mapping(5300, 53, "udp", "127.0.0.1")]}
    netns = "/run/netns/box1"
    calls.detach(NERDCTL, container, "", runtime, args=args)
    outcome = calls.attach(NERDCTL, container, netns, runtime, args)
    assert outcome.code == 0, outcome
    result = outcome.json
    assert result["cniVersion"] == "1.0.0"
    assert [one["address"] for one in result["ips"]] == ["10.4.0.55/24"]
    inner = result["interfaces"][result["ips"][0]["interface"]]
    assert (inner["name"], inner["mac"], inner["sandbox"]) == ("eth0", "02:00:00:00:00:55", netns)
    assert calls.machine.leases("bridge") == ["10.4.0.55"]
    rules = calls.machine.run("nft", "list", "ruleset").stdout
    assert "8080" in rules and "5300" in rules
    # The container is restarted: DEL without a namespace, then ADD.
    calls.detach(NERDCTL, container, "", runtime, args=args)
    assert calls.machine.leases("bridge") == []
    calls.detach(NERDCTL, container, "", runtime, args=args)
    assert calls.attach(NERDCTL, container, "/run/netns/box2", runtime, args).json["ips"] == result["ips"]
    # Another container requests the same address and port.
    taken = calls.attach(NERDCTL, "default-other", netns, runtime, args)
    assert taken.code != 0 and "10.4.0.55" in taken.json["msg"]
    calls.detach(NERDCTL, "default-other", "", runtime, args=args)
    assert calls.machine.leases("bridge") == ["10.4.0.55"]
    calls.detach(NERDCTL, container, "", runtime, result, args)


def test_nomad(own: None, calls: Calls) -> None:
    container, netns = "6ee04a3d-0f5d-4d5c-9d7a-3c1b0a6f8f11", "/run/netns/box1"
    ports = [
        mapping(host, target, protocol) for host, target in ((25000, 80), (25001, 81)) for protocol in ("tcp", "udp")
    ]
    runtime = {"portMappings": ports}
    # An existing interface makes the first two tries fail; the next follows without a DEL.
    ip = ("ip", "-n", "box1", "link")
    calls.machine.run(*ip, "add", "eth0", "type", "veth", "peer", "name", "other")
    for _ in range(2):
        refused = calls.attach(NOMAD, container, netns, runtime)
        assert refused.code != 0 and "eth0" in refused.json["msg"]
    calls.machine.run(*ip, "del", "eth0")
    outcome = calls.attach(NOMAD, container, netns, runtime)
    assert outcome.code == 0, outcome
    result = outcome.json
    inside = sorted(one["name"] for one in result["interfaces"] if one.get("sandbox"))
    assert "eth0" in inside
    [given] = [one for one in result["ips"] if one["version"] == "4" and not one["address"].startswith("127.")]
    assert result["interfaces"][given["interface"]]["name"] == "eth0"
    address = given["address"].split("/")[0]
    assert calls.machine.leases("nomad") == [address]
    published = calls.machine.run("nft", "list", "map", "inet", "weft", "ports4").stdout
    for protocol in ("tcp", "udp"):
        assert f"{protocol} . 25000" in published and f"{protocol} . 25001" in published
    assert calls.machine.run("iptables", "-S", "NOMAD-ADMIN").code == 0
    # A restarted Nomad client calls CHECK.
    for conf in calls._members(NOMAD, runtime):
        checked = calls.call("CHECK", {**conf, "prevResult": result}, container, netns)
        assert (checked.code, checked.stdout) == (0, ""), checked
    calls.detach(NOMAD, container, netns, runtime, result)
    calls.detach(NOMAD, container, netns, runtime, result)
    assert "25000" not in calls.machine.run("nft", "list", "ruleset").stdout
    assert address not in calls.machine.run("iptables", "-S").stdout
    assert calls.machine.leases("nomad") == []


def test_nomad_del_after_a_host_restart(own: None, calls: Calls) -> None:
    """Nomad's DEL after the namespace is gone: its path does not exist, and everything is freed."""
    container = "0b1c52e4-5d57-44f1-8f0c-6f0f6f1a7d22"
    runtime = {"portMappings": [mapping(25000, 80, "tcp")]}
    result = calls.attach(NOMAD, container, "/run/netns/box1", runtime).json
    calls.machine.run("ip", "netns", "del", "box1")
    calls.detach(NOMAD, container, "/run/netns/box1", runtime, result)
    assert calls.machine.leases("nomad") == []
    calls.machine.run("ip", "netns", "add", "box1")
