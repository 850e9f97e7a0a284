"""What is attached: a file for each attachment and each network, written before the kernel is changed.

A file is a line with the CRC-32 of the rest, and the rest as JSON (``codec``). It is replaced
atomically by rename. The folder is on a tmpfs, so a record does not outlive the kernel state that it
describes. A damaged file is renamed to ``NAME.damaged`` and reported; the marks in the kernel then show
what it described.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import json
import os
import stat
import time
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field, fields, replace
from enum import StrEnum
from typing import TypeVar

from cni_plugin.ops.operation import Operation
from cni_plugin.service import codec
from cni_plugin.service.deferred import Deferred, defer, without
from weft import files, types
from weft.errors import StateDamaged
from weft.identity import attachment_digest, attachment_mark, digest

SCHEMA = 3
"""Raised whenever records get a field or an operation: an earlier release, which would take such a record for
damaged, then refuses it and leaves it as it is.
"""
_READABLE = range(1, SCHEMA + 1)


class Phase(StrEnum):
    """The state of an attachment; any but ``ATTACHED`` is of a call that runs or was interrupted."""

    ADDING = "adding"
    ATTACHED = "attached"
    REMOVING = "removing"


@dataclass(frozen=True, slots=True)
class Record(Deferred):
    """One attachment: its operations in order, and the result of its ADD.

    ``made`` is seconds since boot (CLOCK_BOOTTIME), ``boot`` the kernel's boot id.
    """

    attachment: types.Attachment
    namespace: types.NamespaceId
    phase: Phase
    boot: str
    made: float
    driver: str = ""
    version: str = ""
    operations: tuple[Operation, ...] = ()
    shared: tuple[Operation, ...] = ()
    result: types.Result = field(default_factory=types.Result)

    @staticmethod
    def without_value(name: str) -> object:
        return types.Result() if name == "result" else ()


def following(former: Record | None, record: Record) -> Record:
    """The record with what an earlier entry of the same plugin in the network list has set up."""
    if former is None:
        return record
    return replace(
        record,
        driver=record.driver or former.driver,
        operations=tuple(dict.fromkeys((*former.operations, *record.operations))),
        shared=tuple(dict.fromkeys((*former.shared, *record.shared))),
    )


@dataclass(frozen=True, slots=True)
class NetworkRecord(Deferred):
    """One network: the shared operations of all its attachments so far."""

    network: str
    boot: str
    shared: tuple[Operation, ...] = ()


_AnyRecord = TypeVar("_AnyRecord", Record, NetworkRecord)


@functools.cache
def _kinds() -> codec.Kinds:
    return codec.kinds(Record, NetworkRecord, Phase)


class Records:
    """The record files under one folder (``/run/weft/<namespace inode>``).

    Writers hold the lock of the attachment or the network; readers need no lock.
    """

    def __init__(self, folder: str) -> None:
        self._attachments = os.path.join(folder, "attachments")
        self._networks = os.path.join(folder, "networks")

    def prepare(self) -> None:
        """Create the folders, accessible to root only, or make them so. Raises StateDamaged."""
        for folder in (self._attachments, self._networks):
            files.make_directory(folder, "its records")

    @staticmethod
    def cache_all() -> None:
        """Cache every record, 10 KB each: for a short-lived process that reads all of them several
        times.
        """
        global _most_cached, _most_shared
        _most_cached = _most_shared = 1 << 20

    def path(self, attachment: types.Attachment) -> str:
        return f"{self._attachments}/{attachment_digest(attachment)}.json"

    def lock(self, attachment: types.Attachment) -> str:
        """The path of the attachment's lock."""
        return self.lock_of(attachment_digest(attachment))

    def lock_of(self, mark: str) -> str:
        """The path of the lock of an attachment, by the digest in its mark."""
        return f"{self._attachments}/{mark}.lock"

    def network_path(self, network: str) -> str:
        return f"{self._networks}/{digest('network', network)}.json"

    def network_lock(self, network: str) -> str:
        """The path of the network's lock: shared for calls, exclusive to remove the network."""
        return f"{self._networks}/{digest('network', network)}.lock"

    def shared_lock(self) -> str:
        """The path of the lock for creating and removing what networks share."""
        return f"{self._networks}/shared.lock"

    def read(self, attachment: types.Attachment) -> Record | None:
        return _whole(_read(self.path(attachment), Record))

    def read_digest(self, digest: str) -> Record | None:
        """The record of the attachment with this digest in its marks."""
        return _whole(_read(f"{self._attachments}/{digest}.json", Record))

    def read_network(self, network: str) -> NetworkRecord | None:
        return _whole(_read(self.network_path(network), NetworkRecord))

    def write(self, record: Record) -> None:
        _write(self.path(record.attachment), record)

    def write_network(self, record: NetworkRecord) -> None:
        _write(self.network_path(record.network), record)

    def remove(self, attachment: types.Attachment) -> None:
        _remove(self.path(attachment))

    def remove_network(self, network: str) -> None:
        _remove(self.network_path(network))

    def all(self) -> Iterator[Record]:
        """The records of all attachments in no particular order, but damaged ones."""
        return filter(None, (_read(path, Record) for path in _files(self._attachments)))

    def of_container(self, container: str) -> Iterator[Record]:
        """The records of a container's attachments: others are read, but not parsed."""
        found = self.containing(codec.encode(container))
        return (record for record in found if record.attachment.container == container)

    def containing(self, text: str) -> Iterator[Record]:
        """The records of attachments whose JSON has a text: others are read, but not parsed."""
        found = (_read(path, Record, text.encode()) for path in _files(self._attachments))
        return filter(None, map(_whole, found))

    def networks(self) -> Iterator[NetworkRecord]:
        for path in _files(self._networks):
            record = _read(path, NetworkRecord)
            if record is not None:
                yield record

    def networks_written(self) -> int:
        """When a network's record was written or removed last, in nanoseconds; 0 without networks."""
        try:
            return os.stat(self._networks).st_mtime_ns
        except OSError:
            return 0

    def digests(self) -> set[str]:
        """The digests of all attachments that have a record, even a damaged one."""
        return {os.path.basename(path)[: -len(".json")] for path in _files(self._attachments)}

    def is_recorded(self, digest: str) -> bool:
        """Whether the attachment of that digest has a record, even a damaged one."""
        return os.path.lexists(f"{self._attachments}/{digest}.json")

    def name_marks(self, text: str) -> str:
        """The text with the mark of every attachment replaced by its name."""
        for record in self.all():
            text = text.replace(attachment_mark(record.attachment), str(record.attachment))
        return text

    def stray_files(self) -> list[str]:
        """Unfinished files, locks without a record, and damaged records."""
        found = []
        for folder in (self._attachments, self._networks):
            with contextlib.suppress(OSError):
                names = set(os.listdir(folder))
                for name in sorted(names):
                    stem, _, ending = name.rpartition(".")
                    unused_lock = ending == "lock" and f"{stem}.json" not in names
                    if unused_lock or name.endswith((files.TEMPORARY_SUFFIX, files.DAMAGED_SUFFIX)):
                        found.append(os.path.join(folder, name))
        return found


