"""Podman's CNI backend: connectivity, ports, fixed addresses, restarts, and complete cleanup."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lab import seen
from lab.podman import Podman


@pytest.fixture(scope="module")
def machine(network: dict[str, Any], plugin_folder: Path) -> Iterator[Podman]:
    made = Podman(plugin_folder, network)
    yield made
    made.close()


def test_containers_reach_each_other_and_the_world(podman: Podman, roots: list[str]) -> None:
    first, second = podman.up("c1", roots[0]), podman.up("c2", roots[1])
    assert first != second
    assert podman.ping("c1", second)
    assert podman.ping("c2", first)
    # The outside host has no route to the containers, so its reply must go to the host's address.
    assert podman.ping("c1", "192.0.2.2")


def test_a_published_port(podman: Podman, roots: list[str]) -> None:
    address = podman.serve("web", roots[0], "-p", "8080:80")
    podman.up("c2", roots[1])
    assert "weft was here" in podman.get(address, 80)
    assert "weft was here" in podman.get("192.0.2.1", 8080, namespace="outside")
    assert "weft was here" in podman.get("192.0.2.1", 8080)
    assert "weft was here" in podman.get("127.0.0.1", 8080)
    # wget in Debian's static busybox crashes in the resolver library; nc does not use it.
    asked = "printf 'GET / HTTP/1.0\\r\\n\\r\\n' | nc -w 3 192.0.2.1 8080"
    assert "weft was here" in podman.until("podman", "exec", "c2", "/bin/sh", "-c", asked).stdout
    podman.podman("rm", "-f", "-t0", "web")
    assert podman.get("192.0.2.1", 8080, namespace="outside", patience=0) == ""


def test_a_fixed_address_and_mac(podman: Podman, roots: list[str]) -> None:
    podman.up("c1", roots[0], "--ip", "10.66.0.77", "--mac-address", "02:11:22:33:44:55")
    found = podman.inspect("c1")
    assert (found["IPAddress"], found["MacAddress"]) == ("10.66.0.77", "02:11:22:33:44:55")
    shown = podman.podman("exec", "c1", "/bin/ip", "address", "show", "eth0")
    assert "10.66.0.77/24" in shown
    assert "02:11:22:33:44:55" in shown
    taken = podman.start_one("c2", roots[1], "--ip", "10.66.0.77")
    assert taken.code != 0
    assert "10.66.0.77" in taken.stderr
    assert podman.leases() == ["10.66.0.77"]


def test_nothing_is_left_when_containers_are_removed(podman: Podman, roots: list[str]) -> None:
    addresses = [podman.up(f"c{number}", root, "-p", f"809{number}:80") for number, root in enumerate(roots)]
    assert sorted(podman.leases()) == sorted(addresses)
    podman.podman("rm", "-fa", "-t0")
    assert podman.leases() == []
    assert not [link for link in podman.links() if link.startswith("veth")]
    assert podman.files("/var/lib/cni/results") == []
    rules = podman.run("nft", "list", "ruleset").stdout
    assert not [address for address in addresses if f"{address} " in rules.replace("/32", " ").replace(",", " ")]
    assert not seen.named("809[0-9]", rules)


def test_podman_lists_and_shows_the_network(podman: Podman) -> None:
    outcome = podman.run("podman", "network", "ls", "--format", "{{.Name}}")
    assert podman.network in outcome.stdout.split()
    assert outcome.stderr == ""
    [shown] = json.loads(podman.podman("network", "inspect", podman.network))
    assert shown["name"] == podman.network
