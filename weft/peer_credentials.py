"""Who is at the other end of a Unix socket, and whether weft serves them or trusts their answer.

One policy for all of weft's sockets, on both ends: root and the user that this process runs as.
Imports next to nothing, since a runtime's call pays for it.
"""

from __future__ import annotations

import _socket
import os
import sys


def peer_credentials(connection: _socket.socket) -> tuple[int, int, int]:
    """The pid, uid and gid of the process that connected, or that listened. Raises OSError.

    Taken by the kernel at connect(2) or listen(2), so they name that process even if it has ended.
    Source: ``unix(7)``, SO_PEERCRED.
    """
    ucred = connection.getsockopt(_socket.SOL_SOCKET, _socket.SO_PEERCRED, 12)
    pid, uid, gid = (int.from_bytes(ucred[start : start + 4], sys.byteorder) for start in (0, 4, 8))
    return pid, uid, gid


def is_trusted(connection: _socket.socket) -> bool:
    """Whether the peer is root or our own user. Raises OSError."""
    return peer_credentials(connection)[1] in (0, os.geteuid())
