"""Settings of all unit tests. hypothesis is imported here only, as its import is slow."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

# No deadline: the duration of an example depends on the load of the machine.
settings.register_profile("shared", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("shared")
