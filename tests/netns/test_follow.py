"""The engine and the agent restore within a second what other programs change."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from cni_plugin.dataplane import guard
from cni_plugin.service import restorations
from lab.calls import Weft
from lab.confs import DEFAULT4, DEFAULT6, pool, port
from lab.host import Host
from lab.plugins import ROOT
from lab.waiting import until
from weft.kernel.nft.owned import OwnedTable
from weft.releases import supersede

FOLDER = ROOT / ".venv" / "bin"
EXPECTED = 30.0
"""Seconds on a loaded machine; the figure of the promise is measured by ``test_leaks.py``."""


def network(name: str, number: int, **keys: Any) -> dict[str, Any]:
    return {
        "cniVersion": "1.1.0", "name": name, "type": "weft", "driver": "bridge", "bridge": f"b-{name}",
        "isDefaultGateway": True, "ipMasq": True, "portmap": {},
        "ipam": pool(f"10.{number}.0.0/24", f"fd00:{number}::/64", routes=[DEFAULT4, DEFAULT6]), **keys,
    }  # fmt: skip


SHOP = network("shop", 91, hairpinMode=True, runtimeConfig={"portMappings": [port(8080, 80)]})
SHOP_ALONE = {key: value for key, value in SHOP.items() if key != "runtimeConfig"}
DEN = network("den", 92, internal=True, ipMasq=False)
PAIR = {
    "cniVersion": "1.1.0", "name": "pair", "type": "weft", "driver": "ptp", "ipMasq": True,
    "ipam": pool("10.93.0.0/24", "fd00:93::/64", routes=[DEFAULT4, DEFAULT6]),
}  # fmt: skip


def folder() -> Path:
    return Path(f"/run/weft/{os.stat('/proc/thread-self/ns/net').st_ino}")


@contextlib.contextmanager
def daemon(program: str) -> Iterator[subprocess.Popen[bytes]]:
    """A running ``engine`` or ``agent`` of the test's host."""
    argv = [FOLDER / "weft-engine", "--log"] if program == "engine" else [ROOT / "bin" / "weft", "agent"]
    process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE)
    try:
        until(lambda: (folder() / f"{program}.sock").exists() or process.poll() is not None, 60, program)
        assert process.poll() is None, process.communicate()
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)


class Ground:
    """Three networks with a container each, and CHECK of all."""

    def __init__(self, host: Host, attach: Callable[[dict[str, Any], str, str], Any] | None = None) -> None:
        """``attach`` is how containers are attached, by default by this release in this process."""
        self.host, self.weft = host, Weft()
        self.attach = attach or self.weft.add
        self.results: dict[str, tuple[dict[str, Any], str, Any]] = {}
        self.lan: Any = None
        if attach is None:
            folder().mkdir(parents=True, exist_ok=True)
            supersede(str(folder()))
        for conf in (SHOP, DEN, PAIR):
            self.add(conf["name"], conf)
        self.port = self.results["shop"][2]["interfaces"][1]["name"]
        self.pair = self.results["pair"][2]["interfaces"][0]["name"]

    def add(self, container: str, conf: dict[str, Any]) -> None:
        path = self.host.container(container)
        self.results[container] = conf, path, self.attach(conf, path, container)

    def complaints(self) -> list[str]:
        checks = (self.weft.check(conf, answer, path, name) for name, (conf, path, answer) in self.results.items())
        return [one for one in checks if one]

    def restored(self, *command: str) -> None:
        """Run a command that breaks something; CHECK sees it, and it is restored."""
        before = restorations.read(str(folder())).count
        self.host.run(*command)
        until(lambda: restorations.read(str(folder())).count > before, EXPECTED, f"counting {command}")
        until(lambda: not self.complaints(), EXPECTED, f"restoring after {command}")


RULES = (
    ("nft", "flush", "ruleset"),
    ("nft", "delete", "table", "inet", "weft"),
    ("nft", "delete", "table", "bridge", "weft"),
    ("nft", "flush", "chain", "inet", "weft", "filter_forward"),
    ("nft", "flush", "set", "inet", "weft", "closed_links"),
    ("nft", "flush", "set", "inet", "weft", "masquerade4"),
    ("nft", "flush", "map", "inet", "weft", "ports4"),
)


@pytest.mark.parametrize("program", ["engine", "agent"])
def test_rules_that_another_program_deletes_come_back(host: Host, program: str) -> None:
    ground = Ground(host)
    with daemon(program):
        until(lambda: not ground.complaints(), EXPECTED, "no complaint")
        for command in RULES:
            ground.restored(*command)
        assert host.ping("shop", "10.91.0.1")


def test_links_that_another_program_changes_come_back(host: Host) -> None:
    ground = Ground(host)
    with daemon("engine"):
        for command in (
            ("ip", "link", "delete", "b-shop"),
            ("ip", "link", "set", "b-den", "down"),
            ("ip", "link", "set", ground.port, "nomaster"),
            ("ip", "link", "set", ground.port, "down"),
            ("ip", "link", "set", ground.pair, "down"),
            ("ip", "address", "flush", "dev", "b-shop"),
        ):
            ground.restored(*command)
            assert host.ping("shop", "10.91.0.1") and host.ping("den", "10.92.0.1") and host.ping("pair", "10.93.0.1")


