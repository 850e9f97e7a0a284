"""Which folder may import which: docs/architecture.md, enforced on the modules' syntax trees."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path

import pytest

from cni_plugin.engine import server

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("weft", "ipam", "store", "discovery", "cluster", "cni_plugin")

STANDS_ON: dict[str, str] = {
    "weft": "",
    "weft.kernel": "weft",
    "weft.kernel.netlink": "weft weft.kernel",
    "weft.kernel.nft": "weft weft.kernel weft.kernel.netlink",
    "weft.kernel.fake": "weft weft.kernel weft.kernel.nft",
    "weft.kernel.linux": "weft weft.kernel weft.kernel.nft weft.kernel.netlink",
    "weft.kernel.trace": "weft weft.kernel",
    "ipam": "weft",
    "store": "weft",
    "store.etcd": "weft store",
    "discovery": "store",
    "discovery.consul": "weft store discovery",
    "discovery.dns": "store discovery",
    "discovery.health": "weft weft.kernel store discovery",
    "discovery.acl": "store discovery discovery.consul",
    "discovery.api": "weft weft.kernel.netlink store discovery discovery.acl discovery.consul",
    "discovery.balancer": (
        "weft weft.kernel weft.kernel.nft weft.kernel.netlink weft.kernel.linux store discovery discovery.consul"
    ),
    "discovery.page": "weft discovery discovery.acl discovery.api",
    "cluster": "weft store store.etcd",
    "cni_plugin": "",
    "cni_plugin.dataplane": "weft.kernel",
    "cni_plugin.wire": "weft",
    "cni_plugin.dhcp": "weft weft.kernel weft.kernel.linux ipam",
    "cni_plugin.ops": "weft weft.kernel weft.kernel.linux ipam cni_plugin.dataplane cni_plugin.wire",
    "cni_plugin.plan": "weft weft.kernel cni_plugin.wire cni_plugin.ops",
    "cni_plugin.drivers": "weft weft.kernel cni_plugin.wire cni_plugin.ops cni_plugin.plan",
    "cni_plugin.features": "weft weft.kernel cni_plugin.dataplane cni_plugin.wire cni_plugin.ops cni_plugin.plan",
    "cni_plugin.service": (
        "weft weft.kernel weft.kernel.nft weft.kernel.linux ipam cni_plugin.dataplane cni_plugin.wire cni_plugin.ops "
        "cni_plugin.plan"
    ),
    "cni_plugin.networks": (
        "weft weft.kernel weft.kernel.linux weft.kernel.trace ipam discovery.consul cluster cni_plugin.dataplane "
        "cni_plugin.wire cni_plugin.ops cni_plugin.plan cni_plugin.service"
    ),
    "cni_plugin.networks.declared": (
        "weft weft.kernel discovery.consul cni_plugin.wire cni_plugin.ops cni_plugin.service cni_plugin.networks"
    ),
    "cni_plugin.agent": (
        "weft weft.kernel weft.kernel.netlink weft.kernel.linux ipam store store.etcd discovery discovery.acl "
        "discovery.consul discovery.dns discovery.health discovery.api discovery.balancer discovery.page cluster "
        "cni_plugin.dataplane cni_plugin.ops cni_plugin.plan cni_plugin.service cni_plugin.networks"
    ),
    "cni_plugin.entry": (
        "weft weft.kernel.linux cni_plugin.dataplane cni_plugin.wire cni_plugin.plan cni_plugin.service "
        "cni_plugin.networks"
    ),
    "cni_plugin.entry.former": "cni_plugin.entry",
    "cni_plugin.engine": (
        "weft weft.kernel weft.kernel.nft weft.kernel.netlink weft.kernel.linux ipam cni_plugin.dataplane "
        "cni_plugin.wire cni_plugin.ops cni_plugin.service cni_plugin.entry"
    ),
    "cni_plugin.docker": (
        "weft weft.kernel weft.kernel.nft weft.kernel.netlink ipam cni_plugin.dataplane cni_plugin.wire cni_plugin.ops "
        "cni_plugin.plan cni_plugin.service cni_plugin.networks cni_plugin.engine"
    ),
    "cni_plugin.cli": (
        "weft weft.kernel weft.kernel.linux weft.kernel.trace store store.etcd cluster discovery discovery.consul "
        "discovery.dns discovery.balancer cni_plugin.dataplane cni_plugin.wire cni_plugin.dhcp "
        "cni_plugin.ops cni_plugin.plan cni_plugin.agent cni_plugin.service cni_plugin.networks "
        "cni_plugin.networks.declared cni_plugin.entry "
        "cni_plugin.engine cni_plugin.docker"
    ),
}
"""Each folder, and all folders that its modules import. Lower rows are higher layers."""

DEFERRED: dict[str, dict[str, str]] = {
    # the agent serves DNS before HTTP, checks and the page are loaded
    "cni_plugin.agent.later": {
        "cni_plugin.agent.following": "41.6 ms",
        "cni_plugin.agent.overlay_endpoint": "206.1 ms",
        "cni_plugin.agent.overlay_host": "142.9 ms",
        "cni_plugin.agent.overlays": "150.3 ms",
        "cni_plugin.agent.prober": "56.6 ms",
        "cni_plugin.agent.shared_names": "8.0 ms",
        "cni_plugin.agent.api_front": "10.0 ms",
        "cni_plugin.agent.probe_front": "15.0 ms",
        "discovery.api.server": "180.1 ms",
        "discovery.health.checker": "142.0 ms",
        "discovery.page.pages": "9.2 ms",
    },
    # each worker loads only its own libraries
    "cni_plugin.agent.main": {
        "cni_plugin.agent.api_worker": "572.0 ms",
        "cni_plugin.agent.probe_worker": "313.5 ms",
    },
    # only hosts of a cluster
    "cni_plugin.agent.clustering": {
        "cluster.keeper": "583.4 ms",
    },
    "cni_plugin.agent.stores": {
        "store.etcd.client": "568.2 ms",
    },
    # each program of the command loads only its own modules
    "cni_plugin.cli": {
        "cni_plugin.agent.main": "248.1 ms",
        "cni_plugin.cli.root": "158.4 ms",
        "cni_plugin.dhcp.keeper": "84.6 ms",
        "cni_plugin.docker.server": "614.7 ms",
        "cni_plugin.engine.main": "151.6 ms",
    },
    # most commands start no agent
    "cni_plugin.cli.agent_command": {
        "cni_plugin.agent.main": "132.3 ms",
    },
    "cni_plugin.cli.agents": {
        "cni_plugin.agent.catalog_file": "63.6 ms",
        "cni_plugin.agent.settings": "11.3 ms",
        "discovery.balancer.balancer": "82.1 ms",
    },
    # only files in YAML
    "cni_plugin.cli.applying": {
        "cni_plugin.networks.declared.yaml_files": "29.9 ms",
    },
    "cni_plugin.networks.declared.languages": {
        "cni_plugin.networks.declared.yaml_files": "29.9 ms",
    },
    # gRPC and the library of certificates, which no other command needs
    "cni_plugin.cli.cluster": {
        "cni_plugin.cli.cluster_work": "1529.3 ms",
    },
    "cni_plugin.cli.node": {
        "cni_plugin.cli.cluster_work": "1529.3 ms",
    },
    # the HTTP server, which no other command needs
    "cni_plugin.cli.docker": {
        "cni_plugin.docker.server": "488.2 ms",
    },
    # only weft validate, and weft snapshot
    "cni_plugin.cli.consul_agent": {
        "cni_plugin.agent.settings": "44.5 ms",
        "discovery.consul.definition_files": "2.9 ms",
        "discovery.consul.snapshot": "15.9 ms",
    },
    # only networks with a foreign plugin, and tools that look at all attachments
    "cni_plugin.networks.chain": {
        "cni_plugin.service.delegate": "6.7 ms",
    },
    # only for completion, and for a traceback under WEFT_DEBUG
    "cni_plugin.cli.root": {
        "cni_plugin.cli.complete": "14.2 ms",
        "click.shell_completion": "0.6 ms",
        "traceback": "1.4 ms",
    },
    # only weft services watch
    "cni_plugin.cli.services": {
        "cni_plugin.cli.watching": "19.6 ms",
    },
    # weft --help and the commands to the agent do not need the kernel
    "cni_plugin.cli.tool": {
        "cni_plugin.dataplane.tables": "4.8 ms",
        "cni_plugin.networks.requirements": "44.5 ms",
        "cni_plugin.service.log": "0.5 ms",
        "cni_plugin.service.verbs": "37.0 ms",
        "weft.kernel.host": "6.0 ms",
        "weft.kernel.linux.kernel": "32.0 ms",
        "weft.kernel.linux.probe": "6.5 ms",
    },
    # VERSION, which podman calls for every plugin of every network, needs none of it
    "cni_plugin.entry.call": {
        "cni_plugin.entry.netavark": "35.1 ms",
        "cni_plugin.service.log": "45.9 ms",
        "cni_plugin.service.verbs": "64.8 ms",
        "signal": "5.0 ms",
        "weft.releases": "12.4 ms",
    },
    # VERSION and a refused call need none of it
    "cni_plugin.entry.cni": {
        "cni_plugin.plan.modules": "18.1 ms",
        "cni_plugin.service.log": "43.4 ms",
        "cni_plugin.wire.config": "31.3 ms",
        "cni_plugin.wire.document": "8.3 ms",
        "cni_plugin.wire.environment": "32.1 ms",
        "cni_plugin.wire.result": "26.0 ms",
        "traceback": "10.1 ms",
        "weft.events": "1.4 ms",
    },
    # each verb loads only its own modules
    "cni_plugin.entry.netavark": {
        "cni_plugin.entry.netavark_cluster": "196.5 ms",
        "cni_plugin.networks.podman": "43.0 ms",
        "cni_plugin.networks.pools": "13.4 ms",
        "cni_plugin.service.assemble": "34.8 ms",
        "cni_plugin.wire.config": "0.7 ms",
        "traceback": "1.8 ms",
    },
    # a call that is sent to an engine
    "cni_plugin.entry.shim": {
        "cni_plugin.entry.call": "2.7 ms",
        "cni_plugin.wire.frame": "16.3 ms",
    },
    # only the backend iptables
    "cni_plugin.features.masquerade": {
        "cni_plugin.ops.iptables": "1.5 ms",
    },
    # only attachments with names
    "cni_plugin.features.names": {
        "cni_plugin.ops.announcement": "3.0 ms",
    },
    # only UDP, and the backend iptables
    "cni_plugin.features.portmap": {
        "cni_plugin.ops.ports": "3.5 ms",
        "cni_plugin.ops.iptables": "1.8 ms",
    },
    # only published ports and virtual addresses behind a bridge, containers with several links, and IPv6
    "cni_plugin.plan.interface": {
        "cni_plugin.ops.forwarding": "2.5 ms",
        "cni_plugin.plan.routing": "6.1 ms",
        "cni_plugin.ops.ports": "3.5 ms",
    },
    # only hosts with a file weft.toml
    "weft.uplink": {
        "tomllib": "7.1 ms",
    },
    # only networks with the key uplink
    "cni_plugin.plan.facts": {
        "weft.uplink": "2.3 ms",
    },
    # only the ADD that sets a network up
    "weft.virtual_ranges": {
        "tomllib": "7.1 ms",
    },
    # only the search for a free subnet
    "cni_plugin.networks.pools": {
        "netaddr": "24.9 ms",
    },
    # only attachments with DHCP
    "cni_plugin.ops.dhcp": {
        "weft.kernel.linux.packet_socket": "4.7 ms",
    },
    # only attachments with static addresses of overlay networks
    "cni_plugin.ops.leases": {
        "cni_plugin.ops.claiming": "44.1 ms",
    },
    # only attachments with DHCP, and to overlay networks
    "cni_plugin.service.assemble": {
        "cni_plugin.ops.dhcp": "14.8 ms",
        "ipam.blocks": "61.9 ms",
        "ipam.dhcp": "4.1 ms",
    },
    # only networks with a foreign plugin, and tools that look at all attachments
    "cni_plugin.service.context": {
        "cni_plugin.service.delegate": "8.7 ms",
        "weft.kernel.once": "0.4 ms",
    },
    # GC, DEL without a record, and calls without an engine
    "cni_plugin.service.verbs": {
        "cni_plugin.service.gc": "1.2 ms",
        "cni_plugin.service.log": "0.5 ms",
        "cni_plugin.service.unrecorded": "4.4 ms",
        "weft.kernel.linux.kernel": "29.2 ms",
    },
    # only a call that fails
    "cni_plugin.wire.failure": {
        "json": "12.8 ms",
    },
    # only if standard input has the version twice
    "cni_plugin.wire.probe": {
        "cni_plugin.wire.document": "14.6 ms",
    },
    # only an agent with virtual addresses
    "discovery.balancer.allocate": {
        "discovery.balancer.table": "58.7 ms",
        "weft.kernel.linux.kernel": "47.3 ms",
    },
    # the page and the agent are no clients; TLS only with https
    "discovery.consul.client": {
        "http.client": "26.4 ms",
        "ssl": "9.7 ms",
    },
    # only the process that executes HTTP checks
    "cni_plugin.agent.probe_worker": {
        "discovery.health.http_probe": "195.7 ms",
    },
    "discovery.health.probes": {
        "discovery.health.http_probe": "195.7 ms",
    },
    # only gRPC checks, where grpcio is installed
    "discovery.health.grpc_probe": {
        "grpc": "280.1 ms",
    },
    # only pools with an index; static addresses need no database
    "ipam.index": {
        "sqlite3": "4.3 ms",
    },
    # the journal runs not everywhere; only weft events reads
    "weft.events": {
        "_socket": "1.2 ms",
        "json": "12.8 ms",
    },
    # only for an unknown key
    # only where a host of an encrypted network is new
    "weft.esp": {
        "cryptography": "59.4 ms",
    },
    "weft.section": {
        "difflib": "1.8 ms",
    },
    # most calls start and stop no daemon
    "weft.daemons": {
        "signal": "1.1 ms",
    },
    # only the first process of a release stops those of another
    "weft.releases": {
        "signal": "3.4 ms",
    },
    # most calls run no program
    "weft.processes": {
        "subprocess": "12.3 ms",
    },
    # a host without iptables never runs a program
    "weft.kernel.linux.iptables": {
        "shutil": "10.1 ms",
    },
    # a call without an engine loads only what its plan needs
    "weft.kernel.linux.kernel": {
        "weft.kernel.linux.filters": "13.3 ms",
        "weft.kernel.linux.firewalld": "3.5 ms",
        "weft.kernel.linux.firewalls": "1.9 ms",
        "weft.kernel.linux.iptables": "0.8 ms",
        "weft.kernel.netlink.conntrack": "0.8 ms",
        "weft.kernel.nft.ruleset": "7.1 ms",
        "weft.kernel.nft.socket": "0.6 ms",
    },
    # only where iptables-legacy is in use
    "weft.kernel.linux.firewalls": {
        "weft.kernel.linux.legacy": "8.8 ms",
    },
    # the check of privileges does not probe the kernel
    "weft.kernel.linux.probe": {
        "threading": "1.0 ms",
        "weft.kernel.linux.kernel": "45.2 ms",
        "weft.kernel.nft.connection": "8.2 ms",
        "weft.kernel.nft.library": "5.3 ms",
    },
    # 176 ms through pyroute2's own __init__, 11 ms without it
    "weft.kernel.netlink.message_classes": {
        "pyroute2": "196.5 ms",
    },
    # os.setns needs Python 3.12; a call that enters no namespace needs no ctypes
    "weft.kernel.netns": {
        "ctypes": "3.0 ms",
    },
    # only where libnftables is missing
    "weft.kernel.nft.library": {
        "shutil": "3.8 ms",
    },
    # only other namespaces
    "weft.kernel.nft.connection": {
        "threading": "1.0 ms",
    },
    # only verification after a foreign change
    "weft.kernel.nft.ruleset": {
        "weft.kernel.nft.drops": "0.2 ms",
        "weft.kernel.nft.listing": "1.7 ms",
        "weft.kernel.nft.once": "0.3 ms",
    },
    # only processes that read sysctls of many namespaces
    "weft.kernel.sysctl": {
        "contextlib": "0.7 ms",
        "weft.kernel.proc": "5.5 ms",
    },
}
"""Imports inside functions: by module, what it imports there and why.

