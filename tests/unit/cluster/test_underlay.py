"""The files of this host's overlay networks."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest

from cni_plugin.agent import overlay_host
from cni_plugin.agent.overlay_host import OverlayHost
from cni_plugin.networks.clustered import Folders


def test_a_network_that_is_removed_takes_no_other_ones_keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The networks blue.1 and blue.x have files whose names begin as those of blue."""
    host = OverlayHost("h1", "", str(tmp_path))
    host.folders = Folders(str(tmp_path / "cni"), str(tmp_path / "podman"), str(tmp_path))
    service = SimpleNamespace(records=SimpleNamespace(all=list))
    monkeypatch.setattr(OverlayHost, "_service", lambda self: nullcontext(service))
    monkeypatch.setattr(overlay_host, "remove_network", lambda *arguments: None)
    for name in ("blue.1.key", "blue.12.key", "blue.1.2.key", "blue.x.1.key"):
        (tmp_path / name).write_text("")
    assert host.leave("blue") == ""
    assert sorted(one.name for one in tmp_path.glob("*.key")) == ["blue.1.2.key", "blue.x.1.key"]