class RecordsOnce(Records):
    """The records as they were when they were first asked for: what looks at all of them several times
    reads each once.

    What changes something reads each again under its lock, from ``Records``.
    """

    def __init__(self, folder: str, records: Records) -> None:
        super().__init__(folder)
        self._records = records
        self._all: tuple[Record, ...] | None = None
        self._of_networks: tuple[NetworkRecord, ...] | None = None

    def all(self) -> Iterator[Record]:
        if self._all is None:
            self._all = tuple(self._records.all())
        return iter(self._all)

    def of_container(self, container: str) -> Iterator[Record]:
        return (record for record in self.all() if record.attachment.container == container)

    def networks(self) -> Iterator[NetworkRecord]:
        if self._of_networks is None:
            self._of_networks = tuple(self._records.networks())
        return iter(self._of_networks)


def _files(folder: str) -> list[str]:
    try:
        names = os.listdir(folder)
    except OSError:
        return []
    return [os.path.join(folder, name) for name in names if name.endswith(".json")]


def _read(path: str, kind: type[_AnyRecord], text: bytes = b"") -> _AnyRecord | None:
    """The record of a file; None also where the file does not have the ``text``."""
    cache = _cache_of(kind)
    cached = cache.get(path)
    try:
        file = _identity(path)
        if cached is not None and cached.file is not None and cached.file == file and isinstance(cached.record, kind):
            return cached.record
        content = files.read(path)
    except FileNotFoundError:
        return None
    except OSError as error:
        if error.errno in _NO_RECORD:
            _set_aside(path)
            return None
        raise StateDamaged(f"cannot read {path}: {error.strerror}") from error
    if cached is not None and cached.content == content and isinstance(cached.record, kind):
        cached.file = file
        return cached.record
    if text not in content:
        return None
    checksum, _, body = content.partition(b"\n")
    try:
        if int(checksum, 16) != zlib.crc32(body):
            raise ValueError("wrong checksum")
        head, deferred = without(body, _LONG[kind])
        document = json.loads(head)
        if document["schema"] not in _READABLE:
            # The record of a newer release is not damaged: it stays as it is.
            raise StateDamaged(
                f"{path} has schema {document['schema']}, this release reads up to {SCHEMA}", hint="use the newer weft"
            )
        # With all of its fields it is made in half the time.
        found = codec.decode({**document["record"], **dict.fromkeys(deferred)}, _kinds())
        if not isinstance(found, kind):
            raise ValueError("not this kind of record")
        defer(found, deferred, functools.partial(_decoded, path))
        _remember(cache, path, _Cached(content, found, {}, file))
        return found
    except _UNDECODABLE:
        _set_aside(path)
        return None


