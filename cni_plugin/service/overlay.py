"""Overlay networks that are set up on this host follow their files, without an ADD.

The cluster's agent calls ``reconcile`` when it has replaced a network's files, and from time to time;
``weft network reconcile`` calls it by hand.
"""

from __future__ import annotations

from cni_plugin.ops import KnownPeers, OverlayRows, VxlanLink
from cni_plugin.ops.operation import Operation
from cni_plugin.service import executor
from cni_plugin.service.context import ServiceContext
from cni_plugin.service.shared import shared_locked
from weft.errors import Missing


def operations(context: ServiceContext, network: str) -> tuple[Operation, ...]:
    """What follows the files of a network, in the order in which it is applied: none of it is an
    attachment's. Raises Missing where no overlay network of that name is set up here.
    """
    found = tuple(
        one for one in context.recorded_shared(network) if isinstance(one, VxlanLink | OverlayRows | KnownPeers)
    )
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
