"""A host and a container to attach, what they were like before, and what has become different since."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from cni_plugin.dataplane.tables import TABLES
from cni_plugin.service.executor import unwatched
from lab import namespaces
from lab.abilities import require
from lab.calls import Answer, Weft, files, leases
from lab.cases import Case
from lab.host import Host
from lab.snapshot import Snapshot, difference, take
from lab.waiting import PATIENTLY
from weft.errors import Missing
from weft.kernel.linux.kernel import LinuxKernel

FORWARDING = ("net.ipv4.ip_forward", "net.ipv6.conf.all.forwarding")


class Ground:
    """One case on a host. ``conf`` is what an ADD of it is given: with the result of the plugin before, if any."""

    def __init__(self, host: Host, case: Case, weft: Weft | None = None) -> None:
        self.host, self.case, self.weft = host, case, weft or Weft()
        require(case.needs)
        if case.wired:
            host.lan()
        if case.tables:
            use_tables(host)
        self.container = host.container()
        self.bare = host.snapshot()
        self.conf = case.conf
        if case.first:
            self.conf = {**case.conf, "prevResult": self.weft.add(case.first, self.container)}
            # The chain's network outlives every attempt: so what it shares is there from the beginning.
            self.weft.add(self.conf, self.container)
            self.weft.delete(self.conf, self.container)
        self.remember()

    def remember(self) -> None:
        """From here on ``changes`` are counted."""
        self._host, self._container = self.host.snapshot(), self._inside()
        self._files = files()

    def _inside(self) -> Snapshot:
        with namespaces.inside(self.container):
            return take()

    def add(self, watch: Any = None) -> Answer:
        return self.weft("ADD", self.conf, self.container, watch=watch or unwatched)

    def delete(self, watch: Any = None, netns: str | None = None) -> Answer:
        """DEL, with the namespace unless another path is given."""
        where = self.container if netns is None else netns
        return self.weft("DEL", self.conf, where, watch=watch or unwatched)

    def collect(self, *valid: tuple[str, str]) -> None:
        """GC of every plugin of the chain, last one first."""
        for conf in filter(None, (self.case.conf, self.case.first)):
            self.weft.collect(conf, *valid)

    def no_forwarding(self) -> None:
        """Forwarding, which stays on for those who rely on it, is off again: so an ADD has to turn it on."""
        self.host.run("sysctl", "-q", "-w", *(f"{key}=0" for key in FORWARDING))

    def changes(self) -> list[str]:
        """What differs on the host, in the container and on the disk. Forwarding may have been turned on.

        Nothing is expected to, so what the kernel has yet to undo by itself is waited for.
        """

        def look() -> list[str]:
            found = steady(difference(self._host, take()))
            found += [f"container: {line}" for line in difference(self._container, self._inside())]
            return found + [f"file {path}" for path in sorted(set(files()) ^ set(self._files))]

        return at_last(look)

    def finish(self) -> list[str]:
        """The chain's first plugin is taken away and all is collected; what is left of everything then."""
        if self.case.first:
            self.weft.delete(self.case.first, self.container)
        self.collect()
        return at_last(lambda: steady(difference(self.bare, take())) + files())


def use_tables(host: Host) -> None:
    """Have iptables make its tables and chains, which it never removes."""
    for program in ("iptables", "ip6tables"):
        for table, chains in (("filter", ("FORWARD",)), ("nat", ("PREROUTING", "OUTPUT", "POSTROUTING"))):
            for chain in chains:
                for verb in ("-A", "-D"):
                    host.run(program, "-t", table, verb, chain, "-j", "ACCEPT")


def at_last(look: Callable[[], list[str]]) -> list[str]:
    """What is left to see when there is nothing, or when that has been waited for long enough."""
    deadline = time.monotonic() + PATIENTLY
    while (found := look()) and time.monotonic() < deadline:
        time.sleep(0.1)
    return found


def steady(lines: list[str]) -> list[str]:
    """A difference without the forwarding that weft leaves on."""
    return [line for line in lines if "forwarding" not in line and "ip_forward" not in line]


def rest(*containers: str) -> list[str]:
    """What of weft's is on this host, and which links are in the containers, at a glance: [] where there is nothing."""
    kernel = LinuxKernel(TABLES)
    try:
        found = [f"link {link.name} ({link.alias})" for link in kernel.host.links() if link.name not in ("lo", "lan0")]
        found += [f"set {name}" for name in kernel.rules.collections()]
        for path in containers:
            if kernel.identify(path).known:
                inside = kernel.open(path)
                found += [f"{link.name} in {path}" for link in inside.links() if link.name != "lo" or link.up]
                inside.close()
    finally:
        kernel.close()
    return found + files()


def held_twice(network: str, paths: dict[str, str]) -> list[str]:
    """Addresses of the network's containers (by id, with their paths) that two have, or that are leased to another."""
    kernel = LinuxKernel(TABLES)
    owners: dict[str, str] = {}
    found = []
    given = leases(network)
    try:
        for container, path in paths.items():
            inside = kernel.open(path)
            try:
                addresses = inside.addresses("eth0") if inside.link("eth0") else ()
            except Missing:  # an engine is taking back what was asked for by somebody who is gone
                addresses = ()
            for address in addresses:
                text = str(address.ip)
                if address.is_link_local:
                    continue
                if text in owners:
                    found.append(f"{text} is {owners[text]}'s and {container}'s")
                if not given.get(text, "").startswith(f"{container} "):
                    found.append(f"{text} is {container}'s, but leased to {given.get(text, 'nobody')}")
                owners[text] = container
            inside.close()
    finally:
        kernel.close()
    return found
