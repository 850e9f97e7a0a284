"""Weft as a driver plugin of netavark, so that podman's networks can be weft's: ``create``, ``setup``,
``teardown``.

``weft`` is called with the verb, for the last two also with the path of the container's network
namespace, and with JSON on standard input. Setup and teardown are an ADD and a DEL of one network made
of podman's settings: its ``options`` bear the names of weft's own keys. Source: netavark's
plugin-API.md.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from ipaddress import ip_network

from cni_plugin.entry import cni
from cni_plugin.plan import modules
from cni_plugin.plan.traits import Driver, Parent, Value
from cni_plugin.wire import channel, document, versions
from cni_plugin.wire.plugins import NETAVARK_DRIVERS, OWN_NAME
from cni_plugin.wire.request import Command, Request
from weft.errors import ConfigProblem, WeftError
from weft.section import Problems, Section
from weft.types import Result, Subnet

_VERSION = "1.1.0"
_OWN_OPTIONS = {
    "driver": Value.TEXT, "parent": Value.LINK, "no_default_route": Value.FLAG, "metric": Value.NUMBER
}  # fmt: skip
_OTHER_NAMES = {"com.docker.network.driver.mtu": "mtu", "master": "parent"}
_IPAM = ("host-local", "dhcp", "none")
_EVERYWHERE = {4: "0.0.0.0/0", 6: "::/0"}
_LAST_PORT = 65535
_LONGEST_ALIAS = 253
_DOMAIN = "dns.podman"  # the search domain of netavark's own networks

Json = dict[str, object]
Handle = Callable[[Request], Result | None]


def run(
    arguments: list[str], stdin: bytes | int, handle: Handle, log: Callable[[str], None] | None = None
) -> tuple[int, bytes]:
    """One call: the exit status, and the bytes for standard output. Raises nothing but what ends the
    process.

    ``handle`` and ``log`` are those of ``cni.run``.
    """
    try:
        return 0, _answer(arguments, stdin, handle, log)
    except WeftError as error:
        return 1, _json({"error": str(error)})
    except Exception as error:
        if os.environ.get("WEFT_DEBUG"):
            import traceback

            traceback.print_exc()
        return 1, _json({"error": f"internal error: {type(error).__name__}: {error}"})


def _json(value: object) -> bytes:
    return json.dumps(value).encode("ascii")


def _answer(arguments: list[str], stdin: bytes | int, handle: Handle, log: Callable[[str], None] | None) -> bytes:
    verb, places = arguments[0], arguments[1:]
    if len(places) != (verb in ("setup", "teardown")):
        raise ConfigProblem(f"usage: weft {verb}{' NETNS' if verb in ('setup', 'teardown') else ''}")
    if verb == "info":
        return versions.NETAVARK_INFO.encode()
    value, _ = document.decode(stdin if isinstance(stdin, bytes) else channel.read(stdin))
    if verb == "create":
        return _json(created(value or {}))
    call = Call(value or {})
    if verb == "teardown":
        _cni("DEL", call, places[0], handle, log)
        return b""
    return _json(status(_cni("ADD", call, places[0], handle, log), call))


def _cni(command: str, call: Call, netns: str, handle: Handle, log: Callable[[str], None] | None) -> Json:
    """The CNI call that a setup or teardown amounts to; raises WeftError with its message."""
    environment = {
        "CNI_COMMAND": command,
        "CNI_CONTAINERID": call.container,
        "CNI_NETNS": netns,
        "CNI_IFNAME": call.interface,
        "WEFT_DEBUG": os.environ.get("WEFT_DEBUG", ""),
    }
    status, output = cni.run(OWN_NAME, environment, _json(call.config), handle, log)
    answer: Json = json.loads(output) if output else {}
    if status:
        raise WeftError(str(answer.get("msg", "")), hint=str(answer.get("details", "")))
    return answer


def _options_of(driver: Driver) -> dict[str, Value]:
    """The options that podman's networks of the driver can have, by the keys that they are."""
    features = (option for name in driver.features for option in modules.feature(name).FEATURE.options)
    return _OWN_OPTIONS | {option.key: option.value for option in (*driver.options, *features) if option.podman}


