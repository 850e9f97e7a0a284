"""DNS names for podman's containers, on networks of weft's configuration and of podman's own."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator

import pytest

from lab.podman import Podman

pytestmark = pytest.mark.usefixtures("own")
Create = Callable[..., None]
SHOP = {
    "cniVersion": "1.0.0",
    "name": "shop",
    "plugins": [
        {
            "type": "weft",
            "driver": "bridge",
            "bridge": "shop0",
            "isDefaultGateway": True,
            "names": {"domain": "shop.example"},
            "services": [{"name": "web", "port": 80, "virtual": True}],
            "capabilities": {"ips": True, "aliases": True},
            "ipam": {"type": "host-local", "ranges": [[{"subnet": "10.71.0.0/24"}]]},
        }
    ],
}


@pytest.fixture
def shop(podman: Podman) -> Iterator[str]:
    """A network from weft's configuration; each container on it offers a service."""
    podman.write("/etc/cni/net.d/20-shop.conflist", json.dumps(SHOP))
    yield "shop"
    podman.podman("rm", "-fa", "-t0")
    podman.podman("network", "rm", "-f", "shop")


def found(podman: Podman, container: str, name: str) -> str:
    """The output of busybox's nslookup in the container, repeated until the name resolves."""
    outcome = podman.until("podman", "exec", container, "/bin/nslookup", name)
    assert outcome.code == 0, outcome
    return outcome.stdout


def test_names_aliases_and_services_of_a_network_of_weft(podman: Podman, shop: str, roots: list[str]) -> None:
    web = podman.serve("c1", roots[0], "--network-alias", "www", network=shop)
    podman.up("c2", roots[1], network=shop)
    shown = podman.podman("exec", "c2", "/bin/cat", "/etc/resolv.conf")
    assert "nameserver 10.71.0.1" in shown
    assert "shop.example" in shown
    for name in ("c1", "www", "www.shop.example", str(podman.state("c1")["Id"])[:12]):
        assert web in found(podman, "c2", name), name
    assert web in found(podman, "c2", "web.service.weft")
    page = podman.until("podman", "exec", "c2", "/bin/wget", "-q", "-O", "-", "http://web.virtual.weft/")
    assert "weft was here" in page.stdout, page
    podman.podman("rm", "-f", "-t0", "c1")
    gone = podman.run("podman", "exec", "c2", "/bin/nslookup", "www", check=False)
    assert web not in gone.stdout


def test_networks_that_podman_makes_have_names(podman: Podman, create: Create, roots: list[str]) -> None:
    """Podman writes ``dnsname`` into the list if a plugin of that name is installed."""
    create("blue", "--subnet", "10.72.0.0/24")
    create("red", "--subnet", "10.73.0.0/24")
    conflist = json.loads(podman.run("cat", "/etc/cni/net.d/blue.conflist").stdout)
    assert conflist["plugins"][-1]["type"] == "dnsname"
    web = podman.up("c1", roots[0], "--network-alias", "www", network="blue")
    podman.up("c2", roots[1], network="blue")
    podman.up("c3", roots[2], network="red")
    assert "nameserver 10.72.0.1" in podman.podman("exec", "c2", "/bin/cat", "/etc/resolv.conf")
    for name in ("c1", "www", "c1.dns.podman"):
        assert web in found(podman, "c2", name), name
    assert web not in podman.run("podman", "exec", "c3", "/bin/nslookup", "www", check=False).stdout


def test_a_network_without_names(podman: Podman, create: Create, roots: list[str]) -> None:
    create("plain", "--disable-dns", "--subnet", "10.72.0.0/24")
    assert "dnsname" not in podman.run("cat", "/etc/cni/net.d/plain.conflist").stdout
    podman.up("c1", roots[0], network="plain")
    assert "10.72.0.1" not in podman.podman("exec", "c1", "/bin/cat", "/etc/resolv.conf")
