"""The agent's configuration, ``weft.toml``: every key is validated, and an unknown key is an error.

Without the file all keys have their defaults. Source: conf/weft.toml, which names each key with its
default.
"""

from __future__ import annotations

import json
import re
import socket
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from hashlib import sha256
from ipaddress import IPv4Network, IPv6Network, ip_network
from pathlib import Path

from cluster.local import Files, Local
from discovery.api.settings import AclSettings, TlsSettings
from discovery.api.settings import HttpSettings as Serving
from discovery.balancer.settings import BalancerSettings, Mode
from discovery.consul.durations import MAX_SECONDS, parse_duration
from discovery.dns.codec import DEFAULT_UDP_SIZE, encode_name
from discovery.dns.settings import DnsSettings as Naming
from discovery.dns.settings import ListenAddress
from discovery.dns.upstreams import parse_upstream
from discovery.structs import MAX_TTL
from store.etcd.settings import EtcdSettings
from weft import configuration, files, uplink
from weft.errors import ConfigProblem, StateDamaged
from weft.section import Problems, Section, similar

DATA = "/var/lib/weft"
DEFINITIONS = "/etc/weft/services.d"
Given = Mapping[str, Mapping[str, object]]
"""Keys of the configuration by section."""
_KEYS: Mapping[str, frozenset[str]] = {
    "agent": frozenset({"node", "datacenter", "address", "data", "meta", "definitions"}),
    "http": frozenset({"listen", "hosts", "readers", "writers"}),
    "acl": frozenset({"enabled", "default_policy", "tokens"}),
    "store": frozenset({"endpoints", "ca", "cert", "key", "user", "password_file", "prefix", "cluster"}),
    "tls": frozenset({"ca_file", "cert_file", "key_file", "verify_incoming"}),
    "dns": frozenset(
        {
            *(
                "listen",
                "domains",
                "recursors",
                "resolv_conf",
                "only_passing",
                "node_ttl",
                "service_ttl",
                "network_ttl",
            ),
            *("answer_limit", "udp_size", "enabled", "alias_domains"),
        }
    ),
    "checks": frozenset({"scripts"}),
    "uplink": uplink.KEYS,
    "balancer": frozenset(
        {"enabled", "mode", "ranges", "allowed", "outside", "published_from", "published_to", "drain", "keep"}
    ),
}
_USER = re.compile(r"\*|@?[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}\$?")
_ENDPOINT = re.compile(r"(https?)://(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+):(\d{1,5})/?")
_PREFIX = re.compile(r"(?:/[A-Za-z0-9._-]+)+")
_NODE = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_.-]{0,126}[A-Za-z0-9_])?\Z")


@dataclass(frozen=True, slots=True)
class Settings:
    """The agent's settings. ``address`` "": the first address of the default route's link; ``data`` is
    a folder; without ``store``, an etcd cluster, the catalog is a file in it. ``cluster`` is this host's part in
    a cluster that ``weft cluster`` has made, in ``cluster_folder``.
    """

    node: str
    datacenter: str = "dc1"
    address: str = ""
    data: str = ""
    meta: Mapping[str, str] = field(default_factory=dict)
    http: Serving = field(default_factory=Serving)
    dns: Naming | None = field(default_factory=Naming)
    scripts: bool = False
    balancing: BalancerSettings | None = None
    store: EtcdSettings | None = None
    cluster: Local | None = None
    cluster_folder: str = ""
    definitions: str = DEFINITIONS
    digests: Mapping[str, str] = field(default_factory=dict, compare=False)
    """A hash of each section of the file: a running agent reports those that it was started with."""


