"""Operations that set a link's attributes and restore them. Source: ip-link(8)."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, replace

from cni_plugin.ops.addresses import namespace_of
from cni_plugin.ops.devices import ContainerLink, LentLink
from cni_plugin.ops.links import Veth, nsenter, retry_while_exists
from cni_plugin.ops.operation import LinkRef, Machine, Operation
from weft.errors import KernelRefused, Missing
from weft.kernel.interface import Namespace
from weft.kernel.values import Link
from weft.types import Side

Value = int | str | bool

_WORDS = {
    "mac": "MAC address", "mtu": "MTU", "promiscuous": "promiscuous mode",
    "all_multicast": "reception of all multicast", "queue_length": "queue length",
}  # fmt: skip
_COMMANDS = {
    "mac": "address", "mtu": "mtu", "promiscuous": "promisc", "all_multicast": "allmulticast",
    "queue_length": "txqueuelen",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class LinkSetting(Operation):
    """One attribute of a link of the container: mac, mtu (bytes), promiscuous, all_multicast,
    queue_length (packets).

    Undo restores ``before``; None if the same plan creates the link.
    """

    link: str
    attribute: str
    value: Value
    before: Value | None = None

    @property
    def on_link(self) -> LinkRef | None:
        return (Side.CONTAINER, self.link)

    def apply(self, machine: Machine) -> bool:
        namespace = namespace_of(machine, Side.CONTAINER, self.link)
        link = namespace.link(self.link)
        if link is None:
            raise Missing(f"link {self.link} not found in the container")
        if self._shown(link) == self.value:
            return False
        self._set(namespace, self.value)
        return True

    def undo(self, machine: Machine) -> None:
        namespace = machine.container
        link = namespace.link(self.link) if namespace is not None else None
        if namespace is None or link is None or self.before is None or self._shown(link) != self.value:
            return
        with contextlib.suppress(KernelRefused):
            self._set(namespace, self.before)

    def _shown(self, link: Link) -> Value:
        shown: Value = getattr(link, self.attribute)
        return shown

    def _set(self, namespace: Namespace, value: Value) -> None:
        match self.attribute:
            case "mac":
                retry_while_exists(lambda: namespace.change_link(self.link, mac=str(value)))
            case "mtu":
                namespace.change_link(self.link, mtu=int(value))
            case "promiscuous":
                namespace.change_link(self.link, promiscuous=bool(value))
            case "all_multicast":
                namespace.change_link(self.link, all_multicast=bool(value))
            case "queue_length":
                namespace.change_link(self.link, queue_length=int(value))

    def mismatch(self, machine: Machine) -> str | None:
        link = namespace_of(machine, Side.CONTAINER, self.link).link(self.link)
        if link is None:
            return f"the container's link {self.link} is missing"
        there = self._shown(link)
        if there == self.value:
            return None
        return f"the {_WORDS[self.attribute]} of {self.link} is {_said(there)} instead of {_said(self.value)}"

    def adapt(self, earlier: Operation) -> Operation:
        if isinstance(earlier, LinkSetting):
            same = (earlier.link, earlier.attribute) == (self.link, self.attribute)
            return replace(earlier, value=self.value) if same else earlier
        name = {Veth: "container", ContainerLink: "name", LentLink: "container"}.get(type(earlier))
        if name is None or getattr(earlier, name) != self.link:
            return earlier
        if self.attribute == "mac":
            return replace(earlier, mac=self.value)  # type: ignore[type-var]
        if self.attribute == "mtu":
            field = "container_mtu" if isinstance(earlier, Veth) else "mtu"
            return replace(earlier, **{field: self.value})  # type: ignore[type-var]
        return earlier

    def commands(self, namespace: str) -> tuple[str, ...]:
        word = _COMMANDS[self.attribute]
        return (f"{nsenter(Side.CONTAINER, namespace)}ip link set {self.link} {word} {_said(self.value)}",)


def _said(value: Value) -> str:
    return ("on" if value else "off") if isinstance(value, bool) else str(value)