Milliseconds are what the import takes in a process that has loaded the importing module, isolated
as the executables are (-IS), the least of three.
"""

VALUES_ONLY = frozenset({"cni_plugin.drivers", "cni_plugin.features", "cni_plugin.plan.interface"})
"""Pure: of the kernel and IPAM they see values only, and nothing that differs between two runs."""

PURE_IPAM = frozenset({"ipam.values", "ipam.ranges", "ipam.allocate"})

ONLY_IN: dict[str, tuple[str, ...]] = {
    "pyroute2": ("weft.kernel.netlink",),
    "subprocess": ("weft.processes",),
    "click": ("cni_plugin.cli",),
    "aiohttp": ("discovery.api", "discovery.health", "cni_plugin.docker"),
    "aiohappyeyeballs": ("discovery.health",),
    "grpc": ("discovery.health.grpc_probe", "store.etcd"),
    "google": ("store.etcd.rpc_pb2",),
    "cryptography": ("cluster.authority", "weft.esp"),
    # The delegate asks the kernel to end a plugin together with its caller (prctl), before the
    # plugin runs; the store asks to be told of other processes' writes (inotify), and must not know
    # the network's kernel.
    "ctypes": (
        "weft.kernel",
        "weft.inherited",
        "weft.confinement",
        "weft.spawner",
        "cni_plugin.service.delegate",
        "store.inotify",
    ),
    "netaddr": PACKAGES,
    "yaml": ("cni_plugin.networks.declared.yaml_files",),
}
"""Libraries, and the modules (by the start of their names) that may import them.

