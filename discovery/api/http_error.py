"""Error responses."""

from __future__ import annotations

from collections.abc import Mapping


class HttpError(Exception):
    """An error response: status and text. ``close`` closes the connection, its body unread."""

    def __init__(
        self, status: int, text: str, *, headers: Mapping[str, str] | None = None, close: bool = False
    ) -> None:
        super().__init__(text)
        self.status = status
        self.text = text
        self.headers = dict(headers or {})
        self.close = close
