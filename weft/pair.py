"""One end of a connection between two processes of a daemon: JSON messages, with open descriptors.

A message is a list. On the wire it is the length of its JSON and of the bytes that follow it, in 4 bytes
each, the number of its descriptors in one, the JSON, and the bytes, which are the list's last item where
there are any. What the other end sends is untrusted: its messages are bounded, and what is none raises
Malformed.
"""

from __future__ import annotations

import array
import asyncio
import contextlib
import json
import os
import socket
from collections import deque
from collections.abc import Callable, Iterable

HEADER = 9
_CHUNK = 1 << 16
_MOST_DESCRIPTORS = 8  # in a message
_MOST_UNSENT = 256 << 20


class Malformed(Exception):
    """The other end has sent something that is no message."""


Message = list[object]
OnMessage = Callable[[Message, list[int]], None]
"""Takes a message and its descriptors, which it owns. May raise Malformed."""


class Pair:
    """An end of a stream socketpair, in an event loop.

    ``most`` is the size of the largest message that is taken, ``ended`` is called once: when the other
    end has closed, with "", or with what is wrong with what it has sent.
    """

    def __init__(
        self, end: socket.socket, most: int, received: OnMessage, ended: Callable[[str], None], *, descriptors: int = 0
    ) -> None:
        self._end = end
        self._most = most
        self._received = received
        self._ended = ended
        self._accepted = descriptors
        self._buffer = bytearray()
        self._descriptors: deque[int] = deque()
        self._unsent: deque[tuple[memoryview, list[int]]] = deque()
        self._unsent_bytes = 0
        self.is_open = True
        end.setblocking(False)
        asyncio.get_running_loop().add_reader(end.fileno(), self.drain)

    def close(self) -> None:
        """Close it; nothing is called any more."""
        if not self.is_open:
            return
        self.is_open = False
        loop = asyncio.get_running_loop()
        loop.remove_reader(self._end.fileno())
        loop.remove_writer(self._end.fileno())
        self._end.close()
        for number in (*self._descriptors, *(one for _, held in self._unsent for one in held)):
            os.close(number)
        self._descriptors.clear()
        self._unsent.clear()

    def send(self, message: Iterable[object], descriptors: Iterable[int] = (), payload: bytes = b"") -> None:
        """Send a message, at once or as soon as the other end reads; ``payload`` as its last item."""
        if not self.is_open:
            return
        text = json.dumps(list(message), separators=(",", ":")).encode()
        held = [os.dup(one) for one in descriptors]
        data = len(text).to_bytes(4, "big") + len(payload).to_bytes(4, "big") + bytes((len(held),)) + text + payload
        self._unsent.append((memoryview(data), held))
        self._unsent_bytes += len(data)
        if self._unsent_bytes > _MOST_UNSENT:
            self._end_with("it does not read")
        elif len(self._unsent) == 1:
            self._flush()

    def _flush(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            while self._unsent:
                data, held = self._unsent[0]
                rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", held))] if held else []
                sent = self._end.sendmsg([data], rights, socket.MSG_NOSIGNAL)
                for one in held:
                    os.close(one)
                self._unsent_bytes -= sent
                if sent == len(data):
                    self._unsent.popleft()
                else:
                    self._unsent[0] = data[sent:], []
            loop.remove_writer(self._end.fileno())
        except BlockingIOError:
            loop.add_writer(self._end.fileno(), self._flush)
        except OSError:
            self._end_with("")

    def drain(self) -> None:
        """Take all that has come."""
        try:
            while self.is_open:
                data, ancillary, flags, _ = self._end.recvmsg(_CHUNK, socket.CMSG_SPACE(4 * _MOST_DESCRIPTORS))
                for level, kind, rights in ancillary:
                    if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                        found = array.array("i")
                        found.frombytes(rights[: len(rights) // found.itemsize * found.itemsize])
                        self._descriptors.extend(found)
                if len(self._descriptors) > self._accepted or flags & socket.MSG_CTRUNC:
                    raise Malformed("descriptors that nobody expects")
                if not data:
                    self._end_with("")
                    return
                self._buffer += data
                self._take()
        except BlockingIOError:
            return
        except Malformed as error:
            self._end_with(str(error) or "no message")
        except OSError:
            self._end_with("")

    def _take(self) -> None:
        buffer = self._buffer
        while self.is_open and len(buffer) >= HEADER:
            length, payload, count = read_header(buffer)
            if length + payload > self._most or count > self._accepted:
                raise Malformed(f"a message of {length + payload} bytes with {count} descriptors")
            end = HEADER + length + payload
            if len(buffer) < end:
                return
            try:
                message = json.loads(buffer[HEADER : HEADER + length])
            except (ValueError, RecursionError) as error:
                raise Malformed(f"no JSON: {error}") from None
            if not isinstance(message, list) or not message or count > len(self._descriptors):
                raise Malformed("no message")
            if payload:
                message.append(bytes(buffer[HEADER + length : end]))
            del buffer[:end]
            self._received(message, [self._descriptors.popleft() for _ in range(count)])

    def _end_with(self, why: str) -> None:
        if self.is_open:
            self.close()
            self._ended(why)


def read_header(data: bytes | bytearray) -> tuple[int, int, int]:
    """The lengths of a message's JSON and of the bytes after it, and the number of its descriptors."""
    return int.from_bytes(data[:4], "big"), int.from_bytes(data[4:8], "big"), data[8]


def receive_first(end: socket.socket) -> Message:
    """The first message, before there is an event loop; blocks. From a trusted process: one list without
    descriptors. Raises OSError, EOFError.
    """

    def exactly(size: int) -> bytes:
        found = bytearray()
        while len(found) < size:
            if not (data := end.recv(size - len(found))):
                raise EOFError("the other end has closed")
            found += data
        return bytes(found)

    length, payload, _ = read_header(exactly(HEADER))
    message: Message = json.loads(exactly(length))
    return [*message, exactly(payload)] if payload else message


def closed(descriptors: Iterable[int]) -> None:
    """Close descriptors; one that is closed is no error."""
    for one in descriptors:
        with contextlib.suppress(OSError):
            os.close(one)
