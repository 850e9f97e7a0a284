"""Operations on links in the container: created for it, or moved into it from the host."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace

from cni_plugin.ops.links import has_mark, nsenter, retry_while_exists
from cni_plugin.ops.operation import LinkRef, Machine, Operation
from weft import identity, stderr
from weft.errors import Conflict, Exists, Missing, WeftError
from weft.kernel.interface import Namespace
from weft.kernel.values import Link
from weft.types import Attachment, Side

_LENT = "weft-device"
"""The start of aliases of moved links; unlike other marks, so that GC never deletes a link of the
host's own.
"""

_PATIENCE = 2.0
"""Seconds until the kernel has moved the physical links of a deleted namespace back to the host
(cleanup_net).
"""


def _container(machine: Machine, name: str) -> Namespace:
    """The container's namespace; raises Missing if it is gone, Conflict if it has a link of that name."""
    if machine.container is None:
        raise Missing(f"cannot create {name}: the container's network namespace is gone")
    if machine.container.link(name) is not None:
        raise Conflict(
            f"link {name} already exists in the container",
            hint="DEL the attachment that created it first, or use another CNI_IFNAME",
        )
    return machine.container


def _difference(link: Link | None, name: str, alias: str, mac: str, mtu: int) -> str | None:
    """How a link of the container differs from the planned one, in a sentence; None if it does not."""
    if link is None:
        return f"the container's link {name} is missing"
    if not has_mark(link, alias):
        return f"the container's link {name} is not the one that was attached"
    if mac and link.mac != mac:
        return f"{name} has the MAC address {link.mac} instead of {mac}"
    return f"the MTU of {name} is {link.mtu} instead of {mtu}" if mtu and link.mtu != mtu else None


def _is_there(machine: Machine, name: str, alias: str) -> bool:
    """Whether the container has the link, under its name."""
    link = machine.container.link(name) if machine.container is not None else None
    return link is not None and has_mark(link, alias)


def _is_occupied(machine: Machine, name: str, alias: str) -> bool:
    """Whether the container is gone, or has another link of that name."""
    link = machine.container.link(name) if machine.container is not None else None
    return machine.container is None or (link is not None and not has_mark(link, alias))


def _reset(machine: Machine, name: str, mac: str, mtu: int) -> None:
    """Give a link of the container its MAC address and MTU again."""
    if machine.container is not None:
        machine.container.change_link(name, mac=mac or None, mtu=mtu or None)


@dataclass(frozen=True, slots=True)
class ContainerLink(Operation):
    """A link created in the container: macvlan, ipvlan or VLAN on a ``parent`` on either side, dummy or
    tap.

    It is created under the name ``passing`` and renamed together with setting its alias, so that a link
    with its final name always has the alias, even if the process is killed. ``mtu`` in bytes, 0: the
    kernel's default. ``master`` is a bridge in the container. ``handed``: it is for the runtime to move,
    from the host's namespace; ``moved``: it has, and has configured it, so that it alone can make it
    again. Raises Conflict, Missing, KernelLacks.
    *Equivalent to:* ``ip link add NAME link PARENT type KIND …``.
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
    handed: bool = False
    moved: bool = False

    @property
    def creates(self) -> tuple[LinkRef, ...]:
        return ((Side.CONTAINER, self.name),)

    def handed_over(self) -> ContainerLink:
        return replace(self, handed=True)

    def settled(self, link: str) -> ContainerLink:
        return replace(self, name=link, handed=False, moved=True)

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
                    f"{self.parent or 'the container'} already has such a {self.type} link: {error.message}",
                    hint="a VLAN of a link can be used by one container only",
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
        if self.handed:
            return None
        link = machine.container.link(self.name) if machine.container is not None else None
        return _difference(link, self.name, self.alias, self.mac, self.mtu) or (
            self._kind_mismatch(link) if link else None
        )

    def lost(self, machine: Machine) -> tuple[LinkRef, ...]:
        return () if self.handed or _is_there(machine, self.name, self.alias) else self.creates

    def is_repairable(self, machine: Machine) -> bool:
        """Unless its parent is missing, another link has its name, it is of another kind, or the runtime
        configured it.
        """
        parent = machine.side(self.side)
        if self.handed or parent is None or (self.parent and parent.link(self.parent) is None):
            return False
        link = machine.container.link(self.name) if machine.container is not None else None
        if link is None or not has_mark(link, self.alias):
            return not self.moved and not _is_occupied(machine, self.name, self.alias)
        return self._kind_mismatch(link) is None

    def repair(self, machine: Machine) -> None:
        if self.lost(machine):
            self.undo(machine)  # it may be there under another name
            self.apply(machine)
        else:
            _reset(machine, self.name, self.mac, self.mtu)

    def _kind_mismatch(self, link: Link) -> str | None:
        if link.kind != self.type:
            return f"{self.name} is a {link.kind or 'physical'} link, not {self.type}"
        if link.master != self.master:
            return f"{self.name} is on {link.master or 'no bridge'} instead of {self.master or 'none'}"
        for key, wanted in self.options:
            there = link.options.get(key, wanted)  # an attribute that this kernel does not dump cannot be compared
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
    """A link of the host that is moved into the container; undo moves it back, down.

    ``name`` is its name on the host, ``before`` the alias it had. It is found by its ``alias``: when the
    container's namespace is deleted, the kernel moves a physical link back to the host, under any free
    name, and a process of the container may have moved it to a namespace of its own. Raises Conflict,
    Missing. *Equivalent to:* ``ip link set NAME netns CONTAINER name LINK``.
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
        # The alias first: if the process is killed here, the link can still be found.
        machine.host.change_link(self.name, alias=self.alias)
        machine.host.change_link(self.name, new_name=self.container, namespace=container)
        return True

    def undo(self, machine: Machine) -> None:
        host, container = machine.host, machine.container
        if container is not None and self._take_back(self._find_inside(container), container, host):
            return
        # Who deletes a virtual link, or its namespace, deletes it for good.
        if (
            self._found_on(host)
            or self.type
            or any(self._take_back(self._find(one), one, host) for one in machine.others())
        ):
            return
        deadline = time.monotonic() + _PATIENCE
        while not self._found_on(host):
            if time.monotonic() >= deadline:
                stderr.write(f"weft: {self.name} is neither in the container nor on the host, and is not returned\n")
                return
            time.sleep(0.05)

    def _found_on(self, host: Namespace) -> bool:
        """Give the link its name again if it is on the host; whether it is."""
        there = self._find(host, self.name)
        if there is not None:
            self._rename_back(host, there)
        return there is not None

    def _find(self, namespace: Namespace, likely: str = "") -> Link | None:
        """The link by its mark. The container may have given that to a link of another kind."""
        link = namespace.link(likely) if likely else None
        if link is not None and self._is_marked(link):
            return link
        return next((link for link in namespace.links() if self._is_marked(link)), None)

    def _is_marked(self, link: Link) -> bool:
        return link.kind == self.type and has_mark(link, self.alias)

    def _find_inside(self, container: Namespace) -> Link | None:
        """The link in the container, which may have changed its mark, and the name of a physical one: that
        has its MAC address at least.
        """
        if (marked := self._find(container, self.container)) is not None:
            return marked
        alike = (one for one in container.links() if (one.kind, one.mac) == (self.type, self.mac) and one.name != "lo")
        return next((one for one in alike if not self.type or one.name == self.container), None)

    def _take_back(self, there: Link | None, container: Namespace, host: Namespace) -> bool:
        if there is not None:
            self._move_back(container, there, host)
        return there is not None

    def _move_back(self, container: Namespace, there: Link, host: Namespace) -> None:
        mac, mtu = self._restored(there)
        try:
            container.change_link(
                there.name, up=False, alias=self.before, mac=mac, mtu=mtu, new_name=self.name, namespace=host
            )
        except Exists as error:
            # In any case the container must not keep it.
            container.change_link(there.name, up=False, new_name=self.passing, namespace=host)
            raise self._taken(self.passing) from error

    def _rename_back(self, host: Namespace, there: Link) -> None:
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
        """The MAC address and MTU to restore, None where they are unchanged."""
        return (self.mac if there.mac != self.mac else None), (self.mtu if there.mtu != self.mtu else None)

    def _taken(self, here: str) -> Conflict:
        return Conflict(
            f"the host has another link {self.name} now, so the returned link is named {here}",
            hint=f"rename the other link and DEL again, or keep the name: ip link set {here} alias ''",
        )

    def mismatch(self, machine: Machine) -> str | None:
        link = machine.container.link(self.container) if machine.container is not None else None
        return _difference(link, self.container, self.alias, self.mac, self.mtu)

    def lost(self, machine: Machine) -> tuple[LinkRef, ...]:
        return () if _is_there(machine, self.container, self.alias) else self.creates

    def is_repairable(self, machine: Machine) -> bool:
        """Unless it is neither in the container nor back on the host under its name, where nobody uses it."""
        if self.lost(machine):
            return self._is_back(machine.host) and not _is_occupied(machine, self.container, self.alias)
        return True

    def _is_back(self, host: Namespace) -> bool:
        """Whether the host's link of that name is this one, and idle. A virtual one without the mark may be
        another, created since.
        """
        link = host.link(self.name)
        if link is None or link.master or link.up or host.addresses(self.name):
            return False
        same = (link.kind, link.mac, link.alias) == (self.type, self.mac, self.before)
        return has_mark(link, self.alias) or (not self.type and same)

    def repair(self, machine: Machine) -> None:
        if self.lost(machine):
            if not self._is_back(machine.host):
                raise Conflict(f"{self.name} on the host is not the link that was lent, or in use")
            self.apply(machine)
        else:
            _reset(machine, self.container, self.mac, self.mtu)

    def commands(self, namespace: str) -> tuple[str, ...]:
        return (
            f"ip link set {self.name} alias '{self.alias}'",
            f"ip link set {self.name} netns {namespace} name {self.container}",
        )


def lend(link: Link, attachment: Attachment) -> LentLink:
    """The operation that moves a link of the host into an attachment's container.

    The alias holds its name on the host, so that it can be moved back if all records are lost.
    """
    return LentLink(
        name=link.name,
        container=attachment.interface,
        passing=identity.temporary_link(attachment),
        alias=identity.alias(f"{_LENT}:{identity.attachment_digest(attachment)}", f"{link.name}:lent to {attachment}"),
        # A mark from a lost record is not an alias to restore.
        before="" if link.alias.startswith(f"{_LENT}:") else link.alias,
        type=link.kind,
        mac=link.mac,
        mtu=link.mtu,
    )


def leftovers(machine: Machine, attachment: Attachment, *, on_host: bool) -> Iterator[Operation]:
    """Operations that undo the links with an attachment's marks, for an attachment without a record."""
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
    """The operation for a link that the reference plugin moved: its alias is its name on the host, and
    no more.
    """
    return LentLink(
        link.alias,
        link.name,
        identity.temporary_link(attachment),
        link.alias,
        type=link.kind,
        mac=link.mac,
        mtu=link.mtu,
    )
