"""What the follower restores of single deletions and in other firewalls' chains, and what it leaves alone."""

from __future__ import annotations

import fcntl
import re
import threading
import time
from collections.abc import Iterator

import pytest
from netns.test_follow import EXPECTED, Ground, daemon, folder

from cni_plugin.ops.firewalls import CHAIN
from cni_plugin.service import restorations
from cni_plugin.service.follower import LONGEST, QUIET
from lab.host import Host
from lab.waiting import until

FOREIGN = """
table inet mine {
    set blocked { type ipv4_addr; elements = { 198.51.100.7 } }
    chain forwarded { type filter hook forward priority 5; ip saddr @blocked drop; }
}
"""
CHAINS = {"DOCKER-USER": "DOCKER-USER", "ufw-user-forward": "ufw6-user-forward"}
ADMINISTRATORS = "-A {chain} -i lan7 -j DROP"


def listed(host: Host, table: str) -> str:
    """A table with its handles, without elements, which have timeouts."""
    return host.run("nft", "-a", "-t", "list", "table", *table.split()).stdout


def rules(host: Host, version: int = 4, backend: str = "nft") -> tuple[list[str], list[str]]:
    """The lines of iptables' filter table: weft's, and the others."""
    program = f"iptables-{backend}-save" if version == 4 else f"ip6tables-{backend}-save"
    lines = [line for line in host.run(program, "-t", "filter").stdout.splitlines() if line.startswith(("-A", ":"))]
    lines = [re.sub(r" \[\d+:\d+\]", "", line) for line in lines]
    own = [line for line in lines if "weft:" in line or CHAIN in line]
    return own, [line for line in lines if line not in own]


def firewall(host: Host, chain: str, backend: str) -> None:
    """As Docker or ufw leave iptables: what is forwarded is dropped, but for what a chain accepts."""
    for program, name in ((f"iptables-{backend}", chain), (f"ip6tables-{backend}", CHAINS[chain])):
        if host.run(program, "-P", "FORWARD", "DROP", check=False).code:
            pytest.skip(f"{program} does not work here")
        host.run(program, "-N", name)
        host.run(program, "-A", "FORWARD", "-j", name)
        host.run(program, *ADMINISTRATORS.format(chain=name).split())


def test_single_objects_come_back_and_others_stay(host: Host) -> None:
    """One rule, one chain, one element of each table."""
    host.run("nft", "-f", "-", stdin=FOREIGN)
    ground = Ground(host)
    foreign = listed(host, "inet mine")

    def first_rule(table: str, chain: str) -> tuple[str, ...]:
        found = re.search(
            r"^\t\t.*# handle (\d+)$",
            host.run("nft", "-a", "list", "chain", *table.split(), chain).stdout.split("type filter")[-1],
            re.M,
        )
        assert found
        return ("nft", "delete", "rule", *table.split(), chain, "handle", found[1])

    with daemon("engine"):
        until(lambda: not ground.complaints(), EXPECTED, "no complaint")
        for command in (
            first_rule("inet weft", "filter_forward"),
            ("nft", "delete", "chain", "inet", "weft", "filter_input"),
            ("nft", "delete", "element", "inet", "weft", "closed_links", '{ "b-shop" }'),
            ("nft", "delete", "element", "inet", "weft", "masquerade4", "{ 10.91.0.2 }"),
            ("nft", "delete", "chain", "bridge", "weft", "filter_prerouting"),
        ):
            ground.restored(*command)
        assert listed(host, "inet mine") == foreign


@pytest.fixture(params=CHAINS)
def walled(request: pytest.FixtureRequest, host: Host) -> Iterator[Ground]:
    """Containers whose packets pass by rules of weft's in another firewall's chain."""
    chain, _, backend = request.param.partition(" ")
    backend = backend or "nft"
    firewall(host, chain, backend)
    ground = Ground(host)
    assert any(f"-A {chain} " in line for line in rules(host, backend=backend)[0])
    with daemon("engine"):
        until(lambda: not ground.complaints(), EXPECTED, "no complaint")
        ground.restored(f"iptables-{backend}", "-F", chain)  # after it no look is due
        yield ground


def test_rules_in_other_firewalls_come_back(walled: Ground, host: Host) -> None:
    own = {version: sorted(rules(host, version)[0]) for version in (4, 6)}
    [chain] = [name for name in CHAINS if f":{name} -" in rules(host)[1]]
    mine = next(line for line in rules(host)[0] if line.startswith(f"-A {chain} "))
    tables = listed(host, "inet weft")
    for command, other in (
        (f"-D {mine.removeprefix('-A ')}".replace('"', ""), f"-F {CHAINS[chain]}"),
        (f"-F {chain}", "-F FORWARD"),
        ("-F", "-F"),
    ):
        host.run("iptables-nft", *command.split())
        host.run("ip6tables-nft", *other.split())
        others = [rules(host, version)[1] for version in (4, 6)]
        until(lambda: {version: sorted(rules(host, version)[0]) for version in (4, 6)} == own, EXPECTED, command)
        assert [rules(host, version)[1] for version in (4, 6)] == others
    assert listed(host, "inet weft") == tables


