"""The executable in Python, for installations without a C compiler: the same client as ``shim.c``.

It imports as little as possible, since starting the interpreter is most of its cost. Without an engine
the call is served in this process (``call``).
"""

from __future__ import annotations

import _socket
import os
import sys
import time

from weft import __version__
from weft.peer_credentials import is_trusted, peer_credentials

TYPE_CHECKING = False
if TYPE_CHECKING:
    from _socket import socket

_SEND_SECONDS = 10  # for the connection and for each part of the request
_REPLY_TIMEOUT = 190.0  # seconds; longer than the engine's own deadline for a request
_START_INTERVAL = 10  # seconds between two attempts to start an engine
_LOOK_SECONDS = 5.0  # between two looks at an engine that sends nothing
_SILENT = (
    "the engine (pid {0}) is stopped or hung; resume it with kill -CONT {0}, or end it with kill -KILL {0}, and "
    "retry the call, which cleans up"
)
_NETAVARK = "CNI_NETAVARK"  # frame.NETAVARK
_OWN_NAMESPACE = ("/proc/self/", "/proc/thread-self/")


def main() -> int:
    """The entry of the executable; returns its exit status."""
    from cni_plugin.entry import call

    wanted = os.environ.get("WEFT_ENGINE") or "auto"
    command = os.environ.get("CNI_COMMAND", "")
    logging = os.environ.get("WEFT_DEBUG") or os.environ.get("WEFT_LOG")
    variables = dict(os.environ)
    if netavark := call.arguments_of_netavark(os.path.basename(sys.argv[0])):
        variables = dict(zip((_NETAVARK, "CNI_NETNS"), netavark, strict=False))
    answered_here = netavark == ["info"] if netavark else command in ("", "VERSION")
    if answered_here or wanted == "off" or logging:
        return call.main()
    if variables.get("CNI_NETNS", "").startswith(_OWN_NAMESPACE) or not _has_piped_input():
        return call.main()
    if any(folder and folder[0] != "/" for folder in variables.get("CNI_PATH", "").split(":")):
        return call.main()  # only this process has the working directory that it starts from
    stdin = _read_input()
    connection = _connect()
    if connection is None:
        if wanted == "require":
            return _fail("no engine is running in this network namespace, and WEFT_ENGINE=require is set")
        _start_engine()
        return call.main(stdin)
    return _call_engine(connection, stdin, wanted, variables)


def _call_engine(connection: socket, stdin: bytes, wanted: str, variables: dict[str, str]) -> int:
    from cni_plugin.entry import call
    from cni_plugin.wire import frame

    root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    plugin = os.path.basename(sys.argv[0]) or "weft"
    sent = frame.RequestFrame(__version__, root, frame.view(), plugin, variables, stdin)
    try:
        reply = _exchange(connection, frame.request(sent, progress=True), variables.get("CNI_NETNS", ""))
    except TimeoutError:
        return _fail(_SILENT.format(peer_credentials(connection)[0]))
    if reply is None:
        return _fail("the engine terminated before it replied; retry the call, which cleans up")
    declined, status, output, errors = reply
    if declined:
        if wanted == "require":
            return _fail("the engine has another version or mount namespace, and WEFT_ENGINE=require is set")
        return call.main(stdin)
    call.deliver(2, errors)
    return status if call.deliver(1, output) else 1


def _has_piped_input() -> bool:
    """Whether all standard descriptors are open and standard input is not a terminal."""
    try:
        return all(os.fstat(descriptor) for descriptor in (0, 1, 2)) and not os.isatty(0)
    except OSError:
        return False


def _read_input() -> bytes:
    """Standard input to its end, or one byte past the limit."""
    pieces, left = [], (1 << 20) + 1
    while left:
        piece = os.read(0, min(left, 1 << 16))
        if not piece:
            break
        pieces.append(piece)
        left -= len(piece)
    return b"".join(pieces)


def _connect() -> socket | None:
    """Connect to the engine of this network namespace; None where none is running."""
    path = f"/run/weft/{os.stat('/proc/self/ns/net').st_ino}/engine.sock"
    found = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM | _socket.SOCK_CLOEXEC)
    timeval = _SEND_SECONDS.to_bytes(8, sys.byteorder) + bytes(8)  # settimeout would not wait in connect
    try:
        found.setsockopt(_socket.SOL_SOCKET, _socket.SO_SNDTIMEO, timeval)
        found.connect(path)
        if is_trusted(found):
            return found
    except OSError:
        pass
    found.close()
    return None


