"""DNS: the registered services, and the containers of each network by their names; all else is asked of others.

``codec`` is the wire, ``zone`` answers for the services' domain, ``names`` and ``view`` for one network's containers,
``responder`` makes a reply of a query, ``server`` and ``streams`` carry both, ``forward`` asks upstream servers.
"""
