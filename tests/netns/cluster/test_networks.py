"""Overlay networks of a cluster, by real agents on three hosts and a real etcd cluster."""

from __future__ import annotations

from itertools import permutations

from lab.hosts import Machines


def test_a_network_is_on_every_host(hosts: Machines) -> None:
    hosts.create("blue", "--ipv6")
    found = {number: hosts[number].attach("blue", f"c{number}") for number in hosts.all}
    assert len(set(found.values())) == 3
    for client, server in permutations(hosts.all, 2):
        assert hosts[client].ping(f"c{client}", found[server]), (client, server)
