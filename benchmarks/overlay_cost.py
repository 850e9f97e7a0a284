"""Cost of driver overlay: throughput and round trips against the same by hand, and programming of peers.

Run by ``benchmarks/overlay`` in private namespaces. Two hosts on an underlay bridge have at once: weft's
network a; the same links, routes and rules made by hand; the same without rules (bare); two containers on one
bridge of host 1; and the underlay: processes of both hosts, without containers. Each round measures all of
them in turn, in an order that changes from round to round, and the ratios are those within a round: their
median, with its 95 % interval (of the sign test, which an outlier does not widen). The CPU time is that of the
process, which sends and receives: with the network stack below it, and without what other processes do.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import socket
import statistics
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cni_plugin.dataplane.overlay import OVERLAY_PEERS4
from cni_plugin.dataplane.tables import TABLES
from cni_plugin.ops import overlay_rows
from cni_plugin.ops.overlay_rows import actual, changes, desired, undoing
from lab.host import Host
from lab.namespaces import inside
from lab.overlay import Cluster, address
from weft import identity, overlay
from weft.kernel.linux.kernel import LinuxKernel
from weft.kernel.values import Element

SECONDS, ROUND_TRIPS, PIECE = 1.0, 3000, 1 << 18
T95 = {2: 12.71, 3: 4.30, 4: 3.18, 5: 2.78, 6: 2.57, 8: 2.36, 10: 2.26, 15: 2.14, 20: 2.09, 30: 2.05}
Way = tuple[str, str, str]
"""The client's namespace, the server's, and the server's address."""
Sample = tuple[float, float]
"""By the clock, and by CPU time."""


def by_hand(cluster: Cluster, name: str, net: int, vni: int, *, rules: bool) -> Way:
    """What the driver makes, with ip, bridge and nft; with ``rules`` also those that its packets meet."""
    for number in (1, 2):
        other, container = 3 - number, f"{name}{number}"
        cluster.host.container(container)
        here, block, far = f"10.{net}.{number}", f"10.{net}.{number}.0/24", f"10.{net}.{other}.0/24"
        mac = f"02:78:00:00:{net}:0"
        for line in (
            f"ip link add br{name} address 02:aa:00:00:{net}:01 type bridge",
            f"ip link set br{name} up",
            f"ip address add 10.{net}.0.1/32 dev br{name} scope link",
            f"sysctl -qw net.ipv4.conf.br{name}.proxy_arp=1 net.ipv4.neigh.br{name}.proxy_delay=0",
            "sysctl -qw net.ipv4.ip_forward=1",
            (
                f"ip link add wvx{name} address {mac}{number} type vxlan id {vni} local 192.0.2.{number} dstport 4789"
                " nolearning ttl 64 df set noudpcsum"
            ),
            f"ip link set wvx{name} mtu 1450 up",
            f"ip address add {here}.1/32 dev wvx{name}",
            f"ip neigh add fe80::77:{other} lladdr {mac}{other} dev wvx{name} nud permanent",
            f"bridge fdb replace {mac}{other} dev wvx{name} dst 192.0.2.{other} self permanent",
            f"ip nexthop add id {net}{other} via fe80::77:{other} dev wvx{name}",
            f"ip route add {block} dev br{name}",
            f"ip route add {far} nhid {net}{other} src {here}.1",
            f"ip link add v{name} mtu 1450 type veth peer name eth0 mtu 1450 netns /run/netns/{container}",
            f"ip link set v{name} master br{name} up",
        ):
            cluster.run(number, *line.split())
        for line in (f"address add {here}.5/16 dev eth0", "link set eth0 up", f"route add default via 10.{net}.0.1"):
            cluster.host.inside(container, "ip", *line.split())
        if rules:
            _copy_rules(cluster, number, name, vni)
    return f"{name}1", f"{name}2", f"10.{net}.2.5"


