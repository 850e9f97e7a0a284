"""A DHCP client: acquire, renew, rebind and release a lease over a packet socket.

Source: RFC 2131, sections 3.1, 4.4.1 to 4.4.6. The broadcast flag is set: a link may share its MAC
address (ipvlan), and has no address that a reply could be unicast to.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address
from typing import Protocol

from ipam.dhcp import problem
from ipam.dhcp_messages import (
    ANY,
    BROADCAST,
    BROADCAST_MAC,
    Kind,
    Message,
    Option,
    decode,
    encode,
    packet,
    payload,
)
from weft.errors import Busy, WeftError

OFFERS = (1.0, 2.0, 4.0, 8.0)
"""Seconds to wait for an offer after each DISCOVER; shorter than in RFC 2131, since ADD waits."""

ANSWERS = (1.0, 2.0, 4.0)
"""Seconds to wait for an ACK after each REQUEST."""

FOREVER = 2**32 - 1
_MAX_MESSAGE_SIZE = 1472  # bytes of a message that fits an Ethernet frame
_ATTEMPTS = 3  # after a NAK to a REQUEST for an offered address


class Transport(Protocol):
    """A packet socket on a link (``weft.kernel.linux.packet_socket``)."""

    mac: str

    def send(self, packet: bytes, mac: str) -> None:
        """Send an IP packet to a MAC address."""

    def receive(self, seconds: float) -> tuple[bytes, str] | None:
        """The next DHCP packet and its sender's MAC address, None after a timeout."""


@dataclass(frozen=True, slots=True)
class ClientOptions:
    """The client identifier, the options to send, and those to request."""

    client: bytes
    provide: tuple[tuple[int, bytes], ...]
    request: tuple[int, ...]

    def options(self) -> dict[int, bytes]:
        return {
            Option.CLIENT_ID: self.client,
            Option.MAX_MESSAGE_SIZE: _MAX_MESSAGE_SIZE.to_bytes(2, "big"),
            **dict(self.provide),
            Option.PARAMETER_LIST: bytes(self.request),
        }

    @property
    def identifier(self) -> bytes:
        """The client identifier sent: option 61 in ``provide`` overrides ``client``."""
        return dict(self.provide).get(Option.CLIENT_ID, self.client)


@dataclass(frozen=True, slots=True)
class Lease:
    """A lease: the ACK, its server, and when it was requested (seconds since boot)."""

    message: Message
    server: IPv4Address
    server_mac: str
    requested_at: float

    @property
    def duration(self) -> float | None:
        """Seconds, None if infinite."""
        seconds = self.message.number(Option.LEASE_TIME)
        return None if seconds is None or seconds == FOREVER else float(seconds)

    @property
    def timers(self) -> tuple[float, float, float] | None:
        """T1 (renew), T2 (rebind) and expiry, in seconds since boot; None if infinite."""
        if self.duration is None:
            return None
        rebinding = self._within(Option.REBINDING, self.duration * 0.875, self.duration)
        renewal = self._within(Option.RENEWAL, min(self.duration * 0.5, rebinding), rebinding)
        return self.requested_at + renewal, self.requested_at + rebinding, self.requested_at + self.duration

    def _within(self, option: Option, usual: float, most: float) -> float:
        said = self.message.number(option)
        return float(said) if said is not None and 0 < said <= most else usual


class NoAnswer(Busy):
    """No server answered in time."""


class Refused(WeftError):
    """The server sent a NAK, or an unusable message."""


