"""What holds for the fake holds for the kernel."""

from __future__ import annotations

from unit.rules.test_contract import *  # noqa: F403
