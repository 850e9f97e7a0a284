"""A folder for a runtime's CNI_PATH: the executable, and links to it under every name weft answers to.

Made by bin/setup for a checkout and by ``weft install`` for an installed package.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec

from cni_plugin.entry import build
from cni_plugin.plan import modules
from cni_plugin.wire.plugins import OWN_NAME
from weft.errors import Conflict, WeftError

_LONGEST_SHEBANG = 255  # bytes of the first line that execve(2) reads
_LIBRARIES = ("weft", "pyroute2", "netaddr", "click")
COMPILED = "client"
"""The compiled client, beside this file; empty or missing where there was no compiler."""


@dataclass(frozen=True, slots=True)
class Installation:
    """``interpreter``; ``root``, the folder of weft's packages; ``libraries``, those of what it needs; ``scripts``."""

    interpreter: str
    root: str
    libraries: tuple[str, ...]
    scripts: str

    @property
    def launcher(self) -> str:
        return os.path.join(self.scripts, "weft-plugin")

    @property
    def engine(self) -> str:
        return os.path.join(self.scripts, "weft-engine")

    def program(self, purpose: str, body: str) -> bytes:
        """A script that imports weft and its libraries, and nothing of its caller's surroundings."""
        places = [self.root, *(place for place in self.libraries if place != self.root)]
        text = f'''#!{self.interpreter} -IBS
"""{purpose} Made by weft's installation.

Isolated (-I), without site (-S), writing no bytecode (-B): nothing comes from PYTHONPATH, the user's own
packages or the folder the caller stands in. Python's own library comes first, then these places.
"""
import sys

sys.path[:] = [place for place in sys.path if not place.endswith(".zip")]
sys.path += {places!r}

{body}'''
        return text.encode("utf-8", "surrogateescape")

    def client(self, compiled: bytes | None) -> bytes:
        """The executable that runtimes call: the compiled one with this installation's paths, else one in Python."""
        if compiled is None:
            body = "from cni_plugin.entry.shim import main\n\nsys.exit(main())\n"
            return self.program("Weft, as a container runtime calls it.", body)
        paths = {"python": self.interpreter, "launcher": self.launcher, "engine": self.engine, "root": self.root}
        try:
            return build.fill(compiled, paths)
        except ValueError as error:
            raise WeftError(str(error)) from error

    def place_scripts(self) -> None:
        """What the client becomes where it needs Python."""
        body = "sys.argv[:] = sys.argv[1:] or ['weft']\n\nfrom cni_plugin.entry.call import main\n\nsys.exit(main())\n"
        purpose = "Weft in a process of its own, as the client becomes it: the plugin's name is the first argument."
        place(self.launcher, self.program(purpose, body))
        body = "from cni_plugin.engine.main import end, main\n\nend(main(sys.argv[1:]))\n"
        place(self.engine, self.program("Weft's engine.", body))


def installed() -> Installation:
    """This process's own package, as pip installed it. Raises WeftError where its interpreter cannot be used."""
    places = (os.path.dirname(_place_of(name)) for name in _LIBRARIES)
    root = os.path.dirname(_place_of("weft"))
    interpreter = choose_interpreter((sys.executable, os.path.realpath(sys.executable)))
    return Installation(
        interpreter, root, tuple(dict.fromkeys(places)), os.path.dirname(os.path.abspath(sys.executable))
    )


def _place_of(name: str) -> str:
    found = find_spec(name)
    if found is None or not found.origin:
        raise WeftError(f"the library {name} is missing", hint="install weft again, with what it depends on")
    return os.path.dirname(os.path.abspath(found.origin))


def compiled_client() -> bytes | None:
    """The C client that came with this package, None where it was built without a compiler."""
    try:
        with open(os.path.join(os.path.dirname(os.path.abspath(__file__)), COMPILED), "rb") as file:
            return file.read() or None
    except FileNotFoundError:
        return None


def choose_interpreter(candidates: Sequence[str]) -> str:
    """The first that can stand in a script's first line, which holds neither spaces nor a long path."""
    for interpreter in candidates:
        line = os.fsencode(f"#!{interpreter} -IBS\n")
        if not any(character.isspace() for character in interpreter) and len(line) <= _LONGEST_SHEBANG:
            return interpreter
    raise WeftError(
        f"neither {' nor '.join(candidates)} can stand in a script's first line: at most"
        f" {_LONGEST_SHEBANG - 8} bytes and no spaces",
        hint="install weft in another folder, or with another Python",
    )


def make(folder: str, installation: Installation, compiled: bytes | None, *, replace: bool) -> None:
    """Make the folder, or bring it up to date; the scripts that it needs as well.

    Raises Conflict where a file that is not weft's bears one of the names, unless ``replace``; nothing is changed then.
    """
    strangers = [name for name in modules.plugins() if _is_strange(os.path.join(folder, name))]
    if strangers and not replace:
        raise Conflict(
            f"{folder} holds {', '.join(strangers)}, which {'is' if len(strangers) == 1 else 'are'} not weft's",
            hint="take another folder, or --replace them",
        )
    installation.place_scripts()
    os.makedirs(folder, mode=0o755, exist_ok=True)
    place(os.path.join(folder, OWN_NAME), installation.client(compiled))
    for name in modules.plugins():
        link = os.path.join(folder, name)
        if not (os.path.islink(link) and os.readlink(link) == OWN_NAME):
            with contextlib.suppress(FileNotFoundError):  # of one that was killed
                os.unlink(f"{link}.new")
            os.symlink(OWN_NAME, f"{link}.new")
            os.replace(f"{link}.new", link)


def _is_strange(path: str) -> bool:
    return os.path.lexists(path) and not (os.path.islink(path) and os.readlink(path) == OWN_NAME)


def place(path: str, content: bytes) -> None:
    """Write an executable where it is another than wanted; renamed into place, for a runtime may be calling it."""
    try:
        with open(path, "rb") as file:
            same = file.read() == content and os.fstat(file.fileno()).st_mode & 0o7777 == 0o755
    except OSError:
        same = False
    if not same:
        with open(f"{path}.new", "wb") as file:
            file.write(content)
            os.fchmod(file.fileno(), 0o755)
        os.replace(f"{path}.new", path)
