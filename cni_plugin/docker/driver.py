"""NetworkDriver: Docker's networks and endpoints as weft's.

Docker names a container's sandbox before that namespace exists, and moves, names and addresses the link
itself. So Join makes the link on the host, with everything that belongs to the host: bridge port, rules,
records. Source: moby's ``libnetwork/docs/remote.md``.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from ipaddress import IPv4Interface, ip_interface

from cni_plugin.docker import networks, overlays, ports
from cni_plugin.docker.calls import Calls, gateway_of, link_name
from cni_plugin.docker.state import Endpoint, Json, Kept, Network
from cni_plugin.plan import modules
from weft import identity, overlay
from weft.errors import BadOption, Busy, Missing
from weft.section import Section
from weft.types import Cidr

_NEXT_HOP, _CONNECTED = 0, 1
"""Types of StaticRoutes."""
_DEFAULT_PREFIX = "eth"


class Networks:
    """The handlers of the calls. All are blocking, and may run at the same time in several threads."""

    def __init__(self, kept: Kept, calls: Calls) -> None:
        self._kept = kept
        self._calls = calls
        self._keeping = threading.Lock()

    def network(self, name: str) -> Network:
        """Raises Missing."""
        found = self._kept.read(Network, name)
        if found is None:
            raise Missing(f"weft has no network {name} of Docker's", hint="remove it and create it again")
        return found

    def endpoint(self, call: Section) -> Endpoint:
        """The endpoint that a call is about. Raises Missing."""
        found = self._kept.read(Endpoint, call.text("EndpointID"))
        if found is None:
            raise Missing(f"weft has no endpoint {call.text('EndpointID')} of Docker's")
        return found

    # Networks

    def create_network(self, call: Section) -> Json:
        """Validate the network by a dry run of an attachment, and keep it."""
        self.keep(networks.read(call))
        return {}

    def keep(self, wanted: networks.Wanted) -> None:
        """Validate and keep a network. Raises WeftError."""
        with self._keeping:  # two that are created at once may want one bridge
            if self._kept.read(Network, wanted.id) is not None:
                return  # Docker repeats a call whose answer it has not got
            made = networks.build(wanted, self._kept.all(Network))
            examples = () if made.driver == overlays.DRIVER else tuple(_examples(wanted))
            self._calls.preview(made, Endpoint("0" * 64, made.id, examples, ""))
            self._kept.write(made)

    def delete_network(self, call: Section) -> Json:
        found = self._kept.read(Network, call.text("NetworkID"))
        if found is not None and found.driver == overlays.DRIVER and overlay.is_kept(overlays.path(found.name)):
            raise Busy(f"network {found.name} is one of the cluster's", hint=f"weft network rm {found.name} removes it")
        self.forget(call.text("NetworkID"))
        return {}

    def forget(self, name: str) -> None:
        """Remove a network and what its endpoints have left; one that is not known is fine."""
        found = self._kept.read(Network, name)
        if found is None:
            return
        for endpoint in list(self._kept.all(Endpoint)):
            if endpoint.network == name:
                self.remove_endpoint(endpoint)
        shared = found.driver == overlays.DRIVER  # by attachments that are not Docker's, or it is the cluster's
        with contextlib.suppress(Busy) if shared else contextlib.nullcontext():
            self._calls.remove_network(found)
        self._kept.remove(Network, name)

    # Endpoints

    def create_endpoint(self, call: Section) -> Json:
        """Keep the endpoint's addresses; its MAC address is derived from its id unless Docker gives one."""
        network = self.network(call.text("NetworkID"))
        given = call.section("Interface")
        asked = given.text("MacAddress")
        mac = asked
        if parents := _uses_parents_mac(network):
            if asked:
                raise BadOption(f"--mac-address {asked} cannot be set with {parents}, which uses that of the parent")
        elif not asked:
            mac = identity.mac("docker", call.text("EndpointID"))
        addresses = tuple(str(one) for key in ("Address", "AddressIPv6") if (one := given.cidr(key)) is not None)
        call.problems.raise_any()
        self._kept.write(Endpoint(call.text("EndpointID"), network.id, addresses, mac, made=time.time()))
        return {"Interface": {"MacAddress": mac} if mac and not asked else {}}

    def delete_endpoint(self, call: Section) -> Json:
        found = self._kept.read(Endpoint, call.text("EndpointID"))
        if found is not None:
            self.remove_endpoint(found)
        return {}

    def remove_endpoint(self, endpoint: Endpoint) -> None:
        """Detach an endpoint from what may be left of its sandbox, and forget it."""
        network = self._kept.read(Network, endpoint.network)
        with self._calls.locked(endpoint):
            if network is not None:
                self._calls.remove(network, endpoint)
            self._kept.remove(Endpoint, endpoint.id)
        self._calls.forget(endpoint)

    def join(self, call: Section) -> Json:
        """Make the endpoint's link: Docker moves it into the sandbox, and sets addresses and routes."""
        before = self.endpoint(call)
        network = self.network(before.network)
        with self._calls.locked(before):
            # Read again: Docker may have deleted it meanwhile, if dockerd was killed while it waited for this.
            endpoint = replace(self.endpoint(call), sandbox=call.text("SandboxKey"))
            self._kept.write(endpoint)
            self._calls.add(network, endpoint)
        addresses = [ip_interface(text) for text in endpoint.addresses]
        found: Json = {
            "InterfaceName": {"SrcName": link_name(endpoint.id), "DstPrefix": network.prefix or _DEFAULT_PREFIX},
            # Otherwise Docker connects the container to docker_gwbridge, too.
            "DisableGatewayService": True,
        }
        gateways = {one: _hop(network, one) for one in addresses}
        # Docker takes the default route from the first of a container's networks that names a gateway, and asks
        # for the container's ports there.
        if network.default_route and not network.internal:
            for one, gateway in gateways.items():
                found["Gateway" if one.version == 4 else "GatewayIPv6"] = gateway
        routed = [one for one in addresses if _is_routed(network, one)]
        if routed:
            found["StaticRoutes"] = [route for one in routed for route in _through(one, gateways[one])]
        return found

    def leave(self, call: Section) -> Json:
        endpoint = self._kept.read(Endpoint, call.text("EndpointID"))
        network = self._kept.read(Network, call.text("NetworkID"))
        if endpoint is not None and network is not None:
            self._calls.remove(network, endpoint)
        return {}

    # Ports

    def publish(self, call: Section) -> Json:
        """ProgramExternalConnectivity: publish the container's ports; Docker asks it of one network only."""
        endpoint = self.endpoint(call)
        network = self.network(endpoint.network)
        bindings = ports.read(call.section("Options"), network.binding)
        if bindings and not modules.declared(network.driver).routed:
            ports.refuse(network.driver, bindings)
        if bindings:
            ports.publish(
                bindings,
                lambda mappings: self._calls.publish(network, endpoint, mappings),
                self._calls.published,
                self._calls.listening,
            )
        return {}

    def withdraw(self, call: Section) -> Json:
        """RevokeExternalConnectivity."""
        endpoint = self._kept.read(Endpoint, call.text("EndpointID"))
        network = self._kept.read(Network, call.text("NetworkID"))
        if endpoint is not None and network is not None:
            self._calls.withdraw(network, endpoint)
        return {}


