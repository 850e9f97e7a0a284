"""Podman 5 of Debian 13: netavark calls weft, its driver plugin, for the networks created with ``-d weft``."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lab.podman import Podman
from lab.roots import PLACE

Create = Callable[..., None]
OUTSIDE = "192.0.2.2"
ONE = ("-d", "weft", "-o", "driver=bridge", "--subnet", "10.91.0.0/24")
TWO = ("-d", "weft", "-o", "driver=bridge", "--subnet", "10.92.0.0/24")


@pytest.fixture(scope="module")
def machine(trixie: tuple[Path, ...], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Podman]:
    made = Podman(Path(PLACE) / "bin" / "cni", layers=trixie, shared=tmp_path_factory.getbasetemp())
    yield made
    made.close()


def test_containers_reach_each_other_and_the_world(podman: Podman, create: Create, roots: list[str]) -> None:
    create("green", *ONE)
    first, second = podman.up("c1", roots[0], network="green"), podman.up("c2", roots[1], network="green")
    assert podman.ping("c1", second) and podman.ping("c2", first)
    assert podman.ping("c1", OUTSIDE)


def test_published_ports(podman: Podman, create: Create, roots: list[str]) -> None:
    """Podman itself has bound them when it has weft called; what another process serves stays its own."""
    create("green", *ONE)
    podman.serve("web", roots[0], "-p", "8080:80", "-p", "127.0.0.1:8081-8082:80-81", network="green")
    assert "weft was here" in podman.get("192.0.2.1", 8080, namespace="outside")
    assert "weft was here" in podman.get("127.0.0.1", 8080)
    assert "weft was here" in podman.get("127.0.0.1", 8081)
    assert podman.get("192.0.2.1", 8081, namespace="outside", patience=0) == ""
    podman.podman("network", "reload", "web")
    assert "weft was here" in podman.get("192.0.2.1", 8080, namespace="outside")
    # What serves has only [::1], which podman's own bind does not notice.
    podman.podman("network", "create", "-d", "weft", "-o", "driver=bridge", "--ipv6", "six")
    serving = "echo $$ >/run/service.pid; exec podman system service -t0 tcp://[::1]:9000"
    podman.start("sh", "-c", serving, log=Path("/dev/null"))
    assert podman.until("sh", "-c", "ss -Hltn sport = 9000 | grep -q .").code == 0
    refused = podman.start_one("other", roots[1], "-p", "9000:80", network="six")
    assert refused.code and "port 9000/tcp is in use: podman" in refused.stderr, refused
    podman.run("sh", "-c", "kill $(cat /run/service.pid)")
    podman.podman("network", "rm", "-f", "six")


def test_a_network_that_is_removed_and_created_again(podman: Podman, create: Create, roots: list[str]) -> None:
    """Podman calls no plugin to remove a network; its new bridge gets another name."""
    podman.podman("network", "create", *ONE, "green")
    first = podman.defined("green")["network_interface"]
    podman.serve("web", roots[0], "-p", "8080:80", network="green")
    podman.podman("rm", "-fa", "-t0")
    podman.podman("network", "rm", "green")
    assert "network green is set up but neither defined nor used" in podman.findings()
    create("green", *ONE)
    second = podman.defined("green")["network_interface"]
    assert first not in podman.links() and second != first
    podman.serve("web", roots[0], "-p", "8080:80", network="green")
    assert "weft was here" in podman.get("127.0.0.1", 8080)
    assert podman.findings() == []
    taken = podman.run("podman", "network", "create", *ONE, "blue", check=False)
    assert taken.code and "overlaps" in taken.stderr and "10.91.0.0/24" in taken.stderr
