"""CNI calls for endpoints of Docker's, by the service: ADD at Join, DEL at Leave."""

from __future__ import annotations

import json
import threading
from collections import defaultdict
from dataclasses import replace
from ipaddress import ip_interface

from cni_plugin.dataplane import nat
from cni_plugin.dataplane.tables import TABLES
from cni_plugin.docker import overlays
from cni_plugin.docker.state import Endpoint, Json, Network
from cni_plugin.engine.kernel import WorkerKernel
from cni_plugin.ops import Elements
from cni_plugin.service.handing import settle
from cni_plugin.service.planner import attachment_of
from cni_plugin.service.records import Phase, Record
from cni_plugin.service.removal import remove_network
from cni_plugin.service.verbs import Service
from cni_plugin.wire import config, environment, result
from cni_plugin.wire.plugins import OWN_NAME
from cni_plugin.wire.request import Command, Request
from weft.errors import Missing, NamespaceProblem
from weft.kernel.host import Host
from weft.kernel.netlink.batch_deletion import BatchDeleter
from weft.kernel.netns import CURRENT
from weft.kernel.nft.ruleset import Nft
from weft.types import Attachment, Result

VERSION = "1.1.0"
PORTS, NAMES = "portmap", "dnsname"
"""The plugins that publish the ports and names of an endpoint: attachments of their own, chained to the
first. Docker asks for ports later, and only on one of the container's networks; names come from its API.
"""
_PORTS = (nat.PORTS4, nat.PORTS4_AT, nat.PORTS6, nat.PORTS6_AT)
_LINK_PREFIX = "weft"


def link_name(endpoint: str) -> str:
    """The name under which an endpoint's link is made on the host, for Docker to move it."""
    return f"{_LINK_PREFIX}{endpoint[:11]}"


class Calls:
    """The service on this host's kernel, one for each thread."""

    def __init__(self) -> None:
        self._own = threading.local()
        self._first = threading.Lock()
        # Shared by all threads: what one changes in the rules would make the others verify them anew.
        self._shared: tuple[Nft, BatchDeleter] | None = None
        # Names are published while Docker may remove the endpoint already.
        self._locks: defaultdict[str, threading.RLock] = defaultdict(threading.RLock)

    @property
    def service(self) -> Service:
        found: Service | None = getattr(self._own, "service", None)
        if found is None:
            with self._first:
                if self._shared is None:
                    self._shared = Nft(TABLES), BatchDeleter()
            kernel = WorkerKernel(*self._shared)
            found = self._own.service = Service(kernel, Host.current(kernel))
            found.records.prepare()
        return found

    def add(self, network: Network, endpoint: Endpoint) -> Result:
        """Make the endpoint's link, for Docker to move. What an earlier call has left of it is removed."""
        request = _request(Command.ADD, network, endpoint)
        if self.service.records.read(attachment_of(request)) is not None:
            self.remove(network, endpoint)
        answer = self.service.handle(request)
        assert answer is not None
        return answer

    def preview(self, network: Network, endpoint: Endpoint) -> None:
        """Raises WeftError where ``add`` would be refused. Nothing is changed."""
        self.service.preview(_request(Command.ADD, network, endpoint))

    def publish(self, network: Network, endpoint: Endpoint, mappings: list[Json]) -> None:
        """Publish ports of an endpoint that has joined. Raises WeftError: Conflict for a port that is in use."""
        self._chain(network, endpoint, PORTS, {"runtimeConfig": {"portMappings": mappings}})

    def announce(self, network: Network, endpoint: Endpoint, keys: Json) -> None:
        """Publish the names and services of an endpoint that has joined. Raises WeftError."""
        self._chain(network, endpoint, NAMES, keys)

    def _chain(self, network: Network, endpoint: Endpoint, plugin: str, keys: Json) -> None:
        with self._locks[endpoint.id]:
            before = self.service.records.read(attachment(network, endpoint))
            if before is None:
                raise Missing(f"endpoint {endpoint.id} has not joined a container")
            self._withdraw(network, endpoint, plugin)
            previous = json.loads(result.render(before.result, VERSION))
            whole = {**keys, "prevResult": previous}
            self.service.handle(_request(Command.ADD, network, endpoint, plugin, whole))

    def published(self) -> set[tuple[str, int]]:
        """The protocol and number of every port that attachments of this host publish."""
        operations = (one for record in self.service.records.all() for one in record.operations)
        elements = (each for one in operations if isinstance(one, Elements) for each in one.elements)
        return {(str(each.key[-2]), int(str(each.key[-1]))) for each in elements if each.collection in _PORTS}

    def listening(self, protocol: str, ports: range) -> set[int]:
        """The ports among these on which processes of the host listen."""
        return {one.port for one in self.service.kernel.host.listeners(protocol, ports)}

    def withdraw(self, network: Network, endpoint: Endpoint, plugin: str = PORTS) -> None:
        """Publish the endpoint's ports, or names, no longer."""
        # No endpoint is given ports meanwhile. To look first spares most calls to wait while names are published.
        if self._record_of(network, endpoint, plugin) is None:
            return
        with self._locks[endpoint.id]:
            self._withdraw(network, endpoint, plugin)

    def _withdraw(self, network: Network, endpoint: Endpoint, plugin: str) -> None:
        request = _request(Command.DEL, network, endpoint, plugin)
        if self.service.records.read(attachment_of(request)) is not None:
            self.service.handle(request)

    def is_announced(self, network: Network, endpoint: Endpoint) -> bool:
        """Whether all of the endpoint's names are published, not a part by a driver that was killed."""
        found = self._record_of(network, endpoint, NAMES)
        return found is not None and found.phase is Phase.ATTACHED

    def _record_of(self, network: Network, endpoint: Endpoint, plugin: str) -> Record | None:
        return self.service.records.read(replace(attachment(network, endpoint), plugin=plugin))

    def remove(self, network: Network, endpoint: Endpoint) -> None:
        """Remove the endpoint's link wherever it is, and its rules. What is gone already is fine."""
        with self._locks[endpoint.id]:
            for plugin in (NAMES, PORTS):
                self._withdraw(network, endpoint, plugin)
            self.settle(network, endpoint, ended=True)
            request = _request(Command.DEL, network, endpoint)
            if self.service.records.read(attachment_of(request)) is not None:
                # Without a namespace: it may be in the container's, which is no reason to leave it.
                request = replace(request, namespace="")
            elif self.service.kernel.host.link(link_name(endpoint.id)) is None:
                return
            self.service.handle(request)  # of a link that Docker has moved back after Leave, by its mark

    def locked(self, endpoint: Endpoint) -> threading.RLock:
        """The lock of an endpoint, which is held while it is published or removed."""
        return self._locks[endpoint.id]

    def forget(self, endpoint: Endpoint) -> None:
        """The endpoint is gone for good."""
        self._locks.pop(endpoint.id, None)

    def settle(self, network: Network, endpoint: Endpoint, *, ended: bool = False) -> bool:
        """Find the link in the container's namespace, once Docker has moved and renamed it, or ``ended`` before;
        whether it is known.
        """
        own, place = attachment(network, endpoint), endpoint.sandbox
        try:
            return bool(place) and settle(self.service, own, place, ended=ended)
        except NamespaceProblem:
            return False

    def remove_network(self, network: Network) -> None:
        """Remove what belongs to the network. Raises Busy while endpoints have joined."""
        remove_network(self.service, network.name)

    def record(self, network: Network, endpoint: Endpoint) -> Record | None:
        return self.service.records.read(attachment(network, endpoint))


