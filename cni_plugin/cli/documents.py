"""Man pages, shells' completion and examples below a folder as /usr/local/share: ``weft install --share``."""

from __future__ import annotations

import contextlib
import os
import shutil

from cni_plugin.cli import manual
from cni_plugin.entry import units

_PAGES = "man/man1"
_EXAMPLES = "doc/weft/examples"


def write(folder: str, *, vendor: bool = False) -> list[str]:
    """Write all man pages, the completion of bash, zsh and fish, and the examples; the paths. Raises OSError.

    ``vendor``: in the folder that zsh has for packages of Debian, else in that of the administrator.
    """
    texts = {f"{_PAGES}/{name}": text for name, text in manual.pages().items()}
    texts |= {_place(path, vendor): manual.completion(shell) for shell, path in manual.COMPLETIONS.items()}
    written = []
    for name, text in texts.items():
        path = os.path.join(folder, name)
        os.makedirs(os.path.dirname(path), mode=0o755, exist_ok=True)
        with open(f"{path}.new", "w", encoding="utf-8") as file:
            file.write(text)
        os.replace(f"{path}.new", path)
        written.append(path)
    examples = os.path.join(folder, _EXAMPLES)
    ignored = shutil.ignore_patterns("debian", "systemd")
    shutil.copytree(os.path.dirname(units.source()), examples, ignore=ignored, dirs_exist_ok=True)
    return [*written, examples]


def remove(folder: str) -> list[str]:
    """Remove what ``write`` has written there, by any release, and no other file; the paths."""
    names = [_place(path, False) for path in manual.COMPLETIONS.values()]
    with contextlib.suppress(OSError):
        names += [f"{_PAGES}/{one}" for one in sorted(os.listdir(os.path.join(folder, _PAGES)))]
    removed = []
    for path in (os.path.join(folder, name) for name in names):
        if _is_own(path):
            os.unlink(path)
            removed.append(path)
    examples = os.path.join(folder, _EXAMPLES)
    if os.path.isdir(examples):
        shutil.rmtree(examples)
        removed.append(examples)
    for path in removed:
        _remove_empty(os.path.dirname(path), folder)
    return removed


def _remove_empty(path: str, top: str) -> None:
    """Remove the folders without files from ``path`` to below ``top``; share/man is the distribution's."""
    with contextlib.suppress(OSError):
        while path not in (top, os.path.join(top, "man")):
            os.rmdir(path)
            path = os.path.dirname(path)


def _place(path: str, vendor: bool) -> str:
    return path if vendor else path.replace("zsh/vendor-completions", "zsh/site-functions")


def _is_own(path: str) -> bool:
    """Whether a file is a man page or a completion of weft's."""
    name = os.path.basename(path)
    if not name.startswith(("weft", "_weft")):
        return False
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            text = file.read()
    except OSError:
        return False
    return "_WEFT_COMPLETE" in text or text.startswith(f'.TH "{name.partition(".")[0].upper()}" "1" "" "weft ')
