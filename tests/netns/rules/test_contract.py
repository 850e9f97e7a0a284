"""What holds for the fake holds for the kernel."""

from __future__ import annotations

from unit.nft.test_contract import *  # noqa: F403
