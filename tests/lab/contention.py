"""Many TCP streams at once between namespaces, and what each of them gets."""

from __future__ import annotations

import contextlib
import selectors
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from lab import namespaces
from lab.waiting import PATIENTLY

_BLOCK = bytes(1 << 14)
_SEND_BUFFER = 1 << 17
SETTLING = 0.7
"""Seconds in which streams find their rates, before the measurement."""


@dataclass
class Stream:
    """A TCP stream from one socket to another; ``received`` are the bytes so far."""

    sender: socket.socket
    receiver: socket.socket
    received: int = 0

    def pump(self, events: int) -> None:
        with contextlib.suppress(BlockingIOError, ConnectionError):
            if events & selectors.EVENT_READ:
                self.received += len(self.receiver.recv(1 << 18))
            if events & selectors.EVENT_WRITE:
                self.sender.send(_BLOCK)


def connect(client: str, server: str, address: str, port: int, *, download: bool = False) -> Stream:
    """A stream between the namespaces at two paths: the client sends, or receives a ``download``."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with namespaces.inside(server):
        listener = socket.create_server((address, port), family=family)
    with listener:
        with namespaces.inside(client):
            made = socket.create_connection((address, port), timeout=PATIENTLY)
        accepted, _ = listener.accept()
    sender, receiver = (accepted, made) if download else (made, accepted)
    sender.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER)
    for one in (sender, receiver):
        one.setblocking(False)
    return Stream(sender, receiver)


@contextlib.contextmanager
def running(streams: Sequence[Stream]) -> Iterator[None]:
    """Keep all streams sending as fast as they can, in a thread; they are closed afterwards."""
    ending = threading.Event()

    def pump() -> None:
        with selectors.DefaultSelector() as selector:
            for stream in streams:
                selector.register(stream.sender, selectors.EVENT_WRITE, stream)
                selector.register(stream.receiver, selectors.EVENT_READ, stream)
            while not ending.is_set():
                for key, events in selector.select(0.1):
                    key.data.pump(events)

    thread = threading.Thread(target=pump, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ending.set()
        thread.join(timeout=PATIENTLY)
        for stream in streams:
            stream.sender.close()
            stream.receiver.close()


def rates(streams: Sequence[Stream], seconds: float) -> list[float]:
    """Bits per second of each running stream, over some seconds after they have settled."""
    time.sleep(SETTLING)
    started, before = time.monotonic(), [stream.received for stream in streams]
    time.sleep(seconds)
    taken = time.monotonic() - started
    return [(stream.received - first) * 8 / taken for stream, first in zip(streams, before, strict=True)]
