"""``names``: DNS names of the container, and registration of its services.

Keys: ``names``: ``{}`` enables it; ``domain`` in it is a further suffix of the names (and the
container's search domain); ``nameservers`` are asked for all other names in the place of the host's;
``redirectDns``: servers the container's queries to which the agent answers, too, if they pass this host;
``dns: false`` leaves the container's resolver alone. ``services``, at the
top level or under args.cni, is a list of the container's services: ``name``, ``port``, ``protocol``
(tcp or udp; both if absent), ``tags``, ``meta``, ``weight``, ``check`` (as Consul's: ``http``, ``tcp``
or ``udp`` with ``interval``, or ``ttl``), ``virtual`` (true, or the virtual address), ``balance``,
``sticky`` and ``shared`` (other networks that set it, too, may add instances). A service may also come
as CNI_ARGS ``SERVICE_NAME``, ``SERVICE_PORT`` and ``SERVICE_TAGS``.
The names are those that the runtime tells (CNI_ARGS ``K8S_POD_NAME``, args.cni.name, runtimeConfig
``aliases``) and the first twelve characters of the container's id.

Called as podman's plugin ``dnsname``, the key is ``domainName``; ``services``, ``internal`` and
``redirectDns`` at the top level are as above.

The container asks the network's gateway, where the agent answers. On a network whose gateway is not
this host (macvlan, ipvlan) services are registered all the same, and the resolver is left alone.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from ipaddress import ip_address

from cni_plugin.dataplane import nat
from cni_plugin.ops.firewalls import passed_on
from cni_plugin.ops.operation import Operation
from cni_plugin.plan import modules
from cni_plugin.plan.interface import hairpin, host_end, host_link
from cni_plugin.plan.plan import Context, Plan, PlanPart
from cni_plugin.plan.traits import Feature, Stage
from cni_plugin.wire.plugins import OWN_NAME
from cni_plugin.wire.request import Request
from weft import identity
from weft.identity import dns_name_problem
from weft.kernel.values import Element
from weft.section import Section, quoted
from weft.service_options import MAX_WEIGHT, NETWORK_CHECKS, TTL_CHECK, Algorithm
from weft.types import Address, Result, Side

FEATURE = Feature(Stage.NAMES, section=False, plugin="dnsname", keys=("names", "services"))
SHORT = 12
"""Characters of a container's id that it is known by, as with docker and podman."""
_DNS, _PORT = ("udp", "tcp"), 53
_AT = {4: nat.PORTS4_AT, 6: nat.PORTS6_AT}
_SERVER = {4: nat.DNS_SERVER4, 6: nat.DNS_SERVER6}
_REDIRECTED = {4: nat.DNS_REDIRECTED4, 6: nat.DNS_REDIRECTED6}
_CHECKS = (*NETWORK_CHECKS, TTL_CHECK)
_CHECK_TEXTS = (
    "interval", "timeout", "deregister_critical_service_after", "method", "body", "tls_server_name", "status",
)  # fmt: skip
_CHECK_FLAGS = ("tls_skip_verify", "tcp_use_tls", "disable_redirects")
_CHECK_NUMBERS = ("success_before_passing", "failures_before_warning", "failures_before_critical")
"""The options of checks, in Consul's names; its agent reads their values."""
_CHECK_KEYS = (*_CHECKS, *_CHECK_TEXTS, *_CHECK_FLAGS, *_CHECK_NUMBERS, "header")
_SERVICE_KEYS = (
    "name", "port", "protocol", "tags", "meta", "weight", "check", "virtual", "balance", "sticky", "shared",
)  # fmt: skip
_NAMES_KEYS = ("domain", "nameservers", "redirectDns", "dns")


