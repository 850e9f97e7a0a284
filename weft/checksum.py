"""The checksum of IP, ICMP, UDP and TCP headers."""

from __future__ import annotations

from struct import unpack


def internet_checksum(data: bytes) -> int:
    """RFC 1071."""
    total: int = sum(unpack(f"!{len(data) // 2}H", data[: len(data) & ~1])) + (data[-1] << 8 if len(data) & 1 else 0)
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF
