"""What the running kernel can do, found by trying it in a network namespace that ends with the trial."""

from __future__ import annotations

import socket
from functools import cache

import pytest

from lab.commands import run

_WORDS = {
    "vlan": "link up0 type vlan id 5",
    "macvlan": "link up0 type macvlan mode bridge",
    "ipvlan": "link up0 type ipvlan mode l2",
    "dummy": "type dummy",
    "vrf": "type vrf table 10",
}


@cache
def problem(kind: str) -> str:
    """What the kernel says to a link of that kind, "" if it makes one."""
    making = f"ip link add new0 {_WORDS.get(kind, '')}" if kind != "tun" else "ip tuntap add new0 mode tap"
    script = f"ip link add up0 type veth peer name up1 && {making}"
    outcome = run("unshare", "--net", "sh", "-c", script, check=False)
    return "" if outcome.code == 0 else outcome.stderr.strip().splitlines()[-1]


def require(kind: str) -> None:
    """Skip the test where this kernel has no such links; "" is always there."""
    if kind and (sentence := problem(kind)):
        pytest.skip(f"this kernel makes no {kind} links ({sentence}); the one of bin/vm does")


def require_sctp() -> None:
    """Skip the test where this kernel has no SCTP."""
    try:
        socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_SCTP).close()
    except OSError as error:
        pytest.skip(f"this kernel has no SCTP ({error.strerror}); the one of bin/vm does")