def now() -> float:
    """CLOCK_BOOTTIME in seconds: leases expire during suspend too."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def acquire(
    transport: Transport, asking: ClientOptions, *, offers: Sequence[float] = OFFERS, answers: Sequence[float] = ANSWERS
) -> Lease:
    """Acquire a lease. Raises NoAnswer, Refused."""
    said = ""
    for _ in range(_ATTEMPTS):
        xid = random.getrandbits(32)
        offer, sender = _offer(transport, asking, xid, offers)
        started = now()
        options = {
            **asking.options(),
            Option.REQUESTED_ADDRESS: offer.yours.packed,
            Option.SERVER_ID: offer.options[Option.SERVER_ID],
        }
        request = Message(Kind.REQUEST, xid, transport.mac, options=options)
        answer = _answer(transport, request, answers, server=offer.addresses(Option.SERVER_ID)[0])
        if answer is None:
            raise NoAnswer(
                f"the DHCP server {offer.addresses(Option.SERVER_ID)[0]} offered {offer.yours} but sent no ACK"
            )
        message, sender = answer
        if message.kind is Kind.ACK:
            return Lease(message, message.addresses(Option.SERVER_ID)[0], sender, started)
        said = message.options.get(Option.MESSAGE, b"").decode("ascii", "replace")
    raise Refused(
        f"the DHCP server rejected the request for its own offer{f': {said}' if said.isprintable() and said else ''}"
    )


def _offer(transport: Transport, asking: ClientOptions, xid: int, pauses: Sequence[float]) -> tuple[Message, str]:
    """The first usable offer, and its sender's MAC address."""
    why = ""
    waited = 0.0
    for pause in pauses:
        discover = Message(Kind.DISCOVER, xid, transport.mac, seconds=int(waited), options=asking.options())
        transport.send(packet(encode(discover), ANY, BROADCAST), BROADCAST_MAC)
        for message, sender in _replies(transport, xid, _jitter(pause)):
            if message.kind is Kind.OFFER:
                why = problem(message)
                if not why:
                    return message, sender
        waited += pause
    if why:
        raise Refused(f"unusable offer of a DHCP server: {why}", hint="check the server's options")
    raise NoAnswer(
        f"no DHCP server answered within {waited:g} s",
        hint="check that one is on the link's network, and that UDP ports 67 and 68 are not blocked",
    )


def _answer(
    transport: Transport,
    request: Message,
    pauses: Sequence[float],
    *,
    server: IPv4Address | None,
    to: Lease | None = None,
) -> tuple[Message, str] | None:
    """The ACK or NAK to a request, and its sender's MAC address; None after a timeout.

    ``server``: accept only its replies. ``to``: unicast to its server instead of broadcasting.
    """
    for pause in pauses:
        target, mac = (to.server, to.server_mac) if to else (BROADCAST, BROADCAST_MAC)
        transport.send(packet(encode(request), request.client, target), mac)
        for message, sender in _replies(transport, request.xid, _jitter(pause)):
            if message.kind not in (Kind.ACK, Kind.NAK):
                continue
            if server is not None and message.addresses(Option.SERVER_ID)[:1] != (server,):
                continue
            if message.kind is Kind.NAK or not problem(message):
                return message, sender
    return None


def renew(
    transport: Transport, asking: ClientOptions, held: Lease, *, rebind: bool, pauses: Sequence[float] = (4.0,)
) -> Lease:
    """Renew a lease with its server, or (``rebind``) any server. Raises NoAnswer, Refused."""
    address = held.message.yours
    request = Message(
        Kind.REQUEST, random.getrandbits(32), transport.mac, client=address, broadcast=rebind, options=asking.options()
    )
    started = now()
    server = None if rebind else held.server
    answer = _answer(transport, request, pauses, server=server, to=None if rebind else held)
    if answer is None:
        raise NoAnswer(f"{'no DHCP server' if rebind else f'the DHCP server {held.server}'} answered")
    message, sender = answer
    if message.kind is Kind.NAK:
        raise Refused(f"the DHCP server rejected the renewal of {address}")
    if message.yours != address:
        raise Refused(f"the DHCP server assigned {message.yours} instead of {address}")
    return Lease(message, message.addresses(Option.SERVER_ID)[0], sender, started)


def release(transport: Transport, asking: ClientOptions, held: Lease) -> None:
    """Release a lease. Servers do not reply."""
    options: dict[int, bytes] = {Option.SERVER_ID: held.server.packed, Option.CLIENT_ID: asking.identifier}
    message = Message(
        Kind.RELEASE, random.getrandbits(32), transport.mac, client=held.message.yours, broadcast=False, options=options
    )
    transport.send(packet(encode(message), held.message.yours, held.server), held.server_mac)


def _replies(transport: Transport, xid: int, seconds: float) -> Iterator[tuple[Message, str]]:
    """Replies to this client within a time."""
    until = time.monotonic() + seconds
    while (left := until - time.monotonic()) > 0:
        received = transport.receive(left)
        if received is None:
            return
        data = payload(received[0])
        message = decode(data) if data is not None else None
        if message is not None and message.reply and (message.xid, message.mac) == (xid, transport.mac):
            yield message, received[1]


def _jitter(seconds: float) -> float:
    """Randomise a timeout by 10 %, so that clients do not synchronise."""
    return seconds * random.uniform(0.9, 1.1)
