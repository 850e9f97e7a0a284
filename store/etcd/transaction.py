"""One transaction of the interface as one of etcd's, with its operation token.

etcd has no test for "deleted something", so a branch that only deletes is a transaction of its own, in
which nothing is written where there is nothing to delete: a token alone would be a revision.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from store.etcd import rpc_pb2 as rpc
from store.etcd.messages import Keys, has_put
from store.etcd.slots import Slot
from store.interface import Compare, Delete, Operation, Outcome


@dataclass(frozen=True, slots=True)
class Missed:
    """The slot was not as expected: what is there instead. ``revision`` 0: it does not exist."""

    revision: int
    value: bytes


@dataclass(frozen=True, slots=True)
class Applied:
    """``wrote``: the slot has this revision now."""

    outcome: Outcome
    wrote: bool


@dataclass(frozen=True, slots=True)
class Transaction:
    """Without operations for failure it is flat, and its comparisons and the slot's are one list: etcd
    before 3.4.41 does not check permissions within nested ones.
    """

    keys: Keys
    compare: Sequence[Compare]
    success: Sequence[Operation]
    failure: Sequence[Operation]
    token: bytes

    def request(self, slot: Slot) -> rpc.TxnRequest:
        compare = [self.keys.compare(one) for one in self.compare]
        success = self._branch(self.success, slot, b"1")
        unchanged = rpc.Compare(
            result=rpc.Compare.EQUAL, target=rpc.Compare.MOD, key=slot.key, mod_revision=slot.revision
        )
        look = rpc.RequestOp(request_range=rpc.RangeRequest(key=slot.key))
        if not self.failure:
            return rpc.TxnRequest(compare=[*compare, unchanged], success=success, failure=[look])
        both = rpc.TxnRequest(compare=compare, success=success, failure=self._branch(self.failure, slot, b"0"))
        return rpc.TxnRequest(compare=[unchanged], success=[rpc.RequestOp(request_txn=both)], failure=[look])

    def _branch(self, operations: Sequence[Operation], slot: Slot, which: bytes) -> list[rpc.RequestOp]:
        if not operations:
            return []
        put = rpc.RequestOp(request_put=rpc.PutRequest(key=slot.key, value=self.token + which))
        found = [*(self.keys.operation(one) for one in operations), put]
        if has_put(operations):
            return found
        missing = [self.keys.missing(one) for one in operations if isinstance(one, Delete)]
        return [rpc.RequestOp(request_txn=rpc.TxnRequest(compare=missing, failure=found))]

    def result(self, slot: Slot, reply: rpc.TxnResponse) -> Applied | Missed:
        """What a reply says."""
        if reply.succeeded:
            inner = reply.responses[0].response_txn if self.failure else reply
            operations = self.success if inner.succeeded else self.failure
            wrote, deleted = _read(operations, inner.responses)
            return Applied(Outcome(inner.succeeded, reply.header.revision, deleted), wrote)
        found = reply.responses[0].response_range.kvs
        there = Missed(found[0].mod_revision, found[0].value) if found else Missed(0, b"")
        if not self.failure and there.revision == slot.revision:
            return Applied(Outcome(False, reply.header.revision, 0), wrote=False)
        return there


def _read(operations: Sequence[Operation], responses: Sequence[rpc.ResponseOp]) -> tuple[bool, int]:
    """Whether a branch has written, and how many keys it has deleted."""
    if not operations:
        return False, 0
    if not has_put(operations):
        inner = responses[0].response_txn
        if inner.succeeded:
            return False, 0
        responses = inner.responses
    return True, sum(one.response_delete_range.deleted for one in responses)
