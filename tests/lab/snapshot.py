"""Comparable snapshots of a namespace's network, without state that changes by itself."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from lab.commands import run
from lab.waiting import PATIENTLY

Snapshot = dict[str, Any]

# As few programs as possible: in an emulator, starting them dominates the cost.
QUERIES: tuple[tuple[tuple[str, ...], dict[str, str]], ...] = (
    (
        ("ip", "-j", "-d", "-batch", "-"),
        {
            "links": "address show",
            "routes4": "route show table all",
            "rules4": "rule show",
            "neighbours": "neighbour show nud permanent",
        },
    ),
    (("ip", "-6", "-j", "-d", "-batch", "-"), {"routes6": "route show table all", "rules6": "rule show"}),
    (("tc", "-j", "qdisc", "show"), {"disciplines": ""}),
    (("nft", "-j", "list", "ruleset"), {"nft": ""}),
)

_VOLATILE = frozenset(
    {"valid_life_time", "preferred_life_time", "operstate", "tentative", "handle", "metainfo", "expires", "packets"}
    | {"direct_packets_stat"}
    | {
        "bytes",
        "cacheinfo",
        "expires_sec",
        "tcn_timer",
        "hello_timer",
        "gc_timer",
        "forward_delay_timer",
        "message_age_timer",
        "topology_change_timer",
        "refcnt",
    }
)
_VOLATILE_FLAGS = frozenset({"NO-CARRIER", "LOWER_UP", "linkdown", "dead"})
# The kernel adds and removes these some time after a link gains or loses its carrier.
_LINK_LOCAL = ("fe80:", "ff00:")
_SYSCTLS = (
    "net/ipv4/ip_forward",
    "net/ipv4/conf/*/forwarding",
    "net/ipv4/conf/*/route_localnet",
    "net/ipv4/conf/*/rp_filter",
    "net/ipv6/conf/*/forwarding",
    "net/ipv6/conf/*/accept_ra",
    "net/ipv6/conf/*/disable_ipv6",
)


def _steady(value: Any, key: str = "") -> Any:
    if isinstance(value, dict):
        return {name: _steady(item, name) for name, item in value.items() if name not in _VOLATILE}
    if isinstance(value, list):
        items = [_steady(item) for item in value if not _comes_and_goes(key, item)]
        # The order of a set's elements depends on their hashes, which differ at each boot.
        return sorted(items, key=json.dumps) if key == "elem" else items
    return value


def _comes_and_goes(key: str, item: Any) -> bool:
    if isinstance(item, dict):
        return str(item.get("dst", item.get("local", ""))).startswith(_LINK_LOCAL)
    return key == "flags" and item in _VOLATILE_FLAGS


def _sysctls() -> dict[str, str]:
    root = Path("/proc/sys")
    return {
        str(path.relative_to(root)): path.read_text().strip()
        for pattern in _SYSCTLS
        for path in sorted(root.glob(pattern))
    }


def take() -> Snapshot:
    """Snapshot of the current network namespace."""
    state: Snapshot = {}
    for argv, lines in QUERIES:
        said = _documents(run(*argv, stdin="".join(f"{line}\n" for line in lines.values() if line)).stdout)
        state.update(zip(lines, map(_steady, said or [[]]), strict=True))
    rules = state["nft"]["nftables"]
    state["nft"] = [_of_rules(item) for item in rules if item]
    state["sysctl"] = _sysctls()
    return state


def _of_rules(item: dict[str, Any]) -> dict[str, Any]:
    """An object of a ruleset, without elements that packets have added and the kernel times out."""
    found = item.get("set", {})
    return {"set": {**found, "elem": []}} if "timeout" in found.get("flags", ()) else item


def _documents(text: str) -> list[Any]:
    """The concatenated JSON documents of a text."""
    found, decoder = [], json.JSONDecoder()
    while text := text.lstrip():
        document, end = decoder.raw_decode(text)
        found.append(document)
        text = text[end:]
    return found


def settled() -> Snapshot:
    """Snapshot of the current namespace when no link event is pending and two snapshots are equal.

    The kernel handles a gained or lost carrier with a delay, and then adds or removes routes.
    """
    deadline = time.monotonic() + PATIENTLY
    found = take()
    while time.monotonic() < deadline:
        time.sleep(0.1)
        waiting, again = _pending(), take()
        if not waiting and not difference(found, again):
            break
        found = again
    return found


def _pending() -> bool:
    """Whether a carrier change of a link is not yet handled, or DAD of an address is not finished.

    Link-local addresses of the kernel, which ``take`` omits, may be tentative for seconds.
    """
    for link in json.loads(run("ip", "-j", "address", "show").stdout or "[]"):
        flags = link.get("flags", ())
        # IFF_LOWER_UP is the carrier; NO-CARRIER (no IFF_RUNNING) is the state that was handled.
        if "LOWER_UP" in flags and "NO-CARRIER" in flags:
            return True
        if any(one.get("tentative") and one.get("scope") == "global" for one in link.get("addr_info", ())):
            return True
    return False


def difference(before: Snapshot, after: Snapshot) -> list[str]:
    """Removed (-) and added (+) lines; empty if both are equal."""
    lines = []
    for name in sorted(before.keys() | after.keys()):
        old, new = before.get(name, []), after.get(name, [])
        if isinstance(old, dict):
            old, new = ([f"{key} = {value}" for key, value in side.items()] for side in (old, new))
        lines += [f"- {name}: {json.dumps(item)}" for item in old if item not in new]
        lines += [f"+ {name}: {json.dumps(item)}" for item in new if item not in old]
        if not lines and old != new:
            lines.append(f"! {name}: the same things in another order or number")
    return lines
