"""The interface's values as etcd's messages, and back."""

from __future__ import annotations

from typing import TYPE_CHECKING

from store import interface
from store.etcd import rpc_pb2 as rpc

if TYPE_CHECKING:
    from store.interface import Operation

_RESULTS = {
    "=": rpc.Compare.EQUAL,
    "!=": rpc.Compare.NOT_EQUAL,
    "<": rpc.Compare.LESS,
    ">": rpc.Compare.GREATER,
}


def range_end(prefix: bytes) -> bytes:
    """The end of the range of all keys with a prefix: the first key after them.

    Source: etcd's clientv3/op.go, getPrefix.
    """
    head = prefix.rstrip(b"\xff")
    return head[:-1] + bytes([head[-1] + 1]) if head else b"\0"


class Keys:
    """Keys of the store as keys of etcd, which are in UTF-8 and have a prefix."""

    def __init__(self, prefix: str) -> None:
        self._prefix = prefix.encode()

    def full(self, key: str) -> bytes:
        return self._prefix + key.encode()

    def all(self, prefix: str) -> tuple[bytes, bytes]:
        """The range of keys with a prefix."""
        start = self.full(prefix)
        return start or b"\0", range_end(start)

    def entry(self, found: rpc.KeyValue) -> interface.Entry:
        return interface.Entry(
            self.name(found.key),
            found.value,
            found.create_revision,
            found.mod_revision,
            found.version,
            found.lease,
        )

    def name(self, key: bytes) -> str:
        # A foreign key may be no text; no request can name it.
        return key[len(self._prefix) :].decode(errors="surrogateescape")

    def event(self, found: rpc.Event) -> interface.Event | None:
        """The event; None if etcd no longer has the previous entry, because of a compaction."""
        deleted = found.type == rpc.Event.DELETE
        previous = self.entry(found.prev_kv) if found.HasField("prev_kv") else None
        if previous is None and (deleted or found.kv.version > 1):
            return None
        entry = None if deleted else self.entry(found.kv)
        return interface.Event(self.name(found.kv.key), entry, previous, found.kv.mod_revision)

    def compare(self, compare: interface.Compare) -> rpc.Compare:
        key, result = self.full(compare.key), _RESULTS[compare.op]
        if isinstance(compare.is_, bytes):
            return rpc.Compare(result=result, target=rpc.Compare.VALUE, key=key, value=compare.is_)
        number = compare.is_
        match compare.field:
            case "create":
                return rpc.Compare(result=result, target=rpc.Compare.CREATE, key=key, create_revision=number)
            case "mod":
                return rpc.Compare(result=result, target=rpc.Compare.MOD, key=key, mod_revision=number)
            case "version":
                return rpc.Compare(result=result, target=rpc.Compare.VERSION, key=key, version=number)
            case _:
                return rpc.Compare(result=result, target=rpc.Compare.LEASE, key=key, lease=number)

    def operation(self, operation: Operation) -> rpc.RequestOp:
        if isinstance(operation, interface.Put):
            put = rpc.PutRequest(key=self.full(operation.key), value=operation.value, lease=operation.lease)
            return rpc.RequestOp(request_put=put)
        start, end = self.bounds(operation)
        return rpc.RequestOp(request_delete_range=rpc.DeleteRangeRequest(key=start, range_end=end))

    def bounds(self, delete: interface.Delete) -> tuple[bytes, bytes]:
        """The range of keys that a deletion is about; its end is empty for one key."""
        return self.all(delete.key) if delete.prefix else (self.full(delete.key), b"")