def attachment(network: Network, endpoint: Endpoint) -> Attachment:
    return Attachment(network.name, endpoint.id, link_name(endpoint.id), OWN_NAME)


def _request(
    command: Command, network: Network, endpoint: Endpoint, plugin: str = OWN_NAME, keys: Json | None = None
) -> Request:
    """The call, on the host's own namespace: Docker makes the container's only after Join."""
    environ = {
        "CNI_COMMAND": command.value,
        "CNI_CONTAINERID": endpoint.id,
        "CNI_NETNS": CURRENT,
        "CNI_IFNAME": link_name(endpoint.id),
        "CNI_NETNS_OVERRIDE": "1",
    }
    content = _attached(network, endpoint) if plugin == OWN_NAME else _chained(network, plugin)
    stdin = json.dumps({**content, **(keys or {})}).encode()
    call = environment.read(environ, plugin, lambda _: False)
    read = config.read(stdin, command, plugin)
    return replace(call.request(plugin, environ, read, stdin), handed_over=True)


def _attached(network: Network, endpoint: Endpoint) -> Json:
    """The network's configuration with the addresses that IPAM, weft's or Docker's, has given."""
    found = dict(network.config)
    addresses = []
    for address in endpoint.addresses:
        gateway = gateway_of(network, address)
        addresses.append({"address": address, **({"gateway": gateway} if gateway else {})})
    runtime: Json = {"mac": endpoint.mac} if endpoint.mac else {}
    if addresses and network.driver == overlays.DRIVER:
        runtime["ips"] = list(endpoint.addresses)  # leased like those of all attachments of the network
    elif addresses:
        found["ipam"] = {"type": "static", "addresses": addresses}
    return found | ({"runtimeConfig": runtime} if runtime else {})


def _chained(network: Network, plugin: str) -> Json:
    internal = {"internal": True} if network.internal else {}
    return {"cniVersion": VERSION, "name": network.name, "type": plugin, **internal}


def gateway_of(network: Network, address: str) -> str:
    """The gateway of the network's subnet that an address with a prefix length is in, "" if it has none."""
    subnet = ip_interface(address).network
    gateways = (ip_interface(text) for text in network.gateways)
    return next((str(one.ip) for one in gateways if one.version == subnet.version and one.ip in subnet), "")
