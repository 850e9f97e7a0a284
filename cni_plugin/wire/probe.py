"""The answer to VERSION.

Imports next to nothing: podman asks every plugin of every network for its versions on every command, so
that answer must cost no more than the start of the interpreter.
"""

from __future__ import annotations

from cni_plugin.wire.versions import NEWEST, supported


def answer(plugin: str, stdin: bytes) -> bytes:
    """What VERSION prints: the version asked in, if the plugin speaks it, and all that it speaks.

    Source: SPEC.md, "VERSION: probe plugin version support".
    """
    known = supported(plugin)
    asked = _asked(stdin)
    listed = ",".join(f'"{each}"' for each in known)
    line = f'{{"cniVersion":"{asked if asked in known else NEWEST}","supportedVersions":[{listed}]}}\n'
    return line.encode("ascii")


def _asked(stdin: bytes) -> str:
    """The cniVersion on standard input, "" where there is none or it cannot be read.

    Where the word stands there once, as it does in what every runtime sends, the value is cut out by
    hand: importing json takes as long as the interpreter's own start.
    """
    found = stdin.lower().count(b"cniversion")
    if found == 0:
        return ""
    if found > 1:
        from cni_plugin.wire import document

        return document.version(stdin)
    after = stdin[stdin.lower().index(b"cniversion") + len(b"cniversion") :].partition(b":")[2]
    return after.lstrip().partition(b'"')[2].partition(b'"')[0].decode("ascii", "replace")
