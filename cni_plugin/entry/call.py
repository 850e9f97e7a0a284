"""The executable in a process of its own: standard input to standard output and an exit status.

The runtime always gets one JSON document on standard output, or none and a message on standard error.
``VERSION`` and a call without CNI_COMMAND are answered without importing what attaches containers.
"""

from __future__ import annotations

import os
import select
import sys

from cni_plugin.entry import cni
from cni_plugin.wire import versions
from cni_plugin.wire.plugins import NETAVARK_DRIVERS
from weft import stderr

TYPE_CHECKING = False
if TYPE_CHECKING:  # not imported for VERSION
    from collections.abc import Callable

    from cni_plugin.wire.request import Request
    from weft.types import Result

_NETAVARK_COMMANDS = ("create", "info", "setup", "teardown")


def main(stdin: bytes | int = 0) -> int:
    """The entry of the executable; returns its exit status: 0, or 1 with an error object on standard
    output.

    ``stdin`` is all of standard input where the shim has read it already.

    Meanwhile descriptor 1 is a duplicate of standard error, so that no library can write into the JSON
    document.
    """
    closed = _open_standard_descriptors()
    plugin = os.path.basename(sys.argv[0]) or "weft"
    netavark_arguments = arguments_of_netavark(plugin)
    if not os.environ.get("CNI_COMMAND") and not netavark_arguments:
        stderr.write(versions.about(plugin))
        return 0
    if 1 in closed:
        stderr.write("weft: standard output is closed\n")
        return 1
    output = os.dup(1)
    os.dup2(2, 1)
    try:
        if netavark_arguments:
            from cni_plugin.entry import netavark

            _catch_signals()
            status, answer = netavark.run(netavark_arguments, stdin, _handle, _log())
            _ignore_signals()
        elif os.environ["CNI_COMMAND"] == "VERSION":
            status, answer = cni.run(plugin, os.environ, stdin, _handle)  # importing signal would double its time
        else:
            _catch_signals()
            status, answer = cni.run(plugin, os.environ, stdin, _handle, _log())
            _ignore_signals()
    except BaseException as error:  # a signal outside of run's try block
        status, answer = 1, cni.failure(error, b"")
    return status if deliver(output, answer) else 1


def arguments_of_netavark(plugin: str) -> list[str]:
    """The arguments of a call by netavark, whose plugins get a command as an argument; those of CNI get
    none.
    """
    called = plugin in ("weft", *NETAVARK_DRIVERS) and not os.environ.get("CNI_COMMAND") and 1 < len(sys.argv) < 4
    return sys.argv[1:] if called and sys.argv[1] in _NETAVARK_COMMANDS else []


def _handle(request: Request) -> Result | None:
    from cni_plugin.service import verbs
    from weft.releases import supersede

    supersede(f"/run/weft/{os.stat('/proc/thread-self/ns/net').st_ino}")
    return verbs.handle(request)


def _log() -> Callable[[str], None] | None:
    """Where the line about the call goes: standard error with WEFT_LOG=info or debug, else nowhere."""
    if not os.environ.get("WEFT_LOG"):
        return None
    from cni_plugin.service import log

    return log.write if log.level(os.environ) else None


def _open_standard_descriptors() -> tuple[int, ...]:
    """Open /dev/null as each standard descriptor that is closed, and return which those were.

    Otherwise the next file or socket would get that number, and be written to as standard output or
    error.
    """
    closed = []
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            closed.append(descriptor)
            try:  # noqa: SIM105 -- importing contextlib would cost VERSION a third of its time
                os.open(os.devnull, os.O_RDWR)  # gets the lowest free number, which is this one
            except OSError:
                pass  # no /dev: the descriptor stays closed, and using it fails
    return tuple(closed)


def _catch_signals() -> None:
    """Raise ``cni.Interrupted`` on SIGTERM, SIGINT and SIGHUP, once: the rollback must not be
    interrupted.
    """
    import signal

    def interrupt(number: int, _frame: object) -> None:
        _ignore_signals()
        raise cni.Interrupted(f"terminated by {signal.Signals(number).name}")

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, interrupt)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # ignored by the runtime, it would make wait(2) fail


def _ignore_signals() -> None:
    """From here on the answer is written, which must not be interrupted."""
    import signal

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)


def deliver(output: int, answer: bytes) -> bool:
    """Write the answer; False, with a message on standard error, where that fails."""
    try:
        while answer:
            try:
                answer = answer[os.write(output, answer) :]
            except BlockingIOError:
                select.select((), (output,), ())
    except OSError as error:
        stderr.write(f"weft: cannot write to standard output: {error.strerror}\n")
        return False
    return True
