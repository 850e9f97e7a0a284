"""Metrics of connections: how many series there can be, and how much of a CPU they may take."""

from __future__ import annotations

import time
from ipaddress import ip_address

import pytest

from cni_plugin.agent import connection_metrics
from cni_plugin.agent.connection_metrics import Connections
from discovery.balancer.desired import Backend, Frontend, PortGroup, VirtualService
from weft.types import Address

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
