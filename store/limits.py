"""Limits of requests, checked by every implementation before it does anything."""

from __future__ import annotations

from collections.abc import Sequence

from store.interface import Compare, Delete, Invalid, Operation, Put

KEY_BYTES = 4 * 1024
VALUE_BYTES = 512 * 1024
TRANSACTION_OPERATIONS = 128
"""etcd's --max-txn-ops, for each branch and for the comparisons."""
TRANSACTION_BYTES = 1536 * 1024
"""etcd's --max-request-bytes, of keys and values together."""
LEASE_SECONDS = 1_000_000_000
"""31 years."""

_NUMBERS = ("create", "mod", "version", "lease")
_LARGEST_NUMBER = 2**63 - 1


def encoded(key: str, *, prefix: bool = False) -> bytes:
    """The key in UTF-8. Raises Invalid if it is empty (a prefix may be), too long or not text."""
    try:
        data = key.encode()
    except UnicodeEncodeError as error:
        raise Invalid(f"key {key[:80]!r} is not valid text: {error.reason}", hint="keys are UTF-8") from None
    if not data and not prefix:
        raise Invalid("the key is empty", hint="give it a name; only a prefix may be empty")
    if len(data) > KEY_BYTES:
        raise Invalid(f"key {key[:80]!r}… is {len(data)} bytes long", hint=f"the limit is {KEY_BYTES}")
    return data


def check_transaction(compare: Sequence[Compare], success: Sequence[Operation], failure: Sequence[Operation]) -> None:
    """Raise Invalid for a transaction with too many operations or bytes, or a key twice."""
    for name, part in (("comparisons", compare), ("success operations", success), ("failure operations", failure)):
        if len(part) > TRANSACTION_OPERATIONS:
            raise Invalid(f"{len(part)} {name} in one transaction", hint=f"the limit is {TRANSACTION_OPERATIONS}")
    size = sum(map(_check_comparison, compare)) + _check_branch(success) + _check_branch(failure)
    if size > TRANSACTION_BYTES:
        raise Invalid(f"a transaction of {size} bytes", hint=f"the limit is {TRANSACTION_BYTES}; split it")


def check_number(name: str, value: int) -> None:
    """Raise Invalid unless it is an integer from 0 to 2**63 - 1."""
    if type(value) is not int or not 0 <= value <= _LARGEST_NUMBER:
        raise Invalid(f"{name} is {value!r}", hint="use an integer, 0 or more")


def check_seconds(seconds: float) -> None:
    """Raise Invalid for a lease time out of range."""
    if not 0 < seconds <= LEASE_SECONDS:
        raise Invalid(f"a lease of {seconds} seconds", hint=f"more than 0 and at most {LEASE_SECONDS}")


def _check_comparison(compare: Compare) -> int:
    size = len(encoded(compare.key))
    if compare.field == "value":
        if not isinstance(compare.is_, bytes) or compare.op not in ("=", "!="):
            raise Invalid(
                f"key {compare.key!r}: value {compare.op} {str(compare.is_)[:80]}", hint="values are bytes, by = or !="
            )
        return size + len(compare.is_)
    if compare.field not in _NUMBERS or compare.op not in ("=", "!=", "<", ">"):
        raise Invalid(f"key {compare.key!r}: no comparison {compare.field!r} {compare.op!r}", hint="see store.Compare")
    if isinstance(compare.is_, bytes):
        raise Invalid(f"key {compare.key!r}: {compare.field} is compared with bytes", hint="use a number")
    check_number(f"{compare.field} of key {compare.key!r}", compare.is_)
    return size


def _check_branch(operations: Sequence[Operation]) -> int:
    """The size of a branch in bytes. Raises Invalid for a key put twice or put and deleted."""
    size = 0
    puts: set[str] = set()
    for operation in operations:
        size += len(encoded(operation.key, prefix=isinstance(operation, Delete) and operation.prefix))
        if isinstance(operation, Put):
            if operation.key in puts:
                raise Invalid(f"key {operation.key!r} is put twice in one transaction", hint="put it once")
            puts.add(operation.key)
            _check_value(operation)
            size += len(operation.value)
    for operation in operations:
        if isinstance(operation, Delete):
            _check_overlap(operation, puts)
    return size


def _check_value(put: Put) -> None:
    if not isinstance(put.value, bytes):
        raise Invalid(f"the value of key {put.key!r} is of type {type(put.value).__name__}", hint="use bytes")
    if len(put.value) > VALUE_BYTES:
        raise Invalid(
            f"the value of key {put.key!r} is {len(put.value)} bytes long", hint=f"the limit is {VALUE_BYTES}"
        )
    check_number(f"the lease of key {put.key!r}", put.lease)


def _check_overlap(delete: Delete, puts: set[str]) -> None:
    both = {key for key in puts if key.startswith(delete.key)} if delete.prefix else puts & {delete.key}
    if both:
        raise Invalid(f"key {min(both)!r} is put and deleted in one transaction", hint="do one or the other")
