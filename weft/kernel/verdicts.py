"""What other firewalls' base chains do with a packet, as far as their rules tell: for ``weft doctor``.

Rules are read as ``iptables-save`` and ``nft --json`` print them. A condition that is not understood
may hold or not: such a rule is never the reason to say that a packet is dropped. Sources:
iptables(8), iptables-extensions(8), libnftables-json(5).
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from ipaddress import ip_address, ip_network

Json = Mapping[str, object]
ACCEPT, DROP, RETURN = "accept", "drop", "return"
_UNKNOWN = "unknown"
_DEPTH = 16  # jumps within jumps, as many as the kernel allows


@dataclass(frozen=True, slots=True)
class Packet:
    """The first packet of a connection, or a ``reply``. ``outgoing`` is "" for one to the host itself."""

    incoming: str
    outgoing: str = ""
    source: str = ""
    destination: str = ""
    protocol: str = ""
    port: int = 0
    translated: bool = False
    """Whether it is to a published port."""
    reply: bool = False


@dataclass(frozen=True, slots=True)
class Match:
    """A condition: one of ``values``, or with ``negated`` none of them; () is never known."""

    key: str
    values: tuple[str, ...] = ()
    negated: bool = False


@dataclass(frozen=True, slots=True)
class Rule:
    """Conditions and a verdict: accept, drop, return, ``jump CHAIN``, ``goto CHAIN``, or "" for none."""

    matches: tuple[Match, ...]
    verdict: str


@dataclass(frozen=True, slots=True)
class BaseChain:
    """A base chain of the hook ``forward`` or ``input``, with the chains of its table.

    ``owner`` is ``iptables``, ``ip6tables``, the same with ``-legacy``, or ``nft FAMILY TABLE``.
    """

    owner: str
    name: str
    hook: str
    policy: str
    versions: tuple[int, ...]
    chains: Mapping[str, tuple[Rule, ...]] = field(repr=False)

    def drops(self, packet: Packet) -> bool:
        """Whether the packet is certainly dropped here."""
        verdict = self._verdict(self.name, packet, 0)
        return (verdict or self.policy) == DROP

    def _verdict(self, chain: str, packet: Packet, depth: int) -> str:
        """accept, drop, unknown, or "" at the end of the chain."""
        perhaps = depth > _DEPTH
        for rule in self.chains.get(chain, ()):
            holds = _holds(rule.matches, packet)
            if holds is False:
                continue
            verb, _, target = rule.verdict.partition(" ")
            verdict = self._verdict(target, packet, depth + 1) if verb in ("jump", "goto") and not perhaps else verb
            if holds is None or verdict == _UNKNOWN:
                # It might be accepted here, or leave the chain before it is dropped.
                perhaps |= verdict in (ACCEPT, RETURN, _UNKNOWN) or verb == "goto"
            elif verdict in (ACCEPT, DROP):
                return _UNKNOWN if perhaps and verdict == DROP else verdict
            elif verdict == RETURN or verb == "goto":
                break
        return _UNKNOWN if perhaps else ""

    def accepting(self, packet: Packet) -> str:
        """The command that accepts such packets, before all other rules.

        Links may be patterns with "+"; addresses count where they are subnets.
        """
        ends = [(packet.source, "-s", "saddr"), (packet.destination, "-d", "daddr")]
        subnets = [(value, option, key) for value, option, key in ends if "/" in value]
        if not self.owner.startswith("nft "):
            words = [f"{option} {value}" for value, option, _ in subnets]
            words += [f"-i {packet.incoming}"] if packet.incoming else []
            words += [f"-o {packet.outgoing}"] if packet.outgoing else []
            words += [f"-p {packet.protocol} --dport {packet.port}"] if packet.port else []
            words += ["-m conntrack --ctstate RELATED,ESTABLISHED"] if packet.reply else []
            return f"{self.owner} -I {self.name} {' '.join(words)} -j ACCEPT"
        words = [f"{'ip6' if ':' in value else 'ip'} {key} {value}" for value, _, key in subnets]
        words += [f'iifname "{packet.incoming.replace("+", "*")}"'] if packet.incoming else []
        words += [f'oifname "{packet.outgoing.replace("+", "*")}"'] if packet.outgoing else []
        words += [f"{packet.protocol} dport {packet.port}"] if packet.port else []
        words += ["ct state established,related"] if packet.reply else []
        return f"nft 'insert rule {self.owner[4:]} {self.name} {' '.join(words)} accept'"

    def __str__(self) -> str:
        if self.owner.startswith("nft "):
            return f"the chain {self.name} of the nftables table {self.owner[4:]}"
        return f"the chain {self.name} of {self.owner}"


def _holds(matches: Iterable[Match], packet: Packet) -> bool | None:
    """Whether all conditions hold, None if that is not known."""
    known = True
    for match in matches:
        found = _matches(match, packet)
        if found is None:
            known = False
        elif found is match.negated:
            return False
    return True if known else None


def _matches(match: Match, packet: Packet) -> bool | None:
    """Whether one of a condition's values is the packet's."""
    if not match.values:
        return None
    match match.key:
        case "iifname":
            return any(_is_link(value, packet.incoming) for value in match.values)
        case "oifname":
            return any(_is_link(value, packet.outgoing) for value in match.values)
        case "saddr":
            return _is_within(packet.source, match.values)
        case "daddr":
            return _is_within(packet.destination, match.values)
        case "state":
            state = "established" if packet.reply else "new"
            return state in match.values or ("dnat" in match.values and packet.translated)
        case "status":
            return packet.translated if match.values == ("dnat",) else None
        case "l4proto":
            return packet.protocol in match.values if packet.protocol else None
        case "dport":
            is_known = packet.port and all(value.isdigit() for value in match.values)
            return str(packet.port) in match.values if is_known else None
    return None


def _is_link(pattern: str, name: str) -> bool:
    return name.startswith(pattern[:-1]) if pattern.endswith(("*", "+")) else name == pattern


def _is_within(address: str, networks: tuple[str, ...]) -> bool | None:
    if not address:
        return None
    try:
        return any(ip_address(address) in ip_network(each, strict=False) for each in networks)
    except (ValueError, TypeError):  # a range, or a named set
        return None


# iptables

_HOOKS = {"FORWARD": "forward", "INPUT": "input"}
_KEYS = {
    "-i": "iifname", "-o": "oifname", "-s": "saddr", "-d": "daddr", "-p": "l4proto", "--dport": "dport",
    "--ctstate": "state", "--state": "state",
}  # fmt: skip
_NO_CONDITION = ("-m", "--comment", "--reject-with", "-c", "--log-prefix", "--log-level")
_TARGETS = {"ACCEPT": ACCEPT, "DROP": DROP, "REJECT": DROP, "RETURN": RETURN}
_NO_VERDICT = ("LOG", "NFLOG", "MARK", "CONNMARK", "TCPMSS", "CT", "TRACE")


def of_iptables(lines: Iterable[str], owner: str, version: int) -> tuple[BaseChain, ...]:
    """The base chains FORWARD and INPUT of a table filter, from the lines of iptables-save."""
    policies: dict[str, str] = {}
    chains: dict[str, list[Rule]] = {}
    for line in lines:
        if line.startswith(":"):
            name, policy = line[1:].split()[:2]
            chains[name] = []
            policies[name] = policy.lower()
        elif line.startswith("-A "):
            words = shlex.split(line)
            chains.setdefault(words[1], []).append(_rule(words[2:]))
    found = {name: tuple(rules) for name, rules in chains.items()}
    return tuple(
        BaseChain(owner, name, hook, policies[name], (version,), found)
        for name, hook in _HOOKS.items()
        if name in policies
    )


def _rule(words: list[str]) -> Rule:
    matches: list[Match] = []
    verdict, negated = "", False
    rest = iter(words)
    for word in rest:
        if word == "!":
            negated = True
            continue
        if word in ("-j", "-g"):
            target = next(rest, "")
            default = "" if target in _NO_VERDICT else f"{'jump' if word == '-j' else 'goto'} {target}"
            verdict = _TARGETS.get(target, default)
        elif word in _KEYS:
            values = tuple(value.lower() if _KEYS[word] == "state" else value for value in next(rest, "").split(","))
            matches.append(Match(_KEYS[word], values, negated))
        elif word in _NO_CONDITION:
            next(rest, "")
        elif word.startswith("-"):
            matches.append(Match(word))
        negated = False
    return Rule(tuple(matches), verdict)


# nftables

_FAMILIES = {"ip": (4,), "ip6": (6,), "inet": (4, 6)}
_VERDICTS = {"accept": ACCEPT, "drop": DROP, "reject": DROP, "return": RETURN}


def of_nftables(document: Iterable[Json], leave: Iterable[str]) -> tuple[BaseChain, ...]:
    """The base chains of the hooks forward and input, without those of tables to ``leave``."""
    chains: dict[str, dict[str, list[Rule]]] = {}
    bases: list[tuple[str, Json]] = []
    for one in document:
        if isinstance(chain := one.get("chain"), dict):
            table = f"{chain['family']} {chain['table']}"
            chains.setdefault(table, {})[chain["name"]] = []
            if chain.get("hook") in _HOOKS.values() and chain["family"] in _FAMILIES:
                bases.append((table, chain))
        elif isinstance(rule := one.get("rule"), dict):
            of_table = chains[f"{rule['family']} {rule['table']}"]
            of_table[rule["chain"]] += _rules(rule["expr"])
    return tuple(
        BaseChain(
            f"nft {table}",
            str(chain["name"]),
            str(chain["hook"]),
            str(chain.get("policy", ACCEPT)),
            _FAMILIES[table.split()[0]],
            {name: tuple(rules) for name, rules in chains[table].items()},
        )
        for table, chain in bases
        if table not in leave
    )


def _rules(expressions: list[Json]) -> list[Rule]:
    """The rule; with a verdict map, a rule for each of its elements."""
    matches: list[Match] = []
    for expression in expressions:
        for kind, value in expression.items():
            if kind == "match" and isinstance(value, dict):
                found = Match(_key(value["left"]), tuple(_values(value["right"])), value["op"] == "!=")
                matches += [found if value["op"] in ("==", "!=", "in") else Match("op"), *_implied(value["left"])]
            elif kind == "vmap" and isinstance(value, dict):
                data = value["data"]
                elements = data["set"] if isinstance(data, dict) else []
                key = _key(value["key"])
                mapped = [Rule((*matches, Match(key, tuple(_values(one)))), _verdict(to)) for one, to in elements]
                return mapped or [Rule((*matches, Match(key)), ACCEPT)]
            elif kind in _VERDICTS or kind in ("jump", "goto"):
                return [Rule(tuple(matches), _verdict(expression))]
            elif kind == "xt":  # of iptables-nft, whose rules are read by iptables-save
                return [Rule((*matches, Match(kind)), ACCEPT)]
    return [Rule(tuple(matches), "")]


def _verdict(expression: Json) -> str:
    for kind, value in expression.items():
        if kind in ("jump", "goto") and isinstance(value, dict):
            return f"{kind} {value['target']}"
        if kind in _VERDICTS:
            return _VERDICTS[kind]
    return ""


def _key(left: Json) -> str:
    """The name of what is compared: of link, address, port, protocol, or of conntrack."""
    for kind, value in left.items():
        if isinstance(value, dict):
            key = str(value.get("key") or value.get("field") or "")
            return {"iif": "iifname", "oif": "oifname"}.get(key, key) if kind in ("meta", "ct", "payload") else ""
    return ""


def _implied(left: Json) -> tuple[Match, ...]:
    """The protocol that ``tcp dport`` asks for as well."""
    payload = left.get("payload")
    protocol = str(payload.get("protocol")) if isinstance(payload, dict) else ""
    return (Match("l4proto", (protocol,)),) if protocol in ("tcp", "udp", "sctp") else ()


def _values(right: object) -> Iterator[str]:
    """The values as text; nothing for a named set, whose elements are not known here."""
    if isinstance(right, list):
        for each in right:
            yield from _values(each)
    elif isinstance(right, dict):
        if isinstance(prefix := right.get("prefix"), dict):
            yield f"{prefix['addr']}/{prefix['len']}"
        elif "set" in right:
            yield from _values(right["set"])
        elif "range" in right:
            yield "-".join(map(str, right["range"]))
    elif not str(right).startswith("@"):
        yield {"6": "tcp", "17": "udp"}.get(str(right), str(right))
