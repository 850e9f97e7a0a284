"""One CNI call as a function: environment and standard input to exit status and standard output.

The engine and a call's own process share it. The answer is always one JSON document.
"""

from __future__ import annotations

import os
import time

from cni_plugin.wire import channel, probe
from cni_plugin.wire import failure as rendering
from weft import stderr
from weft.errors import TRY_AGAIN, WeftError

TYPE_CHECKING = False
if TYPE_CHECKING:  # not imported for VERSION
    from collections.abc import Callable, Mapping

    from cni_plugin.wire.request import Request
    from weft.types import Result

    Handle = Callable[[Request], Result | None]
    Log = Callable[[str], None]

OPTIONAL_STDIN_TIMEOUT = 1.0
"""Seconds to wait for standard input where it only decides the version of the answer."""

_LAST_RESORT = b'{\n    "cniVersion": "1.1.0",\n    "code": 999,\n    "msg": "weft failed without a message"\n}'
_TRACEBACK_HINT = "set WEFT_DEBUG=1 in the runtime's environment for a traceback on standard error"
_LONGEST_REASON = 200  # characters of an exception's text in a message


class Interrupted(BaseException):
    """Terminated by a signal. Not an Exception, so that only the rollback and the outermost handler
    catch it.
    """


def run(
    plugin: str, environ: Mapping[str, str], stdin: bytes | int, handle: Handle, log: Log | None = None
) -> tuple[int, bytes]:
    """One CNI call: the exit status, and the bytes for standard output.

    ``plugin`` is the name called by; ``stdin`` all of standard input, or a descriptor to read it from.
    ``handle`` does the work for every command but VERSION, and raises WeftErrors. ``log`` gets one line
    about the call. Raises nothing itself.
    """
    started = time.monotonic()
    received, network = b"", ""
    answer: Result | None = None
    served = False
    try:
        if environ.get("CNI_COMMAND") == "VERSION":
            return 0, probe.answer(plugin, _peek(stdin))

        from cni_plugin.wire import config, environment, result

        try:
            call = environment.read(environ, plugin, _reads_arguments)
        except WeftError:
            received = _peek(stdin)
            raise
        received = stdin if isinstance(stdin, bytes) else channel.read(stdin)
        read = config.read(received, call.command, plugin)
        network, served = read.name, True
        answer = handle(call.request(plugin, environ, read, received))
        status, output = 0, b"" if answer is None else result.render(answer, read.version)
    except BaseException as error:  # whatever it is, the runtime gets an error object
        status, output = 1, failure(error, received, traced=bool(environ.get("WEFT_DEBUG")))
        if not served:
            _record(environ, error)
    if log is not None:
        from cni_plugin.service.log import request_line

        log(request_line(environ, network, answer, output if status else b"", time.monotonic() - started))
    return status, output


def _record(environ: Mapping[str, str], error: BaseException) -> None:
    """The event of a call that is refused before it is served."""
    from weft import events

    shown = _as_weft_error(error)
    run = f"/run/weft/{os.stat('/proc/thread-self/ns/net').st_ino}"
    told: dict[str, events.Value] = {
        "container": environ.get("CNI_CONTAINERID", ""),
        "interface": environ.get("CNI_IFNAME", ""),
        "code": shown.code,
        "error": shown.message,
    }
    events.record(run, environ.get("CNI_COMMAND", "").lower()[:20] or "call", told)


def _reads_arguments(plugin: str) -> bool:
    from cni_plugin.plan import modules

    return modules.reads_arguments(plugin)


def _peek(stdin: bytes | int) -> bytes:
    """Standard input where the answer hardly depends on it; errors are ignored."""
    if isinstance(stdin, bytes):
        return stdin
    try:
        return channel.read(stdin, patience=OPTIONAL_STDIN_TIMEOUT)
    except WeftError:
        return b""


def failure(error: BaseException, stdin: bytes, *, traced: bool = False) -> bytes:
    """The error object for any exception, in the CNI version of the configuration."""
    try:
        from cni_plugin.wire import document
    except BaseException:  # ENOMEM or EMFILE
        return _LAST_RESORT
    try:
        if traced and not isinstance(error, WeftError):
            import traceback

            stderr.write("".join(traceback.format_exception(error)))
        return rendering.render_error(_as_weft_error(error), document.version(stdin))
    except BaseException:
        return _LAST_RESORT


def _as_weft_error(error: BaseException) -> WeftError:
    """What the runtime is told about an exception."""
    if isinstance(error, WeftError):
        return error
    if isinstance(error, Interrupted | KeyboardInterrupt):
        return WeftError(f"{str(error) or 'interrupted'} before the call was finished", code=TRY_AGAIN)
    if isinstance(error, MemoryError):
        return WeftError("out of memory")
    if isinstance(error, RecursionError):
        return WeftError("internal error: recursion limit exceeded", hint=_TRACEBACK_HINT)
    reason = " ".join(str(error).split())[:_LONGEST_REASON]
    return WeftError(f"internal error: {type(error).__name__}{': ' if reason else ''}{reason}", hint=_TRACEBACK_HINT)