def test_flushing_in_a_loop_does_not_occupy_the_processor(host: Host) -> None:
    ground = Ground(host)
    with daemon("engine") as engine:
        until(lambda: not ground.complaints(), EXPECTED, "no complaint")
        stat = Path(f"/proc/{engine.pid}/stat")

        def used() -> float:
            fields = stat.read_text().rpartition(")")[2].split()
            return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

        before, started = used(), time.monotonic()
        while time.monotonic() - started < 4:
            host.run("nft", "flush", "ruleset")
        share = (used() - before) / (time.monotonic() - started)
        assert share < 0.5, share
        until(lambda: not ground.complaints(), EXPECTED, "restoring")
    log = engine.stderr
    assert log is not None


OPEN = network("free", 94, isolation="open", metadata=False)


def is_owned(host: Host, *programs: str) -> bool:
    """Whether each of these daemons owns its table of constant drops."""
    tables = (host.run("nft", "list", "table", "inet", f"weft-guard-{one}", check=False).stdout for one in programs)
    return all("flags owner" in text and "filter_forward" in text for text in tables)


def has_owned_tables(host: Host) -> bool:
    """Whether this kernel has NFT_TABLE_F_PERSIST (Linux 6.9)."""
    table = OwnedTable(guard.TABLES[guard.Owner.ENGINE])
    try:
        return table.claim()
    finally:
        table.remove()


def test_constant_drops_survive_a_flush(host: Host) -> None:
    """With the engine stopped, so that nothing restores; and, whichever daemon is killed, in the other's
    table.
    """
    if not has_owned_tables(host):
        pytest.skip("the kernel has no owned tables that persist")
    lan = host.lan(default_route=True)
    ground = Ground(host)
    ground.add("free", OPEN)
    ground.add("shop2", SHOP_ALONE)
    for name in ("shop", "shop2", "den", "pair", "free", None, lan.name):
        host.serve_tcp(name, 80)
    host.run("ip", "address", "add", "169.254.169.254/32", "dev", lan.link, "scope", "global")
    addresses = {name: answer["ips"][0]["address"].split("/")[0] for name, (_, _, answer) in ground.results.items()}

    def opened() -> list[str]:
        """The boundaries that are open and must not be, after those that must be open were."""
        assert host.reaches("shop2", addresses["shop"], 80)
        assert host.reaches(lan.name, addresses["free"], 80)
        assert host.reaches("shop", addresses["free"], 80)
        assert host.reaches("shop", "10.91.0.1", 80)
        closed = [
            (lan.name, addresses["shop"]), (lan.name, addresses["den"]), (lan.name, addresses["pair"]),
            ("shop", addresses["den"]), ("den", addresses["shop"]), ("shop", addresses["pair"]),
            ("pair", addresses["shop"]), ("free", addresses["shop"]), ("den", lan.outside), ("den", lan.host),
            ("shop", "169.254.169.254"),
        ]  # fmt: skip
        with ThreadPoolExecutor(len(closed)) as threads:
            found = threads.map(lambda one: host.reaches(*one, 80, expected=False), closed)
            return [f"{where} {to}" for (where, to), reached in zip(closed, found, strict=True) if reached]

    with daemon("agent"), daemon("engine"):
        until(lambda: is_owned(host, "engine", "agent") and not ground.complaints(), EXPECTED, "two guards")
        assert host.reaches(lan.name, lan.host, 8080)
        assert opened() == []
    with daemon("engine") as engine:
        until(lambda: is_owned(host, "engine"), EXPECTED, "an owner")
        engine.send_signal(signal.SIGSTOP)
        host.run("nft", "flush", "ruleset")
        assert host.run("nft", "list", "tables").stdout.strip() == "table inet weft-guard-engine"
        assert opened() == []
        engine.send_signal(signal.SIGCONT)
        until(lambda: not ground.complaints(), EXPECTED, "restoring")
        with daemon("agent") as agent:
            until(lambda: is_owned(host, "engine", "agent"), EXPECTED, "two owners")
            agent.send_signal(signal.SIGSTOP)
            engine.kill()
            engine.wait()
            host.run("nft", "flush", "ruleset")
            assert host.run("nft", "list", "tables").stdout.strip() == "table inet weft-guard-agent"
            agent.send_signal(signal.SIGCONT)
            until(lambda: not ground.complaints(), EXPECTED, "restoring")
            for name, (conf, path, _) in ground.results.items():
                ground.weft.delete(conf, path, name)
                ground.weft.collect(conf)
            until(lambda: not host.run("nft", "list", "ruleset").stdout, EXPECTED, "no rule")


def test_guard_is_closed_by_the_groups_of_links(host: Host) -> None:
    """Proves that the test above can fail: without its groups the table drops nothing."""
    if not has_owned_tables(host):
        pytest.skip("the kernel has no owned tables that persist")
    lan = host.lan(default_route=True)
    ground = Ground(host)
    host.serve_tcp("shop", 80)
    address = ground.results["shop"][2]["ips"][0]["address"].split("/")[0]
    table = OwnedTable(guard.TABLES[guard.Owner.ENGINE])
    assert table.claim()
    try:
        host.run("nft", "flush", "ruleset")
        assert not host.reaches(lan.name, address, 80, expected=False)
        host.run("ip", "link", "set", "b-shop", "group", "default")
        assert host.reaches(lan.name, address, 80)
        assert "group" in ground.complaints()[0]
    finally:
        table.remove()
