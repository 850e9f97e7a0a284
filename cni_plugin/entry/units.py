"""systemd's units of weft, from conf/systemd: written by ``weft install --systemd``, removed by ``weft uninstall``.

Debian's package has them in its own folder.
"""

from __future__ import annotations

import contextlib
import os

from weft import systemd
from weft.errors import WeftError

FOLDER = systemd.UNITS
STARTED = ("weft-engine.socket", "weft-gc.timer", "weft-apply.service")
_COMMAND = "/usr/local/bin/weft"
"""What the units of conf/systemd execute, to be replaced by the command's own path."""
_MARK = "# Written by weft install --systemd.\n"


def source() -> str:
    """The folder of the units: in the wheel, or in a checkout. Raises WeftError."""
    here = os.path.dirname(os.path.abspath(__file__))
    for folder in (os.path.join(here, "conf"), os.path.join(here, "../../conf"), os.path.join(here, "../../../conf")):
        if os.path.isdir(units := os.path.normpath(os.path.join(folder, "systemd"))):
            return units
    raise WeftError("this installation of weft has no units", hint="install the wheel again")


def write(command: str, folder: str = FOLDER) -> list[str]:
    """Write all units, with ``command`` as the path of weft; their names. Raises OSError."""
    found = source()
    os.makedirs(folder, mode=0o755, exist_ok=True)
    for name in sorted(os.listdir(found)):
        with open(os.path.join(found, name), encoding="utf-8") as file:
            text = _MARK + file.read().replace(_COMMAND, command)
        path = os.path.join(folder, name)
        with open(f"{path}.new", "w", encoding="utf-8") as file:
            file.write(text)
        os.replace(f"{path}.new", path)
    return sorted(os.listdir(found))


def start() -> str:
    """Enable and start the engine's socket and the timer; "" or why not."""
    if not systemd.is_running():
        return "systemd does not run here: the units are not started"
    try:
        systemd.control("daemon-reload")
        systemd.control("enable", "--now", *STARTED)
    except WeftError as error:
        return error.message
    return ""


def remove(folder: str = FOLDER) -> list[str]:
    """Stop and remove the units that ``write`` has written, and no others; their names."""
    names = [name for name in _weft_units(folder) if _is_own(os.path.join(folder, name))]
    if names and systemd.is_running():
        with contextlib.suppress(WeftError):
            systemd.control("disable", "--now", *names)
    for name in names:
        os.unlink(os.path.join(folder, name))
    if names and systemd.is_running():
        with contextlib.suppress(WeftError):
            systemd.control("daemon-reload")
    return names


def _weft_units(folder: str) -> list[str]:
    with contextlib.suppress(FileNotFoundError):
        return sorted(name for name in os.listdir(folder) if name.startswith("weft-"))
    return []


def _is_own(path: str) -> bool:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.readline() == _MARK
    except OSError:
        return False
