"""What is attached: one file for each attachment and each network, written before the kernel is changed.

A file is a line with the checksum of the rest, and the rest as JSON. It is replaced by rename, so a reader
sees the old or the new one and never half of it. The folder is on a tmpfs: a record does not outlive the
kernel state that it speaks of. A file that cannot be read is set aside as ``NAME.damaged`` and reported; what
it spoke of is then found by the marks in the kernel.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, fields, is_dataclass
from enum import StrEnum
from ipaddress import ip_address, ip_interface, ip_network
from json.encoder import encode_basestring_ascii
from typing import Any, TypeVar, cast

from cni_plugin import ops
from cni_plugin.ops.operation import Operation
from ipam import host_local, leases, ranges
from weft import files, stderr, types
from weft.errors import StateDamaged
from weft.identity import attachment_digest, attachment_mark, digest
from weft.kernel import interface

SCHEMA = 1
_VALUE = "="
_KIND = "kind"


class Phase(StrEnum):
    """How far an attachment is: a record in any but ``ATTACHED`` is work that somebody must finish."""

    ADDING = "adding"
    ATTACHED = "attached"
    REMOVING = "removing"


@dataclass(frozen=True, slots=True)
class Record:
    """One attachment: what was done for it, in order, and what was answered.

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


@dataclass(frozen=True, slots=True)
class NetworkRecord:
    """What exists for a network as such: the shared operations of all its attachments so far."""

    network: str
    boot: str
    shared: tuple[Operation, ...] = ()


_Kind = TypeVar("_Kind", Record, NetworkRecord)


class _Kinds(dict[str, type]):
    """Classes by name; an operation that few need is imported when a record has it."""

    def __missing__(self, name: str) -> type:
        return ops.rare(name)


@functools.cache
def _kinds() -> dict[str, type]:
    """Every class a record may hold, by name: nothing else is ever made from a file."""
    found = _Kinds({one.__name__: one for one in (Record, NetworkRecord, *ops.COMMON)})
    for module in (types, interface, leases, ranges, host_local):
        for name, value in vars(module).items():
            if isinstance(value, type) and is_dataclass(value):
                found[name] = value
    return found


_Writer = Callable[[Any], str]


class _Writers(dict[type, _Writer]):
    """Writers by what they write, each made when it is first needed."""

    def __missing__(self, kind: type) -> _Writer:
        found = self[kind] = _writer(kind)
        return found


_writers = _Writers(
    {
        str: encode_basestring_ascii,
        int: int.__repr__,
        float: float.__repr__,
        bool: lambda value: "true" if value else "false",
        type(None): lambda _: "null",
    }
)


def encode(value: object) -> str:
    """A value of weft's as JSON. Each kind has a writer of its own: ``json`` takes twice as long."""
    return _writers[type(value)](value)


def _writer(kind: type) -> _Writer:
    name = kind.__name__
    if kind is tuple or kind is list:
        return lambda value: f"[{', '.join([_writers[item.__class__](item) for item in value])}]"
    if is_dataclass(kind):
        return _structured(name, tuple(one.name for one in fields(kind)))
    if issubclass(kind, StrEnum):
        return lambda value: f'{{"{_VALUE}": {encode_basestring_ascii(str(value))}, "{_KIND}": "{name}"}}'
    if issubclass(kind, str):
        return lambda value: encode_basestring_ascii(str(value))
    return lambda value: f'{{"{_VALUE}": "{value}", "{_KIND}": "{name[4:].lower()}"}}'


def _structured(name: str, names: tuple[str, ...]) -> _Writer:
    """Made as one expression, as ``dataclasses`` makes its methods: a loop over the fields takes half as long again."""
    written = "".join([f""" + ', "{each}": ' + writers[(it := value.{each}).__class__](it)""" for each in names])
    expression = f"""lambda value: '{{"{_KIND}": "{name}"'{written} + '}}'"""
    return cast(_Writer, eval(expression, {"writers": _writers}))  # of the names in our own classes


_SIMPLE: dict[str, Callable[[Any], Any]] = {
    "address": ip_address,
    "interface": ip_interface,
    "network": ip_network,
    "Phase": Phase,
    "Side": types.Side,
}


def decode(value: Any, kinds: dict[str, type]) -> Any:
    """The value that ``encode`` was given; raises ValueError, KeyError or TypeError for anything else."""
    if isinstance(value, list):
        return tuple(decode(item, kinds) for item in value)
    if not isinstance(value, dict):
        return value
    kind = value[_KIND]
    if _VALUE in value:
        return _SIMPLE[kind](value[_VALUE])
    return kinds[kind](**{name: decode(item, kinds) for name, item in value.items() if name != _KIND})


