"""Makes the executable that runtimes call: the C client, where there is a compiler. For bin/setup and the wheel.

It is compiled once, wherever it is to be used; the paths of an installation are filled in when it is put in place.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping, Sequence

from cni_plugin.wire import versions
from weft import __version__

_FLAGS = ("-O2", "-std=gnu11", "-Wall", "-Wextra")
SOURCE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "shim.c")
_ROOM = 1024  # bytes for each path, its final zero among them

Run = Callable[[Sequence[str]], bool]


def definitions() -> tuple[str, ...]:
    """What the C client must know of weft, as the compiler's arguments."""
    firsts = ",".join(f'{{"{plugin}","{first}"}}' for plugin, first in versions.FIRST_OF_PLUGIN.items())
    return (
        f'-DOWN_VERSION="{__version__}"',
        f'-DEQUALLED="{versions.EQUALLED}"',
        "-DVERSIONS=" + ",".join(f'"{version}"' for version in versions.ALL),
        f"-DFIRSTS={firsts}",
    )


def compilers() -> tuple[str, ...]:
    """The commands to try: what CC names (``CC=none``: none at all), else those of the usual ones that there are.

    musl first: a static program of its starts and ends in 0.3 ms, one of glibc's in 0.6.
    """
    if os.environ.get("CC"):
        return (os.environ["CC"],)
    return tuple(each for each in ("musl-gcc", "cc", "gcc", "clang") if shutil.which(each))


def compile_client(output: str, run: Run) -> bool:
    """Compile the client to ``output``, statically where that is possible; False where no compiler can.

    ``run`` runs a command and says whether it succeeded.
    """
    for compiler in compilers():
        for linking in (("-static",), ()):
            if run((compiler, *_FLAGS, *linking, *definitions(), "-o", output, SOURCE)):
                return True
    return False


def fill(client: bytes, paths: Mapping[str, str]) -> bytes:
    """The client with its paths: ``python``, ``launcher``, ``engine``, ``root``. Raises ValueError for one too long."""
    for name, path in paths.items():
        empty, wanted = f"@weft {name}".encode().ljust(_ROOM, b"\0"), os.fsencode(path)
        if len(wanted) >= _ROOM:
            raise ValueError(f"{path!r} is too long for the client: at most {_ROOM - 1} bytes")
        if client.count(empty) != 1:
            raise ValueError(f"this is no client that was compiled for an installation: it has no place for {name}")
        client = client.replace(empty, wanted.ljust(_ROOM, b"\0"))
    return client