def _uses_parents_mac(network: Network) -> str:
    """The driver, or its mode, if links on the network have their parent's MAC address, else ""."""
    if network.driver == "macvlan" and network.config.get("mode") == "passthru":
        return "mode passthru"
    return "ipvlan" if network.driver == "ipvlan" else ""


def _examples(wanted: networks.Wanted) -> Iterator[str]:
    """An address of each subnet, for a dry run."""
    for one in wanted.pools:
        gateway = ip_interface(one.gateway).ip if one.gateway else None
        place = next((place for place in (2, 1, 0, -1) if abs(place) < one.subnet.num_addresses
                      and one.subnet[place] != gateway), 0)  # fmt: skip
        yield f"{one.subnet[place]}/{one.subnet.prefixlen}"


def _hop(network: Network, address: Cidr) -> str:
    """The gateway of a container with this address."""
    if network.driver == overlays.DRIVER and address.version == 6:
        return str(identity.OVERLAY_GATEWAY6)  # the subnet's stands for it
    return gateway_of(network, str(address))


def _is_routed(network: Network, address: Cidr) -> bool:
    """Whether the rest of the subnet is reached through the gateway."""
    return network.driver == "ptp" or (network.driver == overlays.DRIVER and address.version == 6)


def _through(address: Cidr, gateway: str) -> Iterator[Json]:
    """Routes to the rest of the subnet through the gateway, where no bridge leads there: more specific ones
    than the kernel's own, which Docker's address brings.
    """
    yield {"Destination": f"{gateway}/{32 if isinstance(address, IPv4Interface) else 128}", "RouteType": _CONNECTED}
    if address.network.prefixlen < address.max_prefixlen - 1:
        for half in address.network.subnets():
            yield {"Destination": str(half), "RouteType": _NEXT_HOP, "NextHop": gateway}
