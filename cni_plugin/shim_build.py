"""Makes the executable that runtimes call: the C client, where there is a compiler. For bin/setup and the wheel."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

from cni_plugin import __version__
from cni_plugin.wire import versions

_FLAGS = ("-O2", "-std=gnu11", "-Wall", "-Wextra")
SOURCE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "shim.c")


def definitions(python: str, launcher: str, engine: str, root: str) -> tuple[str, ...]:
    """What the C client must know, as the compiler's arguments."""
    firsts = ",".join(f'{{"{plugin}","{first}"}}' for plugin, first in versions.FIRST_OF_PLUGIN.items())
    return (
        *(
            f"-D{name}={_quoted(value)}"
            for name, value in (
                ("PYTHON", python),
                ("LAUNCHER", launcher),
                ("ENGINE", engine),
                ("ROOT", root),
                ("OWN_VERSION", __version__),
                ("EQUALLED", versions.EQUALLED),
            )
        ),
        "-DVERSIONS=" + ",".join(map(_quoted, versions.ALL)),
        f"-DFIRSTS={firsts}",
    )


def _quoted(text: str) -> str:
    """A C string literal."""
    escaped = "".join(
        f"\\{byte:03o}" if not 32 <= byte < 127 or byte in b'"\\' else chr(byte) for byte in os.fsencode(text)
    )
    return f'"{escaped}"'


def compile_client(
    run: Callable[[Sequence[str]], bool], output: str, compilers: Sequence[str], defined: Sequence[str]
) -> bool:
    """Compile the client to ``output``, statically where that is possible; ``run`` says whether a command succeeded."""
    for compiler in compilers:
        for linking in (("-static",), ()):
            if run((compiler, *_FLAGS, *linking, *defined, "-o", output, SOURCE)):
                return True
    return False
