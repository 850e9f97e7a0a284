"""The web page of an agent: what there is, as a drawing and as lists, while it changes."""

from __future__ import annotations

from discovery.page.overview import Attachment, Overview
from discovery.page.pages import routes

__all__ = ["Attachment", "Overview", "routes"]
