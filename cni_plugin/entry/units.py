"""systemd's units of weft, from conf/systemd: written by ``weft install --systemd``, removed by ``weft uninstall``.

Debian's package has them in its own folder.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Sequence

from weft import processes
from weft.errors import WeftError

FOLDER = "/etc/systemd/system"
STARTED = ("weft-engine.socket", "weft-gc.timer")
_COMMAND = "/usr/local/bin/weft"
"""What the units of conf/systemd execute, to be replaced by the command's own path."""
_MARK = "# Written by weft install --systemd.\n"
_SECONDS = 30.0


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
    if not os.path.isdir("/run/systemd/system"):
        return "systemd does not run here: the units are not started"
    for arguments in (["daemon-reload"], ["enable", "--now", *STARTED]):
        if problem := _systemctl(arguments):
            return problem
    return ""


def remove(folder: str = FOLDER) -> list[str]:
    """Stop and remove the units that ``write`` has written, and no others; their names."""
    names = [name for name in _weft_units(folder) if _is_own(os.path.join(folder, name))]
    if names and os.path.isdir("/run/systemd/system"):
        _systemctl(["disable", "--now", *names])
    for name in names:
        os.unlink(os.path.join(folder, name))
    if names and os.path.isdir("/run/systemd/system"):
        _systemctl(["daemon-reload"])
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


def _systemctl(arguments: Sequence[str]) -> str:
    """Run systemctl; "" or what it says."""
    program = shutil.which("systemctl")
    if program is None:
        return "systemctl is missing"
    ended = processes.run([program, *arguments], b"", environment={}, timeout=_SECONDS)
    return (
        "" if ended.status == 0 else f"systemctl {' '.join(arguments)}: {ended.errors.decode(errors='replace').strip()}"
    )
