"""The agent: the process of a host that answers names, serves the registry, checks health and balances.

``discovery/`` is what it is made of; here is what ties that to this host: its settings, its attachments, its life.
"""