class Records:
    """The record files under one folder (``/run/weft/<namespace inode>``).

    Writers hold the attachment's or the network's lock; readers need none.
    """

    def __init__(self, folder: str) -> None:
        self._attachments = os.path.join(folder, "attachments")
        self._networks = os.path.join(folder, "networks")

    def prepare(self) -> None:
        """Make the folders, private to root. Raises StateDamaged where that fails."""
        for folder in (self._attachments, self._networks):
            files.make_directory(folder, "its records")

    def path(self, attachment: types.Attachment) -> str:
        return f"{self._attachments}/{attachment_digest(attachment)}.json"

    def lock(self, attachment: types.Attachment) -> str:
        """The path of the attachment's lock."""
        return self.lock_of(attachment_digest(attachment))

    def lock_of(self, mark: str) -> str:
        """The path of the lock of the attachment that a mark's digest stands for."""
        return f"{self._attachments}/{mark}.lock"

    def network_path(self, network: str) -> str:
        return f"{self._networks}/{digest('network', network)}.json"

    def network_lock(self, network: str) -> str:
        """The path of the network's lock: shared by its attachments' calls, exclusive to remove the network."""
        return f"{self._networks}/{digest('network', network)}.lock"

    def shared_lock(self) -> str:
        """The path of the lock under which what networks share is made or removed."""
        return f"{self._networks}/shared.lock"

    def read(self, attachment: types.Attachment) -> Record | None:
        return _read(self.path(attachment), Record)

    def read_network(self, network: str) -> NetworkRecord | None:
        return _read(self.network_path(network), NetworkRecord)

    def write(self, record: Record) -> None:
        _write(self.path(record.attachment), record)

    def write_network(self, record: NetworkRecord) -> None:
        _write(self.network_path(record.network), record)

    def remove(self, attachment: types.Attachment) -> None:
        _remove(self.path(attachment))

    def remove_network(self, network: str) -> None:
        _remove(self.network_path(network))

    def all(self) -> Iterator[Record]:
        """Every attachment's record that can be read, in no particular order."""
        for path in _files(self._attachments):
            record = _read(path, Record)
            if record is not None:
                yield record

    def networks(self) -> Iterator[NetworkRecord]:
        for path in _files(self._networks):
            record = _read(path, NetworkRecord)
            if record is not None:
                yield record

    def digests(self) -> set[str]:
        """The digests of all attachments that have a record, readable or not."""
        return {os.path.basename(path)[: -len(".json")] for path in _files(self._attachments)}

    def named(self, text: str) -> str:
        """The text with every attachment's mark replaced by what it stands for, as a person knows it."""
        for record in self.all():
            text = text.replace(attachment_mark(record.attachment), str(record.attachment))
        return text

    def litter(self) -> list[str]:
        """Files that no lock holder left on purpose: half-written ones, locks without a record, damaged records."""
        found = []
        for folder in (self._attachments, self._networks):
            with contextlib.suppress(OSError):
                names = set(os.listdir(folder))
                for name in sorted(names):
                    stem, _, ending = name.rpartition(".")
                    stray = ending == "lock" and f"{stem}.json" not in names
                    if stray or name.endswith((files.TEMPORARY_SUFFIX, ".damaged")):
                        found.append(os.path.join(folder, name))
        return found


def _files(folder: str) -> list[str]:
    try:
        names = os.listdir(folder)
    except OSError:
        return []
    return [os.path.join(folder, name) for name in names if name.endswith(".json")]


def _read(path: str, kind: type[_Kind]) -> _Kind | None:
    try:
        content = _content(path)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StateDamaged(f"cannot read {path}: {error.strerror}") from error
    known = _known.get(path)
    if known is not None and known.content == content and isinstance(known.record, kind):
        return known.record
    checksum, _, body = content.partition(b"\n")
    try:
        if int(checksum, 16) != zlib.crc32(body):
            raise ValueError("wrong checksum")
        document = json.loads(body)
        if document["schema"] != SCHEMA:
            # A newer weft's record is left untouched: it is not damaged, only not ours to read.
            raise StateDamaged(
                f"{path} has schema {document['schema']}, this weft knows {SCHEMA}", hint="use the newer weft"
            )
        found = decode(document["record"], _kinds())
        if not isinstance(found, kind):
            raise ValueError("another kind of record")
        _know(path, _Known(content, found, {}))
        return found
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        with contextlib.suppress(OSError):
            os.replace(path, f"{path[: -len('.json')]}.damaged")
        stderr.write(f"weft: {path} was damaged and is set aside\n")
        return None


def _content(path: str) -> bytes:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        content = b""
        while piece := os.read(descriptor, 1 << 20):
            content += piece
        return content
    finally:
        os.close(descriptor)


@dataclass(slots=True)
class _Known:
    """What a file held when this process last saw it. ``texts`` are the values of its fields as JSON."""

    content: bytes
    record: Record | NetworkRecord
    texts: dict[str, tuple[object, str]]


_known: dict[str, _Known] = {}
"""What was read and written last: to be told again only where the file still holds the very same bytes."""

_MOST_KNOWN = 128


def _know(path: str, known: _Known) -> None:
    _known.pop(path, None)
    _known[path] = known
    while len(_known) > _MOST_KNOWN:
        with contextlib.suppress(StopIteration, RuntimeError):  # another thread may be doing the same
            _known.pop(next(iter(_known)), None)


def _texts(path: str, record: Record | NetworkRecord) -> dict[str, tuple[object, str]]:
    """The fields as JSON; those that are the same objects as in the record before are not written anew."""
    before = _known[path].texts if path in _known else {}
    texts = {}
    for name in _FIELDS[type(record)]:
        value = getattr(record, name)
        old = before.get(name)
        if old is None or old[0] is not value:
            old = (value, _shared(value) if name == "shared" else encode(value))
        texts[name] = old
    return texts


@functools.lru_cache(64)
def _shared(operations: tuple[Operation, ...]) -> str:
    """The operations of a network, which are the same in each of its attachments' records."""
    return encode(operations)


_FIELDS = {kind: tuple(one.name for one in fields(kind)) for kind in (Record, NetworkRecord)}


def _write(path: str, record: Record | NetworkRecord) -> None:
    texts = _texts(path, record)
    inner = "".join(f', "{name}": {text}' for name, (_, text) in texts.items())
    body = f'{{"schema": {SCHEMA}, "record": {{"{_KIND}": "{type(record).__name__}"{inner}}}}}'.encode()
    content = f"{zlib.crc32(body):08x}\n".encode() + body
    files.write(path, content, "the record")
    _know(path, _Known(content, record, texts))


def _remove(path: str) -> None:
    _known.pop(path, None)
    files.remove(path, "the record")
