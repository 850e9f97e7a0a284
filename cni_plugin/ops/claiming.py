"""Static addresses of overlay networks, which the agent gets for this host (``weft.claims``)."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterable

from cni_plugin.ops.announcement import AGENT, SOCKET, run_folder
from cni_plugin.ops.operation import Machine
from ipam.leases import Owner
from weft import claims, daemons, identity
from weft.errors import Busy, Conflict, WeftError
from weft.kernel.linux.packet_socket import PacketSocket
from weft.types import Address

_SECONDS, _PAUSE, _END_SECONDS = 10.0, 0.005, 1.0


def claim(machine: Machine, network: str, owner: Owner, addresses: list[Address]) -> None:
    """Have the cluster record that addresses are at this host.

    Raises Conflict where a container on another host has one, or that host does not answer; Busy.
    """
    run = run_folder(machine)
    made = claims.make(run, network, owner.container, owner.interface, addresses)
    try:
        AGENT.ensure(os.path.join(run, SOCKET))
        deadline = time.monotonic() + _SECONDS
        while (refused := claims.answered(run, made)) is None:
            if time.monotonic() > deadline:
                wanted = " and ".join(map(str, addresses))
                raise Busy(
                    f"the agent has not said within {_SECONDS:g} s whether this host can have {wanted}",
                    hint="weft status says what is wrong with it, or with the cluster; try again",
                )
            time.sleep(_PAUSE)
        if refused:
            raise Conflict(refused, hint="request another address, or none")
    except WeftError:
        end(machine, network, owner, ())
        raise


def end(machine: Machine, network: str, owner: Owner, addresses: Iterable[Address]) -> None:
    """Let the agent give the addresses back; what was not claimed is left alone.

    The bridge, which is the gateway, answers ARP for them from now on: containers here must not keep the MAC
    address of one that starts on another host next.
    """
    run = run_folder(machine)
    if not claims.remove(run, network, owner.container, owner.interface):
        return
    for address in addresses:
        if address.version == 4:
            with (
                contextlib.suppress(WeftError),
                PacketSocket(machine.host.id, identity.overlay_bridge(network)) as bridge,
            ):
                bridge.send_gratuitous_arp(address)
    daemons.refresh(os.path.join(run, SOCKET), _END_SECONDS)
