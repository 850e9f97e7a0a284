"""The state of a namespace according to iproute2, to verify results and CHECK independently."""

from __future__ import annotations

import re
from ipaddress import ip_network
from typing import Any

from lab import namespaces
from lab.commands import Outcome
from lab.host import Host
from lab.plugins import Cni, Config
from lab.snapshot import Snapshot, take


def _ask(host: Host, place: str | None, *argv: str, check: bool = True) -> Outcome:
    return host.run(*argv, check=check) if place is None else host.inside(place, *argv, check=check)


def named(number: int | str, rules: str) -> bool:
    """Whether a listing of rules has a port, as a number of its own and not as a part of an address."""
    return re.search(rf"(?<![0-9a-f:]){number}(?![0-9a-f:])", rules) is not None


def link(host: Host, name: str, place: str | None = None) -> dict[str, Any]:
    """A link in the format of ``ip -d -j``, {} if there is none. ``place`` None is the host."""
    outcome = _ask(host, place, "ip", "-j", "-d", "link", "show", "dev", name, check=False)
    found: dict[str, Any] = outcome.json[0] if outcome.code == 0 else {}
    return found


def links(host: Host, place: str | None = None) -> list[str]:
    return [one["ifname"] for one in _ask(host, place, "ip", "-j", "link", "show").json]


def addresses(host: Host, name: str, place: str | None = None) -> list[str]:
    """The addresses of a link with prefix lengths, without link-local addresses of the kernel."""
    found = _ask(host, place, "ip", "-j", "address", "show", "dev", name).json
    every = [(f"{one['local']}/{one['prefixlen']}", one) for entry in found for one in entry.get("addr_info", [])]
    return sorted(text for text, one in every if not one["local"].startswith("fe80:"))


def routes(host: Host, place: str | None = None, *, name: str = "", table: str = "main") -> list[dict[str, Any]]:
    """Unicast routes of both families as in ``ip -d route``, without the kernel's link-local ones."""
    found: list[dict[str, Any]] = []
    for family in ("-4", "-6"):
        argv = ("ip", family, "-j", "-d", "route", "show", "table", table, *(("dev", name) if name else ()))
        outcome = _ask(host, place, *argv, check=False)
        found += outcome.json if outcome.code == 0 and outcome.stdout.strip() else []
    for one in found:
        if one["dst"] == "default":
            one["dst"] = "::/0" if ":" in one.get("gateway", "") else "0.0.0.0/0"
        one["dst"] = str(ip_network(one["dst"]))
    return [one for one in found if not one["dst"].startswith(("fe80:", "ff00:")) and one.get("type") == "unicast"]


def route(host: Host, destination: str, place: str | None = None, *, table: str = "main") -> dict[str, Any]:
    """The route to a destination; raises AssertionError unless there is exactly one."""
    found = [one for one in routes(host, place, table=table) if one["dst"] == destination]
    assert len(found) == 1, (destination, found)
    return found[0]


def neighbour(host: Host, address: str, place: str | None = None) -> str:
    """The MAC address that a namespace has of a neighbour, "" if it has none."""
    found = _ask(host, place, "ip", "-j", "neigh", "show", address).json
    return str(found[0].get("lladdr", "")) if found else ""


def setting(host: Host, key: str, place: str | None = None) -> str:
    return _ask(host, place, "sysctl", "-n", key.replace("/", ".")).stdout.strip()


def inner(path: str) -> Snapshot:
    """Snapshot of a container's network, for ``lab.snapshot.difference``."""
    with namespaces.inside(path):
        return take()


def forward(host: Host) -> None:
    """Turn forwarding on in advance: weft turns it on and leaves it on, as others may rely on it."""
    host.run("sysctl", "-qw", "net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1")


def hurry(host: Host) -> None:
    """Turn off DAD on new links of the host: until it ends, the kernel forwards nothing to them."""
    host.run("sysctl", "-qw", "net.ipv6.conf.default.accept_dad=0")


def collect(cni: Cni, conf: Config, valid: tuple[tuple[str, str], ...] = ()) -> None:
    """GC that must succeed; ``valid``: container ids and interface names of attachments to keep."""
    listed = [{"containerID": container, "ifname": ifname} for container, ifname in valid]
    outcome = cni("GC", {**conf, "cniVersion": "1.1.0", "cni.dev/valid-attachments": listed})
    assert (outcome.code, outcome.stdout) == (0, ""), outcome


def problem(cni: Cni, command: str, conf: Config, netns: str = "", **rest: Any) -> dict[str, Any]:
    """The error of a call that must fail."""
    outcome = cni(command, conf, netns=netns, **rest)
    assert outcome.code == 1, outcome
    found: dict[str, Any] = outcome.json
    return found


def agrees(host: Host, result: dict[str, Any], netns: str, place: str = "c1", ifname: str = "eth0") -> None:
    """Compare a result with the kernel: names, MACs, MTUs, addresses, attributes of routes."""
    for one in result["interfaces"]:
        where = place if one.get("sandbox") else None
        assert one.get("sandbox", netns) == netns
        there = link(host, one["name"], where)
        assert (there.get("address"), there.get("mtu")) == (one["mac"], one.get("mtu", there.get("mtu"))), (one, there)
    assert sorted(ip["address"] for ip in result.get("ips", [])) == addresses(host, ifname, place)
    for wanted in result.get("routes", []):
        there = route(host, wanted["dst"], place, table=str(wanted.get("table", "main")))
        if "gw" in wanted:
            assert there["gateway"] == wanted["gw"]
        metrics = {key: value for entry in there.get("metrics", []) for key, value in entry.items()}
        assert metrics == {key: wanted[key] for key in ("mtu", "advmss") if key in wanted}
        if "priority" in wanted:
            assert there["metric"] == wanted["priority"]
