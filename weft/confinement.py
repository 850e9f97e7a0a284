"""The confinement of a daemon by itself: as its systemd unit, for a daemon that a call has started.

Capabilities, no_new_privs, no writable executable memory, and system calls by libseccomp where it is
installed. What is denied fails with EPERM. ``weft.kernel.private_mounts`` makes the agent's files
read-only. The engine's mount namespace stays the host's: it executes plugins for its callers.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import socket
import struct
from collections.abc import Callable, Iterable, Iterator

from weft.capabilities import AGENT, ENGINE, SPAWNER, Capability
from weft.inherited import filters

own_filters = 0
"""How many seccomp filters this process had after ``confine``; those that it starts inherit them."""

# linux/prctl.h
_CAPBSET_READ, _CAPBSET_DROP, _SET_NO_NEW_PRIVS, _SET_MDWE, _CAP_AMBIENT, _AMBIENT_CLEAR_ALL = 23, 24, 38, 65, 47, 4
_MDWE_REFUSE_EXEC_GAIN = 1
_CAPABILITY_VERSION_3 = 0x20080522  # linux/capability.h
_LIBRARY = "libseccomp.so.2"
_ALLOW, _ERRNO_EPERM = 0x7FFF0000, 0x00050000 | errno.EPERM  # seccomp.h: SCMP_ACT_ALLOW, SCMP_ACT_ERRNO
_ERRNO_ENOSYS = 0x00050000 | errno.ENOSYS
_BAD_ARCHITECTURE, _OPTIMIZE = 2, 8  # SCMP_FLTATR_ACT_BADARCH, SCMP_FLTATR_CTL_OPTIMIZE
_NOT_EQUAL, _EQUAL, _AT_LEAST, _MASKED_EQUAL = 1, 4, 5, 7  # enum scmp_compare

DENIED = (
    "acct", "add_key", "adjtimex", "bpf", "chroot", "clock_adjtime", "clock_settime", "create_module",
    "delete_module", "fanotify_init", "finit_module", "get_kernel_syms", "get_mempolicy", "init_module",
    "io_uring_enter", "io_uring_register", "io_uring_setup", "ioperm", "iopl", "kcmp", "kexec_file_load",
    "kexec_load", "lookup_dcookie", "mbind", "migrate_pages", "modify_ldt", "mount", "mount_setattr", "move_mount",
    "move_pages", "nfsservctl", "open_by_handle_at", "open_tree", "pciconfig_read", "pciconfig_write",
    "perf_event_open", "personality", "pidfd_getfd", "pivot_root", "process_madvise", "process_vm_readv",
    "process_vm_writev", "ptrace", "query_module", "quotactl", "quotactl_fd", "reboot", "request_key",
    "sched_setattr", "set_mempolicy", "set_mempolicy_home_node", "setdomainname", "sethostname", "settimeofday",
    "stime", "subpage_prot", "swapoff", "swapon", "switch_endian", "sysfs", "syslog", "umount", "umount2", "uselib",
    "userfaultfd", "ustat", "vhangup", "vm86", "vm86old",
)  # fmt: skip
"""Those of @clock, @cpu-emulation, @debug, @module, @obsolete, @raw-io, @reboot and @swap in
systemd.exec(5), as in the units, and others that no code of weft, iptables or an IPAM plugin uses.
"""
_NEWNET = 0x40000000
_OTHER_NAMESPACES = (0x80, 0x00020000, 0x02000000, 0x04000000, 0x08000000, 0x10000000, 0x20000000)
"""Of linux/sched.h: CLONE_NEWTIME, _NEWNS, _NEWCGROUP, _NEWUTS, _NEWIPC, _NEWUSER, _NEWPID."""
_SETUID_OR_SETGID = (0o4000, 0o2000)
_REALTIME = (1, 2, 6)  # SCHED_FIFO, SCHED_RR, SCHED_DEADLINE
_WRITE_EXECUTE, _EXECUTE, _SHM_EXEC = 6, 4, 0o100000
_LAST_FAMILY = 64

_HOST = (socket.AF_UNIX, socket.AF_NETLINK, socket.AF_INET, socket.AF_INET6)
FAMILIES = {
    AGENT: _HOST,
    ENGINE: (*_HOST, socket.AF_PACKET),
    SPAWNER: (socket.AF_UNIX, socket.AF_INET, socket.AF_INET6),  # its workers', which inherit the filter
}
"""The socket families of a process with these capabilities."""

WORKER_CALLS = (
    "accept", "accept4", "bind", "brk", "clock_getres", "clock_gettime", "clock_nanosleep", "close", "connect",
    "epoll_create1", "epoll_ctl", "epoll_pwait", "epoll_pwait2", "epoll_wait", "exit", "exit_group", "fcntl", "fstat",
    "futex", "getegid", "geteuid", "getgid", "getpeername", "getpid", "getppid", "getrandom", "getrusage",
    "getsockname", "getsockopt", "gettid", "gettimeofday", "getuid", "listen", "lseek", "madvise", "membarrier",
    "mremap", "munmap", "nanosleep", "poll", "ppoll", "pselect6", "read", "readv", "recvfrom", "recvmmsg", "recvmsg",
    "restart_syscall", "rseq", "rt_sigaction", "rt_sigprocmask", "rt_sigreturn", "sched_yield", "select", "sendmmsg",
    "sendmsg", "sendto", "set_robust_list", "setsockopt", "shutdown", "sigaltstack", "times", "write", "writev",
)  # fmt: skip
"""All that a worker may call, beside ``_worker_conditional``: no file is opened, no process or thread
started, no signal sent, and no socket made but of IP.
"""
THREAD_CALLS = (
    "access", "eventfd2", "faccessat", "faccessat2", "fadvise64", "fstatfs", "getcwd", "getdents64",
    "getpriority", "getrlimit", "lstat", "newfstatat", "pipe2", "pread64", "readlink", "readlinkat",
    "sched_getaffinity", "sched_getparam", "sched_getscheduler", "socketpair", "stat", "statfs", "statx", "sysinfo",
    "uname",
)  # fmt: skip
"""What a worker with threads may call beside those, with the conditions of ``_thread_conditional``: it
reads what user nobody may read, of files and sockets of name services, and writes nothing.
"""
_EXECUTABLE = 4  # PROT_EXEC
_WRITING = 0o3 | 0o100 | 0o1000 | 0o2000 | 0o20000000  # O_ACCMODE, O_CREAT, O_TRUNC, O_APPEND, the bit of O_TMPFILE
_THREAD = 0x00010000  # CLONE_THREAD
_SET_THREAD_NAME = 15  # PR_SET_NAME
_FIONBIO, _FIOCLEX = 0x5421, 0x5451  # asm-generic/ioctls.h
_NO_TYPE_FLAGS = 0x7FF  # of socket(2)'s type, without SOCK_CLOEXEC and SOCK_NONBLOCK

Rule = tuple[str, int, int, int, int]
"""A system call, the number of an argument, a comparison, and its one or two operands."""


class _Comparison(ctypes.Structure):
    """struct scmp_arg_cmp."""

    _fields_ = (("arg", ctypes.c_uint), ("op", ctypes.c_int), ("a", ctypes.c_uint64), ("b", ctypes.c_uint64))


AddRule = Callable[..., None]
"""Adds a system call, the action for it, and the comparisons of its arguments that must hold."""


def confine(capabilities: tuple[Capability, ...]) -> None:
    """Confine this process and all that it starts; call it before the first thread starts.

    Raises nothing: what the kernel or libseccomp lacks is left out. *Equivalent to:* ``setpriv
    --bounding-set … --inh-caps -all --ambient-caps -all --no-new-privs``.
    """
    global own_filters
    _reduce(capabilities)
    with contextlib.suppress(OSError):
        _deny(_library(), FAMILIES[capabilities])
    own_filters = filters()


def confine_worker(*, threads: bool = False) -> bool:
    """Leave this process no capability, and the system calls of WORKER_CALLS alone; all others fail with
    EPERM. Whether libseccomp is there.

    ``threads``: those of THREAD_CALLS as well, for libraries that start threads and read files. Without,
    what the process needs of files has been read, and all modules are imported. Raises nothing.
    """
    _reduce(())
    try:
        _allow(_library(), threads=threads)
    except OSError:
        return False
    return True


def bound(capabilities: tuple[Capability, ...]) -> None:
    """Drop all other capabilities from the bounding set; without SETPCAP it stays as it is."""
    libc = ctypes.CDLL(None, use_errno=True)
    for number in range(64):
        if number not in capabilities and libc.prctl(_CAPBSET_READ, number, 0, 0, 0) == 1:
            libc.prctl(_CAPBSET_DROP, number, 0, 0, 0)


def _reduce(capabilities: tuple[Capability, ...]) -> None:
    """Drop all other capabilities for good, and the ways to gain any."""
    libc = ctypes.CDLL(None, use_errno=True)
    kept = sum(1 << one for one in capabilities)
    bound(capabilities)
    libc.prctl(_CAP_AMBIENT, _AMBIENT_CLEAR_ALL, 0, 0, 0)
    _limit_capabilities(libc, kept)
    libc.prctl(_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    libc.prctl(_SET_MDWE, _MDWE_REFUSE_EXEC_GAIN, 0, 0, 0)


def _limit_capabilities(libc: ctypes.CDLL, kept: int) -> None:
    """Keep only these of the permitted and effective capabilities, and none as inheritable: capset(2)."""
    header = ctypes.create_string_buffer(struct.pack("Ii", _CAPABILITY_VERSION_3, 0))
    data = ctypes.create_string_buffer(24)
    if libc.capget(header, data):
        return
    words = struct.unpack("6I", data.raw)
    permitted = (words[1] | words[4] << 32) & kept
    low, high = permitted & 0xFFFFFFFF, permitted >> 32
    libc.capset(header, ctypes.create_string_buffer(struct.pack("6I", low, low, 0, high, high, 0)))


def _conditional(families: frozenset[int]) -> list[Rule]:
    """The calls that are denied with some arguments, as the units do by RestrictAddressFamilies,
    RestrictNamespaces, RestrictRealtime, RestrictSUIDSGID and MemoryDenyWriteExecute.
    """
    rules: list[Rule] = [("socket", 0, _EQUAL, number, 0) for number in range(_LAST_FAMILY) if number not in families]
    rules.append(("socket", 0, _AT_LEAST, _LAST_FAMILY, 0))
    rules.append(("setns", 1, _NOT_EQUAL, _NEWNET, 0))
    rules += [(call, 0, _MASKED_EQUAL, flag, flag) for call in ("unshare", "clone") for flag in _OTHER_NAMESPACES]
    for call, argument in (
        ("chmod", 1),
        ("fchmod", 1),
        ("fchmodat", 2),
        ("fchmodat2", 2),
        ("mknod", 1),
        ("mknodat", 2),
    ):
        rules += [(call, argument, _MASKED_EQUAL, bit, bit) for bit in _SETUID_OR_SETGID]
    rules += [("sched_setscheduler", 1, _MASKED_EQUAL, 0xF, policy) for policy in _REALTIME]
    rules += [(call, 2, _MASKED_EQUAL, _WRITE_EXECUTE, _WRITE_EXECUTE) for call in ("mmap", "mmap2")]
    rules += [(call, 2, _MASKED_EQUAL, _EXECUTE, _EXECUTE) for call in ("mprotect", "pkey_mprotect")]
    return [*rules, ("shmat", 2, _MASKED_EQUAL, _SHM_EXEC, _SHM_EXEC)]


def _worker_conditional() -> list[Rule]:
    """The calls that a worker may make with some arguments."""
    rules: list[Rule] = [(call, 2, _MASKED_EQUAL, _EXECUTABLE, 0) for call in ("mmap", "mmap2", "mprotect")]
    return [*rules, *(("ioctl", 1, _EQUAL, request, 0) for request in (_FIONBIO, _FIOCLEX))]


def _thread_conditional() -> list[Rule]:
    """The calls that a worker with threads may make with some arguments. Files are opened for reading,
    and mapped as code (modules of the name service switch), which MDWE lets nobody write.
    """
    return [
        ("open", 1, _MASKED_EQUAL, _WRITING, 0),
        ("openat", 2, _MASKED_EQUAL, _WRITING, 0),
        ("mmap", 2, _MASKED_EQUAL, _WRITE_EXECUTE, _EXECUTABLE),
        ("mmap2", 2, _MASKED_EQUAL, _WRITE_EXECUTE, _EXECUTABLE),
        ("clone", 0, _MASKED_EQUAL, _THREAD, _THREAD),
        ("prctl", 0, _EQUAL, _SET_THREAD_NAME, 0),
        ("prlimit64", 2, _EQUAL, 0, 0),  # without new limits
    ]


def _library() -> ctypes.CDLL:
    """libseccomp. Raises OSError where it is not installed."""
    library = ctypes.CDLL(_LIBRARY)
    pointer, unsigned = ctypes.c_void_p, ctypes.c_uint32
    library.seccomp_init.restype = pointer
    library.seccomp_init.argtypes = [unsigned]
    library.seccomp_rule_add_array.argtypes = [pointer, unsigned, ctypes.c_int, ctypes.c_uint, pointer]
    for name in ("seccomp_load", "seccomp_release"):
        getattr(library, name).argtypes = [pointer]
    library.seccomp_attr_set.argtypes = [pointer, ctypes.c_int, unsigned]
    return library


@contextlib.contextmanager
def _filter(library: ctypes.CDLL, otherwise: int) -> Iterator[AddRule]:
    """A filter that is loaded at the end; ``otherwise`` is the action for calls without a rule."""
    context = library.seccomp_init(otherwise)
    if not context:
        raise OSError("libseccomp: out of memory")
    library.seccomp_attr_set(context, _BAD_ARCHITECTURE, _ERRNO_EPERM)
    library.seccomp_attr_set(context, _OPTIMIZE, 2)

    def add(call: str, action: int, *conditions: _Comparison) -> None:
        if (number := library.seccomp_syscall_resolve_name(call.encode())) != -1:
            array = (_Comparison * len(conditions))(*conditions)
            library.seccomp_rule_add_array(context, action, number, len(conditions), array)

    yield add
    library.seccomp_load(context)
    library.seccomp_release(context)


def _deny(library: ctypes.CDLL, families: Iterable[int]) -> None:
    """Deny system calls. A deny-list as in the units: foreign IPAM plugins and script checks inherit it."""
    with _filter(library, _ALLOW) as add:
        for call in DENIED:
            add(call, _ERRNO_EPERM)
        add("clone3", _ERRNO_ENOSYS)  # its flags are in memory; the C library then uses clone
        for call, argument, comparison, one, other in _conditional(frozenset(families)):
            add(call, _ERRNO_EPERM, _Comparison(argument, comparison, one, other))


def _allow(library: ctypes.CDLL, *, threads: bool) -> None:
    """Allow a worker's system calls alone."""
    calls: tuple[str, ...] = WORKER_CALLS
    rules, families = _worker_conditional(), [socket.AF_INET, socket.AF_INET6]
    if threads:
        calls, rules = (*calls, *THREAD_CALLS), [*rules, *_thread_conditional()]
        families.append(socket.AF_UNIX)
    with _filter(library, _ERRNO_EPERM) as add:
        if threads:
            add("clone3", _ERRNO_ENOSYS)  # its flags are in memory; the C library then uses clone
        for call in calls:
            add(call, _ALLOW)
        for call, argument, comparison, one, other in rules:
            add(call, _ALLOW, _Comparison(argument, comparison, one, other))
        for family in families:
            for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
                own = _Comparison(0, _EQUAL, family, 0), _Comparison(1, _MASKED_EQUAL, _NO_TYPE_FLAGS, kind)
                add("socket", _ALLOW, *own)
