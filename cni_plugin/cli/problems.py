"""The exit status for each kind of error."""

from __future__ import annotations

import errno

from cni_plugin.networks.conflists import UnknownNetwork
from weft import errors

FAILED = 1
USAGE = 2
NO_SUCH_THING = 3
IN_USE = 4
TRY_AGAIN = 5
NOT_PERMITTED = 6

MEANINGS = (
    (0, "done"),
    (FAILED, "failed, or a check found problems"),
    (USAGE, "usage error: invalid option or argument"),
    (NO_SUCH_THING, "no such network, container, address or namespace"),
    (IN_USE, "in use, or conflicts with something that exists"),
    (TRY_AGAIN, "busy or not available: try again later"),
    (NOT_PERMITTED, "not permitted: run as root (CAP_NET_ADMIN and CAP_SYS_ADMIN)"),
)


_STATUSES: tuple[tuple[type[errors.WeftError], int], ...] = (
    (errors.NotPermitted, NOT_PERMITTED),
    (errors.BadOption, USAGE),
    (errors.EnvironmentProblem, USAGE),
    (UnknownNetwork, NO_SUCH_THING),
    (errors.UnknownContainer, NO_SUCH_THING),
    (errors.NamespaceProblem, NO_SUCH_THING),
    (errors.Missing, NO_SUCH_THING),
    (errors.Conflict, IN_USE),
    (errors.Exists, IN_USE),
    (errors.PoolExhausted, IN_USE),
    (errors.Busy, TRY_AGAIN),
)


def status(error: errors.WeftError) -> int:
    """The exit status for an error."""
    if _is_permission_error(error):
        return NOT_PERMITTED
    if error.code in (errors.TRY_AGAIN, errors.NOT_AVAILABLE, errors.NOT_AVAILABLE_LIMITED):
        return TRY_AGAIN
    return next((number for kind, number in _STATUSES if isinstance(error, kind)), FAILED)


def _is_permission_error(error: errors.WeftError) -> bool:
    """Whether the kernel denied a privilege (EPERM, EACCES)."""
    cause: BaseException | None = error
    seen: list[BaseException] = []
    while cause is not None and cause not in seen:
        if isinstance(cause, OSError) and cause.errno in (errno.EPERM, errno.EACCES):
            return True
        seen.append(cause)
        cause = cause.__cause__
    return "CAP_" in error.hint
