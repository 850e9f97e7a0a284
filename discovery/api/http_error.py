"""What a request is answered with instead of what it asked for: a status and one sentence of text."""

from __future__ import annotations

from collections.abc import Mapping


class HttpError(Exception):
    """An answer that is an error. ``close`` ends the connection after it, its body unread."""

    def __init__(
        self, status: int, text: str, *, headers: Mapping[str, str] | None = None, close: bool = False
    ) -> None:
        super().__init__(text)
        self.status = status
        self.text = text
        self.headers = dict(headers or {})
        self.close = close