def _every_option() -> dict[str, Value]:
    """The options of all drivers: one that is another driver's is passed on, and means nothing."""
    found: dict[str, Value] = {}
    for name in modules.drivers():
        found |= _options_of(modules.declared(name))
    return found


class Network:
    """A network of podman's; every problem is noted in the section's problems."""

    def __init__(self, section: Section) -> None:
        self._section = section
        self.name = section.text("name")
        self.internal = section.flag("internal")
        self.asks_names = section.flag("dns_enabled")
        options = section.section("options")
        # A name of weft's own drivers that netavark takes for the plugin's is the driver.
        driver = section.text("driver")
        if driver not in NETAVARK_DRIVERS:
            driver = options.text("driver") or "bridge"
        self.about = modules.declared(driver)
        self.options = self._options(options)
        ipam = section.section("ipam_options")
        self.ipam = ipam.text("driver", choices=("", *_IPAM)) or ("host-local" if section.items("subnets") else "none")
        self.driver = driver
        if self.about.link_kind is None and not (self.driver in NETAVARK_DRIVERS and self.about.on_host):
            listed = (name for name in modules.drivers() if modules.declared(name).link_kind is not None)
            options.problem("driver", f"is not supported by podman's networks: must be one of {', '.join(listed)}")

    def _options(self, section: Section) -> Json:
        """The options as the keys of weft that they are; podman gives all of them as texts."""
        found: Json = {}
        known = _options_of(self.about)
        for given in _object(self._section.raw("options")):
            key = _OTHER_NAMES.get(given, given)
            text = section.text(given)
            value = known.get(key) or _every_option().get(key)
            if value is Value.FLAG:
                if text not in ("true", "false", "1", "0"):
                    section.problem(given, "must be true or false")
                found[key] = text in ("true", "1")
            elif value is Value.NUMBER:
                if not (text.isascii() and text.isdigit()):
                    section.problem(given, "must be a number")
                else:
                    found[key] = int(text)
            elif value is not None:
                found[key] = text
            elif key == "names":
                section.problem(given, "is no option: podman's networks have names, without --disable-dns")
            else:
                listed = ", ".join(sorted(_every_option()))
                section.problem(given, f"is for an option that weft does not know; it knows {listed}")
        return found

    def config(self) -> Json:
        """The CNI configuration of the network, without what concerns one container."""
        if self.about.clustered:
            from cni_plugin.entry import netavark_cluster

            return netavark_cluster.config(self.name, _VERSION)
        options = {key: value for key, value in self.options.items() if key not in ("no_default_route", "metric")}
        link = self._section.text("network_interface") or str(options.pop("parent", ""))
        options.pop("parent", None)
        config: Json = {"cniVersion": _VERSION, "name": self.name, "type": OWN_NAME, **options, "driver": self.driver}
        if self.about.parent_key and link:
            config[self.about.parent_key] = link
        if self.about.gateway_key:
            config[self.about.gateway_key] = bool(self._gateways())
        if self.about.routed:
            config |= {"internal": True} if self.internal else {"ipMasq": True}
        if self.ipam != "none":
            config["ipam"] = self._ipam()
        if self.asks_names and self.can_have_names and self._gateways():
            servers = list(self._section.texts("network_dns_servers"))
            config["names"] = {"domain": _DOMAIN, **({"nameservers": servers} if servers else {})}
        return config

    @property
    def can_have_names(self) -> bool:
        """Whether containers can reach this host's name server: at their gateway."""
        return self.about.routed

    @property
    def has_gateway(self) -> bool:
        """Whether subnets get a gateway: on an internal network only for names, it is no way out."""
        return not self.internal or (self.asks_names and self.can_have_names)

    def _gateways(self) -> set[int]:
        """The IP versions that a way out is known for."""
        gateways = (one.address("gateway") for one in self._section.sections("subnets"))
        return {one.version for one in gateways if one is not None}

    def _ipam(self) -> Json:
        metric = self.options.get("metric")
        if self.ipam == "dhcp":
            return {"type": "dhcp"} | ({"priority": metric} if metric else {})
        ranges = []
        for one in self._section.sections("subnets"):
            lease = one.section("lease_range")
            given = {
                "subnet": one.text("subnet"),
                "gateway": one.text("gateway"),
                "rangeStart": lease.text("start_ip"),
                "rangeEnd": lease.text("end_ip"),
            }
            ranges.append([{key: text for key, text in given.items() if text}])
        routes: list[Json] = [
            {"dst": one.text("destination"), "gw": one.text("gateway"), "priority": one.integer("metric", least=0) or 0}
            for one in self._section.sections("routes")
        ]
        if not self.internal and not self.options.get("no_default_route"):
            there = {route["dst"] for route in routes}
            defaults = [_EVERYWHERE[version] for version in sorted(self._gateways())]
            routes += [{"dst": one, "priority": metric or 0} for one in defaults if one not in there]
        # Podman's --ip-range bounds what is given out, not what --ip may ask for.
        return {"type": "host-local", "ranges": ranges, "routes": routes, "requestOutsideRange": True}


