"""Who may import whom: the layers of docs/architecture.md, enforced on the syntax trees of all modules."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("cni_plugin", "ipam", "store", "discovery")

GROUND = frozenset(
    {"cni_plugin", "errors", "types", "names", "files", "locks", "plugins", "remarks", "rules", "daemons", "place"}
)
FOUNDATION = GROUND | {"wire", "ipam", "store", "kernel", "delegate"}
PLANNING = frozenset({"plan", "ops"})
DOING = frozenset({"executor", "records"})
PARTS = frozenset({"drivers", "features", "interface"})
SERVICE = frozenset({"conflists", "drafts", "host", "orphans", "parts", "service", "upkeep"})
SERVING = FOUNDATION | PLANNING | DOING | PARTS | SERVICE
TOP = frozenset({"dhcp", "engine", "netavark", "app", "shim", "shim_build", "installation", "agent", "cli"})

MAY_IMPORT: dict[str, frozenset[str]] = {
    **dict.fromkeys(GROUND, GROUND),
    "wire": GROUND,
    **dict.fromkeys(("ipam", "store", "kernel", "delegate"), GROUND | {"wire"}),
    **dict.fromkeys(PLANNING, FOUNDATION | PLANNING),
    # Pure: of IPAM and the kernel they see the values alone.
    **dict.fromkeys(PARTS, (GROUND - {"files", "locks"}) | {"wire"} | PLANNING | PARTS),
    **dict.fromkeys(DOING, FOUNDATION | PLANNING | DOING),
    **dict.fromkeys(SERVICE, SERVING),
    **dict.fromkeys(TOP, SERVING | TOP),
    "agent": SERVING | TOP | {"discovery"},
    "cli": SERVING | TOP | {"discovery"},
    "discovery": GROUND | {"wire", "store", "kernel"},
}
"""For each component, those it may import beside itself."""

PURE_IPAM = frozenset({"ipam.values", "ipam.ranges", "ipam.allocate"})

ONLY_IN: dict[str, tuple[str, ...]] = {
    "pyroute2": ("cni_plugin.kernel.netlink",),
    "subprocess": ("cni_plugin.delegate", "cni_plugin.kernel.nft", "cni_plugin.kernel.iptables"),
    "click": ("cni_plugin.cli",),
    "aiohttp": ("discovery.api", "discovery.health"),
    # The delegate asks the kernel to end a plugin together with its caller (prctl), before the plugin runs; the store
    # asks to be told of other processes' writes (inotify), and must not know the network's kernel.
    "ctypes": ("cni_plugin.kernel", "cni_plugin.delegate", "store.inotify"),
    "netaddr": ("cni_plugin", "ipam", "store", "discovery"),
}
"""Libraries, and the modules (by the start of their names) that may import them. No others are imported."""

IMPURE = frozenset(
    word
    for line in (
        "asyncio ctypes fcntl glob http io multiprocessing os pathlib random secrets select shutil signal",
        "socket ssl subprocess tempfile threading time urllib uuid _socket _thread",
    )
    for word in line.split()
)
"""What a pure module (a driver, a feature) has no use for: whatever can tell two runs apart."""

NEVER_CALLED = ("os.system", "os.popen")


def component(module: str) -> str:
    """The row of the table that a module belongs to: ``cni_plugin.kernel.netlink`` is of ``kernel``."""
    parts = module.split(".")
    inner = parts[0] == "cni_plugin" and len(parts) > 1 and not parts[1].startswith("__")
    return parts[1] if inner else parts[0]


def is_value(name: str) -> bool:
    """Whether a full name is one that pure modules may use: IPAM's pure modules, and the kernel's words for things."""
    if name in PURE_IPAM or name.rpartition(".")[0] in PURE_IPAM:
        return True
    package, _, last = name.rpartition(".")
    return package == "cni_plugin.kernel" and last[:1].isupper()


def imported(tree: ast.AST, module: str, is_package: bool) -> Iterator[tuple[int, str]]:
    """Line and full name of all that a module imports, wherever it does so. For ``from a import b`` it is a.b."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parts = module.split(".")
                above = parts[: len(parts) - node.level + is_package]
                base = ".".join([*above, *([base] if base else [])])
            yield from ((node.lineno, f"{base}.{alias.name}") for alias in node.names)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] in ("import_module", "__import__"):
            argument = node.args[0] if node.args else None
            if isinstance(argument, ast.Constant) and isinstance(argument.value, str):
                yield node.lineno, argument.value


def breach(module: str, name: str) -> str:
    """Why the module may not import that name, "" if it may."""
    top = name.split(".")[0]
    own = component(module)
    if top in PACKAGES:
        other = component(name)
        if other == own or other in MAY_IMPORT[own]:
            return ""
        if own in PARTS and other in ("ipam", "kernel"):
            return "" if is_value(name) else f"{own} is pure and sees only the values of {other}"
        return f"{own} must not know {other}"
    places = ONLY_IN.get(top)
    if places is not None:
        inside = any(module == place or module.startswith((place + ".", place + "_")) for place in places)
        return "" if inside else f"{top} belongs in {', '.join(places)}"
    if top not in sys.stdlib_module_names:
        return f"{top} is no library of weft's"
    if own in PARTS and top in IMPURE:
        return f"{own} is pure and has no use for {top}"
    return ""


