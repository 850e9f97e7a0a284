"""Reading standard input: at most ``LIMIT`` bytes, and never from a terminal."""

from __future__ import annotations

import os
import select

from weft.errors import IO_FAILURE, DecodeProblem, WeftError

LIMIT = 1 << 20
"""The largest configuration that is read, in bytes; the largest seen in use is a hundredth of it."""

HINT = "standard input must be one JSON object, the network configuration"


def read(descriptor: int, *, patience: float | None = None) -> bytes:
    """All of standard input, up to the end of file.

    ``patience`` is how many seconds to wait for each piece; when it passes, what came is the answer.
    None: for ever. Raises WeftError 5 when it cannot be read or is a terminal, DecodeProblem past
    ``LIMIT``, having read no further.
    """
    if os.isatty(descriptor):
        raise WeftError("standard input is a terminal", hint=HINT, code=IO_FAILURE)
    waiting = select.poll()
    waiting.register(descriptor, select.POLLIN)
    pieces: list[bytes] = []
    left = LIMIT + 1
    while left:
        if not waiting.poll(None if patience is None else patience * 1000):
            break
        try:
            piece = os.read(descriptor, min(left, 1 << 16))
        except BlockingIOError:
            continue
        except OSError as error:
            raise WeftError(f"cannot read standard input: {error.strerror}", hint=HINT, code=IO_FAILURE) from error
        if not piece:
            break
        pieces.append(piece)
        left -= len(piece)
    data = b"".join(pieces)
    check_length(data)
    return data


def check_length(data: bytes) -> None:
    if len(data) > LIMIT:
        raise DecodeProblem(
            f"standard input is longer than {LIMIT} bytes, which is the most weft reads",
            hint="make the network configuration smaller",
        )
