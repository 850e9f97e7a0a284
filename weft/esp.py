"""ESP of encrypted overlay networks: what two hosts make of their keys, and for which hosts a key was used.

Both hosts derive the same from their own private key and the other's public one: for each direction an
SPI and a key of AES-256-GCM. Nothing is sent for it, and only the two can. A key of AES-GCM must never be used
twice, since its counter starts anew with each state, and a receiver would take recorded packets again. So a
pair of keys serves one installation alone: the file of the private key lists the hosts for which there were
states, and where one is gone (after a restart of the host, or deleted by hand) another key is made.
Sources: RFC 7748 (X25519), RFC 5869 (HKDF), RFC 4106 (AES-GCM in ESP).
"""

from __future__ import annotations

import base64
from dataclasses import dataclass

from weft import files, wireguard
from weft.errors import Busy, StateDamaged

REQIDS = 0x77 << 24
"""The states and policies of a network have this and its VNI as reqid, by which weft knows them."""
NO_STATE = 1
"""An SPI that no state has (RFC 4303, section 2.1): a policy with it lets nothing pass."""
_LEAST_SPI = 1 << 31
_SPI_BYTES, _KEY_BYTES = 4, 36
_LABEL = b"weft overlay esp v1"


@dataclass(frozen=True, slots=True)
class Derived:
    """The SPI and the key of one direction."""

    spi: int
    key: bytes


def derive(private: str, own: str, peer: str, vni: int, generation: int) -> tuple[Derived, Derived]:
    """What this host sends with to a peer, and what it receives with; keys in base64.

    Raises ValueError where the peer's key is a point of low order, with which everybody could derive the
    same; Busy where ``private`` is not of the public key ``own``.
    """
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
    from cryptography.hazmat.primitives.hashes import SHA256
    from cryptography.hazmat.primitives.kdf.hkdf import HKDF

    key = X25519PrivateKey.from_private_bytes(base64.b64decode(private))
    here, there = base64.b64decode(own), base64.b64decode(peer)
    if key.public_key().public_bytes_raw() != here:
        raise Busy("the network's file has another public key than this host's", hint="the agent writes it anew")
    secret = key.exchange(X25519PublicKey.from_public_bytes(there))
    about = vni.to_bytes(4, "big") + generation.to_bytes(4, "big")

    def one_way(sender: bytes, receiver: bytes) -> Derived:
        info = _LABEL + about + sender + receiver
        found = HKDF(SHA256(), _SPI_BYTES + _KEY_BYTES, None, info).derive(secret)
        return Derived(int.from_bytes(found[:_SPI_BYTES], "big") | _LEAST_SPI, found[_SPI_BYTES:])

    return one_way(here, there), one_way(there, here)


def used(path: str, generation: int) -> dict[str, tuple[int, int]]:
    """The peers' keys for which there were states with the private key of a generation, and their SPIs: of
    what this host sends with, and receives with. Raises Busy without a private key, StateDamaged.
    """
    name = wireguard.key_path(path, generation)
    wireguard.read_key(path, generation)
    found: dict[str, tuple[int, int]] = {}
    try:
        for line in files.read(name).decode("ascii").splitlines()[1:]:
            peer, sends, receives = line.split()
            found[peer] = int(sends), int(receives)
    except (OSError, ValueError) as error:
        raise StateDamaged(f"cannot read {name}: {error}", hint=f"rm {name}; the agent makes another key") from error
    return found


def note_use(path: str, generation: int, spis: dict[str, tuple[int, int]]) -> None:
    """Write down for which peers there are states; before they are added. Raises StateDamaged."""
    lines = [wireguard.read_key(path, generation), *(f"{peer} {out} {back}" for peer, (out, back) in spis.items())]
    content = "\n".join(lines).encode() + b"\n"
    files.write(wireguard.key_path(path, generation), content, "private keys of encrypted networks", durable=True)


def discard(path: str, generation: int) -> None:
    """Remove a private key that must not be used again; the agent makes another one. Raises StateDamaged."""
    files.remove(wireguard.key_path(path, generation), "a private key that was used")
