"""Operations on other firewalls of this host: what they must let pass for a network of weft.

A packet that one base chain drops is not saved by another's accept, so where Docker, ufw or firewalld
drops what is not its own, only its own mechanism lets weft's packets pass. They get to weft's table
then, which decides: an accept here opens nothing that ``isolation`` closes.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import groupby

from cni_plugin.ops.operation import Machine, Operation
from weft.errors import KernelRefused
from weft.identity import mark
from weft.kernel.firewall_chains import OWN_CHAIN, Firewalls, UserChain, hook_of
from weft.kernel.interface import Namespace
from weft.types import Address, Subnet

CHAIN = OWN_CHAIN
TRUSTED = "trusted"
_DOCKER_USER = "DOCKER-USER"
_DOCKERS_OWN = ("docker0", "docker_gwbridge")
_DOCKERS_NAME = re.compile(r"br-[0-9a-f]{12}")
_LINK_OPTION = re.compile(r"(?:-i|-o) (\S+)")
_PROGRAMS = {4: "iptables", 6: "ip6tables"}
_ATTEMPTS = 5  # of a change, where another call makes the same chain meanwhile


def commented(mark: str) -> str:
    """The match that has the mark as its comment."""
    return f'-m comment --comment "{mark}"'


@dataclass(frozen=True, slots=True)
class PassedOn(Operation):
    """Other firewalls let a network's packets pass, in both directions, as far as weft's table allows.

    In Docker's DOCKER-USER before all other rules, in ufw's chain of route rules after them, and in
    firewalld by the zone ``trusted``, unless another was chosen. Between a link of weft and one of
    Docker's, Docker's own rules decide. A host is left alone without these firewalls, or if they drop
    nothing: Docker does only if it was the one to enable forwarding.

    ``link`` is the network's bridge; or ``veth+``, the links of containers, together with the network's
    ``subnets``. ``names``: only questions for names to these addresses of the host, which ufw drops.
    """

    link: str
    mark: str
    subnets: tuple[Subnet, ...] = ()
    names: tuple[Address, ...] = ()

    @property
    def in_firewalls(self) -> bool:
        return True

    def apply(self, machine: Machine) -> bool:
        host, changed = machine.host, False
        there = host.firewalls()
        for version, backend, chains in _grouped(there.user_chains):
            # No reason to fail: iptables may be missing here, or refuse a table that nft has changed, and
            # the administrator may let the packets pass in another way. ``mismatch`` tells.
            with contextlib.suppress(KernelRefused):
                changed |= _change(host, version, backend, partial(self._missing, host, chains))
        with contextlib.suppress(KernelRefused):
            for place in self._zoneless(host) if there.firewalld else ():
                host.set_firewalld_zone(place, TRUSTED)
                changed = True
        return changed

    def undo(self, machine: Machine) -> None:
        host = machine.host
        remove_rules(host, {self.mark})
        for place in self._places if host.firewalls().firewalld else ():
            # A zone that the administrator's files give it is theirs.
            if host.firewalld_zone(place) == TRUSTED and not host.firewalld_zone(place, permanent=True):
                host.set_firewalld_zone(place, "")

    def mismatch(self, machine: Machine) -> str | None:
        there = machine.host.firewalls()
        for chain in there.user_chains:
            if chain.drops and (wanted := len(self._rules(chain))):
                program = _PROGRAMS[chain.version]
                if chain.seen.count(self.mark) < wanted:
                    return f"{program} lacks the rules for {self._about} in {chain.name}"
                if not self.names and not _has_own_chain(there, chain):
                    return f"{program} lacks rules in weft's chain {CHAIN}, or has others there"
        try:
            place = next(self._zoneless(machine.host), "") if there.firewalld else ""
        except KernelRefused as error:
            return error.message
        return f"firewalld has {place} in no zone, so it rejects what comes from there" if place else None

    def commands(self, namespace: str) -> tuple[str, ...]:
        if self.names:
            return tuple(f"# where ufw drops: ufw allow in on {self.link} to {one} port 53" for one in self.names)
        ways = [way for version in (4, 6) for way in self._ways(version)]
        return (
            *(f"# where Docker drops: iptables -I {_DOCKER_USER} {way} -j ACCEPT" for way in dict.fromkeys(ways)),
            *(f"# with firewalld: firewall-cmd --zone={TRUSTED} {_option(place)}={place}" for place in self._places),
        )

    @property
    def _places(self) -> tuple[str, ...]:
        """What is put in a zone of firewalld: interfaces or sources."""
        return tuple(map(str, self.subnets)) or (self.link,)

    @property
    def _about(self) -> str:
        return ", ".join(self._places)

    def _zoneless(self, host: Namespace) -> Iterator[str]:
        return (place for place in self._places if host.firewalld_zone(place) == "")

    def _missing(self, host: Namespace, chains: list[UserChain], there: tuple[str, ...]) -> list[str]:
        """The lines that add what a table lacks, and delete rules of this operation that see no packet."""
        lines: list[str] = []
        if not self.names and any(map(self._rules, chains)):
            if former := _renamed(there):
                lines.append(f"-E {former} {CHAIN}")  # what jumps to it goes on doing so
                name = re.compile(rf"(^:|^-A | -j ){re.escape(former)}(?= |$)")
                there = tuple(name.sub(rf"\g<1>{CHAIN}", line) for line in there)
            lines += _chain_lines(host, there)
        for chain in chains:
            wanted = self._rules(chain)
            rules = [line for line in there if line.startswith(f"-A {chain.name} ")]
            mine = [line for line in rules if commented(self.mark) in line]
            end = f"-A {chain.name} -j RETURN"
            seen = rules[: rules.index(end)] if end in rules else rules
            lines += [f"-D {line[3:]}" for line in mine if line not in seen or line not in wanted]
            kept = [line for line in seen if line not in mine or line in wanted]
            # In Docker's chain before all others; elsewhere after them, as far as they see packets.
            place = 1 if chain.name == _DOCKER_USER else len(kept) + 1 if len(seen) < len(rules) else 0
            new = [line for line in wanted if line not in kept]
            lines += [line.replace(f"-A {chain.name}", f"-I {chain.name} {place}") if place else line for line in new]
        return lines

    def _rules(self, chain: UserChain) -> list[str]:
        """The rules for the network in a chain, as iptables-save prints them."""
        about, version = commented(self.mark), chain.version
        is_input = hook_of(chain.name) == "INPUT"
        if is_input != bool(self.names):
            return []
        if not is_input:
            return [f"-A {chain.name} {way} {about} -j {CHAIN}" for way in self._ways(version)]
        return [
            f"-A {chain.name} {source}-d {one}/{one.max_prefixlen} -i {self.link} "
            f"-p {protocol} -m {protocol} --dport 53 {about} -j ACCEPT"
            for one in self.names
            if one.version == version
            for source in ([f"-s {each} " for each in self.subnets if each.version == version] or [""])
            for protocol in ("udp", "tcp")
        ]

    def _ways(self, version: int) -> list[str]:
        """What matches the network's packets, those from it and those to it."""
        subnets = [each for each in self.subnets if each.version == version]
        if self.subnets:
            return [f"{end} {each} {way} {self.link}" for each in subnets for end, way in (("-s", "-i"), ("-d", "-o"))]
        return [f"{way} {self.link}" for way in ("-i", "-o")]


