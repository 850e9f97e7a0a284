"""The contract tests of Nft run against the kernel, through libnftables and the nft program."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from cni_plugin.dataplane.tables import TABLES
from lab.host import Host
from weft.kernel.nft.library import Library, Program
from weft.kernel.nft.ruleset import Nft


@pytest.fixture(params=[Library, Program], ids=["library", "program"])
def rules(host: Host, request: pytest.FixtureRequest) -> Iterator[Nft]:
    made = Nft(TABLES, request.param)
    yield made
    made.close()
