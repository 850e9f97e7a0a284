"""Deletion of one link, without waiting for its acknowledgement.

The kernel announces a link's end about 1 ms after the request, when its name is free again, and
acknowledges the request some 15 ms later, after an RCU barrier during which it holds no lock. So a
thread of its own sends the request, and the caller waits for the announcement. Source:
``net/core/dev.c`` (netdev_run_todo).
"""

from __future__ import annotations

import select
import threading
import time

from weft.errors import KernelRefused
from weft.kernel.netlink import links
from weft.kernel.netlink.constants import RTM_DELLINK, RTMGRP_LINK
from weft.kernel.netlink.rtnetlink import RouteSocket, request
from weft.kernel.netlink.transport import NoAnswer

_TIMEOUT = 30.0


def delete(index: int, name: str) -> None:
    """Delete a link of the calling thread's namespace, return when its name is free.

    Raises ``Missing`` and other refusals. *Equivalent to:* ``ip link delete NAME``.
    """
    worker, watcher = RouteSocket(), RouteSocket(groups=RTMGRP_LINK)
    try:
        _delete(worker, watcher, index, name)
    finally:
        worker.close()
        watcher.close()


def _delete(worker: RouteSocket, watcher: RouteSocket, index: int, name: str) -> None:
    deletion = request(RTM_DELLINK, 0, f"delete the link {name}", {"index": index})
    failures: list[KernelRefused] = []

    def submit() -> None:
        try:
            worker.submit(deletion)
        except KernelRefused as error:
            failures.append(error)

    threading.Thread(target=submit, name=f"delete {name}", daemon=True).start()
    poll = select.poll()
    poll.register(worker.fileno(), select.POLLIN)
    poll.register(watcher.fileno(), select.POLLIN)
    deadline = time.monotonic() + _TIMEOUT
    while time.monotonic() < deadline:
        ready = {descriptor for descriptor, _ in poll.poll(100)}
        outcome = worker.completed(deletion) if worker.fileno() in ready else None
        if outcome is not None:
            if outcome.error is not None:
                raise outcome.error
            return
        if watcher.fileno() in ready and index in deleted_links(watcher):
            return
        if failures:
            raise failures[0]
    raise KernelRefused(f"cannot delete the link {name}: no answer from the kernel in {_TIMEOUT:g} seconds")


def deleted_links(watcher: RouteSocket) -> list[int]:
    """The links whose deletion the next datagram announces; none where announcements were lost."""
    try:
        messages = watcher.receive("watch for deleted links")
    except NoAnswer:  # the acknowledgement will come
        return []
    return [
        links.index_of(message)
        for _, kind, _, message in messages
        if kind == RTM_DELLINK and not links.is_bridge_event(message)
    ]
