"""Podman 5: names on networks of weft, as netavark's own networks have them with aardvark-dns."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from lab.podman import Podman

Create = Callable[..., None]
GREEN = ("-d", "weft", "-o", "driver=bridge", "--subnet", "10.91.0.0/24")
RED = ("-d", "weft", "-o", "driver=bridge", "--subnet", "10.92.0.0/24")


@pytest.fixture(scope="module")
def machine(podman5: Podman) -> Podman:
    return podman5


def addresses(podman: Podman, container: str, name: str, *, expected: bool = True) -> list[str]:
    """The addresses of a name, by the container's own resolver; its servers' lines come first."""
    argv = ("podman", "exec", container, "/bin/nslookup", name)
    said = (podman.until(*argv) if expected else podman.run(*argv, check=False)).stdout
    _, _, answer = said.partition("\n\n")
    return sorted({line.split()[-1] for line in answer.splitlines() if line.startswith("Address")})


def test_names_aliases_and_ids(podman: Podman, create: Create, roots: list[str]) -> None:
    create("green", *GREEN, "--ipv6")
    first = podman.up("c1", roots[0], "--network-alias", "web", network="green")
    podman.up("c2", roots[1], network="green")
    resolver = podman.podman("exec", "c2", "/bin/cat", "/etc/resolv.conf")
    assert "nameserver 10.91.0.1" in resolver and "search dns.podman" in resolver
    identity = podman.state("c1")["Id"][:12]
    six = podman.inspect("c1", "green")["GlobalIPv6Address"]
    for name in ("c1", "web", identity, "C1", "c1.dns.podman", "web.green"):
        assert addresses(podman, "c2", name) == sorted((first, six)), name
    podman.podman("rm", "-f", "-t0", "c1")
    assert addresses(podman, "c2", "c1", expected=False) == []
    assert podman.findings() == []


def test_two_networks_see_their_own_names(podman: Podman, create: Create, roots: list[str]) -> None:
    """And netavark's own network next to them, where aardvark-dns answers."""
    create("green", *GREEN)
    create("red", *RED, "--internal")
    create("own", "--subnet", "10.93.0.0/24")
    more = ("--network", "red", "--network", "own", "--network-alias", "front")
    both = podman.up("both", roots[0], *more, network="green")
    podman.up("inner", roots[1], network="red")
    podman.up("outer", roots[2], "--network", "own", network="green")
    inside, aside = podman.inspect("both", "red")["IPAddress"], podman.inspect("both", "own")["IPAddress"]
    assert addresses(podman, "inner", "both") == addresses(podman, "inner", "front") == [inside]
    assert addresses(podman, "outer", "both") in ([both], [aside], [both, aside])
    assert addresses(podman, "inner", "outer", expected=False) == []
    podman.podman("network", "disconnect", "red", "both")
    assert addresses(podman, "inner", "both", expected=False) == []
    podman.podman("network", "connect", "--alias", "back", "red", "both")
    inside = podman.inspect("both", "red")["IPAddress"]
    assert addresses(podman, "inner", "back") == addresses(podman, "inner", "both") == [inside]


def test_a_network_without_names(podman: Podman, create: Create, roots: list[str]) -> None:
    create("green", *GREEN, "--disable-dns")
    create("wire", "-d", "weft", "-o", "driver=macvlan", "-o", "parent=lan0", "--subnet", "192.0.2.0/24")
    shown = {name: podman.run("podman", "network", "inspect", name).json[0] for name in ("green", "wire")}
    assert [one["dns_enabled"] for one in shown.values()] == [False, False]
    podman.up("c1", roots[0], network="green")
    assert "10.91.0.1" not in podman.podman("exec", "c1", "/bin/cat", "/etc/resolv.conf")
    assert podman.files("/run/weft") and not [path for path in podman.files("/run/weft") if "/names/" in path]


def test_servers_of_a_network(podman: Podman, create: Create, roots: list[str]) -> None:
    """The agent forwards to them; the container keeps asking its gateway, also with a server of its own."""
    create("green", *GREEN, "--dns", "192.0.2.2")
    podman.up("c1", roots[0], network="green")
    podman.up("c2", roots[1], "--dns", "192.0.2.3", network="green")
    for container in ("c1", "c2"):
        text = podman.podman("exec", container, "/bin/cat", "/etc/resolv.conf")
        assert text.split("nameserver ")[1].split() == ["10.91.0.1"], text
    announced = [path for path in podman.files("/run/weft") if "/names/" in path]
    assert all('"nameservers": ["192.0.2.2"]' in podman.run("cat", path).stdout for path in announced)
    assert len(announced) == 2


def test_an_alias_that_is_the_name_and_a_resolver_with_a_zone(podman: Podman, create: Create, roots: list[str]) -> None:
    """One record, and an answer on the host too. containers/aardvark-dns#120, #508; podman#24456."""
    podman.write("/etc/resolv.conf", "nameserver fe80::1%lan0\n")
    create("green", *GREEN)
    podman.up("c1", roots[0], "--network-alias", "c1", network="green")
    podman.up("c2", roots[1], network="green")
    addresses(podman, "c2", "c1")
    said = podman.podman("exec", "c2", "/bin/nslookup", "-type=a", "c1.dns.podman")
    assert said.count("10.91.0.2") == 1, said
    assert "10.91.0.2" in podman.run("busybox", "nslookup", "-type=a", "c1", "10.91.0.1").stdout
