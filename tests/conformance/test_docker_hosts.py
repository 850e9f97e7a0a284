"""Two hosts with a dockerd each, in a cluster with real etcd: an overlay network is in both, without Swarm."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from lab.docked_hosts import DockedHost
from lab.many_hosts import network, remove_network, token
from lab.waiting import until

# Two dockerd, two agents and an etcd have to start.
pytestmark = [pytest.mark.usefixtures("own"), pytest.mark.long]
PATIENTLY = 120.0


@pytest.fixture
def hosts(root_image: Path) -> Iterator[tuple[DockedHost, DockedHost]]:
    network()
    made: list[DockedHost] = []
    try:
        for number in (1, 2):
            made.append(DockedHost(number))
        one, two = made
        one.weft("cluster", "init")
        two.weft("cluster", "join", token(one))
        for host in made:
            host.serve_docker(str(root_image))
        yield one, two
    finally:
        for host in made:
            host.close()
        remove_network()


def test_an_overlay_network_is_in_every_docker(hosts: tuple[DockedHost, DockedHost]) -> None:
    """Containers of two hosts reach each other by address, name and service."""
    one, two = hosts
    one.weft("network", "create", "-d", "overlay", "blue", "--subnet", "10.60.0.0/16")
    for host in hosts:
        until(lambda host=host: "blue" in host.networks(), PATIENTLY, f"blue in Docker: {host.log()}")  # type: ignore[misc]
    service = ("--label", "weft.service=web:80")
    first = one.page("shop", "--net=blue", *service)
    second = two.page("store", "--net=blue", *service)
    assert first != second
    for host, name, other, address in ((one, "shop", two, second), (two, "store", one, first)):
        expected = f"page of {other.name}"
        there = "store" if other is two else "shop"
        until(lambda: host.gets(name, address) == expected, PATIENTLY, f"{address} from {host.name}")  # noqa: B023
        until(lambda: host.gets(name, f"{there}.blue") == expected, PATIENTLY, f"{there} from {host.name}")  # noqa: B023
        asked = ("docker", "exec", name, "/bin/nslookup", "web.service.consul")
        until(lambda: {first, second} <= set(host.run(*asked, check=False).stdout.split()), PATIENTLY,  # noqa: B023
              f"both instances of web from {host.name}: {host.run(*asked, check=False)}")  # fmt: skip
        assert host.gets(name, "web.service.consul").startswith("page of n")

    # Removed on the host that did not create it, once no container is on it.
    two.ask("rm", "-f", "store")
    one.ask("rm", "-f", "shop")
    # Once both hosts have reported that their containers are gone.
    until(lambda: two.weft("network", "rm", "blue", check=False).code == 0, 60, "the removal")
    for host in hosts:
        until(lambda host=host: "blue" not in host.networks(), PATIENTLY, f"blue is still in Docker: {host.log()}")  # type: ignore[misc]
