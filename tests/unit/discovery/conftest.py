"""A real agent for the tests of the API, one for each test module."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from discovery.api.settings import HttpSettings
from discovery.structs import Node
from lab.agent import LabAgent


@pytest.fixture(scope="module")
def agent(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LabAgent]:
    """An agent with its own store and API on a loopback port."""
    settings = HttpSettings(listen=("127.0.0.1:0",), session_ttl_min=0.2)
    node = Node("n1", "127.0.0.1", id="8f2d6c5e-0000-4000-8000-000000000001", meta={"rack": "a"})
    found = LabAgent(tmp_path_factory.mktemp("agent"), node, settings)
    yield found
    found.stop()