No others are imported.
"""

IMPURE = frozenset(
    word
    for line in (
        "asyncio ctypes fcntl glob http io multiprocessing os pathlib random secrets select shutil signal",
        "socket ssl subprocess tempfile threading time urllib uuid _socket _thread",
    )
    for word in line.split()
)
"""Modules that a pure module must not import."""

NEVER_CALLED = ("os.system", "os.popen")
MOST_ENTRIES = 15
"""Maximum number of files and folders in cni_plugin, so that a reader sees them at once."""


@cache
def modules() -> Mapping[str, Path]:
    """All modules of weft by their qualified names."""
    found = {}
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def folder(module: str) -> str:
    """The row of the table for a module; ``weft.kernel.netlink.links`` is in
    ``weft.kernel.netlink``.
    """
    while module not in STANDS_ON and "." in module:
        module = module.rpartition(".")[0]
    return module


def target(name: str) -> str:
    """The module of weft that a qualified name is, or is defined in."""
    while name not in modules() and "." in name:
        name = name.rpartition(".")[0]
    return name


def is_inside(name: str, places: Iterator[str] | tuple[str, ...] | frozenset[str]) -> bool:
    return any(name == place or name.startswith(f"{place}.") for place in places)


def imported(tree: ast.AST, module: str, is_package: bool) -> Iterator[tuple[int, str, bool]]:
    """All imports of a module: line, qualified name, and whether in a function.

    ``from a import b`` is a.b.
    """
    inner = {
        id(node)
        for function in ast.walk(tree)
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef)
        for node in ast.walk(function)
    }
    for node in ast.walk(tree):
        within = id(node) in inner
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name, within) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parts = module.split(".")
                above = parts[: len(parts) - node.level + is_package]
                base = ".".join([*above, *([base] if base else [])])
            yield from ((node.lineno, f"{base}.{alias.name}", within) for alias in node.names)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] in ("import_module", "__import__"):
            argument = node.args[0] if node.args else None
            if isinstance(argument, ast.Constant) and isinstance(argument.value, str):
                yield node.lineno, argument.value, within


def is_value(name: str) -> bool:
    """Whether a pure module may import a name: IPAM's pure modules, the kernel's value classes."""
    if name in PURE_IPAM or name.rpartition(".")[0] in PURE_IPAM:
        return True
    package, _, last = name.rpartition(".")
    return package in ("weft.kernel.interface", "weft.kernel.values") and last[:1].isupper()


def breach(module: str, name: str) -> str:
    """The reason why the module may not import that name, "" if it may."""
    top = name.split(".")[0]
    own, pure = folder(module), is_inside(module, VALUES_ONLY)
    if top in PACKAGES:
        other = folder(target(name))
        if other != own and other not in STANDS_ON[own].split():
            return f"{own} does not stand on {other}"
        if pure and (top == "ipam" or other.startswith("weft.kernel")) and not is_value(name):
            return f"{own} is pure and sees only the values of {other}"
        return ""
    places = ONLY_IN.get(top)
    if places is not None:
        return "" if is_inside(module, places) else f"{top} belongs in {', '.join(places)}"
    if top not in sys.stdlib_module_names:
        return f"{top} is no library of weft's"
    return f"{own} is pure and has no use for {top}" if pure and top in IMPURE else ""


def breaches(module: str, source: str, is_package: bool = False) -> list[str]:
    """Every import of one module's source that the table does not allow."""
    if module not in ("weft", *PACKAGES) and folder(module) not in STANDS_ON:
        return [f"{module}: give {folder(module)} its place in the table of {Path(__file__).name}"]
    if module.count(".") > 1 and folder(module) not in (module, module.rpartition(".")[0]) and not is_package:
        return [f"{module}: give {module.rpartition('.')[0]} its place in the table of {Path(__file__).name}"]
    tree = ast.parse(source)
    found = []
    for line, name, within in imported(tree, module, is_package):
        if why := breach(module, name):
            found.append(f"{module}:{line}: imports {name}: {why}")
        elif within and not is_inside(name, tuple(DEFERRED.get(module, {}))):
            found.append(f"{module}:{line}: imports {name} in a function: move it up, or list it with what that costs")
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and ast.unparse(node.func) in NEVER_CALLED:
            found.append(f"{module}:{node.lineno}: calls {ast.unparse(node.func)}, which starts a shell")
    return found


