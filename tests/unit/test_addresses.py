"""Addresses from text are those of ``ipaddress``, and what it refuses is refused."""

from __future__ import annotations

from collections.abc import Callable
from ipaddress import ip_address, ip_interface, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from weft import addresses

PAIRS = [(addresses.address, ip_address), (addresses.interface, ip_interface), (addresses.network, ip_network)]
ODD = (
    "", "/", "10.0.0.1/", "10.0.0.1/33", "10.0.0.1/24", "10.0.0.0/24", "010.0.0.1", "10.0.0.1/255.255.255.0", "1.2.3",
    "fe80::1%eth0", "fe80::1%eth0/64", "::ffff:1.2.3.4", "::/0", "1.2.3.4/\u0663", "::1/129", "fd00::/48", "fd00::1/48",
    "10.0.0.0/ 24", "10.0.0.0/+24", "10.0.0.0/0024", "\u00e9", "a\0b", "1.2.3.4\0", "1.2.3.4/24/24", "2_4::",
    "1.2.3.4/2_4",
)  # fmt: skip
PREFIXES = st.one_of(st.just(""), st.integers(0, 140).map("/{}".format))
ADDRESSES = st.one_of(st.ip_addresses().map(str), st.text("0123456789abcdef.:/%", max_size=20))


@pytest.mark.parametrize(("ours", "theirs"), PAIRS)
@pytest.mark.parametrize("text", ODD)
def test_odd_text(ours: Callable[[str], object], theirs: Callable[[str], object], text: str) -> None:
    assert outcome(ours, text) == outcome(theirs, text)


@given(ADDRESSES, PREFIXES)
def test_any_text(address: str, prefix: str) -> None:
    for ours, theirs in PAIRS:
        assert outcome(ours, address + prefix) == outcome(theirs, address + prefix)


def outcome(parse: Callable[[str], object], text: str) -> object:
    """The value with its text and hash, or the name of the error."""
    try:
        found = parse(text)
    except ValueError:
        return "ValueError"
    return found, str(found), hash(found)
