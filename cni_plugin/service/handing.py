"""Links that a runtime moves into the container's namespace itself, as Docker does: where they are."""

from __future__ import annotations

import contextlib
from dataclasses import replace

from cni_plugin.ops import ContainerLink, OverlayRows, Reachable, Veth
from cni_plugin.ops.links import has_mark
from cni_plugin.ops.operation import Machine, Operation
from cni_plugin.ops.overlay_asking import asks_often
from cni_plugin.service.context import ServiceContext
from cni_plugin.service.records import Phase, Record
from weft import overlay
from weft.errors import KernelRefused, Missing, WeftError
from weft.kernel.interface import Namespace
from weft.kernel.values import Link
from weft.types import Attachment


def settle(context: ServiceContext, attachment: Attachment, path: str, *, ended: bool = False) -> bool:
    """Note that the runtime has moved the attachment's link to the namespace at ``path``, under which name:
    from now on CHECK and GC see it there. Whether the link is known to be in a container's namespace.

    A runtime moves the link first and renames it then, so one that has its first name is not settled yet,
    unless the runtime has ``ended`` with it. One that is to be used has its addresses announced. Raises
    NamespaceProblem without such a namespace, Busy.
    """
    with contextlib.ExitStack() as opened:
        with context.locked(attachment):
            record = context.records.read(attachment)
            if record is None or record.phase is not Phase.ATTACHED:
                return False
            if not any(_is_handed(one) for one in record.operations):
                _note_former(context, record)
                return True
            namespace = context.kernel.open(path)
            opened.callback(namespace.close)
            host = context.kernel.host
            name = next((_find(namespace, one, host) for one in record.operations if _is_handed(one)), "")
            is_final = name and (ended or name != attachment.interface)
            if not is_final or namespace.id.same(host.id):
                return False
            operations = tuple(one.settled(name) if _is_handed(one) else one for one in record.operations)
            context.records.write(replace(record, namespace=namespace.id, operations=operations))
        if not ended:  # without the lock, since it may wait
            machine = context.machine(namespace)
            _ask_often(machine, name, record.shared)
            _announce(namespace, machine, name, record.operations)
    return True


def _note_former(context: ServiceContext, record: Record) -> None:
    """Note that the runtime has moved the link, in a record of an earlier release, which had no field for that."""
    links = [one for one in record.operations if isinstance(one, Veth | ContainerLink)]
    if not all(one.moved for one in links):
        noted = tuple(one.settled(one.creates[-1][1]) if one in links else one for one in record.operations)
        context.records.write(replace(record, operations=noted))


def _ask_often(machine: Machine, name: str, shared: tuple[Operation, ...]) -> None:
    """Set what the link of an overlay network's container has of its neighbours, as where weft configures it."""
    rows = next((one for one in shared if isinstance(one, OverlayRows)), None)
    if rows is not None:
        with contextlib.suppress(WeftError):  # the link is gone, or the network's file
            for setting in asks_often(name, overlay.read_network(rows.path, rows.network)):
                setting.apply(machine)


def _announce(namespace: Namespace, machine: Machine, name: str, operations: tuple[Operation, ...]) -> None:
    """Announce the link's addresses, now and when it comes up again, as those of a link that weft configures."""
    pair = next((one for one in operations if isinstance(one, Veth)), None)
    with contextlib.suppress(KernelRefused):  # an ipvlan link, which has its parent's MAC address, or one that is gone
        namespace.set_sysctl(f"net/ipv4/conf/{name}/arp_notify", "1")
        with contextlib.suppress(Missing):  # without IPv6
            namespace.set_sysctl(f"net/ipv6/conf/{name}/ndisc_notify", "1")
        if pair is not None:
            Reachable(name, pair.host, pair.bridge).apply(machine)
        elif (link := namespace.link(name)) is not None and link.up:  # else the runtime may yet set its MAC address
            namespace.announce(name)


def _is_handed(operation: Operation) -> bool:
    return isinstance(operation, Veth | ContainerLink) and operation.handed


def _find(namespace: Namespace, operation: Operation, host: Namespace) -> str:
    """The name of the operation's link there, "" if it is not there."""
    outer = host.link(operation.host) if isinstance(operation, Veth) else None
    return next((link.name for link in namespace.links() if _is_of(link, operation, outer)), "")


def _is_of(link: Link, operation: Operation, outer: Link | None) -> bool:
    if isinstance(operation, Veth):
        if outer is None:  # renamed
            return (link.kind, link.mac) == ("veth", operation.mac)
        # Not by the MAC address: a container may have asked for the same one on two networks.
        return link.kind == "veth" and (link.index, link.peer_index) == (outer.peer_index, outer.index)
    return isinstance(operation, ContainerLink) and has_mark(link, operation.alias)
