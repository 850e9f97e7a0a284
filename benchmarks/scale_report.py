"""How the tools and the start of engine and agent scale: with many networks, leases and services.

Run by ``benchmarks/scale`` in private namespaces. Wall-clock seconds; meaningful on an idle machine only.
"""

from __future__ import annotations

import argparse
import sys

import scale_pool
import scale_tools

from lab import namespaces

PARTS = ("tools", "pool")


def main() -> None:
    parser = argparse.ArgumentParser(prog="benchmarks/scale", description=__doc__)
    parser.add_argument("--only", action="append", choices=PARTS, default=[])
    parser.add_argument("--networks", type=int, default=1000)
    parser.add_argument("--each", type=int, default=5, help="attachments to each network")
    parser.add_argument("--leases", type=int, default=65533)
    options = parser.parse_args()
    if problem := namespaces.isolation_problem():
        sys.exit(f"benchmarks: {problem}; use benchmarks/scale")
    parts = options.only or PARTS
    if "tools" in parts:
        scale_tools.measure(options.networks, options.each)
    if "pool" in parts:
        scale_pool.measure(options.leases)
