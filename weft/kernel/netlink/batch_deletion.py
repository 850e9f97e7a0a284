"""Deleting links for many threads at once: together where several wait, and none waits for the sweeping up.

The kernel unregisters links one by one under its lock, 3 ms each where many ask, but a group of them in less than 1 ms
each. So wishes that come while a deletion is under way are gathered and go together, as a group with a number of its
own. Whoever wished is told at the announcement (``deletion``); the thread that asked the kernel stays for the
acknowledgement, some 15 ms, and another takes its place. Source: ``rtnl_group_dellink`` in ``net/core/rtnetlink.c``.
"""

from __future__ import annotations

import os
import threading

from weft.errors import KernelRefused
from weft.kernel.netlink import codec, links
from weft.kernel.netlink.socket import Request, RouteSocket, split

_LINK_GROUP = 1  # RTNLGRP_LINK as a number
_PATIENCE = 30.0
_MOST_SENDERS = 24
_MOST_TOGETHER = 64


class _Wish:
    """One link to be deleted; ``done`` is held until that is so."""

    __slots__ = ("done", "index", "name", "problem")

    def __init__(self, index: int, name: str) -> None:
        self.index = index
        self.name = name
        self.problem: KernelRefused | None = None
        self.done = threading.Lock()
        self.done.acquire()


class BatchDeleter:
    """Deletes links of the namespace that the constructor's thread, and every caller, is in."""

    def __init__(self) -> None:
        self._watcher = RouteSocket()
        self._change = threading.Condition()
        self._wishes: list[_Wish] = []
        self._under_way: dict[int, _Wish] = {}
        self._senders = self._idle = 0
        self._listening = False
        threading.Thread(target=self._watch, name="announcements", daemon=True).start()

    def delete(self, index: int, name: str) -> None:
        """Delete the link and return as soon as it is gone. Raises ``Missing`` and other refusals."""
        wish = _Wish(index, name)
        with self._change:
            if not self._listening:
                self._watcher.join(_LINK_GROUP)
                self._listening = True
            self._wishes.append(wish)
            if self._idle:
                self._change.notify()
            elif self._senders < _MOST_SENDERS:
                self._senders += 1
                threading.Thread(target=self._send, args=(RouteSocket(),), name="deletions", daemon=True).start()
        if not wish.done.acquire(timeout=_PATIENCE):
            raise KernelRefused(
                f"cannot delete the link {name}: the kernel did not answer within {_PATIENCE:g} seconds"
            )
        if wish.problem is not None:
            raise wish.problem

    def _send(self, socket: RouteSocket) -> None:
        """A thread that asks the kernel and waits for its acknowledgement, again and again."""
        while True:
            with self._change:
                self._idle += 1
                while not self._wishes or self._under_way:
                    self._change.wait()
                self._idle -= 1
                for wish in self._wishes[:_MOST_TOGETHER]:
                    self._under_way.setdefault(wish.index, wish)
                batch = list(self._under_way.values())
                self._wishes = [wish for wish in self._wishes if wish not in batch]
            try:
                problem = _ask(socket, batch)
            except KernelRefused as error:
                problem = error
            except BaseException as error:
                problem = KernelRefused(f"cannot delete links: {error}")
            with self._change:
                for wish in batch:
                    if self._under_way.get(wish.index) is wish:
                        wish.problem = wish.problem or problem
                        self._finish(wish)

    def _watch(self) -> None:
        """The thread that hears what is gone."""
        while True:
            try:
                messages = split(self._watcher.receive("hear which links are gone"))
            except KernelRefused:
                continue  # announcements were lost; the acknowledgement will come
            gone = [
                links.index_of(message)
                for _, kind, _, message in messages
                if kind == codec.DELLINK and not links.of_bridge(message)
            ]
            if gone:
                with self._change:
                    for wish in [self._under_way[index] for index in gone if index in self._under_way]:
                        self._finish(wish)

    def _finish(self, wish: _Wish) -> None:
        """Tell who wished; the change's lock is held."""
        del self._under_way[wish.index]
        wish.done.release()
        if self._under_way:
            return
        if self._wishes:
            self._change.notify()
        else:
            self._watcher.leave(_LINK_GROUP)
            self._listening = False


def _ask(socket: RouteSocket, batch: list[_Wish]) -> KernelRefused | None:
    """Delete a link, or several as a group; the refusal that concerns all, those of single links are in the wishes."""
    if len(batch) == 1:
        doing = f"delete the link {batch[0].name}"
        return socket.attempt(Request(codec.DELLINK, 0, doing, {"index": batch[0].index}))[0].problem
    group = int.from_bytes(os.urandom(4), "little") | 0x40000000  # nobody else's: people number theirs from 0
    marking = [
        Request(codec.NEWLINK, 0, f"delete the link {wish.name}", {"index": wish.index}, [["IFLA_GROUP", group]])
        for wish in batch
    ]
    for wish, outcome in zip(batch, socket.attempt(*marking), strict=True):
        wish.problem = outcome.problem
    if all(wish.problem for wish in batch):
        return None
    doing = f"delete the links {', '.join(wish.name for wish in batch)}"
    return socket.attempt(Request(codec.DELLINK, 0, doing, attributes=[["IFLA_GROUP", group]]))[0].problem
