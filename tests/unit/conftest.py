"""What the unit tests share. Only they use hypothesis, whose import takes longer than all others together."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

# How long an example takes says something about the machine's other work, and nothing about weft.
settings.register_profile("shared", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("shared")
