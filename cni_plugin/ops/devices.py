"""Operations on links that the container has to itself: made for it, or lent to it by the host."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass

from cni_plugin.ops.links import has_mark, nsenter, retry_while_exists
from cni_plugin.ops.operation import LinkRef, Machine, Operation
from weft import identity
from weft.errors import Conflict, Exists, Missing, WeftError
from weft.kernel.interface import Link, Namespace
from weft.types import Attachment, Side

_LENT = "weft-device"
"""How aliases of lent links begin: not as other marks, since nobody may sweep a link that is the host's own."""

_PATIENCE = 2.0
"""Seconds in which the kernel gives back the physical links of a namespace that has ended (cleanup_net)."""


def _container(machine: Machine, name: str) -> Namespace:
    """The container's namespace, in which no link has that name yet; raises Missing or Conflict."""
    if machine.container is None:
        raise Missing(f"the container's network namespace is gone, there can be no {name} in it")
    if machine.container.link(name) is not None:
        raise Conflict(
            f"the container has a link {name} already",
            hint="delete the attachment that made it first, or use another CNI_IFNAME",
        )
    return machine.container


def _unlike(link: Link | None, name: str, alias: str, mac: str, mtu: int) -> str | None:
    """How a link of the container differs from the planned one, in a sentence; None if it does not."""
    if link is None:
        return f"the container's link {name} is missing"
    if not has_mark(link, alias):
        return f"the container's link {name} is not the one that was attached"
    if mac and link.mac != mac:
        return f"{name} has the MAC address {link.mac} instead of {mac}"
    return f"the MTU of {name} is {link.mtu} instead of {mtu}" if mtu and link.mtu != mtu else None


@dataclass(frozen=True, slots=True)
class ContainerLink(Operation):
    """A link made inside the container: a macvlan, ipvlan or VLAN of a ``parent`` on either side, a dummy, a tap.

    ``passing`` is the name it has until it bears its alias: so under its own name it always does, whenever a process
    is killed. ``mtu`` in bytes, 0: the kernel's. ``master`` is a bridge in the container. Raises Conflict, Missing,
    KernelLacks. *Equivalent to:* ``ip link add NAME link PARENT type KIND …``.
    """

    name: str
    type: str
    passing: str
    alias: str
    mac: str = ""
    mtu: int = 0
    parent: str = ""
    side: Side = Side.HOST
    master: str = ""
    options: tuple[tuple[str, int | str], ...] = ()

    @property
    def creates(self) -> tuple[LinkRef, ...]:
        return ((Side.CONTAINER, self.name),)

    def apply(self, machine: Machine) -> bool:
        container = _container(machine, self.name)
        try:
            retry_while_exists(
                lambda: container.add_link(
                    self.passing,
                    self.type,
                    mac=self.mac,
                    mtu=self.mtu,
                    parent=self.parent,
                    parent_namespace=machine.side(self.side) if self.parent else None,
                    options=dict(self.options),
                )
            )
        except WeftError as error:
            error.message = error.message.replace(self.passing, self.name)
            if isinstance(error, Exists):
                raise Conflict(
                    f"{self.parent or 'the container'} has such a {self.type} link already: {error.message}",
                    hint="one VLAN of a link can be given to one container only",
                ) from error
            raise
        container.change_link(self.passing, alias=self.alias, master=self.master or None, new_name=self.name)
        return True

    def undo(self, machine: Machine) -> None:
        container = machine.container
        if container is None:
            return
        for link in container.links():
            if link.name == self.passing or has_mark(link, self.alias):
                with contextlib.suppress(Missing):
                    container.delete_link(link.name)

    def mismatch(self, machine: Machine) -> str | None:
        parent = machine.side(self.side)
        if self.parent and parent is not None and parent.link(self.parent) is None:
            return f"the {self.side}'s link {self.parent} is missing, and {self.name} with it"
        link = machine.container.link(self.name) if machine.container is not None else None
        return _unlike(link, self.name, self.alias, self.mac, self.mtu) or (self._kind_mismatch(link) if link else None)

    def _kind_mismatch(self, link: Link) -> str | None:
        if link.kind != self.type:
            return f"{self.name} is a {link.kind or 'physical'} link and no {self.type}"
        if link.master != self.master:
            return f"{self.name} is on {link.master or 'no bridge'} instead of {self.master or 'none'}"
        for key, wanted in self.options:
            there = link.options.get(key, wanted)  # what this kernel does not show cannot be compared
            if there != wanted:
                return f"{key} of {self.name} is {there} instead of {wanted}"
        return None

    def commands(self, namespace: str) -> tuple[str, ...]:
        words = [f"ip link add {self.passing}"]
        words += [f"link {self.parent}"] if self.parent else []
        words += [f"address {self.mac}"] if self.mac else []
        words += [f"mtu {self.mtu}"] if self.mtu else []
        words += [f"netns {namespace}"] if self.parent and self.side is Side.HOST else []
        words.append(f"type {self.type}")
        words += [f"{key.removeprefix(f'{self.type}_')} {value}" for key, value in self.options]
        inside = nsenter(Side.CONTAINER, namespace)
        master = f" master {self.master}" if self.master else ""
        return (
            ("" if self.parent and self.side is Side.HOST else inside) + " ".join(words),
            f"{inside}ip link set {self.passing} name {self.name} alias '{self.alias}'{master}",
        )