def read(path: str = "", given: Given | None = None) -> Settings:
    """Read the file, by default ``/etc/weft/weft.toml`` if it exists. ``given`` are keys that win over its.

    Raises ConfigProblem with all errors in it.
    """
    named = path or configuration.named()
    where = Path(named or configuration.PATH)
    try:
        found = tomllib.loads(files.read(str(where), own=False).decode("utf-8"))
    except FileNotFoundError:
        if named:
            raise ConfigProblem(f"{where} not found", hint="conf/weft.toml is an example") from None
        found = {}
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigProblem(f"cannot read {where}: {error}") from error
    # [uplink] is read by each ADD, and not by the agent.
    digests = {name: _digest(table) for name, table in found.items() if table and name != "uplink"}
    for name, keys in (given or {}).items():
        own = found.get(name)
        found[name] = {**(own if isinstance(own, dict) else {}), **keys}
    problems = Problems()
    _check_keys(found, problems)
    whole = Section(found, "", problems)
    settings = _settings(whole)
    if problems.found:
        raise ConfigProblem(
            f"{where}: {'; '.join(problems.found)}", hint="correct the file; conf/weft.toml explains it"
        )
    return replace(settings, digests=digests)


def _digest(table: object) -> str:
    return sha256(json.dumps(table, sort_keys=True, default=str).encode()).hexdigest()[:16]


def _check_keys(found: Mapping[str, object], problems: Problems) -> None:
    for name, table in found.items():
        if name not in _KEYS:
            sections = ", ".join(f"[{one}]" for one in _KEYS)
            problems.add(f"unknown section [{name}]{similar(name, _KEYS)}; valid sections: {sections}")
        elif isinstance(table, dict):
            for key in table.keys() - _KEYS[name]:
                keys = sorted(_KEYS[name])
                problems.add(f"unknown key {name}.{key}{similar(key, keys)}; valid keys: {', '.join(keys)}")


def _settings(whole: Section) -> Settings:
    agent = whole.section("agent")
    node = agent.text("node", socket.gethostname())
    if not _NODE.match(node):
        agent.problem("node", "must be letters, digits, '-', '_' and dots, at most 128")
    datacenter = agent.text("datacenter", "dc1")
    if not _NODE.match(datacenter) or "." in datacenter:
        agent.problem("datacenter", "must be letters, digits, '-' and '_'")
    address = agent.address("address")
    meta = agent.raw("meta") or {}
    if not isinstance(meta, dict) or not all(isinstance(value, str) for value in meta.values()):
        agent.problem("meta", "must be a table of strings")
        meta = {}
    scripts = whole.section("checks").flag("scripts")
    uplink.read(whole.section("uplink"))  # for what attaches containers; invalid values are refused here, too
    dns = _naming(whole.section("dns"), datacenter, node)
    data = agent.text("data")
    acl = _acl(whole.section("acl"), data or DATA)
    cluster = _cluster(whole.section("store"), node)
    store: EtcdSettings | None = None
    if cluster is not None:
        store = Files(whole.section("store").text("cluster")).settings(cluster)
    elif "store" in whole and "cluster" not in whole.section("store"):
        store = _store(whole.section("store"))
    http = replace(_serving(whole.section("http"), scripts, acl), tls=_tls(whole.section("tls")))
    return Settings(
        node=node,
        datacenter=datacenter,
        address=str(address) if address is not None else "",
        data=data,
        meta=meta,
        http=replace(http, domains=dns.domains) if dns is not None else http,
        dns=dns,
        scripts=scripts,
        balancing=_balancing(whole.section("balancer"), node),
        store=store,
        cluster=cluster,
        cluster_folder=whole.section("store").text("cluster"),
        definitions=agent.text("definitions") or DEFINITIONS,
    )


def _serving(section: Section, scripts: bool, acl: AclSettings) -> Serving:
    listen = tuple(
        f"[{address}]:{port}" if ":" in address else f"{address}:{port}"
        for address, port in _places(section, "listen", ("127.0.0.1:8500",), 8500)
    )
    # With tokens a request without one is the anonymous token's, also root's, unless this says otherwise.
    usual = () if acl.enabled else Serving().writers
    return Serving(
        listen=listen,
        hosts=section.texts("hosts"),
        scripts=scripts,
        readers=_users(section, "readers"),
        writers=_users(section, "writers") if "writers" in section else usual,
        acl=acl,
    )


