"""The ``weft`` command. It formats what the service and the kernel return."""

from __future__ import annotations

import contextlib
import os
import sys

from weft.daemons import need_library
from weft.errors import LibraryMissing


def main() -> None:
    """The entry point of ``bin/weft`` and of an installed weft; never returns."""
    _open_streams()
    try:
        _run()
    except LibraryMissing as error:
        sys.exit(f"weft: {error.message}\nhint: {error.hint}")


def _open_streams() -> None:
    """Let the standard streams that the caller has closed lead nowhere: else the next file or socket that is
    opened has a number to which something is printed.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # of the lowest number that is free
    sys.stdin = sys.stdin or open(0)  # noqa: SIM115 -- for as long as the process lives
    sys.stdout = sys.stdout or open(1, "w")  # noqa: SIM115
    sys.stderr = sys.stderr or open(2, "w")  # noqa: SIM115


def _run() -> None:
    if sys.argv[1:2] == ["engine"] and not {"start", "status", "stop", "-h", "--help"} & set(sys.argv[2:]):
        from cni_plugin.engine.main import end, serving

        end(serving(sys.argv[2:]))
    if sys.argv[1:2] == ["agent"] and len(sys.argv) in (2, 4) and sys.argv[2:3] in ([], ["--config"]):
        from cni_plugin.agent.main import serving as agent

        sys.exit(agent("".join(sys.argv[3:]), {}))
    if sys.argv[1:2] == ["docker"] and not {"-h", "--help"} & set(sys.argv[2:]):
        need_library("aiohttp", "weft docker")
        from cni_plugin.docker.server import main as drive

        sys.exit(drive(sys.argv[2:]))
    if sys.argv[1:2] == ["dhcp"]:
        from cni_plugin.dhcp.keeper import main as keep

        sys.exit(keep(sys.argv[2:]))
    from cni_plugin.cli.root import weft  # click takes 60 ms to import, which the daemons above do not need

    try:
        weft.main(prog_name="consul" if sys.argv[0].rpartition("/")[2] == "consul" else "weft")
    except SystemExit as ended:
        _end(ended.code if isinstance(ended.code, int) else int(ended.code is not None))


def _end(status: int) -> None:
    """End at once: the interpreter would look at each object once more, and free it, for a second after
    ``weft check`` of 5,000 attachments.
    """
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(status)
