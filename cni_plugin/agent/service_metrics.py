"""A metric of the services that the catalog has: their instances, by status."""

from __future__ import annotations

import asyncio
from collections import Counter

from discovery.catalog import Catalog
from discovery.metrics import Metrics

_AT_ONCE = 100  # services without a pause


def export(metrics: Metrics, catalog: Catalog) -> None:
    """Have the metric read whenever metrics are asked for; services beyond the first 300 are added up as "other"."""
    gauge = metrics.gauge("weft_service_instances", "Instances of a service.", "service", "status")

    async def read() -> None:
        gauge.replace(await instances(catalog))

    metrics.read_before(read)


async def instances(catalog: Catalog, most: int = 300) -> dict[tuple[str, ...], float]:
    """Instances by service and the worst status of their checks. Other tasks of the loop run in between."""
    found: Counter[tuple[str, ...]] = Counter()
    for number, name in enumerate(sorted(catalog.names())):
        for one in catalog.health(name):
            found[name if number < most else "other", one.status.value] += 1
        if not number % _AT_ONCE:
            await asyncio.sleep(0)
    return dict(found)
