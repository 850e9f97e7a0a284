"""What a command ends with: one exit status for each kind of failure, and a line for a person."""

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
    (FAILED, "failed, or something is not as it should be"),
    (USAGE, "wrong usage: an option or argument makes no sense"),
    (NO_SUCH_THING, "no such network, container, address or namespace"),
    (IN_USE, "in use, taken, or in conflict with something else"),
    (TRY_AGAIN, "try again later: somebody else is at it"),
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
    """The exit status that a failure ends with."""
    if _refused_by_rights(error):
        return NOT_PERMITTED
    if error.code in (errors.TRY_AGAIN, errors.NOT_AVAILABLE, errors.NOT_AVAILABLE_LIMITED):
        return TRY_AGAIN
    return next((number for kind, number in _STATUSES if isinstance(error, kind)), FAILED)


def _refused_by_rights(error: errors.WeftError) -> bool:
    """Whether the system refused for want of a privilege."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.errno in (errno.EPERM, errno.EACCES):
            return True
        cause = cause.__cause__
    return "CAP_" in error.hint
