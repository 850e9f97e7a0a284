"""Keys of a plugin's configuration that nothing reads: typos, and what another plugin would have done.

Runtimes put keys of their own into lists, so these are findings and no errors.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Set

from cni_plugin.plan import modules
from weft.section import similar

_COMMON = frozenset((
    "cniversion", "cniversions", "name", "type", "capabilities", "args", "runtimeconfig", "prevresult", "ipam", "dns",
    "disablecheck", "disablegc", "loadonlyinlinedplugins", "description", "comment", "weft",
))  # fmt: skip
"""Keys of CNI itself, and remarks."""
_OWN_IPAM = frozenset(("host-local", "static", "dhcp", "blocks"))


def unread(plugin: object, asked: Set[str]) -> Iterator[tuple[str, str]]:
    """Each key that was not asked for, with ``; did you mean …?``. ``asked`` has the paths of those that
    were.
    """
    if not isinstance(plugin, dict):
        return
    ipam = plugin.get("ipam")
    folded = {one.casefold() for one in asked}
    foreign = isinstance(ipam, dict) and ipam.get("type") not in _OWN_IPAM
    for path, siblings in _paths(plugin, "", _by_object(asked)):
        lower = path.casefold()
        if lower in folded or lower in _COMMON or (foreign and lower.startswith("ipam.")):
            continue
        known = siblings | (_top_level() if "." not in path and "[" not in path else set())
        yield path, similar(path.rpartition(".")[2], sorted(known))


def _top_level() -> set[str]:
    features = [modules.feature(name).FEATURE for name in modules.features()]
    return {*modules.features(), *(key for one in features for key in one.keys), "driver", "ipam"}


def _by_object(asked: Set[str]) -> dict[str, set[str]]:
    """The keys that were asked for by the path of their object, in lower case."""
    found: dict[str, set[str]] = {}
    for path in asked:
        at, _, key = path.rpartition(".")
        if "[" not in key:
            found.setdefault(at.casefold(), set()).add(key)
    return found


def _paths(value: dict[str, object], at: str, asked: Mapping[str, set[str]]) -> Iterator[tuple[str, set[str]]]:
    """The path of each key below objects that were read, with the keys that are read beside it."""
    siblings = asked.get(at.casefold())
    if not siblings:
        return  # weft takes the object as a whole: labels, sysctls
    prefix = f"{at}." if at else ""
    for key, item in value.items():
        yield f"{prefix}{key}", siblings
        yield from _below(item, f"{prefix}{key}", asked)


def _below(item: object, path: str, asked: Mapping[str, set[str]]) -> Iterator[tuple[str, set[str]]]:
    if isinstance(item, dict):
        yield from _paths(item, path, asked)
    for index, each in enumerate(item if isinstance(item, list) else ()):
        yield from _below(each, f"{path}[{index}]", asked)