class Call:
    """What setup and teardown are given: one container's attachment to one network. Raises
    ConfigProblem.
    """

    def __init__(self, given: object) -> None:
        problems = Problems()
        section = Section(given, "", problems)
        own = section.section("network_options")
        network = Network(section.section("network"))
        if network.about.on_host:
            problems.add(
                f"network {network.name} is the host's own, and podman gives each container another: "
                "podman run --network host"
            )
            problems.raise_any()
        self.container = section.text("container_id")
        self.interface = own.text("interface_name")
        self.internal = network.internal
        needed = {"container_id": self.container, "interface_name": self.interface, "network.name": network.name}
        for key in (key for key, text in needed.items() if not text):
            problems.add(f"{key} is missing: podman gives one")
        self.config = network.config()
        named = "names" in self.config
        self.servers = () if named else section.section("network").texts("network_dns_servers")
        if named and (name := section.text("container_name")):
            self.config["args"] = {"cni": {"name": name}}
        runtime: Json = {}
        if mac := own.text("static_mac"):
            runtime["mac"] = mac
        if ips := own.texts("static_ips"):
            runtime["ips"] = list(ips)
        if mappings := [one for each in section.sections("port_mappings") for one in _mappings(each)]:
            runtime["portMappings"] = mappings
            self.config["portmap"] = {}
        if aliases := [one for one in own.texts("aliases") if 0 < len(one) <= _LONGEST_ALIAS]:
            runtime["aliases"] = {network.name: aliases}
        if runtime:
            self.config["runtimeConfig"] = runtime
        problems.raise_any()


def _mappings(section: Section) -> Iterator[Json]:
    """The ports of one mapping: ``range`` of them, for each of its protocols."""
    first, inner = (section.integer(key, least=0, most=_LAST_PORT) or 0 for key in ("host_port", "container_port"))
    count = max(1, section.integer("range", least=0, most=_LAST_PORT) or 1)
    if max(first, inner) + count - 1 > _LAST_PORT:
        section.problem("range", f"leads beyond port {_LAST_PORT}")
        return
    host = section.text("host_ip")
    for protocol in (section.text("protocol") or "tcp").split(","):
        for step in range(count):
            found: Json = {"hostPort": first + step, "containerPort": inner + step, "protocol": protocol.strip()}
            yield found | ({"hostIP": host} if host else {})


def status(result: Mapping[str, object], call: Call) -> Json:
    """Netavark's status block of a CNI result."""
    section = Section(dict(result))
    own = next(
        (place, one) for place, one in enumerate(section.sections("interfaces")) if one.text("name") == call.interface
    )
    subnets = []
    for ip in section.sections("ips"):
        if ip.integer("interface") == own[0]:
            gateway = "" if call.internal else ip.text("gateway")
            subnets.append({"ipnet": ip.text("address"), **({"gateway": gateway} if gateway else {})})
    dns = section.section("dns")
    domain = dns.text("domain")
    search = dns.texts("search") or ((domain,) if domain else ())
    return {
        "dns_search_domains": list(search),
        "dns_server_ips": list(call.servers or dns.texts("nameservers")),
        "interfaces": {call.interface: {"mac_address": own[1].text("mac"), "subnets": subnets}},
    }


