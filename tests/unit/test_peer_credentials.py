"""SO_PEERCRED on both ends of a Unix socket, and the one policy of which users are trusted."""

from __future__ import annotations

import os
import socket

import pytest

from weft import peer_credentials as peers


def test_both_ends_see_the_kernel_s_credentials() -> None:
    one, other = socket.socketpair(socket.AF_UNIX)
    with one, other:
        ours = (os.getpid(), os.geteuid(), os.getegid())
        assert peers.peer_credentials(one) == peers.peer_credentials(other) == ours
        assert peers.is_trusted(one)


@pytest.mark.parametrize(("uid", "trusted"), [(0, True), (1000, True), (1001, False)])
def test_root_and_our_own_user_are_trusted(uid: int, trusted: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "peer_credentials", lambda _: (1, uid, 0))
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    one, other = socket.socketpair(socket.AF_UNIX)
    with one, other:
        assert peers.is_trusted(one) is trusted


def test_a_closed_socket_raises() -> None:
    one, other = socket.socketpair(socket.AF_UNIX)
    one.close(), other.close()
    with pytest.raises(OSError, match="descriptor"):
        peers.peer_credentials(one)
