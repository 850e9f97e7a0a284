"""The driver for Docker on the fake kernel."""

from __future__ import annotations

from pathlib import Path

import pytest

from cni_plugin.docker import networks as definitions
from cni_plugin.docker.addresses import Addresses
from cni_plugin.docker.driver import Networks
from cni_plugin.docker.state import Kept
from lab.libnetwork import Fake


@pytest.fixture
def kept(tmp_path: Path) -> Kept:
    return Kept(str(tmp_path / "kept"))


@pytest.fixture
def calls(tmp_path: Path) -> Fake:
    return Fake(tmp_path)


@pytest.fixture
def driver(kept: Kept, calls: Fake, monkeypatch: pytest.MonkeyPatch) -> Networks:
    monkeypatch.setattr(definitions.podman, "subnets_in_use", lambda **_: [])
    return Networks(kept, calls)


@pytest.fixture
def addresses(kept: Kept, driver: Networks) -> Addresses:
    return Addresses(kept)
