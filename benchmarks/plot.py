"""The plot of docs/performance.md: what an ADD and a DEL cost beside so many attachments, as SVG.

``python3 benchmarks/plot.py RESULTS.json >docs/performance.svg``, with the JSON of ``benchmarks/run --long --json``.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

WIDTH, HEIGHT, LEFT, BOTTOM, TOP = 640, 320, 60, 50, 30
COLOURS = {"ADD": "#2060a0", "DEL": "#c06020"}


def svg(rows: list[dict[str, Any]]) -> str:
    """Two lines over the number of attachments; milliseconds from zero."""
    most = max(row["attachments"] for row in rows) or 1
    highest = max(max(row["ADD"], row["DEL"]) for row in rows) * 1.25

    def place(count: float, value: float) -> str:
        x = LEFT + (WIDTH - LEFT - 20) * count / most
        y = HEIGHT - BOTTOM - (HEIGHT - BOTTOM - TOP) * value / highest
        return f"{x:.1f},{y:.1f}"

    size = f'width="{WIDTH}" height="{HEIGHT}"'
    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="sans-serif" font-size="12">']
    parts.append('<rect width="100%" height="100%" fill="white"/>')
    for step in range(5):
        value = highest * step / 4
        x, y = place(0, value).split(",")
        parts.append(f'<line x1="{x}" y1="{y}" x2="{WIDTH - 20}" y2="{y}" stroke="#ddd"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y}" text-anchor="end" dominant-baseline="middle">{value:.1f}</text>')
    for row in rows:
        x = place(row["attachments"], 0).split(",")[0]
        parts.append(f'<text x="{x}" y="{HEIGHT - BOTTOM + 16}" text-anchor="middle">{row["attachments"]}</text>')
    for command, colour in COLOURS.items():
        points = [place(row["attachments"], row[command]) for row in rows]
        parts.append(f'<polyline points="{" ".join(points)}" fill="none" stroke="{colour}" stroke-width="2"/>')
        for point in points:
            x, y = point.split(",")
            parts.append(f'<circle cx="{x}" cy="{y}" r="3" fill="{colour}"/>')
        x, y = points[-1].split(",")
        parts.append(f'<text x="{x}" y="{float(y) - 8:.1f}" text-anchor="end" fill="{colour}">{command}</text>')
    parts.append(f'<text x="{LEFT}" y="18">ms for one call, median</text>')
    parts.append(f'<text x="{WIDTH / 2}" y="{HEIGHT - 12}" text-anchor="middle">attachments already there</text></svg>')
    return "\n".join(parts) + "\n"


if __name__ == "__main__":
    results = json.loads(Path(sys.argv[1]).read_text())
    sys.stdout.write(svg([row for row in results["rows"] if row["case"] == "growth"]))
