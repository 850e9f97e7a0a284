"""What etcd answers instead of a response, as weft's errors."""

from __future__ import annotations

from store.interface import Invalid, StoreError, Unavailable

_RETRIED = frozenset({"UNAVAILABLE", "DEADLINE_EXCEEDED", "CANCELLED", "ABORTED", "UNKNOWN", "INTERNAL"})
_TOKEN = ("invalid auth token", "auth token", "revision of auth store is old")


class NoAnswer(Exception):
    """A member did not answer; the request may have been executed. The message says why."""


class TokenExpired(Exception):
    """The member does not know the token of the user: log in again."""


class Answered(Exception):
    """The cluster refused the request, which has changed nothing: ``code`` is gRPC's."""

    def __init__(self, code: str, details: str) -> None:
        super().__init__(f"{code}: {details}")
        self.code = code
        self.details = details


def failure(code: str, details: str) -> NoAnswer | TokenExpired | Answered:
    """The exception for a status of gRPC. Source: etcd's api/v3rpc/rpctypes/error.go."""
    if code == "UNAUTHENTICATED" or any(part in details for part in _TOKEN):
        return TokenExpired(details)
    if code in _RETRIED or "too many requests" in details:
        return NoAnswer(_brief(details) or code)
    return Answered(code, details)


def store_error(answered: Answered, what: str, user: str) -> StoreError:
    """The store's error for a refused request; ``what`` was requested, by ``user``."""
    details = answered.details.removeprefix("etcdserver: ")
    if "too many operations" in details:
        return Invalid(
            f"{what}: more than --max-txn-ops of this etcd allows",
            hint="its default is 128, of which weft uses 1; start etcd with --max-txn-ops 129 or split the transaction",
        )
    if "request is too large" in details or "larger than max" in details:
        return Invalid(
            f"{what}: more than --max-request-bytes of this etcd allows",
            hint="its default is 1.5 MiB, with keys and what encodes them; split the transaction",
        )
    if "space exceeded" in details:
        return Unavailable(
            f"{what}: the database of etcd is full", hint="compact and defragment it, then: etcdctl alarm disarm"
        )
    if answered.code == "PERMISSION_DENIED":
        whose = f"user {user}" if user else "the user that store.cert names (its CN), if any,"
        return Unavailable(
            f"{what}: etcd permits {whose} no access",
            hint="grant its role readwrite to weft's keys with --prefix, or set store.user and store.password_file",
        )
    if "user name is empty" in details:
        return Unavailable(
            f"{what}: etcd wants to know the user", hint="set store.user and store.password_file, or store.cert"
        )
    if answered.code == "INVALID_ARGUMENT":
        return Invalid(f"{what}: {details}", hint="etcd refused the request")
    return Unavailable(f"{what}: etcd answered {details}", hint=f"gRPC status {answered.code}")


def _brief(details: str) -> str:
    """The last cause in a status of gRPC's C core, which quotes its whole history."""
    text = details.rpartition("last error: ")[2]
    for known, said in (
        ("Connection refused", "connection refused"),
        ("No route to host", "no route to host"),
        ("Network is unreachable", "network is unreachable"),
        ("Socket closed", "the connection was closed"),
        ("DNS resolution failed", "its name cannot be resolved"),
        ("handshake failed", "the TLS handshake failed"),
        ("Unwrap failed", "the TLS connection failed"),
        ("Hostname Verification Check failed", "its certificate is for another name"),
        ("no leader", "this member has no leader"),
        ("leader changed", "the leader changed"),
    ):
        if known in text:
            return said
    return text.removeprefix("etcdserver: ")[:200]
