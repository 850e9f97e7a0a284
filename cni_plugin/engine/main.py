"""The engine's command line, as the shim, systemd and ``weft engine`` start it."""

from __future__ import annotations

import os
import sys

from cni_plugin.engine import listener
from cni_plugin.engine.server import IDLE, serve
from cni_plugin.service import log
from weft import confinement, detached, stderr
from weft.capabilities import ENGINE
from weft.errors import Busy, StateDamaged


def main(arguments: list[str]) -> int:
    """``[--idle SECONDS] [--log | --debug] [--detached]``; the exit status.

    ``--detached``, as a runtime's call starts it: it does not start under restrictions of its caller
    (``weft.detached``), and notes them for ``weft engine status``.

    The environment may have ``WEFT_ENGINE_IDLE`` in seconds, and ``WEFT_LOG``: ``info`` or ``debug``.
    """
    idle, level = IDLE, log.level(os.environ)
    given = os.environ.get("WEFT_ENGINE_IDLE", "")
    rest = list(arguments)
    try:
        if given:
            idle = float(given)
        while rest:
            word, equals, value = rest.pop(0).partition("=")
            if equals and word != "--idle":
                raise ValueError(f"{word}={value}")
            if word == "--log":
                level = max(level, log.Level.INFO)
            elif word == "--debug":
                level = log.Level.DEBUG
            elif word == "--detached":
                try:
                    detached.settle(ENGINE)
                except Busy as error:
                    listener.note_refusal(error.message)
                    return detached.REFUSED
                listener.note_refusal("")
            elif word == "--idle":
                idle = float(value if equals else rest.pop(0))
            else:
                raise ValueError(word)
        if not 0 <= idle < float("inf"):
            raise ValueError(idle)
    except (ValueError, IndexError) as error:
        stderr.write(f"weft engine: invalid argument: {error}\nSee 'weft engine --help'.\n")
        return 2
    confinement.confine(ENGINE)
    try:
        return serve(idle, level)
    except StateDamaged as error:
        stderr.write(f"weft: cannot start the engine: {error}\n")
        return 1


def serving(arguments: list[str]) -> int:
    """``weft engine [--idle SECONDS] [--quiet | --debug]`` in the foreground, which logs; the exit
    status.
    """
    rest = [word for word in arguments if word != "--quiet"]
    return main(rest if len(rest) < len(arguments) else [*rest, "--log"])


def end(status: int) -> None:
    """Exit without waiting for threads: all accepted requests have been answered."""
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            stream.flush()
    os._exit(status)