def _copy_rules(cluster: Cluster, number: int, name: str, vni: int) -> None:
    """The elements that weft's own rules need to treat the links made by hand as a network's."""
    pairs = (("overlay_links", f"wvx{name}"), ("closed_links", f"br{name}"), ("closed_links", f"wvx{name}"),
             ("closed_or_routed_links", f"br{name}"), ("closed_or_routed_links", f"wvx{name}"),
             ("no_metadata_links", f"br{name}"), ("intra_network_links", f"wvx{name} . br{name}"),
             ("intra_network_links", f"br{name} . wvx{name}"), ("overlay_vnis", f"4789 . {vni:#x}"),
             ("overlay_peers4", f"192.0.2.{3 - number} . 4789 . {vni:#x}"))  # fmt: skip
    for collection, element in pairs:
        cluster.run(number, "nft", "add", "element", "inet", "weft", collection, f"{{ {element} }}")


def throughput(path: Way) -> Sample:
    """Bytes per second of one TCP connection; and bytes per CPU second."""
    client, server = _connected(path)
    received = 0

    def read() -> None:
        nonlocal received
        buffer = bytearray(PIECE)
        while count := server.recv_into(buffer):
            received += count

    reader = threading.Thread(target=read)
    reader.start()
    content, end = bytes(PIECE), time.monotonic() + SECONDS
    started, worked = time.monotonic(), time.process_time()
    while time.monotonic() < end:
        client.sendall(content)
    client.shutdown(socket.SHUT_WR)
    reader.join()
    took, worked = time.monotonic() - started, time.process_time() - worked
    client.close()
    server.close()
    return received / took, received / worked


def round_trip(path: Way) -> Sample:
    """Median seconds of a TCP round trip of one byte; and CPU seconds."""
    client, server = _connected(path)
    for one in (client, server):
        one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def answer() -> None:
        while piece := server.recv(1):
            server.send(piece)

    thread = threading.Thread(target=answer)
    thread.start()
    times, worked = [], time.process_time()
    for _ in range(ROUND_TRIPS):
        started = time.perf_counter()
        client.send(b"x")
        client.recv(1)
        times.append(time.perf_counter() - started)
    worked = time.process_time() - worked
    client.close()
    thread.join()
    server.close()
    return statistics.median(times), worked / ROUND_TRIPS


def _connected(path: Way) -> tuple[socket.socket, socket.socket]:
    with inside(f"/run/netns/{path[1]}"):
        listener = socket.create_server((path[2], 0))
    with inside(f"/run/netns/{path[0]}"):
        client = socket.create_connection(listener.getsockname(), 10)
    server, _ = listener.accept()
    listener.close()
    return client, server


def interval(values: list[float]) -> tuple[float, float]:
    """The mean, and half of its 95 % interval."""
    half = T95[max(one for one in T95 if one <= len(values))] * statistics.stdev(values) / len(values) ** 0.5
    return statistics.mean(values), half


def median(values: list[float]) -> tuple[float, float, float]:
    """The median, and its 95 % interval: between two of the values, by the sign test."""
    found = sorted(values)
    outer = max(0, int((len(found) - 1.96 * len(found) ** 0.5) / 2))
    return statistics.median(found), found[outer], found[-1 - outer]


PAIRS = (
    ("weft", "by hand"),
    ("weft", "bare"),
    ("weft", "one host"),
    ("by hand", "one host"),
    ("bare", "one host"),
    ("underlay", "one host"),
)


def ratios(paths: dict[str, Way], measure: Callable[[Way], Sample], rounds: int) -> dict[str, Any]:
    """The ratios of the paths within each round."""
    samples: dict[str, list[Sample]] = {name: [] for name in paths}
    order = list(paths)
    for number in range(rounds):
        random.Random(number).shuffle(order)
        for name in order:
            samples[name].append(measure(paths[name]))
    found: dict[str, Any] = {}
    for place, what in enumerate(("", ", CPU")):
        for one, other in PAIRS:
            pairs = zip(samples[one], samples[other], strict=True)
            found[f"{one}/{other}{what}"] = median([first[place] / second[place] for first, second in pairs])
        for name, each in samples.items():
            found[f"median {name}{what}"] = statistics.median(sample[place] for sample in each)
    return found