def _users(section: Section, key: str) -> tuple[str, ...]:
    """Users, and groups as ``@group``."""
    names = section.texts(key)
    for name in names:
        if not _USER.fullmatch(name):
            section.problem(key, f'holds {name!r}; write "user", "@group", a numeric id, or "*" for everybody')
    return names


def _acl(section: Section, data: str) -> AclSettings:
    tokens = section.section("tokens")
    given = section.raw("tokens")
    for key in given.keys() - {"initial_management", "default"} if isinstance(given, dict) else ():
        tokens.problem(
            key, "is not used: weft's agent writes to its store itself; valid keys: default, initial_management"
        )
    return AclSettings(
        enabled=section.flag("enabled"),
        allow=section.text("default_policy", "deny", choices=("allow", "deny")) == "allow",
        initial_management=tokens.text("initial_management"),
        default=tokens.text("default"),
        data=data,
    )


def _tls(section: Section) -> TlsSettings | None:
    ca, certificate, key = (section.text(name) for name in ("ca_file", "cert_file", "key_file"))
    verify = section.flag("verify_incoming")
    if bool(certificate) != bool(key):
        section.problem("cert_file", "and tls.key_file must be set together")
    if verify and not (ca and certificate):
        section.problem("verify_incoming", "needs tls.ca_file, tls.cert_file and tls.key_file")
    return TlsSettings(certificate, key, ca, verify) if certificate and key else None


def _cluster(section: Section, node: str) -> Local | None:
    """This host's part in a cluster of weft's, None without ``store.cluster``."""
    folder = section.text("cluster")
    if not folder:
        return None
    for key in _KEYS["store"] - {"cluster"}:
        if key in section:
            section.problem(key, "cannot be set beside store.cluster, whose folder says it")
    try:
        found = Files(folder).load() if folder.startswith("/") else None
    except StateDamaged as error:
        section.problems.add(error.message)
        return None
    if found is None or not found.endpoints:
        section.problem("cluster", "is no folder that weft cluster init or join has made")
        return None
    if found.node != node:
        section.problems.add(
            f"agent.node is {node!r}, but this host is node {found.node!r} of its cluster: set agent.node, or leave "
            f"the cluster and join it again"
        )
    return found


def _store(section: Section) -> EtcdSettings:
    """The cluster; the folder of its state is set when it is opened."""
    endpoints: list[str] = []
    schemes = set()
    for text in section.texts("endpoints"):
        match = _ENDPOINT.fullmatch(text)
        if match is None or int(match[3]) > 65535:
            section.problem("endpoints", f'holds {text!r}; write "https://10.0.0.1:2379" or "http://name:2379"')
            continue
        schemes.add(match[1])
        endpoints.append(f"{match[2]}:{match[3]}")
    if not endpoints and not section.problems.found:
        section.problem("endpoints", 'must name the cluster, like ["https://10.0.0.1:2379"]')
    if len(schemes) > 1:
        section.problem("endpoints", "must be all https or all http")
    ca, cert, key, user, password = (section.text(one) for one in ("ca", "cert", "key", "user", "password_file"))
    if bool(cert) != bool(key):
        section.problem("cert", "and store.key must be set together")
    if (ca or cert) and "http" in schemes:
        section.problem("ca" if ca else "cert", "is of no use to endpoints with http://")
    if bool(user) != bool(password):
        section.problem("user", "and store.password_file must be set together; a certificate names its user itself")
    prefix = section.text("prefix")
    if prefix and not _PREFIX.fullmatch(prefix):
        section.problem("prefix", 'must begin with "/" and not end with it, like "/site-a"')
    return EtcdSettings(
        tuple(dict.fromkeys(endpoints)),
        "",
        tls="https" in schemes,
        ca=ca,
        cert=cert,
        key=key,
        user=user,
        password_file=password,
        prefix=prefix,
        operations=f"{prefix}/weft/operation/",
    )


