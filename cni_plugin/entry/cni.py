"""One CNI call as a function: the environment and the bytes of standard input to an exit status and an answer.

The engine and a process of its own call the same. Whatever happens, the answer is one JSON document.
"""

from __future__ import annotations

from cni_plugin.wire import channel, probe
from cni_plugin.wire import failure as rendering
from weft import stderr
from weft.errors import TRY_AGAIN, WeftError

TYPE_CHECKING = False
if TYPE_CHECKING:  # what VERSION must not import
    from collections.abc import Callable, Mapping

    from cni_plugin.wire.request import Request
    from weft.types import Result

    Handle = Callable[[Request], Result | None]

PATIENCE = 1.0
"""Seconds to wait for standard input where the answer does not depend on it."""

_LAST_RESORT = b'{\n    "cniVersion": "1.1.0",\n    "code": 999,\n    "msg": "weft failed and could not say why"\n}'
_DEBUG = "set WEFT_DEBUG=1 in the runtime's environment for a traceback on standard error"
_LONGEST_REASON = 200  # characters of an exception's text that a message repeats


class Interrupted(BaseException):
    """A signal asked this process to end. Not an Exception: only what undoes its work may catch it."""


def run(plugin: str, environ: Mapping[str, str], stdin: bytes | int, handle: Handle) -> tuple[int, bytes]:
    """One CNI call: the exit status, and the bytes for standard output.

    ``plugin`` is the name called by; ``stdin`` all of standard input, or a descriptor to read it from. ``handle``
    does the work for every command but VERSION, and raises WeftErrors. Raises nothing itself.
    """
    given = b""
    try:
        if environ.get("CNI_COMMAND") == "VERSION":
            return 0, probe.answer(plugin, _peek(stdin))

        from cni_plugin.wire import config, environment, result
        from cni_plugin.wire.request import Request

        try:
            said = environment.read(environ, plugin, _reads_arguments)
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
        return 1, failure(error, given, traced=bool(environ.get("WEFT_DEBUG")))


def _reads_arguments(plugin: str) -> bool:
    from cni_plugin.plan import modules

    return modules.reads_arguments(plugin)


def _peek(stdin: bytes | int) -> bytes:
    """What standard input holds, where the answer is not to depend on it: nothing that is wrong matters."""
    if isinstance(stdin, bytes):
        return stdin
    try:
        return channel.read(stdin, patience=PATIENCE)
    except WeftError:
        return b""


def failure(error: BaseException, given: bytes, *, traced: bool = False) -> bytes:
    """Any exception as an error object, in the version that the configuration asked for."""
    try:
        from cni_plugin.wire import document
    except BaseException:  # no memory, or no files left to open
        return _LAST_RESORT
    try:
        if traced and not isinstance(error, WeftError):
            import traceback

            stderr.write("".join(traceback.format_exception(error)))
        return rendering.render_error(_explained(error), document.version(given))
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
