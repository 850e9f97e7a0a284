"""Two ways to run nftables commands: libnftables in this process, or the ``nft`` program where it is
missing.

Both take commands as ``nft -f -`` does and print protocols as numbers, so that neither a reader nor a
writer depends on /etc/protocols. Sources: libnftables(3) (``nftables/libnftables.h`` for the flags),
nft(8).
"""

from __future__ import annotations

import ctypes
import os
from typing import NoReturn, Protocol

from weft import processes
from weft.errors import Exists, KernelLacks, KernelRefused, Missing
from weft.kernel.netlink.constants import NETLINK_NETFILTER
from weft.kernel.netlink.transport import NetlinkSocket

LIBRARY = "libnftables.so.1"
PROGRAM = "nft"
_FOLDERS = ("/usr/sbin", "/sbin", "/usr/bin", "/bin", "/usr/local/sbin")
_PATIENCE = 30  # seconds for one run of the program
_NUMERIC_PROTOCOL = 1 << 7
_TERSE = 1 << 11
_JSON = 1 << 4
_HANDLE = 1 << 3
_CLONE_NEWNET = 0x40000000


Answer = tuple[str, str]
"""What a run printed, and its errors: "" where it went well."""


class Runner(Protocol):
    """Runs nftables commands in the network namespace of the thread that made it (the library) or that
    calls.
    """

    def run(self, commands: str, *, terse: bool = False, as_json: bool = False, handles: bool = False) -> Answer:
        """Run the commands as one transaction; ``terse`` leaves the elements of sets out of listings,
        which ``as_json`` are libnftables-json(5) and else may have ``handles``.
        """

    def close(self) -> None: ...


class Library:
    """libnftables, loaded by its plain name (looking for it elsewhere would start processes)."""

    def __init__(self) -> None:
        _need_netfilter()
        try:
            library = ctypes.CDLL(LIBRARY)
        except OSError as error:
            raise KernelLacks(f"{LIBRARY} cannot be loaded: {error}", hint="install the nftables library") from error
        library.nft_ctx_new.argtypes = [ctypes.c_uint32]
        library.nft_ctx_new.restype = ctypes.c_void_p
        for name in ("nft_ctx_buffer_output", "nft_ctx_buffer_error", "nft_ctx_free"):
            getattr(library, name).argtypes = [ctypes.c_void_p]
        library.nft_ctx_free.restype = None
        for name in ("nft_ctx_get_output_buffer", "nft_ctx_get_error_buffer"):
            getattr(library, name).argtypes = [ctypes.c_void_p]
            getattr(library, name).restype = ctypes.c_char_p
        library.nft_ctx_output_set_flags.argtypes = [ctypes.c_void_p, ctypes.c_uint]
        library.nft_run_cmd_from_buffer.argtypes = [ctypes.c_void_p, ctypes.c_char_p]
        self._library = library
        self._context = ctypes.c_void_p(library.nft_ctx_new(0))
        if not self._context:
            raise KernelRefused("libnftables has no memory for a context")
        if library.nft_ctx_buffer_output(self._context) or library.nft_ctx_buffer_error(self._context):
            self.close()
            raise KernelRefused("libnftables cannot keep its output in memory")

    def run(self, commands: str, *, terse: bool = False, as_json: bool = False, handles: bool = False) -> Answer:
        library, context = self._library, self._context
        if not context:
            raise KernelRefused("the nftables library is closed")
        flags = _NUMERIC_PROTOCOL | (_TERSE if terse else 0) | (_JSON if as_json else 0) | (_HANDLE if handles else 0)
        library.nft_ctx_output_set_flags(context, flags)
        failed = library.nft_run_cmd_from_buffer(context, commands.encode("ascii"))
        output = (library.nft_ctx_get_output_buffer(context) or b"").decode("utf-8", "replace")
        errors = (library.nft_ctx_get_error_buffer(context) or b"").decode("utf-8", "replace")
        return output, (errors or "no reason given") if failed else ""

    def close(self) -> None:
        if self._context:
            self._library.nft_ctx_free(self._context)
            self._context = ctypes.c_void_p(None)


class Program:
    """The ``nft`` program, one process for every run: for a host without the library."""

    def __init__(self) -> None:
        import shutil

        _need_netfilter()
        folders = os.pathsep.join((os.environ.get("PATH", ""), *_FOLDERS))
        path = shutil.which(PROGRAM, path=folders)
        if path is None:
            raise KernelLacks(f"there is neither {LIBRARY} nor a program {PROGRAM}", hint="install nftables")
        self._path = path

    def run(self, commands: str, *, terse: bool = False, as_json: bool = False, handles: bool = False) -> Answer:
        flags = ["-p", *(["-t"] if terse else []), *(["-j"] if as_json else []), *(["-a"] if handles else [])]
        try:
            done = processes.run(
                [self._path, *flags, "-f", "-"], commands.encode(), environment={"LC_ALL": "C"}, timeout=_PATIENCE
            )
        except OSError as error:
            raise KernelRefused(f"{self._path} does not run: {error}") from error
        output, errors = (text.decode("utf-8", "replace") for text in (done.output, done.errors))
        return output, (errors or f"exit status {done.status}") if done.status else ""

    def close(self) -> None: ...


_ERRORS: tuple[tuple[str, type[KernelRefused], str], ...] = (
    ("No such file or directory", Missing, ""),
    ("File exists", Exists, ""),
    ("Operation not permitted", KernelRefused, "it takes CAP_NET_ADMIN: run weft as root"),
    ("Operation not supported", KernelLacks, "the kernel lacks an nftables module"),
    ("Could not resolve protocol name", KernelLacks, "/etc/protocols is missing: install netbase"),
    ("Protocol not supported", KernelLacks, "the kernel lacks an nftables module"),
)


def refuse(errors: str) -> NoReturn:
    """Raise what nftables' message says; only its first line, since the others repeat the command."""
    sentence = errors.strip().splitlines()[0].removeprefix("Error: ").removeprefix("Could not process rule: ")
    for text, kind, hint in _ERRORS:
        if text in sentence:
            raise kind(f"nftables: {sentence}", hint=hint)
    raise KernelRefused(f"nftables: {sentence}")


def runner() -> Runner:
    """The library, or the program where the library is missing; raises KernelLacks where both are."""
    try:
        return Library()
    except KernelLacks:
        return Program()


def enter_namespace(descriptor: int) -> None:
    """Move the calling thread to the network namespace. *Equivalent to:* ``nsenter --net=FILE``,
    setns(2).
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.setns(descriptor, _CLONE_NEWNET):
        raise KernelRefused(f"cannot enter the network namespace: {_strerror(ctypes.get_errno())}")


def leave_namespace() -> None:
    """Move the calling thread to a new, empty network namespace. *Equivalent to:* ``unshare -n``."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_CLONE_NEWNET):
        raise KernelRefused(f"cannot make a network namespace: {_strerror(ctypes.get_errno())}")


def _strerror(number: int) -> str:
    return os.strerror(number)


def _need_netfilter() -> None:
    """Raise KernelLacks where netfilter's netlink is missing: the library would end the process
    instead.
    """
    NetlinkSocket(NETLINK_NETFILTER).close()
