"""What the executable does: bytes in, bytes out, and one exit.

Whatever happens, a runtime gets one JSON document on standard output, or none and a sentence on standard error.
``VERSION`` and a call without CNI_COMMAND are answered without importing what attaches containers.
"""

from __future__ import annotations

import os
import sys

from cni_plugin.errors import TRY_AGAIN, WeftError
from cni_plugin.remarks import remark
from cni_plugin.wire import versions

TYPE_CHECKING = False
if TYPE_CHECKING:  # what VERSION must not import
    from collections.abc import Callable, Mapping

    from cni_plugin.types import Result
    from cni_plugin.wire.request import Request

    Handle = Callable[[Request], Result | None]

PATIENCE = 1.0
"""Seconds to wait for standard input where the answer does not depend on it."""

_LAST_RESORT = b'{\n    "cniVersion": "1.1.0",\n    "code": 999,\n    "msg": "weft failed and could not say why"\n}'
_DEBUG = "set WEFT_DEBUG=1 in the runtime's environment for a traceback on standard error"
_VERBS = ("create", "info", "setup", "teardown")  # of netavark's plugins
_LONGEST_REASON = 200  # characters of an exception's text that a message repeats


class Interrupted(BaseException):
    """A signal asked this process to end. Not an Exception: only what undoes its work may catch it."""


def main(stdin: bytes | int = 0) -> int:
    """The entry of the executable; returns its exit status: 0, or 1 with an error object on standard output.

    ``stdin`` is all of standard input where it has been read already.

    While the work is done, descriptor 1 leads to standard error, so that nothing else can write among the JSON.
    """
    closed = _fill_standard_descriptors()
    plugin = os.path.basename(sys.argv[0]) or "weft"
    other = _netavark(plugin)
    if not os.environ.get("CNI_COMMAND") and not other:
        remark(versions.about(plugin))
        return 0
    if 1 in closed:
        remark("standard output is closed, nothing was done\n")
        return 1
    output = os.dup(1)
    os.dup2(2, 1)
    try:
        if other:
            from cni_plugin import netavark

            _catch_signals()
            status, answer = netavark.run(sys.argv[1:], stdin, _handle)
            _ignore_signals()
        elif os.environ["CNI_COMMAND"] == "VERSION":
            status, answer = run(plugin, os.environ, stdin, _handle)  # importing signal would double its time
        else:
            _catch_signals()
            status, answer = run(plugin, os.environ, stdin, _handle)
            _ignore_signals()
    except BaseException as error:  # a signal between two lines of run
        status, answer = 1, _failure(error, b"")
    return status if deliver(output, answer) else 1


def _netavark(plugin: str) -> bool:
    """Whether netavark calls: with arguments, which CNI does not have."""
    return plugin == "weft" and not os.environ.get("CNI_COMMAND") and sys.argv[1:2] != [] and sys.argv[1] in _VERBS


def run(plugin: str, environ: Mapping[str, str], stdin: bytes | int, handle: Handle) -> tuple[int, bytes]:
    """One CNI call: the exit status, and the bytes for standard output.

    ``plugin`` is the name called by; ``stdin`` all of standard input, or a descriptor to read it from. ``handle``
    does the work for every command but VERSION, and raises WeftErrors. Raises nothing itself.
    """
    given = b""
    try:
        if environ.get("CNI_COMMAND") == "VERSION":
            return 0, versions.answer(plugin, _peek(stdin))

        from cni_plugin.wire import channel, config, environment, result
        from cni_plugin.wire.request import Request

        try:
            said = environment.read(environ, plugin)
        except WeftError:
            given = _peek(stdin)
            raise
        given = stdin if isinstance(stdin, bytes) else channel.read(stdin)
        read = config.read(given, said.command, plugin)
        answer = handle(
            Request(
                command=said.command,
                plugin=plugin,
                container=said.container,
                namespace=said.namespace,
                interface=said.interface,
                path=said.path,
                arguments=said.arguments,
                override=said.override,
                environment=environ,
                config=read,
                stdin=given,
            )
        )
        return 0, b"" if answer is None else result.render(answer, read.version)
    except BaseException as error:  # the one exit
        return 1, _failure(error, given, traced=bool(environ.get("WEFT_DEBUG")))


def _handle(request: Request) -> Result | None:
    from cni_plugin import service  # stands on all the rest, which a call that is refused does not need

    return service.handle(request)


def _peek(stdin: bytes | int) -> bytes:
    """What standard input holds, where the answer is not to depend on it: nothing that is wrong matters."""
    if isinstance(stdin, bytes):
        return stdin
    from cni_plugin.wire import channel

    try:
        return channel.read(stdin, patience=PATIENCE)
    except WeftError:
        return b""


def _failure(error: BaseException, given: bytes, *, traced: bool = False) -> bytes:
    """Any exception as an error object, in the version that the configuration asked for."""
    try:
        from cni_plugin.wire import document, failure
    except BaseException:  # no memory, or no files left to open
        return _LAST_RESORT
    try:
        if traced and not isinstance(error, WeftError):
            import traceback

            remark("".join(traceback.format_exception(error)))
        return failure.render_error(_explained(error), document.version(given))
    except BaseException:
        return _LAST_RESORT


def _explained(error: BaseException) -> WeftError:
    """What a runtime is told of an exception."""
    if isinstance(error, WeftError):
        return error
    if isinstance(error, Interrupted | KeyboardInterrupt):
        return WeftError(f"{str(error) or 'interrupted'} before the work was done", code=TRY_AGAIN)
    if isinstance(error, MemoryError):
        return WeftError("out of memory")
    if isinstance(error, RecursionError):
        return WeftError("internal error: the work was nested too deep", hint=_DEBUG)
    reason = " ".join(str(error).split())[:_LONGEST_REASON]
    return WeftError(f"internal error: {type(error).__name__}{': ' if reason else ''}{reason}", hint=_DEBUG)


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
    """Makes the signals that ask to end raise ``Interrupted``, once: what is undone then must not be interrupted."""
    import signal

    def interrupt(number: int, _frame: object) -> None:
        _ignore_signals()
        raise Interrupted(f"ended by {signal.Signals(number).name}")

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
                import select  # a pipe that somebody made non-blocking, and that is full

                select.select((), (output,), ())
    except OSError as error:
        remark(f"cannot write to standard output: {error.strerror}\n")
        return False
    return True
