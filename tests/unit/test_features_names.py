"""The feature ``names``: DNS names and services of a container, from all sources."""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest

from cni_plugin.ops import Elements
from lab.calls import Weft
from lab.confs import dual, network, pool
from weft.daemons import REFRESHED, Daemon
from weft.identity import attachment_digest
from weft.kernel.fake.kernel import FakeKernel
from weft.kernel.host import Host
from weft.kernel.values import Listener
from weft.types import Attachment

NETNS = "/run/netns/c1"
CONTAINER = "0123456789abcdef"


@pytest.fixture
def kernel() -> FakeKernel:
    made = FakeKernel()
    made.add(NETNS)
    return made


@pytest.fixture
def weft(kernel: FakeKernel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Weft:
    monkeypatch.setattr(Daemon, "ensure", lambda self, path: None)
    return Weft(kernel, Host(str(tmp_path), "boot", 0.0))


def conf(**keys: Any) -> dict[str, Any]:
    return network("weft", dual(dataDir="/nowhere"), driver="bridge", bridge="br0", isGateway=True, **keys)


def announced(tmp_path: Path) -> Any:
    """The file that the agent reads."""
    mark = attachment_digest(Attachment("net", CONTAINER, "eth0", "weft"))
    return json.loads((tmp_path / "names" / f"{mark}.json").read_text())


@pytest.fixture
def folder(tmp_path: Path) -> dict[str, str]:
    return {"dataDir": str(tmp_path / "leases")}


def settled(given: dict[str, Any], folder: dict[str, str]) -> dict[str, Any]:
    return {**given, "ipam": {**given["ipam"], **folder}}


def test_names_and_services_are_announced(weft: Weft, tmp_path: Path, folder: dict[str, str]) -> None:
    given = settled(
        conf(
            names={"domain": "Blue.Example."},
            services=[
                {
                    "name": "web",
                    "port": 80,
                    "protocol": "tcp",
                    "tags": ["v1"],
                    "meta": {"Team": "a"},
                    "weight": 3,
                    "check": {"http": "/health", "interval": "10s"},
                    "virtual": True,
                    "balance": "maglev",
                }
            ],
            runtimeConfig={"aliases": {"net": ["WWW", "front"], "other": ["no"]}},
            args={"cni": {"name": "my_app", "services": [{"name": "admin", "port": 9000}]}},
        ),
        folder,
    )
    args = "IgnoreUnknown=1;K8S_POD_NAME=pod;SERVICE_NAME=extra;SERVICE_PORT=7;SERVICE_TAGS=a,b"
    answer = weft("ADD", given, NETNS, CONTAINER, args=args)
    assert answer.ok, answer
    assert answer.document["dns"] == {"nameservers": ["10.80.0.1", "fd80::1"], "search": ["blue.example"]}
    found = announced(tmp_path)
    assert found["names"] == ["pod", "my_app", "www", "front", CONTAINER[:12]]
    assert found["addresses"] == ["10.80.0.2/24", "fd80::2/64"] and found["gateways"] == ["10.80.0.1", "fd80::1"]
    assert [(one["name"], one["port"]) for one in found["services"]] == [("web", 80), ("admin", 9000), ("extra", 7)]
    web = found["services"][0]
    assert web["meta"] == {"Team": "a", "weft-balance": "maglev"} and web["weights"] == {"passing": 3, "warning": 3}
    assert web["check"] == {"http": "/health", "interval": "10s"} and web["virtual"] is True
    assert found["services"][2]["tags"] == ["a", "b"]
    assert weft.check(given, answer.document, NETNS, CONTAINER) == ""
    os.unlink(next((tmp_path / "names").iterdir()))
    assert "names" in weft.check(given, answer.document, NETNS, CONTAINER)
    weft.delete(given, NETNS, CONTAINER)
    assert list((tmp_path / "names").iterdir()) == []


def test_checks_are_passed_to_the_agent_unchanged(weft: Weft, tmp_path: Path, folder: dict[str, str]) -> None:
    checks = [
        {"udp": "", "interval": "5s", "timeout": "1s"},
        {"ttl": "30s", "deregister_critical_service_after": "5m"},
        {"tcp": ":443", "interval": "1s", "tcp_use_tls": True, "tls_skip_verify": True, "tls_server_name": "web"},
        {"http": "/", "interval": "1s", "header": {"Host": ["web"]}, "disable_redirects": True},
        {"udp": "", "interval": "1s", "failures_before_warning": 1, "failures_before_critical": 3},
        {"tcp": "", "interval": "1s", "success_before_passing": 2},
        {"http": "/", "interval": "5s", "method": "POST", "body": "{}"},
        {"http": "https:/", "interval": "5s", "status": "passing"},
    ]
    services = [{"name": "web", "port": 80, "sticky": "1h", "shared": True, "check": check} for check in checks]
    weft.add(settled(conf(services=services), folder), NETNS, CONTAINER)
    found = announced(tmp_path)["services"]
    assert [one["check"] for one in found] == checks and found[0]["meta"] == {"weft-sticky": "1h"}
    assert found[0]["shared"] is True


def test_nothing_is_announced_without_names_or_services(weft: Weft, tmp_path: Path, folder: dict[str, str]) -> None:
    answer = weft("ADD", settled(conf(), folder), NETNS, CONTAINER, args="IgnoreUnknown=1;K8S_POD_NAME=pod")
    assert answer.ok and not answer.document.get("dns") and not (tmp_path / "names").exists()


def test_dns_of_the_result_may_be_left_to_ipam(weft: Weft, tmp_path: Path, folder: dict[str, str]) -> None:
    given = settled(conf(names={"dns": False}, dns={"nameservers": ["192.0.2.1"]}), folder)
    assert weft.add(given, NETNS, CONTAINER)["dns"] == {"nameservers": ["192.0.2.1"]}
    other = settled(conf(names={}, dns={"nameservers": ["192.0.2.1"]}), folder)
    weft.delete(given, NETNS, CONTAINER)
    assert weft.add(other, NETNS, CONTAINER)["dns"]["nameservers"] == ["10.80.0.1", "fd80::1", "192.0.2.1"]


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"names": {"domain": "a b"}}, 'names.domain "a b" must consist of'),
        ({"names": []}, "names must be an object"),
        ({"names": {"domian": "shop"}}, 'names.domian "shop" is unknown; did you mean domain?'),
        ({"names": {"redirectDNs": True, "x": 1}}, "names.x 1 is unknown; the keys are domain, nameservers"),
        ({"services": [{"name": "web", "prot": 80}]}, "services[0].prot 80 is unknown; did you mean port?"),
        (
            {"services": [{"name": "web", "port": 1, "check": {"htttp": "/", "interval": "1s"}}]},
            'services[0].check.htttp "/" is unknown; did you mean http?',
        ),
        ({"services": [{"port": 80}]}, "services[0].name"),
        ({"services": [{"name": "web", "port": 0}]}, "services[0].port 0 must be between 1"),
        ({"services": [{"name": "web", "protocol": "icmp"}]}, 'services[0].protocol "icmp" must be one of'),
        ({"services": [{"name": "web", "balance": "best"}]}, 'services[0].balance "best" must be one of'),
        ({"services": [{"name": "web", "virtual": "x"}]}, 'services[0].virtual "x" is not an IP address'),
        ({"services": [{"name": "web", "meta": {"a": 1}}]}, "services[0].meta"),
        ({"services": [{"name": "web", "port": 1, "check": {}}]}, "services[0].check must have one of"),
        ({"services": [{"name": "web", "port": 1, "check": {"http": "/"}}]}, "services[0].check.interval is missing"),
        (
            {"services": [{"name": "web", "port": 1, "check": {"ttl": "1s", "header": {"Host": "web"}}}]},
            "services[0].check.header",
        ),
        (
            {"services": [{"name": "web", "check": {"tcp": "", "interval": "1s"}}]},
            "requires the service to have a port",
        ),
        ({"runtimeConfig": {"aliases": {"net": ["a/b"]}}, "names": {}}, 'aliases.net "a/b" must consist of'),
    ],
)
def test_invalid_configurations_are_refused(
    weft: Weft, tmp_path: Path, folder: dict[str, str], keys: dict[str, Any], said: str
) -> None:
    answer = weft("ADD", settled(conf(**keys), folder), NETNS, CONTAINER)
    assert answer.code == 7 and said in answer.text
    assert not (tmp_path / "names").exists() and not (tmp_path / "leases").exists()


