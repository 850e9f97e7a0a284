"""Counters, gauges and histograms, and the exposition format of Prometheus."""

from __future__ import annotations

import asyncio

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
    there = Metrics().gauge("weft_there", "What is there.", "name")
    there.replace({(str(number),): 2.0 for number in range(10)})
    assert there.values == {("0",): 2, ("1",): 2, ("2",): 2, ("other",): 14}


def test_metrics_are_read_for_one_caller_at_a_time() -> None:
    found, running = Metrics(), 0

    async def read() -> None:
        nonlocal running
        running += 1
        assert running == 1
        await asyncio.sleep(0)
        running -= 1

    async def main() -> None:
        await asyncio.gather(*(found.refresh() for _ in range(3)))

    found.read_before(read)
    asyncio.run(main())
