"""The services that attachments announce become instances of the catalog."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import asdict, replace
from ipaddress import ip_interface
from pathlib import Path

import pytest

from cni_plugin.agent.attachments import Announcement, Attachments, networks, offers, unserved
from discovery.dns.network_zones import NetworkZones
from discovery.registry import Registry
from discovery.structs import Instance, Node, ServiceAddress, Weights
from store.embedded import open_embedded
from weft import remarks


def announcement(*services: Mapping[str, object]) -> Announcement:
    return Announcement(
        owner="owner",
        network="net",
        container="0123456789abcdef",
        interface="eth0",
        namespace="/run/netns/c1",
        addresses=(ip_interface("10.1.0.2/24"), ip_interface("fd00::2/64")),
        gateways=(),
        internal=False,
        names=("web",),
        domain="",
        services=services,
    )


def test_service_becomes_an_instance_with_its_check() -> None:
    service = {
        "name": "web",
        "port": 80,
        "protocol": "tcp",
        "tags": ["v1"],
        "weights": {"passing": 3, "warning": 2},
        "meta": {"weft-balance": "random"},
        "virtual": True,
        "check": {"http": "/health", "interval": "10s"},
    }
    [(instance, checks)] = offers(announcement(service))
    assert (instance.id, instance.name, instance.port, instance.protocol) == (
        "web-0123456789ab-owner-80-tcp",
        "web",
        80,
        "tcp",
    )
    assert (instance.address, instance.tags, instance.owner) == ("10.1.0.2", ("v1",), "owner")
    assert instance.weights == Weights(3, 2)
    assert instance.meta == {"weft-balance": "random", "network": "net"}
    assert instance.tagged_addresses == {
        "lan_ipv4": ServiceAddress("10.1.0.2", 80),
        "lan_ipv6": ServiceAddress("fd00::2", 80),
        "virtual": ServiceAddress("", 80),
    }
    [check] = checks
    assert (check.id, check.target, check.netns) == (
        "service:web-0123456789ab-owner-80-tcp",
        "http://10.1.0.2:80/health",
        "/run/netns/c1",
    )


@pytest.mark.parametrize(
    ("given", "target"),
    [
        ("/", "http://10.1.0.2:443/"),
        ("https:/up?x=//1", "https://10.1.0.2:443/up?x=//1"),
        ("http:/up", "http://10.1.0.2:443/up"),
        ("https://localhost:8443/up", "https://localhost:8443/up"),
    ],
)
def test_a_path_is_of_the_container(given: str, target: str) -> None:
    check = {"http": given, "interval": "10s", "status": "passing"}
    [(_, [found])] = offers(announcement({"name": "web", "port": 443, "check": check}))
    assert (found.target, found.initial) == (target, "passing")


def test_service_with_a_name_alone_has_the_defaults() -> None:
    [(instance, checks)] = offers(announcement({"name": "web"}))
    assert (instance.id, instance.port, instance.protocol, instance.tags) == ("web-0123456789ab-owner", 0, "", ())
    assert (instance.weights, instance.meta, checks) == (Weights(), {"network": "net"}, ())
    assert "virtual" not in instance.tagged_addresses


@pytest.mark.parametrize(
    ("damaged", "problem"),
    [
        ({"port": 80}, "name"),
        ({"name": "db", "port": "many"}, "port"),
        ({"name": "db", "tags": "v1"}, "tags"),
        ({"name": "db", "meta": ["v1"]}, "meta"),
        ({"name": "db", "weights": {"passing": "1"}}, "weights.passing"),
    ],
)
def test_damaged_service_is_logged_and_the_rest_is_offered(
    caplog: pytest.LogCaptureFixture, damaged: Mapping[str, object], problem: str
) -> None:
    with caplog.at_level(logging.WARNING, "cni_plugin.agent.attachments"):
        found = list(offers(announcement(damaged, {"name": "web"})))
    assert [instance.name for instance, _ in found] == ["web"]
    assert f"ignoring a service of 0123456789abcdef: {problem}: " in caplog.text


def test_maintenance_of_a_container_that_ended_without_an_agent_ends(tmp_path: Path) -> None:
    async def run(test: Callable[[Registry, Attachments], Awaitable[None]]) -> None:
        store = await open_embedded(tmp_path / "catalog.db")
        registry = Registry(Node("n1", "192.0.2.1"), store, store, lease_seconds=0.2)
        await registry.resume()
        await registry.start()
        await test(registry, Attachments(str(tmp_path), NetworkZones(), registry))
        await registry.stop()
        await store.close()

    async def maintained(registry: Registry, attachments: Attachments) -> None:
        await registry.register(Instance("", "db", "db"))
        await registry.offer("owner", [(Instance("", "web-1", "web"), [])])
        for instance in ("db", "web-1", ""):
            await registry.maintenance(True, instance_id=instance)

    async def refreshed(registry: Registry, attachments: Attachments) -> None:
        assert "_service_maintenance:web-1" in registry.checks() and "web-1" not in registry.instances()
        await attachments.refresh()
        assert registry.checks().keys() == {"_service_maintenance:db", "_node_maintenance"}

    asyncio.run(run(maintained))
    time.sleep(0.5)  # the node's lease has expired, as after a reboot
    asyncio.run(run(refreshed))


def test_services_that_the_store_cannot_take_do_not_stop_the_others(tmp_path: Path) -> None:
    folder = tmp_path / "names"
    folder.mkdir()
    for owner, tags in (("large", ["x" * 600_000]), ("a", ["v1"]), ("z", ["v1"])):
        found = asdict(replace(announcement({"name": owner, "tags": tags}), owner=owner, addresses=()))
        (folder / f"{owner}.json").write_text(json.dumps(found))

    async def run() -> None:
        store = await open_embedded(tmp_path / "catalog.db")
        registry = Registry(Node("n1", "192.0.2.1"), store, store)
        await registry.start()
        attachments = Attachments(str(tmp_path), NetworkZones(), registry)
        await attachments.refresh()
        assert registry.owners() == {"a", "z"}
        refused = remarks.read(str(tmp_path), "large").refused
        assert [one.partition(": ")[0] for one in refused] == ["services are not registered"]
        await registry.stop()
        await store.close()

    asyncio.run(run())


def test_a_network_forwards_to_the_servers_of_its_containers() -> None:
    one = replace(announcement(), nameservers=("192.0.2.53", "192.0.2.54"))
    [zone] = networks([one, announcement()])
    assert zone.upstreams == ("192.0.2.53", "192.0.2.54")


MISLEADING = (
    *("www.example.com", "com", "localhost", "wpad", "isatap", "local", "internal", "_gateway", "xn--localhost-"),
    *("host.containers.internal", "host.docker.internal", "gateway.docker.internal", "127.0.0.1", "127.1"),
    *("x.localhost", "_dmarc.example", "metadata.google.internal", "web.service.consul", "dns.podman"),
    # clients append their search domains
    *("www.example.com.blue", "www.example.com.lab.example", "wpad.lab.example", "localhost.blue", "web.red"),
)
HONEST = (
    *("web", "my_app", "_http", "123456789012", "1", "app", "dev", "shop", "db", "consul", "xn--bcher-kva"),
    *("web.blue", "web.lab.example", "lab", "0123456789ab"),
)


def test_names_that_mislead_siblings_are_not_served() -> None:
    one = replace(announcement(), network="Blue", domain="lab.example", names=(*MISLEADING, *HONEST))
    [zone] = networks([one])
    assert set(zone.records) == {*HONEST, "bücher"} - {"xn--bcher-kva"}
    assert zone.reverse["10.1.0.2"] == "web"
    sentences = unserved(one)
    assert len(sentences) == len(MISLEADING)
    assert sentences[0].startswith("name www.example.com is not served: it has several labels, and is none below")
    assert "name wpad.lab.example is not served: wpad is reserved" in sentences


def test_an_operator_permits_domains() -> None:
    one = replace(announcement(), names=("web.shop.example", "shop.example", "evilshop.example", "www.example.com"))
    [zone] = networks([one], ("shop.example",))
    assert set(zone.records) == {"web.shop.example", "shop.example"}
    assert len(unserved(one, ("shop.example",))) == 2


def test_a_container_without_a_served_name_has_no_reverse_name() -> None:
    [zone] = networks([replace(announcement(), names=("localhost",))])
    assert (zone.records, zone.reverse) == ({}, {})
