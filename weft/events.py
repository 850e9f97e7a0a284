"""Events: one line of JSON for each ADD and DEL, repair, change of health and refusal, with who asked, how
long it took, and why it failed.

They are in ``/var/log/weft/events.log``, of which one older file is kept, and in the journal where that
runs (fields ``WEFT_…``). Example::

    {"time": 1767225600.25, "netns": 4026531840, "event": "add", "network": "blue", "container": "web",
     "interface": "eth0", "by": "podman[4711]", "ms": 4.1, "addresses": "10.9.0.5/24"}

Nothing here fails or blocks: a call must not depend on its log. Sources: journald's native protocol
(systemd.io/JOURNAL_NATIVE_PROTOCOL), open(2) (O_APPEND).
"""

from __future__ import annotations

import os
import time
from _json import encode_basestring_ascii as quoted  # json takes a call 12 ms to import
from fcntl import LOCK_EX, LOCK_NB, flock

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from weft.errors import WeftError

FOLDER = "/var/log/weft"
NAME, OLDER = "events.log", "events.log.1"
MOST_BYTES = 8 << 20
"""Bytes of a file; then it becomes the older one."""
JOURNAL = "/run/systemd/journal/socket"
_TAIL_BYTES = 256 << 10
_LONGEST = 500  # characters of a value
_HOSTS = "/run/weft/"

Value = str | int | float


def record(run: str, event: str, fields: Mapping[str, Value], *, journal: bool = True) -> None:
    """Append an event; ``run`` is the folder of the host that it happened on. Empty values are left out.

    ``journal=False``: the journal has it already.
    """
    if not run.startswith(_HOSTS):
        return  # a test's
    inode = run.removeprefix(_HOSTS).partition("/")[0]
    whole: dict[str, Value] = {"time": round(time.time(), 3), "netns": int(inode) if inode.isdigit() else 0}
    whole |= {"event": event, **{key: value for key, value in fields.items() if value != ""}}
    line = ", ".join(f"{quoted(key)}: {_text(value)}" for key, value in whole.items())
    try:
        _append(f"{{{line}}}\n".encode("ascii"))
        if journal and os.path.exists(JOURNAL):
            _to_journal(event, whole)
    except OSError:
        pass  # no space, or a folder that may not be written


def folder() -> str:
    """The folder of the files, made where it is missing: a daemon that is to write there asks before it
    confines itself.
    """
    try:  # noqa: SIM105 -- importing contextlib would cost a call more
        os.makedirs(FOLDER, mode=0o700, exist_ok=True)
    except OSError:
        pass  # then there are no events
    return FOLDER


def _text(value: Value) -> str:
    return quoted(_short(value)) if isinstance(value, str) else repr(value)


def _short(value: str) -> str:
    return value if len(value) <= _LONGEST else value[: _LONGEST - 1] + "…"


def _append(line: bytes) -> None:
    path = f"{FOLDER}/{NAME}"
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    try:
        descriptor = os.open(path, flags, 0o600)
    except FileNotFoundError:
        os.makedirs(FOLDER, mode=0o700, exist_ok=True)
        descriptor = os.open(path, flags, 0o600)
    try:
        os.write(descriptor, line)
        if os.fstat(descriptor).st_size > MOST_BYTES:
            _rotate(descriptor, path)
    finally:
        os.close(descriptor)


def _rotate(descriptor: int, path: str) -> None:
    """Rename the full file, unless another process is just doing so."""
    flock(descriptor, LOCK_EX | LOCK_NB)
    if os.stat(path).st_ino == os.fstat(descriptor).st_ino:
        os.rename(path, f"{FOLDER}/{OLDER}")


def _to_journal(event: str, fields: Mapping[str, Value]) -> None:
    from _socket import AF_UNIX, SOCK_DGRAM, socket

    failed = "error" in fields or fields.get("level") in ("WARNING", "ERROR", "CRITICAL")
    lines = [f"MESSAGE={sentence(fields)}", "SYSLOG_IDENTIFIER=weft", f"PRIORITY={4 if failed else 6}"]
    lines += [f"WEFT_{key.upper()}={_short(str(value))}" for key, value in fields.items()]
    made = socket(AF_UNIX, SOCK_DGRAM)
    try:
        made.setblocking(False)
        made.sendto("".join(f"{' '.join(line.split())}\n" for line in lines).encode("utf-8", "replace"), JOURNAL)
    finally:
        made.close()


