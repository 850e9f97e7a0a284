"""Probing of kernel features, each by using it in a temporary network namespace.

Kernel versions, configurations and module lists are no proof: a module may fail to load, a
capability may be missing, /proc may be read-only. The host's own network is not changed.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from weft.errors import KernelRefused, WeftError
from weft.kernel.interface import Namespace, VethPeer

_CAPABILITIES = {"CAP_NET_ADMIN": 12, "CAP_SYS_ADMIN": 21}  # linux/capability.h


@dataclass(frozen=True, slots=True)
class Ability:
    """A probed feature: its name, what needs it, and why it is unavailable ("" if it is available).

    ``essential``: weft cannot attach any container without it.
    """

    name: str
    serves: str
    problem: str = ""
    essential: bool = False


@dataclass(frozen=True, slots=True)
class LinkTrial:
    """A kind of link to probe: its name, what needs it, and whether it has a parent link."""

    name: str
    serves: str
    kind: str
    options: tuple[tuple[str, int | str], ...] = ()
    on_parent: bool = False


_RULES: tuple[tuple[str, str, str], ...] = (
    ("nftables, inet family", "masquerade, portmap and all other rules", "add table inet weft-probe\n"),
    ("nftables, bridge family", "protection against forged addresses", "add table bridge weft-probe\n"),
    ("nftables, netdev family", "rules in a link's ingress hook", "add table netdev weft-probe\n"),
    (
        "nftables fib",
        "portmap",
        "table inet weft-fib {\nchain c {\ntype filter hook input priority 0;\nfib daddr type local accept\n}\n}\n",
    ),
    (
        "nftables nat",
        "masquerade and portmap",
        "table inet weft-nat {\nchain c {\ntype nat hook postrouting priority 100;\nmasquerade\n}\n}\n",
    ),
)
"""nft scripts to probe."""

_SETTINGS = (
    ("IPv4 forwarding", "every network with a gateway", "net/ipv4/ip_forward"),
    ("IPv6 forwarding", "IPv6 networks with a gateway", "net/ipv6/conf/all/forwarding"),
)


def abilities(ruleset: str, links: Sequence[LinkTrial]) -> tuple[Ability, ...]:
    """Probe everything that weft may need, with ``links`` and the nft script ``ruleset``.

    Raises nothing.
    """
    found = privileges()
    if any(one.problem for one in found):
        return found
    from weft.kernel.nft.connection import in_new_namespace

    try:
        return (*found, *in_new_namespace(lambda: _probe_all(ruleset, links)))
    except WeftError as error:
        why = f"{error.message}; nothing else was probed"
        return (*found, Ability("network namespaces", "every container", why, essential=True))


def privileges() -> tuple[Ability, ...]:
    """The capabilities(7) that weft needs, and whether this process has them."""
    return tuple(_privilege(name) for name in _CAPABILITIES)


@contextlib.contextmanager
def empty_namespace() -> Iterator[str]:
    """The path of a new network namespace, removed after the block. Raises KernelRefused."""
    from threading import Event, Thread, get_native_id

    from weft.kernel.nft.library import leave_namespace

    ready, over = Event(), Event()
    found: list[str] = []
    failures: list[WeftError] = []

    def stay() -> None:
        try:
            leave_namespace()
            found.append(f"/proc/{os.getpid()}/task/{get_native_id()}/ns/net")
        except KernelRefused as error:
            failures.append(error)
        ready.set()
        over.wait()

    thread = Thread(target=stay, daemon=True)
    thread.start()
    ready.wait()
    try:
        if failures:
            raise failures[0]
        yield found[0]
    finally:
        over.set()
        thread.join()


def _privilege(name: str) -> Ability:
    """Whether this process has a capability. Source: ``proc_pid_status(5)``, CapEff."""
    with open("/proc/self/status", encoding="ascii", errors="replace") as status:
        effective = next((int(line.split()[1], 16) for line in status if line.startswith("CapEff:")), 0)
    lacking = not effective >> _CAPABILITIES[name] & 1
    return Ability(
        name, "everything", "not in this process's effective set: run as root" if lacking else "", essential=True
    )


def _probe_all(ruleset: str, links: Sequence[LinkTrial]) -> list[Ability]:
    """Probe links, rules and sysctls in the thread's network namespace."""
    from weft.kernel.linux.kernel import LinuxKernel

    kernel = LinuxKernel()
    try:
        host = kernel.host
        found = [_attempt("veth pairs", "drivers bridge and ptp", lambda: _pair(host), essential=True)]
        found += [
            _attempt(one.name, one.serves, lambda number=number, one=one: _link(host, f"weft{number}", one))  # type: ignore[misc]
            for number, one in enumerate(links)
        ]
        found += _rules(ruleset)
        found += [_ipv6(host)]
        found += [
            _attempt(name, serves, lambda key=key: host.set_sysctl(key, "1"))  # type: ignore[misc]
            for name, serves, key in _SETTINGS
        ]
    finally:
        kernel.close()
    return found


def _pair(host: Namespace) -> None:
    host.add_link("wefta", "veth", up=True, peer=VethPeer("weftb", up=True))


def _link(host: Namespace, name: str, trial: LinkTrial) -> None:
    parent = f"{name}a" if trial.on_parent else ""
    if parent:  # each its own: a link cannot carry both macvlan and ipvlan links
        host.add_link(parent, "veth", up=True, peer=VethPeer(f"{name}b", up=True))
    host.add_link(name, trial.kind, parent=parent, options=dict(trial.options) or None)


def _rules(ruleset: str) -> list[Ability]:
    from weft.kernel.nft.library import Library, Program

    library = _attempt("libnftables", "fast changes of rules", lambda: Library().close())
    try:
        run = Program() if library.problem else Library()
    except WeftError as error:
        return [Ability("nftables", "masquerade, portmap and all other rules", error.message, essential=True)]
    found = [library]
    try:
        scripts = (*_RULES, ("weft's rules", "masquerade and portmap", ruleset))
        for number, (name, serves, script) in enumerate(scripts):
            _, errors = run.run(script)
            sentence = errors.strip().splitlines()[0] if errors.strip() else ""
            found.append(Ability(name, serves, sentence, essential=number == 0))
    finally:
        run.close()
    return found


def _ipv6(host: Namespace) -> Ability:
    disabled = host.sysctl("net/ipv6/conf/all/disable_ipv6")
    problem = {None: "this kernel has no IPv6", "1": "IPv6 is disabled in new namespaces"}.get(disabled, "")
    return Ability("IPv6", "IPv6 networks", problem)


def _attempt(name: str, serves: str, work: Callable[[], None], *, essential: bool = False) -> Ability:
    try:
        work()
    except (WeftError, OSError) as error:
        hint = error.hint if isinstance(error, WeftError) else ""
        return Ability(name, serves, hint or str(error), essential)
    return Ability(name, serves, "", essential)