def graph() -> dict[str, set[str]]:
    """The modules that each module imports, also in functions and for types."""
    found: dict[str, set[str]] = {}
    for module, path in modules().items():
        tree = ast.parse(path.read_text(encoding="utf-8"))
        names = (name for _, name, _ in imported(tree, module, path.name == "__init__.py"))
        found[module] = {target(name) for name in names if name.split(".")[0] in PACKAGES} - {module}
    return found


def circles(arrows: Mapping[str, set[str]]) -> list[str]:
    """The modules that import themselves indirectly."""

    def reached(start: str) -> set[str]:
        seen: set[str] = set()
        waiting = [start]
        while waiting:
            for name in arrows.get(waiting.pop(), ()):
                if name not in seen:
                    seen.add(name)
                    waiting.append(name)
        return seen

    return [name for name in arrows if name in reached(name)]


def test_imports_follow_the_table() -> None:
    found = [
        line
        for module, path in modules().items()
        for line in breaches(module, path.read_text(encoding="utf-8"), path.name == "__init__.py")
    ]
    assert not found, "\n".join(found)


def test_there_are_no_cycles_between_folders() -> None:
    assert circles({name: set(row.split()) for name, row in STANDS_ON.items()}) == []


def test_there_are_no_cycles_between_modules() -> None:
    assert circles(graph()) == []


