"""Keys of WireGuard: their arithmetic by the RFC's vectors, and their files."""

from __future__ import annotations

import base64
import os
from pathlib import Path

import pytest

from weft import wireguard
from weft.errors import Busy, StateDamaged


def _text(hexadecimal: str) -> str:
    return base64.b64encode(bytes.fromhex(hexadecimal)).decode()


def test_a_public_key_is_that_of_the_rfc() -> None:
    """RFC 7748, section 6.1: Bob's."""
    private = "5dab087e624a8a4b79e17f8b83800ee66f3bb1292618b6fd1c2f8b27ff88e0eb"
    public = "de9edb7d7b7dc1b4d35b61c2ece435373f8343c85b78674dadfc7e146f882b4f"
    assert wireguard.public_key(_text(private)) == _text(public)


def test_a_key_is_made_once_and_only_root_may_read_it(tmp_path: Path) -> None:
    path = str(tmp_path / "blue.json")
    first = wireguard.make_key(path, 1)
    assert wireguard.is_key(first) and wireguard.make_key(path, 1) == first != wireguard.make_key(path, 2)
    file = tmp_path / "blue.1.key"
    assert file.stat().st_mode & 0o777 == 0o600
    assert first not in file.read_text()
    file.chmod(0o644)
    with pytest.raises(StateDamaged, match="chmod 600"):
        wireguard.read_key(path, 1)
    file.chmod(0o600)
    file.write_text("short\n")
    with pytest.raises(StateDamaged, match="no WireGuard key"):
        wireguard.read_key(path, 1)
    os.unlink(file)
    with pytest.raises(Busy, match=r"blue\.1\.key is missing"):
        wireguard.read_key(path, 1)