def sentence(fields: Mapping[str, object]) -> str:
    """An event as people read it: ``add web/eth0 on blue: 10.9.0.5/24, 4.1 ms, by podman[4711]``."""
    rest = {key: value for key, value in fields.items() if key not in ("time", "netns", "event")}
    if (message := rest.pop("message", None)) is not None:
        return f"{rest.get('source', '')} {rest.get('level', '')}: {message}".strip()
    who = "/".join(str(rest.pop(key)) for key in ("container", "interface") if key in rest)
    on = f" on {rest.pop('network')}" if "network" in rest else ""
    said = [str(rest.pop(key)) for key in ("addresses", "error") if key in rest]
    said += [f"{rest.pop('ms')} ms"] if "ms" in rest else []
    by = [f"by {rest.pop('by')}"] if "by" in rest else []
    said += [f"{key} {value}" for key, value in rest.items()]
    subject = " ".join(filter(None, (str(fields.get("event", "")), who))) + on
    return f"{subject}: {', '.join([*said, *by])}" if said or by else subject


def after_kill(daemon: str, process: int) -> dict[str, Value]:
    """The fields of a takeover: this process is the daemon now, after one that was killed."""
    return {"what": daemon, "from": f"process {process}", "by": f"process {os.getpid()}", "why": "it was killed"}


def outcome(started: float, process: int, errors: Sequence[WeftError] = ()) -> dict[str, Value]:
    """The fields of what was begun at ``started`` (``time.monotonic``) and ends now: how long it took, for whom,
    and the first of its errors.
    """
    found: dict[str, Value] = {"ms": round((time.monotonic() - started) * 1000, 1), "by": asker(process)}
    return {**found, "code": errors[0].code, "error": errors[0].message} if errors else found


def asker(process: int) -> str:
    """Who has started a call's process: ``podman[4711]``; for 0 this process, "" where that is gone."""
    if not process:
        return f"weft[{os.getpid()}]"
    try:
        with open(f"/proc/{process}/stat", encoding="utf-8", errors="replace") as file:
            process = int(file.read().rpartition(")")[2].split()[1])
        with open(f"/proc/{process}/comm", encoding="utf-8", errors="replace") as file:
            return f"{file.read().strip()}[{process}]"
    except (OSError, ValueError, IndexError):
        return ""


def read(since: float = 0.0, netns: int = 0) -> Iterator[dict[str, object]]:
    """The events of a host since a time (seconds since 1970), oldest first; of all hosts for ``netns`` 0."""
    for name in (OLDER, NAME):
        try:
            with open(f"{FOLDER}/{name}", encoding="utf-8", errors="replace") as file:
                yield from _parsed(file, since, netns)
        except OSError:
            continue


def tail(netns: int, most: int = 200) -> list[dict[str, object]]:
    """The last events of a host, newest first, of the last 256 KiB that were written."""
    found: list[dict[str, object]] = []
    for name in (OLDER, NAME):
        try:
            with open(f"{FOLDER}/{name}", encoding="utf-8", errors="replace") as file:
                file.seek(max(0, os.fstat(file.fileno()).st_size - _TAIL_BYTES))
                found += _parsed(file, 0.0, netns)  # the first line may be cut: it is no JSON
        except OSError:
            continue
    return found[-most:][::-1]


def _parsed(lines: Iterator[str], since: float, netns: int) -> Iterator[dict[str, object]]:
    from json import loads

    for line in lines:
        try:
            found = loads(line)
        except ValueError:
            continue  # of a host that crashed while it was written
        at = found.get("time") if isinstance(found, dict) else None
        if isinstance(at, int | float) and at >= since and netns in (0, found.get("netns")):
            yield found


class Reader:
    """Reads the events of a host that were recorded since the last time, from all that are there on."""

    def __init__(self, netns: int, *, old: bool = True) -> None:
        self._netns = netns
        self._position, self._inode = (0, 0) if old else _end()

    def new(self) -> Iterator[dict[str, object]]:
        """Each event once, oldest first; after a rotation first the rest of the older file."""
        for name in (OLDER, NAME):
            try:
                with open(f"{FOLDER}/{name}", encoding="utf-8", errors="replace") as file:
                    inode = os.fstat(file.fileno()).st_ino
                    if name == OLDER and inode != self._inode:
                        continue
                    file.seek(self._position if inode == self._inode else 0)
                    yield from _parsed(iter(file.readline, ""), 0.0, self._netns)
                    self._position, self._inode = file.tell(), inode
            except OSError:
                continue


def follow(netns: int, pause: float = 0.5) -> Iterator[dict[str, object]]:
    """The events from now on, forever."""
    reader = Reader(netns, old=False)
    while True:
        yield from reader.new()
        time.sleep(pause)


def _end() -> tuple[int, int]:
    try:
        found = os.stat(f"{FOLDER}/{NAME}")
    except OSError:
        return 0, 0
    return found.st_size, found.st_ino
