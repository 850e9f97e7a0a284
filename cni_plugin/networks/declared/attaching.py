"""The operations of ``weft apply`` that stand for others' plans: a network's file, and an attachment."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from ipaddress import ip_interface

from cni_plugin.networks import attachments, conflists, leases
from cni_plugin.networks.attachments import Endpoint, State
from cni_plugin.networks.chain import Chain, RuntimeConfig, Target
from cni_plugin.networks.conflists import OWN_KEY, Json, NetworkList
from cni_plugin.networks.declared.document import Interface
from cni_plugin.networks.declared.operations import Declared
from cni_plugin.ops import Veth, Vlans
from cni_plugin.ops.operation import Machine
from cni_plugin.service.removal import remove_network
from cni_plugin.service.verbs import Service
from weft.errors import InUse, WeftError


@dataclass(frozen=True, slots=True)
class NetworkFile(Declared):
    """The file of a network in the CNI folder. ``before`` is the network as it was, None if there was none.

    *Equivalent to:* ``weft network create NAME``.
    """

    name: str
    content: Json = field(hash=False)
    folder: str
    service: Service = field(compare=False, repr=False)
    before: NetworkList | None = field(default=None, hash=False)

    @property
    def about(self) -> str:
        return f"network {self.name}"

    def refuse(self, machine: Machine) -> None:
        if self.before is None or self.mismatch(machine) is None:
            return
        after = conflists.parse(self.before.path, self.content)
        moved = after.bridge != self.before.bridge or conflists.subnets(after) != conflists.subnets(self.before)
        if moved and (held := self._attached()):
            raise InUse(
                f"{self.about}: its bridge or subnets would change under {held[0].container}/{held[0].interface}",
                hint="detach its containers first",
            )

    def refuse_removal(self, machine: Machine) -> None:
        """What is attached is asked for by the plan, which knows what it detaches itself."""

    def _attached(self) -> list[Endpoint]:
        return [one for one in attachments.endpoints(self.service) if one.network == self.name]

    def apply(self, machine: Machine) -> bool:
        if self.before is None:
            conflists.write(self.folder, self.name, self.content)
        else:
            conflists.rewrite(self.before, self.content)
        return True

    def undo(self, machine: Machine) -> None:
        if self.before is not None:
            conflists.rewrite(self.before, self.before.content)
            return
        there = next((one for one in conflists.listed(self.folder)[0] if one.name == self.name), None)
        if there is None:
            return
        for lease in leases.listed(there, leases.attached(self.service)):
            if not lease.attached:
                leases.free(self.service, there, lease)
        remove_network(self.service, self.name)
        leases.remove_directory(there)
        conflists.remove(there)

    def mismatch(self, machine: Machine) -> str | None:
        if self.before is None:
            return f"there is no network {self.name}"
        there, wanted = _comparable(self.before.content), _comparable(self.content)
        keys = sorted(key for key in {*there, *wanted} if there.get(key) != wanted.get(key))
        return f"{self.before.path} has other {', '.join(keys)}" if keys else None

    def commands(self, namespace: str) -> tuple[str, ...]:
        plugin = conflists.parse("", self.content).main
        subnets = "".join(f" --subnet {one}" for one in conflists.subnets(conflists.parse("", self.content)))
        bridge = f" -o bridge={plugin.text('bridge')}" if plugin.text("bridge") else ""
        return (f"weft network create {self.name} -d {plugin.text('driver')}{subnets}{bridge}",)

    def removal(self, namespace: str) -> tuple[str, ...]:
        return (f"weft network rm {self.name}",)


def _comparable(content: Json) -> Json:
    """The keys of the list and of its first plugin, without when it was created."""
    found = {key: value for key, value in content.items() if key not in ("plugins", OWN_KEY)}
    plugins = content.get("plugins")
    [first, *more] = plugins if isinstance(plugins, list) and plugins else [{}]
    notes = content.get(OWN_KEY)
    return {
        **found,
        **(first if isinstance(first, dict) else {}),
        **({"plugins": more} if more else {}),
        **({key: value for key, value in notes.items() if key != "created"} if isinstance(notes, dict) else {}),
    }


@dataclass(frozen=True, slots=True)
class Attached(Declared):
    """An interface of a namespace: an attachment to a switch or a network, made as a runtime makes it.

    *Equivalent to:* ``weft attach NETWORK NAMESPACE``, or the commands of ``weft plan``.
    """

    interface: Interface
    network: NetworkList = field(hash=False)
    target: Target
    service: Service = field(compare=False, repr=False)
    path: tuple[str, ...] = ()
    empty: Callable[[], AbstractContextManager[str]] = field(compare=False, repr=False, kw_only=True)

    @property
    def about(self) -> str:
        return f"interface {self.target.interface} of {self.interface.namespace}"

    def _chain(self, namespace: str = "") -> Chain:
        target = Target(self.target.container, namespace or self.target.namespace, self.target.interface)
        asked = tuple(str(one.ip) for one in self.interface.addresses) if self.interface.network else ()
        runtime = RuntimeConfig(addresses=asked, mac=self.interface.mac)
        return Chain(self.service, self.network, target, self.path, runtime)

    def refuse(self, machine: Machine) -> None:
        self._chain().validate()

    def refuse_link(self) -> None:
        """Raises InUse where the namespace has a link of that name which is not this attachment's."""
        namespace = self.service.kernel.identify(self.target.namespace)
        if self.endpoint() is not None or not namespace.known:
            return
        with contextlib.closing(self.service.kernel.open(namespace.path)) as there:
            if there.link(self.target.interface) is not None:
                raise InUse(f"{self.about}: there is a link of that name in the namespace")

    def is_attached(self) -> bool:
        there = self.endpoint()
        return there is not None and there.state is State.ATTACHED

    def endpoint(self) -> Endpoint | None:
        """The attachment, if there is one."""
        key = self.network.name, self.target.interface
        found = attachments.endpoints_of(self.service, self.target.container)
        return next((one for one in found if (one.network, one.interface) == key), None)

    def apply(self, machine: Machine) -> bool:
        left = self.endpoint()
        if left is not None and left.state is not State.ATTACHED:
            attachments.detach(self.service, left)  # of before a boot, or of a namespace that is gone
        try:
            self._chain().add()
        except WeftError as error:
            error.message = f"{self.about}: {error.message}"
            raise
        return True

    def undo(self, machine: Machine) -> None:
        there = self.endpoint()
        if there is not None:
            attachments.detach(self.service, there)
        if self.interface.switch:
            with contextlib.suppress(WeftError):  # another interface is on it
                remove_network(self.service, self.network.name, timeout=0)

    def mismatch(self, machine: Machine) -> str | None:
        there = self.endpoint()
        namespace = self.service.kernel.identify(self.target.namespace)
        if there is None or not namespace.known:
            return f"{self.target.container}/{self.target.interface} is not attached to {self.network.name}"
        if there.state is not State.ATTACHED or not there.namespace.same(namespace):
            return f"{there} is {there.state}, or in another namespace"
        differing = [*self._differences(there), *attachments.mismatches(self.service, there, shared=False)]
        return "; ".join(differing) or None

    def _differences(self, there: Endpoint) -> list[str]:
        """How the attachment differs from what is declared now."""
        wanted = self.interface
        found = []
        if wanted.addresses and not self._has_addresses(there):
            listed = ", ".join(map(str, wanted.addresses))
            found.append(f"{there} has the addresses {', '.join(there.addresses) or '-'} instead of {listed}")
        if wanted.mac and there.mac != wanted.mac:
            found.append(f"{there} has the MAC address {there.mac} instead of {wanted.mac}")
        if wanted.network:
            return found
        veth = next((one for one in there.operations if isinstance(one, Veth)), None)
        mtu = self.network.main.integer("mtu")
        if veth is not None and mtu and veth.mtu != mtu:
            found.append(f"{there} has the MTU {veth.mtu} instead of {mtu}")
        vids = sorted(vlan.vid for one in there.operations if isinstance(one, Vlans) for vlan in one.vlans)
        if vids != sorted({*([wanted.vlan or 1] if wanted.vlan or wanted.trunk else []), *wanted.trunk}):
            found.append(f"{there} has the VLANs {vids}")
        routes = {(one.destination, one.gateway) for one in there.result.routes}
        if routes != {(one.destination, one.via) for one in wanted.routes}:
            found.append(f"{there} has other routes")
        return found

    def _has_addresses(self, there: Endpoint) -> bool:
        """Whether the attachment has the declared addresses; on a network, its prefix lengths count."""
        has, wanted = {ip_interface(text) for text in there.addresses}, {*self.interface.addresses}
        return {one.ip for one in has} == {one.ip for one in wanted} if self.interface.network else has == wanted

    def commands(self, namespace: str) -> tuple[str, ...]:
        path = self.target.namespace
        if self.service.kernel.identify(path).known and self.endpoint() is None:
            steps, _ = self._chain().preview()
        else:
            with self.empty() as empty:
                steps, _ = self._chain(empty).preview()
        return tuple(line for step in steps for one in step.own for line in one.commands(path))

    def removal(self, namespace: str) -> tuple[str, ...]:
        return (f"weft detach {self.network.name} {self.interface.namespace} --ifname {self.target.interface}",)
