"""Renews DHCP leases when due, and sets links down whose lease is lost; replies to clients of its
socket.

``weft dhcp`` runs it in the foreground; ``--log`` logs every renewal.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import replace

from ipam import dhcp_client
from ipam.dhcp_leases import LeaseFiles, StoredLease
from weft import confinement, stderr
from weft.capabilities import ENGINE
from weft.daemon_socket import AlreadyRunning, DaemonSocket
from weft.daemons import REFRESHED
from weft.errors import Busy, KernelRefused, NamespaceProblem, WeftError
from weft.kernel import netns
from weft.kernel.linux.kernel import LinuxNamespace
from weft.kernel.linux.packet_socket import PacketSocket

IDLE = 60.0
"""Seconds without a lease to renew after which the keeper stops."""

_CHECK_SECONDS = 2.0  # between two checks of leases and socket
_STACK_BYTES = 1 << 19  # of a thread
_MOST_RENEWALS = 32  # at the same time
_Log = Callable[[str], None]


class Keeper:
    """Renews the leases of one folder until it is stopped or idle."""

    def __init__(
        self, endpoint: DaemonSocket, leases: LeaseFiles, *, idle: float = IDLE, log: _Log = lambda line: None
    ) -> None:
        self._socket = endpoint
        self._leases = leases
        self._idle = idle
        self._log = log
        self._busy: set[str] = set()
        self._state = threading.Lock()
        self._until = time.monotonic() + idle
        self._wake_end, self._wake = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._stopping = False

    def stop(self) -> None:
        self._stopping = True
        self._wake_up()

    def _wake_up(self) -> None:
        with contextlib.suppress(OSError):
            os.write(self._wake, b"x")

    def run(self) -> None:
        """Serve. Checks for new leases once more after the socket is closed, so that none is missed."""
        while not self._stopping and self._socket.is_reachable:
            pause = self._renew_due()
            if time.monotonic() > self._until and not self._busy:
                self._socket.close()
                if not self._has_leases():
                    return
                self._socket.listen()
            self._wait(pause)
        self._socket.close()

    def _has_leases(self) -> bool:
        return any(not held.lost for held in self._leases.all())

    def _wait(self, seconds: float) -> None:
        listener = self._socket.listener.fileno()
        ready, _, _ = select.select([listener, self._wake_end], [], [], seconds)
        if self._wake_end in ready:
            os.read(self._wake_end, 4096)
        if listener in ready:
            connection = self._socket.accept()
            if connection is not None:
                with connection, contextlib.suppress(OSError):
                    connection.send(REFRESHED, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)

    def _renew_due(self) -> float:
        """Start a thread for each lease that is due; the seconds until the next check."""
        now = dhcp_client.now()
        pause = _CHECK_SECONDS
        for held in self._leases.all():
            if held.lost:
                continue
            self._until = time.monotonic() + self._idle
            due = held.next_attempt
            if due is None or held.key in self._busy:
                continue
            if due > now:
                pause = min(pause, due - now)
            elif len(self._busy) < _MOST_RENEWALS:
                with self._state:
                    self._busy.add(held.key)
                threading.Thread(target=self._renew, args=(held.key,), daemon=True).start()
        return pause

    def _renew(self, key: str) -> None:
        """One attempt to renew one lease."""
        try:
            with self._leases.locked(key, timeout=1.0):
                held = self._leases.read(key)
                due = held.next_attempt if held is not None else None
                if held is not None and due is not None and due <= dhcp_client.now():
                    now = attempt(held, self._log)
                    if now is None:
                        self._leases.remove(key)
                    else:
                        self._leases.write(now)
        except Busy:
            time.sleep(_CHECK_SECONDS)  # a DEL holds the lock
        except (WeftError, OSError) as error:
            self._log(f"{key}: {error}")
            time.sleep(_CHECK_SECONDS)
        finally:
            with self._state:
                self._busy.discard(key)
            self._wake_up()


def attempt(held: StoredLease, log: _Log) -> StoredLease | None:
    """The lease after one attempt: renewed, not renewed, or lost; None if its container no longer
    exists.
    """
    times = held.lease.timers
    assert times is not None, "an infinite lease is never due"
    _, rebinding, end = times
    now = dhcp_client.now()
    address = held.lease.message.yours
    if now >= end:
        return _lost(held, "expired without a reply from a DHCP server", log)
    try:
        with PacketSocket(held.namespace, held.link) as transport:
            pause = min(4.0, max(0.5, (end - now) / 4))
            lease = dhcp_client.renew(transport, held.options, held.lease, rebind=now >= rebinding, pauses=(pause,))
    except dhcp_client.Refused as error:
        return _lost(held, error.message, log)
    except (dhcp_client.NoAnswer, NamespaceProblem, KernelRefused) as error:
        log(f"{held.description}: {address} not renewed: {error.message}")
        return replace(held, last_attempt=now)
    log(f"{held.description}: {address} renewed for {lease.duration or 'ever'} s")
    return replace(held, lease=lease, last_attempt=0.0)


def _lost(held: StoredLease, why: str, log: _Log) -> StoredLease | None:
    """Set the link down, as the reference plugin does: the server may give the address to another host."""
    log(f"{held.description}: {held.lease.message.yours} lost: {why}")
    try:
        descriptor, there = netns.open_namespace(held.namespace.path)
    except NamespaceProblem:
        return None
    if not there.same(held.namespace):
        os.close(descriptor)
        return None
    container = LinuxNamespace(descriptor, there)
    try:
        link = container.link(held.link)
        if link is not None:
            container.change_link(held.link, up=False)
    finally:
        container.close()
    return replace(held, lost=why)


def main(arguments: list[str]) -> int:
    """``[--log]``; the exit status: 0 after a graceful stop or if a keeper is already running, else 1."""
    os.umask(0o077)
    threading.stack_size(_STACK_BYTES)
    if arguments not in ([], ["--log"]):
        stderr.write("usage: weft dhcp [--log]\n")
        return 2
    confinement.confine(ENGINE)
    folder = f"/run/weft/{os.stat('/proc/thread-self/ns/net').st_ino}/dhcp"
    leases = LeaseFiles(folder)
    try:
        leases.prepare()
        endpoint = DaemonSocket(folder, "keeper")
    except AlreadyRunning:
        return 0
    except (OSError, WeftError) as error:
        stderr.write(f"weft: cannot start the DHCP keeper: {error}\n")
        return 1
    keeper = Keeper(
        endpoint, leases, log=(lambda line: stderr.write(f"{line}\n")) if "--log" in arguments else lambda line: None
    )
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: keeper.stop())
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    keeper.run()
    return 0
