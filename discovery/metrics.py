"""Metrics of the agent: counters, gauges and histograms in the Prometheus text format.

The agent makes one ``Metrics`` and passes it to its parts, which look up each metric once and keep
it. Not thread-safe: everything runs in the agent's event loop.

Source: Prometheus text exposition format, version 0.0.4.
"""

from __future__ import annotations

import asyncio
import bisect
import math
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence

SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
"""Default histogram buckets, in seconds."""
SERIES = 1000
"""Label combinations per metric; further ones are counted as "other", to bound the memory."""

Labels = tuple[str, ...]


class Counter:
    """A monotonic counter per combination of label values."""

    kind = "counter"

    def __init__(self, name: str, help_text: str, labels: Labels, read: Callable[[], float] | None = None) -> None:
        self.name, self.help_text, self.labels = name, help_text, labels
        self.values: dict[Labels, float] = {} if labels else {(): 0.0}
        self._read = read

    def add(self, amount: float = 1, *labels: str) -> None:
        """Increment; as many label values as the metric has labels."""
        key = _bounded(self.values, labels)
        self.values[key] = self.values.get(key, 0.0) + amount

    def replace(self, values: Mapping[Labels, float]) -> None:
        """All values, where somebody else counts."""
        self.values = {}
        for labels, number in values.items():
            self.add(number, *labels)

    def samples(self) -> Iterator[tuple[str, Sequence[str], Labels, float]]:
        """Its series: name suffix, label names, label values, value."""
        if self._read is not None:
            self.values[()] = self._read()
        for values, number in self.values.items():
            yield "", self.labels, values, number


class Gauge:
    """A value that can go up and down: set, or read by a function."""

    kind = "gauge"

    def __init__(self, name: str, help_text: str, labels: Labels, read: Callable[[], float] | None = None) -> None:
        self.name, self.help_text, self.labels = name, help_text, labels
        self.values: dict[Labels, float] = {} if labels else {(): 0.0}
        self._read = read

    def set(self, number: float, *labels: str) -> None:
        """Set the value."""
        self.values[_bounded(self.values, labels)] = number

    def replace(self, values: Mapping[Labels, float]) -> None:
        """All values, where somebody else keeps them. Series beyond the bound are added up."""
        self.values = {}
        for labels, number in values.items():
            key = _bounded(self.values, labels)
            self.values[key] = self.values.get(key, 0.0) + number

    def samples(self) -> Iterator[tuple[str, Sequence[str], Labels, float]]:
        """Its series, like a counter's."""
        if self._read is not None:
            self.values[()] = self._read()
        for values, number in self.values.items():
            yield "", self.labels, values, number


class Histogram:
    """How many measurements were at most so large, for each of its bounds, and their sum."""

    kind = "histogram"

    def __init__(self, name: str, help_text: str, labels: Labels, bounds: Sequence[float]) -> None:
        self.name, self.help_text, self.labels = name, help_text, labels
        self._bounds = tuple(bounds)
        self.values: dict[Labels, list[float]] = {}

    def observe(self, number: float, *labels: str) -> None:
        """One measurement."""
        key = _bounded(self.values, labels)
        found = self.values.get(key)
        if found is None:
            found = self.values[key] = [0.0] * (len(self._bounds) + 2)
        found[bisect.bisect_left(self._bounds, number)] += 1
        found[-1] += number

    def samples(self) -> Iterator[tuple[str, Sequence[str], Labels, float]]:
        """Its series, like a counter's."""
        names = (*self.labels, "le")
        for values, (*counts, total) in self.values.items():
            seen = 0.0
            for bound, count in zip((*self._bounds, math.inf), counts, strict=True):
                seen += count
                yield "_bucket", names, (*values, _number(bound)), seen
            yield "_sum", self.labels, values, total
            yield "_count", self.labels, values, seen

    def totals(self) -> Iterator[tuple[Labels, int, float]]:
        """Label values, number of measurements and their sum."""
        for values, (*counts, total) in self.values.items():
            yield values, round(sum(counts)), total


