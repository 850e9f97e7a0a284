"""TUN and TAP links, which are created with /dev/net/tun instead of netlink.

Source: ``Documentation/networking/tuntap.rst``, ``linux/if_tun.h``.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import struct
from collections.abc import Mapping

from weft import processes
from weft.errors import Exists, KernelLacks, KernelRefused

_DEVICE = "/dev/net/tun"
TUNSETIFF, TUNSETPERSIST, TUNSETOWNER, TUNSETGROUP = 0x400454CA, 0x400454CB, 0x400454CC, 0x400454CE
IFF_TUN, IFF_TAP, IFF_MULTI_QUEUE, IFF_NO_PI, IFF_VNET_HDR, IFF_TUN_EXCL = 0x1, 0x2, 0x100, 0x1000, 0x4000, 0x8000
_OPTIONS = {"tun_type", "tun_owner", "tun_group", "tun_multi_queue", "tun_vnet_hdr", "tun_pi", "tun_selinux"}
_SELINUX = "/sys/fs/selinux/enforce"
_LABEL = "/proc/thread-self/attr/exec"


def add(name: str, options: Mapping[str, int | str], action: str) -> None:
    """Create a persistent TUN (``tun_type`` 1) or TAP (2) link in the calling thread's namespace.

    ``tun_owner`` and ``tun_group`` are the uid and gid that may open it, ``tun_selinux`` the
    context that it is created in and inherits. Raises ``Exists``, ``KernelLacks``,
    ``KernelRefused``.
    *Equivalent to:* ``ip tuntap add NAME mode tap [user UID] [group GID] [multi_queue]``.
    """
    unknown = sorted(set(options) - _OPTIONS)
    if unknown:
        raise KernelRefused(f"cannot {action}: tun links have no option {unknown[0]}")
    if "tun_selinux" in options:
        _add_labelled(name, options, action)
        return
    flags = {1: IFF_TUN, 2: IFF_TAP}.get(int(options.get("tun_type", 2)), 0) | IFF_TUN_EXCL
    flags |= 0 if options.get("tun_pi") else IFF_NO_PI
    flags |= IFF_MULTI_QUEUE if options.get("tun_multi_queue") else 0
    flags |= IFF_VNET_HDR if options.get("tun_vnet_hdr") else 0
    try:
        descriptor = os.open(_DEVICE, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        raise KernelLacks(
            f"cannot {action}: cannot open {_DEVICE}: {error.strerror}", hint="this kernel lacks the module tun"
        ) from error
    try:
        fcntl.ioctl(descriptor, TUNSETIFF, struct.pack("=16sH22x", os.fsencode(name), flags))
        for option, request in (("tun_owner", TUNSETOWNER), ("tun_group", TUNSETGROUP)):
            if option in options:
                fcntl.ioctl(descriptor, request, int(options[option]))
        fcntl.ioctl(descriptor, TUNSETPERSIST, 1)
    except OSError as error:
        message = f"cannot {action}: the kernel says {error.strerror}"
        # EBUSY: a tun link has the name. A link of another kind yields EINVAL.
        if error.errno in (errno.EBUSY, errno.EEXIST):
            raise Exists(message) from error
        raise KernelRefused(message) from error
    finally:
        os.close(descriptor)


def _add_labelled(name: str, options: Mapping[str, int | str], action: str) -> None:
    """Create the link with ``ip tuntap``: the SELinux context changes only at execve(2)."""
    if not os.path.exists(_SELINUX):
        raise KernelLacks(f"cannot {action}: SELinux is disabled", hint="remove selinuxContext, or enable SELinux")
    command = ["ip", "tuntap", "add", "dev", name, "mode", "tun" if options.get("tun_type") == 1 else "tap"]
    for option, word in (("tun_owner", "user"), ("tun_group", "group")):
        command += [word, str(options[option])] if option in options else []
    for option, word in (("tun_multi_queue", "multi_queue"), ("tun_vnet_hdr", "vnet_hdr"), ("tun_pi", "pi")):
        command += [word] if options.get(option) else []
    label = str(options["tun_selinux"])
    try:
        with open(_LABEL, "w", encoding="utf-8") as file:
            file.write(label)
        status = processes.spawn(command, os.environ)
    except OSError as error:
        raise KernelRefused(f"cannot {action} with the SELinux context {label}: {error.strerror}") from error
    finally:
        with contextlib.suppress(OSError), open(_LABEL, "w", encoding="utf-8") as file:
            file.write("\n")  # clears it, proc_pid_attr(5)
    if status != 0:
        raise KernelRefused(f"cannot {action} with the SELinux context {label}: ip tuntap failed ({status})")