@dataclass(frozen=True, slots=True)
class Names:
    """A container's names, and its services (each as JSON). ``published`` are host port, container port and
    protocol of its published ports.
    """

    names: tuple[str, ...]
    services: tuple[str, ...] = ()
    domain: str = ""
    resolver: bool = True
    internal: bool = False
    gateway_is_host: bool = False
    nameservers: tuple[str, ...] = ()
    redirect: tuple[Address, ...] = ()
    published: tuple[tuple[int, int, str], ...] = ()

    def plan(self, context: Context) -> Plan:
        from cni_plugin.ops.announcement import Announced  # only networks with names need it

        mark = identity.attachment_mark(context.attachment)
        gateways = self._gateways(context)
        services = [json.loads(text) for text in self.services]
        document = {
            "network": context.attachment.network,
            "container": context.attachment.container,
            "interface": context.attachment.interface,
            "namespace": context.namespace.path,
            "namespace_inode": context.namespace.inode,
            "addresses": [str(ip.address) for ip in context.result.ips],
            "gateways": gateways,
            "internal": self.internal,
            "names": list(self.names),
            "domain": self.domain,
            "services": services,
            **({"nameservers": list(self.nameservers)} if self.nameservers else {}),
            **({"published": [list(one) for one in self.published]} if services and self.published else {}),
        }
        announced = Announced(mark, json.dumps(document, sort_keys=True))
        result = self._resolved(context.result, gateways) if self.resolver else context.result
        virtual = any(one.get("virtual") for one in services)
        redirected = self._redirected(context, gateways)
        own = host_link(context.result) == host_end(context)  # not the link of a network
        return Plan(
            shared=_questions_passed(context, gateways) if self.resolver else (),
            operations=hairpin(context) if virtual else (),
            shared_elements=(
                *(_answered_here(ip_address(one), protocol) for one in gateways for protocol in _DNS),
                *(() if own else redirected),
            ),
            elements=redirected if own else (),
            after=(announced,),
            result=result,
        )

    def _gateways(self, context: Context) -> list[str]:
        """The addresses of this host at which the container reaches the agent, IPv4 first."""
        found = {ip.gateway for ip in context.result.ips if ip.gateway is not None}
        hosts = [one for one in context.result.interfaces if not one.sandbox]
        if not self.gateway_is_host:
            # Whether a gateway is this host's is known from its addresses only.
            found &= {cidr.ip for one in hosts for cidr in context.facts.addresses(Side.HOST, one.name)}
        return [str(one) for one in sorted(found, key=lambda one: (one.version, int(one)))] if hosts else []

    def _resolved(self, result: Result, gateways: list[str]) -> Result:
        """The result with the agent as the first name server, before those of the configuration."""
        if not gateways:
            return result
        dns = result.dns
        search = (self.domain, *dns.search) if self.domain and self.domain not in dns.search else dns.search
        servers = (*gateways, *(one for one in dns.nameservers if one not in gateways))
        return replace(result, dns=replace(dns, nameservers=servers, search=search))

    def _redirected(self, context: Context, gateways: list[str]) -> tuple[Element, ...]:
        """The link whose containers' queries to certain servers go to the gateway."""
        link = host_link(context.result)
        own = link == host_end(context)
        mark = identity.attachment_mark(context.attachment) if own else identity.mark("dns of", link)
        answering: dict[int, Address] = {}
        for text in gateways:
            answering.setdefault(ip_address(text).version, ip_address(text))
        asked = [one for one in self.redirect if one.version in answering]
        return (
            *(
                Element(_SERVER[one], (link,), (answering[one],), mark)
                for one in sorted({one.version for one in asked})
            ),
            *(Element(_REDIRECTED[one.version], (link, one), (), mark) for one in asked),
        )


def _answered_here(gateway: Address, protocol: str) -> Element:
    """The gateway's port 53, published as itself: the agent listens there, and a container that
    publishes the port at every host address must not get the network's queries.
    """
    mark = identity.mark("names", str(gateway))
    return Element(_AT[gateway.version], (gateway, protocol, _PORT), (gateway, _PORT), mark)


def _questions_passed(context: Context, gateways: list[str]) -> tuple[Operation, ...]:
    """What lets the container ask the gateways where another firewall drops what it asks."""
    if not gateways:
        return ()
    link = host_link(context.result)
    bridged = link != identity.host_link(context.attachment)
    subnets = (ip.address.network for ip in context.result.ips)
    return (passed_on(link, subnets, bridged=bridged, names=tuple(map(ip_address, gateways))),)


def read(request: Request, keys: Section) -> PlanPart | None:
    if request.plugin == OWN_NAME and not _asked(request, keys):
        return None
    offered = (*keys.sections("services"), *request.config.args_cni.sections("services"))
    services = [*(_service(one) for one in offered), *_argued(request)]
    texts = tuple(json.dumps(one, sort_keys=True) for one in services)
    if request.plugin == FEATURE.plugin:
        domain, internal, redirect = _domain(keys, "domainName"), keys.flag("internal"), _servers(keys, "redirectDns")
        return Names(_called(request), texts, domain, internal=internal, redirect=redirect)
    section = keys.section("names")
    section.refuse_unknown(_NAMES_KEYS)
    return Names(
        _called(request),
        texts,
        _domain(section, "domain"),
        section.flag("dns", True),
        keys.flag("internal"),
        _gateway_is_host(request, keys),
        tuple(text for text in section.texts("nameservers") if section.parse_address("nameservers", text)),
        _servers(section, "redirectDns"),
        tuple(_published(request)),
    )


def _servers(section: Section, key: str) -> tuple[Address, ...]:
    found = (section.parse_address(key, text) for text in section.texts(key))
    return tuple(dict.fromkeys(one for one in found if one is not None))


def _published(request: Request) -> Iterator[tuple[int, int, str]]:
    """The ports that are published at all of the host's addresses."""
    for entry in request.config.runtime.sections("portMappings"):
        host, inner = (entry.integer(key, least=1, most=65535) for key in ("hostPort", "containerPort"))
        if host and inner and entry.text("hostIP") in ("", "0.0.0.0", "::"):
            yield host, inner, entry.text("protocol", "tcp").lower()


def _gateway_is_host(request: Request, keys: Section) -> bool:
    """Whether the driver gives this host the address of the gateway: not one that DHCP tells of."""
    driver = modules.of_request(request)
    asked = not driver.gateway_key or keys.flag(driver.gateway_key) or keys.flag("isDefaultGateway")
    made = request.config.previous is None and driver.routed
    return made and asked and request.config.ipam.text("type") != "dhcp"