def test_podmans_plugin_gives_names(weft: Weft, tmp_path: Path, folder: dict[str, str]) -> None:
    """Called as ``dnsname``, the last plugin of the chain that podman writes."""
    first = settled(network("bridge", dual(dataDir="/nowhere"), bridge="br0", isGateway=True), folder)
    before = weft.add(first, NETNS, CONTAINER)
    last = network("dnsname", domainName="Dns.Podman", runtimeConfig={"aliases": {"net": ["WWW"], "other": ["no"]}})
    chained = {**last, "prevResult": before, "args": {"cni": {"name": "my_app"}}}
    answer = weft("ADD", chained, NETNS, CONTAINER, args="IgnoreUnknown=1;K8S_POD_NAME=pod")
    assert answer.ok, answer
    assert answer.document["ips"] == before["ips"]
    assert answer.document["dns"] == {"nameservers": ["10.80.0.1", "fd80::1"], "search": ["dns.podman"]}
    mark = attachment_digest(Attachment("net", CONTAINER, "eth0", "dnsname"))
    found = json.loads((tmp_path / "names" / f"{mark}.json").read_text())
    assert (found["names"], found["domain"]) == (["pod", "my_app", "www", CONTAINER[:12]], "dns.podman")
    assert weft.check(chained, answer.document, NETNS, CONTAINER) == ""
    weft.delete(chained, NETNS, CONTAINER)
    assert list((tmp_path / "names").iterdir()) == []
    refused = weft("ADD", {**chained, "domainName": "no name"}, NETNS, CONTAINER)
    assert refused.code == 7
    assert "domainName" in refused.text


