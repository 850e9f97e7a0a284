"""The executable without its C client: the same protocol, for hosts where none could be compiled.

Imports next to nothing: the interpreter's own start is most of what it costs. Where no engine is to be used or none
is there, the work is done here (``app``).
"""

from __future__ import annotations

import _socket
import os
import sys
import time

from weft import __version__
from weft.peer_credentials import is_trusted

TYPE_CHECKING = False
if TYPE_CHECKING:
    from _socket import socket

_PATIENCE = 190.0  # seconds; more than the engine gives a request
_AGAIN = 10  # seconds
_SYSTEMD_RUN = "/usr/bin/systemd-run"
_OWN = ("/proc/self/", "/proc/thread-self/")


def main() -> int:
    """The entry of the executable; returns its exit status."""
    from cni_plugin.entry import call

    wanted = os.environ.get("WEFT_ENGINE") or "auto"
    command = os.environ.get("CNI_COMMAND", "")
    usual = command not in ("", "VERSION") and wanted != "off" and not os.environ.get("WEFT_DEBUG")
    if not usual or os.environ.get("CNI_NETNS", "").startswith(_OWN) or not _open_and_piped():
        return call.main()
    stdin = _read()
    connection = _connect()
    if connection is None:
        if wanted == "require":
            return _fail("no engine serves this network namespace, and WEFT_ENGINE=require")
        _start_engine()
        return call.main(stdin)
    return _asked(connection, stdin, wanted)


def _asked(connection: socket, stdin: bytes, wanted: str) -> int:
    from cni_plugin.entry import call
    from cni_plugin.wire import frame

    variables = {name: value for name, value in os.environ.items() if name.startswith("CNI_")}
    root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    plugin = os.path.basename(sys.argv[0]) or "weft"
    sent = frame.Sent(__version__, root, frame.view(), plugin, variables, stdin)
    reply = _exchange(connection, frame.request(sent))
    if reply is None:
        return _fail("the engine ended before it answered; what it left is finished by the next call")
    declined, status, output, errors = reply
    if declined:
        if wanted == "require":
            return _fail("the engine is of another version or sees other files, and WEFT_ENGINE=require")
        return call.main(stdin)
    call.deliver(2, errors)
    return status if call.deliver(1, output) else 1


def _open_and_piped() -> bool:
    """Whether the standard descriptors are there and input is no terminal."""
    try:
        return all(os.fstat(descriptor) for descriptor in (0, 1, 2)) and not os.isatty(0)
    except OSError:
        return False


def _read() -> bytes:
    """All of standard input, but no more than one byte past what weft takes."""
    pieces, left = [], (1 << 20) + 1
    while left:
        piece = os.read(0, min(left, 1 << 16))
        if not piece:
            break
        pieces.append(piece)
        left -= len(piece)
    return b"".join(pieces)


def _connect() -> socket | None:
    """A connection to the engine of this network namespace, None where there is none."""
    path = f"/run/weft/{os.stat('/proc/self/ns/net').st_ino}/engine.sock"
    found = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM | _socket.SOCK_CLOEXEC)
    try:
        found.connect(path)
        if is_trusted(found):
            return found
    except OSError:
        pass
    found.close()
    return None


def _exchange(connection: socket, request: bytes) -> tuple[bool, int, bytes, bytes] | None:
    """Send the request with the container's namespace; the reply, None where it does not come."""
    from cni_plugin.wire import frame

    connection.settimeout(_PATIENCE)
    ancillary = []
    descriptor = _namespace(os.environ.get("CNI_NETNS", ""))
    if descriptor >= 0:
        ancillary = [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, descriptor.to_bytes(4, sys.byteorder))]
    try:
        rest = request[connection.sendmsg([request], ancillary) :]
        if rest:  # sending nothing fails, too, where the engine has answered and closed already
            connection.sendall(rest)
        data = b""
        while _missing(data):
            piece = connection.recv(1 << 18)
            if not piece:
                return None
            data += piece
    except OSError:
        return None
    magic, protocol, declined, status, length, _ = frame.REPLY.unpack_from(data)
    if (magic, protocol) != (frame.MAGIC, frame.PROTOCOL):
        return None
    body = data[frame.REPLY.size :]
    return bool(declined), status, body[:length], body[length:]


def _missing(data: bytes) -> bool:
    """Whether more of a reply is to come."""
    from cni_plugin.wire import frame

    return len(data) < frame.REPLY.size or len(data) < frame.REPLY.size + sum(frame.REPLY.unpack_from(data)[4:])


def _start_engine() -> None:
    """Start an engine that outlives this call, unless that was tried a moment ago; raises nothing.

    What it need not inherit it does not: a runtime waits until everybody has closed the pipes it gave.
    """
    folder = f"/run/weft/{os.stat('/proc/self/ns/net').st_ino}"
    mark = f"{folder}/engine.start"
    try:
        os.makedirs(folder, mode=0o700, exist_ok=True)
        if os.path.exists(mark) and 0 <= time.time() - os.stat(mark).st_mtime < _AGAIN:
            return
        os.close(os.open(mark, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600))
        os.utime(mark)
        child = os.fork()
    except OSError:
        return
    if child:
        os.waitpid(child, 0)  # it ends at once: its own child is the engine, and nobody's
        return
    try:
        _become_engine()
    finally:
        os._exit(1)


def _become_engine() -> None:
    os.setsid()
    if os.fork():
        os._exit(0)
    nothing = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(nothing, descriptor)
    os.closerange(3, 4096)
    os.chdir("/")
    environment = {
        "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "MALLOC_ARENA_MAX": "2",
        "WEFT_ENGINE_IDLE": os.environ.get("WEFT_ENGINE_IDLE", "900"),
    }
    script = (
        "import sys; sys.path[:] = eval(sys.argv.pop(1)); from cni_plugin.engine.main import end, main; end(main([]))"
    )
    argv = [sys.executable, "-IBSc", script, repr(sys.path)]
    if os.path.exists("/run/systemd/system") and os.path.exists(_SYSTEMD_RUN):
        argv[:0] = [_SYSTEMD_RUN, "--quiet", "--scope", "--collect"]
    os.execve(argv[0], argv, environment)


def _namespace(path: str) -> int:
    """The network namespace of a path as a descriptor, -1 where there is none: nothing else is ever opened."""
    try:
        place = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except (OSError, ValueError):
        return -1
    try:
        if os.fstat(place).st_dev != os.stat("/proc/self/ns/net").st_dev:
            return -1
        return os.open(f"/proc/self/fd/{place}", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return -1
    finally:
        os.close(place)


def _fail(sentence: str) -> int:
    """CNI error 11: try again."""
    from cni_plugin.entry import call

    call.deliver(1, f'{{\n    "cniVersion": "1.1.0",\n    "code": 11,\n    "msg": "{sentence}"\n}}'.encode())
    return 1