def test_the_table_is_exact() -> None:
    """A folder that is no longer imported must be removed from the table."""
    real: dict[str, set[str]] = {name: set() for name in STANDS_ON}
    for module, names in graph().items():
        real[folder(module)] |= {folder(name) for name in names} - {folder(module)}
    assert {name: set(row.split()) for name, row in STANDS_ON.items()} == real


def test_every_deferred_import_of_the_table_exists() -> None:
    for module, rows in DEFERRED.items():
        path = modules()[module]
        inner = {
            name for _, name, within in imported(ast.parse(path.read_text()), module, path.stem == "__init__") if within
        }
        for row in rows:
            assert any(is_inside(name, (row,)) for name in inner), f"{module} imports {row} in no function"


def test_the_engine_preloads_the_deferred_imports_of_calls() -> None:
    known = set(server.preloaded())
    late = {name for module, rows in DEFERRED.items() if module in {*known, "cni_plugin.entry.cni"} for name in rows}
    assert {name for name in late if name.split(".")[0] in PACKAGES} <= known


def test_cni_plugin_fits_a_screen() -> None:
    entries = {
        path.name
        for path in (ROOT / "cni_plugin").iterdir()
        if path.suffix in (".py", ".c") or (path / "__init__.py").is_file()
    }
    assert len(entries) <= MOST_ENTRIES, sorted(entries)


