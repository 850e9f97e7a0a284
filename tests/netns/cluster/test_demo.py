"""``bin/demo --hosts 3``: every step of it asserts what it shows."""

from __future__ import annotations

import pytest

from lab import demo_hosts


@pytest.mark.long
def test_the_demonstration_of_three_hosts(isolation: None, capsys: pytest.CaptureFixture[str]) -> None:
    demo_hosts.main()
    assert "web on n3" in capsys.readouterr().out
