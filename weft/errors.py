"""What can go wrong, each with the CNI error code a runtime sees and a hint for the person reading it.

Codes 1 to 99 are the CNI specification's (SPEC.md, section "Error"); 100 and above are weft's own and
listed in docs/architecture.md. Everything above ``kernel/`` sees these, never an errno.
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
    """Anything weft reports: a sentence, a CNI code, and what to do about it.

    ``message`` names the key and the value at fault; ``hint`` says what to do and becomes the CNI
    error's ``details``.
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
    """A CNI_* variable is missing or not valid."""

    code = INVALID_ENVIRONMENT


class DecodeProblem(WeftError):
    """Standard input is not the JSON object it must be."""

    code = DECODE_FAILURE


class ConfigProblem(WeftError):
    """The network configuration says something that cannot be."""

    code = INVALID_CONFIG


class VersionProblem(WeftError):
    """The configuration's cniVersion does not allow what is asked."""

    code = INCOMPATIBLE_VERSION


class NamespaceProblem(WeftError):
    """The path is no network namespace, or is one that must not be used."""

    code = INVALID_NAMESPACE


class UnknownContainer(WeftError):
    """Nothing is attached under this network, container id and interface name."""

    code = UNKNOWN_CONTAINER


class Busy(WeftError):
    """Somebody else holds what is needed; the same call may succeed later."""

    code = TRY_AGAIN


class PoolExhausted(WeftError):
    """Every address of a pool is taken."""

    code = POOL_EXHAUSTED


class Conflict(WeftError):
    """The thing asked for belongs to somebody else: an address, a port, a name."""

    code = CONFLICT


class NotAsPlanned(WeftError):
    """CHECK found the kernel in another state than ADD left it."""

    code = NOT_AS_PLANNED


class StateDamaged(WeftError):
    """A file of weft's own cannot be read or written."""

    code = STATE_DAMAGED


class PluginFailed(WeftError):
    """A foreign plugin that weft called failed."""

    code = PLUGIN_FAILED


class KernelRefused(WeftError):
    """The kernel refused a request; the message carries its own sentence."""

    code = KERNEL_REFUSED


class KernelLacks(KernelRefused):
    """This kernel was built without something the configuration needs."""

    code = KERNEL_LACKS


class Missing(KernelRefused):
    """The link, address, route or element is not there (ENOENT, ENODEV, ESRCH, EADDRNOTAVAIL)."""


class Exists(KernelRefused):
    """Something of that name or key is there already (EEXIST)."""


class BadOption(ConfigProblem):
    """An option's value makes no sense, by itself or beside the others."""


class InUse(Conflict):
    """The thing cannot go while others need it."""


class NotPermitted(WeftError):
    """The caller lacks a privilege."""

    code = IO_FAILURE
