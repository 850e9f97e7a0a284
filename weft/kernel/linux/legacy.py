"""The table filter of iptables-legacy, read from the kernel without running a program.

Sources: ``linux/netfilter_ipv4/ip_tables.h``, ``linux/netfilter_ipv6/ip6_tables.h`` (struct
ipt_getinfo, ipt_get_entries, ipt_entry), ``linux/netfilter/x_tables.h`` (struct xt_entry_target).
"""

from __future__ import annotations

import contextlib
import ctypes
import sys
from collections.abc import Iterator
from socket import AF_INET, AF_INET6, IPPROTO_RAW, SOCK_RAW, socket
from struct import unpack_from

from weft.kernel.firewall_chains import HOOKS, OWN_CHAIN, RETURN, USER_CHAINS, UserChain, hook_of, mark_in
from weft.kernel.netlink.constants import NF_DROP

_LEVELS = {4: 0, 6: 41}  # SOL_IP, SOL_IPV6
_SO_GET_INFO, _SO_GET_ENTRIES = 64, 65
_INFO_BYTES, _UNDERFLOW_AT, _SIZE_AT, _ENTRIES_AT = 84, 56, 80, 40
_OFFSETS_AT = {4: 88, 6: 140}  # of target_offset and next_offset in struct ipt_entry, ip6t_entry
_ENTRY_BYTES = {4: 112, 6: 168}  # of struct ipt_entry, ip6t_entry
_DROP, _RETURN = -NF_DROP - 1, -5


def user_chains(version: int) -> Iterator[UserChain]:
    """The chains of ``USER_CHAINS`` that exist in the thread's namespace, and weft's own."""
    chains: dict[str, list[bytes]] = {}
    chain = ""
    (info, entries), at = _table(version), 0
    while at < len(entries):
        target, size = unpack_from("HH", entries, at + _OFFSETS_AT[version])
        name = _text(entries, at + target + 2)
        if name == "ERROR":  # the first entry of a chain that is not built in; its target has the chain's name
            chain = _text(entries, at + target + 32)
            chains[chain] = []
        elif chain:
            chains[chain].append(entries[at : at + size])
        at += size
    for name in (*USER_CHAINS[version], OWN_CHAIN):
        if name in chains:
            (last,) = unpack_from("I", info, _UNDERFLOW_AT + 4 * HOOKS[hook_of(name)])  # the entry with the policy
            (target,) = unpack_from("H", entries, last + _OFFSETS_AT[version])
            (verdict,) = unpack_from("i", entries, last + target + 32)
            rules = (_rule(version, one) for one in chains[name][:-1])  # the last one is the kernel's
            yield UserChain(version, name, tuple(rules), verdict == _DROP, "legacy")


def _rule(version: int, entry: bytes) -> str:
    """See ``UserChain.rules``."""
    if found := mark_in(entry):
        return found
    (target,) = unpack_from("H", entry, _OFFSETS_AT[version])
    has_matches = target != _ENTRY_BYTES[version] or any(entry[: _OFFSETS_AT[version] - 4])
    is_standard = not _text(entry, target + 2)
    return RETURN if is_standard and not has_matches and unpack_from("i", entry, target + 32) == (_RETURN,) else ""


def _table(version: int) -> tuple[bytes, bytes]:
    """The table's head and its rules as the kernel has them; b"" if they change meanwhile or cannot be
    read.
    """
    library = ctypes.CDLL(None, use_errno=True)

    def ask(option: int, length: int, head: bytes) -> bytes:
        buffer = ctypes.create_string_buffer(head, length)
        size = ctypes.c_uint32(length)
        refused = library.getsockopt(raw.fileno(), _LEVELS[version], option, buffer, ctypes.byref(size))
        return b"" if refused else buffer.raw

    with contextlib.suppress(OSError), socket(AF_INET if version == 4 else AF_INET6, SOCK_RAW, IPPROTO_RAW) as raw:
        name = b"filter".ljust(32, b"\0")
        info = ask(_SO_GET_INFO, _INFO_BYTES, name)
        if info:
            size = info[_SIZE_AT:]
            length = _ENTRIES_AT + int.from_bytes(size, sys.byteorder)
            return info, ask(_SO_GET_ENTRIES, length, name + size)[_ENTRIES_AT:]
    return b"", b""


def _text(data: bytes, start: int) -> str:
    return data[start : data.index(b"\0", start)].decode("ascii", "replace")