def _exchange(connection: socket, request: bytes, namespace: str = "") -> tuple[bool, int, bytes, bytes] | None:
    """Send the request and the container's namespace; the reply, None where the connection ends before
    it. Raises TimeoutError where the engine shows no progress.
    """
    from cni_plugin.wire import frame

    deadline = time.monotonic() + _REPLY_TIMEOUT
    connection.settimeout(frame.SILENCE)
    ancillary = []
    descriptor = _open_namespace(namespace)
    if descriptor >= 0:
        ancillary = [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, descriptor.to_bytes(4, sys.byteorder))]
    try:
        rest = request[connection.sendmsg([request], ancillary) :]
        if rest:  # sendall(b"") fails where the engine has replied and closed already
            connection.sendall(rest)
        data = b""
        while _is_incomplete(data):
            piece = _receive(connection, frame.SILENCE)
            if not piece or time.monotonic() > deadline:
                return None
            data += piece
            while data.startswith(frame.WORKING):
                data = data[len(frame.WORKING) :]
    except TimeoutError:
        raise
    except OSError:
        return None
    magic, protocol, declined, status, length, _ = frame.REPLY.unpack_from(data)
    if (magic, protocol) != (frame.MAGIC, frame.PROTOCOL):
        return None
    body = data[frame.REPLY.size :]
    return bool(declined), status, body[:length], body[length:]


def _receive(connection: socket, silence: float) -> bytes:
    """The next bytes. Raises TimeoutError where the engine is stopped, or sends none for ``silence``
    seconds.
    """
    since = time.monotonic()
    connection.settimeout(min(_LOOK_SECONDS, silence))
    while True:
        try:
            return connection.recv(1 << 18)
        except TimeoutError:
            if time.monotonic() - since >= silence or _is_stopped(peer_credentials(connection)[0]):
                raise


def _is_stopped(process: int) -> bool:
    """Whether a process is stopped, by a signal or a debugger. Source: ``proc_pid_stat(5)``."""
    try:
        with open(f"/proc/{process}/stat", encoding="ascii", errors="replace") as file:
            return file.read().rpartition(")")[2].split()[0] in ("T", "t")
    except OSError:  # 0: in another PID namespace
        return False


def _is_incomplete(data: bytes) -> bool:
    """Whether the reply is still incomplete."""
    from cni_plugin.wire import frame

    return len(data) < frame.REPLY.size or len(data) < frame.REPLY.size + sum(frame.REPLY.unpack_from(data)[4:])


def _start_engine() -> None:
    """Start an engine as a daemon, at most once in ten seconds; raises nothing.

    All descriptors are closed: a runtime waits for EOF on the pipes that it passed to this process.
    """
    folder = f"/run/weft/{os.stat('/proc/self/ns/net').st_ino}"
    attempt = f"{folder}/engine.start"
    try:
        for each in (os.path.dirname(folder), folder):  # makedirs gives parents the mode that the umask leaves
            if not os.path.isdir(each):
                os.mkdir(each, 0o700)
        if os.path.exists(attempt) and 0 <= time.time() - os.stat(attempt).st_mtime < _START_INTERVAL:
            return
        os.close(os.open(attempt, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK, 0o600))
        os.utime(attempt)
        child = os.fork()
    except OSError:
        return
    if child:
        try:  # noqa: SIM105 -- importing contextlib costs the client more
            os.waitpid(child, 0)  # it exits at once; the engine is its child, reparented to init
        except ChildProcessError:  # the runtime ignores SIGCHLD, which is inherited
            pass
        return
    try:
        _daemonize_engine()
    finally:
        os._exit(1)


def _daemonize_engine() -> None:
    os.setsid()
    if os.fork():
        os._exit(0)
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(null, descriptor)
    os.closerange(3, 1 << 20)
    os.chdir("/")
    environment = {
        "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "MALLOC_ARENA_MAX": "2",
        "WEFT_ENGINE_IDLE": os.environ.get("WEFT_ENGINE_IDLE", "900"),
        **({"WEFT_FOLLOW": "off"} if os.environ.get("WEFT_FOLLOW") == "off" else {}),
    }
    script = (
        "import sys; sys.path[:] = eval(sys.argv.pop(1)); "
        "from cni_plugin.engine.main import end, main; end(main(['--detached']))"
    )
    argv = [sys.executable, "-IBSc", script, repr(sys.path)]
    os.execve(argv[0], argv, environment)


def _open_namespace(path: str) -> int:
    """Open the container's network namespace; -1 for any other file, which is never opened (O_PATH)."""
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


def _fail(message: str) -> int:
    """Answer CNI error 11, "try again later"; netavark's errors have no number."""
    from cni_plugin.entry import call

    if not os.environ.get("CNI_COMMAND"):
        call.deliver(1, f'{{"error": "{message}"}}'.encode())
        return 1
    call.deliver(1, f'{{\n    "cniVersion": "1.1.0",\n    "code": 11,\n    "msg": "{message}"\n}}'.encode())
    return 1
