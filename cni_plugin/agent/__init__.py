"""The agent: the daemon of a host that serves DNS and the registry, checks health and balances
services.

Its parts are in ``discovery/``; this package has its configuration, its attachments and its life cycle.
"""
