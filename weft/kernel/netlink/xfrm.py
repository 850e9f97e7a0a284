"""ESP in transport mode for UDP packets between two hosts: states with keys (SA), and policies.

Source: ``ip-xfrm(8)``, ``linux/xfrm.h``, RFC 4303, RFC 4106 (AES-GCM).
"""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterable
from ipaddress import ip_address
from struct import Struct
from sys import byteorder as _ORDER

from weft.errors import KernelLacks, KernelRefused
from weft.kernel.netlink.attributes import attribute, parse
from weft.kernel.netlink.constants import (
    AF_INET,
    AF_INET6,
    IPPROTO_ESP,
    IPPROTO_UDP,
    NETLINK_XFRM,
    NLM_F_CREATE,
    NLM_F_EXCL,
    XFRM_MODE_TRANSPORT,
    XFRM_MSG_DELPOLICY,
    XFRM_MSG_DELSA,
    XFRM_MSG_GETPOLICY,
    XFRM_MSG_GETSA,
    XFRM_MSG_NEWSA,
    XFRM_MSG_UPDPOLICY,
    XFRM_POLICY_IN,
    XFRM_POLICY_OUT,
    XFRM_STATE_ESN,
    XFRMA_ALG_AEAD,
    XFRMA_REPLAY_ESN_VAL,
    XFRMA_TMPL,
)
from weft.kernel.netlink.transport import HEADER_SIZE, NetlinkSocket, Outcome, Request, parses_answer
from weft.kernel.values import EspPolicy, EspRow, EspState
from weft.types import Address

_SECONDS = 10
_NEEDS = "ESP: the modules esp4, esp6 and xfrm_user, and AES-GCM"
_ALGORITHM = b"rfc4106(gcm(aes))"
_CHECK_BITS = 128
"""Of the integrity check value, which nobody should shorten."""
_WINDOW = 128
"""Packets that may arrive out of order (RFC 4303, section 3.4.3): many queues and CPUs send."""
_PRIORITY = 0x77
"""Before the policies of others: a smaller number comes first."""
_FAMILIES = {4: AF_INET, 6: AF_INET6}
_UNLIMITED = Struct("=8Q").pack(*(2**64 - 1,) * 4, 0, 0, 0, 0)
_SELECTOR = Struct(
    "=16s16sHHHHHBBB3xiI"
)  # daddr, saddr, dport, mask, sport, mask, family, prefixes, proto, ifindex, user
_ID = Struct("=16s4sB3x")  # daddr, spi, proto
_STATE_END = Struct("=3I2IHBBB7x")  # statistics, seq, reqid, family, mode, replay window, flags
_STATE = Struct(f"={_SELECTOR.size}s{_ID.size}s16s{len(_UNLIMITED)}s32s{_STATE_END.size}s")
_STATE_ID = Struct("=16s4sHBx")
_POLICY = Struct(f"={_SELECTOR.size}s{len(_UNLIMITED)}s32sIIBBBB4x")  # …, priority, index, direction, action, …
_POLICY_ID = Struct(f"={_SELECTOR.size}sIB3x")
_TEMPLATE = Struct(f"={_ID.size}sH2x16sIBBBxIII")  # id, family, saddr, reqid, mode, share, optional, algorithms
_ALG_AEAD = Struct("=64sII")
_REPLAY = Struct("=6I")


@parses_answer
def listed(reqid: int) -> tuple[EspRow, ...]:
    """The states and policies with that reqid, in the calling thread's namespace; without their keys."""
    with contextlib.closing(NetlinkSocket(NETLINK_XFRM, seconds=_SECONDS)) as socket:
        states = socket.dump(Request(XFRM_MSG_GETSA, 0, "list the states of IPsec", b"", _NEEDS))
        policies = socket.dump(Request(XFRM_MSG_GETPOLICY, 0, "list the policies of IPsec", b"", _NEEDS))
    rows = (*map(_state, states), *map(_policy, policies))
    return tuple(one for one in rows if one is not None and one.reqid == reqid)


def add(rows: Iterable[EspRow]) -> None:
    """Add states, and add or replace policies. Raises Exists where a state's SPI is taken, KernelLacks,
    KernelRefused; the others are added all the same.
    """
    _request([_adding(one) for one in rows])


def delete(rows: Iterable[EspRow]) -> None:
    """Delete states and policies; those that are missing are skipped."""
    _request([_deleting(one) for one in rows], errno.ESRCH, errno.ENOENT)


def _request(requests: list[Request], *ignored: int) -> None:
    with contextlib.closing(NetlinkSocket(NETLINK_XFRM, seconds=_SECONDS)) as socket:
        for outcome in socket.attempt(*requests):
            if outcome.errno and outcome.errno not in ignored:
                raise _error(socket, outcome)


def _error(socket: NetlinkSocket, outcome: Outcome) -> KernelRefused:
    if outcome.errno == errno.ENOSYS:  # of the algorithm
        return KernelLacks(f"cannot {outcome.request.action}: {outcome.sentence}", hint=f"this kernel lacks {_NEEDS}")
    return socket.to_error(outcome)


