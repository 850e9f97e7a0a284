"""Deletion of links for many threads at once, in batches.

The kernel unregisters links one by one under RTNL, 3 ms each where many ask, but a group of them in
less than 1 ms each. So deletions that are asked for while one is under way are gathered and sent
together, as a link group with a number of its own. The callers return at the announcement (see
``deletion``); the thread that sent the request waits some 15 ms for the acknowledgement, and
another takes its place. Source: ``rtnl_group_dellink`` in ``net/core/rtnetlink.c``.
"""

from __future__ import annotations

import os
import threading

from weft.errors import KernelRefused
from weft.kernel.netlink.constants import RTM_DELLINK, RTM_NEWLINK, RTNLGRP_LINK
from weft.kernel.netlink.deletion import deleted_links
from weft.kernel.netlink.rtnetlink import RouteSocket, request

_TIMEOUT = 30.0
_MAX_SENDERS = 24
_MAX_BATCH = 64


class _PendingDelete:
    """One link to be deleted; ``done`` is released when it is, or when that failed."""

    __slots__ = ("done", "error", "index", "name")

    def __init__(self, index: int, name: str) -> None:
        self.index = index
        self.name = name
        self.error: KernelRefused | None = None
        self.done = threading.Lock()
        self.done.acquire()


class BatchDeleter:
    """Deletes links of the network namespace that all callers are in, the constructor's too."""

    def __init__(self) -> None:
        self._watcher = RouteSocket()
        self._state = threading.Condition()
        self._queued: list[_PendingDelete] = []
        self._in_flight: dict[int, _PendingDelete] = {}
        self._senders = self._idle_senders = 0
        self._subscribed = False
        threading.Thread(target=self._watch, name="link watcher", daemon=True).start()

    def delete(self, index: int, name: str) -> None:
        """Delete the link, return when its name is free. Raises ``Missing`` and other refusals."""
        pending = _PendingDelete(index, name)
        with self._state:
            if not self._subscribed:
                self._watcher.join(RTNLGRP_LINK)
                self._subscribed = True
            self._queued.append(pending)
            if self._idle_senders:
                self._state.notify()
            elif self._senders < _MAX_SENDERS:
                self._senders += 1
                threading.Thread(target=self._send, args=(RouteSocket(),), name="link deletion", daemon=True).start()
        if not pending.done.acquire(timeout=_TIMEOUT):
            raise KernelRefused(f"cannot delete the link {name}: no answer from the kernel in {_TIMEOUT:g} seconds")
        if pending.error is not None:
            raise pending.error

    def _send(self, socket: RouteSocket) -> None:
        """A sender's loop: take the queue, request deletions, wait for the acknowledgement."""
        while True:
            with self._state:
                self._idle_senders += 1
                while not self._queued or self._in_flight:
                    self._state.wait()
                self._idle_senders -= 1
                for pending in self._queued[:_MAX_BATCH]:
                    self._in_flight.setdefault(pending.index, pending)
                batch = list(self._in_flight.values())
                self._queued = [pending for pending in self._queued if pending not in batch]
            try:
                failure = _request_deletion(socket, batch)
            except KernelRefused as error:
                failure = error
            except BaseException as error:
                failure = KernelRefused(f"cannot delete links: {error}")
            with self._state:
                for pending in batch:
                    if self._in_flight.get(pending.index) is pending:
                        pending.error = pending.error or failure
                        self._complete(pending)

    def _watch(self) -> None:
        """The watcher's loop: complete what the kernel announces as deleted."""
        while True:
            deleted = deleted_links(self._watcher)
            if deleted:
                with self._state:
                    for pending in [self._in_flight[index] for index in deleted if index in self._in_flight]:
                        self._complete(pending)

    def _complete(self, pending: _PendingDelete) -> None:
        """Release the caller; ``_state`` is held."""
        del self._in_flight[pending.index]
        pending.done.release()
        if self._in_flight:
            return
        if self._queued:
            self._state.notify()
        else:
            self._watcher.leave(RTNLGRP_LINK)
            self._subscribed = False


def _request_deletion(socket: RouteSocket, batch: list[_PendingDelete]) -> KernelRefused | None:
    """Delete one link, or several as a group; the refusal of all.

    A single link's refusal is stored in it.
    """
    if len(batch) == 1:
        action = f"delete the link {batch[0].name}"
        return socket.attempt(request(RTM_DELLINK, 0, action, {"index": batch[0].index}))[0].error
    group = int.from_bytes(os.urandom(4), "little") | 0x40000000  # administrators number theirs from 0
    marking = [
        request(RTM_NEWLINK, 0, f"delete the link {pending.name}", {"index": pending.index}, [["IFLA_GROUP", group]])
        for pending in batch
    ]
    for pending, outcome in zip(batch, socket.attempt(*marking), strict=True):
        pending.error = outcome.error
    if all(pending.error for pending in batch):
        return None
    action = f"delete the links {', '.join(pending.name for pending in batch)}"
    return socket.attempt(request(RTM_DELLINK, 0, action, {}, [["IFLA_GROUP", group]]))[0].error