_UNDECODABLE = (ValueError, KeyError, TypeError, AttributeError, RecursionError)


def _whole(record: _AnyRecord | None) -> _AnyRecord | None:
    """The record with all of its fields decoded, None if one is damaged."""
    return record if record is not None and record.is_whole(_LONG[type(record)]) else None


def _decoded(path: str, name: str, text: bytes) -> object:
    """A long field of a record, from its JSON."""
    if name == "shared" and (known := _shared.get(text)) is not None:
        return known
    try:
        found = codec.decode(json.loads(text), _kinds())
        if name == "result" and not isinstance(found, types.Result):
            raise ValueError("not the result of an ADD")
    except _UNDECODABLE:
        _set_aside(path)
        return None
    if name == "shared":
        if len(_shared) >= _most_shared:
            _shared.clear()
        _shared[text] = found
    return found


def _identity(path: str) -> tuple[int, int, int] | None:
    """What changes whenever a file is replaced or written to: inode, ctime and size; None for one changed
    so lately that another change might leave the same ctime. Raises OSError.
    """
    status = os.stat(path, follow_symlinks=False)
    if not stat.S_ISREG(status.st_mode) or time.time_ns() - status.st_ctime_ns < _CTIME_RESOLUTION:
        return None
    return status.st_ino, status.st_ctime_ns, status.st_size


_CTIME_RESOLUTION = 20_000_000  # ns; a tick of the slowest kernel is 10 ms
_NO_RECORD = frozenset((errno.EINVAL, errno.ELOOP, errno.ENXIO, errno.EPERM))
"""Errors of ``files.read`` for a directory or FIFO, a symlink, a socket, and another user's file."""


def _set_aside(path: str) -> None:
    _forget(path)
    with contextlib.suppress(OSError):
        files.set_aside(path)


@dataclass(slots=True)
class _Cached:
    """A file as this process last read or wrote it. ``texts`` are its fields with their JSON.

    While the file has the same identity, it is not read again.
    """

    content: bytes
    record: Record | NetworkRecord
    texts: dict[str, tuple[object, str]]
    file: tuple[int, int, int] | None = None


_cache: dict[str, _Cached] = {}
"""The records of attachments used last, by path; an entry is valid while the file has the same content."""
_cache_of_networks: dict[str, _Cached] = {}
"""The same for networks: whoever sets one up looks at all of them."""

_most_cached = 128
_most_shared = 64
_MOST_NETWORKS = 4096


def _cache_of(kind: type) -> dict[str, _Cached]:
    return _cache if kind is Record else _cache_of_networks


def _remember(cache: dict[str, _Cached], path: str, cached: _Cached) -> None:
    cache.pop(path, None)
    cache[path] = cached
    while len(cache) > (_most_cached if cache is _cache else _MOST_NETWORKS):
        with contextlib.suppress(StopIteration, RuntimeError):  # another thread may evict at the same time
            cache.pop(next(iter(cache)), None)


def _texts(path: str, record: Record | NetworkRecord) -> dict[str, tuple[object, str]]:
    """The fields as JSON; a field that is the same object as in the cached record is not encoded again."""
    cached = _cache_of(type(record)).get(path)
    before = cached.texts if cached is not None else {}
    texts = {}
    for name in _FIELDS[type(record)]:
        value = getattr(record, name)
        old = before.get(name)
        if old is None or old[0] is not value:
            old = (value, _encode_shared(value) if name == "shared" else codec.encode(value))
        texts[name] = old
    return texts


_encode_shared = functools.lru_cache(64)(codec.encode)
"""For the shared operations, which are the same in the records of all attachments of a network."""


_shared: dict[bytes, object] = {}
"""The shared operations by their JSON: one value for all attachments of a network."""

_LONG: dict[type, dict[str, bytes]] = {
    Record: {"operations": b', "operations": [', "shared": b', "shared": [', "result": b', "result": {'},
    NetworkRecord: {"shared": b', "shared": ['},
}
"""The fields that are decoded when they are used, and how each begins."""
_FIELDS = {kind: tuple(one.name for one in fields(kind)) for kind in (Record, NetworkRecord)}


def _write(path: str, record: Record | NetworkRecord) -> None:
    texts = _texts(path, record)
    inner = "".join(f', "{name}": {text}' for name, (_, text) in texts.items())
    body = f'{{"schema": {SCHEMA}, "record": {{"{codec.KIND}": "{type(record).__name__}"{inner}}}}}'.encode()
    content = f"{zlib.crc32(body):08x}\n".encode() + body
    files.write(path, content, "the record")
    _remember(_cache_of(type(record)), path, _Cached(content, record, texts))


def _forget(path: str) -> None:
    for cache in (_cache, _cache_of_networks):
        cache.pop(path, None)


def _remove(path: str) -> None:
    _forget(path)
    files.remove(path, "the record")
