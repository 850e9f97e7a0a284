"""The driver's process: its arguments."""

from __future__ import annotations

import pytest

from cni_plugin.docker import server


@pytest.mark.parametrize(
    ("arguments", "wrong"),
    [
        (["--socket=/run/a.sock", "--docker", "/run/b.sock", "--colour=red"], "--colour"),
        (["--socket=/run/a.sock", "--docker"], "--docker"),
        (["/run/a.sock"], "/run/a.sock"),
    ],
    ids=str,
)
def test_arguments(arguments: list[str], wrong: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert server.main(arguments) == 2
    assert capfd.readouterr().err.startswith(f"weft docker: invalid argument: {wrong}\n")
