"""Metrics of connections: how many series there can be, and how much of a CPU they may take."""

from __future__ import annotations

import time
from ipaddress import ip_address, ip_interface
from pathlib import Path
from types import SimpleNamespace

import pytest

from cni_plugin.agent import connection_metrics
from cni_plugin.agent.connection_metrics import Connections
from cni_plugin.service.records import Phase, Record, Records
from discovery.balancer.desired import Backend, Frontend, PortGroup, VirtualService
from weft.types import Address, Attachment, NamespaceId, Result, ResultAddress

CONTAINERS = [ip_address(f"10.7.{number // 250}.{number % 250 + 1}") for number in range(150)]
VIRTUALS = [ip_address(f"10.79.{number // 250}.{number % 250 + 1}") for number in range(302)]


class _Conntrack:
    """Container N has opened N connections, and each virtual address has two."""

    walks = 0
    seconds = 0.0

    def count_of(self, sources: dict[Address, str], services: dict[object, object]) -> object:
        self.walks += 1
        until = time.thread_time() + self.seconds
        while time.thread_time() < until:
            pass
        return {one: number for number, one in enumerate(CONTAINERS) if number}, dict.fromkeys(services, 2)


class _Records:
    def read(self) -> list[tuple[tuple[Address, str], ...]]:
        return [((one, "blue"),) for one in CONTAINERS]


@pytest.fixture
def connections(monkeypatch: pytest.MonkeyPatch) -> Connections:
    services = tuple(
        VirtualService(f"s{number:03}", groups=(PortGroup((Frontend(one, 4, "tcp", 80),), ((Backend(one, 80), 1),)),))
        for number, one in enumerate(VIRTUALS)
    )
    monkeypatch.setattr(connection_metrics, "_bounds", lambda: dict.fromkeys(CONTAINERS, 1000))
    made = Connections("/nowhere", lambda: services)
    made._records, made._conntrack = _Records(), _Conntrack()  # type: ignore[assignment]
    return made


def test_series_are_bounded(connections: Connections) -> None:
    connections.read()
    assert connections.of_networks == {("blue",): sum(range(150))}
    assert len(connections.of_services) == 301 and connections.of_services["other", "other"] == 4
    assert connections.of_services["s000", "10.79.0.1"] == 2
    assert len(connections.of_containers) == 100 and min(connections.of_containers.values()) == 50
    assert set(connections.limits.values()) == {1000} and connections.limits.keys() == connections.of_containers.keys()


def test_the_table_is_not_walked_more_often_than_a_share_allows(connections: Connections) -> None:
    walker = connections._conntrack
    assert isinstance(walker, _Conntrack)
    walker.seconds = 0.02
    for _ in range(3):
        connections.read()
    assert walker.walks == 1
    connections._next = 0.0
    connections.read()
    assert walker.walks == 2


def test_only_addresses_of_containers_are_counted(tmp_path: Path) -> None:
    """Those of ``lo`` and of this host are the source of anybody's connections."""
    records = Records(str(tmp_path))
    records.prepare()
    for network, driver, address in (
        ("blue", "bridge", "10.7.0.2/24"),
        ("lo", "loopback", "127.0.0.1/8"),
        ("lo6", "loopback", "::1/128"),
        ("host", "host", "192.0.2.1/24"),
        ("chained", "", "10.7.0.3/24"),
    ):
        result = Result(ips=(ResultAddress(ip_interface(address)),))
        there = NamespaceId("/run/netns/c1", 1, 2)
        attachment = Attachment(network, "c1", "eth0", "weft")
        records.write(Record(attachment, there, Phase.ATTACHED, "boot", 1.0, driver=driver, result=result))
    walked: list[dict[Address, str]] = []
    made = Connections(str(tmp_path), tuple)
    made._conntrack = SimpleNamespace(count_of=lambda networks, places: walked.append(networks) or ({}, {}))  # type: ignore[assignment]
    made.read()
    assert walked == [{ip_address("10.7.0.2"): "blue"}]
