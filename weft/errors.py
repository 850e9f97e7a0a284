"""weft's exceptions, each with the CNI error code for the runtime and a hint for the user.

Codes 1 to 99 are defined by the CNI specification (SPEC.md, section "Error"), 100 and above by weft
(docs/architecture.md). Code above ``weft.kernel`` handles these and never an errno.
"""

from __future__ import annotations

INCOMPATIBLE_VERSION = 1
UNSUPPORTED_FIELD = 2
UNKNOWN_CONTAINER = 3
INVALID_ENVIRONMENT = 4
IO_FAILURE = 5
DECODE_FAILURE = 6
INVALID_CONFIG = 7
INVALID_NAMESPACE = 8
TRY_AGAIN = 11
NOT_AVAILABLE = 50
NOT_AVAILABLE_LIMITED = 51
POOL_EXHAUSTED = 100
CONFLICT = 101
KERNEL_LACKS = 102
KERNEL_REFUSED = 103
NOT_AS_PLANNED = 104
STATE_DAMAGED = 105
PLUGIN_FAILED = 106
INTERNAL = 999


class WeftError(Exception):
    """Base of weft's exceptions.

    ``message`` names the key and value at fault and becomes the CNI error's ``msg``, ``hint`` says
    how to fix it and becomes ``details``.
    """

    code: int = INTERNAL

    def __init__(self, message: str, *, hint: str = "", code: int | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        if code is not None:
            self.code = code

    def __str__(self) -> str:
        return f"{self.message} ({self.hint})" if self.hint else self.message


class EnvironmentProblem(WeftError):
    """A CNI_* variable is missing or invalid."""

    code = INVALID_ENVIRONMENT


class DecodeProblem(WeftError):
    """Standard input is not a JSON object."""

    code = DECODE_FAILURE


class ConfigProblem(WeftError):
    """The network configuration is invalid."""

    code = INVALID_CONFIG


class VersionProblem(WeftError):
    """The configuration's cniVersion is not supported, or too old for the command."""

    code = INCOMPATIBLE_VERSION


class NamespaceProblem(WeftError):
    """The path is not a network namespace, or not one that may be used."""

    code = INVALID_NAMESPACE


class UnknownContainer(WeftError):
    """No attachment exists for this network, container id and interface name."""

    code = UNKNOWN_CONTAINER


class Busy(WeftError):
    """A lock or resource is held by another process; try again later."""

    code = TRY_AGAIN


class PoolExhausted(WeftError):
    """No address is free in a pool."""

    code = POOL_EXHAUSTED


class Conflict(WeftError):
    """The address, port or name is in use by another owner."""

    code = CONFLICT


class NotAsPlanned(WeftError):
    """CHECK found a difference between the plan and the kernel."""

    code = NOT_AS_PLANNED


class StateDamaged(WeftError):
    """A state file of weft cannot be read or written."""

    code = STATE_DAMAGED


class PluginFailed(WeftError):
    """A plugin that weft executed failed."""

    code = PLUGIN_FAILED


class KernelRefused(WeftError):
    """The kernel returned an error; the message has its text."""

    code = KERNEL_REFUSED


class KernelLacks(KernelRefused):
    """The kernel lacks a feature or module that the configuration needs."""

    code = KERNEL_LACKS


class Missing(KernelRefused):
    """No such link, address, route or element (ENOENT, ENODEV, ESRCH, EADDRNOTAVAIL)."""


class Exists(KernelRefused):
    """The name or key exists already (EEXIST)."""


class BadOption(ConfigProblem):
    """An option's value is invalid, or conflicts with another option."""


class InUse(Conflict):
    """It cannot be removed while it is in use."""


class LibraryMissing(WeftError):
    """A library is missing that only an extra of weft's wheel has. ``purpose`` names what needs it."""

    def __init__(self, library: str, purpose: str) -> None:
        hint = f"pip install {library} beside weft, or install weft with its extra: pip install '.[agent]'"
        super().__init__(f"{purpose} needs the library {library}, which is not installed", hint=hint)


class NotPermitted(WeftError):
    """The caller lacks a capability (EPERM)."""

    code = IO_FAILURE
