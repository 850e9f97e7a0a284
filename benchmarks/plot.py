"""The plot of docs/performance.md: CPU time of ADD and DEL by number of existing attachments, as SVG.

``python3 benchmarks/plot.py RESULTS.json >docs/performance.svg``, with the JSON of ``benchmarks/run
--long --json``. The scale is logarithmic because the two sides differ widely.
"""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 720, 380, 64, 150, 40, 56
SERIES = (
    ("reference", "DEL", "#c07820", "6 4"),
    ("reference", "ADD", "#c03020", ""),
    ("weft", "ADD", "#1858a0", ""),
    ("weft", "DEL", "#38a0c0", "6 4"),
)
STEPS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)


def svg(rows: list[dict[str, Any]]) -> str:
    """Milliseconds over the number of attachments, one line for each contender and command."""
    values = [row[command]["processor ms"].get(whose) for row in rows for whose, command, *_ in SERIES]
    there = [value for value in values if value is not None]
    low = max(step for step in STEPS if step <= max(1, min(there)))
    high = min(step for step in STEPS if step >= max(there) or step == STEPS[-1])
    most = max(row["attachments"] for row in rows) or 1

    def across(count: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * count / most

    def up(value: float) -> float:
        return HEIGHT - BOTTOM - (HEIGHT - BOTTOM - TOP) * math.log(value / low) / math.log(high / low)

    parts = [
        (
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{HEIGHT}" viewBox="0 0 {WIDTH} {HEIGHT}"'
            ' font-family="sans-serif" font-size="12" fill="#222">'
        ),
        '<rect width="100%" height="100%" fill="white"/>',
        f'<text x="{LEFT - 40}" y="22" font-size="13">milliseconds of CPU time per call</text>',
        f'<text x="{across(most / 2):.0f}" y="{HEIGHT - 14}" text-anchor="middle">existing attachments</text>',
    ]
    for step in (step for step in STEPS if low <= step <= high):
        y = f"{up(step):.1f}"
        parts.append(f'<line x1="{LEFT}" y1="{y}" x2="{WIDTH - RIGHT}" y2="{y}" stroke="#ddd"/>')
        parts.append(f'<text x="{LEFT - 8}" y="{y}" text-anchor="end" dy="0.35em">{step}</text>')
    placed = -math.inf
    for row in rows:
        x = across(row["attachments"])
        parts.append(
            f'<line x1="{x:.1f}" y1="{HEIGHT - BOTTOM}" x2="{x:.1f}" y2="{HEIGHT - BOTTOM + 5}" stroke="#888"/>'
        )
        if x - placed > 30:  # otherwise the labels would overlap
            below = HEIGHT - BOTTOM + 19
            parts.append(f'<text x="{x:.1f}" y="{below}" text-anchor="middle">{row["attachments"]}</text>')
            placed = x
    for whose, command, colour, dashes in SERIES:
        points = [(across(row["attachments"]), up(row[command]["processor ms"][whose])) for row in rows
                  if whose in row[command]["processor ms"]]  # fmt: skip
        if not points:
            continue
        line = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        dashed = f' stroke-dasharray="{dashes}"' if dashes else ""
        parts.append(f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="2"{dashed}/>')
        parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>' for x, y in points]
        x, height = points[-1]
        parts.append(f'<text x="{x + 8:.1f}" y="{height:.1f}" dy="0.35em" fill="{colour}">{whose}, {command}</text>')
    return "\n".join([*parts, "</svg>"]) + "\n"


if __name__ == "__main__":
    results = json.loads(Path(sys.argv[1]).read_text())
    sys.stdout.write(svg([row for row in results["rows"] if row["case"] == "growth"]))
