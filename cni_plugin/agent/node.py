"""This host's node in the catalog, whose address follows the host's uplink."""

from __future__ import annotations

import contextlib
import logging
import uuid
from dataclasses import replace

from cni_plugin.agent.settings import Settings
from discovery.registry import Registry
from discovery.structs import Node
from weft import __version__
from weft.kernel import default_route
from weft.kernel.linux.kernel import LinuxKernel

log = logging.getLogger("weft.agent")


def read(settings: Settings) -> Node:
    """The node: at the configured address, else that of the uplink, 127.0.0.1 where there is none."""
    machine = ""
    with contextlib.suppress(OSError), open("/etc/machine-id", encoding="ascii", errors="replace") as file:
        machine = file.read().strip()
    number = uuid.uuid5(uuid.NAMESPACE_OID, f"weft {machine} {settings.node}")
    meta = {"weft-version": __version__, **settings.meta}
    node = Node(settings.node, "", str(number), settings.datacenter, meta)
    return _at(node, settings.address or _address() or "127.0.0.1")


async def follow(settings: Settings, registry: Registry) -> None:
    """Publish the node's new address where the uplink has another one; without an uplink the last one
    stays. Raises StoreError.
    """
    address = settings.address or _address()
    if address and address != registry.node.address:
        log.info("the host's address is %s instead of %s", address, registry.node.address)
        await registry.publish_node(_at(registry.node, address))


def _at(node: Node, address: str) -> Node:
    return replace(node, address=address, tagged_addresses={"lan": address, "wan": address})


def _address() -> str:
    with contextlib.closing(LinuxKernel()) as kernel:
        return str(default_route.address(kernel.host) or "")
