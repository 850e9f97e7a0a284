"""The lines of ``weft.toml`` by which this host's agent uses the cluster; all others are the operator's."""

from __future__ import annotations

import contextlib
import os
import tomllib
from pathlib import Path

from weft import files
from weft.errors import ConfigProblem, Conflict

_BEGIN = "# Written by weft cluster; removed by weft cluster leave.\n"


def _block(folder: str) -> str:
    return f'{_BEGIN}[store]\ncluster = "{folder}"\n'


def check_free(path: str) -> None:
    """Raises Conflict where the file names a store already, ConfigProblem where it cannot be read."""
    store = _parsed(path, _text(path)).get("store")
    if store is not None:
        raise Conflict(
            f"{path} has a section [store] already: this host uses an etcd cluster",
            hint="remove the section first; what it stores there stays there",
        )


def add(path: str, folder: str) -> None:
    """Add the section, unless it is there. Raises Conflict, ConfigProblem, StateDamaged."""
    text = _text(path)
    if _block(folder) in text:
        return
    check_free(path)
    changed = f"{text}{'' if not text or text.endswith(chr(10)) else chr(10)}{chr(10) if text else ''}{_block(folder)}"
    _parsed(path, changed)
    _write(path, changed)


def remove(path: str, folder: str) -> None:
    """Remove the section where ``add`` has written it. Raises ConfigProblem, StateDamaged."""
    before, found, after = _text(path).partition(_block(folder))
    if found:
        _write(path, before.removesuffix("\n") + after if before.endswith("\n\n") else before + after)


def _text(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except FileNotFoundError:
        return ""
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigProblem(f"cannot read {path}: {error}") from error


def _parsed(path: str, text: str) -> dict[str, object]:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigProblem(f"cannot read {path}: {error}", hint="correct the file first") from error


def _write(path: str, text: str) -> None:
    """Replace the file, with the mode and owner that it has."""
    before = None
    with contextlib.suppress(FileNotFoundError):
        before = os.stat(path)
    files.make_directory(os.path.dirname(path), "weft's configuration", mode=0o755)
    files.write(path, text.encode(), "weft's configuration:", durable=True)
    os.chmod(path, before.st_mode & 0o7777 if before else 0o644)
    if before:
        os.chown(path, before.st_uid, before.st_gid)
