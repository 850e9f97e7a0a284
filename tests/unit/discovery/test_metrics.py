"""Counters, gauges and histograms, and the exposition format of Prometheus."""

from __future__ import annotations

import pytest

from discovery import metrics
from discovery.metrics import Metrics


def test_exposition_format() -> None:
    found = Metrics()
    found.counter("weft_asked_total", "Questions.", "type").add(2, 'a"b\\c\nd')
    found.gauge("weft_parked", "Waiting.", read=lambda: 3)
    seconds = found.histogram("weft_seconds", "Times.", bounds=(0.1, 1.0))
    for number in (0.05, 0.1, 0.5, 7.0):
        seconds.observe(number)
    assert found.text().splitlines() == [
        "# HELP weft_asked_total Questions.",
        "# TYPE weft_asked_total counter",
        'weft_asked_total{type="a\\"b\\\\c\\nd"} 2',
        "# HELP weft_parked Waiting.",
        "# TYPE weft_parked gauge",
        "weft_parked 3",
        "# HELP weft_seconds Times.",
        "# TYPE weft_seconds histogram",
        'weft_seconds_bucket{le="0.1"} 2',
        'weft_seconds_bucket{le="1"} 3',
        'weft_seconds_bucket{le="+Inf"} 4',
        "weft_seconds_sum 7.65",
        "weft_seconds_count 4",
    ]


def test_one_name_is_one_metric() -> None:
    found = Metrics()
    found.counter("weft_asked_total", "Questions.").add()
    found.counter("weft_asked_total", "Questions.").add()
    assert [number for *_, number in found.samples()] == [2]
    with pytest.raises(ValueError, match="weft_asked_total is a counter"):
        found.gauge("weft_asked_total", "Questions.")


def test_the_number_of_series_is_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "SERIES", 3)
    asked = Metrics().counter("weft_asked_total", "Questions.", "name")
    for number in range(10):
        asked.add(1, str(number))
    assert asked.values == {("0",): 1, ("1",): 1, ("2",): 1, ("other",): 7}
