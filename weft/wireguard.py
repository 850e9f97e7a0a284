"""WireGuard of encrypted overlay networks: keys, and the addresses of the links that use them.

Keys are made on this host, and only the public half leaves it. A network's private keys are in files
beside its own, one for each generation, of mode 0600. Each host has a link for each generation, and
the links of one generation are a mesh of their own; so a key is replaced without loss by making
the next generation, announcing it, and then sending with it. Sources: RFC 7748 (X25519), ``wg(8)``.
"""

from __future__ import annotations

import base64
import binascii
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from ipaddress import IPv6Address, IPv6Network

from weft import files
from weft.errors import Busy, StateDamaged
from weft.identity import link_local

TUNNELS = IPv6Network("fd77:6600::/32")
"""The addresses of encrypted networks' VXLAN links, which nothing else has: the VNI, and the MAC address
of the VXLAN link."""
MOST_KEYS = 2
"""Generations that there may be at once: the one in use, and the next or the last."""
LAST_GENERATION = 2**31 - 1

_BYTES, _FIRST_PORT, _PORTS = 32, 20480, 8192
_PRIME, _A24 = 2**255 - 19, 121665
_BASE_POINT = 9


@dataclass(frozen=True, slots=True)
class TunnelKey:
    """A host's public key (base64) of one generation (1 or more), and the UDP port that it listens on."""

    generation: int
    key: str
    port: int


def default_port(vni: int, generation: int) -> int:
    """The UDP port of a generation where none is given: below those that Linux gives to clients."""
    return _FIRST_PORT + (MOST_KEYS * vni + generation % MOST_KEYS) % _PORTS


def ports_from(vni: int) -> Iterator[int]:
    """All ports of that range, from the one on that VNIs have most evenly."""
    return (_FIRST_PORT + (MOST_KEYS * vni + number) % _PORTS for number in range(_PORTS))


def address(vni: int, mac: str) -> IPv6Address:
    """The address of a VXLAN link within the encrypted network of that VNI."""
    return IPv6Address(int(TUNNELS.network_address) | vni << 64 | int(link_local(mac)) & (1 << 64) - 1)


def subnet(vni: int) -> IPv6Network:
    """The addresses of all VXLAN links of an encrypted network."""
    return IPv6Network((int(TUNNELS.network_address) | vni << 64, 64))


def parse_keys(items: Iterable[object], vni: int) -> tuple[TunnelKey, ...]:
    """The objects of a file's ``keys``: ``generation``, ``key`` and, optionally, ``port``. Raises ValueError."""
    found: list[TunnelKey] = []
    for item in items:
        if not isinstance(item, dict):
            raise ValueError("keys must be objects")
        generation, key = item.get("generation"), item.get("key")
        if type(generation) is not int or not 0 < generation <= LAST_GENERATION:
            raise ValueError(f"has a key with the generation {generation!r}, which is not a number from 1 on")
        port = item.get("port", default_port(vni, generation))
        if not isinstance(key, str) or not is_key(key):
            raise ValueError("has a key that is not 32 bytes in base64")
        if type(port) is not int or not 0 < port < 2**16:
            raise ValueError(f"has a key with the port {port!r}, which is not from 1 to 65535")
        found.append(TunnelKey(generation, key, port))
    if len(found) > MOST_KEYS or len({one.generation % MOST_KEYS for one in found}) < len(found):
        raise ValueError(f"has more than {MOST_KEYS} keys, or two whose generations do not follow each other")
    return tuple(found)


def sending(own: Iterable[TunnelKey], generation: int, peer: Iterable[TunnelKey]) -> TunnelKey | None:
    """The peer's key to which this host sends: of ``generation`` if it has that, else of the last that
    both have; None where they have none in common.
    """
    there = {one.generation: one for one in peer}
    both = sorted(one.generation for one in own if one.generation in there)
    if generation in both:
        return there[generation]
    return there[both[-1]] if both else None


def key_path(path: str, generation: int) -> str:
    """The file of a private key: beside the network's file ``path``."""
    return f"{path.removesuffix('.json')}.{generation}.key"


def make_key(path: str, generation: int) -> str:
    """The public key of a generation, in base64; its private key is made where there is no file yet.

    Raises StateDamaged where the file cannot be written or read.
    """
    name = key_path(path, generation)
    if not os.path.lexists(name):
        key = base64.b64encode(clamped(os.urandom(_BYTES)))
        files.write(name, key + b"\n", "private keys of encrypted networks", durable=True)
    return public_key(read_key(path, generation))


def read_key(path: str, generation: int) -> str:
    """The private key of a generation, in base64. Raises Busy without one, StateDamaged."""
    name = key_path(path, generation)
    try:
        text = files.read(name).decode("ascii").partition("\n")[0]  # weft.esp has more lines
        mode = os.stat(name).st_mode & 0o077
    except FileNotFoundError:
        raise Busy(f"{name} is missing, the private key", hint="the agent of the cluster makes another one") from None
    except (OSError, UnicodeDecodeError) as error:
        raise StateDamaged(f"cannot read {name}: {error}") from error
    if mode:
        raise StateDamaged(f"{name} may be read by other users than root", hint=f"chmod 600 {name}")
    if not is_key(text):
        raise StateDamaged(f"{name} has no WireGuard key")
    return text


def is_key(text: str) -> bool:
    """Whether the text is 32 bytes in base64."""
    try:
        return len(text) == 44 and len(base64.b64decode(text, validate=True)) == _BYTES
    except (binascii.Error, ValueError):
        return False


def clamped(secret: bytes) -> bytes:
    """32 random bytes as a private key (RFC 7748, section 5)."""
    return bytes([secret[0] & 248, *secret[1:31], secret[31] & 127 | 64])


def public_key(private: str) -> str:
    """The public key of a private one, both in base64. *Equivalent to:* ``wg pubkey``.

    The time that it takes depends on the key: nothing that an attacker chooses goes in.
    """
    scalar = int.from_bytes(clamped(base64.b64decode(private)), "little")
    return base64.b64encode(_multiplied(scalar).to_bytes(_BYTES, "little")).decode()


def _multiplied(scalar: int) -> int:
    """The x-coordinate of ``scalar`` times the base point: the ladder of RFC 7748."""
    x1, x2, z2, x3, z3, swap = _BASE_POINT, 1, 0, _BASE_POINT, 1, 0
    for place in range(254, -1, -1):
        bit = scalar >> place & 1
        if swap != bit:
            x2, x3, z2, z3 = x3, x2, z3, z2
        swap = bit
        plus, minus = x2 + z2, x2 - z2
        square, other = plus * plus % _PRIME, minus * minus % _PRIME
        difference = square - other
        cross, down = (x3 - z3) * plus, (x3 + z3) * minus
        x3, z3 = (cross + down) ** 2 % _PRIME, x1 * (cross - down) ** 2 % _PRIME
        x2, z2 = square * other % _PRIME, difference * (square + _A24 * difference) % _PRIME
    if swap:
        x2, z2 = x3, z3
    return x2 * pow(z2, _PRIME - 2, _PRIME) % _PRIME
