"""weft's errors for the kernel's errnos.

Source: ``errno(3)``, extended acknowledgements in ``netlink(7)``.
"""

from __future__ import annotations

import errno
import os

from weft.errors import Exists, KernelLacks, KernelRefused, Missing

_MISSING = {errno.ENOENT, errno.ENODEV, errno.ENXIO, errno.ESRCH, errno.EADDRNOTAVAIL}

_MODULES = {"vlan": "8021q", "tun": "tun", "wireguard": "wireguard", "gretap": "ip_gre", "ip6gretap": "ip6_gre"}

_HINTS = {
    errno.EPERM: "this needs CAP_NET_ADMIN in the network namespace",
    errno.ENETDOWN: "the link is down",
    errno.ENETUNREACH: "the gateway must be reachable directly, through an address or a link route",
    errno.EHOSTUNREACH: "the gateway must be reachable directly, through an address or a link route",
    errno.EBUSY: "it is in use",
    errno.ENOBUFS: "the kernel is short of memory",
    errno.ENOMEM: "the kernel is short of memory",
}


def error_from_errno(number: int, action: str, sentence: str = "", *, needs: str = "") -> KernelRefused:
    """The error for an errno.

    ``action`` completes "cannot …", ``sentence`` is the kernel's extended acknowledgement,
    ``needs`` what the kernel must have been built with for this to work.
    """
    words = sentence.rstrip(".\0 ") or os.strerror(number)
    message = f"cannot {action}: the kernel says {words}"
    if number in (errno.EOPNOTSUPP, errno.EAFNOSUPPORT, errno.EPROTONOSUPPORT) and needs:
        return KernelLacks(message, hint=f"this kernel lacks {needs}")
    if number in (errno.EEXIST, errno.EADDRINUSE):
        return Exists(message)
    if number in _MISSING:
        return Missing(message)
    return KernelRefused(message, hint=_HINTS.get(number, ""))


def module(kind: str) -> str:
    """What the kernel needs to make a link of that kind, for a hint."""
    return f"the module {_MODULES.get(kind, kind)}"