def _asked(request: Request, keys: Section) -> bool:
    """Whether the configuration has the section, or one of the ways to offer a service."""
    offered = "services" in request.config.args_cni or "SERVICE_NAME" in request.arguments
    return offered or any(key in keys for key in FEATURE.keys)


def _called(request: Request) -> tuple[str, ...]:
    return tuple(dict.fromkeys(_names(request)))


def _domain(section: Section, key: str) -> str:
    domain = section.text(key).rstrip(".").lower()
    if domain and (problem := dns_name_problem(domain)):
        section.problem(key, problem)
    return domain


def _names(request: Request) -> Iterator[str]:
    config = request.config
    given = (request.arguments.get("K8S_POD_NAME", ""), config.args_cni.text("name"))
    # A runtime's name for a container need not be a DNS name, but an alias must be.
    yield from (name.lower() for name in given if name and not dns_name_problem(name))
    aliases = config.runtime.section("aliases")
    for alias in aliases.texts(config.name):
        if problem := dns_name_problem(alias):
            aliases.problems.add(f"{aliases.at(config.name)} {quoted(alias)} {problem}")
        else:
            yield alias.lower()
    yield request.container[:SHORT].lower()


def _service(section: Section) -> dict[str, object]:
    """One service, with the keys that the agent's registration takes."""
    section.refuse_unknown(_SERVICE_KEYS)
    name = section.text("name")
    if not name or dns_name_problem(name):
        section.problem("name", dns_name_problem(name) or "is missing")
    found: dict[str, object] = {"name": name}
    port = section.integer("port", least=1, most=65535)
    found["port"] = port or 0
    found["protocol"] = section.text("protocol", choices=("tcp", "udp"))
    found["tags"] = list(section.texts("tags"))
    weight = section.integer("weight", least=0, most=MAX_WEIGHT)
    if weight is not None:
        found["weights"] = {"passing": weight, "warning": weight}
    meta = _meta(section)
    for key, choices in (("balance", tuple(Algorithm)), ("sticky", ())):
        if value := section.text(key, choices=choices):
            meta[f"weft-{key}"] = value
    found["meta"] = meta
    if section.flag("shared"):
        found["shared"] = True
    if "virtual" in section:
        found["virtual"] = _virtual(section)
    if "check" in section:
        found["check"] = _check(section.section("check"), port)
    return found


def _meta(section: Section) -> dict[str, str]:
    value = section.raw("meta") or {}
    if not isinstance(value, dict) or not all(isinstance(text, str) for text in value.values()):
        section.problem("meta", "must be an object of strings")
        return {}
    return dict(value)


def _virtual(section: Section) -> bool | str:
    value = section.raw("virtual")
    if isinstance(value, bool):
        return value
    address = section.address("virtual")
    return str(address) if address is not None else False


def _check(section: Section, port: int | None) -> dict[str, object]:
    section.refuse_unknown(_CHECK_KEYS)
    kinds = [kind for kind in _CHECKS if kind in section]
    if len(kinds) != 1:
        section.problems.add(f"{section.path} must have one of {', '.join(_CHECKS)}")
        return {}
    found: dict[str, object] = {}
    for key in (*_CHECKS, *_CHECK_TEXTS):
        if key in section:
            found[key] = section.text(key)
    found |= {key: section.flag(key) for key in _CHECK_FLAGS if key in section}
    found |= {key: section.integer(key, least=0) for key in _CHECK_NUMBERS if key in section}
    if "header" in section:
        found["header"] = header = section.raw("header")
        if not isinstance(header, dict) or not all(isinstance(values, list) for values in header.values()):
            section.problem("header", 'must be an object of lists, e.g. {"Host": ["web"]}')
    if kinds[0] != TTL_CHECK and "interval" not in found:
        section.problems.add(f'{section.at("interval")} is missing, e.g. "10s"')
    if port is None and kinds[0] != TTL_CHECK:
        section.problems.add(f"{section.path} requires the service to have a port")
    return found


def _argued(request: Request) -> Iterator[dict[str, object]]:
    """The service given by CNI_ARGS SERVICE_NAME, SERVICE_PORT and SERVICE_TAGS."""
    arguments = request.arguments
    name = arguments.get("SERVICE_NAME", "")
    if not name:
        return
    port = arguments.get("SERVICE_PORT", "")
    problems = request.config.keys.problems
    if problem := dns_name_problem(name):
        problems.add(f"CNI_ARGS SERVICE_NAME {quoted(name)} {problem}")
    if not port.isdecimal() or not 0 < int(port) < 65536:
        problems.add(f"CNI_ARGS SERVICE_PORT {quoted(port)} must be between 1 and 65535")
        port = "0"
    tags = [tag for tag in arguments.get("SERVICE_TAGS", "").split(",") if tag]
    yield {"name": name, "port": int(port), "protocol": "", "tags": tags, "meta": {}}