def _adding(row: EspRow) -> Request:
    if isinstance(row, EspState):
        return _adding_state(row)
    action = f"set the IPsec policy from {row.source} to {row.destination}"
    direction = XFRM_POLICY_OUT if row.out else XFRM_POLICY_IN
    body = _POLICY.pack(_selector(row), _UNLIMITED, b"", _PRIORITY, 0, direction, 0, 0, 0)
    identity = _ID.pack(_packed(row.destination), row.spi.to_bytes(4, "big"), IPPROTO_ESP)
    every = 2**32 - 1
    family = _FAMILIES[row.source.version]
    template = _TEMPLATE.pack(
        identity, family, _packed(row.source), row.reqid, XFRM_MODE_TRANSPORT, 0, 0, every, every, every
    )
    return Request(XFRM_MSG_UPDPOLICY, NLM_F_CREATE, action, body + attribute(XFRMA_TMPL, template), _NEEDS)


def _adding_state(row: EspState) -> Request:
    action = f"add the IPsec state {row.spi:#x} from {row.source} to {row.destination}"
    end = _STATE_END.pack(0, 0, 0, 0, row.reqid, _FAMILIES[row.source.version], XFRM_MODE_TRANSPORT, 0, XFRM_STATE_ESN)
    identity = _ID.pack(_packed(row.destination), row.spi.to_bytes(4, "big"), IPPROTO_ESP)
    body = _STATE.pack(_selector(row), identity, _packed(row.source), _UNLIMITED, b"", end)
    body += attribute(XFRMA_ALG_AEAD, _ALG_AEAD.pack(_ALGORITHM, len(row.key) * 8, _CHECK_BITS) + row.key)
    words = _WINDOW // 32
    body += attribute(XFRMA_REPLAY_ESN_VAL, _REPLAY.pack(words, 0, 0, 0, 0, _WINDOW) + bytes(words * 4))
    return Request(XFRM_MSG_NEWSA, NLM_F_CREATE | NLM_F_EXCL, action, body, _NEEDS)


def _deleting(row: EspRow) -> Request:
    if isinstance(row, EspState):
        family = _FAMILIES[row.source.version]
        body = _STATE_ID.pack(_packed(row.destination), row.spi.to_bytes(4, "big"), family, IPPROTO_ESP)
        return Request(XFRM_MSG_DELSA, 0, f"delete the IPsec state {row.spi:#x}", body)
    body = _POLICY_ID.pack(_selector(row), 0, XFRM_POLICY_OUT if row.out else XFRM_POLICY_IN)
    return Request(XFRM_MSG_DELPOLICY, 0, f"delete the IPsec policy from {row.source} to {row.destination}", body)


def _selector(row: EspRow) -> bytes:
    """UDP packets from one host to a port of the other. Ports are in network byte order."""
    family, length = _FAMILIES[row.source.version], row.source.max_prefixlen
    port = int.from_bytes(row.port.to_bytes(2, "big"), _ORDER)
    source, destination = _packed(row.source), _packed(row.destination)
    return _SELECTOR.pack(destination, source, port, 0xFFFF, 0, 0, family, length, length, IPPROTO_UDP, 0, 0)


def _packed(address: Address) -> bytes:
    return address.packed.ljust(16, b"\0")


def _state(message: bytes) -> EspState | None:
    selector, identity, source, _, _, end = _STATE.unpack_from(message, HEADER_SIZE)
    _, _, _, _, reqid, family, mode, _, _ = _STATE_END.unpack(end)
    destination, spi, protocol = _ID.unpack(identity)
    if protocol != IPPROTO_ESP or mode != XFRM_MODE_TRANSPORT:
        return None
    addresses = _address(source, family), _address(destination, family)
    return EspState(*addresses, _port(selector), reqid, int.from_bytes(spi, "big"))


def _policy(message: bytes) -> EspPolicy | None:
    selector, _, _, priority, _, direction, action, _, _ = _POLICY.unpack_from(message, HEADER_SIZE)
    template = parse(message, HEADER_SIZE + _POLICY.size).get(XFRMA_TMPL)
    if template is None or direction not in (XFRM_POLICY_IN, XFRM_POLICY_OUT) or action or priority != _PRIORITY:
        return None
    identity, _, _, reqid, mode, _, _, _, _, _ = _TEMPLATE.unpack_from(template)
    destination, source, _, _, _, _, family, *_ = _SELECTOR.unpack(selector)
    _, spi, protocol = _ID.unpack(identity)
    if protocol != IPPROTO_ESP or mode != XFRM_MODE_TRANSPORT:
        return None
    addresses = _address(source, family), _address(destination, family)
    return EspPolicy(*addresses, _port(selector), reqid, int.from_bytes(spi, "big"), direction == XFRM_POLICY_OUT)


def _port(selector: bytes) -> int:
    return int.from_bytes(int(_SELECTOR.unpack(selector)[2]).to_bytes(2, _ORDER), "big")


def _address(data: bytes, family: int) -> Address:
    return ip_address(data[:4] if family == AF_INET else data)
