"""Health checks of the local registry.

``checker`` schedules them, ``probes`` executes them, ``status_handler`` applies the thresholds. It
stands on the registry, where results go.
"""
