"""The contract's subjects in this tier: the kernel, through the library and through the program."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from cni_plugin.kernel.nft import Nft
from cni_plugin.kernel.nft_library import Library, Program
from lab.host import Host


@pytest.fixture(params=[Library, Program], ids=["library", "program"])
def rules(host: Host, request: pytest.FixtureRequest) -> Iterator[Nft]:
    made = Nft(request.param)
    yield made
    made.close()
