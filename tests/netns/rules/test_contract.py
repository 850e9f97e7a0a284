"""The contract tests that the fake nftables passes, run against the kernel."""

from __future__ import annotations

from unit.nft.test_contract import *  # noqa: F403
