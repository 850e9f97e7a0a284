"""netavark plugin calls: podman's settings as weft's configuration, and the replies."""

from __future__ import annotations

import json
from ipaddress import ip_network
from typing import Any

import pytest

from cni_plugin.entry import netavark
from cni_plugin.networks import podman
from cni_plugin.networks.pools import Use
from cni_plugin.wire.request import Request
from weft.errors import ConfigProblem, InUse
from weft.types import Result


@pytest.fixture(autouse=True)
def unused_host(monkeypatch: pytest.MonkeyPatch) -> None:
    """No subnet of this machine is in the way of ``create``."""
    monkeypatch.setattr(podman, "subnets_in_use", lambda routes=True: [])


SUBNET = {"subnet": "10.77.0.0/24", "gateway": "10.77.0.1", "lease_range": None}


def network(**keys: Any) -> dict[str, Any]:
    return {
        "name": "blue", "id": "ab" * 32, "driver": "weft", "dns_enabled": False, "internal": False,
        "ipv6_enabled": False, "network_interface": "wbr-1", "options": None, "ipam_options": {"driver": "host-local"},
        "subnets": [SUBNET], "routes": None, "network_dns_servers": None, **keys,
    }  # fmt: skip


def call(given: dict[str, Any] | None = None, **options: Any) -> netavark.Call:
    own = {"interface_name": "eth0", "aliases": None, "static_ips": None, "static_mac": None, **options}
    ports = own.pop("port_mappings", None)
    return netavark.Call(
        {"container_id": "c1", "container_name": "web", "port_mappings": ports,
         "network": given or network(), "network_options": own}
    )  # fmt: skip


def test_a_bridge() -> None:
    assert call().config == {
        "cniVersion": "1.1.0", "name": "blue", "type": "weft", "driver": "bridge", "bridge": "wbr-1",
        "isGateway": True, "ipMasq": True,
        "ipam": {
            "type": "host-local", "ranges": [[{"subnet": "10.77.0.0/24", "gateway": "10.77.0.1"}]],
            "routes": [{"dst": "0.0.0.0/0", "priority": 0}], "requestOutsideRange": True,
        },
    }  # fmt: skip


@pytest.mark.parametrize("driver", ["bridge", "ptp"])
def test_names_where_podman_asks_for_them(driver: str) -> None:
    """The container asks its gateway, and the agent the servers that podman's network names."""
    own = ["192.0.2.53"]
    found = call(network(dns_enabled=True, options={"driver": driver}, network_dns_servers=own), aliases=["w"])
    assert found.config["names"] == {"domain": "dns.podman", "nameservers": own} and found.servers == ()
    assert found.config["args"] == {"cni": {"name": "web"}}
    assert found.config["runtimeConfig"] == {"aliases": {"blue": ["w"]}}
    none = call(network(network_dns_servers=own))
    assert "names" not in none.config and none.servers == ("192.0.2.53",)


def test_podman_records_whether_there_are_names() -> None:
    inside = network(internal=True, dns_enabled=True, subnets=[{"subnet": "10.77.0.0/24"}])
    found = netavark.created(inside)
    assert found["dns_enabled"] is True and found["subnets"] == [{"subnet": "10.77.0.0/24", "gateway": "10.77.0.1"}]
    config = call(found).config
    assert config["isGateway"] is True and config["internal"] is True
    assert config["ipam"]["routes"] == []  # type: ignore[index]
    shared = network(options={"driver": "macvlan"}, dns_enabled=True)
    assert netavark.created(shared)["dns_enabled"] is False
    assert "names" not in call(shared).config
    bare = network(dns_enabled=True, subnets=None, ipam_options={"driver": "none"})
    assert netavark.created(bare)["dns_enabled"] is False
    assert netavark.created(network())["dns_enabled"] is False


def test_an_internal_network_has_no_default_route() -> None:
    config = call(network(internal=True)).config
    assert config["internal"] is True and "ipMasq" not in config
    assert config["ipam"]["routes"] == []  # type: ignore[index]


def test_options_ranges_and_routes() -> None:
    lease = {"rangeStart": "10.77.0.100", "rangeEnd": "10.77.0.200"}
    subnets = [
        {**SUBNET, "lease_range": {"start_ip": "10.77.0.100", "end_ip": "10.77.0.200"}},
        {"subnet": "fd77::/64", "gateway": "fd77::1"},
    ]
    routes = [{"destination": "10.0.0.0/8", "gateway": "10.77.0.9", "metric": None}]
    config = call(
        network(options={"mtu": "1400", "hairpinMode": "true", "metric": "50"}, subnets=subnets, routes=routes)
    )
    assert (config.config["mtu"], config.config["hairpinMode"]) == (1400, True)
    assert config.config["ipam"] == {
        "type": "host-local",
        "ranges": [
            [{"subnet": "10.77.0.0/24", "gateway": "10.77.0.1"} | lease],
            [{"subnet": "fd77::/64", "gateway": "fd77::1"}],
        ],
        "routes": [
            {"dst": "10.0.0.0/8", "gw": "10.77.0.9", "priority": 0},
            {"dst": "0.0.0.0/0", "priority": 50}, {"dst": "::/0", "priority": 50},
        ],
        "requestOutsideRange": True,
    }  # fmt: skip


