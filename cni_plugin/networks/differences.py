"""What of an attachment or network differs from what was set up, and which of it can be repaired."""

from __future__ import annotations

from functools import partial

from cni_plugin.networks import attachments
from cni_plugin.networks.attachments import Endpoint
from cni_plugin.service import executor
from cni_plugin.service.context import ServiceContext
from cni_plugin.service.records import NetworkRecord
from weft.errors import WeftError
from weft.kernel.interface import Namespace

LO_DOWN = "lo is down in the container, which does not reach its own servers at 127.0.0.1"


def differences(context: ServiceContext, one: Endpoint | NetworkRecord) -> list[tuple[str, bool]]:
    """What differs, and whether ``weft doctor --repair`` mends it; also that its lo is down."""
    if isinstance(one, NetworkRecord):
        return [(sentence, True) for sentence in context.compared(partial(_shared_mismatches, one))]
    down: list[bool] = []
    found = attachments.differences(
        context, one, shared=False, look=lambda container: down.append(_is_loopback_down(container))
    )
    return [*found, (LO_DOWN, False)] if any(down) else found


def _is_loopback_down(container: Namespace) -> bool:
    try:
        return not container.is_loopback_up()
    except (WeftError, OSError):
        return False


def _shared_mismatches(network: NetworkRecord, context: ServiceContext) -> list[str]:
    machine, count = context.machine(None), len(network.shared)
    return [one.sentence for one in executor.differences(network.shared, machine, shared=count, known=context.known)]
