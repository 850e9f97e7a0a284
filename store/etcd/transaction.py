"""One transaction of the interface as one of etcd's, with its operation token.

Most have something to put if their comparisons hold, and nothing to do otherwise: they are sent as they
are. The others are looked at first, in a transaction that changes nothing: which branch it is, and what
there is to delete, because a token alone would be a revision. Then the branch is sent on condition that
this is still so. etcd's nested transactions could do both at once, but etcd 3.4.23 does not check
permissions within them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from store.etcd import rpc_pb2 as rpc
from store.etcd.messages import Keys
from store.etcd.slots import Slot
from store.interface import Compare, Delete, Operation, Outcome, Put


@dataclass(frozen=True, slots=True)
class Branch:
    """The operations to be applied, and on which conditions; ``looked``: those that were looked at."""

    succeeded: bool
    compare: Sequence[rpc.Compare]
    operations: Sequence[Operation]
    looked: bool


@dataclass(frozen=True, slots=True)
class Transaction:
    keys: Keys
    compare: Sequence[Compare]
    success: Sequence[Operation]
    failure: Sequence[Operation]
    token: bytes

    def direct(self) -> Branch | None:
        """The branch, where there is no need to look."""
        if self.failure or not _has_put(self.success):
            return None
        return Branch(True, self._compares(), self.success, looked=False)

    def look(self) -> rpc.TxnRequest:
        """Read what decides between the branches, and what they would delete."""
        compared = [rpc.RangeRequest(key=self.keys.full(one.key), keys_only=True) for one in self.compare]
        success, failure = (
            [self._first(one) for one in operations if isinstance(one, Delete)]
            for operations in (self.success, self.failure)
        )
        return rpc.TxnRequest(compare=self._compares(), success=_ranges(success), failure=_ranges(compared + failure))

    def decide(self, reply: rpc.TxnResponse) -> Branch | Outcome:
        """The branch after a look; the outcome where it has no effect."""
        found = [one.response_range for one in reply.responses]
        operations, compare = self.success, self._compares()
        if not reply.succeeded:
            # As long as these keys have these revisions the comparisons do not hold.
            operations = self.failure
            compare = [
                _mod(self.keys.full(one.key), _revision(there)) for one, there in zip(self.compare, found, strict=False)
            ]
            found = found[len(self.compare) :]
        if not _has_put(operations):
            deletes = [one for one in operations if isinstance(one, Delete)]
            present = [bool(there.kvs) for there in found]
            if not any(present):
                return Outcome(reply.succeeded, reply.header.revision, 0)
            compare += [self._exists(one, there) for one, there in zip(deletes, present, strict=True)]
            operations = [one for one, there in zip(deletes, present, strict=True) if there]
        return Branch(reply.succeeded, compare, operations, looked=True)

    def request(self, branch: Branch, slot: Slot) -> rpc.TxnRequest:
        """Apply a branch, and put the token in the slot; otherwise read what is there."""
        put = rpc.PutRequest(key=slot.key, value=self.token + (b"1" if branch.succeeded else b"0"))
        return rpc.TxnRequest(
            compare=[*branch.compare, _mod(slot.key, slot.revision)],
            success=[*map(self.keys.operation, branch.operations), rpc.RequestOp(request_put=put)],
            failure=_ranges([rpc.RangeRequest(key=slot.key)]),
        )

    def _compares(self) -> list[rpc.Compare]:
        return [self.keys.compare(one) for one in self.compare]

    def _first(self, delete: Delete) -> rpc.RangeRequest:
        start, end = self.keys.bounds(delete)
        return rpc.RangeRequest(key=start, range_end=end, limit=1, keys_only=True)

    def _exists(self, delete: Delete, there: bool) -> rpc.Compare:
        """Whether a deletion has something to delete: a range without keys has version 0, and no key has."""
        start, end = self.keys.bounds(delete)
        result = rpc.Compare.GREATER if there else rpc.Compare.EQUAL
        return rpc.Compare(result=result, target=rpc.Compare.VERSION, key=start, version=0, range_end=end)


def _has_put(operations: Iterable[Operation]) -> bool:
    return any(isinstance(operation, Put) for operation in operations)


def _mod(key: bytes, revision: int) -> rpc.Compare:
    return rpc.Compare(result=rpc.Compare.EQUAL, target=rpc.Compare.MOD, key=key, mod_revision=revision)


def _revision(found: rpc.RangeResponse) -> int:
    return found.kvs[0].mod_revision if found.kvs else 0


def _ranges(requests: Iterable[rpc.RangeRequest]) -> list[rpc.RequestOp]:
    return [rpc.RequestOp(request_range=one) for one in requests]
