"""Hosts that claim, lease and give back under faults: no address twice, no block with two owners or none."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import random
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from ipaddress import ip_address, ip_network
from itertools import count

import pytest

from lab.cluster_faults import Faults
from lab.commands import run
from lab.etcd import Cluster
from lab.hosts import Machine, Machines
from lab.plugins import ROOT
from lab.sample import seed
from lab.waiting import until

SECONDS = float(os.environ.get("WEFT_TEST_HISTORY", "30"))
"""How long faults are made: at least once every kind."""
_LONGEST = min(60.0, SECONDS / 6)
"""Seconds that a host or a member is away: with 360 s of faults longer than a host's lease."""
_SOON = 120.0
_PAUSE = 0.2
"""Seconds between two containers of a host at most."""


@dataclass
class History:
    """What was leased where; a second holder of an address is an error at once."""

    held: dict[str, tuple[str, str]] = field(default_factory=dict)
    errors: list[str] = field(default_factory=list)
    leases: int = 0
    refusals: int = 0
    refused: str = ""
    """What the last call said that was refused."""
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def leased(self, address: str, host: str, container: str) -> None:
        with self._lock:
            self.leases += 1
            if address in self.held:
                self.errors.append(f"{address} leased to {host}/{container} and {self.held[address]}")
            self.held[address] = host, container

    def freeing(self, address: str) -> None:
        with self._lock:
            self.held.pop(address, None)


def ipam(host: Machine, history: History, command: str, container: str) -> str | None:
    """A lease from the network's pool, as an ADD makes one, or its release, ""; None where it is refused."""
    listed = host.read("/etc/cni/net.d/zz-small.conflist")
    config = {"cniVersion": "1.0.0", "name": "small", "type": "weft", **listed["plugins"][0]}
    call = {"CNI_COMMAND": command, "CNI_CONTAINERID": container, "CNI_NETNS": f"/run/netns/{container}",
            "CNI_IFNAME": "eth0", "CNI_PATH": str(ROOT / "bin/cni")}  # fmt: skip
    argv = host.argv("env", *(f"{key}={value}" for key, value in call.items()), str(ROOT / "bin/cni/weft"))
    found = run(*argv, stdin=json.dumps(config), environment=host.environment, check=False, timeout=120)
    if found.code:
        history.refused = found.stdout + found.stderr
        return None
    return "" if command == "DEL" else str(found.json["ips"][0]["address"]).partition("/")[0]


def work(host: Machine, history: History, ended: threading.Event) -> None:
    """Lease and free at random until told to end, now more of this and now more of that, so that parts of blocks
    are unused and lent; then free all.
    """
    dice, own = random.Random(f"{seed()} {host.name}"), dict[str, str]()
    freeing = 0.4
    for number in count():
        if ended.wait(dice.uniform(0.0, _PAUSE)):
            break
        container = f"x{number}"
        freeing = dice.choice((0.3, 0.7)) if dice.random() < 0.05 else freeing
        if own and dice.random() < freeing:
            gone = dice.choice(sorted(own))
            free(host, history, gone, own.pop(gone))
            continue
        host.run("ip", "netns", "add", container)
        if address := ipam(host, history, "ADD", container):
            own[container] = address
            history.leased(address, host.name, container)
        else:
            history.refusals += 1
            host.run("ip", "netns", "delete", container)
    for container, address in own.items():
        free(host, history, container, address)


def free(host: Machine, history: History, container: str, address: str) -> None:
    """As a runtime does, which repeats a DEL that fails."""
    history.freeing(address)
    until(lambda: ipam(host, history, "DEL", container) is not None, _SOON, f"the DEL of {container} on {host.name}")
    host.run("ip", "netns", "delete", container)


def blocks(etcd: Cluster) -> dict[str, dict[str, object]]:
    """What the store has, {} while it does not answer."""
    got = etcd.ctl("get", "--prefix", "/weft/v2/overlay/block/small/", "--write-out", "json", check=False)
    found = got.json if got.code == 0 else {}
    return {
        base64.b64decode(one["key"]).decode().rpartition("/")[2].replace("-", "/"): json.loads(
            base64.b64decode(one["value"])
        )
        for one in found.get("kvs", [])
    }


@pytest.mark.long
def test_no_address_is_leased_twice_under_faults(hosts: Machines, etcd: Cluster) -> None:
    """Faults of etcd and of hosts (``lab.cluster_faults``) for WEFT_TEST_HISTORY seconds, by the run's seed."""
    hosts.create("small", "--subnet", "10.90.0.0/26")
    history, ended = History(), threading.Event()
    with ThreadPoolExecutor(len(hosts.all)) as pool:
        working = [pool.submit(work, one, history, ended) for one in hosts.all.values()]
        try:
            with Faults(etcd, hosts, "small", seed(), _LONGEST) as faults:
                end = time.monotonic() + SECONDS
                while not faults.errors and (time.monotonic() < end or not faults.every):
                    time.sleep(0.5)
        finally:
            ended.set()
    print(f"seed {seed()}: {history.leases} leases, {history.refusals} refused, {Counter(faults.done)}")
    assert history.errors == []
    for error in (*faults.errors, *(one.exception() for one in working)):
        if error is not None:
            raise error
    etcd.wait()
    assert history.leases > 5, history.refused
    for host in hosts.all.values():
        host.up()
    check(hosts, etcd)
    # Its agent may just be starting again, after the last restoration.
    until(lambda: hosts[1].weft("network", "rm", "--force", "small", check=False).code == 0, 60, "the removal")
    until(lambda: not any(map(files, hosts.all.values())), _SOON, "no host has the network any more")


def files(host: Machine) -> set[str]:
    """What a host leases from; nothing where it has no file of the network."""
    with contextlib.suppress(FileNotFoundError):
        return set(host.read(f"/run/weft/{host.inode}/agent/overlay/small.json")["blocks"])
    return set()


def check(hosts: Machines, etcd: Cluster) -> None:
    """What the store says: parts that do not overlap, of hosts that exist, which are in those hosts' files."""

    def stored() -> dict[str, set[str]]:
        found: dict[str, set[str]] = {one.name: set() for one in hosts.all.values()}
        for text, value in blocks(etcd).items():
            rest = [ip_network(text)]
            for part, node in dict(value.get("parts", {})).items():  # type: ignore[call-overload]
                found[str(node)].add(str(part))
                lent = ip_network(str(part))
                rest = [each for one in rest for each in
                        (one.address_exclude(lent) if lent.subnet_of(one) else [one])]  # type: ignore[arg-type,type-var]  # fmt: skip
            found[str(value["node"])] |= set(map(str, rest))
        return found

    def leasing() -> dict[str, set[str]]:
        return {one.name: files(one) for one in hosts.all.values()}

    until(lambda: leasing() == stored(), _SOON, lambda: f"agreement of files {leasing()} and store {stored()}")
    every = [ip_network(one) for parts in stored().values() for one in parts]
    for place, one in enumerate(every):
        assert not any(one.overlaps(other) for other in every[place + 1 :]), every
    assert all(ip_address(one.network_address) in ip_network("10.90.0.0/26") for one in every)
    assert all(stored().values()), "each host has a block"
