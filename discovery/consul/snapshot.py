"""Snapshots: what clients have stored, as an archive that can be restored.

An archive is a gzipped tar of ``meta.json``, ``state.bin`` and ``SHA256SUMS``, as Consul's is, so
that its clients can verify one; ``state.bin`` is weft's own: a line of JSON for every key of the
store. It has keys, prepared queries, events, tokens and policies, and the nodes, services and checks
that were registered with the catalog. What an agent registers for itself is that agent's, and
sessions end with their clients; neither is in an archive, and locks are saved as released.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import tarfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace

from discovery import layout
from discovery.kv import KV_PREFIX, decode_pair, encode_pair
from discovery.layout import HOSTS, ROOT, host_prefix, split_key
from store import Delete, Entry, Operation, Put, Store
from store.limits import KEY_BYTES, VALUE_BYTES

ARCHIVE_BYTES = 32 * 1024 * 1024
"""The largest archive that is restored."""
STATE_BYTES = 128 * 1024 * 1024
"""The largest archive once it is decompressed, so that a small one cannot exhaust the memory."""
_CATALOG = ("node", "service", "check")
_PREFIXES = tuple(ROOT + name for name in ("kv/", "query/", "event/", "eventlast", "acl/"))
_FILES = ("meta.json", "state.bin")
_SUMS = "SHA256SUMS"
_OPERATIONS = 100
_BYTES = 1024 * 1024


class BadArchive(ValueError):
    """The archive cannot be restored; nothing was changed."""


def selected(entries: Iterable[Entry]) -> dict[str, bytes]:
    """The keys and values that belong in a snapshot."""
    entries = tuple(entries)
    leased = _live_nodes(entries)
    found = {}
    for entry in entries:
        if entry.key.startswith(HOSTS):
            kind, names = split_key(entry.key)
            if kind in _CATALOG and not entry.lease and host_prefix(names[0]) not in leased:
                found[entry.key] = entry.value
        elif entry.key.startswith(KV_PREFIX):
            found[entry.key] = encode_pair(replace(decode_pair(entry), session="", delay=0.0, behavior="release"))
        elif entry.key.startswith(_PREFIXES):
            found[entry.key] = entry.value
    return found


def pack(state: Mapping[str, bytes], index: int) -> bytes:
    """The archive of these keys and values."""
    lines = (json.dumps({"Key": key, "Value": base64.b64encode(value).decode()}) + "\n" for key, value in state.items())
    body = "".join(lines).encode()
    about = {"Version": 1, "ID": f"weft-{index}", "Index": index, "Term": 1, "Size": len(body), "Format": "weft"}
    files = {"meta.json": json.dumps(about).encode() + b"\n", "state.bin": body}
    files[_SUMS] = "".join(f"{hashlib.sha256(files[name]).hexdigest()}  {name}\n" for name in _FILES).encode()
    written = io.BytesIO()
    with tarfile.open(fileobj=written, mode="w:gz") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            member.mode = 0o600
            archive.addfile(member, io.BytesIO(content))
    return written.getvalue()


def kind(key: str) -> str:
    """What a key of an archive is of: kv, query, event, acl, node, service or check."""
    return split_key(key)[0] if key.startswith(HOSTS) else key.removeprefix(ROOT).partition("/")[0]


def unpack(archive: bytes) -> dict[str, bytes]:
    """The keys and values of an archive, all validated. Raises BadArchive."""
    files = _files(_decompressed(archive))
    sums = {tuple(line.split()) for line in _text(files[_SUMS], _SUMS).splitlines()}
    for name in _FILES:
        if (hashlib.sha256(files[name]).hexdigest(), name) not in sums:
            raise BadArchive(f"{name} does not match its digest in {_SUMS}")
    state: dict[str, bytes] = {}
    for number, line in enumerate(files["state.bin"].splitlines(), 1):
        try:
            found = json.loads(line)
            key, value = found["Key"], base64.b64decode(found["Value"], validate=True)
            _check(key, value)
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise BadArchive(f"line {number} of state.bin is not of weft: {str(error)[:200]}") from None
        if key in state:
            raise BadArchive(f"line {number} of state.bin: {key[:200]} is there twice")
        state[key] = value
    return state


def _decompressed(archive: bytes) -> bytes:
    unzip = zlib.decompressobj(wbits=31)
    try:
        found = unzip.decompress(archive, STATE_BYTES)
    except zlib.error as error:
        raise BadArchive(f"not a gzipped archive: {error}") from None
    if unzip.unconsumed_tail:
        raise BadArchive(f"more than {STATE_BYTES} bytes once decompressed; copy the store itself instead")
    if not unzip.eof:
        raise BadArchive("the archive is truncated")
    return found


def _files(data: bytes) -> dict[str, bytes]:
    files: dict[str, bytes] = {}
    try:
        with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as archive:
            for member in archive:
                # Sparse, a few bytes of an archive could be any number in memory.
                content = archive.extractfile(member) if member.isreg() and not member.issparse() else None
                if member.name not in (*_FILES, _SUMS) or member.name in files or content is None:
                    raise BadArchive(f"unexpected file {member.name[:80]!r} in the archive")
                files[member.name] = content.read()
    except (tarfile.TarError, OSError, ValueError, OverflowError) as error:
        raise error if isinstance(error, BadArchive) else BadArchive(f"not a tar archive: {error}") from None
    if missing := {*_FILES, _SUMS} - files.keys():
        raise BadArchive(f"the archive has no {', '.join(sorted(missing))}")
    return files


def _text(data: bytes, name: str) -> str:
    try:
        return data.decode("ascii")
    except UnicodeDecodeError:
        raise BadArchive(f"{name} is not text") from None


def _check(key: str, value: bytes) -> None:
    """Raise ValueError for what weft would not have saved, or could not read."""
    if not 0 < len(key.encode()) <= KEY_BYTES or len(value) > VALUE_BYTES:
        raise ValueError("the key or the value is too long")
    entry = Entry(key, value, 1, 1, 1)
    if key.startswith(KV_PREFIX):
        if decode_pair(entry).session:
            raise ValueError(f"{key[:200]} is locked")
    elif key.startswith((HOSTS, layout.QUERIES)):
        if split_key(key)[0] not in (*_CATALOG, "query"):
            raise ValueError(f"{key[:200]} is not part of a snapshot")
        layout.decode(entry)
    elif key.startswith(_PREFIXES):
        json.loads(value)
    else:
        raise ValueError(f"{key[:200]!r} is not part of a snapshot")


async def restore(store: Store, state: Mapping[str, bytes]) -> int:
    """Make the store's keys those of a snapshot: write first, then delete what it has not. Returns
    the number of keys changed; repeat it if it fails half-way. Raises StoreError.
    """
    entries = (await store.range(ROOT)).entries
    current = selected(entries)
    live = _live_nodes(entries)
    operations: list[Operation] = [
        Put(key, value) for key, value in state.items() if current.get(key) != value and not _is_of(key, live)
    ]
    operations += [Delete(key) for key in current.keys() - state.keys()]
    for batch in _batches(operations):
        await store.transact((), batch)
    return len(operations)


def _live_nodes(entries: Iterable[Entry]) -> set[str]:
    """The prefixes of the nodes whose agents run: their keys have a lease."""
    return {entry.key.removesuffix("node") for entry in entries if entry.lease and split_key(entry.key)[0] == "node"}


def _is_of(key: str, live: set[str]) -> bool:
    """Whether a key is of a node whose agent runs: it says itself what there is."""
    return key.startswith(HOSTS) and host_prefix(split_key(key)[1][0]) in live


def _batches(operations: Iterable[Operation]) -> Iterator[list[Operation]]:
    batch: list[Operation] = []
    size = 0
    for one in operations:
        more = len(one.key.encode()) + (len(one.value) if isinstance(one, Put) else 0)
        if batch and (len(batch) >= _OPERATIONS or size + more > _BYTES):
            yield batch
            batch, size = [], 0
        batch.append(one)
        size += more
    if batch:
        yield batch