PARTS = {
    "own chain flushed": "-F {own}",
    "own rule deleted": "-D {own} 1",
    "rule before weft's": "-I {own} -i lan7 -j DROP",
    "own rule replaced": "-R {own} 1 -j DROP",
    "own chain renamed": "-E {own} THEIRS",
    "end before weft's jumps": "-I {chain} -j RETURN",
    "jump moved behind the end": "-A {chain} -j RETURN; -D {jump}; -A {jump}",
    "policy": "-P FORWARD ACCEPT; -D {jump}; -P FORWARD DROP",
}


@pytest.mark.parametrize("walled", [*CHAINS, "DOCKER-USER legacy"], indirect=True)
def test_each_part_of_the_rules_comes_back(walled: Ground, host: Host, request: pytest.FixtureRequest) -> None:
    """Whatever part of them another program changes, packets pass again and ``check`` finds nothing; what
    it has added elsewhere stays. Changes of weft's own chain alone are restored at once.
    """
    backend = "legacy" if "legacy" in request.node.callspec.params["walled"] else "nft"
    program = f"iptables-{backend}"
    own, theirs = rules(host, backend=backend)
    [chain] = [name for name in CHAINS if f":{name} -" in theirs]
    jump = next(line for line in own if line.startswith(f"-A {chain} ")).removeprefix("-A ").replace('"', "")
    others = set(theirs)
    for part, commands in PARTS.items():
        before = restorations.read(str(folder())).count
        for command in commands.split("; "):
            host.run(program, *command.format(own=CHAIN, chain=chain, jump=jump).split())
        began = time.monotonic()
        until(lambda: restorations.read(str(folder())).count > before, EXPECTED, part)  # noqa: B023
        print(f"{part}: {time.monotonic() - began:.2f} s")
        until(lambda: not walled.complaints(), EXPECTED, part)
        ours, now = rules(host, backend=backend)
        assert sorted(ours) == sorted(own), part
        assert {line for line in now if "WEFT" in line or "THEIRS" in line} == set(), part
        assert others - {*now} == set(), part
        order = [line for line in host.run(program, "-S", chain).stdout.splitlines() if line.startswith("-A")]
        end = f"-A {chain} -j RETURN"
        assert all(order.index(line) < order.index(end) for line in order if CHAIN in line and end in order), part
        host.run(program, "-D", chain, "-j", "RETURN", check=False)


@pytest.mark.parametrize("walled", ["ufw-user-forward"], indirect=True)
def test_rules_of_weft_wait_for_the_lock_of_ufw(walled: Ground, host: Host) -> None:
    del walled
    with open("/run/ufw.lock", "w") as lock:
        fcntl.lockf(lock, fcntl.LOCK_EX)
        host.run("iptables-nft", "-F")
        deadline = time.monotonic() + min(LONGEST / 2, 4 * QUIET)
        while time.monotonic() < deadline:
            assert not any("weft:" in line for line in rules(host)[0])
    until(lambda: any("weft:" in line for line in rules(host)[0]), EXPECTED, "rules")


@pytest.mark.parametrize("walled", ["DOCKER-USER"], indirect=True)
def test_rules_of_weft_wait_until_a_reload_is_over(walled: Ground, host: Host) -> None:
    """Its own tables do not: a flush of both at once, and a firewall that keeps writing for long."""
    del walled
    changes: list[float] = []
    seen: dict[str, float] = {}
    started = time.monotonic()
    host.run("nft", "delete", "table", "inet", "weft")
    host.run("iptables-nft", "-F")

    def change() -> None:
        while "rules" not in seen and time.monotonic() - started < EXPECTED:
            for way in ("-A", "-D"):
                host.run("iptables-nft", way, "INPUT", "-i", "lan7", "-j", "ACCEPT")
                changes.append(time.monotonic())

    writer = threading.Thread(target=change)
    writer.start()
    try:
        until(
            lambda: "weft" in host.run("nft", "list", "table", "inet", "weft", check=False).stdout, EXPECTED, "tables"
        )
        seen["tables"] = time.monotonic()
        until(lambda: any("weft:" in line for line in rules(host)[0]), EXPECTED, "rules")
    finally:
        seen["rules"] = time.monotonic()
        writer.join()
    waited = [later - earlier for earlier, later in zip([started, *changes], changes, strict=False)]
    assert seen["tables"] < seen["rules"]
    assert seen["rules"] - started >= LONGEST or max(waited) >= QUIET