def breaches(module: str, source: str, is_package: bool = False) -> list[str]:
    """Every import of one module's source that the table does not allow."""
    if component(module) not in MAY_IMPORT:
        return [f"{module}: give {component(module)} its place in the table of {Path(__file__).name}"]
    tree = ast.parse(source)
    found = [
        f"{module}:{line}: imports {name}: {why}"
        for line, name in imported(tree, module, is_package)
        if (why := breach(module, name))
    ]
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and ast.unparse(node.func) in NEVER_CALLED:
            found.append(f"{module}:{node.lineno}: calls {ast.unparse(node.func)}, which starts a shell")
    return found


def modules() -> Iterator[tuple[str, Path]]:
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts), path


def test_imports_point_one_way() -> None:
    found = [
        line
        for module, path in modules()
        for line in breaches(module, path.read_text(encoding="utf-8"), path.name == "__init__.py")
    ]
    assert not found, "\n".join(found)


def test_all_modules_are_looked_at() -> None:
    names = {module for module, _ in modules()}
    assert {"cni_plugin", "cni_plugin.errors", "cni_plugin.wire.keys", "cni_plugin.kernel", "ipam"} <= names


@pytest.mark.parametrize(
    ("module", "source", "said"),
    [
        ("cni_plugin.errors", "import cni_plugin.service", "errors must not know service"),
        ("cni_plugin.wire.keys", "from ipam import leases", "wire must not know ipam"),
        ("cni_plugin.kernel.fake", "from cni_plugin.executor import run", "kernel must not know executor"),
        ("ipam.leases", "from cni_plugin.kernel import netns", "ipam must not know kernel"),
        ("cni_plugin.drivers.bridge", "from cni_plugin.kernel import netns", "sees only the values of kernel"),
        ("cni_plugin.drivers.bridge", "from ipam.leases import take", "sees only the values of ipam"),
        ("cni_plugin.drivers.bridge", "import os", "has no use for os"),
        ("cni_plugin.features.dns", "def f():\n    from time import monotonic", "has no use for time"),
        ("cni_plugin.drivers.ptp", "from cni_plugin.kernel.linux import LinuxKernel", "only the values of kernel"),
        ("cni_plugin.executor", "from cni_plugin.drivers import bridge", "executor must not know drivers"),
        ("cni_plugin.service", "from cni_plugin import engine", "service must not know engine"),
        ("cni_plugin.ops.link", "from ..service import handle", "ops must not know service"),
        ("discovery.dns", "from ipam import leases", "discovery must not know ipam"),
        ("cni_plugin.service", "import pyroute2", "pyroute2 belongs in"),
        ("cni_plugin.kernel.sysctl", "from pyroute2.netlink import rtnl", "pyroute2 belongs in"),
        ("cni_plugin.service", "import importlib\nimportlib.import_module('pyroute2')", "pyroute2 belongs in"),
        ("cni_plugin.executor", "import subprocess", "subprocess belongs in"),
        ("cni_plugin.app", "import click", "click belongs in"),
        ("discovery.catalog", "from aiohttp import web", "aiohttp belongs in"),
        ("cni_plugin.ops.address", "import ctypes", "ctypes belongs in"),
        ("cni_plugin.wire.keys", "import requests", "requests is no library"),
        ("cni_plugin.types", "if TYPE_CHECKING:\n    import ipam.leases", "not know ipam"),
        ("cni_plugin.cli.main", "import os\nos.system('ip link')", "starts a shell"),
        ("cni_plugin.helpers", "", "give helpers its place"),
    ],
)
def test_a_breach_is_named(module: str, source: str, said: str) -> None:
    [line] = breaches(module, source)
    assert line.startswith(module)
    assert said in line


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("cni_plugin.kernel.netlink", "from pyroute2.netlink.rtnl import ifinfmsg"),
        ("cni_plugin.kernel.netlink.links", "import pyroute2"),
        ("cni_plugin.kernel.nft_process", "import subprocess"),
        ("cni_plugin.kernel.netns", "import ctypes, os"),
        ("cni_plugin.drivers.bridge", "from ipam.ranges import Pool\nfrom cni_plugin.kernel import Link"),
        ("cni_plugin.ops.link", "from . import address\nfrom ..kernel import Link"),
        ("cni_plugin.wire.versions", "from cni_plugin import __version__"),
        ("cni_plugin.service", "from cni_plugin import drivers, executor\nimport store"),
        ("cni_plugin.cli", "import click\nfrom cni_plugin import service"),
        ("discovery.balancer", "from cni_plugin.kernel import Element\nimport store"),
    ],
)
def test_what_is_allowed_passes(module: str, source: str) -> None:
    assert breaches(module, source) == []


def test_relative_imports_of_a_package_are_resolved() -> None:
    [line] = breaches("cni_plugin.ops", "from .. import service", is_package=True)
    assert "imports cni_plugin.service" in line
    assert breaches("cni_plugin.ops", "from . import link", is_package=True) == []
