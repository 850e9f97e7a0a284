"""Overlay networks that are set up on this host follow their files, without an ADD.

The cluster's agent calls ``reconcile`` when it has replaced a network's files, and from time to time;
``weft network reconcile`` calls it by hand.
"""

from __future__ import annotations

from cni_plugin.ops import (
    DirectPeers,
    Esp,
    GatewayPort,
    KnownPeers,
    OverlayRows,
    VxlanLink,
    VxlanPort,
    WireGuardLinks,
)
from cni_plugin.ops.operation import Operation
from cni_plugin.service import assemble, executor, overlaps
from cni_plugin.service.context import ServiceContext
from cni_plugin.service.shared import shared_locked
from cni_plugin.service.verbs import Service
from cni_plugin.wire import config
from cni_plugin.wire.plugins import OWN_NAME
from cni_plugin.wire.request import Command, Request
from weft.errors import Missing
from weft.types import NamespaceId

_FOLLOWING = (VxlanLink, VxlanPort, GatewayPort, OverlayRows, KnownPeers, DirectPeers, WireGuardLinks, Esp)


def operations(context: ServiceContext, network: str) -> tuple[Operation, ...]:
    """What follows the files of a network, in the order in which it is applied: none of it is an
    attachment's. Raises Missing where no overlay network of that name is set up here.
    """
    found = tuple(one for one in context.recorded_shared(network) if isinstance(one, _FOLLOWING))
    if not found:
        raise Missing(
            f"overlay network {network} is not set up on this host", hint="its first container on this host sets it up"
        )
    return found


def differences(context: ServiceContext, network: str) -> list[str]:
    """How the kernel differs from the network's files, a sentence for each operation; nothing is changed."""
    return executor.mismatches(operations(context, network), context.machine(None))


def reconcile(context: ServiceContext, network: str) -> list[str]:
    """Make the kernel as the network's files say; what differed, a sentence for each operation.

    Raises Busy, StateDamaged and KernelRefused; what was not done yet is then left to the next call.
    """
    machine, found = context.machine(None), []
    with shared_locked(context):
        shared = context.recorded_shared(network)
        following = set(operations(context, network))
        changed = False
        for operation in shared:
            # A VXLAN link that was made anew lacks its sysctls, too.
            if operation in following or changed:
                sentence = operation.mismatch(machine)
                if sentence is not None:
                    executor.apply(operation, machine, context.watch, context.log)
                    found.append(sentence)
                    changed = changed or isinstance(operation, VxlanLink)
    return found


def set_up(service: Service, text: bytes) -> None:
    """Set up what containers of the network will share, without one; ``text`` is the plugin's configuration.

    Nothing is changed where it is set up already. Raises Conflict where this host uses the network's
    subnet, ConfigProblem, Busy, StateDamaged and KernelRefused.
    """
    request, assembly = _read(text)
    record = service.planner.new_record(request, assembly, NamespaceId(""))
    record = service.planner.plan_shared(record, request, assembly)
    machine = service.machine(None)
    with service.network_locked(request.config.name):
        service.ensure_shared(
            record.attachment, record.shared, machine, refuse=lambda: overlaps.refuse(service, request, record)
        )


def validate(text: bytes) -> None:
    """Raises ConfigProblem naming all that is wrong with a plugin's configuration."""
    _read(text)


def _read(text: bytes) -> tuple[Request, assemble.Assembly]:
    read = config.read(text, Command.ADD, OWN_NAME)
    request = Request(Command.ADD, OWN_NAME, _NOBODY, "", "eth0", (), {}, False, {}, read, text)
    assembly = assemble.read(request)
    read.keys.problems.raise_any()
    return request, assembly


_NOBODY = "weft"
"""The container of no attachment."""
