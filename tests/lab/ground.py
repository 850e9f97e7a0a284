"""A host and a container for one case, and the changes of their state since a snapshot."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cni_plugin.dataplane.tables import TABLES
from cni_plugin.service.executor import unwatched
from lab import namespaces
from lab.abilities import require
from lab.calls import Answer, Weft, files, leases
from lab.cases import Case
from lab.host import Host
from lab.plugins import ROOT
from lab.snapshot import Snapshot, difference, take
from lab.waiting import PATIENTLY
from weft import overlay
from weft.errors import Missing
from weft.kernel.linux.kernel import LinuxKernel

_HOSTS_OWN = ("lo", "lan0", "vlan7", "vlan8")
FORWARDING = ("net.ipv4.ip_forward", "net.ipv6.conf.all.forwarding")


class Ground:
    """One case on a host.

    ``conf`` is the input of an ADD, with the previous plugin's result if any.
    """

    def __init__(self, host: Host, case: Case, weft: Weft | None = None) -> None:
        self.host, self.case, self.weft = host, case, weft or Weft()
        prepare(host, case)
        self.container = host.container()
        self.bare = host.snapshot()
        self.conf = case.conf
        if case.first:
            self.conf = {**case.conf, "prevResult": self.weft.add(case.first, self.container)}
            # The network of the chain exists throughout, so that its shared state is in every
            # snapshot.
            self.weft.add(self.conf, self.container)
            self.weft.delete(self.conf, self.container)
        self.remember()

    def remember(self) -> None:
        """Take the snapshot that ``changes`` compares with."""
        self._host, self._container = self.host.snapshot(), self._inside()
        self._files = files()

    def _inside(self) -> Snapshot:
        with namespaces.inside(self.container):
            return take()

    def add(self, watch: Any = None) -> Answer:
        return self.weft("ADD", self.conf, self.container, watch=watch or unwatched)

    def delete(self, watch: Any = None, netns: str | None = None) -> Answer:
        """DEL, with the path of the namespace unless another is given."""
        where = self.container if netns is None else netns
        return self.weft("DEL", self.conf, where, watch=watch or unwatched)

    def collect(self, *valid: tuple[str, str]) -> None:
        """GC of every plugin of the chain, in reverse order."""
        for conf in filter(None, (self.case.conf, self.case.first)):
            self.weft.collect(conf, *valid)

    def no_forwarding(self) -> None:
        """Turn forwarding off, which weft leaves on, so that an ADD must turn it on."""
        self.host.run("sysctl", "-q", "-w", *(f"{key}=0" for key in FORWARDING))

    def changes(self) -> list[str]:
        """The differences on the host, in the container and on disk.

        Forwarding may have been turned on.

        None are expected, so it waits for changes that the kernel makes asynchronously.
        """

        def look() -> list[str]:
            found = steady(difference(self._host, take()))
            found += [f"container: {line}" for line in difference(self._container, self._inside())]
            return found + [f"file {path}" for path in sorted(set(files()) ^ set(self._files))]

        return at_last(look)

    def finish(self) -> list[str]:
        """DEL of the chain's first plugin, then GC; everything that is left afterwards."""
        if self.case.first:
            self.weft.delete(self.case.first, self.container)
        self.collect()
        return at_last(lambda: steady(difference(self.bare, take())) + files())


def prepare(host: Host, case: Case) -> None:
    """What the case needs of its host; skips the test where the kernel lacks something."""
    require(case.needs)
    if case.wired:
        host.lan()
    if case.settings:
        host.configure(case.settings)
    if case.tables:
        use_tables(host)
    if case.overlay:
        overlay_files()
        if case.conf["name"] == "plant":
            vlan_files(host)


def overlay_files() -> None:
    """Write the files of the network "overlay", as the cluster's side would: those of conf/overlay."""
    shutil.copytree(ROOT / "conf" / "overlay", overlay.FOLDER)


def vlan_files(host: Host) -> None:
    """Write those of the network "plant" of mode l2, of which this host is the VLAN gateway, by the link vlan7."""
    host.run("ip", "link", "add", "vlan7", "type", "veth", "peer", "name", "vlan8")
    host.run("sysctl", "-qw", "net.ipv6.conf.vlan7.disable_ipv6=1", "net.ipv6.conf.vlan8.disable_ipv6=1")
    for link in ("vlan7", "vlan8"):
        host.run("ip", "link", "set", link, "up")
    vlan_documents(Path(overlay.FOLDER))


def vlan_documents(folder: Path) -> None:
    """The documents of these files alone."""
    own = json.loads((ROOT / "conf/overlay/overlay.json").read_text())
    peers = json.loads((ROOT / "conf/overlay/overlay.peers.json").read_text())
    gateway = {"host": "host1", "parent": "vlan7", "range": "10.60.250.0/24", "local": True}
    own |= {"network": "plant", "mode": "l2", "vlanGateway": gateway}
    for name, document in (("plant.json", own), ("plant.peers.json", {**peers, "network": "plant"})):
        (folder / name).write_text(json.dumps(document))


def use_tables(host: Host) -> None:
    """Make iptables create its tables and chains, which it never removes."""
    for program in ("iptables", "ip6tables"):
        for table, chains in (("filter", ("FORWARD",)), ("nat", ("PREROUTING", "OUTPUT", "POSTROUTING"))):
            for chain in chains:
                for verb in ("-A", "-D"):
                    host.run(program, "-t", table, verb, chain, "-j", "ACCEPT")


def at_last(look: Callable[[], list[str]]) -> list[str]:
    """The last value of ``look``: an empty one as soon as there is one, else that at the timeout."""
    deadline = time.monotonic() + PATIENTLY
    while (found := look()) and time.monotonic() < deadline:
        time.sleep(0.1)
    return found


def steady(lines: list[str]) -> list[str]:
    """A difference without the forwarding sysctls, which weft leaves on."""
    return [line for line in lines if "forwarding" not in line and "ip_forward" not in line]


def rest(*containers: str) -> list[str]:
    """Summary of weft's state on this host and links in the containers: [] if there is none."""
    kernel = LinuxKernel(TABLES)
    try:
        found = [f"link {link.name} ({link.alias})" for link in kernel.host.links() if link.name not in _HOSTS_OWN]
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
    """Addresses of containers (id and path) that two have, or that are leased to another."""
    kernel = LinuxKernel(TABLES)
    owners: dict[str, str] = {}
    found = []
    given = leases(network)
    try:
        for container, path in paths.items():
            inside = kernel.open(path)
            try:
                addresses = inside.addresses("eth0") if inside.link("eth0") else ()
            except Missing:  # an engine is undoing a call whose client disconnected
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