def passed_on(link: str, subnets: Iterable[Subnet], *, bridged: bool, names: tuple[Address, ...] = ()) -> PassedOn:
    """The operation for a network behind ``link``: its bridge, or a container's veth link."""
    given = () if bridged else tuple(dict.fromkeys(subnets))
    link = link if bridged else "veth+"
    return PassedOn(link, mark("names" if names else "passed", link, *map(str, given)), given, names)


def _option(place: str) -> str:
    return "--add-source" if "/" in place else "--add-interface"


def remove_rules(host: Namespace, marks: set[str]) -> None:
    """Remove the rules with these marks from other firewalls' chains, and ``CHAIN`` with the last jump
    to it.
    """
    for version, backend, chains in _grouped(host.firewalls().user_chains):
        if any(marks.intersection(chain.marks) for chain in chains):
            _change(host, version, backend, partial(_removal, marks))


def _change(host: Namespace, version: int, backend: str, lines: Callable[[tuple[str, ...]], list[str]]) -> bool:
    """Change the table filter by the lines that its state asks for; whether there were any."""
    for attempt in range(_ATTEMPTS):
        wanted = lines(host.iptables(version, "filter", backend))
        try:
            if wanted:
                host.change_iptables(version, "filter", wanted, backend)
            return bool(wanted)
        except KernelRefused:
            if attempt == _ATTEMPTS - 1:
                raise
    raise AssertionError("unreachable")