def _naming(section: Section, datacenter: str, node: str) -> Naming | None:
    if not section.flag("enabled", True):
        return None
    usual = Naming()
    udp_size = section.integer("udp_size", least=0, most=65507) or 0
    if 0 < udp_size < DEFAULT_UDP_SIZE:
        section.problem("udp_size", f"must be {DEFAULT_UDP_SIZE} to 65507, or 0 for what is not fragmented")
    for key, check in (("domains", encode_name), ("alias_domains", encode_name), ("recursors", parse_upstream)):
        for text in section.texts(key):
            try:
                check(text)
            except ValueError as error:
                section.problem(key, f"holds {text!r}: {error}")
    ttls = section.raw("service_ttl") or {}
    if not isinstance(ttls, dict):
        section.problem("service_ttl", 'must be a table like {"web" = "5s", "*" = "0s"}')
        ttls = {}
    return Naming(
        domains=tuple(one.strip(".").lower() for one in section.texts("domains")) or usual.domains,
        datacenter=datacenter,
        listen=tuple(ListenAddress(*one) for one in _places(section, "listen", ("127.0.0.1:8600", "[::1]:8600"), 8600)),
        recursors=section.texts("recursors"),
        resolv_conf=section.text("resolv_conf", usual.resolv_conf),
        only_passing=section.flag("only_passing"),
        node_ttl=_ttl(section, "node_ttl", section.raw("node_ttl")),
        service_ttl={str(name): _ttl(section, f"service_ttl.{name}", value) for name, value in ttls.items()},
        network_ttl=_ttl(section, "network_ttl", section.raw("network_ttl")),
        answer_limit=section.integer("answer_limit", least=0, most=1000) or 0,
        udp_size=udp_size,
        alias_domains=tuple(one.strip(".").lower() for one in section.texts("alias_domains")),
        node=node,
    )


def _ttl(section: Section, key: str, value: object) -> int:
    return int(_seconds(section, key, value, most=MAX_TTL))


def _balancing(section: Section, node: str) -> BalancerSettings | None:
    if not section.flag("enabled", True):
        return None
    usual = BalancerSettings(node)
    first, last = usual.published
    return BalancerSettings(
        node,
        ranges=_networks(section, "ranges") if "ranges" in section else usual.ranges,
        allowed=_networks(section, "allowed"),
        mode=Mode(section.text("mode", usual.mode, choices=tuple(Mode))),
        published=(
            section.integer("published_from", least=1, most=65535) or first,
            section.integer("published_to", least=1, most=65535) or last,
        ),
        outside=section.texts("outside") if "outside" in section else None,
        drain=_seconds(section, "drain", section.raw("drain"), usual.drain),
        keep=_seconds(section, "keep", section.raw("keep"), usual.keep),
    )


def _networks(section: Section, key: str) -> tuple[IPv4Network | IPv6Network, ...]:
    found = []
    for text in section.texts(key):
        try:
            found.append(ip_network(text))
        except ValueError as error:
            section.problem(key, f"holds {text!r}, which is no subnet: {error}")
    return tuple(found)


def _places(section: Section, key: str, usual: tuple[str, ...], port: int) -> list[tuple[str, int]]:
    """``["127.0.0.1:8500", "[::1]"]`` as addresses and ports."""
    found = []
    for text in section.texts(key) if key in section else usual:
        match = re.fullmatch(r"(?:\[([0-9A-Fa-f:.]+)\]|([0-9.]+))(?::(\d{1,5}))?", text)
        number = int(match[3]) if match and match[3] else port
        if match is None or number > 65535 or section.parse_address(key, match[1] or match[2]) is None:
            section.problem(key, f'holds {text!r}; write "127.0.0.1:{port}" or "[::1]:{port}"')
            continue
        found.append((match[1] or match[2], number))
    return found


def _seconds(section: Section, key: str, value: object, usual: float = 0.0, most: float = MAX_SECONDS) -> float:
    if value is None:
        return usual
    try:
        seconds = parse_duration(str(value))
        if not 0 <= seconds <= most:
            raise ValueError(f"{value} must be 0s to {most:.0f}s")
        return seconds
    except ValueError as error:
        section.problems.add(f"{section.at(key)}: {error}")
        return usual
