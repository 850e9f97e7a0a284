"""The contract tests that the fake kernel passes, run against the real kernel."""

from __future__ import annotations

from unit.kernel.test_contract_forwarding import *  # noqa: F403
from unit.kernel.test_contract_links import *  # noqa: F403
from unit.kernel.test_contract_qdiscs_rules_iptables import *  # noqa: F403
from unit.kernel.test_contract_routes import *  # noqa: F403
