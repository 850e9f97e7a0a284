"""The engine's process: how it is started on demand, by systemd, or by ``weft engine``."""

from __future__ import annotations

import os
import sys

from cni_plugin.engine.server import IDLE, serve
from weft import stderr


def main(arguments: list[str]) -> int:
    """``[--idle SECONDS] [--log]``; the exit status."""
    idle, log = IDLE, False
    given = os.environ.get("WEFT_ENGINE_IDLE", "")
    rest = list(arguments)
    try:
        if given:
            idle = float(given)
        while rest:
            word = rest.pop(0)
            if word == "--log":
                log = True
            elif word == "--idle":
                idle = float(rest.pop(0))
            else:
                raise ValueError(word)
        if not 0 <= idle < float("inf"):
            raise ValueError(idle)
    except (ValueError, IndexError) as error:
        stderr.write(f"weft engine: not understood: {error}; see weft engine --help\n")
        return 2
    return serve(idle, log=log)


def serving(arguments: list[str]) -> int:
    """``weft engine [--idle SECONDS] [--quiet]``, as a person or a service manager calls it; the exit status."""
    rest = [word for word in arguments if word != "--quiet"]
    return main(rest if len(rest) < len(arguments) else [*rest, "--log"])


def end(status: int) -> None:
    """End now: no thread is waited for, all that was taken on is done."""
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            stream.flush()
    os._exit(status)