def _removal(marks: set[str], there: tuple[str, ...]) -> list[str]:
    every = [line for line in there if line.startswith("-A ")]
    mine = [line for line in every if any(commented(mark) in line for mark in marks)]
    lines = [f"-D {line[3:]}" for line in mine]
    others = any(line.endswith(f"-j {CHAIN}") for line in every if line not in mine)
    if not others and any(line.startswith(f":{CHAIN} ") for line in there):
        lines += [f"-F {CHAIN}", f"-X {CHAIN}"]
    return lines


def _grouped(chains: Iterable[UserChain]) -> list[tuple[int, str, list[UserChain]]]:
    """The chains of one table, by IP version and backend."""
    ordered = sorted(chains, key=lambda chain: (chain.version, chain.backend))
    groups = groupby(ordered, key=lambda chain: (chain.version, chain.backend))
    return [(version, backend, list(group)) for (version, backend), group in groups]


def _chain_lines(host: Namespace, there: tuple[str, ...]) -> list[str]:
    """The lines that make ``CHAIN`` what it should be, [] if it is: it accepts, but leaves to Docker's
    rules what goes to or comes from Docker's links.
    """
    docker = _docker_links(there)
    rules = [f"{way} {link} -j RETURN" for link in docker for way in ("-o", "-i")]
    if docker:
        # br- and 12 hexadecimal digits are a network's that Docker has yet to create.
        links = (link.name for link in host.links() if link.name.startswith("br-"))
        for name in sorted(name for name in links if name not in docker and not _DOCKERS_NAME.fullmatch(name)):
            rules += [f"{way} {name} -j ACCEPT" for way in ("-o", "-i")]
        rules += [f"{way} br-+ -j RETURN" for way in ("-o", "-i")]
    rules.append("-j ACCEPT")
    marks = _own_marks(len(rules))
    wanted = [
        f"-A {CHAIN} {match}{commented(mark)} -j {target}"
        for mark, (match, _, target) in zip(marks, (rule.rpartition("-j ") for rule in rules), strict=True)
    ]
    if [line for line in there if line.startswith(f"-A {CHAIN} ")] == wanted:
        return []
    declared = any(line.startswith(f":{CHAIN} ") for line in there)
    return [f"-F {CHAIN}" if declared else f"-N {CHAIN}", *wanted]


def _own_marks(count: int) -> tuple[str, ...]:
    """The comments of the rules in ``CHAIN``, in their order: what is missing or moved there shows without
    running iptables-save.
    """
    return tuple(mark("forward", str(number), str(count)) for number in range(count))


def _has_own_chain(there: Firewalls, chain: UserChain) -> bool:
    """Whether ``CHAIN`` of a chain's table has all of its rules and no others."""
    return any(
        (one.version, one.backend) == (chain.version, chain.backend)
        and one.rules
        and one.rules == _own_marks(len(one.rules))
        for one in there.own_chains
    )


def _renamed(there: tuple[str, ...]) -> str:
    """The name that another program has given to ``CHAIN``, "" while there is one of that name."""
    names = [line[1:].split(" ")[0] for line in there if line.startswith(":")]
    for name in () if CHAIN in names else names:
        rules = [line for line in there if line.startswith(f"-A {name} ")]
        marks = _own_marks(len(rules))
        if rules and all(commented(mark) in line for mark, line in zip(marks, rules, strict=True)):
            return name
    return ""


def _docker_links(there: tuple[str, ...]) -> list[str]:
    """The names of Docker's links, those in its rules among them; [] without Docker."""
    if not any(line.startswith(f":{_DOCKER_USER} ") for line in there):
        return []
    named = (name for line in there if _is_dockers(line) for name in _LINK_OPTION.findall(line))
    return sorted({*_DOCKERS_OWN, *(name for name in named if not name.endswith("+"))})


def _is_dockers(line: str) -> bool:
    """Whether it is a rule of a chain of Docker's, or one that jumps there."""
    chain, target = line.split(" ")[1], line.rpartition(" -j ")[2].split(" ")[0]
    return (chain.startswith("DOCKER") and chain != _DOCKER_USER) or target == "DOCKER"