def peers(count: int, *, flannel: bool) -> dict[str, float]:
    """Seconds to program so many peers on an empty host; flannel's layout is a gateway route for each."""
    host = Host()
    try:
        host.run("ip", "link", "add", "eth0", "type", "veth", "peer", "name", "far")
        for line in ("address add 192.0.2.1/24 dev eth0", "link set eth0 up", "link set far up"):
            host.run("ip", *line.split())
        kernel = LinuxKernel(TABLES)
        try:
            return _flannel(host, count) if flannel else _weft(host, kernel, count)
        finally:
            kernel.close()
    finally:
        host.close()


def _weft(host: Host, kernel: LinuxKernel, count: int) -> dict[str, float]:
    folder = Path("/var/lib/weft/overlay")
    folder.mkdir(parents=True)
    network = {
        "format": 1, "network": "big", "vni": 9, "mac": "02:77:00:00:00:01", "underlay": "192.0.2.1", "mtu": 1450,
        "subnets": ["10.0.0.0/8"], "blocks": ["10.255.255.0/24"],
    }  # fmt: skip
    document = [
        {
            "name": f"h{n}",
            "underlay": f"198.{18 + (n >> 16)}.{n >> 8 & 255}.{n & 255}",
            "mac": f"02:77:00:{n >> 16:02x}:{n >> 8 & 255:02x}:{n & 255:02x}",
            "blocks": [f"10.{n >> 8}.{n & 255}.0/24"],
        }
        for n in range(2, count + 2)
    ]  # fmt: skip
    (folder / "big.json").write_text(json.dumps(network))
    (folder / "big.peers.json").write_text(json.dumps({"format": 1, "network": "big", "peers": document}))
    path, space = str(folder / "big.json"), kernel.host
    space.add_link("br", "bridge", up=True)
    options: dict[str, int | str] = {
        "vxlan_id": 9, "vxlan_port": 4789, "vxlan_learning": 0, "vxlan_local": "192.0.2.1"
    }  # fmt: skip
    space.add_link("vx", "vxlan", mac="02:77:00:00:00:01", mtu=1450, up=True, options=options)
    found: dict[str, float] = {}

    def pass_(key: str) -> int:
        started, worked = time.monotonic(), time.process_time()
        read = overlay.read_network(path, "big")
        listed = overlay.read_peers(read, path)
        parsed = time.process_time()
        with overlay_rows.collection_paused():
            there = space.nexthops()
            wanted = desired(read, listed, "br", "vx", there)
            pending = changes(wanted, actual(space, "br", "vx", read.subnets, there))
            pending.make(space, "vx")
        found[key], found[f"{key}, CPU"] = time.monotonic() - started, time.process_time() - worked
        found[f"{key}, CPU of reading the file"] = parsed - worked
        return len(pending.added)

    kernel.rules.install(TABLES)
    known = overlay.read_peers(overlay.read_network(path, "big"), path)
    started = time.process_time()
    mark = identity.mark("overlay", "big")
    kernel.rules.add(Element(OVERLAY_PEERS4, (one.underlay, 4789, 9), mark=mark) for one in known)
    found["known peers in nftables, CPU"] = time.process_time() - started
    assert pass_("program") > 4 * count
    assert pass_("compare again") == 0
    # The kernel would hold RTNL for minutes if it had to delete them with the namespace.
    worked = time.process_time()
    undoing(space, "br", "vx", overlay.read_network(path, "big").subnets).make(space, "vx")
    found["remove, CPU"] = time.process_time() - worked
    return found