class Metrics:
    """All metrics of an agent, by name. Asking for one twice gives the same."""

    def __init__(self) -> None:
        self._metrics: dict[str, Counter | Gauge | Histogram] = {}
        self._before: list[Callable[[], Awaitable[None]]] = []
        self._refreshing = asyncio.Lock()

    def read_before(self, read: Callable[[], Awaitable[None]]) -> None:
        """Have ``read`` awaited by ``refresh``, for values that take some time to read."""
        self._before.append(read)

    async def refresh(self) -> None:
        """Read the values of ``read_before``: before ``text`` and ``samples``. One caller at a time: what has been
        counted since the last reading is counted once.
        """
        async with self._refreshing:
            for read in self._before:
                await read()

    def counter(self, name: str, help_text: str, *labels: str, read: Callable[[], float] | None = None) -> Counter:
        """A counter, made when it is first asked for: ``counter("weft_dns_queries_total",
        "Questions.", "type")``.

        ``read``, if given, returns the value when metrics are collected; there are no labels then.
        """
        if read is not None:
            self._metrics.pop(name, None)
        found = self._metrics.setdefault(name, Counter(name, help_text, labels, read))
        if not isinstance(found, Counter):
            raise ValueError(f"metric {name} is a {found.kind}")
        return found

    def gauge(self, name: str, help_text: str, *labels: str, read: Callable[[], float] | None = None) -> Gauge:
        """A gauge; ``read`` as for a counter."""
        if read is not None:
            self._metrics.pop(name, None)
        found = self._metrics.setdefault(name, Gauge(name, help_text, labels, read))
        if not isinstance(found, Gauge):
            raise ValueError(f"metric {name} is a {found.kind}")
        return found

    def histogram(self, name: str, help_text: str, *labels: str, bounds: Sequence[float] = SECONDS) -> Histogram:
        """A histogram with these upper bounds."""
        found = self._metrics.setdefault(name, Histogram(name, help_text, labels, bounds))
        if not isinstance(found, Histogram):
            raise ValueError(f"metric {name} is a {found.kind}")
        return found

    def text(self) -> str:
        """All of it, as Prometheus reads it."""
        lines = []
        for name in sorted(self._metrics):
            metric = self._metrics[name]
            lines += [f"# HELP {name} {metric.help_text}", f"# TYPE {name} {metric.kind}"]
            for ending, labels, values, number in metric.samples():
                lines.append(f"{name}{ending}{_braces(labels, values)} {_number(number)}")
        return "\n".join(lines) + "\n"

    def samples(self) -> Iterator[tuple[str, str, dict[str, str], float]]:
        """Every series: the kind of its metric, its name, its labels and its number."""
        for name in sorted(self._metrics):
            metric = self._metrics[name]
            for ending, labels, values, number in metric.samples():
                yield metric.kind, name + ending, dict(zip(labels, values, strict=True)), number

    def totals(self) -> Iterator[tuple[str, dict[str, str], int, float]]:
        """Every series of the histograms: name, labels, number of measurements and their sum."""
        for name, metric in sorted(self._metrics.items()):
            if isinstance(metric, Histogram):
                for values, count, total in metric.totals():
                    yield name, dict(zip(metric.labels, values, strict=True)), count, total


def _bounded(known: dict[Labels, float] | dict[Labels, list[float]], labels: Labels) -> Labels:
    return labels if labels in known or len(known) < SERIES else ("other",) * len(labels)


def _braces(labels: Sequence[str], values: Labels) -> str:
    if not labels:
        return ""
    pairs = (f'{name}="{_escaped(value)}"' for name, value in zip(labels, values, strict=True))
    return "{" + ",".join(pairs) + "}"


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def _number(number: float) -> str:
    if not math.isfinite(number):
        return "NaN" if math.isnan(number) else "+Inf" if number > 0 else "-Inf"
    return str(int(number)) if number == int(number) else repr(number)
