"""Compiles the C client that runtimes call, where there is a compiler. For bin/setup and the wheel.

It is compiled with placeholders for its paths, which each installation fills in.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence

from cni_plugin.wire import frame, versions
from cni_plugin.wire.plugins import NETAVARK_DRIVERS
from weft import __version__

_FLAGS = ("-O2", "-std=gnu11", "-Wall", "-Wextra")
SOURCE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "shim.c")
_PATH_BYTES = 1024  # of each path in the client, with its terminating zero

Run = Callable[[Sequence[str]], bool]


def definitions() -> tuple[str, ...]:
    """The preprocessor definitions that shim.c needs."""
    firsts = ",".join(f'{{"{plugin}","{first}"}}' for plugin, first in versions.FIRST_OF_PLUGIN.items())
    return (
        f'-DOWN_VERSION="{__version__}"',
        f'-DEQUALLED="{versions.EQUALLED}"',
        "-DVERSIONS=" + ",".join(f'"{version}"' for version in versions.ALL),
        f"-DFIRSTS={firsts}",
        f'-DNETAVARK="{frame.NETAVARK}"',
        f"-DNETAVARK_DRIVERS={', '.join(json.dumps(one) for one in NETAVARK_DRIVERS)}",
        f"-DNETAVARK_INFO={json.dumps(versions.NETAVARK_INFO)}",
    )


def compilers() -> tuple[str, ...]:
    """The compilers to try: the one that CC names (``CC=none``: none), else those that are installed.

    musl first: a static executable starts and exits in 0.3 ms with musl, in 0.6 ms with glibc.
    """
    if os.environ.get("CC"):
        return (os.environ["CC"],)
    return tuple(each for each in ("musl-gcc", "cc", "gcc", "clang") if shutil.which(each))


def compile_client(output: str, run: Run) -> bool:
    """Compile the client to ``output``, statically linked if possible; False where no compiler
    succeeds.

    ``run`` runs a command and returns whether it succeeded.
    """
    for compiler in compilers():
        for linking in (("-static",), ()):
            if run((compiler, *_FLAGS, *linking, *definitions(), "-o", output, SOURCE)):
                return True
    return False


def fill(client: bytes, paths: Mapping[str, str]) -> bytes:
    """The client with its paths filled in: ``python``, ``launcher``, ``engine``, ``root``.

    Raises ValueError for a path that is too long, or a client without the placeholder.
    """
    for name, path in paths.items():
        placeholder, wanted = f"@weft {name}".encode().ljust(_PATH_BYTES, b"\0"), os.fsencode(path)
        if len(wanted) >= _PATH_BYTES:
            raise ValueError(f"{path!r} is too long for the client (at most {_PATH_BYTES - 1} bytes)")
        if client.count(placeholder) != 1:
            raise ValueError(f"not a client that was compiled for an installation: no placeholder for {name}")
        client = client.replace(placeholder, wanted.ljust(_PATH_BYTES, b"\0"))
    return client