@pytest.mark.parametrize("spelling", ["parent", "network_interface", "master"])
def test_macvlan_with_dhcp(spelling: str) -> None:
    options = {"driver": "macvlan", "mode": "private", "no_default_route": "1"}
    given = network(options=options, subnets=None, ipam_options={"driver": "dhcp"}, network_interface=None)
    (given if spelling == "network_interface" else options)[spelling] = "eth7"
    assert call(given).config == {
        "cniVersion": "1.1.0", "name": "blue", "type": "weft", "driver": "macvlan", "mode": "private",
        "master": "eth7", "ipam": {"type": "dhcp"},
    }  # fmt: skip


def test_ports_addresses_and_aliases() -> None:
    ports = [
        {"container_port": 80, "host_ip": "", "host_port": 8080, "protocol": "tcp,udp", "range": 2},
        {"container_port": 53, "host_ip": "127.0.0.1", "host_port": 53, "protocol": "", "range": 0},
    ]
    found = call(static_ips=["10.77.0.9"], static_mac="02:00:00:00:00:09", aliases=["web", "w"], port_mappings=ports)
    assert found.config["portmap"] == {}
    assert found.config["runtimeConfig"] == {
        "mac": "02:00:00:00:00:09",
        "ips": ["10.77.0.9"],
        "aliases": {"blue": ["web", "w"]},
        "portMappings": [
            {"hostPort": 8080, "containerPort": 80, "protocol": "tcp"},
            {"hostPort": 8081, "containerPort": 81, "protocol": "tcp"},
            {"hostPort": 8080, "containerPort": 80, "protocol": "udp"},
            {"hostPort": 8081, "containerPort": 81, "protocol": "udp"},
            {"hostPort": 53, "containerPort": 53, "protocol": "tcp", "hostIP": "127.0.0.1"},
        ],
    }


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"options": {"nonsense": "1"}}, "nonsense"),
        ({"options": {"driver": "nope"}}, "nope"),
        ({"options": {"names": ""}}, "--disable-dns"),
        ({"dns_enabled": True, "network_dns_servers": ["ns1"]}, '"ns1" is not an IP address'),
        ({"options": {"driver": "loopback"}}, "loopback"),
        ({"options": {"mtu": "large"}}, "large"),
        ({"options": {"mtu": "20"}}, "mtu 20"),
        ({"options": {"hairpinMode": "maybe"}}, "maybe"),
        ({"options": {"isolation": "some"}}, "some"),
        ({"options": "all"}, "options"),
        ({"network_interface": "much-too-long-a-name"}, "much-too-long-a-name"),
        ({"ipam_options": {"driver": "magic"}}, "magic"),
        ({"ipam_options": {"driver": "dhcp"}}, "subnets"),
        ({"subnets": [{"subnet": "10.77.0.1/24"}]}, "10.77.0.0/24"),
        ({"subnets": [{}]}, "subnet"),
        ({"subnets": [{**SUBNET, "gateway": "10.78.0.1"}]}, "10.78.0.1"),
        ({"options": {"driver": "macvlan"}, "subnets": None}, "needs a subnet"),
    ],
)
def test_invalid_networks_are_not_created(keys: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigProblem) as refused:
        netavark.created(network(**keys))
    assert words in str(refused.value)


def test_create_fills_in_defaults() -> None:
    keys = {"subnets": None, "network_interface": None, "ipam_options": None, "ipv6_enabled": True}
    found = netavark.created(network(**keys))
    four, six = found["subnets"]  # type: ignore[misc]
    assert four == {"subnet": "10.89.0.0/24", "gateway": "10.89.0.1"} and six["subnet"].startswith("fd")
    assert found["ipam_options"] == {"driver": "host-local"}
    assert str(found["network_interface"]).startswith("wbr-")
    assert {key: found[key] for key in ("name", "id", "driver")} == {"name": "blue", "id": "ab" * 32, "driver": "weft"}
    assert netavark.created(found) == found
    inside = netavark.created(network(**keys, internal=True))
    assert "gateway" not in inside["subnets"][0]  # type: ignore[index]


def test_create_refuses_a_subnet_in_use(monkeypatch: pytest.MonkeyPatch) -> None:
    """As podman does for networks of its own drivers; macvlan's subnet is that of the host's link."""
    used = Use(ip_network("10.77.0.0/16"), "the address 10.77.0.1/16 of this host's eth0", "eth0")
    monkeypatch.setattr(podman, "subnets_in_use", lambda routes=True: [used])
    with pytest.raises(InUse) as refused:
        netavark.created(network(network_interface=None))
    assert "10.77.0.0/24 with 10.77.0.0/16, the address 10.77.0.1/16 of this host's eth0" in str(refused.value)
    netavark.created(network(network_interface="eth0"))
    netavark.created(network(options={"driver": "macvlan"}, network_interface="eth0"))


@pytest.mark.parametrize(
    ("arguments", "stdin", "words"),
    [
        (["setup"], b"{}", "usage"),
        (["create", "more"], b"{}", "usage"),
        (["setup", "/run/netns/x"], b"", "JSON"),
        (["setup", "/run/netns/x"], b"[]", "object"),
        (["setup", "/run/netns/x"], b"{}", "name"),
        (["teardown", "/run/netns/x"], b'{"network": 7}', "network"),
    ],
)
def test_invalid_calls_get_an_error_object(arguments: list[str], stdin: bytes, words: str) -> None:
    def handle(request: Request) -> Result | None:
        raise AssertionError("the service must not be called")

    status, answer = netavark.run(arguments, stdin, handle)
    assert status == 1 and words in json.loads(answer)["error"], answer


def test_info() -> None:
    status, answer = netavark.run(["info"], b"", lambda request: None)
    assert status == 0 and json.loads(answer)["api_version"] == "1.0.0"
