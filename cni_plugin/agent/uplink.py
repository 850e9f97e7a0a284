"""Metrics of the uplink's classes, read from the kernel when metrics are asked for."""

from __future__ import annotations

import asyncio
from contextlib import closing, suppress

from cni_plugin.dataplane.tables import TABLES
from cni_plugin.dataplane.uplink import DEFAULT, DOWNLOAD_LINK, UPLINK_CLASSES, UPLINK_LINKS, class_owner
from discovery.metrics import Metrics
from weft.errors import KernelRefused
from weft.kernel.linux.kernel import LinuxKernel

Values = dict[tuple[str, ...], float]
"""A value by direction and owner."""


def traffic() -> tuple[Values, Values]:
    """The bytes that each owner's class has sent and the packets that it has dropped, since it was made."""
    sent: Values = {}
    dropped: Values = {}
    with closing(LinuxKernel(tables=TABLES)) as kernel, suppress(KernelRefused):  # no table, or an earlier release's
        owners = {int(str(one.key[0])) & 0xFFFF: class_owner(one.mark) for one in kernel.rules.elements(UPLINK_CLASSES)}
        links = [str(one.key[0]) for one in kernel.rules.elements(UPLINK_LINKS)]
        for link in (*links, DOWNLOAD_LINK):
            with suppress(KernelRefused):
                for one in kernel.host.class_traffic(link):
                    # A network's element has the number of its class, and the next one the queue.
                    owner = owners.get(one.number) or owners.get(one.number - 1, "")
                    key = "down" if link == DOWNLOAD_LINK else "up", "" if one.number == DEFAULT else owner
                    sent[key] = sent.get(key, 0) + one.sent
                    dropped[key] = dropped.get(key, 0) + one.drops
    return sent, dropped


def export(metrics: Metrics) -> None:
    """Have the metrics read, in a thread, whenever metrics are asked for."""
    labels = "direction", "owner"
    text = "by the uplink's class of a network (its name), a container (its mark) or all others (no owner)."
    sent = metrics.counter("weft_uplink_sent_bytes_total", f"Bytes sent {text}", *labels)
    dropped = metrics.counter("weft_uplink_dropped_packets_total", f"Packets dropped {text}", *labels)

    async def read() -> None:
        found = await asyncio.to_thread(traffic)
        sent.replace(found[0])
        dropped.replace(found[1])

    metrics.read_before(read)
