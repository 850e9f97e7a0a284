"""Debian's promtool on the rules and the configuration of conf/prometheus; tests/netns/test_metrics.py has a
Prometheus read the metrics.
"""

from __future__ import annotations

from lab.commands import run
from lab.plugins import ROOT
from lab.unpacked import unpack

CONF = ROOT / "conf/prometheus"


def test_rules_and_configuration_are_valid() -> None:
    tool = str(unpack("prometheus") / "usr/bin/promtool")
    assert "10 rules found" in run(tool, "check", "rules", str(CONF / "weft.rules.yml")).stdout
    run(tool, "check", "config", str(CONF / "prometheus.yml"))
