"""Consul's HTTP API over the catalog, the registry and the store: ``server`` ties it together.

Nothing is imported here, so that who wants the settings alone need not wait for an HTTP library.
"""
