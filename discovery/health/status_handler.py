"""Thresholds: consecutive results before a check changes its status (Consul's StatusHandler)."""

from __future__ import annotations

from discovery.structs import CheckDefinition, Status


class StatusHandler:
    """Counts the results of one check. A warning counts as success.

    Source: ``success_before_passing``, ``failures_before_warning`` and ``failures_before_critical``
    of Consul's checks.
    """

    def __init__(self, definition: CheckDefinition) -> None:
        self._before_passing = definition.success_before_passing
        self._before_critical = definition.failures_before_critical
        self._before_warning = definition.failures_before_warning or definition.failures_before_critical
        self._successes = 0
        self._failures = 0

    def update(self, result: Status) -> Status | None:
        """Add a result; the new status, or None while it is unchanged."""
        if result is not Status.CRITICAL:
            self._failures = 0
            self._successes += 1
            return result if self._successes >= self._before_passing else None
        self._successes = 0
        self._failures += 1
        if self._failures >= self._before_critical:
            return Status.CRITICAL
        return Status.WARNING if self._failures >= self._before_warning else None