@dataclass(frozen=True, slots=True)
class LentLink(Operation):
    """A link of the host's that the container has for as long as it is attached; undo brings it back, down.

    ``name`` is what the host calls it, ``before`` the alias it had. It is known by its ``alias``, so it is found
    wherever it is: the kernel itself brings a physical link back when the container's namespace ends, under
    whatever name is free. Raises Conflict, Missing. *Equivalent to:* ``ip link set NAME netns CONTAINER name LINK``.
    """

    name: str
    container: str
    passing: str
    alias: str
    before: str = ""
    type: str = ""
    mac: str = ""
    mtu: int = 0

    @property
    def creates(self) -> tuple[LinkRef, ...]:
        return ((Side.CONTAINER, self.container),)

    def apply(self, machine: Machine) -> bool:
        container = _container(machine, self.container)
        # Its alias first: what a process that is killed now leaves is still known.
        machine.host.change_link(self.name, alias=self.alias)
        machine.host.change_link(self.name, new_name=self.container, namespace=container)
        return True

    def undo(self, machine: Machine) -> None:
        container, host = machine.container, machine.host
        there = self._find(container, self.container) if container is not None else None
        if container is not None and there is not None:
            self._bring_back(container, there, host)
            return
        there = self._find(host, self.name)
        deadline = time.monotonic() + _PATIENCE
        while there is None and container is None and not self.type and time.monotonic() < deadline:
            time.sleep(0.05)
            there = self._find(host, self.name)
        if there is not None:
            self._name_again(host, there)

    def _find(self, namespace: Namespace, likely: str) -> Link | None:
        link = namespace.link(likely)
        if link is not None and has_mark(link, self.alias):
            return link
        return next((link for link in namespace.links() if has_mark(link, self.alias)), None)

    def _bring_back(self, container: Namespace, there: Link, host: Namespace) -> None:
        mac, mtu = self._restored(there)
        try:
            container.change_link(
                there.name, up=False, alias=self.before, mac=mac, mtu=mtu, new_name=self.name, namespace=host
            )
        except Exists as error:
            # Whatever else happens, the container must not keep it.
            container.change_link(there.name, up=False, new_name=self.passing, namespace=host)
            raise self._taken(self.passing) from error

    def _name_again(self, host: Namespace, there: Link) -> None:
        mac, mtu = self._restored(there)
        if there.name == self.name:
            host.change_link(self.name, alias=self.before, mac=mac, mtu=mtu)
            return
        host.change_link(there.name, up=False)
        try:
            host.change_link(there.name, alias=self.before, mac=mac, mtu=mtu, new_name=self.name)
        except Exists as error:
            raise self._taken(there.name) from error

    def _restored(self, there: Link) -> tuple[str | None, int | None]:
        """The MAC address and MTU to give back, None where the container left them alone."""
        return (self.mac if there.mac != self.mac else None), (self.mtu if there.mtu != self.mtu else None)

    def _taken(self, here: str) -> Conflict:
        return Conflict(
            f"the host has another link {self.name} by now, so the one that comes back is {here}",
            hint=f"rename that other link, then DEL again; or leave it: ip link set {here} alias ''",
        )

    def mismatch(self, machine: Machine) -> str | None:
        link = machine.container.link(self.container) if machine.container is not None else None
        return _unlike(link, self.container, self.alias, self.mac, self.mtu)

    def commands(self, namespace: str) -> tuple[str, ...]:
        return (
            f"ip link set {self.name} alias '{self.alias}'",
            f"ip link set {self.name} netns {namespace} name {self.container}",
        )


def lend(link: Link, attachment: Attachment) -> LentLink:
    """The operation that lends a link of the host's to an attachment.

    The alias tells the host's name for it, so that it finds home when all records are lost.
    """
    return LentLink(
        name=link.name,
        container=attachment.interface,
        passing=identity.temporary_link(attachment),
        alias=identity.alias(f"{_LENT}:{identity.attachment_digest(attachment)}", f"{link.name}:lent to {attachment}"),
        # A mark that a lost record left behind is nothing to go back to.
        before="" if link.alias.startswith(f"{_LENT}:") else link.alias,
        type=link.kind,
        mac=link.mac,
        mtu=link.mtu,
    )


def leftovers(machine: Machine, attachment: Attachment, *, on_host: bool) -> Iterator[Operation]:
    """What must have made the links that bear an attachment's marks, its record lost: for ``undo`` alone."""
    digest = identity.attachment_digest(attachment)
    passing = identity.temporary_link(attachment)
    inside = machine.container.links() if machine.container is not None else ()
    for link in inside:
        if link.name == passing or identity.mark_digest(link.alias) == digest:
            yield ContainerLink(link.name, link.kind, passing, identity.attachment_mark(attachment))
    for link in (*inside, *(machine.host.links() if on_host else ())):
        parts = link.alias.split(":", 3)
        if parts[:2] == [_LENT, digest] and len(parts) == 4:
            yield LentLink(
                parts[2], link.name, passing, f"{_LENT}:{digest}", type=link.kind, mac=link.mac, mtu=link.mtu
            )


def lent_by_name(link: Link, attachment: Attachment) -> LentLink:
    """What the reference plugin host-device must have done: it leaves nothing but the host's name, as the alias."""
    return LentLink(
        link.alias,
        link.name,
        identity.temporary_link(attachment),
        link.alias,
        type=link.kind,
        mac=link.mac,
        mtu=link.mtu,
    )