def _flannel(host: Host, count: int) -> dict[str, float]:
    options = "id 1 local 192.0.2.1 dstport 8472 nolearning"
    host.run("ip", "link", "add", "flannel.1", "type", "vxlan", *options.split())
    host.run("ip", "address", "add", "10.255.255.0/32", "dev", "flannel.1")
    host.run("ip", "link", "set", "flannel.1", "up")
    neighbours, rows, routes = [], [], []
    for n in range(2, count + 2):
        mac, block = f"02:77:00:{n >> 16:02x}:{n >> 8 & 255:02x}:{n & 255:02x}", f"10.{n >> 8}.{n & 255}.0"
        neighbours.append(f"neigh replace {block} lladdr {mac} dev flannel.1 nud permanent")
        rows.append(f"fdb replace {mac} dev flannel.1 dst 198.18.{n >> 8 & 255}.{n & 255} self permanent")
        routes.append(f"route replace {block}/24 via {block} dev flannel.1 onlink")
    started, before = time.monotonic(), resource.getrusage(resource.RUSAGE_CHILDREN)
    host.run("ip", "-batch", "-", stdin="\n".join(neighbours), timeout=900)
    host.run("bridge", "-batch", "-", stdin="\n".join(rows), timeout=900)
    host.run("ip", "-batch", "-", stdin="\n".join(routes), timeout=900)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    worked = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"program": time.monotonic() - started, "program, CPU": worked}


def traffic(rounds: int) -> dict[str, Any]:
    """Throughput and round trips."""
    host = Host()
    try:
        cluster = Cluster(host, 2, ipv6=False)
        results = {number: cluster.add("a", number, f"a{number}", limits={}) for number in (1, 2)}
        near = cluster.add("a", 1, "near")
        paths = {
            "weft": ("a1", "a2", address(results[2])),
            "by hand": by_hand(cluster, "m", 70, 200, rules=True),
            "bare": by_hand(cluster, "n", 71, 201, rules=False),
            "one host": ("a1", "near", address(near)),
            "underlay": ("h1", "h2", "192.0.2.2"),
        }
        return {
            "throughput": ratios(paths, throughput, rounds),
            "round trip": ratios(paths, round_trip, rounds),
        }
    finally:
        host.close()


def attaching(rounds: int) -> dict[str, Any]:
    """Milliseconds of an ADD on an overlay network and on a bridge network, and the ratios of pairs.

    Both are the whole call in one process, without an engine, on networks that have a container already;
    the overlay network has 200 peers.
    """
    host = Host()
    try:
        cluster = Cluster(host, 1, ipv6=False)
        cluster.absent = 200
        cluster.write("a")
        ipam = {"type": "host-local", "subnet": "10.50.0.0/16", "dataDir": "/var/lib/cni/bridge"}
        keys = {"isGateway": True, "bridge": "br50", "ipam": ipam}
        bridge = {"cniVersion": "1.1.0", "name": "flat", "type": "weft", "driver": "bridge", **keys}

        def add(overlaid: bool, name: str) -> float:
            host.container(name)
            conf = cluster.conf("a", 1) if overlaid else bridge
            with inside(cluster.members[1].path):
                started = time.monotonic()
                cluster.weft.add(conf, f"/run/netns/{name}", name)
                return time.monotonic() - started

        found: dict[str, list[float]] = {"overlay": [], "bridge": []}
        for number in range(rounds + 1):
            for kind in random.Random(number).sample(list(found), 2):
                took = add(kind == "overlay", f"{kind}{number}")
                if number:  # the first makes the network
                    found[kind].append(took)
        pairs = [one / other for one, other in zip(found["overlay"], found["bridge"], strict=True)]
        medians = {f"median {kind}, ms": statistics.median(each) * 1000 for kind, each in found.items()}
        return {"overlay/bridge": interval(pairs), "median overlay/bridge": statistics.median(pairs), **medians}
    finally:
        host.close()


def main() -> None:
    parser = argparse.ArgumentParser(prog="benchmarks/overlay", description="driver overlay, as ratios")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--peers", default="5000,50000", help="numbers of peers, separated by commas")
    parser.add_argument("--flannel", default="5000", help="the same for flannel's layout, whose cost is quadratic")
    parser.add_argument("--json", default="")
    given = parser.parse_args()
    found: dict[str, Any] = {"load": os.getloadavg()[0], "rounds": given.rounds}
    if given.rounds:
        found |= traffic(given.rounds)
        found["ADD"] = attaching(given.rounds)
    for key, text in (("peers", given.peers), ("flannel", given.flannel)):
        for count in filter(None, text.split(",")):
            found[f"{key} {count}"] = peers(int(count), flannel=key == "flannel")
    print(json.dumps(found, indent=1))
    if given.json:
        Path(given.json).write_text(json.dumps(found))