def test_all_modules_are_checked() -> None:
    assert {"weft", "weft.errors", "weft.kernel.netlink.links", "ipam", "discovery.dns.zone"} <= set(modules())


@pytest.mark.parametrize(
    ("module", "source", "said"),
    [
        ("weft.errors", "import cni_plugin.service", "weft does not stand on cni_plugin.service"),
        ("weft.section", "from ipam import leases", "weft does not stand on ipam"),
        ("weft.types", "from weft.kernel.values import Link", "weft does not stand on weft.kernel"),
        ("weft.kernel.interface", "from weft.kernel.linux import probe", "not stand on weft.kernel.linux"),
        ("weft.kernel.fake.kernel", "from cni_plugin.service import executor", "not stand on cni_plugin.service"),
        ("ipam.leases", "from weft.kernel import netns", "ipam does not stand on weft.kernel"),
        ("cni_plugin.drivers.bridge", "from weft.kernel import netns", "sees only the values of weft.kernel"),
        ("cni_plugin.drivers.bridge", "from ipam.leases import take", "does not stand on ipam"),
        ("cni_plugin.drivers.bridge", "import os", "has no use for os"),
        ("cni_plugin.features.tuning", "def f():\n    from time import monotonic", "has no use for time"),
        (
            "cni_plugin.drivers.ptp",
            "from weft.kernel.linux.kernel import LinuxKernel",
            "not stand on weft.kernel.linux",
        ),
        ("cni_plugin.ops.links", "from cni_plugin.drivers import bridge", "not stand on cni_plugin.drivers"),
        ("cni_plugin.service.verbs", "from cni_plugin import engine", "service does not stand on cni_plugin"),
        ("cni_plugin.ops.links", "from ..service.verbs import handle", "not stand on cni_plugin.service"),
        ("cni_plugin.service.verbs", "def f():\n    from weft import locks", "in a function: move it up"),
        ("discovery.dns.zone", "from ipam import leases", "discovery.dns does not stand on ipam"),
        ("discovery.catalog", "from discovery.api import agent", "discovery does not stand on discovery.api"),
        ("cni_plugin.service.verbs", "import pyroute2", "pyroute2 belongs in"),
        ("weft.kernel.sysctl", "from pyroute2.netlink import rtnl", "pyroute2 belongs in"),
        ("cni_plugin.service.verbs", "import importlib\nimportlib.import_module('pyroute2')", "pyroute2 belongs in"),
        ("cni_plugin.service.executor", "import subprocess", "subprocess belongs in"),
        ("cni_plugin.entry.cni", "import click", "click belongs in"),
        ("discovery.catalog", "from aiohttp import web", "aiohttp belongs in"),
        ("cni_plugin.ops.addresses", "import ctypes", "ctypes belongs in"),
        ("weft.section", "import requests", "requests is no library"),
        ("weft.types", "if TYPE_CHECKING:\n    import ipam.leases", "not stand on ipam"),
        ("cni_plugin.cli.main", "import os\nos.system('ip link')", "starts a shell"),
        ("cni_plugin.helpers.more", "", "give cni_plugin.helpers its place"),
    ],
)
def test_forbidden_imports_are_reported(module: str, source: str, said: str) -> None:
    [line] = breaches(module, source)
    assert line.startswith(module)
    assert said in line


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("weft.kernel.netlink", "from pyroute2.netlink.rtnl import ifinfmsg"),
        ("weft.kernel.netlink.links", "import pyroute2"),
        ("weft.processes", "import subprocess"),
        ("weft.kernel.netns", "import ctypes, os"),
        ("cni_plugin.drivers.bridge", "from weft.kernel.values import Link"),
        ("cni_plugin.ops.links", "from . import addresses\nfrom weft.kernel.values import Link"),
        ("cni_plugin.wire.versions", "from weft import __version__"),
        ("cni_plugin.service.verbs", "from cni_plugin.service import executor"),
        ("cni_plugin.cli.main", "import click\nfrom cni_plugin.service import verbs"),
        ("discovery.balancer.table", "from weft.kernel.values import Element\nimport store"),
    ],
)
def test_allowed_imports_pass(module: str, source: str) -> None:
    assert breaches(module, source) == []


def test_cycles_are_found() -> None:
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}) == ["a", "b", "c"]


def test_relative_imports_of_a_package_are_resolved() -> None:
    [line] = breaches("cni_plugin.ops", "from ..service import verbs", is_package=True)
    assert "imports cni_plugin.service.verbs" in line
    assert breaches("cni_plugin.ops", "from . import links", is_package=True) == []
