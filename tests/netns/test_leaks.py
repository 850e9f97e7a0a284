"""The leak probe: no packet crosses a closed boundary while rules are flushed, engines and agents are
killed and stopped, networks and containers come and go, and an earlier release is replaced.

``WEFT_LEAK_SECONDS`` is how long (25; by ``bin/test long`` 900), ``WEFT_LEAK_SEED`` repeats a run.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from netns import test_follow as follow
from netns.test_follow import Ground, folder, has_owned_tables, network
from netns.test_upgrade import previous

from lab.host import Host
from lab.leaks import Boundary, Probe
from lab.plugins import ROOT, Cni
from lab.waiting import until

__all__ = ["previous"]  # a fixture

SECONDS = float(os.environ.get("WEFT_LEAK_SECONDS", "25"))
LONG_SECONDS = float(os.environ.get("WEFT_LEAK_SECONDS", "900"))
BACK = 30.0
"""Seconds for everything to be restored on a loaded machine, until the next event."""
FREE = network("free", 94, isolation="open")
CELL = network("cell", 95, hostAccess="dns")
LOOPBACK = 18081  # published at 127.0.0.1 only
HOP = 18082  # where the container has it
WEB, API = 18101, 18102
VIPS = {WEB: "10.79.77.1", API: "10.79.77.2"}
SERVING = network(
    "web",
    96,
    names={},
    services=[{"name": f"s{port}", "port": port, "virtual": address} for port, address in VIPS.items()],
)
METADATA = "169.254.169.254"


def boundaries(host: Host, ground: Ground) -> list[Boundary]:
    """Every boundary in both families and by every protocol."""
    address: dict[tuple[str, int], str] = {}
    for name, (_, _, answer) in ground.results.items():
        for one in answer["ips"]:
            plain = one["address"].split("/")[0]
            address[name, 6 if ":" in plain else 4] = plain
    lan = ground.lan
    near = {4: lan.host, 6: lan.host6}
    far = {4: lan.outside, 6: lan.outside6}
    gateway = {4: "10.92.0.1", 6: "fd00:92::1"}
    found: list[Boundary] = []

    def path(name: str, source: str, target: str, where: dict[int, str], **rest: Any) -> None:
        for version, protocol in product((4, 6), ("tcp", "udp", "icmp")):
            if version in where:
                found.append(
                    Boundary(f"{name} v{version}", f"/run/netns/{source}", where[version], target, protocol, **rest)
                )

    def of(name: str) -> dict[int, str]:
        return {version: address[name, version] for version in (4, 6)}

    for source, target in (("shop", "den"), ("den", "shop"), ("shop", "pair"), ("pair", "cell"), ("free", "shop")):
        path(f"{source} to {target}", source, f"/run/netns/{target}", of(target))
    for target in ("shop", "den", "pair"):
        path(f"LAN to {target}", lan.name, f"/run/netns/{target}", of(target))
    path("den to outside", "den", f"/run/netns/{lan.name}", far)
    path("shop to metadata", "shop", f"/run/netns/{lan.name}", {4: METADATA})
    for source, number, allowed in ((lan.name, WEB, False), ("free", API, True)):
        place = f"/run/netns/{source}", VIPS[number], "/run/netns/web", "tcp"
        found.append(Boundary(f"{source} to virtual address", *place, port=number, open=allowed))
    for name, where in (("gateway", gateway), ("host", near)):
        for version, protocol in product((4, 6), ("tcp", "udp")):
            found.append(
                Boundary(f"den to {name} v{version}", "/run/netns/den", where[version], host.path, protocol, link="")
            )
    macs = [host.inside(lan.name, "cat", "/sys/class/net/eth0/address").stdout.strip(), ""]
    macs[1] = host.run("ip", "-br", "link", "show", lan.link).stdout.split()[2]
    for to in ("127.0.0.1", lan.host):
        rest = {"port": LOOPBACK, "heard": HOP, "hop": " ".join(macs)}
        found.append(
            Boundary(
                f"LAN to published at 127.0.0.1 by {to}", f"/run/netns/{lan.name}", to, "/run/netns/shop", "udp", **rest
            )
        )
    path("LAN to free", lan.name, "/run/netns/free", of("free"), open=True)
    path("shop to outside", "shop", f"/run/netns/{lan.name}", far, open=True)
    return found


class Daemons:
    """Engine and agent, which are started again after they are killed."""

    def __init__(self) -> None:
        self.running: dict[str, subprocess.Popen[bytes]] = {}

    def start(self) -> None:
        for name, argv in (
            ("engine", [ROOT / ".venv" / "bin" / "weft-engine"]), ("agent", [ROOT / "bin" / "weft", "agent"])
        ):  # fmt: skip
            if name not in self.running or self.running[name].poll() is not None:
                self.running[name] = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        for name in self.running:
            until(lambda name=name: (folder() / f"{name}.sock").exists(), 60, name)  # type: ignore[misc]

    def kill(self, name: str) -> None:
        self.running[name].kill()
        self.running[name].wait(60)

    @contextlib.contextmanager
    def stopped(self, name: str, seconds: float) -> Iterator[None]:
        """Stop a daemon by SIGSTOP, until some time after the block."""
        self.running[name].send_signal(signal.SIGSTOP)
        try:
            yield
            time.sleep(seconds)
        finally:
            self.running[name].send_signal(signal.SIGCONT)

    def stop(self) -> None:
        for process in self.running.values():
            process.send_signal(signal.SIGTERM)
        for process in self.running.values():
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def prepare(host: Host, previous: Path | None = None) -> Ground:
    """Closed, internal, ptp and open networks, each with a container, beside a LAN with routes to all.

    With ``previous``, an earlier release attaches them, and this one takes over.
    """
    lan = host.lan(default_route=True)
    old = None if previous is None else Cni(previous)

    def attach(conf: dict[str, Any], path: str, container: str) -> Any:
        assert old is not None
        return old.add(conf, path, container=container, extra={"WEFT_ENGINE": "auto", "WEFT_ENGINE_IDLE": "120"})

    ground = Ground(host, None if old is None else attach)
    ground.lan = lan
    ground.add("free", FREE)
    ground.add("cell", CELL)
    ground.attach = ground.weft.add
    host.inside(lan.name, "ip", "address", "add", f"{METADATA}/32", "dev", "eth0")
    host.run("ip", "route", "add", f"{METADATA}/32", "dev", lan.link)
    return ground


FLUSHES = (
    ("nft", "flush", "ruleset"),
    ("nft", "delete", "table", "inet", "weft"),
    ("nft", "delete", "table", "bridge", "weft"),
    ("nft", "flush", "chain", "inet", "weft", "filter_forward"),
    ("nft", "flush", "set", "inet", "weft", "closed_links"),
)


def grouped(host: Host, ground: Ground) -> bool:
    """Whether the links of the earlier release have their groups: CHECK does not ask for these."""
    found = {one["ifname"]: one["group"] for one in json.loads(host.run("ip", "-j", "link").stdout)}
    return "default" not in {found[link] for link in ("b-shop", "b-den", "b-cell", ground.pair)}


def run_events(
    host: Host, ground: Ground, daemons: Daemons, probe: Probe, seconds: float, chance: random.Random, *, owned: bool
) -> dict[str, int]:
    """Events until the time is over; the packets that crossed in the time until a flush was restored.

    ``owned``: whether the kernel has owned tables. A daemon is killed while the other one owns its
    table of constant drops: without both daemons the next flush opens networks.
    """
    told, number = dict[str, int](), 0
    until(lambda: not owned or follow.is_owned(host, "engine", "agent"), BACK, "two owners")
    until(lambda: not ground.complaints() and grouped(host, ground), BACK, "everything in place")

    def kill(name: str, other: str) -> None:
        until(lambda: not owned or follow.is_owned(host, other), BACK, f"the {other} as owner")
        daemons.kill(name)
        if chance.random() < 0.5:
            flush()

    def flush(stopped: str = "") -> None:
        """What crosses from here until the rules are back is counted and told."""
        before = probe.heard(allowed=False)
        with daemons.stopped(stopped, chance.random()) if stopped else contextlib.nullcontext():
            host.run(*chance.choice(FLUSHES), check=False)
        until(lambda: not ground.complaints(), BACK, "restoring")
        for name, heard in probe.heard(allowed=False).items():
            if heard > before[name]:
                told[name] = told.get(name, 0) + heard - before[name]

    def attach() -> None:
        nonlocal number
        number += 1
        conf = chance.choice([network(f"n{number % 7}", 100 + number % 7), follow.SHOP_ALONE, follow.PAIR, FREE])
        name = f"x{number}"
        path = host.container(name)
        ground.weft.add(conf, path, name)
        time.sleep(chance.random() / 5)
        ground.weft.delete(conf, path, name)
        host.remove_container(name)
        if conf["name"].startswith("n"):
            ground.weft.collect(conf)

    events: dict[str, Callable[[], None]] = {
        "flush": flush,
        "attach and detach": attach,
        "kill the engine": lambda: kill("engine", "agent"),
        "kill the agent": lambda: kill("agent", "engine"),
        "flush while the engine is stopped": lambda: flush("engine"),
        "flush while the agent is stopped": lambda: flush("agent"),
    }
    first, done = chance.sample(sorted(events), len(events)), list[str]()
    leaked: dict[str, int] = {}
    deadline = time.monotonic() + seconds
    try:
        while time.monotonic() < deadline:
            name = first.pop() if first else chance.choice(list(events))
            events[name]()
            done.append(name)
            daemons.start()
            assert probe.alive
            leaked = {name: count - told.get(name, 0) for name, count in probe.heard(allowed=False).items()}
            assert not any(leaked.values()), {name: count for name, count in leaked.items() if count}
    finally:
        print(f"events: {dict(Counter(done))}")
    return told


def check_leaks(host: Host, previous: Path, seconds: float) -> None:
    seed = int(os.environ.get("WEFT_LEAK_SEED", random.SystemRandom().randrange(1 << 32)))
    owned = has_owned_tables(host)
    ground, daemons = prepare(host, previous), Daemons()
    found = [one for one in boundaries(host, ground) if one.address not in VIPS.values()]
    probe = Probe(found)
    try:
        until(lambda: all(probe.heard(allowed=True).values()), BACK, "traffic where it is allowed")
        daemons.start()  # the upgrade
        for conf in (follow.SHOP_ALONE, follow.DEN, follow.PAIR, FREE, CELL):
            ground.add(f"{conf['name']}-new", conf)
        ground.add("web", SERVING)
        until(lambda: not ground.complaints(), BACK, "everything in place")
        crossed = {name: count for name, count in probe.heard(allowed=False).items() if count}
        assert not crossed, crossed
        probe.close()
        probe = Probe(boundaries(host, ground))
        until(lambda: all(probe.heard(allowed=True).values()), BACK, "traffic where it is allowed")
        told = run_events(host, ground, daemons, probe, seconds, random.Random(seed), owned=owned)
        each = [sent for one, (sent, _) in zip(probe.boundaries, probe.counts(), strict=True) if not one.open]
        print(f"{len(each)} boundaries, {min(each)} to {max(each)} packets each")
        print(f"seed {seed}: {probe.sent()} packets sent, crossed while rules were flushed: {told or 0}")
        if owned:
            assert not told, told
        assert all(probe.heard(allowed=True).values())
    finally:
        probe.close()
        daemons.stop()


def test_no_packet_crosses_a_closed_boundary(host: Host, previous: Path) -> None:
    check_leaks(host, previous, SECONDS)


@pytest.mark.long(sampled=False)
def test_no_packet_crosses_a_closed_boundary_for_long(host: Host, previous: Path) -> None:
    check_leaks(host, previous, LONG_SECONDS)


def test_the_probe_sees_each_hole(host: Host) -> None:
    """Without weft's rules every boundary leaks, but those that the kernel itself keeps closed."""
    ground = prepare(host)
    probe = Probe([one for one in boundaries(host, ground) if one.address not in VIPS.values()])
    try:
        until(lambda: all(probe.heard(allowed=True).values()), BACK, "traffic where it is allowed")
        assert not any(probe.heard(allowed=False).values())
        host.run("nft", "flush", "ruleset")
        kept = ("127.0.0.1",)  # nothing translates it then
        until(
            lambda: all(
                count for name, count in probe.heard(allowed=False).items() if not any(one in name for one in kept)
            ),
            BACK,
            "packets through every hole",
        )
    finally:
        probe.close()
