"""What the executable does: bytes in, bytes out, and one exit.

Whatever happens, a runtime gets one JSON document on standard output, or none and a sentence on standard error.
``VERSION`` and a call without CNI_COMMAND are answered without importing what attaches containers.
"""

from __future__ import annotations

import os
import select
import sys

from cni_plugin.entry import cni
from cni_plugin.wire import versions
from weft import stderr

TYPE_CHECKING = False
if TYPE_CHECKING:  # what VERSION must not import
    from cni_plugin.wire.request import Request
    from weft.types import Result

_VERBS = ("create", "info", "setup", "teardown")  # of netavark's plugins


def main(stdin: bytes | int = 0) -> int:
    """The entry of the executable; returns its exit status: 0, or 1 with an error object on standard output.

    ``stdin`` is all of standard input where it has been read already.

    While the work is done, descriptor 1 leads to standard error, so that nothing else can write among the JSON.
    """
    closed = _fill_standard_descriptors()
    plugin = os.path.basename(sys.argv[0]) or "weft"
    other = _netavark(plugin)
    if not os.environ.get("CNI_COMMAND") and not other:
        stderr.write(versions.about(plugin))
        return 0
    if 1 in closed:
        stderr.write("standard output is closed, nothing was done\n")
        return 1
    output = os.dup(1)
    os.dup2(2, 1)
    try:
        if other:
            from cni_plugin.entry import netavark

            _catch_signals()
            status, answer = netavark.run(sys.argv[1:], stdin, _handle)
            _ignore_signals()
        elif os.environ["CNI_COMMAND"] == "VERSION":
            status, answer = cni.run(plugin, os.environ, stdin, _handle)  # importing signal would double its time
        else:
            _catch_signals()
            status, answer = cni.run(plugin, os.environ, stdin, _handle)
            _ignore_signals()
    except BaseException as error:  # a signal between two lines of run
        status, answer = 1, cni.failure(error, b"")
    return status if deliver(output, answer) else 1


def _netavark(plugin: str) -> bool:
    """Whether netavark calls: with arguments, which CNI does not have."""
    return plugin == "weft" and not os.environ.get("CNI_COMMAND") and sys.argv[1:2] != [] and sys.argv[1] in _VERBS


def _handle(request: Request) -> Result | None:
    from cni_plugin.service import verbs

    return verbs.handle(request)


def _fill_standard_descriptors() -> tuple[int, ...]:
    """Opens /dev/null in place of the standard descriptors that are closed, and says which those were.

    Otherwise the next file or socket opened would take their number, and be written to in their place.
    """
    closed = []
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            closed.append(descriptor)
            try:  # noqa: SIM105 -- importing contextlib would cost VERSION a third of its time
                os.open(os.devnull, os.O_RDWR)  # the lowest number that is free: this one
            except OSError:
                pass  # no /dev: the number stays free, and reading or writing it fails
    return tuple(closed)


def _catch_signals() -> None:
    """Make the signals that ask to end raise ``cni.Interrupted``, once: undoing must not be interrupted."""
    import signal

    def interrupt(number: int, _frame: object) -> None:
        _ignore_signals()
        raise cni.Interrupted(f"ended by {signal.Signals(number).name}")

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, interrupt)


def _ignore_signals() -> None:
    """From here on the answer is being written, whole."""
    import signal

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)


def deliver(output: int, answer: bytes) -> bool:
    """Writes the answer; False, with a sentence on standard error, where it could not be written whole."""
    try:
        while answer:
            try:
                answer = answer[os.write(output, answer) :]
            except BlockingIOError:
                select.select((), (output,), ())
    except OSError as error:
        stderr.write(f"cannot write to standard output: {error.strerror}\n")
        return False
    return True