def created(value: Json) -> Json:
    """The network that podman is to remember: the one it asked for, with what it left open filled in.

    A bridge gets a name, and a network whose addresses weft gives out gets subnets that nobody has.
    Raises ConfigProblem naming everything that is wrong.
    """
    problems = Problems()
    section = Section(value, "", problems)
    found: Json = dict(value)
    network = Network(section)
    asked = section.section("ipam_options").text("driver")
    ipam = asked or (network.about.default_ipam if network.about.addresses else "none")
    if ipam != "none" and not network.about.addresses:
        section.section("ipam_options").problem("driver", f"must be none: driver {network.driver} assigns no addresses")
    if network.about.clustered:
        from cni_plugin.entry import netavark_cluster

        given = _object(section.raw("options"))
        options = {_OTHER_NAMES.get(key, key): str(text) for key, text in given.items()}
        problems.raise_any()
        return netavark_cluster.create(section, value, options, names=network.asks_names)
    if ipam != "host-local" and section.items("subnets"):
        section.problem("subnets", f"cannot be given with the ipam driver {ipam}")
    problems.raise_any()
    if network.about.bridged and not section.text("network_interface"):
        from cni_plugin.networks import podman

        found["network_interface"] = podman.bridge_name(section.text("id") or network.name)
    if ipam == "host-local":
        found["subnets"] = _subnets(section, network)
    found["ipam_options"] = {**_object(value.get("ipam_options")), "driver": ipam}
    found["dns_enabled"] = network.asks_names and network.can_have_names and ipam == "host-local"
    if not network.about.on_host:
        # What setup would refuse is refused now: the same reading, for a container that there might be.
        _tried(found)
    return found


def _object(value: object) -> Json:
    return dict(value) if isinstance(value, dict) else {}


def _subnets(section: Section, network: Network) -> list[Json]:
    """The subnets, each with a gateway where containers go out through one; free ones where none is
    named.
    """
    found: list[Json] = []
    versions = set()
    for one, raw in zip(section.sections("subnets"), section.items("subnets"), strict=True):
        subnet, gateway = one.subnet("subnet"), one.text("gateway")
        if subnet is None:
            one.problems.add(f"{one.at('subnet')} is missing")
            continue
        versions.add(subnet.version)
        gateway = gateway or (_gateway(subnet) if network.has_gateway else "")
        found.append({**_object(raw), **({"gateway": gateway} if gateway else {})})
    section.problems.raise_any()
    if not found and network.about.parent is Parent.SHARED:
        raise ConfigProblem(
            f"the driver {network.driver} needs a subnet: that of the wire", hint="--subnet, or --ipam-driver dhcp"
        )
    if found and network.about.bridged:
        _require_free(found, section.text("network_interface"))
    if not found:
        found.append(_free(4, network))
    if section.flag("ipv6_enabled") and 6 not in versions:
        found.append(_free(6, network))
    return found


def _require_free(subnets: list[Json], bridge: str) -> None:
    """Raises InUse where another link of the host, or another network, has one of the subnets."""
    from cni_plugin.networks import podman, pools

    uses = [use for use in podman.subnets_in_use(routes=False) if not bridge or use.link != bridge]
    for one in subnets:
        pools.require_free(ip_network(str(one["subnet"])), uses)


def _gateway(subnet: Subnet) -> str:
    return str(subnet.network_address + 1)


def _free(version: int, network: Network) -> Json:
    from cni_plugin.networks import podman, pools

    uses = podman.subnets_in_use()
    subnet: Subnet = pools.free_ipv4(uses) if version == 4 else pools.free_ipv6(uses)
    found: Json = {"subnet": str(subnet)}
    return {**found, "gateway": _gateway(subnet)} if network.has_gateway else found


def _tried(network: Json) -> None:
    """Raises ConfigProblem where a container could not be attached to the network."""
    from cni_plugin.service import assemble
    from cni_plugin.wire import config

    call = Call({"container_id": "c", "network": network, "network_options": {"interface_name": "eth0"}})
    text = _json(call.config)
    read = config.read(text, Command.ADD, OWN_NAME)
    assemble.read(Request(Command.ADD, OWN_NAME, "c", "/", "eth0", (), {}, False, {}, read, text))
    read.keys.problems.raise_any()
