"""Deleting a link without waiting for the kernel to sweep up behind it.

The kernel announces a link's end about 1 ms after the request, when its name is free again, and acknowledges it
some 15 ms later, after an RCU barrier during which it holds no lock. So a thread of its own makes the request,
and whoever asked for it listens for the announcement. Source: ``net/core/dev.c`` (netdev_run_todo).
"""

from __future__ import annotations

import select
import threading
import time

from weft.errors import KernelRefused
from weft.kernel.netlink import codec, links
from weft.kernel.netlink.socket import Request, RouteSocket, outcome_of, split

LINK_GROUP = 1
"""RTNLGRP_LINK, as the bit that a socket is bound with."""

_PATIENCE = 30.0


def delete(worker: RouteSocket, watcher: RouteSocket, index: int, name: str) -> None:
    """Delete the link and return as soon as it is gone.

    ``watcher`` listens to LINK_GROUP since before the call. Raises ``Missing`` and other refusals.
    """
    flags = codec.REQUEST | codec.ACK
    request = Request(codec.DELLINK, flags, f"delete the link {name}", {"index": index})
    data = codec.encode(request.kind, request.flags, 1, request.fields, request.attributes)
    failures: list[KernelRefused] = []

    def ask() -> None:
        try:
            worker.send(data, request.doing)
        except KernelRefused as error:
            failures.append(error)

    asker = threading.Thread(target=ask, name=f"delete {name}", daemon=True)
    asker.start()
    poll = select.poll()
    poll.register(worker.fileno(), select.POLLIN)
    poll.register(watcher.fileno(), select.POLLIN)
    deadline = time.monotonic() + _PATIENCE
    while time.monotonic() < deadline:
        ready = {descriptor for descriptor, _ in poll.poll(100)}
        if worker.fileno() in ready:
            problem = outcome_of(worker.receive(request.doing), request)
            if problem is not None:
                raise problem
            return
        if watcher.fileno() in ready and _announced(watcher, index, request.doing):
            return
        if failures:
            raise failures[0]
    raise KernelRefused(f"cannot delete the link {name}: the kernel did not answer within {_PATIENCE:g} seconds")


def _announced(watcher: RouteSocket, index: int, doing: str) -> bool:
    try:
        data = watcher.receive(doing)
    except KernelRefused:
        return False  # announcements were lost; the acknowledgement will come
    return any(
        kind == codec.DELLINK and links.index_of(message) == index and not links.of_bridge(message)
        for _, kind, _, message in split(data)
    )
