"""What a daemon inherits from the process that starts it: all of it is reset, or the daemon does not start.

A runtime calls weft with the limits, priorities, signals and cgroup of whoever ran it. A daemon serves
everybody, so it must have none of its first caller's. Source: ``execve(2)``, "Effect on process
attributes".
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import resource
import signal
from collections.abc import Iterable

from weft.capabilities import Capability

SYSTEMD = "/run/systemd/system"
"""Exists where systemd runs. Source: sd_booted(3)."""

CHECKED = "WEFT_SECCOMP_FILTERS"
"""The environment variable by which a daemon of weft that starts another tells how many seccomp filters
are its own.
"""
_LEAST_DESCRIPTORS = 1024
_DESCRIPTORS = 65536
_STACK_BYTES = 8 << 20
_LIMITS = {
    resource.RLIMIT_NOFILE: _DESCRIPTORS,
    resource.RLIMIT_STACK: _STACK_BYTES,
    resource.RLIMIT_CORE: 0,
    resource.RLIMIT_NICE: 0,
    resource.RLIMIT_RTPRIO: 0,
    **dict.fromkeys(
        (
            resource.RLIMIT_AS, resource.RLIMIT_CPU, resource.RLIMIT_DATA, resource.RLIMIT_FSIZE,
            resource.RLIMIT_NPROC, resource.RLIMIT_RSS, resource.RLIMIT_RTTIME,
        ),
        resource.RLIM_INFINITY,
    ),
}  # fmt: skip
_NEEDED = {
    resource.RLIMIT_NOFILE: ("RLIMIT_NOFILE", _LEAST_DESCRIPTORS),
    resource.RLIMIT_NPROC: ("RLIMIT_NPROC", 1024),
    resource.RLIMIT_AS: ("RLIMIT_AS", 4 << 30),
    resource.RLIMIT_DATA: ("RLIMIT_DATA", 1 << 30),
    resource.RLIMIT_FSIZE: ("RLIMIT_FSIZE", 1 << 30),
    resource.RLIMIT_CPU: ("RLIMIT_CPU", 1 << 31),
}
"""Hard limits below which a daemon would fail sooner or later."""
KEPT_VARIABLES = ("PATH", "MALLOC_ARENA_MAX", "WEFT_CONFIG", "WEFT_ENGINE_IDLE", "WEFT_FOLLOW", "WEFT_LOG", CHECKED)
_CGROUP_LIMITS = ("memory.max", "memory.high", "pids.max", "cpu.max", "cpuset.cpus", "cgroup.freeze")
_UNLIMITED = ("", "max", "0")
_SET_TIMERSLACK, _TIMERSLACK_NS = 29, 50_000  # linux/prctl.h; the default of proc_pid_timerslack_ns(5)
_SET_THP_DISABLE = 41
_NUMBERS = {"x86_64": (251, 250, 238), "aarch64": (30, 219, 237), "riscv64": (30, 219, 237)}
"""ioprio_set, keyctl, set_mempolicy: glibc has no functions for them."""
_IOPRIO_WHO_PROCESS, _KEYCTL_JOIN_SESSION_KEYRING = 1, 1


def reset() -> None:
    """Reset whatever can be. Raises nothing: ``obstacles`` tells what is left.

    Of the main thread; those it starts inherit from it. *Equivalent to:* ``prlimit``, ``renice``,
    ``ionice``, ``chrt``, ``taskset``, ``choom``, ``setarch``, ``umask`` and ``env -i`` together.
    """
    attempt = contextlib.suppress(OSError, ValueError)
    for limit, wanted in _LIMITS.items():
        _raise_limit(limit, wanted)
    with attempt:
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
    with attempt:
        os.setpriority(os.PRIO_PROCESS, 0, 0)
    with attempt:
        os.sched_setaffinity(0, range(os.sysconf("SC_NPROCESSORS_CONF")))
    with attempt, open("/proc/self/oom_score_adj", "w", encoding="ascii") as file:
        file.write("0")
    for root, _ in _cgroups():
        with attempt, open(f"{root}/cgroup.procs", "w", encoding="ascii") as file:
            file.write("0")
    _reset_by_libc()
    for number in signal.valid_signals() - {signal.SIGPIPE, signal.SIGXFSZ}:  # which Python ignores itself
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    os.umask(0o022)
    for name in os.environ.keys() - KEPT_VARIABLES:
        del os.environ[name]
    os.chdir("/")


def _raise_limit(limit: int, wanted: int) -> None:
    """Set soft and hard limit, or the soft one as far as the hard one permits."""
    _, hard = resource.getrlimit(limit)
    for soft_and_hard in ((wanted, wanted), (_least(wanted, hard), hard)):
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(limit, soft_and_hard)
            return


def _least(one: int, other: int) -> int:
    """The smaller of two limits; RLIM_INFINITY is -1."""
    return min((one, other), key=lambda limit: float("inf") if limit == resource.RLIM_INFINITY else limit)


def _reset_by_libc() -> None:
    """Personality, timer slack, transparent huge pages, I/O priority, session keyring, NUMA policy."""
    libc = ctypes.CDLL(None)
    libc.personality(0)
    libc.prctl(_SET_TIMERSLACK, _TIMERSLACK_NS, 0, 0, 0)
    libc.prctl(_SET_THP_DISABLE, 0, 0, 0, 0)
    if numbers := _NUMBERS.get(platform.machine()):
        ioprio_set, keyctl, set_mempolicy = numbers
        libc.syscall(ioprio_set, _IOPRIO_WHO_PROCESS, 0, 0)
        libc.syscall(keyctl, _KEYCTL_JOIN_SESSION_KEYRING, None)
        libc.syscall(set_mempolicy, 0, None, 0)


def obstacles(capabilities: Iterable[Capability] = ()) -> list[str]:
    """What ``reset`` could not change and would limit a daemon: one phrase each.

    ``capabilities`` are those that it needs. no_new_privs is none: every daemon of weft sets it itself.
    """
    status = _status()
    found = []
    filters = int(status.get("Seccomp_filters", "1" if status.get("Seccomp", "0") == "2" else "0"))
    if filters > _own_filters() or status.get("Seccomp") == "1":
        found.append("a seccomp filter")
    permitted = int(status["CapPrm"], 16) & int(status["CapBnd"], 16)
    if missing := [one for one in capabilities if not permitted >> one & 1]:
        found.append(f"the lack of {', '.join(f'CAP_{one.name}' for one in missing)}")
    for limit, (name, least) in _NEEDED.items():
        hard = resource.getrlimit(limit)[1]
        if _least(hard, least) != least:
            found.append(f"a hard {name} of {hard}")
    if os.getpriority(os.PRIO_PROCESS, 0) > 0:
        found.append("a nice value that cannot be lowered")
    with contextlib.suppress(OSError, ValueError), open("/proc/self/oom_score_adj", encoding="ascii") as file:
        if int(file.read()) > 0:
            found.append("an oom_score_adj that cannot be lowered")
    found += (f"the cgroup {path} with {limit}" for path, limit in _limited_cgroups())
    if _other_mounts():
        found.append("a mount namespace that is not the host's")
    return found


def _own_filters() -> int:
    with contextlib.suppress(ValueError):
        return int(os.environ.get(CHECKED, "0"))
    return 0


def _status() -> dict[str, str]:
    """The fields of /proc/self/status. Source: ``proc_pid_status(5)``."""
    with open("/proc/self/status", encoding="ascii", errors="replace") as file:
        pairs = (line.partition(":") for line in file)
        return {name: value.strip() for name, _, value in pairs}


def filters() -> int:
    """How many seccomp filters this process has."""
    return int(_status().get("Seccomp_filters", "0"))


def _cgroups() -> list[tuple[str, str]]:
    """The mounted hierarchies in which this process is not where process 1 is: root and own path.

    None where systemd runs, which gives each daemon a cgroup.
    """
    found: list[tuple[str, str]] = []
    if os.path.exists(SYSTEMD):
        return found
    with contextlib.suppress(OSError):
        first = _cgroup_paths("/proc/1/cgroup")
        for controllers, path in _cgroup_paths("/proc/self/cgroup").items():
            root = "/sys/fs/cgroup" + (f"/{controllers}" if controllers else "")
            if path not in ("/", first.get(controllers, "")) and os.path.exists(f"{root}{path}/cgroup.procs"):
                found.append((root, path))
    return found


def _cgroup_paths(file_name: str) -> dict[str, str]:
    """Source: ``cgroups(7)``, /proc/PID/cgroup: hierarchy:controllers:path."""
    with open(file_name, encoding="utf-8", errors="surrogateescape") as file:
        fields = (line.rstrip("\n").split(":", 2) for line in file)
        return {controllers: path for _, controllers, path in fields}


def _limited_cgroups() -> Iterable[tuple[str, str]]:
    for root, path in _cgroups():
        while path not in ("", "/"):
            for name in _CGROUP_LIMITS:
                with contextlib.suppress(OSError), open(f"{root}{path}/{name}", encoding="ascii") as file:
                    value = file.read().strip()
                    if value.partition(" ")[0] not in _UNLIMITED:
                        yield path, f"{name} {value}"
            path = os.path.dirname(path)


def _other_mounts() -> bool:
    """Whether this process is in the network namespace of process 1, but not in its mount namespace: then
    most callers see other files, and the daemon would have to refuse them.
    """
    return is_like_init("net") and not is_like_init("mnt")


def is_like_init(*kinds: str) -> bool:
    """Whether this process has process 1's namespaces of these kinds; True where that cannot be read."""
    with contextlib.suppress(OSError):
        return all(os.stat(f"/proc/self/ns/{kind}").st_ino == os.stat(f"/proc/1/ns/{kind}").st_ino for kind in kinds)
    return True