def test_podmans_plugin_offers_services_and_redirects_dns(weft: Weft, tmp_path: Path, folder: dict[str, str]) -> None:
    """``services``, ``internal`` and ``redirectDns``, which podman's plugin does not have."""
    first = settled(network("bridge", dual(dataDir="/nowhere"), bridge="br0", isGateway=True), folder)
    before = weft.add(first, NETNS, CONTAINER)
    last = network("dnsname", services=[{"name": "web", "port": 80}], internal=True,
                   redirectDns=["192.0.2.53", "2001:db8::53"])  # fmt: skip
    chained = {**last, "prevResult": before, "args": {"cni": {"services": [{"name": "db", "port": 5432}]}}}
    weft.add(chained, NETNS, CONTAINER)
    mark = attachment_digest(Attachment("net", CONTAINER, "eth0", "dnsname"))
    found = json.loads((tmp_path / "names" / f"{mark}.json").read_text())
    assert [one["name"] for one in found["services"]] == ["web", "db"] and found["internal"]
    record = weft.preview(chained, NETNS)
    elements = [each for one in record.shared if isinstance(one, Elements) for each in one.elements]
    redirected = [each for each in elements if each.collection in ("dns_server4", "dns_server6")]
    assert {str(each.data[0]) for each in redirected} == {"10.80.0.1", "fd80::1"}
    asked = [each for each in elements if each.collection in ("dns_redirected4", "dns_redirected6")]
    assert [tuple(map(str, each.key)) for each in asked] == [("br0", "192.0.2.53"), ("br0", "2001:db8::53")]


def test_a_del_waits_for_the_agent_to_drop_names_and_checks(
    weft: Weft, tmp_path: Path, folder: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its checks open the container's namespace, which the runtime unmounts after the DEL."""
    weft.add(settled(conf(names={}), folder), NETNS, CONTAINER)
    seen: list[str] = []
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "agent.sock"))
        listener.listen()

        def agent() -> None:
            connection, _ = listener.accept()
            with connection:
                seen.extend(os.listdir(tmp_path / "names"))
                time.sleep(0.1)
                seen.append("dropped")
                connection.send(REFRESHED)

        thread = threading.Thread(target=agent)
        thread.start()
        weft.delete(settled(conf(names={}), folder), NETNS, CONTAINER)
        assert seen == ["dropped"]
        thread.join()


def test_port_53_of_the_gateways_stays_the_agents(
    weft: Weft, kernel: FakeKernel, tmp_path: Path, folder: dict[str, str]
) -> None:
    """Whichever comes first, and a port of every address comes beside; at the gateway itself it is refused."""
    mapping = {"hostPort": 53, "containerPort": 5353, "protocol": "udp"}

    def publish(**keys: Any) -> Any:
        runtime = {"portMappings": [{**mapping, **keys}]}
        return weft("ADD", settled(conf(portmap={}, runtimeConfig=runtime), folder), NETNS, "publisher")

    ipam = pool("10.81.0.0/24", dataDir="/nowhere")
    given = settled({**conf(name="blue", names={}), "bridge": "br1", "ipam": ipam}, folder)
    assert publish().ok
    weft.add(given, NETNS, CONTAINER, "eth1")
    gateway = ip_address("10.81.0.1")
    (own,) = [one for one in kernel.rules.elements("ports4_at") if one.key[:2] == (gateway, "udp")]
    assert own.data == (gateway, 53)
    kernel.host.sockets["udp", 53] = [Listener(gateway, 53, "weft-agent (7)")]
    weft.delete(settled(conf(portmap={}), folder), NETNS, "publisher")
    assert publish().ok
    weft.delete(settled(conf(portmap={}), folder), NETNS, "publisher")
    for keys, listener in (({"hostIP": "10.81.0.1"}, gateway), ({}, ip_address("10.99.0.1"))):
        kernel.host.sockets["udp", 53] = [Listener(listener, 53, "weft-agent (7)")]
        refused = publish(**keys)
        assert refused.code == 101 and "weft-agent (7)" in refused.text


def test_a_virtual_address_puts_the_port_in_hairpin_mode(
    weft: Weft, kernel: FakeKernel, folder: dict[str, str]
) -> None:
    """With br_netfilter the container could not reach itself by it."""
    for services, mode in (([{"name": "web", "port": 80}], 0), ([{"name": "web", "port": 80, "virtual": True}], 1)):
        given = settled(conf(services=services), folder)
        result = weft.add(given, NETNS, CONTAINER)
        port = kernel.host.link(result["interfaces"][1]["name"])
        assert port is not None and port.port.get("brport_mode", 0) == mode
        assert weft.check(given, result, NETNS, CONTAINER) == ""
        weft.delete(given, NETNS, CONTAINER)
