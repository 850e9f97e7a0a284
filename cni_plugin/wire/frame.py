"""The protocol between the shim and the engine: one request and one reply on a unix stream socket.

A request is a head of 12 bytes (``WEFT``, the protocol's number, 1 where the client understands
progress, two zero bytes, the body's length) and a body: texts that each end with a zero byte (the
client's version, the folder its code is in, its view of the file system, the name it was called by,
its environment), an empty text, and standard input as it came. A call by netavark has two: its
command in ``NETAVARK``, and CNI_NETNS. The container's namespace comes as an open descriptor beside
the first byte, where the path leads to one.

A reply is a head of 16 bytes (``WEFT``, the protocol's number, 1 where the request was declined, the
exit status, the lengths of what follows), then the bytes for standard output and those for standard
error. A request that is declined has changed nothing: the client does the work itself. Before the
reply, progress is a head with 2 in the place of "declined" and nothing after it, every ``PROGRESS``
seconds; an engine that sends none for ``SILENCE`` seconds is stopped or hung. Numbers are
little-endian. The same in C is ``shim.c``.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from struct import Struct

from cni_plugin.wire.plugins import NETAVARK_DRIVERS, OWN_NAME

PROTOCOL = 1
MAGIC = b"WEFT"
LONGEST_BODY = (1 << 20) + (1 << 18)
"""Bytes: standard input at its longest, and more than the variables may take."""

HEAD = Struct("<4sB?2xI")
REPLY = Struct("<4sBBHII")
NETAVARK = "CNI_NETAVARK"
"""In the place of CNI_COMMAND: the command of a call by netavark."""

PROGRESS, SILENCE = 2.0, 25.0
"""Seconds between two messages of progress, and without any until the client gives up."""

DEADLINE = 180.0
"""Seconds that a request may take; another IPAM plugin alone may take 120."""


class FrameProblem(Exception):
    """The bytes are not a valid frame."""


@dataclass(frozen=True, slots=True)
class RequestFrame:
    """A request. ``view`` identifies the client's mount namespace and root directory. ``environment`` are the CNI_*
    variables, ``others`` the rest, for plugins that are executed for the client.
    """

    version: str
    root: str
    view: str
    plugin: str
    environment: Mapping[str, str]
    stdin: bytes
    others: Mapping[str, str] = field(default_factory=dict)

    @property
    def netavark(self) -> list[str]:
        """The arguments of a call by netavark; none of a call by CNI."""
        if (
            self.plugin not in (OWN_NAME, *NETAVARK_DRIVERS)
            or self.environment.get("CNI_COMMAND")
            or not self.environment.get(NETAVARK)
        ):
            return []
        return [self.environment[name] for name in (NETAVARK, "CNI_NETNS") if name in self.environment]


def view() -> str:
    """This process's view of the file system: its mount namespace and root directory."""
    mounts, root = os.stat("/proc/self/ns/mnt"), os.stat("/")
    return f"{mounts.st_ino}:{root.st_dev}:{root.st_ino}"


def request(sent: RequestFrame, *, progress: bool = False) -> bytes:
    """The request as bytes; ``progress``: the client understands progress."""
    texts = [sent.version, sent.root, sent.view, sent.plugin]
    texts += [f"{name}={value}" for name, value in (*sent.environment.items(), *sent.others.items())]
    body = b"".join(os.fsencode(text) + b"\0" for text in texts) + b"\0" + sent.stdin
    return HEAD.pack(MAGIC, PROTOCOL, progress, len(body)) + body


def read_head(head: bytes) -> tuple[int, bool]:
    """The body's length, and whether the client understands progress; raises FrameProblem."""
    magic, protocol, progress, found = HEAD.unpack(head)
    if magic != MAGIC or protocol != PROTOCOL or found > LONGEST_BODY:
        raise FrameProblem("not a request of this protocol")
    return int(found), bool(progress)


def parse(body: bytes) -> RequestFrame:
    """The request of a body; raises FrameProblem."""
    texts: list[str] = []
    place = 0
    while True:
        end = body.find(b"\0", place)
        if end < 0:
            raise FrameProblem("a text has no end")
        if end == place and len(texts) >= 4:
            break
        texts.append(os.fsdecode(body[place:end]))
        place = end + 1
    pairs = (text.partition("=") for text in texts[4:])
    environment: dict[str, str] = {}
    others: dict[str, str] = {}
    for name, equals, value in pairs:
        if equals:
            (environment if name.startswith("CNI_") else others)[name] = value
    version, root, seen, plugin = texts[:4]
    return RequestFrame(version, root, seen, plugin, environment, body[place + 1 :], others)


def reply(status: int, output: bytes, errors: bytes = b"") -> bytes:
    return REPLY.pack(MAGIC, PROTOCOL, 0, status, len(output), len(errors)) + output + errors


def declined() -> bytes:
    return REPLY.pack(MAGIC, PROTOCOL, 1, 0, 0, 0)


WORKING = REPLY.pack(MAGIC, PROTOCOL, 2, 0, 0, 0)
"""The message of progress."""
